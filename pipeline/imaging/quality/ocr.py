"""Finds text in the pixels of a frame, by the optional extra `ocr` (RapidOCR, whose wheel holds its models)."""

import threading
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.records import FloatArray

_reading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Box:
    """An upright rectangle around a line of text, in pixels.

    Parameters
    ----------
    top, left
        Of its first pixel.
    rows, columns
        Its size; it lies within the frame.
    characters
        How many characters were read in it, spaces left out. What they are is not kept, since they may name a patient.
    """

    top: int
    left: int
    rows: int
    columns: int
    characters: int


def is_installed() -> bool:
    """Say whether the extra is there."""
    return find_spec("rapidocr") is not None


def find_text(pixels: FloatArray) -> tuple[Box, ...]:
    """Return where text stands, from top to bottom; side markers (R, L) count as text, too.

    Parameters
    ----------
    pixels
        float32 array of shape (rows, columns) in [0, 1].

    Raises
    ------
    ConfigError
        Where the extra is not installed.
    """
    if not is_installed():
        raise ConfigError(["Text recognition is not installed: pip install 'octray[ocr]'."])
    levels = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    with _reading:
        found = _reader()(np.repeat(levels[..., None], 3, axis=2), use_cls=False)
    if found.boxes is None:
        return ()
    boxes = (_box(corners, text, pixels.shape) for corners, text in zip(found.boxes, found.txts, strict=True))
    return tuple(sorted(boxes, key=lambda box: (box.top, box.left)))


def _box(corners: NDArray[Any], text: str, shape: tuple[int, ...]) -> Box:
    """Return the smallest whole rectangle around four corners, given as (column, row)."""
    left, top = (max(0, int(value)) for value in np.floor(corners.min(axis=0)))
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, (shape[1], shape[0]))
    return Box(top, left, int(bottom) - top, int(right) - left, len("".join(text.split())))


@cache
def _reader() -> Any:
    """Load the models, which takes a second; they are shared, one frame is read at a time."""
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "critical"})
