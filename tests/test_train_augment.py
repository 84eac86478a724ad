"""Random changes of training frames: reproducible for each frame, in range, and what they say they are."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.config import AugmentSection
from pipeline.errors import ConfigError
from pipeline.train.augment import Augmentation, _resample

SIZE = 32
EVERYTHING = {"rotate_degrees": 10, "translate": 0.1, "scale": 0.1, "flip_columns": True, "gamma": 0.3, "noise": 0.1}


def frames(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def augmentation(**settings: Any) -> Augmentation:
    return Augmentation(AugmentSection.model_validate(settings))


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment", "acquisition"])
def test_a_frame_draws_its_changes_from_seed_epoch_and_number_alone(policy: str) -> None:
    change, pixels, numbers = augmentation(**EVERYTHING, policy=policy), frames(), np.arange(6)
    changed = change(pixels, 5, 1, numbers)
    backwards = change(pixels.flip(0), 5, 1, numbers[::-1])
    assert torch.equal(backwards.flip(0), changed)
    assert torch.equal(change(pixels[2:4], 5, 1, numbers[2:4]), changed[2:4])
    assert not torch.equal(change(pixels, 5, 2, numbers), changed)
    assert not torch.equal(change(pixels, 6, 1, numbers), changed)
    assert (changed.shape, changed.dtype) == (pixels.shape, torch.float32)
    assert 0 <= changed.min() <= changed.max() <= 1


def test_no_augmentation_returns_the_frames_themselves() -> None:
    pixels = frames()
    assert torch.equal(augmentation()(pixels, 0, 1, np.arange(6)), pixels)
    assert torch.equal(augmentation(flip_columns=True)(pixels[:0], 0, 1, np.arange(0)), pixels[:0])


def test_about_half_of_the_frames_are_mirrored_and_no_pixel_changes() -> None:
    pixels = frames(200)
    changed = augmentation(flip_columns=True)(pixels, 0, 1, np.arange(200))
    mirrored = [torch.equal(one, frame.flip(-1)) for one, frame in zip(changed, pixels, strict=True)]
    kept = [torch.equal(one, frame) for one, frame in zip(changed, pixels, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130


def test_a_spot_moves_as_far_as_the_settings_allow() -> None:
    pixels = torch.zeros(300, 1, SIZE, SIZE)
    pixels[:, 0, 15:17, 15:17] = 1
    changed = augmentation(translate=0.25)(pixels, 0, 1, np.arange(300))[:, 0]
    weights = changed / changed.sum((1, 2), keepdim=True)
    places = torch.arange(SIZE).float()
    rows, columns = (weights.sum(2) * places).sum(1) - 15.5, (weights.sum(1) * places).sum(1) - 15.5
    for moved in (rows, columns):
        assert moved.abs().max() <= 8.01
        assert moved.max() > 7
        assert moved.min() < -7


def test_a_frame_turns_as_far_as_the_settings_allow() -> None:
    pixels = torch.zeros(300, 1, SIZE, SIZE)
    pixels[:, 0, 15:17, 28:30] = 1
    changed = augmentation(rotate_degrees=30)(pixels, 0, 1, np.arange(300))[:, 0]
    places = torch.arange(SIZE).float() - 15.5
    weights = changed / changed.sum((1, 2), keepdim=True)
    angles = torch.rad2deg(torch.atan2((weights.sum(2) * places).sum(1), (weights.sum(1) * places).sum(1)))
    assert 27 < angles.abs().max() < 30.5
    assert angles.min() < -20
    assert angles.max() > 20


def test_policies_turn_no_black_into_white() -> None:
    """A frame must stay one of its kind: dark stays darker than bright, however a policy changes it."""
    pixels = torch.full((100, 1, SIZE, SIZE), 0.2)
    pixels[:, :, 8:24, 8:24] = 0.7
    for policy in ("randaugment", "trivialaugment", "acquisition"):
        changed = augmentation(policy=policy, magnitude=1.0)(pixels, 0, 1, np.arange(100))
        assert (changed[:, 0, 13:19, 13:19].mean((1, 2)) > changed[:, 0, :3].mean((1, 2))).all(), policy
        assert (changed - pixels).abs().amax((1, 2, 3)).gt(0.01).sum() > 50, policy


def test_mixed_frames_have_the_parts_that_the_factor_says() -> None:
    pixels = torch.stack([torch.full((1, SIZE, SIZE), float(number)) for number in range(8)])
    own = torch.arange(8.0)
    for settings in ({"mixup": 1.0}, {"cutmix": 1.0}):
        change = augmentation(**settings)
        for seed in range(20):
            mixed, partner, factor = change.mix(pixels, np.random.default_rng(seed))
            assert sorted(partner) == list(range(8))
            assert 0 <= factor <= 1
            torch.testing.assert_close(mixed.mean((1, 2, 3)), factor * own + (1 - factor) * own[partner])
            if "cutmix" in settings:
                assert ((mixed == own.view(8, 1, 1, 1)) | (mixed == own[partner].view(8, 1, 1, 1))).all()


def test_both_ways_of_mixing_are_taken() -> None:
    change, pixels = augmentation(mixup=1.0, cutmix=1.0), torch.eye(8).repeat(1, SIZE // 8 * SIZE).view(8, 1, SIZE, SIZE)
    ways = {bool(((one := change.mix(pixels, np.random.default_rng(seed))[0]) % 1 == 0).all()) for seed in range(20)}
    assert ways == {True, False}
    assert one.shape == pixels.shape


def test_the_loss_of_a_mixture_is_that_of_soft_targets() -> None:
    logits, targets = torch.randn(8, 3), torch.eye(3)[torch.arange(8) % 3]
    _, partner, factor = augmentation(mixup=1.0).mix(frames(8), np.random.default_rng(3))
    soft = functional.cross_entropy(logits, factor * targets + (1 - factor) * targets[partner])
    parts = [functional.cross_entropy(logits, one.argmax(1)) for one in (targets, targets[partner])]
    torch.testing.assert_close(factor * parts[0] + (1 - factor) * parts[1], soft)


def test_transforms_of_plugins_are_applied_in_order_with_the_frames_own_random_numbers(tmp_path: Path) -> None:
    (tmp_path / "dark_corner.py").write_text(
        "from octray import register_plugin\n"
        "@register_plugin('transform', 'half')\n"
        "def half(pixels, rng):\n    return pixels / 2\n"
        "@register_plugin('transform', 'lift')\n"
        "def lift(pixels, rng):\n    return pixels + rng.uniform(0.1, 0.2)\n"
    )
    settings = AugmentSection(transforms=("half", "lift"))
    change = Augmentation(settings, [str(tmp_path / "dark_corner.py")])
    pixels, rows = frames(3), np.arange(3)
    lifted = change(pixels, 0, 1, rows) - pixels / 2
    assert torch.allclose(lifted, lifted[:, :, :1, :1].expand_as(lifted), atol=1e-6)
    assert len(set(lifted[:, 0, 0, 0].tolist())) == 3
    assert 0.1 <= lifted.min() <= lifted.max() <= 0.2
    assert torch.equal(pickle.loads(pickle.dumps(change))(pixels, 0, 1, rows), change(pixels, 0, 1, rows))  # noqa: S301
    with pytest.raises(ConfigError, match=r"^train\.augment\.transforms: no plug-in registers quarter; there are .*half"):
        Augmentation(AugmentSection(transforms=("quarter",)))


def test_frames_are_resampled_as_torch_resamples_a_batch() -> None:
    rng, pixels = np.random.default_rng(0), frames(3)
    matrices = np.tile(np.eye(3), (3, 1, 1))
    matrices[1:, :2] += rng.normal(size=(2, 2, 3)) * 0.1
    grid = functional.affine_grid(torch.from_numpy(matrices[:, :2]).float(), list(pixels.shape), align_corners=False)
    expected = functional.grid_sample(pixels, grid, align_corners=False)
    found = _resample(pixels, matrices)
    torch.testing.assert_close(found[1:], expected[1:])
    assert torch.equal(found[0], pixels[0])


def test_gamma_is_monais_and_stays_in_its_range() -> None:
    pixels = frames(40)
    changed = augmentation(gamma=0.3)(pixels, 0, 1, np.arange(40))
    darkest, brightest = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
    scaled, found = ((one - darkest) / (brightest - darkest) for one in (pixels, changed))
    exponents = (found.flatten(1).log() / scaled.flatten(1).log()).nanmedian(1).values.tolist()
    assert 0.7 <= min(exponents) < 0.8
    assert 1.2 < max(exponents) <= 1.3
    torch.testing.assert_close(found, scaled ** torch.tensor(exponents).view(-1, 1, 1, 1), atol=1e-4, rtol=1e-3)
