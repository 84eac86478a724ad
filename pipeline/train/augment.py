"""Random changes of training frames, by MONAI."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from pipeline.config import AugmentSection


class Augmentation:
    """Changes batches at random, and in the same way again for the same seed.

    Parameters
    ----------
    settings
        Zero leaves a change out.
    size
        Side of the frames in pixels.
    """

    def __init__(self, settings: AugmentSection, size: int) -> None:
        self._change = _compose(settings, size)

    def seed(self, seed: int) -> None:
        """Start the random numbers anew; called at every epoch, so that a resumed run sees the same changes."""
        self._change.set_random_state(seed=seed)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the changed frames; `pixels` is float32 of shape (n, 1, size, size) in [0, 1], and so is what comes back."""
        changed = [torch.as_tensor(self._change(frame)).float() for frame in pixels]
        return torch.stack([getattr(frame, "as_tensor", lambda frame=frame: frame)() for frame in changed]).clamp_(0, 1)


def _compose(settings: AugmentSection, size: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.transforms import Compose, RandAdjustContrast, RandAffine, RandFlip, RandGaussianNoise

    changes: list[Any] = []
    if settings.rotate_degrees or settings.translate or settings.scale:
        shift = settings.translate * size
        changes.append(
            RandAffine(
                prob=1.0,
                rotate_range=math.radians(settings.rotate_degrees),
                translate_range=(shift, shift),
                scale_range=(settings.scale, settings.scale),
                mode="bilinear",
                padding_mode="zeros",
            )
        )
    if settings.flip_columns:
        changes.append(RandFlip(prob=0.5, spatial_axis=1))
    if settings.gamma:
        changes.append(RandAdjustContrast(prob=1.0, gamma=(1 - settings.gamma, 1 + settings.gamma)))
    if settings.noise:
        changes.append(RandGaussianNoise(prob=1.0, std=settings.noise))
    return Compose(changes)
