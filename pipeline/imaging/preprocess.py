"""From a frame's pixels to the input of the network: white borders, size and aspect ratio; the same in training and serving."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.imaging.borders import mask_white_borders
from pipeline.records import Fit, FloatArray, Preprocessing


@dataclass(frozen=True, slots=True)
class Placement:
    """The box that a whole frame takes on the network's grid, in network pixels; it reaches outside the grid for `Fit.CROP`.

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


def placement(rows: int, columns: int, preprocessing: Preprocessing) -> Placement:
    """Say where a frame of `rows` x `columns` pixels comes to lie on the network's grid.

    With `Fit.PAD` all four values are whole numbers, and no side is shorter than one pixel, however long the frame is.
    """
    size = preprocessing.size
    if preprocessing.fit is Fit.CROP:
        side = min(rows, columns)
        scale = size / side
        return Placement(-((rows - side) // 2) * scale, -((columns - side) // 2) * scale, rows * scale, columns * scale)
    longest = max(rows, columns)
    height, width = (max(1, round(side * size / longest)) for side in (rows, columns))
    return Placement((size - height) // 2, (size - width) // 2, height, width)


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
        anti-aliased triangle filter, its aspect ratio kept, with black bars or as its central square.
    """
    if preprocessing.mask_white_borders:
        pixels = mask_white_borders(pixels)
    size = preprocessing.size
    grid = np.zeros((1, size, size), np.float32)
    if preprocessing.fit is Fit.CROP:
        grid[0] = _resize(_central_square(pixels), size, size)
        return grid
    box = placement(pixels.shape[0], pixels.shape[1], preprocessing)
    top, left, rows, columns = (int(value) for value in (box.top, box.left, box.rows, box.columns))
    grid[0, top : top + rows, left : left + columns] = _resize(pixels, rows, columns)
    return grid


def _central_square(pixels: FloatArray) -> FloatArray:
    rows, columns = pixels.shape
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    return pixels[top : top + side, left : left + side]


def _resize(pixels: FloatArray, rows: int, columns: int) -> FloatArray:
    image = Image.fromarray(np.ascontiguousarray(pixels, np.float32))
    resized: FloatArray = np.clip(np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR)), 0, 1)
    return resized
