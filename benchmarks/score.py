"""How fast `octray score` is, as a whole process: against the straightforward loop, and against the engine alone.

`python -m benchmarks.score [COUNT]` (1000 unless told otherwise) writes as many radiographs of 224 pixels as JPEG, and a
tenth as many of 2,000 pixels as DICOM, uncompressed and lossless JPEG 2000, trains a bundle on some, and prints ratios.
"""

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from pipeline.imaging.preprocess import prepare
from pipeline.imaging.sources import discover, read_frames
from pipeline.model.bundle import GRAPH, load_bundle
from pipeline.model.engine import Engine
from pipeline.score.predictor import Predictor

SIZE = 224
LOOP_COUNT, LOOP_START, LEARNED = 40, 10, 120
MOST_REFUSED = 0.1
_BATCH = 16


def main(arguments: list[str]) -> int:
    """Print one ratio a line."""
    count = int(arguments[0]) if arguments else 1000
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        whole = _radiograph()
        small = _write(root / "small", count, lambda number: _jpeg(whole, number))
        large = max(LOOP_COUNT, count // 10)
        plain = _write(root / "plain", large, lambda number: _dicom(whole, number, compressed=False))
        packed = _write(root / "packed", large, lambda number: _dicom(whole, number, compressed=True))
        bundle = _train(root, (small, plain, packed))
        print(f"{count} radiographs of {SIZE} px as JPEG, {large} of {whole.Rows} x {whole.Columns} px as DICOM;")
        print("EfficientNet-Lite0; whole processes, with the start of octray and without that of the loop; ratios of this run:")
        kinds = (("small JPEG", small, count), ("uncompressed", plain, large), ("JPEG 2000", packed, large))
        for title, folder, number in kinds:
            loop = _loop(folder, root, LOOP_COUNT) - _loop(folder, root, LOOP_START)
            rates = number / _score(folder, bundle, root), (LOOP_COUNT - LOOP_START) / loop
            both = f"{rates[0]:.1f} and {rates[1]:.1f} a second"
            print(f"  {title}, octray score against the loop: {rates[0] / rates[1]:.1f} ({both})")
        with_maps, without = _score(small, bundle, root), _score(small, bundle, root, "--no-heatmaps")
        engine = _engine(small, bundle, count)
        print(f"  small JPEG, without heatmap files against the engine alone: {engine / without:.2f}")
        print(f"  small JPEG, with heatmap files against the engine alone: {engine / with_maps:.2f}")
        print(f"  small JPEG, with heatmap files against without: {without / with_maps:.2f}")
        one = _write(root / "one", 1, lambda number: _jpeg(whole, number))
        print(f"  start: one small JPEG takes {_score(one, bundle, root):.1f} s")
    return 0


def _train(root: Path, folders: Sequence[Path]) -> Path:
    """Train on some of the files, without fine-tuning: what it says of them does not matter, but it must hardly refuse any."""
    learned, bundle = root / "learned", root / "bundle"
    learned.mkdir()
    rows = []
    files = [sorted(folder.iterdir()) for folder in folders]
    for path in [path for some in files for path in some[:: max(1, len(some) // LEARNED)]]:
        name, number = f"{path.parent.name}-{path.name}", len(rows)
        (learned / name).hardlink_to(path)
        rows.append(f"{name},{('NORMAL', 'PNEUMONIA')[number % 2]},{number}\n")
    labels = root / "labels.csv"
    labels.write_text("".join(["file,label,patient_key\n", *rows]))
    split = ["--labels", str(labels), "--split", "40/20/20/20"]
    _octray("ingest", str(learned), *split, "--out", str(root / "index"))
    settings = ["train.finetune.epochs=0", "tracking.enabled=false", "evaluate.bootstrap=100"]
    _octray("train", "xray", "--index", str(root / "index"), "--out", str(bundle), *settings)
    return bundle


def _radiograph() -> pydicom.Dataset:
    with resources.as_file(resources.files("data_store") / "data" / "RG1_UNCR.dcm") as path:
        return pydicom.dcmread(path)


def _write(folder: Path, count: int, content: Callable[[int], tuple[str, bytes]]) -> Path:
    folder.mkdir()
    for number in range(count):
        suffix, data = content(number)
        (folder / f"{number:06}{suffix}").write_bytes(data)
    return folder


def _jpeg(whole: pydicom.Dataset, number: int) -> tuple[str, bytes]:
    """Return the radiograph at a small size, shifted so that no two files are the same."""
    pixels = (np.roll(whole.pixel_array, 7 * number, axis=1) >> (whole.BitsStored - 8)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BOX).save(file, "JPEG", quality=90)
    return ".jpg", file.getvalue()


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


def _loop(folder: Path, root: Path, count: int) -> float:
    """Return the seconds that the straightforward loop takes for some of the files."""
    few = root / f"few-{folder.name}-{count}"
    few.mkdir()
    for path in sorted(folder.iterdir())[:count]:
        (few / path.name).hardlink_to(path)
    return _seconds([sys.executable, "-m", "benchmarks.peers.loop", str(few), str(root / f"loop-{folder.name}-{count}")])


def _score(folder: Path, bundle: Path, root: Path, *more: str) -> float:
    """Return the seconds that `octray score` takes, into a folder of results of its own."""
    out = Path(tempfile.mkdtemp(dir=root)) / "results"
    seconds = _seconds(_command("score", str(folder), "--bundle", str(bundle), "--out", str(out), *more))
    refused, given = (out / "failures.csv").read_text().count("\n") - 1, len(list(folder.iterdir()))
    if refused > given * MOST_REFUSED:
        raise SystemExit(f"{refused} of {given} files of {folder.name} were refused: this measures something else.")
    return seconds


def _engine(folder: Path, bundle: Path, count: int) -> float:
    """Return the seconds that the engine alone takes for the tensors of as many frames, which lie in memory."""
    predictor, engine = Predictor(load_bundle(bundle)), Engine(load_bundle(bundle).read(GRAPH))
    frames = [frame for file in list(discover(folder))[:_BATCH] for frame in read_frames(file, predictor.reading)]
    batch = np.stack([prepare(frame.pixels, predictor.manifest.preprocessing) for frame in frames])
    engine.run(batch)
    start = time.perf_counter()
    for _ in range(0, count, len(batch)):
        engine.run(batch)
    return time.perf_counter() - start


def _octray(*words: str) -> None:
    _seconds(_command(*words))


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli.main", *words]


def _seconds(command: list[str]) -> float:
    """Run a process and return how long it took; exit code 1 means that octray refused some of the files."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode > 1:
        raise SystemExit(done.stderr[-2000:])
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
