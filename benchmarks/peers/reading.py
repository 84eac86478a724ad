"""From files to the network's input: octray against pydicom and MONAI, in turn, on one real radiograph in four encodings.

The peers apply no window and do not turn MONOCHROME1 round, so they do less; they get the same decoders as octray does.
"""

import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from monai.transforms import LoadImage, Resize, ScaleIntensity
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from pipeline.imaging.dicom.codecs import register
from pipeline.imaging.preprocess import prepare, reading_for
from pipeline.imaging.sources import StudyFile, read_frames
from pipeline.settings import Limits, Preprocessing, Reading

SIZE, ROUNDS = 224, 9
LEVELS = 6

Work = Callable[[Path], object]


def main() -> int:
    """Print for each encoding octray's frames a second, and how many times as fast it is as each peer."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    register()
    with tempfile.TemporaryDirectory() as folder:
        files = _write(Path(folder))
        print(f"One radiograph of 1955 x 1841 pixels to {SIZE} x {SIZE}; octray's frames a second, then how many times as fast")
        print("as each peer it is: median of pairs run in turn, with the quartiles; then the price of reading less than all.")
        for name, path in files.items():
            print(f"  {name}: {_compare(path)}")
    return 0


def _write(folder: Path) -> dict[str, Path]:
    """Write the radiograph RG1 of pydicom-data in four encodings; 8 of its 15 bits for baseline JPEG."""
    with resources.as_file(resources.files("data_store") / "data" / "RG1_UNCR.dcm") as path:
        dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    bits = dataset.BitsStored
    encodings: dict[str, tuple[UID, bytes]] = {
        "uncompressed": (ExplicitVRLittleEndian, pixels.tobytes()),
        "JPEG 2000 lossless": (JPEG2000Lossless, _jpeg_2000(pixels, bits)),
        "JPEG-LS lossless": (JPEGLSLossless, imagecodecs.jpegls_encode(pixels)),
        "JPEG": (JPEGBaseline8Bit, imagecodecs.jpeg8_encode((pixels >> (bits - 8)).astype(np.uint8), level=90)),
    }
    files = {}
    for name, (syntax, encoded) in encodings.items():
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([encoded]) if syntax.is_encapsulated else encoded
        dataset["PixelData"].VR = "OB" if syntax.is_encapsulated else "OW"
        if syntax == JPEGBaseline8Bit:
            _eight_bits(dataset, bits)
        files[name] = folder / f"{syntax}.dcm"
        dataset.save_as(files[name], enforce_file_format=True)
    return files


def _jpeg_2000(pixels: np.ndarray, bits: int) -> bytes:
    return imagecodecs.jpeg2k_encode(
        pixels, level=0, codecformat="j2k", bitspersample=bits, reversible=True, resolutions=LEVELS
    )


def _eight_bits(dataset: pydicom.Dataset, bits: int) -> None:
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.WindowCenter = float(dataset.WindowCenter) / 2 ** (bits - 8)
    dataset.WindowWidth = float(dataset.WindowWidth) / 2 ** (bits - 8)


def _compare(path: Path) -> str:
    scale, resize = ScaleIntensity(), Resize((SIZE, SIZE))
    load = LoadImage(image_only=True, reader="PydicomReader", ensure_channel_first=True)
    exact, reduced = Preprocessing(SIZE, exact_decoding=True), Preprocessing(SIZE)

    def octray(path: Path) -> np.ndarray:
        return _input(path, reduced, reading_for(reduced, Limits()))

    def plain(path: Path) -> object:
        return resize(scale(pydicom.dcmread(path).pixel_array[None]))

    def monai(path: Path) -> object:
        return resize(scale(load(path)))

    own = [_seconds(octray, path) for _ in range(ROUNDS + 1)][1:]
    difference = float(np.abs(octray(path) - _input(path, exact, Reading())).mean()) * 255
    against = ", ".join(f"{name} {_ratio(peer, octray, path)}" for name, peer in (("pydicom", plain), ("LoadImage", monai)))
    return f"{1 / statistics.median(own):.0f} a second; {against}; {difference:.2f} of 255 grey levels on average"


def _input(path: Path, preprocessing: Preprocessing, reading: Reading) -> np.ndarray:
    (frame,) = read_frames(StudyFile(path, path.name), reading)
    return prepare(frame.pixels, preprocessing, frame.whole_box, frame.whole_shape)


def _ratio(peer: Work, octray: Work, path: Path) -> str:
    ratios = [_seconds(peer, path) / _seconds(octray, path) for _ in range(ROUNDS + 1)][1:]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def _seconds(work: Work, path: Path) -> float:
    start = time.perf_counter()
    work(path)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
