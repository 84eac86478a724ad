"""Reads Heidelberg `.vol` (raw export of HEYEX) and `.e2e` files; SLO images in them are no B-scans and are skipped.

`.vol` (Heidelberg's Special Function: Exporting Raw Data, all little endian): a header of 2048 bytes, the SLO image (1 byte a
pixel), then for each B-scan a header of its own and float32 reflectivity of shape (SizeZ, SizeX).

`.e2e`, as the projects uocte and LibE2E found it (Heidelberg publishes none), little endian: directories that form a list from
the last to the first, each with the folders that it holds; a folder points to a container with one record of a patient, a
study, a series and a slice. The libraries for it were weighed and left: they take the mantissa of the 16-bit numbers in
reversed order, silently give a volume up if one record is missing, and name no spacing or a wrong one.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import FloatArray, Frame
from pipeline.imaging.guard import check_size
from pipeline.imaging.identity import derived_uids
from pipeline.imaging.vendor.volume import cut_off, fourth_root, no_scan, spacing, volume_frames
from pipeline.settings import DEFAULT_READING, Limits, Reading

VOL = b"HSF-OCT-"
_VOL_HEADER = struct.Struct("<12s3I3d2I2dId4sQiI")
_VOL_HEADER_BYTES = 2048
_VOL_EYES = {b"OD": "R", b"OS": "L"}
_PARALLEL = (3, 4)
_VOL_UNMEASURED = 1e30

_SEVERAL = b"E2EMultipleVolumeFile"
E2E = (b"CMDb\0", _SEVERAL)
_SEVERAL_BYTES = 64
_FIRST_DIRECTORY = 36
_DIRECTORY = struct.Struct("<36x4I")
_FOLDER = struct.Struct("<4I4i2H2I")
_CONTAINER_BYTES = 60
_IMAGE_HEADER = struct.Struct("<5I")
_EYE_AT = 14
_EYE, _IMAGE, _B_SCAN = 11, 0x40000000, 0x02200201
_E2E_EYES = {b"R": "R", b"L": "L"}
_E2E_UNMEASURED = 1.99

_ROOT_NOTE = "The file holds reflectivity: the grey levels are its fourth root, as HEYEX displays it."
_DEGREES_NOTE = "The file gives the width of a B-scan in degrees: the distances of its pixels in mm are not known."


def read_vol(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read a `.vol` file, one frame a B-scan, in the order of the file.

    Raises
    ------
    UnreadableError
        And nothing else, whatever the bytes are.
    """
    if len(content) < _VOL_HEADER_BYTES:
        raise cut_off()
    fields = _VOL_HEADER.unpack_from(content)
    _, columns, scans, rows, scale_x, distance, scale_z, slo_x, slo_y, *_, eye, _, pattern, scan_header = fields
    check_size(rows, columns, scans, reading.limits)
    if scans < 1:
        raise UnreadableError(Reason.NO_PIXELS, "The .vol file holds no B-scan. Export it again.")
    start = _VOL_HEADER_BYTES + slo_x * slo_y
    scan_bytes = scan_header + 4 * rows * columns
    if start + scans * scan_bytes > len(content):
        raise cut_off()
    starts = [start + number * scan_bytes + scan_header for number in range(scans)]
    yield from volume_frames(
        _vol_scans(content, starts, rows, columns),
        uids=derived_uids(content),
        source=source,
        number_of_frames=scans,
        laterality=_VOL_EYES.get(eye[:2], ""),
        pixel_spacing_mm=spacing(scale_z, scale_x),
        distance_mm=distance if pattern in _PARALLEL and 0 < distance < 1e3 else None,
        notes=(_ROOT_NOTE,),
    )


def _vol_scans(
    content: bytes, starts: Iterable[int], rows: int, columns: int
) -> Iterator[tuple[FloatArray, FloatArray, tuple[str, ...]]]:
    for number, at in enumerate(starts, 1):
        stored = np.frombuffer(content, "<f4", rows * columns, at).reshape(rows, columns)
        if np.isnan(stored).any():
            raise UnreadableError(
                Reason.INCONSISTENT, f"B-scan {number} of the .vol file holds values that are not numbers. Export it again."
            )
        yield stored, fourth_root(stored, _VOL_UNMEASURED), ()


_Series = tuple[int, int, int]
"""The numbers of a patient, a study and a series in an `.e2e` file."""


