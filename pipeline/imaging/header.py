"""Reads what a DICOM header says of one frame, functional groups before the instance; a broken optional element is unknown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.grayscale import Lut, Rendering, Rescale, Window

_CODE = re.compile(r"[A-Z0-9][A-Z0-9 _]{0,31}")
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


@dataclass(frozen=True, slots=True)
class Scope:
    """Where the attributes of one frame are looked up: its own functional group, the shared one, then the instance."""

    dataset: Dataset
    groups: tuple[Dataset, ...]

    @staticmethod
    def of(dataset: Dataset, index: int) -> "Scope":
        """Return the scope of the frame at `index`, which starts at 0."""
        groups = (item(dataset, "PerFrameFunctionalGroupsSequence", index), item(dataset, "SharedFunctionalGroupsSequence"))
        return Scope(dataset, tuple(group for group in groups if group is not None))

    def holder(self, macro: str, *keywords: str) -> Dataset | None:
        """Return the first of the macro's items, and then the instance, that has a value for one of the keywords."""
        candidates = [*(item(group, macro) for group in self.groups), self.dataset]
        return next((one for one in candidates if one and any(value(one, key) is not None for key in keywords)), None)


def value(dataset: Dataset, keyword: str) -> Any:
    """Return an element's value, None where it is missing, empty or broken."""
    try:
        found = dataset.get(keyword)
    except Exception:
        return None
    return None if found is None or (isinstance(found, str | bytes | MultiValue) and len(found) == 0) else found


def item(dataset: Dataset, keyword: str, index: int = 0) -> Dataset | None:
    """Return one item of a sequence, None where there is none."""
    sequence = value(dataset, keyword)
    present = isinstance(sequence, Sequence) and len(sequence) > index and isinstance(sequence[index], Dataset)
    return sequence[index] if present else None


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """Return an element's finite numbers, nothing where one of them is not."""
    found = value(dataset, keyword)
    several = found if isinstance(found, MultiValue | list | tuple) else () if found is None else (found,)
    try:
        converted = tuple(float(one) for one in several)
    except (TypeError, ValueError):
        return ()
    return converted if np.isfinite(converted).all() else ()


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return an element's first number."""
    return next(iter(numbers(dataset, keyword)), None)


def code(dataset: Dataset, keyword: str) -> str:
    """Return the first value of a Code String in capitals; empty where it is no valid one (PS3.5 6.2)."""
    found = value(dataset, keyword)
    text = str(found[0] if isinstance(found, MultiValue) else found or "").strip().upper()
    return text if _CODE.fullmatch(text) else ""


def laterality(scope: Scope) -> str:
    """Frame Laterality (0020,9072) before Image Laterality (0020,0062) before Laterality (0020,0060); R, L, U, B or empty."""
    frame = scope.holder("FrameAnatomySequence", "FrameLaterality")
    found = [code(frame, "FrameLaterality")] if frame is not None else []
    found += [code(scope.dataset, keyword) for keyword in ("ImageLaterality", "Laterality")]
    return next((one for one in found if one in ("R", "L", "U", "B")), "")


def pixel_spacing(scope: Scope) -> tuple[float, float] | None:
    """Pixel Spacing (0028,0030), Imager Pixel Spacing (0018,1164) or Nominal Scanned Pixel Spacing (0018,2010), in mm."""
    holder = scope.holder("PixelMeasuresSequence", *_SPACINGS)
    if holder is None:
        return None
    for keyword in _SPACINGS:
        found = numbers(holder, keyword)
        if len(found) == 2 and min(found) > 0:
            return found[0], found[1]
    return None


def rendering(scope: Scope) -> tuple[Rendering, tuple[str, ...]]:
    """Collect the way from stored values to grey levels; also what had to be left out, in sentences.

    Raises
    ------
    UnreadableError
        `INCONSISTENT` where a lookup table contradicts its own description.
    """
    dataset = scope.dataset
    modality, modality_notes = _modality(scope)
    voi, voi_notes = _voi(scope)
    inverse = code(dataset, "PresentationLUTShape") == "INVERSE"
    bits, signed = int(number(dataset, "BitsStored") or 16), number(dataset, "PixelRepresentation") == 1
    low = -(2 ** (bits - 1)) if signed else 0
    made = Rendering(
        modality=modality,
        voi=voi,
        inverted=inverse or code(dataset, "PhotometricInterpretation") == "MONOCHROME1",
        padding=_padding(dataset),
        full_range=(low, low + 2**bits - 1) if bits <= 8 else None,
    )
    return made, modality_notes + voi_notes


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
    """Modality LUT Sequence (0028,3000), else Rescale Slope and Intercept, those of the frame before those of the instance."""
    table = item(scope.dataset, "ModalityLUTSequence")
    if table is not None:
        return _lut(table), ()
    holder = scope.holder("PixelValueTransformationSequence", "RescaleSlope", "RescaleIntercept")
    if holder is None:
        return Rescale(), ()
    slope, intercept = number(holder, "RescaleSlope"), number(holder, "RescaleIntercept")
    if slope == 0:
        return Rescale(), ("Rescale Slope is 0, which would leave no image: the rescale was left out.",)
    return Rescale(1.0 if slope is None else slope, intercept or 0.0), ()


def _voi(scope: Scope) -> tuple[Lut | Window | None, tuple[str, ...]]:
    """VOI LUT Sequence (0028,3010), else Window Center and Width (0028,1050), (0028,1051); the first of several."""
    holder = scope.holder("FrameVOILUTSequence", "VOILUTSequence", "WindowCenter", "WindowWidth")
    if holder is None:
        return None, ()
    table = item(holder, "VOILUTSequence")
    if table is not None:
        return _lut(table), ()
    center, width = number(holder, "WindowCenter"), number(holder, "WindowWidth")
    function = code(holder, "VOILUTFunction") or "LINEAR"
    if center is not None and width is not None and function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        window = Window(center, width, function)
        if window.is_valid:
            return window, ()
    return None, ("The window in the file is not valid and was left out.",)


def _padding(dataset: Dataset) -> tuple[float, float] | None:
    first = number(dataset, "PixelPaddingValue")
    last = number(dataset, "PixelPaddingRangeLimit")
    return None if first is None else (min(first, first if last is None else last), max(first, first if last is None else last))


def _lut(table: Dataset) -> Lut:
    """Read LUT Descriptor (0028,3002) and LUT Data (0028,3006), as words or as bytes."""
    descriptor = numbers(table, "LUTDescriptor")
    data = value(table, "LUTData")
    entries, first, bits = (int(one) for one in descriptor) if len(descriptor) == 3 else (0, 0, 0)
    entries = entries % 2**16 or 2**16
    if isinstance(data, bytes):
        order = ">" if table.original_encoding[1] is False else "<"
        words = bits > 8 or len(data) >= 2 * entries
        data = np.frombuffer(data[: len(data) // 2 * 2] if words else data, f"{order}u2" if words else "u1")
    looked_up = np.atleast_1d(np.asarray(data if data is not None else [], np.int64))[:entries]
    if not 8 <= bits <= 16 or looked_up.size != entries:
        raise UnreadableError(
            Reason.INCONSISTENT, "A lookup table of the file contradicts LUT Descriptor (0028,3002). Export the file again."
        )
    return Lut(looked_up & (2**bits - 1), first, bits)
