"""Which networks an ensemble of probes should have: `python -m benchmarks.members CONFIG INDEX --features FOLDER [--frames N]`.

Features of frozen networks are computed once for each network and size; a vision transformer gives those of several blocks.
Probes are then compared, alone and averaged in logits, by the processor time of their graphs and by

- five folds of the patients of the train and tune split, which alone may choose members, sizes and blocks: the combination with
  the lowest log loss (at its own temperature) among those that take at most `--budget` times the time of the first network;
- the patients of the calibration and test split, by probes of all train and tune frames. These figures choose nothing.

A probe is softmax regression with class weights, as `train.way=probe` fits it, on frames as they are, without mirror images;
three folds of patients choose its weight decay. It is solved in the span of the features, which is quicker and gives the same
answer.
Graphs are timed in turn, two frames a call, one thread.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from pipeline.config import Config, load_config
from pipeline.evaluate.calibration import Float64
from pipeline.frames import FloatArray, Split
from pipeline.ingest.index import load_index
from pipeline.ingest.network_input import prepared_frames
from pipeline.model.engine import Engine
from pipeline.model.export import export_graph
from pipeline.train.fit import start_network
from pipeline.train.training_data import TrainingData, select_training_data

DINOV2, ALL_BLOCKS = "vit_small_patch14_dinov2", (4, 5, 6, 7, 8, 9, 10)
MEMBERS: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "Lite0": ("tf_efficientnet_lite0", 224, ()),
    "Lite1": ("tf_efficientnet_lite1", 240, ()),
    "Lite2": ("tf_efficientnet_lite2", 260, ()),
    "DINOv2 224 [8, 10]": (DINOV2, 224, (8, 10)),
    "DINOv2 196 [8, 10]": (DINOV2, 196, (8, 10)),
    "DINOv2 168 [8, 10]": (DINOV2, 168, (8, 10)),
    "DINOv2 168 [6, 8]": (DINOV2, 168, (6, 8)),
    "DINOv2 140 [8, 10]": (DINOV2, 140, (8, 10)),
}
"""Architecture, size and blocks of each network that is compared."""
FOLDS, INNER_FOLDS, ROUNDS, AT_ONCE, MOST_MEMBERS = 5, 3, 7, 2, 3
DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01)
Rows = NDArray[np.int64]


class Figures(NamedTuple):
    """What some logits reach."""

    auroc: float
    balanced_accuracy: float
    log_loss: float


def main() -> int:
    """Print a line for each network and each combination."""
    parser = argparse.ArgumentParser(description="Compare the networks of an ensemble of probes.")
    parser.add_argument("config")
    parser.add_argument("index", type=Path)
    parser.add_argument("--frames", type=int, default=100_000, help="of patients drawn at random, at least so many in all")
    parser.add_argument("--features", type=Path, required=True, help="folder that keeps features and times between runs")
    parser.add_argument("--budget", type=float, default=10.0, help="times the processor time of the first network")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.features.mkdir(parents=True, exist_ok=True)
    config = load_config(given.config)
    data = _drawn(select_training_data(config, load_index(given.index)), given.frames)
    pixels = _frames(config, data, given.features)
    costs = _costs(config, data, pixels[:AT_ONCE], given.features)
    truth, patients = data.targets.argmax(1), np.array([record.patient_key for record in data.records])
    learned = np.union1d(data.rows(Split.TRAIN), data.rows(Split.TUNE))
    held = np.union1d(data.rows(Split.CALIBRATION), data.rows(Split.TEST))
    inner, outer = dict[str, Float64](), dict[str, Float64]()
    print(f"{len(learned)} frames to choose with, {len(held)} held out")
    print("networks | ms a frame | folds: AUROC, balanced accuracy, log loss | held out: the same")

    def show(members: Sequence[str]) -> Figures:
        both = (
            _figures([inner[one] for one in members], truth[learned]),
            _figures([outer[one] for one in members], truth[held]),
        )
        figures = (f"{one.auroc:.4f} {one.balanced_accuracy:.3f} {one.log_loss:.4f}" for one in both)
        print(" | ".join([" + ".join(members), f"{sum(costs[one] for one in members):.1f}", *figures]), flush=True)
        return both[0]

    for name in MEMBERS:
        features = _features(config, data, pixels, name, given.features)
        inner[name] = np.zeros((len(learned), len(data.labels)))
        for fold in _folds(learned, truth, patients, FOLDS, 1):
            inner[name][fold] = _probe(features, np.delete(learned, fold), learned[fold], truth, patients)
        outer[name] = _probe(features, learned, held, truth, patients)
        show([name])
    combined = {
        members: show(members)
        for count in range(2, MOST_MEMBERS + 1)
        for members in combinations(MEMBERS, count)
        if sum(name.startswith("DINOv2") for name in members) <= 1
    }
    most = given.budget * costs[next(iter(MEMBERS))]
    within = [members for members in combined if sum(costs[one] for one in members) <= most]
    print(f"chosen by the folds, of at most {most:.1f} ms: {' + '.join(min(within, key=lambda one: combined[one].log_loss))}")
    return 0


def _drawn(data: TrainingData, frames: int) -> TrainingData:
    """Return the data of patients drawn at random until there are so many frames."""
    patients = np.random.default_rng(0).permutation(sorted({record.patient_key for record in data.records})).tolist()
    place = {patient: number for number, patient in enumerate(patients)}
    ranked = sorted(record.patient_key for record in data.records)
    kept = set(sorted(ranked, key=place.__getitem__)[:frames])
    rows = [row for row, record in enumerate(data.records) if record.patient_key in kept]
    return replace(data, records=tuple(data.records[row] for row in rows), targets=data.targets[rows])


def _frames(config: Config, data: TrainingData, folder: Path) -> FloatArray:
    path = folder / "frames.npy"
    if not path.exists():
        frames = prepared_frames(data.records, data.sources, config.network_preprocessing(), config.limits)
        np.save(path, np.stack(list(frames)))
    pixels: FloatArray = np.load(path, mmap_mode="r")
    if len(pixels) != len(data.records):
        raise SystemExit(f"{folder} holds the features of other frames. Name another folder.")
    return pixels


def _engine(config: Config, data: TrainingData, architecture: str, size: int, blocks: tuple[int, ...]) -> Engine:
    model = {"architecture": architecture, "size": size, "blocks": list(blocks), "weights": "bundled"}
    changed = config.changed({"ensemble": {"members": []}, "model": model})
    return Engine(export_graph(start_network(changed, data.labels)[0], config.preprocessing.size), 1)


def _costs(config: Config, data: TrainingData, pixels: FloatArray, folder: Path) -> dict[str, float]:
    """Return the ms of a core that a frame takes in each network, the median of calls in turn."""
    path = folder / "costs.json"
    if not path.exists():
        engines = {name: _engine(config, data, *member) for name, member in MEMBERS.items()}
        times: dict[str, list[float]] = {name: [] for name in MEMBERS}
        for _ in range(ROUNDS):
            for name, engine in engines.items():
                start = time.process_time()
                engine.run(pixels)
                times[name].append((time.process_time() - start) / len(pixels) * 1000)
        path.write_text(json.dumps({name: statistics.median(found) for name, found in times.items()}))
    costs: dict[str, float] = json.loads(path.read_text())
    return costs


def _features(config: Config, data: TrainingData, pixels: FloatArray, name: str, folder: Path) -> Float64:
    """Return the pooled features of all frames, of shape (n, channels)."""
    architecture, size, blocks = MEMBERS[name]
    path = folder / f"{architecture}-{size}.npy"
    if not path.exists():
        engine = _engine(config, data, architecture, size, ALL_BLOCKS if blocks else ())
        parts = (np.ascontiguousarray(pixels[start : start + AT_ONCE]) for start in range(0, len(pixels), AT_ONCE))
        np.save(path, np.concatenate([engine.run(part)[1].mean((2, 3)) for part in parts]))
    whole = np.load(path).astype(np.float64)
    if not blocks:
        return np.asarray(whole, np.float64)
    each = dict(zip(ALL_BLOCKS, np.split(whole, len(ALL_BLOCKS), axis=1), strict=True))
    return np.concatenate([each[block] for block in blocks], axis=1)


def _folds(rows: Rows, truth: Rows, patients: NDArray[np.str_], count: int, seed: int) -> list[Rows]:
    """Return the places in `rows` of each fold."""
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    return [fold for _, fold in folds.split(rows, truth[rows], patients[rows])]


def _probe(features: Float64, rows: Rows, others: Rows, truth: Rows, patients: NDArray[np.str_]) -> Float64:
    """Fit a head on some frames, with the weight decay that folds of them choose; return the logits of others."""
    labels = int(truth.max()) + 1
    losses = np.zeros(len(DECAYS))
    for fold in _folds(rows, truth, patients, INNER_FOLDS, 0):
        found = _logits(features[np.delete(rows, fold)], truth[np.delete(rows, fold)], features[rows[fold]], labels, DECAYS)
        losses += [len(fold) * _log_loss(logits, truth[rows[fold]]) for logits in found]
    return _logits(features[rows], truth[rows], features[others], labels, DECAYS[: int(losses.argmin()) + 1])[-1]


def _logits(seen: Float64, truth: Rows, others: Float64, labels: int, decays: Sequence[float]) -> list[Float64]:
    """Return the logits of others by the head of each weight decay, the largest first; probabilities are those of `truth`."""
    center, scale = seen.mean(0), seen.std(0) + 1e-6
    left, lengths, span = np.linalg.svd((seen - center) / scale, full_matrices=False)
    kept = lengths > 1e-8 * lengths[0]
    near, far = left[:, kept] * lengths[kept], (others - center) / scale @ span[kept].T
    targets, counts = np.eye(labels)[truth], np.bincount(truth, minlength=labels)
    weights = 1 / counts[truth] / labels

    def loss(numbers: Float64, decay: float) -> tuple[float, Float64]:
        weight = numbers[labels:].reshape(-1, labels)
        logs = log_softmax(near @ weight + numbers[:labels], axis=1)
        slope = (np.exp(logs) - targets) * weights[:, None]
        value = -float((weights[:, None] * targets * logs).sum()) + decay / 2 * float((weight**2).sum())
        return value, np.concatenate([slope.sum(0), (near.T @ slope + decay * weight).ravel()])

    found, numbers = [], np.zeros((near.shape[1] + 1) * labels)
    for decay in decays:
        numbers = minimize(loss, numbers, (decay,), jac=True, method="L-BFGS-B", options={"maxiter": 150}).x
        prior = np.log(counts / counts.sum() * labels)
        found.append(far @ numbers[labels:].reshape(-1, labels) + numbers[:labels] + prior)
    return found


def _log_loss(logits: Float64, truth: Rows) -> float:
    return -float(log_softmax(logits, axis=1)[np.arange(len(truth)), truth].mean())


def _figures(logits: Sequence[Float64], truth: Rows) -> Figures:
    """Return the figures of the mean of some logits."""
    mean, targets = np.mean(logits, axis=0), np.eye(logits[0].shape[1])[truth]
    best = minimize(lambda log: _log_loss(mean * np.exp(log[0]), truth), [0.0], method="Nelder-Mead")
    chances = np.exp(log_softmax(mean * np.exp(best.x[0]), axis=1))
    return Figures(
        float(roc_auc_score(targets, chances, average="macro")),
        float(balanced_accuracy_score(truth, mean.argmax(1))),
        float(best.fun),
    )


if __name__ == "__main__":
    raise SystemExit(main())
