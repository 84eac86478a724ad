"""A frame as people see it beside a heatmap: small, and with the place that the network's square has on it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.frames import Frame
from pipeline.imaging.preprocess import Placement, bright_height, placement
from pipeline.settings import Preprocessing

MIN_HEIGHT, MAX_HEIGHT, MAX_WIDTH = 224, 512, 560


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A frame at the size at which it is drawn.

    Parameters
    ----------
    grey
        uint8 array of shape (height, width), as `display_shape` gives them.
    box
        Where the whole frame lies on the network's square, in network pixels.
    size
        Side of that square, in network pixels.
    """

    grey: NDArray[np.uint8]
    box: Placement
    size: int


def view_of(frame: Frame, preprocessing: Preprocessing) -> View:
    """Make the view of a frame for a network that sees it by way of `preprocessing`."""
    rows, columns = frame.shape
    height, width = display_shape(rows, columns)
    grey = np.asarray(frame.pixels * np.float32(255) + np.float32(0.5), np.uint8)
    if grey.shape != (height, width):
        grey = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))
    box = placement(rows, columns, preprocessing, bright_height(frame.pixels, preprocessing))
    return View(grey, box, preprocessing.size)


def display_shape(rows: int, columns: int) -> tuple[int, int]:
    """Return the rows and columns at which a frame is drawn: aspect kept, neither too small to see nor too large."""
    factor = min(np.clip(rows, MIN_HEIGHT, MAX_HEIGHT) / rows, MAX_WIDTH / columns)
    return max(1, round(rows * factor)), max(1, round(columns * factor))
