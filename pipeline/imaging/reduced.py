"""Decodes pictures at a half, a quarter ... of their resolution, which costs a fraction of the time.

JPEG 2000 and JPEG contain smaller pictures; in other encodings, blocks of pixels are averaged. The samples of a reduced picture
are not at the positions that a plain division by the factor gives, so whoever resizes one needs the box of the whole picture on
it from `whole_box`; without that the error is several times as large (DECISIONS.md).
"""

import io
from typing import Any

import numpy as np
from PIL import Jpeg2KImagePlugin, JpegImagePlugin

from pipeline.frames import Box
from pipeline.imaging.codestream import Codestream, halvings, read_codestream
from pipeline.imaging.grayscale import Values

JPEG_2000_OFFSET = 0.5
"""The low-pass samples of a wavelet transformation lie at every second pixel's centre, the first at the first (T.800 F.3)."""
BLOCK_OFFSET = 0.0
"""Averages of blocks begin at the corner of the first pixel; a scaled inverse DCT gives such averages (T.81 A.3.3)."""
_JPEG_LEVELS = 3


def levels(shape: tuple[int, int], side: int) -> int:
    """Return how often a picture of `shape` can be halved so that its shorter side keeps at least `side` pixels."""
    return max(0, (min(shape) // max(1, side)).bit_length() - 1)


def reduced_shape(shape: tuple[int, int], count: int) -> tuple[int, int]:
    """Return rows and columns after `count` halvings; every decoder rounds up."""
    return -(-shape[0] >> count), -(-shape[1] >> count)


def whole_box(whole: tuple[int, int], decoded: tuple[int, int], offset: float) -> Box:
    """Return the box of a whole picture on its reduced one.

    Parameters
    ----------
    whole
        Rows and columns of the picture.
    decoded
        Those of the reduced picture.
    offset
        `JPEG_2000_OFFSET` or `BLOCK_OFFSET`: place of the first sample, in pixels of the whole picture.

    Returns
    -------
    Box
        In pixels of the reduced picture; it reaches beyond it by less than one.

    Raises
    ------
    ValueError
        If the reduced picture has another shape than halving gives.
    """
    count = next((count for count in range(33) if reduced_shape(whole, count) == decoded), None)
    if count is None:
        raise ValueError(f"A picture of {whole} cannot be halved to {decoded}.")
    start = offset - offset / 2**count
    return Box(start, start, whole[0] / 2**count, whole[1] / 2**count)


def decode_jpeg_2000(encoded: bytes, side: int, bits: int, signed: bool) -> Values | None:
    """Decode a grey JPEG 2000 or HTJ2K codestream at the lowest resolution whose shorter side has at least `side` pixels.

    Parameters
    ----------
    encoded
        The codestream, without the boxes of a JP2 file.
    side
        Least pixels of the shorter side.
    bits, signed
        Bits Stored (0028,0101), and whether Pixel Representation (0028,0103) is 1.

    Returns
    -------
    Values or None
        Integers of shape (ceil(rows / 2**n), ceil(columns / 2**n)); None if the picture has to be decoded whole: it is
        small or damaged, has too few resolution levels, is not grey, or its samples are not stored as the header says.
    """
    try:
        found = read_codestream(encoded) if encoded.startswith(b"\xff\x4f") else None
        if found is None or found.samples != 1 or found.subsampled or not found.is_at_origin:
            return None
        count = min(halvings(encoded), levels((found.rows, found.columns), side))
        if count == 0 or (found.precision, found.signed) != (bits, signed) or bits > 16:
            return None
        values = _openjpeg(encoded, count, found)
    except Exception:  # whatever a decoder raises on damaged bytes: decoding the picture whole gives octray's own message
        return None
    return values if values.shape == reduced_shape((found.rows, found.columns), count) else None


def _openjpeg(encoded: bytes, count: int, found: Codestream) -> Values:
    """Decode by way of Pillow, and undo that Pillow shifts samples to 8 or 16 bits and makes signed ones positive.

    OpenJPH would be faster for HTJ2K, but wraps samples that fall below 0 at a reduced resolution to the other end.
    """
    image = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(encoded))
    rows, columns = reduced_shape((found.rows, found.columns), count)
    # Pillow's own `reduce` rounds the size to the nearest while OpenJPEG rounds up, and then fails.
    image._size = (columns, rows)
    image.tile = [image.tile[0]._replace(extents=(0, 0, columns, rows), args=("j2k", count, 0, -1, len(encoded)))]
    shifted = np.asarray(image)
    values: Values = shifted >> (8 * shifted.itemsize - found.precision)
    if found.signed:
        values = (values.astype(np.int32) - 2 ** (found.precision - 1)).astype(f"i{shifted.itemsize}")
    return values


def decode_jpeg(encoded: bytes, side: int) -> Values | None:
    """Decode a grey JPEG of 8 bits at 1/2, 1/4 or 1/8 of its resolution, with at least `side` pixels on its shorter side.

    Returns
    -------
    Values or None
        uint8 array of shape (ceil(rows / 2**n), ceil(columns / 2**n)); None if the picture has to be decoded whole: it is
        small or damaged, is not grey, or is a JPEG of another kind.
    """
    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(encoded))
        shape = image.height, image.width
        count = min(_JPEG_LEVELS, levels(shape, side))
        if count == 0 or image.mode != "L":
            return None
        image.draft("L", (shape[1] >> count, shape[0] >> count))
        values = np.asarray(image)
    except Exception:  # as above
        return None
    return values if values.shape == reduced_shape(shape, count) else None


def block_averages(values: Values, side: int, bits: int) -> Values:
    """Average blocks of 2, 4 ... pixels a side, of the largest size that leaves at least `side` pixels on the shorter side.

    Parameters
    ----------
    values
        Integers of shape (rows, columns).
    side
        Least pixels of the shorter side.
    bits
        Bits that a value has, so that sums need no wider words than they fill.

    Returns
    -------
    Values
        Integers of the same type, rounded, of shape (ceil(rows / 2**n), ceil(columns / 2**n)); incomplete last
        blocks repeat the last row and column. The values themselves if n is 0.
    """
    count = levels((values.shape[0], values.shape[1]), side)
    if not count:
        return values
    unsigned = values.dtype.kind == "u"
    wide = np.dtype(np.uint16 if unsigned and bits + 2 * count <= 16 else np.int32 if bits + 2 * count < 32 else np.int64)
    sums = _summed(_summed(values, 2**count, wide).T, 2**count, wide).T
    averages: Values = (sums + wide.type(2 ** (2 * count - 1))) >> wide.type(2 * count)
    return np.ascontiguousarray(averages, values.dtype)


def _summed(values: Values, block: int, wide: np.dtype[Any]) -> Values:
    """Add up every `block` rows."""
    whole = len(values) - len(values) % block
    sums = np.zeros((-(-len(values) // block), values.shape[1]), wide)
    for row in range(block):
        sums[: whole // block] += values[row:whole:block]
        sums[whole // block :] += values[min(whole + row, len(values) - 1) :][:1]
    return sums
