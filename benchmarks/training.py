"""How fast training is: `python -m benchmarks.training [--frames N]`; ratios of pairs that are measured in turn in one run.

All times are of the processor, so that other programs matter less.

- Optimiser steps a second of the trainer with all layers of EfficientNet-Lite0 at 224 pixels, against a loop as one would write
  it in torch: the same network, batches, augmentation and optimiser, with all frames in memory as 32-bit numbers.
- An epoch of the last layers, the measuring of the tune split included, with the frozen layers computed against cached.
- The augmentation of a frame against MONAI's transforms with the same settings.
- The largest difference of a prepared frame on disk.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pipeline.config import AugmentSection, FinetuneSection
from pipeline.model.networks import Network, create_network
from pipeline.model.weights import load_weights
from pipeline.predictions import Task
from pipeline.progress import Item, silent
from pipeline.train.augment import Augmentation
from pipeline.train.devices import Compute
from pipeline.train.tasks import Objective
from pipeline.train.trainer import FrameSet, finetune, unfreeze
from pipeline.train.workspace import Workspace

SIZE, BATCH, ROUNDS = 224, 32, 3
CHANGES = AugmentSection(rotate_degrees=7, translate=0.05, scale=0.1, gamma=0.2, flip_columns=True)


def main() -> int:
    """Print one figure a line."""
    parser = argparse.ArgumentParser(description="Measure how fast training is.")
    parser.add_argument("--frames", type=int, default=256, help="training frames; a quarter as many measure the tune split")
    count = parser.parse_args().frames
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), count)
    return 0


def _measure(folder: Path, count: int) -> None:
    rng, total = np.random.default_rng(0), count + count // 4
    frames = [functional.avg_pool2d(torch.rand(1, SIZE * 4, SIZE * 4), 4).numpy() for _ in range(total)]
    stored = Workspace(folder, "").frames(iter(frames), (total, 1, SIZE, SIZE))
    difference = max(np.abs(stored[slice(row, row + 1)] - frames[row]).max() for row in range(total))
    print(f"prepared frames on disk: largest difference {difference:.2e}, {stored[:1].size * 2:,} bytes a frame")
    print(f"ChestX-ray14, 112,120 frames at 512 px: {112_120 * 512 * 512 * 2 / 1e9:.1f} GB")
    targets = np.eye(2)[rng.integers(0, 2, total)]
    train, tune = (FrameSet(stored, targets, rows) for rows in (np.arange(count), np.arange(count, total)))
    _print_augmentation(torch.from_numpy(stored[:BATCH]))
    ours, bare = [], []
    for _ in range(ROUNDS):
        ours.append(_steps(folder, train, tune))
        bare.append(_bare_steps(np.stack(frames), targets, count))
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    print(f"steps a second, full: {statistics.median(ours):.3f}, {statistics.median(ratios):.2f} of a bare loop")
    for groups in (1, 2, 3):
        cached, plain = (_epoch(folder, train, tune, groups=groups, views=views) for views in (2, 0))
        print(f"epoch of the last {groups} groups: {plain:.2f} s, cached {cached:.2f} s: {plain / cached:.1f} times faster")


def _network() -> Network:
    torch.manual_seed(0)
    network = create_network("tf_efficientnet_lite0", 2).eval()
    load_weights(network, "tf_efficientnet_lite0", "bundled")
    return network


def _steps(folder: Path, train: FrameSet, tune: FrameSet) -> float:
    """Return the steps a second of an epoch of all layers."""
    found: list[float] = []

    def timed(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        start = time.process_time()
        yield from items
        if description.startswith("epoch"):
            found.append((total or 0) / (time.process_time() - start))

    _train(folder, train, tune, timed, lambda *_: None, groups=99, epochs=1)
    return found[0]


def _epoch(folder: Path, train: FrameSet, tune: FrameSet, **settings: int) -> float:
    """Return the processor seconds of an epoch."""
    times: list[float] = []
    _train(folder, train, tune, silent, lambda *_: times.append(time.process_time()), epochs=1 + ROUNDS, **settings)
    return statistics.median(np.diff(times[1:]))


def _train(folder: Path, train: FrameSet, tune: FrameSet, progress: Any, on_epoch: Any, **settings: int) -> None:
    checkpoint = folder / "checkpoint.safetensors"
    checkpoint.unlink(missing_ok=True)
    finetune(
        _network(),
        train=train,
        tune=tune,
        objective=Objective(Task.MULTICLASS, "none", train.targets[train.rows]),
        settings=FinetuneSection(batch_size=BATCH, learning_rate=1e-4, patience=99, **settings),  # type: ignore[arg-type]
        augmentation=Augmentation(CHANGES),
        seed=0,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
        progress=progress,
        compute=Compute("cpu"),
    )


def _bare_steps(frames: Any, targets: Any, count: int) -> float:
    """Return the steps a second of a loop in torch."""
    pixels, classes = torch.from_numpy(frames), torch.from_numpy(targets.argmax(1))
    network = _network()
    unfreeze(network, 99)
    network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    change = Augmentation(CHANGES)
    start, order = time.process_time(), np.random.default_rng(0).permutation(count)
    for first in range(0, count, BATCH):
        rows = order[first : first + BATCH]
        loss = functional.cross_entropy(network(change(pixels[rows], 0, 1, rows))[0], classes[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return len(range(0, count, BATCH)) / (time.process_time() - start)


def _print_augmentation(pixels: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.transforms import Compose, RandAdjustContrast, RandAffine, RandFlip
    turn, shift = np.deg2rad(CHANGES.rotate_degrees), CHANGES.translate * SIZE
    peer = Compose(
        [
            RandAffine(
                1.0, turn, translate_range=(shift, shift), scale_range=(0.1, 0.1), mode="bilinear", padding_mode="zeros"
            ),
            RandFlip(0.5, spatial_axis=1),
            RandAdjustContrast(1.0, gamma=(0.8, 1.2)),
        ]
    )
    change, rows, times = Augmentation(CHANGES), np.arange(len(pixels)), []
    policies = {name: Augmentation(AugmentSection(policy=name)) for name in ("randaugment", "trivialaugment", "acquisition")}
    ways = {"octray": lambda: change(pixels, 0, 1, rows), "monai": lambda: [peer(frame) for frame in pixels]}
    ways |= {name: lambda one=one: one(pixels, 0, 1, rows) for name, one in policies.items()}  # type: ignore[misc]
    for way in ways.values():
        way()
        start = time.process_time()
        way()
        times.append((time.process_time() - start) / len(pixels) * 1000)
    print("augmentation, ms a frame: " + ", ".join(f"{name} {one:.2f}" for name, one in zip(ways, times, strict=True)))


if __name__ == "__main__":
    raise SystemExit(main())
