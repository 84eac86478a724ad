"""What the checks of the quality gate look at: a frame, what is expected of it, and a small copy that is made once."""

from enum import Enum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.frames import FloatArray, Frame
from pipeline.imaging.borders import white_borders
from pipeline.imaging.dicom.terms import RADIOGRAPHY, is_expected_body_part
from pipeline.imaging.filters import ndimage
from pipeline.settings import Gate

SIDE = 96
"""The shorter side of the small copy has at least this many pixels, where the frame has."""
RIM = 4
"""Pixels of the small copy along its edges, and along wedges, that checks of its picture leave aside."""
SPREAD = (1.5, 3.0)
"""Standard deviation of the smoothing in rows and columns of the small copy."""
WEDGE_DOUBT = 0.03
"""By how much grey levels and parts of wedges may change from a whole frame to a reduced one."""
_CHEST = "CHEST"


class Subject(Enum):
    """What a frame shows, where header and gate leave no doubt."""

    CHEST = "chest radiograph"
    B_SCAN = "OCT B-scan"
    OTHER = "something else, or unknown"


class Look:
    """A frame under the eyes of the gate.

    Parameters
    ----------
    frame
        What is looked at.
    gate
        What is expected of it.
    wary
        Whether checks are to find as well what they might find in the whole frame, if this one was decoded at a reduced
        resolution.
    """

    def __init__(self, frame: Frame, gate: Gate, wary: bool = False) -> None:
        self.frame = frame
        self.gate = gate
        self.wary = wary

    def doubt(self, most: float) -> float:
        """Return by how much a threshold has to give way: `most`, the change from the whole frame to a reduced one, or 0."""
        return most if self.wary else 0.0

    @cached_property
    def small(self) -> FloatArray:
        """The frame with block averages of whole numbers of pixels, so that every size is judged at nearly the same one."""
        return reduced(self.frame.pixels, SIDE)

    @cached_property
    def wedges(self) -> NDArray[np.bool_]:
        """Where in the whole frame white wedges of an earlier rotation lie."""
        return white_borders(self.frame.pixels, self.doubt(WEDGE_DOUBT))

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """Where in the small copy the picture lies: neither in a wedge, nor within `RIM` pixels of one or of an edge."""
        picture = np.zeros(self.small.shape, bool)
        picture[RIM:-RIM, RIM:-RIM] = True
        if self.wedges.any():
            covered = reduced(self.wedges.astype(np.float32), SIDE) > 0
            picture &= ~ndimage().maximum_filter(covered, 2 * RIM + 1)
        return picture

    @cached_property
    def smooth(self) -> FloatArray:
        """The small copy, each pixel averaged with those near it, more of them across than down, that are seen."""
        weight = ndimage().gaussian_filter(self.seen.astype(np.float32), SPREAD)
        total = ndimage().gaussian_filter(np.where(self.seen, self.small, np.float32(0)), SPREAD)
        average: FloatArray = total / np.maximum(weight, np.float32(1e-3))
        return average

    @cached_property
    def subject(self) -> Subject:
        """What the frame shows: what its header says; where that is silent, what the gate expects."""
        modalities = {self.frame.modality} if self.frame.modality else set(self.gate.intended_use.modalities)
        if modalities == {"OPT"}:
            return Subject.B_SCAN
        if modalities and modalities <= RADIOGRAPHY and self._is_chest():
            return Subject.CHEST
        return Subject.OTHER

    def _is_chest(self) -> bool:
        """Say so where the header does, or where it is silent and the gate expects frontal radiographs of chests."""
        if self.frame.body_part:
            return self.frame.body_part == _CHEST
        expected = self.gate.intended_use.body_parts
        return bool(expected) and all(is_expected_body_part(_CHEST, (part,)) for part in expected)


def reduced(pixels: FloatArray, side: int) -> FloatArray:
    """Average blocks of pixels, of the largest size that leaves the shorter side with at least `side` of them.

    Parameters
    ----------
    pixels
        float32 array of shape (rows, columns).
    side
        In pixels.
    """
    block = max(1, min(pixels.shape) // side)
    rows, columns = pixels.shape[0] // block, pixels.shape[1] // block
    down = pixels[: rows * block, : columns * block].reshape(rows, block, columns * block).sum(axis=1)
    averages: FloatArray = sum(down[:, column::block] for column in range(block)) / np.float32(block * block)
    return averages
