"""What several benchmarks need: small radiographs, a bundle that was trained on some, and octray as whole processes."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image

SIZE = 224
LEARNED = 120
ROUNDS = 3
MOST_REFUSED = 0.1
_SHIFT, _COLUMNS, _PICTURES = 7, 1841, 263
"""Columns by which each picture is shifted against the last, those of the radiograph, and pictures until the first returns."""


def show(title: str, rounds: list[tuple[float, float]]) -> None:
    """Print how many times as fast the first of each round is as the second: the median, and the spread in brackets."""
    ratios = sorted(ours / theirs for ours, theirs in rounds)
    ours, theirs = (statistics.median(rates) for rates in zip(*rounds, strict=True))
    spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"  {title}: {statistics.median(ratios):.2f} {spread}; {ours:,.1f} and {theirs:.1f} a second", flush=True)


def radiograph() -> pydicom.Dataset:
    """Return RG1 of pydicom-data, 1955 x 1841 pixels."""
    with resources.as_file(resources.files("data_store") / "data" / "RG1_UNCR.dcm") as path:
        return pydicom.dcmread(path)


def write_small(folder: Path, count: int) -> Path:
    """Write the radiograph repeatedly as JPEG at a small size, shifted and numbered, so that each is a study of its own."""
    whole = radiograph()
    pixels = (whole.pixel_array >> (whole.BitsStored - 8)).clip(0, 255).astype(np.uint8)
    pictures = [_small(np.roll(pixels, _SHIFT * number, axis=1)) for number in range(min(count, _PICTURES))]
    folder.mkdir()
    for number in range(count):
        pictures[number % _PICTURES].save(folder / f"{number:06}.jpg", quality=90, comment=str(number))
    return folder


def _small(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BOX)


def train_on(folders: Sequence[Path], root: Path) -> Path:
    """Train on some of the files, without fine-tuning, to tell a radiograph shifted by less than half its width from others.

    Random labels would put every frame near the threshold, and frames near a threshold are read twice.
    """
    learned, bundle = root / "learned", root / "bundle"
    learned.mkdir()
    rows: list[str] = []
    files = [sorted(folder.iterdir()) for folder in folders]
    for path in [path for some in files for path in some[:: max(1, len(some) // LEARNED)]]:
        name, shift = f"{path.parent.name}-{path.name}", _SHIFT * int(path.stem) % _COLUMNS
        (learned / name).hardlink_to(path)
        rows.append(f"{name},{('NORMAL', 'PNEUMONIA')[2 * shift >= _COLUMNS]},{len(rows)}\n")
    labels = root / "labels.csv"
    labels.write_text("".join(["file,label,patient_key\n", *rows]))
    split = ["--labels", str(labels), "--split", "40/20/20/20"]
    seconds_of(octray("ingest", str(learned), *split, "--out", str(root / "index")))
    settings = ["train.way=probe", "tracking.enabled=false", "evaluate.bootstrap=100"]
    seconds_of(octray("train", "xray", "--index", str(root / "index"), "--out", str(bundle), *settings))
    return bundle


def first_of(folder: Path, root: Path, count: int) -> Path:
    """Return a folder of the first files of another."""
    part = root / f"{folder.name}-{count}"
    if not part.exists():
        part.mkdir()
        for path in sorted(folder.iterdir())[:count]:
            (part / path.name).hardlink_to(path)
    return part


def rate(seconds: Callable[[Path], float], many: Path, few: Path) -> float:
    """Return the files a second of a run in progress."""
    more = len(list(many.iterdir())) - len(list(few.iterdir()))
    return more / (seconds(many) - seconds(few))


def score_rate(folder: Path, bundle: Path, root: Path, *more: str) -> Callable[[], float]:
    """Return what measures `octray score`."""
    few = first_of(folder, root, len(list(folder.iterdir())) // 10)
    return lambda: rate(lambda part: score_seconds(part, bundle, root, *more), folder, few)


def score_seconds(folder: Path, bundle: Path, root: Path, *more: str, environment: Mapping[str, str] | None = None) -> float:
    """Return the seconds that `octray score` takes, into a folder of results of its own."""
    out = Path(tempfile.mkdtemp(dir=root)) / "results"
    seconds = seconds_of(octray("score", str(folder), "--bundle", str(bundle), "--out", str(out), *more), environment)
    check_refused(folder, (out / "failures.csv").read_text().count("\n") - 1)
    return seconds


def check_refused(folder: Path, refused: int) -> None:
    """End the benchmark where more of the files of a folder were refused than are left out of its figure without harm."""
    given = len(list(folder.iterdir()))
    if refused > max(1, given * MOST_REFUSED):
        raise SystemExit(f"{refused} of {given} files of {folder.name} were refused: this measures something else.")


def octray(*words: str) -> list[str]:
    """Return the command that runs octray."""
    return [sys.executable, "-m", "pipeline.cli.main", *words]


def seconds_of(command: list[str], environment: Mapping[str, str] | None = None) -> float:
    """Run a process and return how long it took; exit code 1 means that octray refused some of the files."""
    start = time.perf_counter()
    surroundings = os.environ | (environment or {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    if done.returncode > 1:
        raise SystemExit(done.stderr[-2000:])
    return time.perf_counter() - start
