"""Draws synthetic chest radiographs and retinal B-scans with known lesions: pictures only, no files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipeline.frames import FloatArray

PNEUMONIA = "PNEUMONIA"
DRUSEN = "DRUSEN"
DME = "DME"


@dataclass(frozen=True, slots=True)
class LesionBox:
    """The box around a lesion: first row and column, number of rows and columns, in pixels of the frame."""

    label: str
    top: int
    left: int
    rows: int
    columns: int


Drawing = tuple[FloatArray, list[LesionBox]]
"""One frame, float32 of shape (rows, columns) in [0, 1] with 1 as white, and the boxes of its lesions."""


def _box_around(mask: NDArray[np.bool_], label: str, factor: tuple[float, float] = (1.0, 1.0)) -> LesionBox:
    """Return the box around the true pixels of a mask, scaled by `factor` (rows, columns)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom = int(rows[0] * factor[0]), int(np.ceil((rows[-1] + 1) * factor[0]))
    left, right = int(columns[0] * factor[1]), int(np.ceil((columns[-1] + 1) * factor[1]))
    return LesionBox(label, top, left, bottom - top, right - left)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> FloatArray:
    """Return smooth noise of mean 0 and deviation 1, float32 of `shape`; its grains are about `sigma` pixels wide."""
    cells = tuple(max(4, round(side / sigma)) for side in shape)
    coarse = ndimage.gaussian_filter(rng.standard_normal(cells, dtype=np.float32), 1)
    noise = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC), dtype=np.float32)
    return np.asarray((noise - noise.mean()) / noise.std(), dtype=np.float32)


# Chest radiographs

