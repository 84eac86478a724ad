"""From a frame's pixels to the input of the network, and from a heatmap back to the frame; the same in training and scoring."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.frames import Box, FloatArray
from pipeline.settings import Fit, Limits, Preprocessing, Reading

FOCUS = 0.7
"""Side of the square that `Fit.FOCUS` shows, as a part of the frame's shorter side; DECISIONS.md says what was measured."""

MARGIN = 2
"""Pixels that a frame is decoded with for every one that the network sees; DECISIONS.md says what was measured."""
WHITE = 254 / 255
"""At least half of a wedge is at or above this grey level."""
NEARLY_WHITE = 0.85
"""Every pixel of a wedge is at or above this one; JPEG's ringing takes it below `WHITE` near its border."""
GAP = 9
"""Pixels along the edge: shorter interruptions of a wedge are closed."""
STRETCH = 16
"""A wedge takes at least one part in this of the edge that it lies on."""
RIM = 2
"""Pixels beyond a wedge that are blackened with it; on real B-scans, those behind them are no brighter than others."""
_ROWS_AT_ONCE = 32
GREY_STEPS = 65535
"""The network sees multiples of 1 / this, 1/257 of a grey level of 8 bits, so that 16 bits keep a frame without loss."""
PANEL_GAP = 8
"""Columns between a frame and the same frame with its heatmap, in a picture of both."""


