"""From a frame's pixels to the input of the network: white borders, size and aspect ratio; the same in training and serving."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.frames import FloatArray
from pipeline.imaging.borders import mask_white_borders
from pipeline.settings import Fit, Limits, Preprocessing, Reading

Box = tuple[float, float, float, float]

FOCUS = 0.7
"""Side of the square that `Fit.FOCUS` shows, as a part of the frame's shorter side; DECISIONS.md says what was measured."""

MARGIN = 2
"""Pixels that a frame is decoded with for every one that the network sees; DECISIONS.md says what was measured."""


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


def reading_for(preprocessing: Preprocessing, limits: Limits) -> Reading:
    """Say how files are to be read for a network: at the resolution that it needs, where they may be, and without hashes.

    Parameters
    ----------
    preprocessing
        As it stands in the bundle. Frames are read whole where it says so, and where it looks at single pixels: for white
        borders, and for the height at which a frame is bright.
    limits
        What one file may demand.
    """
    whole = preprocessing.exact_decoding or preprocessing.mask_white_borders or preprocessing.fit is Fit.FOCUS
    side = None if whole else MARGIN * preprocessing.size
    return Reading(limits, side, preprocessing.voi_explanation, hashes=False)


def prepare(
    pixels: FloatArray, preprocessing: Preprocessing, whole_box: Box | None = None, whole_shape: tuple[int, int] | None = None
) -> FloatArray:
    """Bring a frame onto the network's grid.

    Parameters
    ----------
    pixels
        float32 array of shape (rows, columns) in [0, 1].
    preprocessing
        As it stands in the bundle.
    whole_box
        As in `Frame`: top, left, rows and columns of the whole frame on `pixels`; None where they are the whole frame.
    whole_shape
        As in `Frame`: rows and columns of the frame in its file; those of `pixels` where it is None.

    Returns
    -------
    FloatArray
        C-contiguous float32 array of shape (1, size, size) in [0, 1]; equal input gives equal bytes. It is resized with an
        anti-aliased triangle filter, its aspect ratio kept: with black bars, or as a square of it.
    """
    if preprocessing.mask_white_borders:
        pixels = mask_white_borders(pixels)
    size, (rows, columns) = preprocessing.size, whole_shape or pixels.shape
    box = whole_box or (0, 0, rows, columns)
    height = (_height(pixels) * len(pixels) - box[0]) / box[2] if preprocessing.fit is Fit.FOCUS else 0.5
    grid = np.zeros((1, size, size), np.float32)
    if whole_box is not None:
        pixels = np.pad(pixels, ((0, 1), (0, 1)), mode="edge")  # the box may reach a part of a pixel beyond
    if preprocessing.fit is not Fit.PAD:
        square = _on_pixels(_square(rows, columns, preprocessing.fit, height), rows, box)
        grid[0] = _resize(*_cut(pixels, square), size, size)
        return grid
    place = placement(rows, columns, preprocessing)
    top, left, tall, wide = (int(value) for value in (place.top, place.left, place.rows, place.columns))
    grid[0, top : top + tall, left : left + wide] = _resize(pixels, box, tall, wide)
    return grid


def _on_pixels(square: tuple[int, int, int], rows: int, whole_box: Box) -> Box:
    """Return a square of a frame of so many rows as a box on the pixels on which `whole_box` is the whole frame."""
    top, left, side = (one * whole_box[2] / rows for one in square)
    return whole_box[0] + top, whole_box[1] + left, side, side


def _cut(pixels: FloatArray, box: Box) -> tuple[FloatArray, Box]:
    """Cut out the pixels that a box touches, black above and below the frame; return them with the box on them."""
    first, last = math.floor(box[0]), math.ceil(box[0] + box[2])
    start, end = math.floor(box[1]), math.ceil(box[1] + box[3])
    above, below = max(0, -first), max(0, last - pixels.shape[0])
    shown = pixels[max(0, first) : last, start:end]
    shown = np.pad(shown, ((above, below), (0, 0))) if above or below else shown
    return shown, (box[0] - first, box[1] - start, box[2], box[3])


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
