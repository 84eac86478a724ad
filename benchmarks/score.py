"""How fast `octray score` is, as a whole process: against the straightforward loop, and against the engine alone.

`python -m benchmarks.score [COUNT]` (1000 unless told otherwise, at least 100) writes as many radiographs of 224 pixels as
JPEG, and a tenth as many, at least 100, of 2,000 pixels as DICOM, uncompressed and lossless JPEG 2000, trains a bundle on some,
and prints ratios. Rates are those of a run in progress: the time for all files less that for the first few, so that no
start counts.
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from benchmarks.processes import (
    ROUNDS,
    SIZE,
    first_of,
    radiograph,
    rate,
    score_rate,
    score_seconds,
    seconds_of,
    show,
    train_on,
    write_small,
)
from pipeline.imaging.sources import discover
from pipeline.model.bundle import GRAPH, load_bundle
from pipeline.model.engine import Engine
from pipeline.score.predictor import Predictor
from pipeline.score.reading import Admitted, read_admitted
from pipeline.workers.cores import usable_cores
from tests.server_ray import RayCluster, running_ray

FEW, LOOP_COUNT = 10, 40
_USUAL_BATCH = 16


def main(arguments: list[str]) -> int:
    """Print one ratio a line."""
    count = max(100, int(arguments[0])) if arguments else 1000
    with tempfile.TemporaryDirectory() as name:
        root, whole = Path(name), radiograph()
        large = max(10 * FEW, count // 10)
        small = write_small(root / "small", count)
        plain = _write(root / "plain", large, lambda number: _dicom(whole, number, compressed=False))
        packed = _write(root / "packed", large, lambda number: _dicom(whole, number, compressed=True))
        bundle = train_on((small, plain, packed), root)
        print(f"{count} radiographs of {SIZE} px as JPEG, {large} of {whole.Rows} x {whole.Columns} px as DICOM;")
        print(f"EfficientNet-Lite0; median of {ROUNDS} rounds, lowest and highest in brackets:")
        for title, folder in (("small JPEG", small), ("uncompressed", plain), ("JPEG 2000", packed)):
            show(f"{title}, octray score against the loop", _rounds(score_rate(folder, bundle, root), _loop(folder, root)))
        with_maps, without = score_rate(small, bundle, root), score_rate(small, bundle, root, "--no-heatmaps")
        engine, usual = _engine(small, bundle, count, at_best=True), _engine(small, bundle, count, at_best=False)
        for title, ours in (("without heatmap files", without), ("with heatmap files", with_maps)):
            show(f"small JPEG, {title}, against ONNX Runtime alone, all cores and {_USUAL_BATCH} a call", _rounds(ours, usual))
            show(f"small JPEG, {title}, against ONNX Runtime alone, as octray runs it", _rounds(ours, engine))
        show("small JPEG, with heatmap files against without", _rounds(with_maps, without))
        show("small JPEG, two Ray nodes of one core against one", _ray(small, bundle, root))
        one = first_of(small, root, 1)
        print(
            f"  start: one small JPEG takes {statistics.median(score_seconds(one, bundle, root) for _ in range(ROUNDS)):.1f} s"
        )
    return 0


def _rounds(ours: Callable[[], float], theirs: Callable[[], float]) -> list[tuple[float, float]]:
    """Return images a second of both, measured in turn."""
    return [(ours(), theirs()) for _ in range(ROUNDS)]


def _write(folder: Path, count: int, content: Callable[[int], tuple[str, bytes]]) -> Path:
    folder.mkdir()
    for number in range(count):
        suffix, data = content(number)
        (folder / f"{number:06}{suffix}").write_bytes(data)
    return folder


def _dicom(whole: pydicom.Dataset, number: int, compressed: bool) -> tuple[str, bytes]:
    """Return the radiograph as a study of its own, uncompressed or as lossless JPEG 2000 with six levels."""
    dataset = pydicom.Dataset(whole)
    dataset.file_meta = pydicom.dataset.FileMetaDataset(whole.file_meta)
    uid = f"1.2.{3 + compressed}.{number + 1}"
    dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid, uid, f"{uid}.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{uid}.1.1"
    pixels = np.roll(whole.pixel_array, 7 * number, axis=1)
    if compressed:
        options = {"codecformat": "j2k", "bitspersample": whole.BitsStored, "reversible": True, "resolutions": 6}
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.PixelData = encapsulate([imagecodecs.jpeg2k_encode(pixels, level=0, **options)])
        dataset["PixelData"].VR = "OB"
    else:
        dataset.PixelData = pixels.tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return ".dcm", file.getvalue()


def _loop(folder: Path, root: Path) -> Callable[[], float]:
    """Return what measures the straightforward loop on some of the files."""

    def seconds(part: Path) -> float:
        return seconds_of([sys.executable, "-m", "benchmarks.peers.loop", str(part), str(root / f"loop-{part.name}")])

    return lambda: rate(seconds, first_of(folder, root, LOOP_COUNT), first_of(folder, root, FEW))


def _ray(folder: Path, bundle: Path, root: Path) -> list[tuple[float, float]]:
    """Return the rates of two nodes and of one, each node held to a core of its own."""
    few = first_of(folder, root, len(list(folder.iterdir())) // 10)
    rates: dict[int, list[float]] = {}
    for nodes in (2, 1):
        with running_ray(nodes, pinned=True) as cluster:

            def seconds(part: Path, cluster: RayCluster = cluster) -> float:
                more = ("--engine", "ray", "--address", cluster.address)
                return score_seconds(part, bundle, root, *more, environment=cluster.environment)

            rates[nodes] = [rate(seconds, folder, few) for _ in range(ROUNDS)]
    return list(zip(rates[2], rates[1], strict=True))


def _engine(folder: Path, bundle: Path, count: int, at_best: bool) -> Callable[[], float]:
    """Return what measures the engine alone on tensors that lie in memory.

    As ONNX Runtime is usually used: one call with all cores and `_USUAL_BATCH` frames; or as was found to be best here.
    """
    cores, graph = usable_cores(), load_bundle(bundle).read(GRAPH)
    engine = Engine(graph, threads=1 if at_best else 0)
    calls, size = (engine.calls(cores), engine.frames_at_once) if at_best else (1, _USUAL_BATCH)
    admission = Predictor(load_bundle(bundle)).admission
    admitted = [one for file in list(discover(folder))[: 2 * size] for one in read_admitted(file, admission)]
    batch = np.stack([one.pixels for one in admitted if isinstance(one, Admitted)][:size])

    def rate() -> float:
        with ThreadPoolExecutor(calls) as pool:
            start = time.perf_counter()
            done = sum(len(logits) for logits, _ in pool.map(lambda _: engine.run(batch), range(-(-count // len(batch)))))
            return done / (time.perf_counter() - start)

    rate()
    return rate


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
