"""From stored values to grey levels in [0, 1]: modality transformation, VOI LUT or window, sense (PS3.3 C.7.6.16.2.9, C.11)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import FloatArray

Values = NDArray[Any]

BLACK_AND_WHITE = (0.5, 99.5)
"""If a frame of more than 8 bits names no window, or one that hides it, these percentiles of its values are black and white."""
_HALF_A_LEVEL = np.float32(0.5 / 255)
_NEARLY_ALL = 0.97
_EXACT = 2**23
"""Differences of words of 16 bits and whole numbers below this one are exact in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Lut:
    """A lookup table (PS3.3 C.11.1.1, C.11.2.1.1).

    Parameters
    ----------
    data
        One output value for each input value from `first` on; integers in [0, 2**bits - 1].
    first
        The input value that the first entry belongs to; inputs outside the table take its nearest end.
    bits
        Bits of the output.
    """

    data: Values
    first: int
    bits: int


@dataclass(frozen=True, slots=True)
class Window:
    """A window (PS3.3 C.11.2.1.2): `center` and `width` in modality values; LINEAR, LINEAR_EXACT or SIGMOID."""

    center: float
    width: float
    function: str = "LINEAR"

    @property
    def is_valid(self) -> bool:
        """Whether the Standard allows this width: at least 1 for LINEAR, above 0 otherwise."""
        finite = bool(np.isfinite(self.center) and np.isfinite(self.width))
        return finite and (self.width >= 1 if self.function == "LINEAR" else self.width > 0)


@dataclass(frozen=True, slots=True)
class Rescale:
    """Rescale Slope (0028,1053) and Rescale Intercept (0028,1052)."""

    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True, slots=True)
class Rendering:
    """The way from stored values to grey levels, as a header describes it.

    Parameters
    ----------
    modality
        Modality LUT or rescale.
    voi
        VOI LUT or window; None if the header gives none.
    inverted
        True if low values are to be shown white: MONOCHROME1, or Presentation LUT Shape (2050,0020) INVERSE. The two say the
        same (PS3.3 C.8.11.3.1.2), so both together invert once.
    padding
        Smallest and largest stored value that is padding and no measurement, (0028,0120) to (0028,0125); nan twice if NaN is
        padding; None if there is none. Padding is black, whatever the window and the sense are (PS3.3 C.7.5.1.1.2).
    full_range
        Smallest and largest value that 8 bits or fewer, or a palette, can hold; None for more bits.
    """

    modality: Lut | Rescale = Rescale()
    voi: Lut | Window | None = None
    inverted: bool = False
    padding: tuple[float, float] | None = None
    full_range: tuple[float, float] | None = None


def render(stored: Values, rendering: Rendering) -> tuple[FloatArray, tuple[str, ...]]:
    """Turn the stored values of a grey frame into grey levels.

    Parameters
    ----------
    stored
        Array of shape (rows, columns), integers or floats; all but the padding are finite.
    rendering
        The way to grey levels.

    Returns
    -------
    tuple[FloatArray, tuple[str, ...]]
        float32 array of the same shape in [0, 1], MONOCHROME2 sense; and what had to be assumed, in sentences.

    Notes
    -----
    A window beside nearly all values (those within `BLACK_AND_WHITE`) would leave one grey. It is ignored, and the percentiles
    are shown instead.
    """
    padded = None if rendering.padding is None else is_padding(stored, rendering.padding)
    if padded is not None and (padded.all() or not padded.any()):
        padded = None
    if padded is not None:
        stored = np.where(padded, stored[~padded][0], stored)  # so that it neither counts nor overflows
    values = _apply_modality(stored, rendering.modality)
    measured = values if padded is None else values[~padded]
    notes: tuple[str, ...] = ()
    if rendering.voi is not None:
        grey = _through(values, rendering.voi)
        bounds = _percentile_bounds(measured) if _is_hidden(grey, values, padded, rendering.voi) else (0.0, 0.0)
        if bounds[0] < bounds[1]:
            grey = apply_range(values, *bounds)
            kind = "VOI LUT" if isinstance(rendering.voi, Lut) else "window"
            notes = (f"The {kind} of the file lies beside the values of the frame and would hide it: {_SHOWN_INSTEAD}",)
    elif rendering.full_range is not None:
        grey = apply_range(values, *_full_bounds(rendering.full_range, rendering.modality))
    else:
        grey = apply_range(values, *_percentile_bounds(measured))
        notes = (f"The file names no window: {_SHOWN_INSTEAD}",)
    if rendering.inverted:
        np.subtract(1, grey, out=grey)
    if padded is not None:
        grey[padded] = 0
    return np.ascontiguousarray(grey), notes


_SHOWN_INSTEAD = f"the grey levels run from percentile {BLACK_AND_WHITE[0]} to {BLACK_AND_WHITE[1]} of the values."


def is_padding(stored: Values, padding: tuple[float, float]) -> NDArray[np.bool_]:
    """Return for every stored value whether it is padding; `padding` as in `Rendering`."""
    if math.isnan(padding[0]):
        return np.isnan(stored)
    return (stored >= padding[0]) & (stored <= padding[1])


def may_be_hidden(stored: Values, rendering: Rendering) -> bool:
    """Return whether a window lies beside nearly all values, so that it may hide the picture of which they are averages."""
    if not isinstance(rendering.voi, Window):
        return False
    grey = apply_window(_apply_modality(stored, rendering.modality), rendering.voi)
    low, high = np.count_nonzero(grey < _HALF_A_LEVEL), np.count_nonzero(grey > 1 - _HALF_A_LEVEL)
    return bool(max(low, high) >= _NEARLY_ALL * grey.size)


