"""Reads the header of a JPEG, JPEG-LS or JPEG 2000 codestream, and checks it against limits and the DICOM header."""

import re
from dataclasses import dataclass

from pipeline.errors import Reason, UnreadableError
from pipeline.settings import Limits

MOST_SCANS = 100
"""Most scans of a JPEG: a decoder goes through the whole picture for each, and writers make about ten."""
SMALLEST_TILE = 1024
"""Least number of pixels of a tile of JPEG 2000, on average; a decoder spends kilobytes on every tile, however small."""

_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_TAIL = 64
_SOT, _LEVELS_AT = 0xFF90, {0xFF52: 5, 0xFF53: 2}
"""Markers of JPEG 2000: the start of a tile, and the position of the number of levels in COD and COC."""
_NEXT_PICTURE = re.compile(rb"\xff\xd9\0*(?:\xff\xd8\xff|\xff\x4f\xff\x51|\0\0\0\x0cjP  )")
"""The end of a codestream, which its data never contain, and the start of another."""
_MOST_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Codestream:
    """The header of a codestream: size, samples per pixel, bits per sample, tiles, and the kind of its samples.

    `is_at_origin` is whether the picture of JPEG 2000 starts at the origin of its grid; a JPEG always does.
    `marker` is the second byte of the frame header of a JPEG, which gives the kind (ISO/IEC 10918-1 B.1.1.3); 0 for JPEG 2000.
    """

    rows: int
    columns: int
    samples: int
    precision: int
    tiles: int = 1
    subsampled: bool = False
    signed: bool = False
    is_at_origin: bool = True
    marker: int = 0


def check_codestream(encoded: bytes, shape: tuple[int, int, int], bits_allocated: int, signed: bool = False) -> None:
    """Compare a codestream with the header.

    A JPEG 2000 codestream with signed values is refused if the header says that they are unsigned. By PS3.5 8.2.4 the
    codestream counts and not the header, so that the values would be signed; other decoders shift them by half their range.
    Nothing tells for which of the two the window of the file was made. Unsigned values under a signed header are common, and
    are read.

    Parameters
    ----------
    encoded
        All fragments of the frame, joined.
    shape
        Rows, Columns and Samples per Pixel.
    bits_allocated
        Bits Allocated (0028,0100).
    signed
        Whether Pixel Representation (0028,0103) is 1.

    Raises
    ------
    UnreadableError
        `INCONSISTENT` if they differ or there are several pictures, `DECODE_FAILED` if it is not a codestream, `TRUNCATED` if
        its end is missing, `UNSUPPORTED_ENCODING` if its components have different sizes, `RESOURCE_LIMIT` if it has too many
        tiles or scans.
    """
    found = read_codestream(encoded)
    if found is None:
        raise UnreadableError(Reason.DECODE_FAILED, "The compressed pixel data are damaged: they have no valid JPEG header.")
    if (found.rows, found.columns, found.samples) != shape:
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"The compressed image is {found.rows} x {found.columns} with {found.samples} samples per pixel, but the header "
            f"says {shape[0]} x {shape[1]} with {shape[2]}. Export the file again.",
        )
    _check_samples(found, bits_allocated)
    if found.signed and not signed:
        raise UnreadableError(
            Reason.INCONSISTENT,
            "The compressed image has signed values, but Pixel Representation is 0. Export the file again.",
        )
    check_scans(encoded)
    if pictures := len(_NEXT_PICTURE.findall(encoded)):
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"The compressed pixel data of a frame hold {pictures + 1} pictures. Export the file again, each as a frame.",
        )
    if _END not in encoded[-_TAIL:]:
        raise UnreadableError(Reason.TRUNCATED, "The compressed pixel data are cut off. Copy or export the file again.")


def check_codestream_size(encoded: bytes, limits: Limits) -> None:
    """Check the size that a codestream gives against the limits, whatever the DICOM header says.

    Raises
    ------
    UnreadableError
        `RESOURCE_LIMIT` if it has more pixels than the limits allow in a frame, or more samples than these have in colour.
    """
    found = read_codestream(encoded)
    if found is None or found.rows * found.columns * max(found.samples, _MOST_SAMPLES) <= _MOST_SAMPLES * limits.frame_pixels:
        return
    raise UnreadableError(
        Reason.RESOURCE_LIMIT,
        f"The compressed image has {found.rows} x {found.columns} pixels of {found.samples} samples; octray reads up to "
        f"{limits.frame_pixels} pixels. Scale it down.",
    )


