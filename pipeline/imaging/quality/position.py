"""Measures by which the quality gate tells what a frame shows: a negative, or a picture on its side, upside down or cut off.

A mirrored frame is not found: the chest is too symmetric for that, and a B-scan may come from either eye. Nor is the upper or
lower half of a chest: real radiographs of children show lungs in every extent. The rates behind the thresholds are those that
`python -m benchmarks.quality` prints.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.frames import FloatArray

UPRIGHT_CHEST = np.array(
    [
        [0.29, 0.40, 0.50, 0.62, 0.62, 0.50, 0.40, 0.29],
        [0.29, 0.50, 0.54, 0.60, 0.60, 0.54, 0.50, 0.29],
        [0.25, 0.51, 0.48, 0.61, 0.61, 0.48, 0.51, 0.25],
        [0.21, 0.49, 0.47, 0.66, 0.66, 0.47, 0.49, 0.21],
        [0.20, 0.45, 0.50, 0.69, 0.69, 0.50, 0.45, 0.20],
        [0.19, 0.42, 0.52, 0.69, 0.69, 0.52, 0.42, 0.19],
        [0.19, 0.48, 0.63, 0.72, 0.72, 0.63, 0.48, 0.19],
        [0.22, 0.60, 0.71, 0.75, 0.75, 0.71, 0.60, 0.22],
    ],
    np.float32,
)
"""Mean grey level of 600 frontal radiographs of children (`cxr-pediatric`, CC BY 4.0), made symmetric: dark beside the body, in
the lungs and above the shoulders, bright in the spine and below the diaphragm."""
ALIKE = 0.3
"""Least correlation with `UPRIGHT_CHEST`, in one position or another, of a picture that is taken for a chest at all."""
CHEST_MARGIN = 0.05
"""By how much another position has to correlate better than the upright one."""
NEGATIVE = 0.5
"""Least correlation of a frame's negative with `UPRIGHT_CHEST`, in any position, of what is taken for the negative of a chest:
997 in 1,000 negatives of real radiographs have it."""
HALF_MARGIN = 0.32
"""By how much the left or right half of `UPRIGHT_CHEST` has to correlate better than the whole. Real radiographs reach 0.31, 99
in 100 of their halves more than 0.34."""
EMPTY = 0.35
"""A chest is half empty if this part of the rows or columns, counted from one edge, is of one grey; real ones reach 0.14."""
ONE_GREY = 8 / 255
SIDEWAYS = 0.9
"""A B-scan whose grey levels change from row to row by less than this, in parts of the change from column to column, lies on
its side; real ones that do not have 1.2 and more."""
UPSIDE_DOWN = -0.1
"""A B-scan with less `steepness` is upside down; real ones that are not have 0.03 and more."""
TOUCHING = 0.35
"""A retina is cut off if at least this part of the columns is bright at the first or last row; real B-scans reach 0.32."""
SMALLEST = 32
"""A B-scan with fewer pixels on its shorter side is not judged."""
_ENDS = 3


def chest_correlations(pixels: FloatArray) -> NDArray[np.float32]:
    """Return how well a radiograph correlates with `UPRIGHT_CHEST` after 0, 1, 2 and 3 quarter turns.

    Parameters
    ----------
    pixels
        float32 array of shape (rows, columns) in [0, 1].
    """
    correlations: NDArray[np.float32] = (_coarse(pixels) * _turned_chests()).mean(axis=(1, 2))
    return correlations


def steepness(smooth: FloatArray, seen: NDArray[np.bool_]) -> float:
    """Return how much more steeply a B-scan's grey levels, followed downwards, rise than they fall.

    In one that is upright they do: the inner limiting membrane and the pigment epithelium are sharp edges from dark to bright,
    whereas the choroid fades.

    Parameters
    ----------
    smooth
        float32 array of shape (rows, columns) in [0, 1], smoothed as `CheckedFrame.smooth` is.
    seen
        Boolean array of the same shape: true in the picture.

    Returns
    -------
    float
        Sum of the cubes of all differences from row to row, as a part of the sum of their absolute values: in [-1, 1].
    """
    steps = np.diff(smooth, axis=0)[seen[1:] & seen[:-1]]
    cubes = steps * steps * steps
    return float(cubes.sum() / max(np.abs(cubes).sum(), 1e-12))


def layering(pixels: FloatArray, seen: NDArray[np.bool_]) -> float:
    """Return the mean change from row to row as a part of that from column to column, after smoothing."""
    from scipy import ndimage  # takes a third of a second to import, and few frames need it

    smooth = ndimage.uniform_filter(np.where(seen, pixels, 0), 3)
    down = np.abs(np.diff(smooth, axis=0))[seen[1:] & seen[:-1]]
    across = np.abs(np.diff(smooth, axis=1))[seen[:, 1:] & seen[:, :-1]]
    return float(down.mean() / max(across.mean(), 1e-12)) if down.size and across.size else 1.0


def bright_ends(smooth: FloatArray, seen: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the part of the columns whose first and last `_ENDS` rows that are seen are as bright as the retina.

    That is, brighter than half way from the 20th to the 98th percentile of what is seen; 0 if nothing is. The arguments are
    those of `steepness`.
    """
    columns = np.count_nonzero(seen.any(axis=0))
    if not columns:
        return 0.0, 0.0
    bright = seen & (smooth > np.percentile(smooth[seen], [20, 98]).mean())
    place = np.cumsum(seen, axis=0)
    first, last = place <= _ENDS, place > place[-1] - _ENDS
    top, bottom = (float((bright & end).any(axis=0).sum() / columns) for end in (first, last))
    return top, bottom


@cache
def _turned_chests() -> FloatArray:
    """Return `UPRIGHT_CHEST` after 0, 1, 2 and 3 quarter turns, shape (4, rows, columns)."""
    return np.stack([_standard(np.rot90(UPRIGHT_CHEST, turns)) for turns in range(4)])


@cache
def _half_chests() -> FloatArray:
    """Return the left and right half of `UPRIGHT_CHEST`, each stretched to its size."""
    side = len(UPRIGHT_CHEST)
    halves = (UPRIGHT_CHEST[:, : side // 2], UPRIGHT_CHEST[:, side // 2 :])
    whole = (Image.fromarray(np.ascontiguousarray(half)).resize((side, side), Image.Resampling.BICUBIC) for half in halves)
    return np.stack([_standard(np.asarray(half)) for half in whole])


def _coarse(pixels: FloatArray) -> FloatArray:
    side = len(UPRIGHT_CHEST)
    image = Image.fromarray(np.ascontiguousarray(pixels, np.float32))
    return _standard(np.asarray(image.resize((side, side), Image.Resampling.BOX)))


def half_chest_correlation(pixels: FloatArray) -> float:
    """Return how well a radiograph correlates with that half of `UPRIGHT_CHEST` that it resembles more."""
    return float((_coarse(pixels) * _half_chests()).mean(axis=(1, 2)).max())


def empty_part(pixels: FloatArray, one_grey: float) -> float:
    """Return the largest part of the rows or columns that, counted from an edge, are of one grey."""
    parts = []
    for lines in (pixels, pixels[::-1], pixels.T, pixels.T[::-1]):
        low, high = np.minimum.accumulate(lines.min(axis=1)), np.maximum.accumulate(lines.max(axis=1))
        plain = high - low <= one_grey
        parts.append(float(np.argmin(plain)) / len(plain) if not plain.all() else 1.0)
    return max(parts)


def _standard(pixels: FloatArray) -> FloatArray:
    standard: FloatArray = (pixels - pixels.mean()) / np.maximum(pixels.std(), np.float32(1e-6))
    return standard
