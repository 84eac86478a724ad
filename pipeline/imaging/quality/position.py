"""Checks of the quality gate on how a frame lies: on its side, upside down, or with the retina cut off.

A mirrored frame is not found: the chest is too symmetric for that, and a B-scan may come from either eye. Whether lungs are cut
off is not judged: real radiographs of children show them in every extent.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.imaging.filters import ndimage
from pipeline.imaging.quality.look import Look, Subject
from pipeline.records import FloatArray

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
"""Least correlation with `UPRIGHT_CHEST`, in one position or another, of what is taken for a chest at all."""
CHEST_MARGIN = 0.05
"""By how much another position has to correlate better than the upright one."""
SIDEWAYS = 0.9
"""A B-scan whose grey levels change from row to row by less than this, in parts of the change from column to column, lies on
its side; real ones that do not have 1.2 and more."""
UPSIDE_DOWN = -0.1
"""A B-scan with less `steepness` is upside down; real ones that are not have 0.03 and more."""
TOUCHING = 0.35
"""A retina is cut off where at least this part of the columns is bright at the first or last row; real B-scans reach 0.32."""
SMALLEST = 32
"""A B-scan with fewer pixels on its shorter side is not judged."""
_ENDS = 3


def rotated(look: Look) -> str:
    """On its side or upside down, for chest radiographs and B-scans; other frames are not judged."""
    turns = {Subject.CHEST: _chest_turns, Subject.B_SCAN: _b_scan_turns}.get(look.subject)
    found = turns(look) if turns else 0
    if not found:
        return ""
    kind = "radiograph" if look.subject is Subject.CHEST else "B-scan"
    return f"The {kind} seems to {'be upside down' if found == 2 else 'lie on its side'}. Turn it, and export it again."


def cropped(look: Look) -> str:
    """The retina runs out of a B-scan at its first or last row; other frames are not judged."""
    if look.subject is not Subject.B_SCAN or not _is_cut(look):
        return ""
    return "The retina is cut off at the upper or lower edge of the B-scan. Export the whole frame, or take it again."


def chest_correlations(pixels: FloatArray) -> NDArray[np.float32]:
    """Return how well a radiograph correlates with `UPRIGHT_CHEST` after 0, 1, 2 and 3 quarter turns.

    Parameters
    ----------
    pixels
        float32 array of shape (rows, columns) in [0, 1].
    """
    side = len(UPRIGHT_CHEST)
    image = Image.fromarray(np.ascontiguousarray(pixels, np.float32))
    coarse = _standard(np.asarray(image.resize((side, side), Image.Resampling.BOX)))
    correlations: NDArray[np.float32] = (coarse * _turned_chests()).mean(axis=(1, 2))
    return correlations


def steepness(smooth: FloatArray, seen: NDArray[np.bool_]) -> float:
    """Say whether a B-scan's grey levels, followed downwards, rise more steeply than they fall.

    They do in one that is upright: the inner limiting membrane and the pigment epithelium are sharp edges from dark to bright,
    whereas the choroid fades.

    Parameters
    ----------
    smooth
        float32 array of shape (rows, columns) in [0, 1], smoothed as `Look.smooth` is.
    seen
        Boolean array of the same shape: what is looked at.

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
    smooth = ndimage().uniform_filter(np.where(seen, pixels, 0), 3)
    down = np.abs(np.diff(smooth, axis=0))[seen[1:] & seen[:-1]]
    across = np.abs(np.diff(smooth, axis=1))[seen[:, 1:] & seen[:, :-1]]
    return float(down.mean() / max(across.mean(), 1e-12)) if down.size and across.size else 1.0


def bright_ends(smooth: FloatArray, seen: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the part of the columns whose first and last `_ENDS` rows that are seen are as bright as the retina.

    That is, brighter than half way from the 20th to the 98th percentile of what is seen; 0 where nothing is. The arguments are
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


def _chest_turns(look: Look) -> int:
    correlations = chest_correlations(look.small)
    best = int(correlations.argmax())
    clear = correlations[best] >= ALIKE and correlations[best] - correlations[0] > CHEST_MARGIN
    return best if clear else 0


def _b_scan_turns(look: Look) -> int:
    """Say how it lies; half a retina cannot tell what is up."""
    if min(look.small.shape) < SMALLEST:
        return 0
    if layering(look.small, look.seen) < SIDEWAYS:
        return 1
    return 2 if steepness(look.smooth, look.seen) < UPSIDE_DOWN and not _is_cut(look) else 0


def _is_cut(look: Look) -> bool:
    return min(look.small.shape) >= SMALLEST and max(bright_ends(look.smooth, look.seen)) >= TOUCHING


def _standard(pixels: FloatArray) -> FloatArray:
    standard: FloatArray = (pixels - pixels.mean()) / np.maximum(pixels.std(), np.float32(1e-6))
    return standard
