"""Brings the stored bits of a pixel to the low end of its word and clears whatever else lies in it (PS3.5 8.1.1, 8.1.2)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.header import number

_OVERLAY_GROUPS = range(0x6000, 0x6020, 2)
_OVERLAY_BIT_POSITION = 0x0102
_OVERLAY_DATA = 0x3000


@dataclass(frozen=True, slots=True)
class Bits:
    """Which bits of a word are a pixel's.

    Parameters
    ----------
    allocated
        Bits Allocated (0028,0100).
    stored
        Bits Stored (0028,0101).
    high
        High Bit (0028,0102); that of the bits stored where it is missing.
    overlays
        Mask of the bits that hold overlays: Overlay Bit Position (60xx,0102) without Overlay Data (60xx,3000), which older
        editions of the Standard allow.
    """

    allocated: int
    stored: int
    high: int
    overlays: int = 0

    @property
    def below(self) -> int:
        """Mask of the bits under the stored ones."""
        return (1 << (self.high + 1 - self.stored)) - 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be said of overlays among the stored bits."""
        stored = ((1 << self.stored) - 1) << (self.high + 1 - self.stored)
        return (
            ("Overlays lie in bits that the file gives to the pixels: they were left out.",) if self.overlays & stored else ()
        )


def overlay_bits(dataset: Dataset) -> int:
    """Return the mask of the bits that hold overlays; bit 0 is left alone, since overlays of their own say 0, too."""
    mask = 0
    for group in _OVERLAY_GROUPS:
        position = number(dataset, (group << 16) + _OVERLAY_BIT_POSITION)
        if position is not None and 0 < position < 64 and (group << 16) + _OVERLAY_DATA not in dataset:
            mask |= 1 << int(position)
    return mask


def notes_on_left_out(words: NDArray[Any], bits: Bits) -> tuple[str, ...]:
    """Say that unsigned words hold something above High Bit that no overlay explains: Bits Stored may be too small for them."""
    above = (1 << bits.allocated) - (1 << bits.high + 1) & ~bits.overlays
    if words.dtype.kind != "u" or words.max(initial=0) < 1 << bits.high + 1:
        return ()
    if not (words & np.asarray(above, words.dtype)).any():
        return ()
    return (f"The pixels hold values above bit {bits.high}, the High Bit of the file: only the bits up to it were read.",)


def aligned(words: NDArray[Any], bits: Bits) -> NDArray[Any]:
    """Return the values of the stored bits, the same array where nothing else lies in it.

    Parameters
    ----------
    words
        Integers of any shape, signed where the pixels are; `bits.allocated` bits wide.
    bits
        Which of their bits are the pixels'.

    Raises
    ------
    UnreadableError
        `INCONSISTENT` where bits under the stored ones hold something other than overlays: High Bit is then wrong, or Bits
        Stored is.
    """
    if bits.overlays == 0 and bits.stored == bits.allocated:
        return words
    unsigned = words.view(f"u{words.itemsize}")
    if words.dtype.kind == "u" and bits.high == bits.stored - 1:
        if not bits.overlays and words.max(initial=0) < 1 << bits.stored:
            return words  # as nearly always: there is nothing to clear
        kept: NDArray[Any] = unsigned & np.asarray(~bits.overlays & ((1 << bits.stored) - 1), unsigned.dtype)
        return kept
    unsigned = unsigned & np.asarray(~bits.overlays % 2**bits.allocated, unsigned.dtype)
    if bits.below and (unsigned & np.asarray(bits.below, unsigned.dtype)).any():
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"High Bit is {bits.high} with {bits.stored} bits stored, but the bits below hold values, too. Export it again.",
        )
    np.left_shift(unsigned, bits.allocated - 1 - bits.high, out=unsigned)
    values: NDArray[Any] = unsigned.view(words.dtype)
    np.right_shift(values, bits.allocated - bits.stored, out=values)
    return values
