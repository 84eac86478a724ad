"""Draws synthetic B-scans of the macula whose drusen and cysts are known; pictures only, no files."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.frames import FloatArray
from pipeline.phantoms.drawing import Box, Drawing, box_around, smooth_noise

DRUSEN = "DRUSEN"
DME = "DME"
_SHAPES = ((256, 256), (496, 512))
# Boundaries of the layers as parts of the retina's thickness, from the inner limiting membrane (0) to the outer edge of the
# retinal pigment epithelium (1), and the brightness of the layer that begins at each: nerve fibres, ganglion cells, inner
# plexiform, inner nuclear, outer plexiform, outer nuclear, external limiting membrane, myoid, ellipsoid, outer segments,
# pigment epithelium.
_INNER = np.array([0.0, 0.12, 0.28, 0.4, 0.52, 0.6])
_OUTER = np.array([0.78, 0.8, 0.83, 0.88, 0.93])
_BRIGHTNESS = (0.06, 0.72, 0.42, 0.52, 0.27, 0.46, 0.2, 0.36, 0.24, 0.68, 0.36, 0.9)
_CHOROID = 0.42


@dataclass(frozen=True, slots=True, eq=False)
class _Retina:
    """Depth of its two borders in each column, in rows; both float32 of shape (columns,)."""

    membrane: FloatArray
    epithelium: FloatArray
    pit: FloatArray


def draw_volume(rng: np.random.Generator, label: str) -> tuple[Drawing, ...]:
    """Draw the three to five B-scans of one volume, all of one size, each with the lesions that its label asks for.

    Parameters
    ----------
    rng
        Everything that varies comes from here.
    label
        `DRUSEN` lifts the pigment epithelium by one to four bumps, `DME` swells the retina by dark cysts; anything else is
        healthy.
    """
    shape = _SHAPES[int(rng.integers(len(_SHAPES)))]
    frames = int(rng.integers(3, 6))
    posture = rng.uniform(-1, 1, 3)
    gain = rng.uniform(0.85, 1.1)
    offsets = np.linspace(-1, 1, frames)
    return tuple(_draw_frame(rng, shape, label, posture, gain, float(offset)) for offset in offsets)


def _draw_frame(
    rng: np.random.Generator, shape: tuple[int, int], label: str, posture: NDArray[np.float64], gain: float, offset: float
) -> Drawing:
    rows, columns = shape
    x = np.linspace(-1, 1, columns, dtype=np.float32)
    retina = _retina(rng, x, rows, posture, offset)
    boxes: list[Box] = []
    lift = np.zeros(columns, np.float32)
    if label == DRUSEN:
        lift, boxes = _drusen(rng, retina, rows)
    if label == DME:
        retina = _swollen(rng, x, retina, rows)
    reflectivity = _layers(rng, retina, lift, rows)
    if label == DME:
        boxes = _cysts(rng, reflectivity, retina)
    return Drawing(_speckled(rng, reflectivity, gain), tuple(boxes))


def _retina(rng: np.random.Generator, x: FloatArray, rows: int, posture: NDArray[np.float64], offset: float) -> _Retina:
    """Return a curved, tilted retina with the pit of the fovea in its middle, shallower in frames away from the centre."""
    wander = ndimage.gaussian_filter1d(rng.standard_normal(x.size), x.size / 8) * x.size**0.5 * 0.006
    epithelium = rows * (0.62 + 0.05 * posture[0] + 0.06 * posture[1] * x - 0.07 * x**2 + 0.02 * wander)
    pit = np.exp(-(((x - 0.15 * posture[2]) / 0.22) ** 2)) * np.exp(-((offset / 0.9) ** 2))
    thickness = (
        rows * rng.uniform(0.24, 0.28) * (1 - 0.12 * x**2 - 0.38 * pit + 0.06 * np.exp(-(((np.abs(x) - 0.45) / 0.2) ** 2)))
    )
    return _Retina(*(np.asarray(part, dtype=np.float32) for part in (epithelium - thickness, epithelium, pit)))


def _drusen(rng: np.random.Generator, retina: _Retina, rows: int) -> tuple[FloatArray, list[Box]]:
    """Return by how many rows the epithelium is lifted in each column, and a box around each bump."""
    columns = np.arange(retina.epithelium.size, dtype=np.float32)
    lift, boxes = np.zeros(columns.size, np.float32), []
    for slot in rng.permutation(5)[: int(rng.integers(1, 5))]:
        centre = columns.size * (0.14 + 0.18 * slot + rng.uniform(-0.03, 0.03))
        width, height = columns.size * rng.uniform(0.025, 0.05), rows * rng.uniform(0.02, 0.055)
        bump = height * np.exp(-(((columns - centre) / width) ** 2))
        lift = np.maximum(lift, bump).astype(np.float32)
        covered = np.flatnonzero(bump > 0.2 * height)
        base = retina.epithelium[covered]
        top, bottom = int((base - bump[covered]).min()), int(np.ceil(base.max()))
        boxes.append(Box(DRUSEN, top, int(covered[0]), bottom - top, int(covered.size)))
    return lift, boxes


def _swollen(rng: np.random.Generator, x: FloatArray, retina: _Retina, rows: int) -> _Retina:
    swelling = rows * rng.uniform(0.03, 0.09) * np.exp(-(((x - rng.uniform(-0.3, 0.3)) / 0.5) ** 2))
    pit = retina.pit * rng.uniform(0.2, 0.8)
    return _Retina(np.asarray(retina.membrane - swelling, dtype=np.float32), retina.epithelium, np.asarray(pit, np.float32))


def _layers(rng: np.random.Generator, retina: _Retina, lift: FloatArray, rows: int) -> FloatArray:
    """Return the mean reflectivity of every pixel, in [0, 1], without speckle."""
    z = np.arange(rows, dtype=np.float32)[:, None]
    thickness = retina.epithelium - retina.membrane
    inner = _INNER[:, None] * (1 - 0.75 * retina.pit)
    parts = np.vstack([inner, np.repeat(_OUTER[:, None], thickness.size, axis=1)])
    depths = retina.membrane + parts * thickness - lift * np.linspace(0, 1, len(parts))[:, None] ** 3
    reflectivity = np.full((rows, thickness.size), _BRIGHTNESS[0], np.float32)
    for depth, before, after in zip(depths, _BRIGHTNESS, _BRIGHTNESS[1:], strict=False):
        reflectivity += (after - before) * (z >= depth)
    below = z >= retina.epithelium - lift
    reflectivity[below & (z < retina.epithelium)] = 0.5
    under = z - retina.epithelium
    texture = 1 + 0.3 * smooth_noise(rng, (rows, thickness.size), rows / 60)
    choroid = _CHOROID * texture * np.exp(-np.clip(under, 0, None) / (0.13 * rows))
    reflectivity = np.where(under >= 0, choroid + 0.04, reflectivity)
    return np.asarray(ndimage.gaussian_filter(reflectivity, rows / 400, truncate=2.5), dtype=np.float32)


def _cysts(rng: np.random.Generator, reflectivity: FloatArray, retina: _Retina) -> list[Box]:
    """Darken two to five ellipses in the inner and outer nuclear layers, in place; return a box around each."""
    rows, columns = reflectivity.shape
    y, x = np.ogrid[:rows, :columns]
    boxes = []
    for slot in rng.permutation(6)[: int(rng.integers(2, 6))]:
        column = int(columns * (0.22 + 0.11 * slot + rng.uniform(-0.02, 0.02)))
        thickness = retina.epithelium[column] - retina.membrane[column]
        centre = retina.membrane[column] + thickness * rng.uniform(0.42, 0.66)
        high, wide = thickness * rng.uniform(0.07, 0.16), columns * rng.uniform(0.02, 0.045)
        inside = ((y - centre) / high) ** 2 + ((x - column) / wide) ** 2 < 1
        reflectivity[inside] = rng.uniform(0.05, 0.1)
        boxes.append(box_around(inside, DME))
    return boxes


def _speckled(rng: np.random.Generator, reflectivity: FloatArray, gain: float) -> FloatArray:
    """Return the B-scan as a device shows it: multiplicative speckle of four looks, vessels' shadows, a noisy dark vitreous."""
    rows, columns = reflectivity.shape
    shadows = np.ones(columns, np.float32)
    for centre in rng.uniform(0.05, 0.95, int(rng.integers(0, 4))) * columns:
        shadows -= rng.uniform(0.2, 0.45) * np.exp(-(((np.arange(columns) - centre) / (0.012 * columns)) ** 2))
    looks = 1 - rng.random((4, rows, columns), dtype=np.float32)
    speckle = -0.25 * np.log(looks[0] * looks[1] * looks[2] * looks[3])
    speckle = 0.55 * speckle + 0.45 * ndimage.uniform_filter(speckle, (1, 3))
    noisy = reflectivity * shadows * speckle * gain + 0.03 * rng.random((rows, columns), dtype=np.float32)
    return np.asarray(np.clip(noisy, 0, 1), dtype=np.float32)
