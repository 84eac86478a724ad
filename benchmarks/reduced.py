"""How much the network's input changes where frames are decoded at a reduced resolution: real images in several encodings.

`python -m benchmarks.reduced [FOLDER]` takes three images of pydicom-data, and besides every 40th picture below FOLDER.
"""

import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image

from pipeline.imaging.grayscale import Rendering, Window, render
from pipeline.imaging.preprocess import prepare, reading_for
from pipeline.imaging.reduced import (
    BLOCK_OFFSET,
    JPEG_2000_OFFSET,
    block_averages,
    decode_jpeg,
    decode_jpeg_2000,
    whole_box,
)
from pipeline.settings import Fit, Limits, Preprocessing

SIZES = (112, 224, 320, 512)
EVERY = 40

_BLOCKS = "averages of blocks"

Values = NDArray[Any]


def main() -> int:
    """Print for each encoding the mean over an image, its worst case over all images, and the worst of a single pixel."""
    images = list(_radiographs()) + [image for folder in sys.argv[1:] for image in _pictures(Path(folder))]
    for name in ("JPEG 2000 5/3", "JPEG 2000 9/7", "HTJ2K", "JPEG", _BLOCKS):
        found = [case for pixels, bits in images for case in _cases(name, pixels, bits)]
        means, largest = zip(*found, strict=True)
        print(
            f"{name}: {len(found)} cases, difference in 255 grey levels: median {np.median(means):.2f}, "
            f"worst mean {max(means):.2f}, worst pixel {max(largest):.0f}"
        )
    return 0


def _radiographs() -> Iterator[tuple[Values, int]]:
    for name in ("RG1_UNCR", "RG3_UNCR", "MR2_UNCR"):
        with resources.as_file(resources.files("data_store") / "data" / f"{name}.dcm") as path:
            dataset = pydicom.dcmread(path)
            yield dataset.pixel_array, dataset.BitsStored


def _pictures(folder: Path) -> Iterator[tuple[Values, int]]:
    for path in sorted(folder.rglob("*.jp*g"))[::EVERY]:
        yield np.asarray(Image.open(path).convert("L")), 8


def _cases(name: str, pixels: Values, bits: int) -> Iterator[tuple[float, float]]:
    """Yield mean and largest difference for every size, fit and window at which the image is decoded at a lower resolution."""
    encoded, whole = _encode(name, pixels, bits)
    wide = 16 if name == "HTJ2K" and bits > 8 else 8 if name == "JPEG" else bits
    black, white = np.percentile(whole, (0.5, 99.5))
    centre, width = (black + white) / 2, white - black + 1
    windows = (Window(centre, width), Window(centre, max(1, 0.4 * width)), Window(centre, 0.5 * width, "SIGMOID"))
    for size in SIZES:
        decoded = _decode(name, encoded, whole, size, wide)
        if decoded is None:
            continue
        box = whole_box(whole.shape, decoded.shape, BLOCK_OFFSET if name in ("JPEG", _BLOCKS) else JPEG_2000_OFFSET)
        for fit in (Fit.PAD, Fit.CROP):
            for window in windows:
                grid = Preprocessing(size, fit, exact_decoding=True)
                expected = prepare(render(whole, Rendering(voi=window))[0], grid)
                reduced = prepare(render(decoded, Rendering(voi=window))[0], grid, box, whole.shape)
                difference = np.abs(reduced - expected) * 255
                yield float(difference.mean()), float(difference.max())


def _encode(name: str, pixels: Values, bits: int) -> tuple[bytes, Values]:
    """Return the codestream, and what it decodes to as a whole."""
    if name == "JPEG":
        encoded = imagecodecs.jpeg8_encode((pixels >> (bits - 8)).astype(np.uint8), level=90)
        return encoded, imagecodecs.jpeg8_decode(encoded)
    if name == _BLOCKS:
        return b"", pixels
    if name == "HTJ2K":
        return imagecodecs.htj2k_encode(pixels, reversible=True), pixels
    reversible = name.endswith("5/3")
    encoded = imagecodecs.jpeg2k_encode(
        pixels,
        level=0 if reversible else 60,
        codecformat="j2k",
        bitspersample=bits,
        reversible=reversible,
        resolutions=6,
    )
    return encoded, imagecodecs.jpeg2k_decode(encoded)


def _decode(name: str, encoded: bytes, whole: Values, size: int, bits: int) -> Values | None:
    side = reading_for(Preprocessing(size, exact_decoding=False), Limits()).side
    if side is None:
        return None
    if name == _BLOCKS:
        averages = block_averages(whole, side, bits)
        return None if averages is whole else averages
    return decode_jpeg(encoded, side) if name == "JPEG" else decode_jpeg_2000(encoded, side, bits, signed=False)


if __name__ == "__main__":
    sys.exit(main())