def _through(values: Values, voi: Lut | Window) -> FloatArray:
    if isinstance(voi, Window):
        return apply_window(values, voi)
    return _apply_lut(values, voi).astype(np.float32) / np.float32(2**voi.bits - 1)


def _is_hidden(grey: FloatArray, values: Values, padded: NDArray[np.bool_] | None, voi: Lut | Window) -> bool:
    """Return whether nearly all values lie beside a window, or the entries of a table, and get its first or last grey."""
    low, high = grey < _HALF_A_LEVEL, grey > 1 - _HALF_A_LEVEL
    if isinstance(voi, Lut):
        low, high = low | (values <= voi.first), high | (values >= voi.first + voi.data.size - 1)
    if padded is not None:
        low, high = low[~padded], high[~padded]
    return bool(max(np.count_nonzero(low), np.count_nonzero(high)) >= BLACK_AND_WHITE[1] / 100 * low.size)


def _apply_modality(stored: Values, modality: Lut | Rescale) -> Values:
    """Return modality values: integers of a lookup table, the stored values themselves, or rescaled float64."""
    if isinstance(modality, Lut):
        return _apply_lut(stored, modality)
    if modality == Rescale():
        return stored
    return stored.astype(np.float64) * modality.slope + modality.intercept


def _apply_lut(values: Values, lut: Lut) -> Values:
    """Look every value up; values outside the table take its first or its last entry."""
    index = np.rint(values).astype(np.int64) - lut.first
    looked_up: Values = lut.data[np.clip(index, 0, lut.data.size - 1)]
    return looked_up


def apply_window(values: Values, window: Window) -> FloatArray:
    """Apply a valid window with the pseudo-code of PS3.3 C.11.2.1.2 and C.11.2.1.3; returns float32 in [0, 1]."""
    center, width = window.center, window.width
    if window.function == "SIGMOID":
        exponent = np.clip(-4 * (values.astype(np.float64) - center) / width, -700, 700)
        return (1 / (1 + np.exp(exponent))).astype(np.float32)
    if window.function == "LINEAR_EXACT":
        return apply_range(values, center - width / 2, center + width / 2)
    return apply_range(values, center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)


def apply_range(values: Values, low: float, high: float) -> FloatArray:
    """Map `low` to 0 and `high` to 1, linearly and clipped; if both are equal, only what lies above them is 1."""
    if high <= low:
        return (values > low).astype(np.float32)
    whole = math.floor(low)
    short = values.dtype.kind in "iu" and values.itemsize <= 2 and abs(whole) < _EXACT
    grey: Values = values.astype(np.float32 if short else np.float64)
    grey -= whole
    grey -= low - whole
    grey /= high - low
    return np.clip(grey, 0, 1, out=grey).astype(np.float32, copy=False)


def _full_bounds(full_range: tuple[float, float], modality: Lut | Rescale) -> tuple[float, float]:
    """Return black and white for values of up to 8 bits, or of a palette: the full range that they can take."""
    low, high = full_range
    every = np.arange(low, high + 1) if isinstance(modality, Lut) else np.asarray((low, high))
    shown = _apply_modality(every, modality)
    return float(shown.min()), float(shown.max())


def _percentile_bounds(measured: Values) -> tuple[float, float]:
    low, high = percentiles(measured, BLACK_AND_WHITE)
    return (low, high) if high > low else (float(measured.min()), float(measured.max()))


def percentiles(values: Values, ranks: tuple[float, float]) -> tuple[float, float]:
    """Return two percentiles as `np.percentile` does; for words from their histogram, which is several times as fast."""
    if values.dtype.kind not in "iu" or values.itemsize > 2:
        low, high = np.percentile(values, ranks).tolist()
        return low, high
    first = int(values.min())
    below = np.cumsum(np.bincount(values.ravel().astype(np.intp) - first))
    places = np.asarray(ranks) / 100 * (values.size - 1)
    floors = np.floor(places)
    lower, upper = (np.searchsorted(below, place, side="right") + first for place in (floors, np.ceil(places)))
    low, high = (lower + (upper - lower) * (places - floors)).tolist()
    return low, high


TOLERANCE = 2
"""Levels by which the channels of a grey picture may differ after lossy compression or conversion from YBR."""


def to_grey(array: NDArray[Any], tolerance: int) -> NDArray[Any]:
    """Return the grey picture that three nearly equal channels hold.

    Parameters
    ----------
    array
        Unsigned integers of shape (rows, columns, 3), RGB.
    tolerance
        Levels by which the channels of one pixel may differ: 0 for lossless files, `TOLERANCE` for lossy ones.

    Returns
    -------
    NDArray
        Shape (rows, columns), same type: the common value if the channels are equal, otherwise their middle one, which is
        never further than `tolerance` from any of them.

    Raises
    ------
    UnreadableError
        `COLOURED` if the channels differ by more.
    """
    red, green, blue = (array[..., channel] for channel in range(3))
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    difference = int((high - low).max(initial=0))
    if difference > tolerance:
        raise UnreadableError(
            Reason.COLOURED,
            f"The image is coloured: the largest difference between its channels is {difference}. Export it as a grey image.",
        )
    middle: NDArray[Any] = np.maximum(np.minimum(red, green), np.minimum(np.maximum(red, green), blue))
    return middle


def drop_opaque_alpha(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of shape (rows, columns, channels) without its last channel, alpha, if that is opaque everywhere.

    Raises
    ------
    UnreadableError
        `COLOURED` if a pixel is transparent.
    """
    alpha = array[..., -1]
    if int(alpha.min(initial=np.iinfo(alpha.dtype).max)) < np.iinfo(alpha.dtype).max:
        raise UnreadableError(
            Reason.COLOURED,
            "The image is partly transparent, so its grey levels depend on what lies behind. Export it without transparency.",
        )
    return array[..., :-1]
