"""How often the quality gate finds what is there, and what is not, and what it costs: `python -m benchmarks.quality`.

Reads the real pictures in `OCTRAY_SHARED_DATA` (default `../shared/data`); corrupted copies are made from them in memory.
"""

import io
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.frames import FloatArray, Frame, InstanceKey
from pipeline.imaging.preprocess import mask_white_borders
from pipeline.imaging.quality.gate import assess
from pipeline.imaging.sources import discover, read_frames, read_frames_from_bytes
from pipeline.phantoms.drawing import draw_chest, draw_volume
from pipeline.settings import Check, Gate, IntendedUse, Quality

CHEST = Gate(intended_use=IntendedUse(modalities=("CR", "DX"), view_positions=("PA", "AP"), body_parts=("CHEST",)))
B_SCAN = Gate(intended_use=IntendedUse(modalities=("OPT",)))
SETS = {"cxr-pediatric": CHEST, "oct-kermany": B_SCAN, "oct-octdl-crops": B_SCAN}
ROUNDS = 9

Change = Callable[[FloatArray], FloatArray]


def main() -> int:
    """Print the rates of each set, as it is and corrupted, and then the times."""
    data = Path(os.environ.get("OCTRAY_SHARED_DATA", "../shared/data"))
    if not data.is_dir():
        sys.stderr.write("The shared data are not here: set OCTRAY_SHARED_DATA to their folder.\n")
        return 1
    for name, gate in SETS.items():
        _print_rates(name, gate, _pictures(data / name))
    _print_rates("chest phantoms", CHEST, _phantoms(CHEST))
    _print_rates("B-scan phantoms", B_SCAN, _phantoms(B_SCAN))
    _print_samples(data / "dicom-samples" / "files")
    _print_times()
    return 0


def _pictures(folder: Path) -> list[Frame]:
    """Read a set, and leave its modality unknown, as the files do."""
    files = [file for file in discover(folder) if file.source.endswith((".jpeg", ".jpg", ".png"))]
    return [frame for file in files for frame in read_frames(file)]


def _phantoms(gate: Gate) -> list[Frame]:
    rng = np.random.default_rng(0)
    if gate is CHEST:
        drawn = [draw_chest(rng, label) for label in ("NORMAL", "PNEUMONIA") for _ in range(50)]
    else:
        drawn = [one for label in ("NORMAL", "DRUSEN", "DME") for _ in range(10) for one in draw_volume(rng, label)]
    return [Frame(pixels, InstanceKey("1", "1", "1", 1), "phantom", "") for pixels, _ in drawn]


def _print_rates(name: str, gate: Gate, frames: list[Frame]) -> None:
    changes: Mapping[str, Change] = CHANGES if gate is CHEST else CHANGES | CUTS
    print(f"\n{name}, {len(frames)} frames; part of them in which each check finds something")
    for change, made in changes.items():
        found = Counter(check for frame in frames for check in _found(replace(frame, pixels=made(frame.pixels)), gate))
        rates = ", ".join(f"{check} {count / len(frames):.4f}" for check, count in sorted(found.items()))
        print(f"  {change:28} {rates or 'nothing'}")


def _found(frame: Frame, gate: Gate) -> Iterable[Check]:
    return (flag.check for flag in assess(frame, gate))


def _print_samples(folder: Path) -> None:
    """Public DICOM files of every modality, looked at without expectations."""
    found: Counter[str] = Counter()
    for file in discover(folder):
        try:
            for frame in read_frames(file):
                found[f"{frame.modality or '-'}: any"] += 1
                found.update(f"{frame.modality or '-'}: {check}" for check in _found(frame, Gate(Quality(smallest_side=1))))
        except Exception:  # noqa: S112 - what cannot be read is not what is measured here
            continue
    print("\ndicom-samples, frames by modality and finding, nothing expected")
    for line, count in sorted(found.items()):
        print(f"  {line:28} {count}")


def _print_times() -> None:
    print("\nmilliseconds, median: reading a picture, and the checks on it; the third number is the second by the first")
    rng = np.random.default_rng(0)
    for kind, gate, pixels in (("chest", CHEST, draw_chest(rng, "NORMAL")[0]), ("B-scan", B_SCAN, _b_scan(rng))):
        for size in ((224, 224), (512, 496), (2000, 2000)):
            image = Image.fromarray(np.round(pixels * 255).astype(np.uint8)).resize(size)
            for coding in ("JPEG", "PNG"):
                _print_time(f"{kind} {size[0]} x {size[1]} {coding}", gate, image, coding)


