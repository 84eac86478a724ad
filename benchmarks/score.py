"""How fast `octray score` is, as a whole process: against the straightforward loop, and against the engine alone.

`python -m benchmarks.score [COUNT]` (1000 unless told otherwise, at least 100) writes as many radiographs of 224 pixels as
JPEG, and a tenth as many, at least 100, of 2,000 pixels as DICOM, uncompressed and lossless JPEG 2000, trains a bundle on some,
and prints ratios. Rates are those of a run that is under way: the time for all files less that for the first few, so that no
start counts.
"""

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from pipeline.imaging.sources import discover
from pipeline.model.bundle import GRAPH, load_bundle
from pipeline.model.engine import Engine, usable_cores
from pipeline.score.admission import Admitted, read_admitted
from pipeline.score.predictor import Predictor
from tests.server_ray import RayCluster, running_ray

SIZE = 224
LEARNED, FEW, LOOP_COUNT = 120, 10, 40
ROUNDS = 3
MOST_REFUSED = 0.1
_USUAL_BATCH = 16


def main(arguments: list[str]) -> int:
    """Print one ratio a line."""
    count = max(100, int(arguments[0])) if arguments else 1000
    with tempfile.TemporaryDirectory() as name:
        root, whole = Path(name), _radiograph()
        large = max(10 * FEW, count // 10)
        small = _write(root / "small", count, lambda number: _jpeg(whole, number))
        plain = _write(root / "plain", large, lambda number: _dicom(whole, number, compressed=False))
        packed = _write(root / "packed", large, lambda number: _dicom(whole, number, compressed=True))
        bundle = _train(root, (small, plain, packed))
        print(f"{count} radiographs of {SIZE} px as JPEG, {large} of {whole.Rows} x {whole.Columns} px as DICOM;")
        print(f"EfficientNet-Lite0; median of {ROUNDS} rounds, lowest and highest in brackets:")
        for title, folder in (("small JPEG", small), ("uncompressed", plain), ("JPEG 2000", packed)):
            _show(f"{title}, octray score against the loop", _rounds(_score(folder, bundle, root), _loop(folder, root)))
        with_maps, without = _score(small, bundle, root), _score(small, bundle, root, "--no-heatmaps")
        engine, usual = _engine(small, bundle, count, at_best=True), _engine(small, bundle, count, at_best=False)
        for title, ours in (("without heatmap files", without), ("with heatmap files", with_maps)):
            _show(f"small JPEG, {title}, against ONNX Runtime alone, all cores and {_USUAL_BATCH} a call", _rounds(ours, usual))
            _show(f"small JPEG, {title}, against ONNX Runtime alone, as octray runs it", _rounds(ours, engine))
        _show("small JPEG, with heatmap files against without", _rounds(with_maps, without))
        _show("small JPEG, two Ray nodes of one core against one", _ray(small, bundle, root))
        one = _part(small, root, 1)
        print(f"  start: one small JPEG takes {statistics.median(_run(one, bundle, root) for _ in range(ROUNDS)):.1f} s")
    return 0


def _show(title: str, rounds: list[tuple[float, float]]) -> None:
    ratios = sorted(ours / theirs for ours, theirs in rounds)
    ours, theirs = (statistics.median(rates) for rates in zip(*rounds, strict=True))
    spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"  {title}: {statistics.median(ratios):.2f} {spread}; {ours:.1f} and {theirs:.1f} a second", flush=True)


def _rounds(ours: Callable[[], float], theirs: Callable[[], float]) -> list[tuple[float, float]]:
    """Return images a second of both, measured in turn."""
    return [(ours(), theirs()) for _ in range(ROUNDS)]


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


def _loop(folder: Path, root: Path) -> Callable[[], float]:
    """Return what measures the straightforward loop on some of the files."""

    def seconds(part: Path) -> float:
        return _seconds([sys.executable, "-m", "benchmarks.peers.loop", str(part), str(root / f"loop-{part.name}")])

    return lambda: _rate(seconds, _part(folder, root, LOOP_COUNT), _part(folder, root, FEW))


def _score(folder: Path, bundle: Path, root: Path, *more: str) -> Callable[[], float]:
    """Return what measures `octray score`."""
    few = _part(folder, root, len(list(folder.iterdir())) // 10)
    return lambda: _rate(lambda part: _run(part, bundle, root, *more), folder, few)


def _rate(seconds: Callable[[Path], float], many: Path, few: Path) -> float:
    """Return the files a second of a run that is under way."""
    more = len(list(many.iterdir())) - len(list(few.iterdir()))
    return more / (seconds(many) - seconds(few))


def _part(folder: Path, root: Path, count: int) -> Path:
    """Return a folder of the first files of another."""
    part = root / f"{folder.name}-{count}"
    if not part.exists():
        part.mkdir()
        for path in sorted(folder.iterdir())[:count]:
            (part / path.name).hardlink_to(path)
    return part


def _run(folder: Path, bundle: Path, root: Path, *more: str, environment: Mapping[str, str] | None = None) -> float:
    """Return the seconds that `octray score` takes, into a folder of results of its own."""
    out = Path(tempfile.mkdtemp(dir=root)) / "results"
    seconds = _seconds(_command("score", str(folder), "--bundle", str(bundle), "--out", str(out), *more), environment)
    refused, given = (out / "failures.csv").read_text().count("\n") - 1, len(list(folder.iterdir()))
    if refused > max(1, given * MOST_REFUSED):
        raise SystemExit(f"{refused} of {given} files of {folder.name} were refused: this measures something else.")
    return seconds


def _ray(folder: Path, bundle: Path, root: Path) -> list[tuple[float, float]]:
    """Return the rates of two nodes and of one, each node held to a core of its own."""
    few = _part(folder, root, len(list(folder.iterdir())) // 10)
    rates: dict[int, list[float]] = {}
    for nodes in (2, 1):
        with running_ray(nodes, pinned=True) as cluster:

            def seconds(part: Path, cluster: RayCluster = cluster) -> float:
                more = ("--engine", "ray", "--address", cluster.address)
                return _run(part, bundle, root, *more, environment=cluster.environment)

            rates[nodes] = [_rate(seconds, folder, few) for _ in range(ROUNDS)]
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


def _octray(*words: str) -> None:
    _seconds(_command(*words))


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli.main", *words]


def _seconds(command: list[str], environment: Mapping[str, str] | None = None) -> float:
    """Run a process and return how long it took; exit code 1 means that octray refused some of the files."""
    start = time.perf_counter()
    surroundings = os.environ | (environment or {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    if done.returncode > 1:
        raise SystemExit(done.stderr[-2000:])
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