def placement(rows: int, columns: int, preprocessing: Preprocessing, height: float = 0.5) -> Box:
    """Return the box that a frame of `rows` x `columns` pixels takes on the network's grid; only `Fit.PAD` keeps it inside.

    With `Fit.PAD` all four values are whole numbers, and no side is shorter than one pixel, however long the frame is. `height`
    is that of `bright_height`; only `Fit.FOCUS` needs it.
    """
    size = preprocessing.size
    if preprocessing.fit is not Fit.PAD:
        top, left, side = _square(rows, columns, preprocessing.fit, height)
        scale = size / side
        return Box(-top * scale, -left * scale, rows * scale, columns * scale)
    longest = max(rows, columns)
    tall, wide = (max(1, round(side * size / longest)) for side in (rows, columns))
    return Box((size - tall) // 2, (size - wide) // 2, tall, wide)


def bright_height(pixels: FloatArray, preprocessing: Preprocessing) -> float:
    """Return the height at which a frame is bright, from 0 at its top to 1 at its bottom; white borders do not count.

    It is the centre of what is brighter than the frame's median; 0.5 if nothing is, or if `fit` does not use it.
    """
    if preprocessing.fit is not Fit.FOCUS:
        return 0.5
    return _height(mask_white_borders(pixels) if preprocessing.mask_white_borders else pixels)


def _height(pixels: FloatArray) -> float:
    brightness = np.clip(pixels - np.median(pixels), 0, 1).sum(axis=1, dtype=np.float64)
    total = brightness.sum()
    return float((np.arange(len(brightness)) + 0.5) @ brightness / total / len(brightness)) if total > 0 else 0.5


def reading_for(preprocessing: Preprocessing, limits: Limits) -> Reading:
    """Return how to read files for a network: at the resolution that it needs, if that is allowed, and without hashes.

    Parameters
    ----------
    preprocessing
        As in the bundle. Frames are read whole if it says so, and if it looks at single pixels: for white borders, and for the
        height at which a frame is bright.
    limits
        What one file may demand.
    """
    whole = preprocessing.exact_decoding or preprocessing.mask_white_borders or preprocessing.fit is Fit.FOCUS
    side = None if whole else MARGIN * preprocessing.size
    return Reading(limits, side, preprocessing.voi_explanation, hashes=False)


def prepare(
    pixels: FloatArray, preprocessing: Preprocessing, whole_box: Box | None = None, whole_shape: tuple[int, int] | None = None
) -> FloatArray:
    """Turn a frame into the network's input.

    Parameters
    ----------
    pixels
        float32 array of shape (rows, columns) in [0, 1].
    preprocessing
        As in the bundle.
    whole_box
        As in `Frame`: the box of the whole frame on `pixels`; None if they are the whole frame.
    whole_shape
        As in `Frame`: rows and columns of the frame in its file; those of `pixels` if it is None.

    Returns
    -------
    FloatArray
        C-contiguous float32 array of shape (1, size, size) in [0, 1], each value a multiple of 1 / `GREY_STEPS`; equal input
        gives equal bytes. The frame is resized with an anti-aliased triangle filter, its aspect ratio kept: with black bars, or
        as a square of it.
    """
    if preprocessing.mask_white_borders:
        pixels = mask_white_borders(pixels)
    size, (rows, columns) = preprocessing.size, whole_shape or pixels.shape
    box = whole_box or Box(0, 0, rows, columns)
    height = (_height(pixels) * len(pixels) - box.top) / box.rows if preprocessing.fit is Fit.FOCUS else 0.5
    grid = np.zeros((1, size, size), np.float32)
    if whole_box is not None:
        pixels = np.pad(pixels, ((0, 1), (0, 1)), mode="edge")  # the box may reach a part of a pixel beyond
    if preprocessing.fit is not Fit.PAD:
        square = _on_pixels(_square(rows, columns, preprocessing.fit, height), rows, box)
        grid[0] = _resize(*_cut(pixels, square), size, size)
    else:
        top, left, tall, wide = map(int, placement(rows, columns, preprocessing))
        grid[0, top : top + tall, left : left + wide] = _resize(pixels, box, tall, wide)
    return grey_values(grey_levels(grid))


def grey_levels(values: FloatArray) -> NDArray[np.uint16]:
    """Return values in [0, 1] as whole numbers of 16 bits: what training keeps on disk."""
    return np.asarray(np.rint(values * np.float32(GREY_STEPS)), np.uint16)


def grey_values(levels: NDArray[np.uint16]) -> FloatArray:
    """Return the float32 values in [0, 1] of whole numbers of 16 bits; `grey_levels` of them gives the same numbers again."""
    return np.divide(levels, np.float32(GREY_STEPS), dtype=np.float32)


def _on_pixels(square: tuple[int, int, int], rows: int, whole_box: Box) -> Box:
    """Return a square of a frame with this many rows as a box on the pixels on which `whole_box` is the whole frame."""
    top, left, side = (one * whole_box.rows / rows for one in square)
    return Box(whole_box.top + top, whole_box.left + left, side, side)


def _cut(pixels: FloatArray, box: Box) -> tuple[FloatArray, Box]:
    """Cut out the pixels that a box touches, black above and below the frame; return them with the box on them."""
    first, last = math.floor(box.top), math.ceil(box.top + box.rows)
    start, end = math.floor(box.left), math.ceil(box.left + box.columns)
    above, below = max(0, -first), max(0, last - pixels.shape[0])
    shown = pixels[max(0, first) : last, start:end]
    shown = np.pad(shown, ((above, below), (0, 0))) if above or below else shown
    return shown, Box(box.top - first, box.left - start, box.rows, box.columns)


def _square(rows: int, columns: int, fit: Fit, height: float) -> tuple[int, int, int]:
    """Return top, left and side of the square that is shown, in whole pixels of the frame; it may reach above or below it."""
    side = min(rows, columns)
    if fit is Fit.CROP:
        return (rows - side) // 2, (columns - side) // 2, side
    side = max(1, round(FOCUS * side))
    return round(height * rows - side / 2), (columns - side) // 2, side


def _resize(pixels: FloatArray, box: Box, rows: int, columns: int) -> FloatArray:
    top, left, tall, wide = box
    if box == (0, 0, rows, columns) and pixels.shape == (rows, columns):
        return np.clip(np.asarray(pixels, np.float32), 0, 1)
    image = Image.fromarray(np.ascontiguousarray(pixels, np.float32))
    edges = (left, top, left + wide, top + tall)
    resized: FloatArray = np.clip(np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR, box=edges)), 0, 1)
    return resized