def check_scans(encoded: bytes) -> None:
    """Count the scans of a JPEG, which a header of a few bytes begins (ISO/IEC 10918-1 B.2.3), however large the picture.

    Raises
    ------
    UnreadableError
        `RESOURCE_LIMIT` if there are more than `MOST_SCANS`.
    """
    if encoded.startswith(b"\xff\xd8") and encoded.count(_START_OF_SCAN) > MOST_SCANS:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT, f"The JPEG picture has more than {MOST_SCANS} scans. Export it again, not as progressive."
        )


def _check_samples(found: Codestream, bits_allocated: int) -> None:
    if found.precision > max(bits_allocated, 8):
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"The compressed image has {found.precision} bits per sample, but Bits Allocated is {bits_allocated}. "
            "Export the file again.",
        )
    if found.subsampled:
        raise UnreadableError(
            Reason.UNSUPPORTED_ENCODING,
            "The components of the compressed image have different sizes, which octray does not read. Convert the file.",
        )
    if found.tiles > 1 and found.tiles * SMALLEST_TILE > found.rows * found.columns:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT,
            f"The compressed image is cut into {found.tiles} tiles of fewer than {SMALLEST_TILE} pixels. Convert the file.",
        )


def codestream_shape(encoded: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and samples per pixel as a codestream gives them; None if there is no valid header."""
    found = read_codestream(encoded)
    return None if found is None else (found.rows, found.columns, found.samples)


def read_codestream(encoded: bytes) -> Codestream | None:
    """Read the header of a codestream; None if there is no valid one.

    Sources: ISO/IEC 10918-1 B.2.2 (frame header; JPEG-LS uses the same), ISO/IEC 15444-1 A.5.1 (SIZ).
    """
    return _jpeg(encoded) if encoded[:2] == b"\xff\xd8" else _jpeg_2000(encoded)


def halvings(encoded: bytes) -> int:
    """Return how often every component of a JPEG 2000 codestream can be halved; 0 if its main header does not say.

    Sources: ISO/IEC 15444-1 A.6.1, A.6.2 (COD, COC: number of decomposition levels).
    """
    at, found = 2, list[int]()
    while at + 4 <= len(encoded):
        marker, length = (int.from_bytes(encoded[at + offset : at + offset + 2], "big") for offset in (0, 2))
        if marker == _SOT or length < 2:
            break
        if marker in _LEVELS_AT:
            found += encoded[at + 4 : at + 2 + length][_LEVELS_AT[marker] :][:1] or b"\0"
        at += 2 + length
    return min(found, default=0)


def _jpeg_2000(encoded: bytes) -> Codestream | None:
    start = _jpeg_2000_start(encoded)
    if encoded[start : start + 4] != b"\xff\x4f\xff\x51":
        return None
    siz = encoded[start + 4 : start + 4 + int.from_bytes(encoded[start + 4 : start + 6], "big")]
    words = [int.from_bytes(siz[at : at + 4], "big") for at in range(4, 36, 4)]
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = words
    samples = int.from_bytes(siz[36:38], "big")
    components = [siz[at : at + 3] for at in range(38, len(siz) - 2, 3)]
    if not samples or len(components) != samples or 0 in (tile_width, tile_height):
        return None
    return Codestream(
        rows=bottom - top,
        columns=right - left,
        samples=samples,
        precision=max((one[0] & 0x7F) + 1 for one in components),
        signed=any(one[0] & 0x80 for one in components),
        tiles=-(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height),
        subsampled=any(one[1:] != b"\1\1" for one in components),
        is_at_origin=(left, top) == (0, 0),
    )


def _jpeg_2000_start(encoded: bytes) -> int:
    """Return the position of the codestream behind the boxes of a JP2 file; the end of the bytes if there is none.

    pydicom 3.0.2 walks the same boxes and never ends at one of length 0, so that such a box has to be found before.
    """
    at = 12 if encoded.startswith(b"\x00\x00\x00\x0cjP  ") else 0
    while at and encoded[at + 4 : at + 8] != b"jp2c":
        length = int.from_bytes(encoded[at : at + 4], "big")
        if length < 8:
            return len(encoded)
        at += length
    return at + 8 if at else 0


def _jpeg(encoded: bytes) -> Codestream | None:
    at = 2
    while at + 10 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker in _FRAME_HEADERS:
            rows, columns = (int.from_bytes(encoded[at + offset : at + offset + 2], "big") for offset in (5, 7))
            return Codestream(rows, columns, samples=encoded[at + 9], precision=encoded[at + 4], marker=marker)
        if marker == 0xFF:
            at += 1
        elif marker in _STANDALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None
