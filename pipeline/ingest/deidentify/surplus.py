"""Overwrites what lies in compressed pixel data beside the pixels: comments, metadata of applications, bytes after the end."""

import re
from collections.abc import Iterator
from itertools import pairwise

from pydicom.uid import RLELossless

from pipeline.imaging.dicom.codecs import JPEG_2000
from pipeline.imaging.dicom.fragments import grouped_fragments
from pipeline.imaging.dicom.layout import Layout

_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
"""A marker after entropy-coded data, in which 0xff is followed by small bytes, or by 0xd0 to 0xd7 where decoding restarts."""
_NEEDED = (
    (0xE0, b"JFIF\0", 12),
    (0xE8, b"mrfx", 5),
    (0xE8, b"SPIFF\0", 30),
    (0xE8, b"\0\0\0\1\xff\xd8", 6),
    (0xEE, b"Adobe", 12),
)
"""Segments of applications that say how colours are coded: marker, first bytes, how many bytes are needed."""
_ALONE = frozenset({0x01, 0xFF, *range(0xD0, 0xD9)})
_START_OF_SCAN, _END, _COMMENT, _FIRST_OF_APPLICATIONS = 0xDA, 0xD9, 0xFE, 0xE0
_J2K_COMMENT, _TILE, _TILE_DATA, _J2K_END = b"\xff\x64", b"\xff\x90", b"\xff\x93", b"\xff\xd9"
_JP2 = b"\x00\x00\x00\x0cjP  "
_CODESTREAM = b"jp2c"
_BOXES = frozenset({b"jP  ", b"ftyp", b"jp2h", _CODESTREAM})
_RLE_HEADER, _NOTHING = 64, 0x80


def without_surplus(data: bytes, layout: Layout, extended_offsets: bytes = b"") -> bytes:
    """Overwrite what no decoder needs; every fragment keeps its length, so that offsets hold, and every pixel its value.

    Parameters
    ----------
    data
        Pixel Data (7FE0,0010), encapsulated (PS3.5 A.4).
    layout
        What the header says of it; checked.
    extended_offsets
        Extended Offset Table (7FE0,0001).

    Returns
    -------
    bytes
        The same up to the end of the last fragment; nothing follows it.
    """
    made = bytearray(data)
    groups = grouped_fragments(data, layout.frames, extended_offsets)
    for number, group in enumerate(groups):
        encoded = b"".join(data[one] for one in group)
        wiped = _wiped(encoded, layout) if number < layout.frames else bytes(len(encoded))
        at = 0
        for one in group:
            made[one] = wiped[at : at + one.stop - one.start]
            at += one.stop - one.start
    return bytes(made[: groups[-1][-1].stop])


def _wiped(encoded: bytes, layout: Layout) -> bytes:
    made = bytearray(encoded)
    if layout.transfer_syntax == RLELossless:
        surplus = _surplus_of_rle(made, layout.rows * layout.columns, layout.bits_allocated)
    elif layout.transfer_syntax in JPEG_2000:
        surplus = _surplus_of_jpeg_2000(made)
    else:
        surplus = _surplus_of_jpeg(made)
    for start, stop in surplus:
        filling = _NOTHING if layout.transfer_syntax == RLELossless and start >= _RLE_HEADER and stop - start > 1 else 0
        made[start:stop] = bytes([filling]) * (stop - start)
    return bytes(made)


def _surplus_of_jpeg(encoded: bytearray) -> Iterator[tuple[int, int]]:
    """Yield the ranges of comments, of what applications added, and what follows the end (ISO/IEC 10918-1 B.1.1, 14495-1)."""
    at = 2
    while at + 2 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == _END:
            yield at + 2, len(encoded)
            return
        if marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        stop = at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        if marker == _COMMENT or _FIRST_OF_APPLICATIONS <= marker < _FIRST_OF_APPLICATIONS + 16:
            needed = sum(size for which, sign, size in _NEEDED if which == marker and encoded.startswith(sign, at + 4))
            yield at + 4 + needed, min(stop, len(encoded))
        following = _MARKER.search(encoded, stop) if marker == _START_OF_SCAN else None
        at = following.start() if following else stop


def _surplus_of_jpeg_2000(encoded: bytearray) -> Iterator[tuple[int, int]]:
    """Yield the ranges of comments, of boxes with metadata, and what follows the end (ISO/IEC 15444-1 A.9, I.4)."""
    at = 0
    while encoded.startswith(_JP2) and encoded[at + 4 : at + 8] != _CODESTREAM:
        length = int.from_bytes(encoded[at : at + 4], "big")
        if bytes(encoded[at + 4 : at + 8]) not in _BOXES:
            yield at + 8, at + length
        at += length
    at += 2 + 8 * encoded.startswith(_JP2)
    tile_stop = 0
    while at + 2 <= len(encoded):
        marker = bytes(encoded[at : at + 2])
        if marker == _J2K_END:
            yield at + 2, len(encoded)
            return
        if marker == _TILE_DATA:
            at = tile_stop
            continue
        stop = at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        if marker == _J2K_COMMENT:
            yield at + 6, min(stop, len(encoded))
        elif marker == _TILE:
            length = int.from_bytes(encoded[at + 6 : at + 10], "big")
            tile_stop = max(at + length, stop) if length else encoded.rindex(_J2K_END)
        at = max(stop, at + 2)


def _surplus_of_rle(encoded: bytearray, pixels: int, bits_allocated: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges behind the last byte of each segment, and unused words of the header (PS3.5 Annex G)."""
    words = [int.from_bytes(encoded[at : at + 4], "little") for at in range(0, _RLE_HEADER, 4)]
    yield 4 * (words[0] + 1), _RLE_HEADER
    size = (pixels + 7) // 8 if bits_allocated == 1 else pixels
    for start, stop in pairwise([*words[1 : words[0] + 1], len(encoded)]):
        yield min(_end_of_run(encoded, start, stop, size), stop), stop


def _end_of_run(encoded: bytearray, at: int, stop: int, size: int) -> int:
    while size > 0 and at < stop:
        count = encoded[at]
        size -= count + 1 if count < _NOTHING else 257 - count if count > _NOTHING else 0
        at += count + 2 if count < _NOTHING else 2 if count > _NOTHING else 1
    return at