def mask_white_borders(pixels: FloatArray) -> FloatArray:
    """Set the white wedges at the edges of a frame, and a rim of `RIM` pixels along them, to 0.

    Parameters
    ----------
    pixels
        float32 array of shape (rows, columns) in [0, 1]; it is not changed.

    Returns
    -------
    FloatArray
        The same array if there is no wedge, otherwise a copy.
    """
    wedges = white_borders(pixels)
    if not wedges.any():
        return pixels
    from scipy import ndimage  # takes a third of a second to import, and few frames need it

    return np.where(ndimage.maximum_filter(wedges, 2 * RIM + 1), np.float32(0), pixels)


def white_borders(pixels: FloatArray, doubt: float = 0.0) -> NDArray[np.bool_]:
    """Return a mask of shape (rows, columns) that is true inside the wedges, without their rim.

    With a `doubt`, in [0, 1], pixels of a wedge may be so much darker, and so much less of it has to be fully white.
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
    """Return a mask of the wedge that hangs on the first row, of as many rows as it is deep; no rows if there is none."""
    columns = pixels.shape[1]
    white = pixels[0] >= NEARLY_WHITE - doubt
    if not white.any() or not _long(white, columns).any():
        return np.zeros((0, columns), bool)
    long = _long(_depth(pixels, white, doubt), columns)
    mask: NDArray[np.bool_] = np.arange(long.max())[:, None] < long
    return mask if np.mean(pixels[: len(mask)][mask] >= np.float32(WHITE - doubt)) >= 0.5 - doubt else mask[:0]


def _depth(pixels: FloatArray, white: NDArray[np.bool_], doubt: float) -> NDArray[np.int64]:
    """Return for each column how many rows are nearly white from the first one on; 0 in columns in which `white` is false."""
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
    from scipy import ndimage

    closed = ndimage.grey_closing(depth.astype(np.int64), GAP, mode="nearest")
    long: NDArray[Any] = ndimage.grey_opening(closed, max(3, columns // STRETCH), mode="nearest")
    return long


def onto_frame(values: FloatArray, box: Box, size: int, shape: tuple[int, int]) -> FloatArray:
    """Map a heatmap back through padding or cropping onto the frame's own grid, at any resolution.

    Parameters
    ----------
    values
        float32 array of shape (map_rows, map_columns); its cells tile the square that the network sees.
    box
        Place of the whole frame on that square, in network pixels.
    size
        Side of the square, in network pixels.
    shape
        Rows and columns of the result, which covers the whole frame.

    Returns
    -------
    FloatArray
        float32 array of shape `shape`: bilinear between the centres of the cells, and 0 outside of what the network saw.
    """
    rows = _interpolation(values.shape[0], box.top, box.rows, size, shape[0])
    columns = _interpolation(values.shape[1], box.left, box.columns, size, shape[1])
    return np.asarray(rows @ values @ columns.T, np.float32)


def seen_square(box: Box, size: int, shape: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the part of a frame that the network saw: top, left, bottom and right in pixels of a grid that covers the frame.

    Parameters
    ----------
    box, size, shape
        As in `onto_frame`.

    Returns
    -------
    tuple[int, int, int, int] | None
        Half open, at least one pixel in size and within the grid; None if the network saw the whole frame.
    """
    edges = []
    for start, extent, length in ((box.top, box.rows, shape[0]), (box.left, box.columns, shape[1])):
        first, last = (round((place - start) * length / extent) for place in (0, size))
        first = min(max(0, first), length - 1)
        edges.append((first, max(first + 1, min(length, last))))
    (top, bottom), (left, right) = edges
    return None if (top, left, bottom, right) == (0, 0, *shape) else (top, left, bottom, right)


@lru_cache(maxsize=64)
def _interpolation(cells: int, start: float, extent: float, size: int, length: int) -> FloatArray:
    """Weights of shape (length, cells) that take cells to the centres of `length` pixels of a frame at start..start+extent."""
    places = start + (np.arange(length) + 0.5) * extent / length
    centres = np.clip(places * cells / size - 0.5, 0, cells - 1)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(cells)))
    weights[(places < 0) | (places > size)] = 0
    return np.asarray(weights, np.float32)
