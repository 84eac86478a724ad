"""Reads Topcon `.fda` and `.fds` files; the fundus pictures in them are no B-scans and are skipped.

Layout as the project uocte found it (Topcon publishes none), little endian: "FOCT", three letters, two numbers; then blocks,
each with the length of its name, the name, the length of its data and the data; a name of length 0 ends the file.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.codestream import check_codestream_size, codestream_shape
from pipeline.imaging.grayscale import Rendering, render
from pipeline.imaging.guard import check_size, unreadable
from pipeline.imaging.identity import derived_uids
from pipeline.imaging.vendor.volume import cut_off, no_scan, spacing, volume_frames
from pipeline.settings import DEFAULT_READING, Limits, Reading

TOPCON = b"FOCT"
_HEADER_BYTES = 15
_RAW = (b"@IMG_MOT_COMP_03", b"@IMG_SCAN_03")
_JPEG = b"@IMG_JPEG"
_RAW_HEADER, _JPEG_HEADER = struct.Struct("<B4IBI"), struct.Struct("<B6I")
_FULL_RANGES = {np.dtype(np.uint8): (0.0, 255.0)}
_SCALES = {b"@PARAM_SCAN_04": 12, b"@PARAM_SCAN_02": 21}
_EYES = {b"\x00": "R", b"\x01": "L"}
_RASTER = 2


def read_topcon(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read a `.fda` or `.fds` file, one frame a B-scan, in the order of the file.

    Raises
    ------
    UnreadableError
        And nothing else, whatever the bytes are.
    """
    blocks = _blocks(content)
    name = next((name for name in (_JPEG, *_RAW) if name in blocks), None)
    if name is None:
        raise no_scan()
    is_raw = name != _JPEG
    header = _RAW_HEADER if is_raw else _JPEG_HEADER
    if len(blocks[name]) < header.size:
        raise cut_off()
    fields = header.unpack_from(blocks[name])
    mode, columns, rows, count = (fields[0], fields[1], fields[2], fields[4]) if is_raw else (fields[0], *fields[3:6])
    if count < 1:
        raise no_scan()
    check_size(rows, columns, count, reading.limits)
    data = blocks[name][header.size :]
    arrays = _raw(data, rows, columns, count) if is_raw else _jpegs(data, rows, columns, count, reading.limits)
    captured = blocks.get(b"@CAPTURE_INFO_02", blocks.get(b"@CAPTURE_INFO", b""))
    x_mm, y_mm, z_um = _lengths(blocks)
    yield from volume_frames(
        ((stored, *render(stored, Rendering(full_range=_FULL_RANGES.get(stored.dtype)))) for stored in arrays),
        uids=derived_uids(content),
        source=source,
        number_of_frames=count,
        laterality=_EYES.get(bytes(captured[:1]), ""),
        pixel_spacing_mm=spacing(z_um / 1000, x_mm / columns),
        distance_mm=y_mm / count if mode == _RASTER and count > 1 and 0 < y_mm < 1e3 else None,
        decoder="octray" if is_raw else "imagecodecs",
    )


def _blocks(content: bytes) -> dict[bytes, memoryview]:
    """Return the first block of each name; a file with several blocks of B-scans of one name is refused."""
    blocks: dict[bytes, memoryview] = {}
    found: Counter[bytes] = Counter()
    at, view = _HEADER_BYTES, memoryview(content)
    while at < len(content) and content[at]:
        name = content[at + 1 : at + 1 + content[at]]
        start = at + 1 + content[at] + 4
        size = int.from_bytes(content[start - 4 : start], "little")
        if start + size > len(content):
            raise cut_off()
        blocks.setdefault(name, view[start : start + size])
        found[name] += 1
        at = start + size
    if at >= len(content):
        raise cut_off()
    if (volumes := max(found[name] for name in (_JPEG, *_RAW))) > 1:
        raise UnreadableError(
            Reason.UNSUPPORTED_ENCODING,
            f"The Topcon file holds {volumes} volumes, of which octray would read one. Export each as a file of its own.",
        )
    return blocks


def _lengths(blocks: Mapping[bytes, memoryview]) -> tuple[float, float, float]:
    """Return the width and the height of the scanned area in mm, and the depth of a pixel in micrometres; NaN if unknown."""
    for name, at in _SCALES.items():
        if name in blocks and len(blocks[name]) >= at + 24:
            x_mm, y_mm, z_um = struct.unpack_from("<3d", blocks[name], at)
            return x_mm, y_mm, z_um
    return (np.nan,) * 3


def _raw(data: memoryview, rows: int, columns: int, count: int) -> Iterator[NDArray[Any]]:
    """Read 16 bits a pixel from the end of the block, as its header has 22 bytes in some files and 38 in others."""
    size = rows * columns
    start = len(data) - 2 * size * count
    if start < 0:
        raise cut_off()
    for number in range(count):
        yield np.frombuffer(data, "<u2", size, start + 2 * size * number).reshape(rows, columns)


def _jpegs(data: memoryview, rows: int, columns: int, count: int, limits: Limits) -> Iterator[NDArray[Any]]:
    at = 0
    for number in range(1, count + 1):
        size = int.from_bytes(data[at : at + 4], "little")
        encoded = bytes(data[at + 4 : at + 4 + size])
        if len(encoded) < size or not size:
            raise cut_off()
        at += 4 + size
        with unreadable(f"B-scan {number} of the Topcon file is damaged and cannot be decoded. Copy or export it again."):
            check_codestream_size(encoded, limits)
            if codestream_shape(encoded) != (rows, columns, 1):
                raise UnreadableError(
                    Reason.INCONSISTENT, "A B-scan of the Topcon file does not have the size in its header. Export it again."
                )
            decode = imagecodecs.jpeg8_decode if encoded.startswith(b"\xff\xd8") else imagecodecs.jpeg2k_decode
            stored: NDArray[Any] = decode(encoded).reshape(rows, columns)
        yield stored