def read_e2e(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read an `.e2e` file, one frame a B-scan, series by series, each in the order of its slices.

    Frame numbers run on through the file, so that they tell its frames apart.

    Raises
    ------
    UnreadableError
        And nothing else, whatever the bytes are.
    """
    content = content[_SEVERAL_BYTES:] if content.startswith(_SEVERAL) else content
    images, eyes = _index(content)
    count = sum(map(len, images.values()))
    if not count:
        raise no_scan()
    for _, at in (image for found in images.values() for image in found):
        _check_scan(content, at, count, reading.limits)
    first = 1
    for series, found in sorted(images.items()):
        arrays = (_reflectivity(content, at) for _, at in sorted(found))
        yield from volume_frames(
            ((stored, fourth_root(stored, _E2E_UNMEASURED), ()) for stored in arrays),
            uids=derived_uids(content, f" {series[0]} {series[1]} {series[2]}"),
            source=source,
            number_of_frames=len(found),
            first=first,
            laterality=next(iter(eyes[series])) if len(eyes[series]) == 1 else "",
            notes=(_ROOT_NOTE, _DEGREES_NOTE),
        )
        first += len(found)


def _unpack(layout: struct.Struct, content: bytes, at: int) -> tuple[int, ...]:
    if at + layout.size > len(content):
        raise cut_off()
    return layout.unpack_from(content, at)


def _index(content: bytes) -> tuple[dict[_Series, set[tuple[int, int]]], dict[_Series, set[str]]]:
    """Return for each series the slice and the position of each B-scan, and the eyes that its folders name.

    Folders that are not used have no start.
    """
    images: dict[_Series, set[tuple[int, int]]] = defaultdict(set)
    eyes: dict[_Series, set[str]] = defaultdict(set)
    at = _unpack(_DIRECTORY, content, _FIRST_DIRECTORY)[1]
    seen: set[int] = set()
    listed = 0
    while at and at not in seen:
        seen.add(at)
        entries, _, previous, _ = _unpack(_DIRECTORY, content, at)
        if entries * _FOLDER.size > len(content) - at:
            raise cut_off()
        listed += _DIRECTORY.size + entries * _FOLDER.size
        if listed > len(content):
            raise UnreadableError(Reason.INCONSISTENT, "The directories of the .e2e file overlap. Export it again.")
        for entry in range(entries):
            folder = _unpack(_FOLDER, content, at + _DIRECTORY.size + entry * _FOLDER.size)
            position, start, _, _, patient, study, series, slice_id, _, _, kind, _ = folder
            data = start + _CONTAINER_BYTES
            if start <= position:
                continue
            if kind == _EYE:
                eyes[patient, study, series].add(_E2E_EYES.get(content[data + _EYE_AT : data + _EYE_AT + 1], ""))
            elif kind == _IMAGE and _unpack(_IMAGE_HEADER, content, data)[1] == _B_SCAN:
                images[patient, study, series].add((slice_id, data))
        at = previous
    return images, eyes


def _check_scan(content: bytes, at: int, count: int, limits: Limits) -> None:
    _, _, values, rows, columns = _unpack(_IMAGE_HEADER, content, at)
    check_size(rows, columns, count, limits)
    if values != rows * columns:
        raise UnreadableError(Reason.INCONSISTENT, "A B-scan of the .e2e file contradicts its own size. Export it again.")
    if at + _IMAGE_HEADER.size + 2 * values > len(content):
        raise cut_off()


def _reflectivity(content: bytes, at: int) -> FloatArray:
    _, _, values, rows, columns = _IMAGE_HEADER.unpack_from(content, at)
    bits = np.frombuffer(content, "<u2", values, at + _IMAGE_HEADER.size)
    return from_ufloat16(bits).reshape(rows, columns)


def from_ufloat16(bits: NDArray[np.uint16]) -> FloatArray:
    """Turn numbers without a sign, with 6 bits of exponent (bias 63) and 10 of mantissa, into float32.

    Every value of a `.vol` export has 10 bits of mantissa too: both hold the same numbers.
    """
    exponent, mantissa = (bits >> 10).astype(np.int32), (bits & 1023).astype(np.float32) / np.float32(1024)
    normal = exponent > 0
    values: FloatArray = np.ldexp(mantissa + normal, np.where(normal, exponent - 63, -62)).astype(np.float32)
    return values
