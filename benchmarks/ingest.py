"""How ingest scales: files a second with one and two workers, a second run, and the peak memory of every process.

`python -m benchmarks.ingest [FILES...]` (1000 and 50000 unless told otherwise) writes as many small files, half of them DICOM
and half PNG, into a temporary folder, reads them, and removes them.
"""

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

SIDE, PATIENT_FILES = 64, 4
_PROGRAM = """
import sys
from pathlib import Path
from pipeline.ingest.build import build_index
studies, out = Path(sys.argv[1]), Path(sys.argv[2])
index, _ = build_index([studies], out, workers=int(sys.argv[3]))
"""


def main(arguments: list[str]) -> int:
    """Print one line for each number of files."""
    for count in [int(argument) for argument in arguments] or [1_000, 50_000]:
        with tempfile.TemporaryDirectory() as name:
            studies = Path(name) / "studies"
            _write(studies, count)
            one, one_memory = _ingest(studies, Path(name) / "one", 1)
            two, two_memory = _ingest(studies, Path(name) / "two", 2)
            again, again_memory = _ingest(studies, Path(name) / "two", 2)
            same = _content(Path(name) / "one") == _content(Path(name) / "two")
        print(
            f"{count} files: {count / one:.0f} files/s with one worker, {count / two:.0f} with two ({one / two:.2f} times), "
            f"{count / again:.0f} when nothing changed; peak memory in MiB of the main process {_main_mib(one_memory)}, "
            f"{_main_mib(two_memory)}, {_main_mib(again_memory)}, of the largest worker {_worker_mib(one_memory)}, "
            f"{_worker_mib(two_memory)}; equal frames: {same}"
        )
    return 0


def _write(studies: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = studies / f"{number // 1000:03}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (SIDE, SIDE), np.uint8)
        if number % 2:
            Image.fromarray(pixels).save(folder / f"{number}.png")
        else:
            (folder / f"{number}.dcm").write_bytes(_dicom(pixels.astype(np.uint16) * 16, number))


def _dicom(pixels: np.ndarray, number: int) -> bytes:
    patient = number // PATIENT_FILES
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.3.{patient}", f"1.2.3.{patient}.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.{patient}.1.{number}"
    dataset.PatientID, dataset.Modality, dataset.PhotometricInterpretation = f"P{patient}", "CR", "MONOCHROME2"
    dataset.Rows = dataset.Columns = SIDE
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = pixels.tobytes()
    content = io.BytesIO()
    pydicom.dcmwrite(content, dataset, enforce_file_format=True)
    return content.getvalue()


def _ingest(studies: Path, out: Path, workers: int) -> tuple[float, dict[int, int]]:
    """Return the seconds that an ingest took, and the peak memory of each of its processes, the main one first, in KiB."""
    start = time.perf_counter()
    program = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(studies), str(out), str(workers)])
    peaks: dict[int, int] = {program.pid: 0}
    while program.poll() is None:
        for process in (program.pid, *_children(program.pid)):
            peaks[process] = max(peaks.get(process, 0), _high_water(process))
        time.sleep(0.02)
    if program.returncode:
        raise SystemExit("The ingest failed.")
    return time.perf_counter() - start, peaks


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in _text(task).split()]


def _high_water(process: int) -> int:
    lines = [line for line in _text(Path(f"/proc/{process}/status")).splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) if lines else 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _main_mib(peaks: dict[int, int]) -> int:
    return next(iter(peaks.values())) // 1024


def _worker_mib(peaks: dict[int, int]) -> int:
    return max(list(peaks.values())[1:], default=0) // 1024


def _content(out: Path) -> bytes:
    return (out / "frames.parquet").read_bytes()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
