"""Draws synthetic frontal chest radiographs whose opacities are known; pictures only, no files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.frames import FloatArray
from pipeline.phantoms.drawing import Box, Drawing, box_around, smooth_noise

FINDING = "PNEUMONIA"
_Floats = NDArray[np.floating[Any]]
_SIDES = (-1.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Anatomy:
    """Coordinates of the body (u to the image's right, v down, the chest about 2 by 2) and what fills it, all one shape."""

    u: FloatArray
    v: FloatArray
    body: FloatArray
    lungs: FloatArray
    heart: FloatArray


def draw_chest(rng: np.random.Generator, label: str) -> Drawing:
    """Draw one chest, 512 to 1024 pixels a side, of varying position, scale, tilt and exposure.

    Parameters
    ----------
    rng
        Everything that varies comes from here.
    label
        `FINDING` adds one or two blurred opacities inside the lungs; anything else adds none.
    """
    rows = int(rng.integers(560, 901))
    columns = int(np.clip(rows * rng.uniform(0.85, 1.1), 512, 1024))
    coarse = (rows // 2, columns // 2)
    factor = (rows / coarse[0], columns / coarse[1])
    anatomy = _anatomy(rng, coarse)
    density = _density(rng, anatomy)
    boxes: list[Box] = []
    for _ in range(int(rng.integers(1, 3)) if label == FINDING else 0):
        opacity = _opacity(rng, anatomy)
        density += opacity
        boxes.append(box_around(opacity > 0.35 * opacity.max(), FINDING, factor))
    fine = Image.fromarray(_expose(rng, density)).resize((columns, rows), Image.Resampling.BICUBIC)
    pixels = np.asarray(fine, dtype=np.float32)
    grain = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(rng.uniform(0.008, 0.02))
    return Drawing(np.clip(pixels + grain * (0.4 + pixels), 0, 1, dtype=np.float32), tuple(boxes))


def _edge(distance: _Floats, softness: float) -> FloatArray:
    """Return 1 well inside (distance above 0), 0 well outside."""
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
    """Return how much air lies in the way, 0 to 1: an egg, narrow at the apex, cut from below by the dome of the diaphragm."""
    centre, width, bottom = side * rng.uniform(0.41, 0.45), rng.uniform(0.3, 0.35), rng.uniform(0.56, 0.66)
    across = (u - centre + side * 0.1 * np.clip(-v, 0, 1)) / (width * (0.88 + 0.25 * np.clip(v, -1, 0.6)))
    depth = np.sqrt(np.clip(1 - across**2 - np.abs((v + 0.1) / 0.72) ** 3.5, 0, 1))
    dome = bottom - (0.1 + 0.03 * (side < 0)) * np.clip(1 - ((u - centre + side * 0.08) / width) ** 2, -1, 1)
    return np.asarray(depth**0.7 * _edge(dome - v, 0.025), dtype=np.float32)


def _density(rng: np.random.Generator, a: _Anatomy) -> FloatArray:
    """Return how much the tissue in the way of each ray weakens it, in units of the whole chest."""
    shape = a.u.shape[0], a.u.shape[1]
    thickness = 0.62 + 0.16 * np.sqrt(np.clip(1 - a.u**2, 0, 1)) + 0.14 * _edge(a.v - 0.7, 0.15)
    shoulders = 0.12 * _edge(np.abs(a.u) - 0.72, 0.08) * _edge(-0.35 - a.v, 0.2)
    spine = _edge(0.085 - np.abs(a.u), 0.025) * (0.1 + 0.025 * np.cos(a.v * 38 + rng.uniform(0, 6)))
    mediastinum = 0.1 * _edge(0.14 - np.abs(a.u - 0.02), 0.05)
    hilum = np.exp(-(((np.abs(a.u) - 0.2) / 0.17) ** 2) - ((a.v - 0.02) / 0.24) ** 2)
    vessels = smooth_noise(rng, shape, 2.5) * 0.009 + smooth_noise(rng, shape, 6) * 0.014
    breasts = rng.uniform(0, 0.1) * np.exp(-(((np.abs(a.u) - 0.5) / 0.24) ** 2) - ((a.v - 0.42) / 0.2) ** 2)
    tissue = thickness + shoulders + spine + mediastinum + 0.1 * a.heart + breasts + _bones(rng, a)
    aerated = tissue - rng.uniform(0.42, 0.5) * a.lungs + a.lungs * (0.08 * hilum + vessels * (0.7 + hilum))
    return np.asarray(a.body * (aerated + 0.012 * smooth_noise(rng, shape, 12)), dtype=np.float32)


def _bones(rng: np.random.Generator, a: _Anatomy) -> FloatArray:
    """Return ribs (behind: falling to the side, in front: rising and fainter) and collar bones."""
    lateral = np.abs(a.u)
    cage = _edge(0.86 - np.hypot(a.u, 0.72 * (a.v + 0.02)), 0.03) * _edge(lateral - 0.08, 0.03)
    phase, spacing = rng.uniform(0, 1), rng.uniform(0.15, 0.18)
    behind = a.v - 0.2 * np.sin(lateral * 3.2) - 0.22 * lateral**2
    front = a.v + 0.55 * np.clip(lateral - 0.25, 0, 1)
    ribs = 0.06 * _stripes(behind / spacing + phase, 0.4) + 0.022 * _stripes(front / (1.25 * spacing) + phase, 0.35)
    collar = np.exp(-(((a.v + 0.66 + 0.16 * lateral + 0.05 * np.sin(lateral * 6)) / 0.032) ** 2))
    return np.asarray(cage * ribs * rng.uniform(0.8, 1.2) + 0.09 * collar * _edge(0.7 - lateral, 0.05), np.float32)


def _stripes(phase: _Floats, width: float) -> FloatArray:
    """Return bands of one a unit of phase, brighter at their rims as cortical bone is."""
    off = np.abs((phase % 1) - 0.5) * 2
    return np.asarray(_edge(width - off, 0.1) * (0.75 + 0.25 * (off / width) ** 2), dtype=np.float32)


def _opacity(rng: np.random.Generator, a: _Anatomy) -> FloatArray:
    """Return one patchy consolidation inside a lung; it hides the air behind it."""
    inside = np.flatnonzero((a.lungs > 0.6) & (a.v > -0.55))
    place = int(rng.choice(inside))
    u0, v0 = a.u.flat[place], a.v.flat[place]
    wide, high = rng.uniform(0.22, 0.34, 2)
    blob = np.exp(-(((a.u - u0) / wide) ** 2) - ((a.v - v0) / high) ** 2)
    patchy = np.clip(1 + 0.15 * smooth_noise(rng, (a.u.shape[0], a.u.shape[1]), 8), 0.3, 2)
    return np.asarray(rng.uniform(0.38, 0.5) * blob * patchy * np.clip(a.lungs * 1.6, 0, 1), dtype=np.float32)


def _expose(rng: np.random.Generator, density: FloatArray) -> FloatArray:
    """Return grey levels in [0, 1] for one exposure of the detector."""
    low, high = rng.uniform(0, 0.12), np.percentile(density, 99.5)
    grey = np.clip((density - low) / (high - low), 0, 1.1) ** rng.uniform(0.85, 1.25)
    return np.asarray(np.clip(grey * rng.uniform(0.75, 0.92) + rng.uniform(0.02, 0.07), 0, 1), dtype=np.float32)
