"""Turns colour arrays that hold a grey picture into that grey picture, and refuses pictures that are truly coloured."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Reason, UnreadableError

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
        Shape (rows, columns), same type: the common value where the channels are equal, otherwise their middle one, which is
        never further than `tolerance` from any of them.

    Raises
    ------
    UnreadableError
        `COLOURED` where the channels differ by more.
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
    """Return an array of shape (rows, columns, channels) without its last channel, alpha, where that is opaque everywhere.

    Raises
    ------
    UnreadableError
        `COLOURED` where a pixel is transparent.
    """
    alpha = array[..., -1]
    if int(alpha.min(initial=np.iinfo(alpha.dtype).max)) < np.iinfo(alpha.dtype).max:
        raise UnreadableError(
            Reason.COLOURED,
            "The image is partly transparent, so its grey levels depend on what lies behind. Export it without transparency.",
        )
    return array[..., :-1]