def _print_time(name: str, gate: Gate, image: Image.Image, coding: str) -> None:
    buffer = io.BytesIO()
    image.save(buffer, coding)
    content = buffer.getvalue()
    (frame,) = read_frames_from_bytes(content, "picture")
    reading = _milliseconds(lambda: list(read_frames_from_bytes(content, "picture")))
    checking = _milliseconds(lambda: assess(frame, gate))
    print(f"  {name:28} {reading:8.2f} {checking:8.2f} {checking / reading:8.3f}")


def _milliseconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def _b_scan(rng: np.random.Generator) -> FloatArray:
    return draw_volume(rng, "NORMAL")[0][0]


def _turned(turns: int) -> Change:
    return lambda pixels: np.ascontiguousarray(np.rot90(pixels, turns))


def _gain(factor: float, offset: float = 0.0) -> Change:
    return lambda pixels: np.clip(pixels * np.float32(factor) + np.float32(offset), 0, 1)


def _wedged(pixels: FloatArray) -> FloatArray:
    """Turn by five degrees, white where nothing was, as it happens before images are published."""
    return np.asarray(Image.fromarray(pixels).rotate(5, Image.Resampling.BILINEAR, fillcolor=1.0), np.float32)


def _photographed(pixels: FloatArray) -> FloatArray:
    """Show the frame in perspective on a black ground, with a gradient of light and the stripes of a screen."""
    rows, columns = pixels.shape
    unit = (-0.08, -0.1, -0.02, 1.1, 1.06, 1.06, 1.12, -0.05)
    corners = tuple(part * side for part, side in zip(unit, (columns, rows) * 4, strict=True))
    image = Image.fromarray(pixels).transform((columns, rows), Image.Transform.QUAD, corners, Image.Resampling.BILINEAR)
    y, x = np.indices(pixels.shape, dtype=np.float32)
    light = 0.65 + 0.3 * x / columns + 0.05 * np.sin(2.1 * x + 0.3 * y)
    return np.clip(0.05 + np.asarray(image) * light, 0, 1).astype(np.float32)


def _noise(pixels: FloatArray) -> FloatArray:
    return np.clip(np.random.default_rng(0).normal(0.5, 0.1, pixels.shape), 0, 1).astype(np.float32)


def _half(pixels: FloatArray, end: str) -> FloatArray:
    """Cut in the row that has as much light above it as below, which counts by its cube."""
    light = np.cumsum(mask_white_borders(pixels).mean(axis=1) ** 3)
    row = int(np.searchsorted(light, light[-1] / 2))
    return pixels[row:] if end == "top" else pixels[:row]


CHANGES: Mapping[str, Change] = {
    "as it is": lambda pixels: pixels,
    "a quarter turn": _turned(1),
    "black and white exchanged": lambda pixels: 1 - pixels,
    "the same, a quarter turn": lambda pixels: np.ascontiguousarray(np.rot90(1 - pixels)),
    "left half": lambda pixels: pixels[:, : pixels.shape[1] // 2],
    "right half": lambda pixels: pixels[:, pixels.shape[1] // 2 :],
    "lower half empty": lambda pixels: np.vstack([pixels[: len(pixels) // 2], np.full_like(pixels[len(pixels) // 2 :], 0.5)]),
    "upside down": _turned(2),
    "three quarter turns": _turned(3),
    "twice as bright, clipped": _gain(2),
    "three times as bright": _gain(3),
    "darkened, clipped": _gain(1.0, -0.5),
    "contrast lost, a tenth left": _gain(0.1, 0.5),
    "all of one grey": lambda pixels: np.full_like(pixels, 0.3),
    "noise": _noise,
    "white wedges of 5 degrees": _wedged,
    "a quarter of the size": lambda pixels: pixels[::4, ::4],
    "photographed": _photographed,
}
CUTS: Mapping[str, Change] = {
    "cut through from above": lambda pixels: _half(pixels, "top"),
    "cut through from below": lambda pixels: _half(pixels, "bottom"),
}

if __name__ == "__main__":
    sys.exit(main())