_Floats = NDArray[np.floating[Any]]
_SIDES = (-1.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Anatomy:
    """Coordinates of the body (u to the image's right, v down, the chest about 2 by 2) and its parts, all of one shape."""

    u: FloatArray
    v: FloatArray
    body: FloatArray
    lungs: FloatArray
    heart: FloatArray


def draw_chest(rng: np.random.Generator, label: str) -> Drawing:
    """Draw one frontal chest radiograph, 512 to 1024 pixels a side, with random position, scale, tilt and exposure.

    Parameters
    ----------
    rng
        The source of everything random.
    label
        `PNEUMONIA` adds one or two blurred opacities inside the lungs; any other label adds none.
    """
    rows = int(rng.integers(560, 901))
    columns = int(np.clip(rows * rng.uniform(0.85, 1.1), 512, 1024))
    coarse = (rows // 2, columns // 2)
    factor = (rows / coarse[0], columns / coarse[1])
    anatomy = _anatomy(rng, coarse)
    density = _density(rng, anatomy)
    boxes: list[LesionBox] = []
    for _ in range(int(rng.integers(1, 3)) if label == PNEUMONIA else 0):
        opacity = _opacity(rng, anatomy)
        density += opacity
        boxes.append(_box_around(opacity > 0.35 * opacity.max(), PNEUMONIA, factor))
    fine = Image.fromarray(_expose(rng, density)).resize((columns, rows), Image.Resampling.BICUBIC)
    pixels = np.asarray(fine, dtype=np.float32)
    grain = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(rng.uniform(0.008, 0.02))
    return np.clip(pixels + grain * (0.4 + pixels), 0, 1, dtype=np.float32), boxes


def _edge(distance: _Floats, softness: float) -> FloatArray:
    """Return 1 well inside (distance above 0) and 0 well outside."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / softness), dtype=np.float32)


def _anatomy(rng: np.random.Generator, shape: tuple[int, int]) -> _Anatomy:
    rows, columns = shape
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j].astype(np.float32)
    scale, tilt = rng.uniform(1.12, 1.34), np.deg2rad(rng.uniform(-3, 3))
    x, y = (x - rng.uniform(-0.07, 0.07)) / scale, (y - rng.uniform(-0.02, 0.14)) / scale
    u = np.asarray(x * np.cos(tilt) + y * np.sin(tilt), dtype=np.float32)
    v = np.asarray(y * np.cos(tilt) - x * np.sin(tilt), dtype=np.float32)
    width = 0.38 + 0.62 * _edge(v + 0.82, 0.16)
    heart = _heart(rng, u, v)
    lungs = sum((_lung(rng, u, v, side) for side in _SIDES), np.zeros(shape, np.float32))
    lungs *= 1 - 0.9 * _edge(0.13 - np.abs(u), 0.05)
    return _Anatomy(u, v, _edge(width - np.abs(u), 0.03), np.asarray(lungs * (1 - 0.8 * heart), np.float32), heart)


def _heart(rng: np.random.Generator, u: FloatArray, v: FloatArray) -> FloatArray:
    size = rng.uniform(0.27, 0.35)
    turned = (u - 0.13) * 0.9 + (v - 0.27) * 0.43, (v - 0.27) * 0.9 - (u - 0.13) * 0.43
    return _edge(1 - np.hypot(turned[0] / size, turned[1] / (0.85 * size)), 0.12)


def _lung(rng: np.random.Generator, u: FloatArray, v: FloatArray, side: float) -> FloatArray:
    """Return how much air each ray crosses, 0 to 1: an egg, narrow at the apex, cut off by the dome of the diaphragm."""
    centre, width, bottom = side * rng.uniform(0.41, 0.45), rng.uniform(0.3, 0.35), rng.uniform(0.56, 0.66)
    across = (u - centre + side * 0.1 * np.clip(-v, 0, 1)) / (width * (0.88 + 0.25 * np.clip(v, -1, 0.6)))
    depth = np.sqrt(np.clip(1 - across**2 - np.abs((v + 0.1) / 0.72) ** 3.5, 0, 1))
    dome = bottom - (0.1 + 0.03 * (side < 0)) * np.clip(1 - ((u - centre + side * 0.08) / width) ** 2, -1, 1)
    return np.asarray(depth**0.7 * _edge(dome - v, 0.025), dtype=np.float32)


def _density(rng: np.random.Generator, a: _Anatomy) -> FloatArray:
    """Return how much the tissue weakens each ray, in units of the whole chest."""
    shape = a.u.shape[0], a.u.shape[1]
    thickness = 0.62 + 0.16 * np.sqrt(np.clip(1 - a.u**2, 0, 1)) + 0.14 * _edge(a.v - 0.7, 0.15)
    shoulders = 0.12 * _edge(np.abs(a.u) - 0.72, 0.08) * _edge(-0.35 - a.v, 0.2)
    spine = _edge(0.085 - np.abs(a.u), 0.025) * (0.1 + 0.025 * np.cos(a.v * 38 + rng.uniform(0, 6)))
    mediastinum = 0.1 * _edge(0.14 - np.abs(a.u - 0.02), 0.05)
    hilum = np.exp(-(((np.abs(a.u) - 0.2) / 0.17) ** 2) - ((a.v - 0.02) / 0.24) ** 2)
    vessels = _smooth_noise(rng, shape, 2.5) * 0.009 + _smooth_noise(rng, shape, 6) * 0.014
    breasts = rng.uniform(0, 0.1) * np.exp(-(((np.abs(a.u) - 0.5) / 0.24) ** 2) - ((a.v - 0.42) / 0.2) ** 2)
    tissue = thickness + shoulders + spine + mediastinum + 0.1 * a.heart + breasts + _bones(rng, a)
    aerated = tissue - rng.uniform(0.42, 0.5) * a.lungs + a.lungs * (0.08 * hilum + vessels * (0.7 + hilum))
    return np.asarray(a.body * (aerated + 0.012 * _smooth_noise(rng, shape, 12)), dtype=np.float32)


def _bones(rng: np.random.Generator, a: _Anatomy) -> FloatArray:
    """Return ribs (posterior ones fall to the side, anterior ones rise and are fainter) and collar bones."""
    lateral = np.abs(a.u)
    cage = _edge(0.86 - np.hypot(a.u, 0.72 * (a.v + 0.02)), 0.03) * _edge(lateral - 0.08, 0.03)
    phase, spacing = rng.uniform(0, 1), rng.uniform(0.15, 0.18)
    behind = a.v - 0.2 * np.sin(lateral * 3.2) - 0.22 * lateral**2
    front = a.v + 0.55 * np.clip(lateral - 0.25, 0, 1)
    ribs = 0.06 * _stripes(behind / spacing + phase, 0.4) + 0.022 * _stripes(front / (1.25 * spacing) + phase, 0.35)
    collar = np.exp(-(((a.v + 0.66 + 0.16 * lateral + 0.05 * np.sin(lateral * 6)) / 0.032) ** 2))
    return np.asarray(cage * ribs * rng.uniform(0.8, 1.2) + 0.09 * collar * _edge(0.7 - lateral, 0.05), np.float32)


def _stripes(phase: _Floats, width: float) -> FloatArray:
    """Return one band per unit of phase, brighter at its rims like cortical bone."""
    off = np.abs((phase % 1) - 0.5) * 2
    return np.asarray(_edge(width - off, 0.1) * (0.75 + 0.25 * (off / width) ** 2), dtype=np.float32)


def _opacity(rng: np.random.Generator, a: _Anatomy) -> FloatArray:
    """Return one patchy consolidation inside a lung; it hides the air behind it."""
    inside = np.flatnonzero((a.lungs > 0.6) & (a.v > -0.55))
    place = int(rng.choice(inside))
    u0, v0 = a.u.flat[place], a.v.flat[place]
    wide, high = rng.uniform(0.22, 0.34, 2)
    blob = np.exp(-(((a.u - u0) / wide) ** 2) - ((a.v - v0) / high) ** 2)
    patchy = np.clip(1 + 0.15 * _smooth_noise(rng, (a.u.shape[0], a.u.shape[1]), 8), 0.3, 2)
    return np.asarray(rng.uniform(0.38, 0.5) * blob * patchy * np.clip(a.lungs * 1.6, 0, 1), dtype=np.float32)


def _expose(rng: np.random.Generator, density: FloatArray) -> FloatArray:
    """Return grey levels in [0, 1] for one exposure of the detector."""
    low, high = rng.uniform(0, 0.12), np.percentile(density, 99.5)
    grey = np.clip((density - low) / (high - low), 0, 1.1) ** rng.uniform(0.85, 1.25)
    return np.asarray(np.clip(grey * rng.uniform(0.75, 0.92) + rng.uniform(0.02, 0.07), 0, 1), dtype=np.float32)


# B-scans of the macula

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
    """Depths of the two borders in each column, in rows, and the depth of the fovea; float32 of shape (columns,)."""

    membrane: FloatArray
    epithelium: FloatArray
    pit: FloatArray


def draw_volume(rng: np.random.Generator, label: str) -> tuple[Drawing, ...]:
    """Draw the three to five B-scans of one volume, all of one size, each with the lesions of the label.

    Parameters
    ----------
    rng
        The source of everything random.
    label
        `DRUSEN` lifts the pigment epithelium with one to four bumps, `DME` swells the retina with dark cysts; anything else is
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
    boxes: list[LesionBox] = []
    lift = np.zeros(columns, np.float32)
    if label == DRUSEN:
        lift, boxes = _drusen(rng, retina, rows)
    if label == DME:
        retina = _swollen(rng, x, retina, rows)
    reflectivity = _layers(rng, retina, lift, rows)
    if label == DME:
        boxes = _cysts(rng, reflectivity, retina)
    return _speckled(rng, reflectivity, gain), boxes


def _retina(rng: np.random.Generator, x: FloatArray, rows: int, posture: NDArray[np.float64], offset: float) -> _Retina:
    """Return a curved, tilted retina with the fovea in its middle, shallower in frames away from the centre."""
    wander = ndimage.gaussian_filter1d(rng.standard_normal(x.size), x.size / 8) * x.size**0.5 * 0.006
    epithelium = rows * (0.62 + 0.05 * posture[0] + 0.06 * posture[1] * x - 0.07 * x**2 + 0.02 * wander)
    pit = np.exp(-(((x - 0.15 * posture[2]) / 0.22) ** 2)) * np.exp(-((offset / 0.9) ** 2))
    thickness = (
        rows * rng.uniform(0.24, 0.28) * (1 - 0.12 * x**2 - 0.38 * pit + 0.06 * np.exp(-(((np.abs(x) - 0.45) / 0.2) ** 2)))
    )
    return _Retina(*(np.asarray(part, dtype=np.float32) for part in (epithelium - thickness, epithelium, pit)))


def _drusen(rng: np.random.Generator, retina: _Retina, rows: int) -> tuple[FloatArray, list[LesionBox]]:
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
        boxes.append(LesionBox(DRUSEN, top, int(covered[0]), bottom - top, int(covered.size)))
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
    texture = 1 + 0.3 * _smooth_noise(rng, (rows, thickness.size), rows / 60)
    choroid = _CHOROID * texture * np.exp(-np.clip(under, 0, None) / (0.13 * rows))
    reflectivity = np.where(under >= 0, choroid + 0.04, reflectivity)
    return np.asarray(ndimage.gaussian_filter(reflectivity, rows / 400, truncate=2.5), dtype=np.float32)


def _cysts(rng: np.random.Generator, reflectivity: FloatArray, retina: _Retina) -> list[LesionBox]:
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
        boxes.append(_box_around(inside, DME))
    return boxes


def _speckled(rng: np.random.Generator, reflectivity: FloatArray, gain: float) -> FloatArray:
    """Return the B-scan with a device's noise: multiplicative speckle of four looks, vessel shadows, a noisy vitreous."""
    rows, columns = reflectivity.shape
    shadows = np.ones(columns, np.float32)
    for centre in rng.uniform(0.05, 0.95, int(rng.integers(0, 4))) * columns:
        shadows -= rng.uniform(0.2, 0.45) * np.exp(-(((np.arange(columns) - centre) / (0.012 * columns)) ** 2))
    looks = 1 - rng.random((4, rows, columns), dtype=np.float32)
    speckle = -0.25 * np.log(looks[0] * looks[1] * looks[2] * looks[3])
    speckle = 0.55 * speckle + 0.45 * ndimage.uniform_filter(speckle, (1, 3))
    noisy = reflectivity * shadows * speckle * gain + 0.03 * rng.random((rows, columns), dtype=np.float32)
    return np.asarray(np.clip(noisy, 0, 1), dtype=np.float32)
