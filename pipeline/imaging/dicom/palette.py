"""Applies the colour palette of a DICOM file, plain or segmented (PS3.3 C.7.6.3.1.5, C.7.6.3.1.6, C.7.9.2).

pydicom's `apply_color_lut` is not used: with tables of 8 bits it takes stored values of 16 bits modulo 256.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.header import as_signed, code, little_endian, number, numbers

_COLOURS = ("Red", "Green", "Blue")
_DISCRETE, _LINEAR, _INDIRECT = range(3)


def look_up(stored: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Return the colours of stored values.

    Parameters
    ----------
    stored
        Integers of shape (rows, columns); values outside the tables take their nearest end.
    dataset
        Has the palette.

    Returns
    -------
    NDArray
        uint8 or uint16 array of shape (rows, columns, 3), as the tables are stored.

    Raises
    ------
    UnreadableError
        `INCONSISTENT` where a table is missing or contradicts its descriptor.
    """
    tables = [_table(dataset, colour) for colour in _COLOURS]
    if len({(table.size, first, table.dtype) for table, first in tables}) != 1:
        raise _contradiction()
    table, first = np.stack([table for table, _ in tables], axis=-1), tables[0][1]
    looked_up: NDArray[Any] = table[np.clip(stored.astype(np.int64) - first, 0, len(table) - 1)]
    return looked_up


def check_supplemental(stored: NDArray[Any], dataset: Dataset) -> None:
    """Look for grey frames in which a supplemental palette colours some of the values (PS3.3 C.8.16.2.1.1.1).

    Raises
    ------
    UnreadableError
        `COLOURED` where a stored value is at or above the first one that the palette maps.
    """
    descriptor = numbers(dataset, "RedPaletteColorLookupTableDescriptor")
    if code(dataset, "PixelPresentation") not in ("COLOR", "MIXED") or len(descriptor) != 3:
        return
    if stored.max() >= descriptor[1]:
        raise UnreadableError(
            Reason.COLOURED,
            "A supplemental palette colours parts of the image. Export it as a grey image, without the colours.",
        )


def _table(dataset: Dataset, colour: str) -> tuple[NDArray[Any], int]:
    """Return the entries of one table and the stored value that the first of them belongs to."""
    descriptor = numbers(dataset, f"{colour}PaletteColorLookupTableDescriptor")
    entries, first, bits = (int(one) for one in descriptor) if len(descriptor) == 3 else (0, 0, 0)
    entries = entries % 2**16 or 2**16
    if bits not in (8, 16):
        raise _contradiction()
    plain = little_endian(dataset, f"{colour}PaletteColorLookupTableData")
    if plain:
        # Entries of 8 bits may be stored in words, and of 16 bits in bytes (Note 2 of C.7.6.3.1.6); their number tells.
        table = _integers(plain, 16 if len(plain) >= 2 * entries else 8)
    else:
        segments = _integers(little_endian(dataset, f"Segmented{colour}PaletteColorLookupTableData"), bits)
        table, _ = expand_segments(segments, entries)
    if table.size < entries:
        raise _contradiction()
    return table[:entries], int(as_signed(first, number(dataset, "PixelRepresentation") == 1))


def _integers(data: bytes, bits: int) -> NDArray[Any]:
    return np.frombuffer(data[: len(data) // 2 * 2], "<u2") if bits == 16 else np.frombuffer(data, "u1")


def expand_segments(segments: NDArray[Any], entries: int) -> tuple[NDArray[Any], int]:
    """Expand a segmented table, no further than its descriptor says; an indirect segment repeats earlier ones (C.7.9.2.3).

    Parameters
    ----------
    segments
        uint8 or uint16 array of shape (values,).
    entries
        How many entries the table has.

    Returns
    -------
    tuple[NDArray, int]
        The entries, of which the last segment may give some too many, and how many values were needed for them.
    """
    table: list[int] = []
    at = 0
    while at + 2 < segments.size and len(table) < entries:
        if segments[at] == _INDIRECT:
            repeats, at = int(segments[at + 1]), at + 2 + 4 // segments.itemsize
            start = int.from_bytes(segments[at - 4 // segments.itemsize : at].tobytes(), "little") // segments.itemsize
            while repeats and len(table) < entries:
                repeats, start = repeats - 1, _append(table, segments, start)
        else:
            at = _append(table, segments, at)
    return np.asarray(table, segments.dtype), at


def _append(table: list[int], segments: NDArray[Any], at: int) -> int:
    """Append the discrete or the linear segment that starts at `at`; returns where the next one starts."""
    opcode, length = (int(one) for one in segments[at : at + 2])
    if opcode == _DISCRETE and length:
        table.extend(segments[at + 2 : at + 2 + length].tolist())
        return at + 2 + length
    if opcode == _LINEAR and length and table:
        table.extend(np.rint(np.linspace(table[-1], int(segments[at + 2]), length + 1)[1:]).astype(np.int64).tolist())
        return at + 3
    raise _contradiction()


def _contradiction() -> UnreadableError:
    return UnreadableError(
        Reason.INCONSISTENT, "The colour palette of the DICOM file contradicts its own description. Export the file again."
    )
