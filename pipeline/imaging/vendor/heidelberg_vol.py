"""Reads Heidelberg `.vol` files (raw export of HEYEX); the SLO image in them is no B-scan and is passed over.

Layout (Heidelberg's Special Function: Exporting Raw Data, all little endian): a header of 2048 bytes, the SLO image (1 byte a
pixel), then for each B-scan a header of its own and float32 reflectivity of shape (SizeZ, SizeX).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.guard import check_size
from pipeline.imaging.vendor.volume import Volume, cut_off, fourth_root, spacing, to_frame, volume_uids
from pipeline.settings import DEFAULT_READING, Reading

MAGIC = b"HSF-OCT-"
ROOT_NOTE = "The file holds reflectivity: the grey levels are its fourth root, as HEYEX displays it."
_HEADER = struct.Struct("<12s3I3d2I2dId4sQiI")
_HEADER_BYTES = 2048
_EYES = {b"OD": "R", b"OS": "L"}
_PARALLEL = (3, 4)
_UNMEASURED = 1e30


@dataclass(frozen=True, slots=True)
class _Header:
    """Where the B-scans lie, and what is said of them; lengths in mm."""

    rows: int
    columns: int
    scans: int
    start: int
    scan_header_bytes: int
    scale_x: float
    scale_z: float
    distance: float
    laterality: str
    pattern: int

    @property
    def scan_bytes(self) -> int:
        return self.scan_header_bytes + 4 * self.rows * self.columns


def read_vol(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read a `.vol` file, one frame a B-scan, in the order of the file.

    Raises
    ------
    UnreadableError
        And nothing else, whatever the bytes are.
    """
    header = _read_header(content)
    check_size(header.rows, header.columns, header.scans, reading.limits)
    if header.scans < 1:
        raise UnreadableError(Reason.NO_PIXELS, "The .vol file holds no B-scan. Export it again.")
    if header.start + header.scans * header.scan_bytes > len(content):
        raise cut_off()
    volume = Volume(
        uids=volume_uids(content),
        source=source,
        number_of_frames=header.scans,
        laterality=header.laterality,
        pixel_spacing_mm=spacing(header.scale_z, header.scale_x),
        distance_mm=header.distance if header.pattern in _PARALLEL and 0 < header.distance < 1e3 else None,
        notes=(ROOT_NOTE,),
    )
    for number in range(1, header.scans + 1):
        at = header.start + (number - 1) * header.scan_bytes + header.scan_header_bytes
        flat = np.frombuffer(content, "<f4", header.rows * header.columns, at)
        stored = flat.reshape(header.rows, header.columns)
        if np.isnan(stored).any():
            raise UnreadableError(
                Reason.INCONSISTENT, f"B-scan {number} of the .vol file holds values that are not numbers. Export it again."
            )
        yield to_frame(volume, number, stored, fourth_root(stored, _UNMEASURED))


def _read_header(content: bytes) -> _Header:
    if len(content) < _HEADER_BYTES:
        raise cut_off()
    fields = _HEADER.unpack_from(content)
    _, size_x, scans, size_z, scale_x, distance, scale_z, slo_x, slo_y, *_, eye, _, pattern, scan_header = fields
    return _Header(
        rows=size_z,
        columns=size_x,
        scans=scans,
        start=_HEADER_BYTES + slo_x * slo_y,
        scan_header_bytes=scan_header,
        scale_x=scale_x,
        scale_z=scale_z,
        distance=distance,
        laterality=_EYES.get(eye[:2], ""),
        pattern=pattern,
    )
