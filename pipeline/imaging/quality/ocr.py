"""Finds text in the pixels of a frame, by the optional extra `ocr` (RapidOCR, whose wheel holds its models)."""

import threading
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, is_lack_of_memory
from pipeline.frames import FloatArray

_NARROWEST = 4
"""How many times longer than wide a frame may be; others are padded, as the reader enlarges the shorter side to 736 pixels."""
_reading = threading.Lock()


@dataclass(frozen=True, slots=True)
class TextBox:
    """An upright rectangle around a line of text, in pixels.

    Parameters
    ----------
    top, left
        Of its first pixel.
    rows, columns
        Its size; it lies within the frame.
    characters
        Number of characters without spaces. The text itself is not kept, since it may name a patient.
    """

    top: int
    left: int
    rows: int
    columns: int
    characters: int


def is_installed() -> bool:
    """Return whether the extra is installed."""
    return find_spec("rapidocr") is not None


def find_text(pixels: FloatArray) -> tuple[TextBox, ...]:
    """Return the boxes of text, from top to bottom; side markers (R, L) count as text, too.

    Parameters
    ----------
    pixels
        float32 array of shape (rows, columns) in [0, 1].

    Raises
    ------
    ConfigError
        If the extra is not installed.
    MemoryError
        If there is not enough memory for a frame of this size.
    """
    if not is_installed():
        raise ConfigError(["Text recognition is not installed: pip install 'octray[ocr]'."])
    levels = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    shortest = -(-max(levels.shape) // _NARROWEST)
    levels = np.pad(levels, [(0, max(shortest - side, 0)) for side in levels.shape])
    with _reading:
        found = _read(np.repeat(levels[..., None], 3, axis=2))
    if found.boxes is None:
        return ()
    boxes = (_box(corners, text, pixels.shape) for corners, text in zip(found.boxes, found.txts, strict=True))
    return tuple(sorted((box for box in boxes if box.rows > 0 and box.columns > 0), key=lambda box: (box.top, box.left)))


def _read(picture: NDArray[np.uint8]) -> Any:
    """Read a picture; the runtime has an error of its own for a lack of memory."""
    try:
        return _reader()(picture, use_cls=False)
    except Exception as error:
        if is_lack_of_memory(error):
            raise MemoryError from None
        raise


def _box(corners: NDArray[Any], text: str, shape: tuple[int, ...]) -> TextBox:
    """Return the smallest whole rectangle around four corners, given as (column, row)."""
    left, top = (max(0, int(value)) for value in np.floor(corners.min(axis=0)))
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, (shape[1], shape[0]))
    return TextBox(top, left, int(bottom) - top, int(right) - left, len("".join(text.split())))


@cache
def _reader() -> Any:
    """Load the models, which takes a second; they are shared, one frame is read at a time."""
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "critical"})
