"""From a frame's pixels to the input of the network: white borders, size and aspect ratio; the same in training and serving."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.imaging.borders import mask_white_borders
from pipeline.records import Fit, FloatArray, Preprocessing

FOCUS = 0.7
"""Side of the square that `Fit.FOCUS` shows, as a part of the frame's shorter side; DECISIONS.md says what was measured."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The box that a whole frame takes on the network's grid, in network pixels; only with `Fit.PAD` does it stay inside.

    Parameters
    ----------
    top, left
        Of the frame's first pixel's outer corner; negative where the frame is cropped.
    rows, columns
        Size of the whole frame.
    """

    top: float
    left: float
    rows: float
    columns: float


def placement(rows: int, columns: int, preprocessing: Preprocessing, height: float = 0.5) -> Placement:
    """Say where a frame of `rows` x `columns` pixels comes to lie on the network's grid.

    With `Fit.PAD` all four values are whole numbers, and no side is shorter than one pixel, however long the frame is. `height`
    is that of `bright_height`; only `Fit.FOCUS` needs it.
    """
    size = preprocessing.size
    if preprocessing.fit is not Fit.PAD:
        top, left, side = _square(rows, columns, preprocessing.fit, height)
        scale = size / side
        return Placement(-top * scale, -left * scale, rows * scale, columns * scale)
    longest = max(rows, columns)
    tall, wide = (max(1, round(side * size / longest)) for side in (rows, columns))
    return Placement((size - tall) // 2, (size - wide) // 2, tall, wide)


def bright_height(pixels: FloatArray, preprocessing: Preprocessing) -> float:
    """Return the height at which a frame is bright, from 0 at its top to 1 at its bottom; white borders do not count.

    It is the centre of what is brighter than the frame's median; 0.5 where nothing is, and where `fit` has no use for it.
    """
    if preprocessing.fit is not Fit.FOCUS:
        return 0.5
    return _height(mask_white_borders(pixels) if preprocessing.mask_white_borders else pixels)


def _height(pixels: FloatArray) -> float:
    brightness = np.clip(pixels - np.median(pixels), 0, 1).sum(axis=1, dtype=np.float64)
    total = brightness.sum()
    return float((np.arange(len(brightness)) + 0.5) @ brightness / total / len(brightness)) if total > 0 else 0.5


def prepare(pixels: FloatArray, preprocessing: Preprocessing) -> FloatArray:
    """Bring a frame onto the network's grid.

    Parameters
    ----------
    pixels
        float32 array of shape (rows, columns) in [0, 1].
    preprocessing
        As it stands in the bundle.

    Returns
    -------
    FloatArray
        C-contiguous float32 array of shape (1, size, size) in [0, 1]; equal input gives equal bytes. It is resized with an
        anti-aliased triangle filter, its aspect ratio kept: with black bars, or as a square of it.
    """
    if preprocessing.mask_white_borders:
        pixels = mask_white_borders(pixels)
    size = preprocessing.size
    grid = np.zeros((1, size, size), np.float32)
    if preprocessing.fit is not Fit.PAD:
        grid[0] = _resize(_shown_square(pixels, preprocessing.fit), size, size)
        return grid
    box = placement(pixels.shape[0], pixels.shape[1], preprocessing)
    top, left, rows, columns = (int(value) for value in (box.top, box.left, box.rows, box.columns))
    grid[0, top : top + rows, left : left + columns] = _resize(pixels, rows, columns)
    return grid


def _shown_square(pixels: FloatArray, fit: Fit) -> FloatArray:
    """Cut the square out of a frame that the network sees, black where it reaches beyond the frame."""
    rows, columns = pixels.shape
    top, left, side = _square(rows, columns, fit, _height(pixels) if fit is Fit.FOCUS else 0.5)
    above, below = max(0, -top), max(0, top + side - rows)
    shown = pixels[max(0, top) : top + side, left : left + side]
    return np.pad(shown, ((above, below), (0, 0))) if above or below else shown


def _square(rows: int, columns: int, fit: Fit, height: float) -> tuple[int, int, int]:
    """Return top, left and side of the square that is shown, in pixels of the frame; it may reach above or below the frame."""
    side = min(rows, columns)
    if fit is Fit.CROP:
        return (rows - side) // 2, (columns - side) // 2, side
    side = max(1, round(FOCUS * side))
    return round(height * rows - side / 2), (columns - side) // 2, side


def _resize(pixels: FloatArray, rows: int, columns: int) -> FloatArray:
    image = Image.fromarray(np.ascontiguousarray(pixels, np.float32))
    resized: FloatArray = np.clip(np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR)), 0, 1)
    return resized
