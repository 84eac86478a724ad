"""Blackens the white wedges that an earlier rotation left at the edges of a frame, so that no model can learn from them.

A wedge is followed straight inwards from its edge, so that white tissue in the middle of the frame is never reached. Tissue
that touches an edge shows as a short peak in the depth of white along that edge, which an opening removes; a wedge is long, and
nearly all of it is fully white, which bright tissue is not.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.frames import FloatArray
from pipeline.imaging.filters import ndimage

WHITE = 254 / 255
"""At least half of a wedge is at or above this grey level."""
NEARLY_WHITE = 0.85
"""Every pixel of a wedge is at or above this one; JPEG's ringing takes it below `WHITE` near its border."""
GAP = 9
"""Pixels along the edge: shorter interruptions of a wedge are closed."""
STRETCH = 16
"""A wedge takes at least one part in this of the edge that it lies on."""
RIM = 2
"""Pixels beyond a wedge that are blackened with it; measured on real B-scans, those after them are no brighter than others."""
_ROWS_AT_ONCE = 32


def mask_white_borders(pixels: FloatArray) -> FloatArray:
    """Set the white wedges at the edges of a frame, and a rim of `RIM` pixels along them, to 0.

    Parameters
    ----------
    pixels
        float32 array of shape (rows, columns) in [0, 1]; it is not changed.

    Returns
    -------
    FloatArray
        The same array where there is no wedge, otherwise a copy.
    """
    wedges = white_borders(pixels)
    if not wedges.any():
        return pixels
    return np.where(ndimage().maximum_filter(wedges, 2 * RIM + 1), np.float32(0), pixels)


def white_borders(pixels: FloatArray, doubt: float = 0.0) -> NDArray[np.bool_]:
    """Return a mask of shape (rows, columns) that is true inside the wedges, without their rim.

    With a `doubt`, in [0, 1], so much darker pixels may be a wedge's, and so much less of it need be fully white.
    """
    wedges = np.zeros(pixels.shape, bool)
    for turned, wedges_turned in zip(_turns(pixels), _turns(wedges), strict=True):
        wedge = _wedge_at_top(turned, doubt)
        wedges_turned[: len(wedge)] |= wedge
    return wedges


def _turns(pixels: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return views of an array after 0, 1, 2 and 3 quarter turns; `np.rot90` takes longer than looking at them."""
    return pixels, pixels.T[::-1], pixels[::-1, ::-1], pixels.T[:, ::-1]


def _wedge_at_top(pixels: FloatArray, doubt: float) -> NDArray[np.bool_]:
    """Return a mask of the wedge that hangs on the first row, of as many rows as it is deep, none where there is none."""
    columns = pixels.shape[1]
    white = pixels[0] >= NEARLY_WHITE - doubt
    if not white.any() or not _long(white, columns).any():
        return np.zeros((0, columns), bool)
    long = _long(_depth(pixels, white, doubt), columns)
    mask: NDArray[np.bool_] = np.arange(long.max())[:, None] < long
    return mask if np.mean(pixels[: len(mask)][mask] >= np.float32(WHITE - doubt)) >= 0.5 - doubt else mask[:0]


def _depth(pixels: FloatArray, white: NDArray[np.bool_], doubt: float) -> NDArray[np.int64]:
    """Return for each column how many rows are nearly white from the first one on; it is looked at where `white` is true."""
    depth = np.zeros(pixels.shape[1], np.int64)
    columns = np.flatnonzero(white)
    for start in range(0, len(pixels), _ROWS_AT_ONCE):
        dark = pixels[start : start + _ROWS_AT_ONCE, columns] < NEARLY_WHITE - doubt
        deeper = ~dark.any(axis=0)
        depth[columns] = start + np.where(deeper, len(dark), dark.argmax(axis=0))
        columns = columns[deeper]
        if not columns.size:
            break
    return depth


def _long(depth: NDArray[Any], columns: int) -> NDArray[Any]:
    """Return the depth of white along an edge without its peaks that are shorter than a wedge, and with its gaps closed."""
    closed = ndimage().grey_closing(depth.astype(np.int64), GAP, mode="nearest")
    long: NDArray[Any] = ndimage().grey_opening(closed, max(3, columns // STRETCH), mode="nearest")
    return long
