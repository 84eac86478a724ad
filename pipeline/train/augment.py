"""Random changes of training frames.

Each frame draws its own from the seed, the epoch and its number, so that it does not matter how many processes load frames.
"""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipeline.config import AugmentSection
from pipeline.errors import ConfigError
from pipeline.plugins import find_plugin, load_plugins, plugin_names

Change = Callable[[Tensor], Tensor]
_SHAPES = {"turn": math.radians(30), "shear_x": 0.3, "shear_y": 0.3, "shift_x": 0.2, "shift_y": 0.2, "zoom": 0.3}
"""Changes of geometry in a policy, and how far each one goes at full magnitude (radians, or parts of the side)."""
_TONES = ("brightness", "contrast", "gamma", "sharpness")
"""Changes of grey levels in a policy, for amounts from -1 to 1; see `_tone`."""


class Augmentation:
    """Changes batches of frames at random.

    `randaugment` (Cubuk et al. 2020, arXiv 1909.13719) and `trivialaugment` (Müller and Hutter 2021, arXiv 2103.10158) keep the
    operations that leave a grey image one of its kind: no colours, and nothing that exchanges or merges grey levels (solarise,
    posterise, equalise, invert). `acquisition` changes what differs between devices and archives: resolution, blur or edge
    enhancement, contrast and gamma, noise, and JPEG compression, each in half of the frames.

    Parameters
    ----------
    settings
        Zero leaves a change out.
    plugins
        Modules that register the transforms that `settings` names; imported again in every process that loads frames.

    Raises
    ------
    ConfigError
        If no plug-in registers a transform of that name.
    """

    def __init__(self, settings: AugmentSection, plugins: Sequence[str] = ()) -> None:
        self._settings, self._plugins = settings, tuple(plugins)
        load_plugins(plugins)
        found = {name: find_plugin("transform", name) for name in settings.transforms}
        if missing := [name for name, transform in found.items() if transform is None]:
            known = ", ".join(plugin_names("transform")) or "none"
            raise ConfigError([f"train.augment.transforms: no plug-in registers {missing[0]}; there are {known}."])
        self._transforms = [transform for transform in found.values() if transform]

    def __reduce__(self) -> tuple[type["Augmentation"], tuple[AugmentSection, tuple[str, ...]]]:
        return type(self), (self._settings, self._plugins)

    def __call__(self, pixels: Tensor, seed: int, epoch: int, rows: NDArray[np.int64]) -> Tensor:
        """Return the changed frames.

        Parameters
        ----------
        pixels
            float32 of shape (n, 1, size, size) in [0, 1]; the result is like it.
        seed, epoch, rows
            What each frame's changes are drawn from; `rows` has n numbers.
        """
        draws = [np.random.default_rng((seed, epoch, int(row))) for row in rows]
        planned = [self._plan(rng) for rng in draws]
        frames = _resample(pixels, np.stack([matrix for matrix, _ in planned])) if planned else pixels
        changed = []
        for frame, rng, (_, tones) in zip(frames, draws, planned, strict=True):
            if self._settings.flip_columns and rng.random() < 0.5:
                frame = frame.flip(-1)
            for tone in tones:
                frame = tone(frame)
            for transform in self._transforms:
                frame = torch.from_numpy(np.array(transform(frame.numpy(), rng), np.float32)).reshape(frame.shape)
            if self._settings.noise:
                frame = _with_noise(frame, rng, self._settings.noise)
            changed.append(frame)
        return torch.stack(changed).clamp_(0, 1) if changed else pixels

    def mix(self, pixels: Tensor, rng: np.random.Generator) -> tuple[Tensor, NDArray[np.int64], float]:
        """Mix each frame of a batch with another one (mixup), or paste a rectangle of another one into it (CutMix).

        The loss of the result is `factor` times that for the frames' own targets plus 1 - `factor` times that for the targets
        of the others; if both ways are configured, each batch takes one of them (Zhang et al. 2018, arXiv 1710.09412; Yun et
        al. 2019, arXiv 1905.04899).

        Returns
        -------
        tuple
            The mixed frames, which frame each was mixed with, and `factor`, 1 if nothing was mixed.
        """
        ways = [(alpha, cut) for alpha, cut in ((self._settings.mixup, False), (self._settings.cutmix, True)) if alpha]
        if not ways:
            return pixels, np.arange(len(pixels)), 1.0
        alpha, cut = ways[rng.integers(len(ways))]
        factor, middle = float(rng.beta(alpha, alpha)), rng.random(2)
        partner = rng.permutation(len(pixels))
        if not cut:
            return factor * pixels + (1 - factor) * pixels[partner], partner, factor
        size, half = pixels.shape[-1], math.sqrt(1 - factor) / 2
        (top, left), (bottom, right) = (
            np.clip(np.rint((middle + side) * size), 0, size).astype(int).tolist() for side in (-half, half)
        )
        mixed = pixels.clone()
        mixed[..., top:bottom, left:right] = pixels[partner][..., top:bottom, left:right]
        return mixed, partner, 1 - (bottom - top) * (right - left) / size**2

    @property
    def mixes(self) -> bool:
        """Whether frames are mixed with each other."""
        return bool(self._settings.mixup or self._settings.cutmix)

    def _plan(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], list[Change]]:
        """Draw the changes of a frame: where its pixels come from, as a 3 x 3 matrix, and what happens to its grey levels."""
        settings = self._settings
        turn, *shift_zoom = rng.uniform(-1, 1, 5)
        (across, down), (wide, tall) = (
            settings.translate * np.array(shift_zoom[:2]),
            1 + settings.scale * np.array(shift_zoom[2:]),
        )
        matrix = _shape(turn=math.radians(settings.rotate_degrees) * turn, shift=(across, down), zoom=(wide, tall))
        tones: list[Change] = []
        if settings.policy == "acquisition":
            tones = _acquisition(rng)
        elif settings.policy != "none":
            for name, amount in self._operations(rng):
                if name in _TONES:
                    tones.append(partial(_tone, name=name, amount=amount))
                else:
                    matrix = matrix @ _operation(name, _SHAPES[name] * amount)
        if settings.gamma:
            tones.append(partial(_tone, name="gamma", amount=math.log2(rng.uniform(1 - settings.gamma, 1 + settings.gamma))))
        return matrix, tones

    def _operations(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Draw the operations of a policy and their amounts from -1 to 1; doing nothing is one of them."""
        names = [*_SHAPES, *_TONES, ""]
        if self._settings.policy == "trivialaugment":
            drawn = [(names[rng.integers(len(names))], rng.uniform(-1, 1))]
        else:
            drawn = [
                (names[rng.integers(len(names))], self._settings.magnitude * float(rng.choice((-1, 1))))
                for _ in range(self._settings.operations)
            ]
        return [(name, amount) for name, amount in drawn if name]


@cache
def _monai() -> tuple[Any, Any]:
    """Return MONAI's transforms and layers; importing them takes seconds and says what does not concern users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai import transforms
        from monai.networks import layers
    return transforms, layers


def _apply(frame: Tensor, transform: Callable[[Tensor], Any]) -> Tensor:
    """Return a frame changed by a transform of MONAI, without the metadata that MONAI adds."""
    changed: Tensor = transform(frame)
    return changed.as_subclass(Tensor)


def _tone(frame: Tensor, name: str, amount: float) -> Tensor:
    """Return a frame with other grey levels; the amounts go from -1 to 1."""
    transforms, _ = _monai()
    if name == "brightness":
        return _apply(frame, transforms.ScaleIntensity(minv=None, maxv=None, factor=0.4 * amount))
    if name == "contrast":
        return _apply(frame, transforms.ScaleIntensityFixedMean(factor=0.5 * amount))
    if name == "gamma":
        return _apply(frame, transforms.AdjustContrast(gamma=2**amount))
    if amount < 0:
        return _apply(frame, transforms.GaussianSmooth(sigma=-1.5 * amount))
    return _apply(frame, transforms.GaussianSharpen(sigma1=0.5, sigma2=1.0, alpha=2 * amount))


def _shape(
    turn: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    zoom: tuple[float, float] = (1.0, 1.0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.float64]:
    """Return the matrix from places in the changed frame to places in the original; x and y go from -1 to 1."""
    cos, sin = math.cos(turn), math.sin(turn)
    turned = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    sheared = np.array([[1, shear[0], 0], [shear[1], 1, 0], [0, 0, 1]])
    moved = np.array([[1 / zoom[0], 0, -2 * shift[0]], [0, 1 / zoom[1], -2 * shift[1]], [0, 0, 1]])
    return np.asarray(turned @ sheared @ moved, np.float64)


def _operation(name: str, amount: float) -> NDArray[np.float64]:
    if name == "turn":
        return _shape(turn=amount)
    if name == "zoom":
        return _shape(zoom=(1 + amount, 1 + amount))
    pair = (amount, 0.0) if name.endswith("x") else (0.0, amount)
    return _shape(shear=pair) if name.startswith("shear") else _shape(shift=pair)


def _resample(pixels: Tensor, matrices: NDArray[np.float64]) -> Tensor:
    """Return frames seen through their matrices, black outside; a frame with the identity keeps its pixels."""
    moved = np.flatnonzero((matrices != np.eye(3)).any((1, 2)))
    if not moved.size:
        return pixels
    some = pixels[moved]
    _, layers = _monai()
    resample = layers.AffineTransform(normalized=True, align_corners=False, reverse_indexing=False)  # bilinear, black outside
    return pixels.index_copy(0, torch.from_numpy(moved), resample(some, torch.from_numpy(matrices[moved]).float()))


def _acquisition(rng: np.random.Generator) -> list[Change]:
    """Draw another device: each change with a probability of one half, in the order in which an image meets them."""
    changes: list[Change] = []
    if rng.random() < 0.5:
        changes.append(partial(_coarser, part=rng.uniform(0.35, 1)))
    for name, reach in (("sharpness", 1.0), ("contrast", 0.8), ("gamma", 0.7)):
        if rng.random() < 0.5:
            changes.append(partial(_tone, name=name, amount=rng.uniform(-reach, reach)))
    if rng.random() < 0.5:
        changes.append(partial(_with_noise, rng=rng, deviation=rng.uniform(0, 0.03)))
    if rng.random() < 0.5:
        changes.append(partial(_compressed, quality=int(rng.integers(30, 96))))
    return changes


def _coarser(frame: Tensor, part: float) -> Tensor:
    """Return a frame that was stored with a part of its rows and columns."""
    size = frame.shape[-1]
    small = functional.interpolate(frame[None], size=[round(size * part)] * 2, mode="bilinear", antialias=True)
    return functional.interpolate(small, size=[size, size], mode="bilinear", align_corners=False)[0]


def _with_noise(frame: Tensor, rng: np.random.Generator, deviation: float) -> Tensor:
    return (frame + deviation * torch.from_numpy(rng.standard_normal(frame.shape, np.float32))).clamp(0, 1)


def _compressed(frame: Tensor, quality: int) -> Tensor:
    """Return a frame as JPEG of this quality shows it."""
    packed = io.BytesIO()
    Image.fromarray((frame[0].clamp(0, 1) * 255).round().byte().numpy()).save(packed, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(packed), np.float32) / 255)[None]
