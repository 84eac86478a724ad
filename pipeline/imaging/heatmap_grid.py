"""Maps a heatmap from the square that the network sees back onto the grid of its frame; pure."""

from functools import lru_cache

import numpy as np

from pipeline.frames import FloatArray
from pipeline.imaging.preprocess import Placement

PANEL_GAP = 8
"""Columns between a frame and the same frame with its heatmap, in a picture of both."""


def onto_frame(values: FloatArray, box: Placement, size: int, shape: tuple[int, int]) -> FloatArray:
    """Map a heatmap back through padding or cropping onto the frame's own grid, at any resolution.

    Parameters
    ----------
    values
        float32 array of shape (map_rows, map_columns); its cells tile the square that the network sees.
    box
        Where the whole frame lies on that square, in network pixels.
    size
        Side of the square, in network pixels.
    shape
        Rows and columns of the result, which covers the whole frame.

    Returns
    -------
    FloatArray
        float32 array of shape `shape`: bilinear between the centres of the cells, and 0 where the network saw nothing.
    """
    rows = _interpolation(values.shape[0], box.top, box.rows, size, shape[0])
    columns = _interpolation(values.shape[1], box.left, box.columns, size, shape[1])
    return np.asarray(rows @ values @ columns.T, np.float32)


def seen_square(box: Placement, size: int, shape: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return which part of a frame the network saw: top, left, bottom and right in pixels of a grid that covers the frame.

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
