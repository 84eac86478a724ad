"""Finds the rectangles of a frame that hold text, with the optional extra `ocr`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.quality import ocr
from pipeline.ingest.deidentify.options import Box

_MARGIN = 3


def text_boxes(stored: NDArray[Any]) -> Iterator[Box]:
    """Yield where text stands in a frame, with a margin of a few pixels.

    A single character (a side marker such as R or L) names nobody and is left. The frame is looked at twice: from its smallest
    to its largest value, and with its grey levels spread evenly, so that faint text shows, too.

    Parameters
    ----------
    stored
        Stored values of shape (rows, columns) or (rows, columns, 3).

    Raises
    ------
    ConfigError
        Where the extra is not installed.
    """
    grey = stored.astype(np.float32) if stored.ndim == 2 else stored.max(axis=-1).astype(np.float32)
    for pixels in (_stretched(grey), _equalised(grey)):
        for found in ocr.find_text(pixels):
            if found.characters != 1 or found.columns > 2 * found.rows:
                yield _with_margin(found)


def _with_margin(found: ocr.Box) -> Box:
    top, left = max(found.top - _MARGIN, 0), max(found.left - _MARGIN, 0)
    bottom, right = found.top + found.rows + _MARGIN, found.left + found.columns + _MARGIN
    return Box(left, top, right - left, bottom - top)


def _stretched(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = float(grey.min()), float(grey.max())
    stretched: NDArray[np.float32] = (grey - low) / (high - low) if high > low else np.zeros_like(grey)
    return stretched


def _equalised(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    _, inverse = np.unique(grey, return_inverse=True)
    levels = inverse.reshape(grey.shape)
    return (levels / max(int(levels.max()), 1)).astype(np.float32)
