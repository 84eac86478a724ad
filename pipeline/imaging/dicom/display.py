"""Reads from a DICOM header the way from stored values to grey levels: modality transformation, VOI LUT or window, sense."""

import math
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.dataset import uid_text
from pipeline.imaging.dicom.header import (
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


def rendering(scope: Scope, explanation: str = "") -> tuple[Rendering, tuple[str, ...]]:
    """Collect the way from stored values to grey levels; also what had to be left out, in sentences.

    Parameters
    ----------
    scope
        Of the frame.
    explanation
        Of several VOI LUTs or windows the one that the file explains with this text is taken; the first where it is empty.

    Raises
    ------
    UnreadableError
        `INCONSISTENT` where a lookup table contradicts its own description.
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
    """Return a bound of the modality values from below."""
    if isinstance(modality, Lut):
        return 0
    return min(low * modality.slope, high * modality.slope) + modality.intercept


def palette_rendering(dataset: Dataset, looked_up: NDArray[Any]) -> Rendering:
    """Return the way from the entries of a palette that holds grey to grey levels: black is 0, white what their bits can hold.

    Rescale, window and padding are about stored values of MONOCHROME pictures and are left aside (PS3.3 C.7.6.3.1.2, C.11.2).

    Raises
    ------
    UnreadableError
        `INCONSISTENT` where an entry needs more bits than Red Palette Color Lookup Table Descriptor (0028,1101) gives it.
    """
    descriptor = numbers(dataset, "RedPaletteColorLookupTableDescriptor")
    bits = min(int(descriptor[-1]), 8 * looked_up.itemsize)
    largest = int(looked_up.max(initial=0))
    if largest >= 2**bits:
        raise UnreadableError(
            Reason.INCONSISTENT, f"The colour palette holds {largest}, more than its {bits} bits can. Export the file again."
        )
    return Rendering(full_range=(0, 2**bits - 1))


def _modality(scope: Scope) -> tuple[Lut | Rescale, tuple[str, ...]]:
    """Modality LUT Sequence (0028,3000), else Rescale Slope and Intercept, those of the frame before those of the instance.

    Neither is for display in X-ray angiography and radiofluoroscopy: it leads back to the intensity of the X-rays, and windows
    there are about stored values (PS3.3 C.8.7.1.1.2). What decides is the SOP class alone, as in DCMTK; Pixel Intensity
    Relationship (0028,1040), which dcm4che asks instead, is often missing, and of other classes it says nothing of windows.
    """
    if uid_text(scope.dataset, "SOPClassUID") in _SHOWN_AS_STORED:
        return Rescale(), ()
    tables = items(scope.dataset, "ModalityLUTSequence")
    table = next((one for one in tables if value(one, "LUTData") is not None), None)
    if table is not None:
        return _lut(table, _is_signed(scope.dataset))
    notes: tuple[str, ...] = ("The Modality LUT of the file has no table and was left out.",) if tables else ()
    notes += tuple(
        f"{name} is no number: it was left out."
        for keyword, name in (("RescaleSlope", "Rescale Slope"), ("RescaleIntercept", "Rescale Intercept"))
        if any(is_no_number(one, keyword) for one in scope.candidates("PixelValueTransformationSequence"))
    )
    holder = scope.holder("PixelValueTransformationSequence", "RescaleSlope", "RescaleIntercept")
    if holder is None:
        return Rescale(), notes
    slope, intercept = number(holder, "RescaleSlope"), number(holder, "RescaleIntercept")
    if slope == 0:
        return Rescale(), (*notes, "Rescale Slope is 0, which would leave no image: the rescale was left out.")
    return Rescale(1.0 if slope is None else slope, intercept or 0.0), notes


def _voi(scope: Scope, explanation: str, negative: bool) -> tuple[Lut | Window | None, tuple[str, ...]]:
    """Choose between the VOI LUTs and windows of the frame, or of the instance where the frame has none.

    `negative` says whether modality values can be negative.
    """
    holder = scope.holder("FrameVOILUTSequence", "VOILUTSequence", "WindowCenter", "WindowWidth")
    if holder is None:
        return None, ()
    candidates = _candidates(holder)
    empty = len(items(holder, "VOILUTSequence")) - sum(isinstance(one, Dataset) for _, one in candidates)
    left_out = ("A VOI LUT of the file has no table and was left out.",) if empty else ()
    if not candidates:
        return None, left_out or ("The window in the file is not valid and was left out.",)
    voi, notes = _chosen(candidates, explanation)
    if not isinstance(voi, Dataset):
        return voi, left_out + notes
    lut, lut_notes = _lut(voi, negative)
    return lut, left_out + notes + lut_notes


def _chosen(candidates: list[tuple[str, Dataset | Window]], explanation: str) -> tuple[Dataset | Window, tuple[str, ...]]:
    wanted = _normalised(explanation)
    chosen = next((one for one in candidates if wanted and _normalised(one[0]) == wanted), candidates[0])
    if wanted and _normalised(chosen[0]) != wanted:
        return chosen[1], ("No VOI LUT or window of the file has the explanation that was asked for: the first was used.",)
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
    """Read LUT Descriptor (0028,3002) and LUT Data (0028,3006), as words or as bytes; `negative`: whether inputs can be.

    Entries that need more bits than the descriptor says are no rare fault: they count, and it is said.
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
