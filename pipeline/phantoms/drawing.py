"""What the synthetic chests and retinas have in common: a picture with the boxes of its lesions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipeline.frames import FloatArray


@dataclass(frozen=True, slots=True)
class Box:
    """Where a lesion lies: first row and column, number of rows and columns, in pixels of the frame."""

    label: str
    top: int
    left: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """One frame, float32 of shape (rows, columns) in [0, 1] with 1 as white, and the boxes of its lesions."""

    pixels: FloatArray
    boxes: tuple[Box, ...]


def box_around(mask: NDArray[np.bool_], label: str, factor: tuple[float, float] = (1.0, 1.0)) -> Box:
    """Return the box around the true cells of a mask, scaled by `factor` (rows, columns)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom = int(rows[0] * factor[0]), int(np.ceil((rows[-1] + 1) * factor[0]))
    left, right = int(columns[0] * factor[1]), int(np.ceil((columns[-1] + 1) * factor[1]))
    return Box(label, top, left, bottom - top, right - left)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> FloatArray:
    """Return smooth noise of mean 0 and deviation 1, float32 of `shape`; its grains are about `sigma` pixels wide."""
    cells = tuple(max(4, round(side / sigma)) for side in shape)
    coarse = ndimage.gaussian_filter(rng.standard_normal(cells, dtype=np.float32), 1)
    noise = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC), dtype=np.float32)
    return np.asarray((noise - noise.mean()) / noise.std(), dtype=np.float32)
