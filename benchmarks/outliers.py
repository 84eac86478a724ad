"""Whether bundles refuse what they were not made for: `python -m benchmarks.outliers OCT OCT_INDEX XRAY XRAY_INDEX`.

For each bundle: refused frames of its own test split (false alarms), of the other set, and of pictures that are neither, first
with the threshold that the bundle carries. Other methods are compared on the same features; each has its threshold on the
calibration split, as the bundle has, and sees nothing of the foreign pictures. The header's modality plays no part, since
these files carry none.

One calibration split is one draw of patients. So the calibration and test patients, of whom the network has seen nothing, are
then divided again, many times, into as many patients for the threshold and others for the false alarms.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from benchmarks.foreign import foreign_pictures
from pipeline.errors import UnreadableError
from pipeline.evaluate.intervals import binomial_limits
from pipeline.evaluate.outliers import fit_reference, load_reference, pooled, reference_rows, refusal_threshold
from pipeline.frames import FloatArray, Frame, InstanceKey, Split
from pipeline.imaging.preprocess import prepare
from pipeline.imaging.quality.gate import admit
from pipeline.ingest.index import Index, load_index
from pipeline.ingest.network_input import prepared_frames
from pipeline.model.bundle import GRAPH, REFERENCE, Bundle, load_bundle
from pipeline.model.engine import Engine

MOST_FOREIGN_FRAMES = 700
DIVISIONS = 200
Array = NDArray[np.float64]
Score = Callable[[Array], Array]


def main(oct_bundle: Path, oct_index: Path, xray_bundle: Path, xray_index: Path) -> int:
    """Print one table a bundle."""
    indexes = load_index(oct_index), load_index(xray_index)
    for path, (own, other) in ((oct_bundle, indexes), (xray_bundle, indexes[::-1])):
        _judge(load_bundle(path), own, other)
    return 0


def _judge(bundle: Bundle, own: Index, other: Index) -> None:
    engine, preprocessing = Engine(bundle.read(GRAPH)), bundle.manifest.preprocessing

    def features(index: Index, rows: NDArray[np.int64]) -> Array:
        frames = prepared_frames([index.records[row] for row in rows], index.sources, preprocessing)
        return _features(engine, frames)

    rows = {split: np.array([row for row, one in enumerate(own.records) if one.split is split], np.int64) for split in Split}
    train = features(own, reference_rows(rows[Split.TRAIN]))
    calibration, test = features(own, rows[Split.CALIBRATION]), features(own, rows[Split.TEST])
    count = min(len(other.records), MOST_FOREIGN_FRAMES)
    strangers = features(other, np.linspace(0, len(other.records) - 1, count).astype(np.int64))
    kinds, pictures = zip(*foreign_pictures(), strict=True)
    neither = _features(engine, (prepare(picture, preprocessing) for picture in pictures))
    gated = np.array([_is_gated(bundle, picture) for picture in pictures])
    print(f"\n{bundle.path.name}: {len(train)} training frames, {len(calibration)} calibration, {len(test)} test")
    print(f"{len(pictures)} pictures that are neither, of which the quality gate alone refuses {gated.sum()}")
    print("method                        false alarms: frames, patients  other set  neither  or by the gate  let pass")
    patients = [own.records[row].patient_key for row in rows[Split.CALIBRATION]]
    tested = np.array([own.records[row].patient_key for row in rows[Split.TEST]])
    methods = [
        (name, score, refusal_threshold(score(calibration).tolist(), patients))
        for name, score in (("Mahalanobis, unit length", _ours(train, calibration, patients)), *_others(train))
    ]
    for name, score, threshold in (_own(bundle), *methods):
        alarms, other_set, refused = (int((score(values) > threshold).sum()) for values in (test, strangers, neither))
        concerned, of = len(set(tested[score(test) > threshold])), len(set(tested))
        low, high = binomial_limits(concerned, of)
        either = gated | (score(neither) > threshold)
        passed = Counter(kind for kind, is_refused in zip(kinds, either, strict=True) if not is_refused)
        print(
            f"{name:28}  {alarms:3}/{len(test)}  {concerned:3}/{of} ({low:.3f} to {high:.3f})  {other_set}/{len(strangers)}  "
            f"{refused}/{len(pictures)}  {either.sum()}/{len(pictures)}  {dict(passed) or 'none'}",
            flush=True,
        )
    names = np.concatenate([patients, tested])
    print(f"{DIVISIONS} divisions: mean (worst)     patients with a false alarm  other set        neither")
    for name, score, _ in methods:
        distances = score(np.concatenate([calibration, test]))
        found = _divided(distances, names, len(set(patients)), score(strangers), score(neither))
        alarmed, others, unlike = (np.array(column) for column in zip(*found, strict=True))
        print(
            f"{name:28}  {alarmed.mean():.4f} ({alarmed.max():.4f})              {others.mean():.4f} ({others.min():.4f})  "
            f"{unlike.mean():.4f} ({unlike.min():.4f})",
            flush=True,
        )


def _divided(
    distances: Array, names: NDArray[np.str_], count: int, strangers: Array, neither: Array
) -> Iterator[tuple[float, float, float]]:
    """Yield for each division the part of patients with a false alarm, and the parts of foreign frames that are refused."""
    rng, everyone = np.random.default_rng(0), np.unique(names)
    for _ in range(DIVISIONS):
        known = np.isin(names, rng.choice(everyone, count, replace=False))
        threshold = refusal_threshold(distances[known].tolist(), names[known].tolist())
        concerned = set(names[~known & (distances > threshold)])
        yield (
            len(concerned) / (len(everyone) - count),
            float((strangers > threshold).mean()),
            float((neither > threshold).mean()),
        )


def _own(bundle: Bundle) -> tuple[str, Score, float]:
    """Return what the bundle does, which refuses what is farther than 1."""
    reference = load_reference(bundle.read(REFERENCE), bundle.manifest.outliers.threshold)
    return "the bundle", lambda x: np.array([reference.distance(one) for one in x]), 1.0


def _ours(train: Array, calibration: Array, patients: list[str]) -> Score:
    """Return what training would put into a bundle."""
    reference = fit_reference(train, calibration, patients)
    return lambda x: np.array([reference.distance(one) * reference.threshold for one in x])


def _others(train: Array) -> Iterator[tuple[str, Score]]:
    fitted = LedoitWolf().fit(train)
    yield "Mahalanobis, any length", lambda x: np.sqrt(fitted.mahalanobis(x))
    bank = NearestNeighbors(n_neighbors=min(50, len(train)), algorithm="brute").fit(normalize(train))
    for neighbour in (1, 5, 10, 50):
        if neighbour <= len(train):
            yield f"{neighbour}. neighbour, unit length", lambda x, k=neighbour: bank.kneighbors(normalize(x))[0][:, k - 1]


def _features(engine: Engine, frames: Iterable[FloatArray]) -> Array:
    return np.stack([pooled(engine.run(frame[None])[1][0]) for frame in frames])


def _is_gated(bundle: Bundle, picture: FloatArray) -> bool:
    try:
        admit(Frame(picture, InstanceKey("1", "1", "1", 1), "picture.png", ""), bundle.manifest.gate())
    except UnreadableError:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:5])))
