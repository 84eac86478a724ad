"""Reads Topcon `.fda` and `.fds` files; the fundus pictures in them are no B-scans and are skipped.

Layout as the project uocte found it (Topcon publishes none), little endian: "FOCT", three letters, two numbers; then blocks,
each with the length of its name, the name, the length of its data and the data; a name of length 0 ends the file.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from pipeline.imaging.vendor.volume import Volume, cut_off, no_scan, spacing, volume_frame
from pipeline.settings import DEFAULT_READING, Limits, Reading

TOPCON = b"FOCT"
_HEADER_BYTES = 15
_RAW = (b"@IMG_MOT_COMP_03", b"@IMG_SCAN_03")
_JPEG = b"@IMG_JPEG"
_SCALES = {b"@PARAM_SCAN_04": 12, b"@PARAM_SCAN_02": 21}
_EYES = {b"\x00": "R", b"\x01": "L"}
_RASTER = 2


@dataclass(frozen=True, slots=True)
class _Scans:
    """The B-scans of a block: `data` begins behind its header."""

    data: memoryview
    rows: int
    columns: int
    scans: int
    mode: int
    is_raw: bool


def read_topcon(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read a `.fda` or `.fds` file, one frame a B-scan, in the order of the file.

    Raises
    ------
    UnreadableError
        And nothing else, whatever the bytes are.
    """
    blocks = _blocks(content)
    scans = _scans(blocks)
    if scans.scans < 1:
        raise no_scan()
    check_size(scans.rows, scans.columns, scans.scans, reading.limits)
    volume = _volume(content, source, blocks, scans)
    for number, stored in enumerate(_raw(scans) if scans.is_raw else _jpegs(scans, reading.limits), 1):
        full_range = (0.0, 255.0) if stored.dtype == np.uint8 else None
        pixels, notes = render(stored, Rendering(full_range=full_range))
        yield volume_frame(volume, number, stored, pixels, notes)


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


def _scans(blocks: Mapping[bytes, memoryview]) -> _Scans:
    for name in (_JPEG, *_RAW):
        if name in blocks:
            block = blocks[name]
            form = "<B6I" if name == _JPEG else "<B4IBI"
            if len(block) < struct.calcsize(form):
                raise cut_off()
            fields = struct.unpack_from(form, block)
            mode, width, height, scans = (
                (fields[0], *fields[3:6]) if name == _JPEG else (fields[0], fields[1], fields[2], fields[4])
            )
            return _Scans(block[struct.calcsize(form) :], height, width, scans, mode, name != _JPEG)
    raise no_scan()


def _volume(content: bytes, source: str, blocks: Mapping[bytes, memoryview], scans: _Scans) -> Volume:
    captured = blocks.get(b"@CAPTURE_INFO_02", blocks.get(b"@CAPTURE_INFO", b""))
    x_mm, y_mm, z_um = _lengths(blocks)
    parallel = scans.mode == _RASTER and scans.scans > 1 and 0 < y_mm < 1e3
    return Volume(
        uids=derived_uids(content),
        source=source,
        number_of_frames=scans.scans,
        laterality=_EYES.get(bytes(captured[:1]), ""),
        pixel_spacing_mm=spacing(z_um / 1000, x_mm / scans.columns),
        distance_mm=y_mm / scans.scans if parallel else None,
        decoder="octray" if scans.is_raw else "imagecodecs",
    )


def _lengths(blocks: Mapping[bytes, memoryview]) -> tuple[float, float, float]:
    """Return the width and the height of the scanned area in mm, and the depth of a pixel in micrometres; NaN if unknown."""
    for name, at in _SCALES.items():
        if name in blocks and len(blocks[name]) >= at + 24:
            x_mm, y_mm, z_um = struct.unpack_from("<3d", blocks[name], at)
            return x_mm, y_mm, z_um
    return (np.nan,) * 3


def _raw(scans: _Scans) -> Iterator[NDArray[Any]]:
    """Read 16 bits a pixel from the end of the block, as its header has 22 bytes in some files and 38 in others."""
    size = scans.rows * scans.columns
    start = len(scans.data) - 2 * size * scans.scans
    if start < 0:
        raise cut_off()
    for number in range(scans.scans):
        yield np.frombuffer(scans.data, "<u2", size, start + 2 * size * number).reshape(scans.rows, scans.columns)


def _jpegs(scans: _Scans, limits: Limits) -> Iterator[NDArray[Any]]:
    at = 0
    for number in range(1, scans.scans + 1):
        size = int.from_bytes(scans.data[at : at + 4], "little")
        encoded = bytes(scans.data[at + 4 : at + 4 + size])
        if len(encoded) < size or not size:
            raise cut_off()
        at += 4 + size
        with unreadable(f"B-scan {number} of the Topcon file is damaged and cannot be decoded. Copy or export it again."):
            yield _decoded(encoded, scans, limits)


def _decoded(encoded: bytes, scans: _Scans, limits: Limits) -> NDArray[Any]:
    check_codestream_size(encoded, limits)
    shape = codestream_shape(encoded)
    if shape != (scans.rows, scans.columns, 1):
        raise UnreadableError(
            Reason.INCONSISTENT, "A B-scan of the Topcon file does not have the size in its header. Export it again."
        )
    decode = imagecodecs.jpeg8_decode if encoded.startswith(b"\xff\xd8") else imagecodecs.jpeg2k_decode
    stored: NDArray[Any] = decode(encoded)
    return stored.reshape(scans.rows, scans.columns)
