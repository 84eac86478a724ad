"""Says of which DICOM files averages of neighbouring stored values can stand for the values: radiographs with a wide window.

What is left out was measured to change the network's input by more than one grey level in 255 on average (DECISIONS.md).
"""

from pydicom.dataset import Dataset

from pipeline.imaging.dicom.codes import RADIOGRAPHY
from pipeline.imaging.dicom.display import rendering
from pipeline.imaging.dicom.header import Scope, code, number
from pipeline.imaging.grayscale import Lut, Rescale, Window

SHOWN = 1 / 8
"""A window shows at least this part of what the stored bits can hold; a narrower one cuts the overshoot at edges off."""
_OTHER_FOR_EACH_FRAME = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_TABLES = "RedPaletteColorLookupTableDescriptor"


def is_reducible(dataset: Dataset, explanation: str) -> bool:
    """Say whether a file may be decoded at a reduced resolution.

    Not where it is no radiograph, is shown by a lookup table, has padding, or names no window: the percentiles that then take
    its place are those of single pixels, noise included.

    Parameters
    ----------
    dataset
        With its image pixel attributes.
    explanation
        As in `Reading.voi_explanation`.

    Raises
    ------
    UnreadableError
        `INCONSISTENT` where a lookup table contradicts its own description.
    """
    if code(dataset, "Modality") not in RADIOGRAPHY or any(keyword in dataset for keyword in (*_OTHER_FOR_EACH_FRAME, _TABLES)):
        return False
    way, _ = rendering(Scope.of(dataset, 0), explanation)
    if isinstance(way.modality, Lut) or isinstance(way.voi, Lut) or way.padding is not None:
        return False
    if way.voi is None:
        return way.full_range is not None
    return _shown(way.voi, way.modality, dataset) >= SHOWN


def _shown(window: Window, rescale: Rescale, dataset: Dataset) -> float:
    """Return the part of the range of the stored bits that lies within a window."""
    bits, signed = int(number(dataset, "BitsStored") or 16), number(dataset, "PixelRepresentation") == 1
    first = -(2 ** (bits - 1)) if signed else 0
    low, high = sorted(value * rescale.slope + rescale.intercept for value in (first, first + 2**bits - 1))
    left, right = window.center - window.width / 2, window.center + window.width / 2
    return (min(right, high) - max(left, low)) / (high - low)
