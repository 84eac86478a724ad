"""Reads from a DICOM header how stored values become grey levels: modality, VOI LUT or window, palette, sense."""

import math
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.dataset import uid_text
from pipeline.imaging.dicom.elements import (
    Scope,
    as_signed,
    as_stored,
    code,
    is_no_number,
    items,
    little_endian,
    number,
    numbers,
    texts,
    value,
)
from pipeline.imaging.grayscale import Lut, Rendering, Rescale, Window
from pipeline.imaging.guard import unreadable

_SHOWN_AS_STORED = (
    uid.XRayAngiographicImageStorage,
    uid.XRayRadiofluoroscopicImageStorage,
    uid.UID("1.2.840.10008.5.1.4.1.1.12.3"),  # X-Ray Angiographic Bi-Plane, retired
)
_PADDING = {
    "PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}
"""(0028,0120) to (0028,0125), by the element that holds the pixels; in that order, as `layout` looks for them."""
_COLOURS = ("Red", "Green", "Blue")
_DISCRETE, _LINEAR, _INDIRECT = range(3)
SHOWN = 1 / 8
"""A window shows at least this part of what the stored bits can hold; a narrower one cuts off the overshoot at edges."""


def rendering(scope: Scope, explanation: str = "") -> tuple[Rendering, tuple[str, ...]]:
    """Return the way from stored values to grey levels, and notes on parts of it that had to be ignored.

    Parameters
    ----------
    scope
        Of the frame.
    explanation
        Of several VOI LUTs or windows, the one with this explanation in the file is used; the first if it is empty.

    Raises
    ------
    UnreadableError
        `INCONSISTENT` if a lookup table contradicts its own description.
    """
    dataset = scope.dataset
    modality, modality_notes = _modality(scope)
    low, high = stored_limits(dataset)
    voi, voi_notes = _voi(scope, explanation, negative=_lowest(modality, low, high) < 0)
    inverse = code(dataset, "PresentationLUTShape") == "INVERSE"
    made = Rendering(
        modality=modality,
        voi=voi,
        inverted=inverse or code(dataset, "PhotometricInterpretation") == "MONOCHROME1",
        padding=_padding(dataset),
        full_range=(low, high) if high - low < 2**8 else None,
    )
    return made, modality_notes + voi_notes


def stored_limits(dataset: Dataset) -> tuple[int, int]:
    """Return the smallest and the largest value that Bits Stored (0028,0101) can hold."""
    bits, signed = int(number(dataset, "BitsStored") or 16), _is_signed(dataset)
    low = -(2 ** (bits - 1)) if signed else 0
    return low, low + 2**bits - 1


def _is_signed(dataset: Dataset) -> bool:
    return number(dataset, "PixelRepresentation") == 1


def _lowest(modality: Lut | Rescale, low: int, high: int) -> float:
    """Return a lower bound of the modality values."""
    if isinstance(modality, Lut):
        return 0
    return min(low * modality.slope, high * modality.slope) + modality.intercept


def is_reducible(way: Rendering, limits: tuple[int, int]) -> bool:
    """Return whether averages of neighbouring stored values of a radiograph can stand for the values.

    They cannot if a lookup table shows it, if it has padding, or if it names no window: the percentiles that take its place
    are those of single pixels, noise included. What is left out was measured to change the network's input by more than one
    grey level in 255 on average (DECISIONS.md).

    Parameters
    ----------
    way
        Its way to grey levels.
    limits
        As `stored_limits`.
    """
    if isinstance(way.modality, Lut) or isinstance(way.voi, Lut) or way.padding is not None:
        return False
    if way.voi is None:
        return way.full_range is not None
    low, high = sorted(value * way.modality.slope + way.modality.intercept for value in limits)
    left, right = way.voi.center - way.voi.width / 2, way.voi.center + way.voi.width / 2
    return (min(right, high) - max(left, low)) / (high - low) >= SHOWN


def _modality(scope: Scope) -> tuple[Lut | Rescale, tuple[str, ...]]:
    """Modality LUT Sequence (0028,3000), else Rescale Slope and Intercept, those of the frame before those of the instance.

    Neither is for display in X-ray angiography and radiofluoroscopy: it leads back to the intensity of the X-rays, and windows
    there refer to stored values (PS3.3 C.8.7.1.1.2). Only the SOP class decides, as in DCMTK; Pixel Intensity Relationship
    (0028,1040), which dcm4che uses instead, is often missing, and says nothing about windows in other classes.
    """
    if uid_text(scope.dataset, "SOPClassUID") in _SHOWN_AS_STORED:
        return Rescale(), ()
    tables = items(scope.dataset, "ModalityLUTSequence")
    table = next((one for one in tables if value(one, "LUTData") is not None), None)
    if table is not None:
        return _lut(table, _is_signed(scope.dataset))
    notes: tuple[str, ...] = ("The Modality LUT of the file has no table and was ignored.",) if tables else ()
    notes += tuple(
        f"{name} is not a number: it was ignored."
        for keyword, name in (("RescaleSlope", "Rescale Slope"), ("RescaleIntercept", "Rescale Intercept"))
        if any(is_no_number(one, keyword) for one in scope.candidates("PixelValueTransformationSequence"))
    )
    holder = scope.holder("PixelValueTransformationSequence", "RescaleSlope", "RescaleIntercept")
    if holder is None:
        return Rescale(), notes
    slope, intercept = number(holder, "RescaleSlope"), number(holder, "RescaleIntercept")
    if slope == 0:
        return Rescale(), (*notes, "Rescale Slope is 0, which would leave no image: the rescale was ignored.")
    return Rescale(1.0 if slope is None else slope, intercept or 0.0), notes


def _voi(scope: Scope, explanation: str, negative: bool) -> tuple[Lut | Window | None, tuple[str, ...]]:
    """Choose between the VOI LUTs and windows of the frame, or of the instance if the frame has none.

    `negative` says whether modality values can be negative.
    """
    holder = scope.holder("FrameVOILUTSequence", "VOILUTSequence", "WindowCenter", "WindowWidth")
    if holder is None:
        return None, ()
    candidates = _candidates(holder)
    empty = len(items(holder, "VOILUTSequence")) - sum(isinstance(one, Dataset) for _, one in candidates)
    left_out = ("A VOI LUT of the file has no table and was ignored.",) if empty else ()
    if not candidates:
        return None, left_out or ("The window in the file is not valid and was ignored.",)
    voi, notes = _chosen(candidates, explanation)
    if not isinstance(voi, Dataset):
        return voi, left_out + notes
    lut, lut_notes = _lut(voi, negative)
    return lut, left_out + notes + lut_notes


def _chosen(candidates: list[tuple[str, Dataset | Window]], explanation: str) -> tuple[Dataset | Window, tuple[str, ...]]:
    wanted = _normalised(explanation)
    chosen = next((one for one in candidates if wanted and _normalised(one[0]) == wanted), candidates[0])
    if wanted and _normalised(chosen[0]) != wanted:
        return chosen[1], ("No VOI LUT or window of the file has the requested explanation: the first was used.",)
    if not wanted and len(candidates) > 1:
        return chosen[1], (f"The file has {len(candidates)} VOI LUTs or windows: the first was used.",)
    return chosen[1], ()


def _candidates(holder: Dataset) -> list[tuple[str, Dataset | Window]]:
    """Pair VOI LUTs (0028,3010) that have a table, then valid windows (0028,1050), (0028,1051), with their explanations."""
    found = (one for one in items(holder, "VOILUTSequence") if value(one, "LUTData") is not None)
    tables = [("".join(texts(one, "LUTExplanation")), one) for one in found]
    function = code(holder, "VOILUTFunction") or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return [*tables]
    pairs = zip(numbers(holder, "WindowCenter"), numbers(holder, "WindowWidth"), strict=False)
    windows = [Window(center, width, function) for center, width in pairs]
    explanations = chain(texts(holder, "WindowCenterWidthExplanation"), repeat(""))
    explained = [(text, window) for text, window in zip(explanations, windows, strict=False) if window.is_valid]
    return [*tables, *explained]


def _normalised(explanation: str) -> str:
    return " ".join(explanation.split()).casefold()


def _padding(dataset: Dataset) -> tuple[float, float] | None:
    """Return the padding value of the pixels and the limit of its range, the smaller one first; nan twice if one is NaN."""
    keyword = next((keyword for keyword in _PADDING if keyword in dataset), "PixelData")
    ends = [_float(dataset, name) for name in _PADDING[keyword]]
    if ends[0] is None:
        return None
    of_words = keyword == "PixelData"
    found = [as_stored(end, _is_signed(dataset)) if of_words else end for end in ends if end is not None]
    return (math.nan, math.nan) if any(map(math.isnan, found)) else (min(found), max(found))


def _float(dataset: Dataset, keyword: str) -> float | None:
    """Return an element's first number, which may be infinite or NaN."""
    found = value(dataset, keyword)
    try:
        return None if found is None else float(found[0] if isinstance(found, MultiValue) else found)
    except (TypeError, ValueError):
        return None


def _lut(table: Dataset, negative: bool) -> tuple[Lut, tuple[str, ...]]:
    """Read LUT Descriptor (0028,3002) and LUT Data (0028,3006), as words or as bytes; inputs can be `negative`.

    Entries that need more bits than the descriptor says are not rare: they are used as they are, with a note.
    """
    descriptor = numbers(table, "LUTDescriptor")
    data = value(table, "LUTData")
    entries, first, bits = (int(one) for one in descriptor) if len(descriptor) == 3 else (0, 0, 0)
    entries = entries % 2**16 or 2**16
    if isinstance(data, bytes):
        data = little_endian(table, "LUTData")
        words = bits > 8 or len(data) >= 2 * entries
        data = np.frombuffer(data[: len(data) // 2 * 2] if words else data, "<u2" if words else "u1")
    looked_up = np.atleast_1d(np.asarray(data if data is not None else [], np.int64))[:entries] % 2**16
    if not 8 <= bits <= 16 or looked_up.size != entries:
        raise UnreadableError(
            Reason.INCONSISTENT, "A lookup table of the file contradicts LUT Descriptor (0028,3002). Export the file again."
        )
    needed = int(looked_up.max()).bit_length()
    notes: tuple[str, ...] = ()
    if needed > bits:
        notes = (f"A lookup table holds values of {needed} bits, though its descriptor says {bits}: it is read with {needed}.",)
    return Lut(looked_up, int(as_signed(first, negative)), max(bits, needed)), notes


@dataclass(frozen=True, slots=True, eq=False)
class Palette:
    """A colour palette whose three tables agree with each other and with their descriptors (PS3.3 C.7.6.3.1.5).

    Parameters
    ----------
    table
        uint8 or uint16 array of shape (entries, 3), as it is stored.
    first
        The stored value that the first entry belongs to.
    bits
        Of an entry, as Red Palette Color Lookup Table Descriptor (0028,1101) has them.
    """

    table: NDArray[Any]
    first: int
    bits: int

    def look_up(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return the colours of integers of shape (rows, columns), shape (rows, columns, 3).

        Values outside the table take its nearest end.
        """
        looked_up: NDArray[Any] = self.table[np.clip(stored.astype(np.int64) - self.first, 0, len(self.table) - 1)]
        return looked_up

    def rendering(self, grey: NDArray[Any]) -> Rendering:
        """Return the way from grey entries of the palette to grey levels: black is 0, white what their bits can hold.

        Rescale, window and padding are about stored values of MONOCHROME pictures and are ignored (PS3.3 C.7.6.3.1.2, C.11.2).

        Raises
        ------
        UnreadableError
            `INCONSISTENT` if an entry needs more bits than the descriptor gives it.
        """
        bits = min(self.bits, 8 * grey.itemsize)
        largest = int(grey.max(initial=0))
        if largest >= 2**bits:
            raise UnreadableError(
                Reason.INCONSISTENT,
                f"The colour palette holds {largest}, more than its {bits} bits can. Export the file again.",
            )
        return Rendering(full_range=(0, 2**bits - 1))


def read_palette(dataset: Dataset) -> Palette:
    """Read the palette of a data set, plain or segmented (PS3.3 C.7.6.3.1.6, C.7.9.2).

    pydicom's `apply_color_lut` is not used: with tables of 8 bits it takes stored values of 16 bits modulo 256.

    Raises
    ------
    UnreadableError
        `INCONSISTENT` if a table is missing or contradicts its descriptor.
    """
    with unreadable("The colour palette of the DICOM file cannot be applied. Export the file again."):
        tables = [_table(dataset, colour) for colour in _COLOURS]
        if len({(table.size, first, table.dtype) for table, first in tables}) != 1:
            raise _contradiction()
        bits = int(numbers(dataset, "RedPaletteColorLookupTableDescriptor")[-1])
        return Palette(np.stack([table for table, _ in tables], axis=-1), tables[0][1], bits)


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
    """Expand a segmented table, up to the size in its descriptor; an indirect segment repeats earlier ones (C.7.9.2.3).

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
    """Append the discrete or the linear segment that starts at `at`; return the start of the next one."""
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
