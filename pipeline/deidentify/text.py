"""Finds the rectangles of a frame that hold text, with the optional extra `ocr`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.deidentify.options import Box, Refusal, RefusedError
from pipeline.imaging.quality import ocr

_MARGIN = 3
_MOST = 0.25
"""Part of a frame: what is taken for text over more of it is more likely the picture itself."""


def text_boxes(stored: NDArray[Any], may_show_identity: bool = True) -> tuple[Box, ...]:
    """Return where text stands in a frame, with a margin of a few pixels.

    A single character (a side marker such as R or L) names nobody and is left. The frame is looked at twice: from its smallest
    to its largest value, and with its grey levels spread evenly, so that faint text shows, too.

    Parameters
    ----------
    stored
        Stored values of shape (rows, columns) or (rows, columns, 3).
    may_show_identity
        Whether the header says so. If it does not, two characters over more than a quarter of the frame are the picture itself:
        two lungs look like 11.

    Raises
    ------
    ConfigError
        If the extra is not installed.
    RefusedError
        `BURNED_IN` if more than a quarter of the frame would be blanked.
    """
    most = _MOST * stored.shape[0] * stored.shape[1]
    found = [one for one in _found(stored) if may_show_identity or one.characters > 2 or one.rows * one.columns <= most]
    boxes = tuple(map(_with_margin, found))
    blanked = np.zeros(stored.shape[:2], bool)
    for box in boxes:
        blanked[box.top : box.top + box.height, box.left : box.left + box.width] = True
    if blanked.mean() > _MOST:
        raise RefusedError(
            Refusal.BURNED_IN,
            "What looks like text covers more than a quarter of the picture, which may be the picture itself. Give the "
            "rectangles with --blank, without --clean-pixels.",
        )
    return boxes


def _found(stored: NDArray[Any]) -> Iterator[ocr.Box]:
    grey = stored.astype(np.float32) if stored.ndim == 2 else stored.max(axis=-1).astype(np.float32)
    for pixels in (_stretched(grey), _equalised(grey)):
        for found in ocr.find_text(pixels):
            if found.characters != 1 or found.columns > 2 * found.rows:
                yield found


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
