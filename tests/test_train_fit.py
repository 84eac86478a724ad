"""Fitting: the head against scikit-learn, and a killed run against one that was not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pipeline.config import AugmentSection, FinetuneSection, HeadSection
from pipeline.errors import TrainingError
from pipeline.model.networks import Network, create_network
from pipeline.predictions import Task
from pipeline.progress import silent
from pipeline.train.finetune import Augmentation, FrameSet, finetune
from pipeline.train.head import fit_head
from pipeline.train.tasks import Objective

SIZE = 32


def one_hot(classes: np.ndarray, labels: int) -> np.ndarray:
    return np.eye(labels)[classes]


def examples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, count)
    features = rng.normal(size=(count, 8)) * 3 + 10 + one_hot(classes, 8) * 4
    return features, one_hot(classes, 3)


def test_the_head_is_a_balanced_logistic_regression() -> None:
    train, tune = examples(300, 0), examples(100, 1)
    decay = 0.01
    head = fit_head(train, tune, Objective(Task.MULTICLASS, "class_weights", train[1]), HeadSection(weight_decays=(decay,)))
    center, scale = train[0].mean(0), train[0].std(0)
    oracle = LogisticRegression(C=1 / (decay * 300), class_weight="balanced", tol=1e-8, max_iter=5000)
    oracle.fit((train[0] - center) / scale, train[1].argmax(1))
    expected = oracle.predict_proba((tune[0] - center) / scale)
    logits = tune[0] @ head.weight.T + head.bias
    found = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_weight_decay_with_the_lowest_tune_loss_is_taken() -> None:
    train, tune = examples(60, 0), examples(200, 1)
    objective = Objective(Task.MULTICLASS, "none", train[1])
    decays = (10.0, 0.1, 1e-6)
    alone = [fit_head(train, tune, objective, HeadSection(weight_decays=(decay,))) for decay in decays]
    chosen = fit_head(train, tune, objective, HeadSection(weight_decays=decays))
    assert chosen.tune_loss == min(head.tune_loss for head in alone)


def test_features_that_are_not_numbers_stop_the_head() -> None:
    broken = examples(20, 0)
    broken[0][3, 3] = np.inf
    with pytest.raises(TrainingError, match="loss of the linear head is not a number"), np.errstate(invalid="ignore"):
        fit_head(broken, examples(20, 1), Objective(Task.MULTICLASS, "none", broken[1]), HeadSection())


def fitting(seed: int = 0, pixels: np.ndarray | None = None, **settings: object) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    classes = np.arange(24) % 2
    frames = rng.random((24, 1, SIZE, SIZE), dtype=np.float32) * 0.5 if pixels is None else pixels
    frames[classes == 1, :, 8:16, 8:16] += 0.4
    targets = one_hot(classes, 2)
    values = {"epochs": 4, "batch_size": 4, "groups": 2, "patience": 9} | settings
    augmentation = Augmentation(
        AugmentSection(rotate_degrees=5, translate=0.05, flip_columns=True, gamma=0.1, noise=0.01), SIZE
    )
    train, tune = (FrameSet(frames, targets, rows) for rows in (np.arange(16), np.arange(16, 24)))
    return {
        "train": train,
        "tune": tune,
        "objective": Objective(Task.MULTICLASS, "none", targets),
        "settings": FinetuneSection.model_validate(values),
        "augmentation": augmentation,
        "seed": seed,
        "on_epoch": lambda *_: None,
        "progress": silent,
    }


def fresh_network() -> Network:
    torch.manual_seed(3)
    return create_network("test_resnet", 2).eval()


def test_a_killed_run_ends_with_the_same_weights_as_one_that_was_not(tmp_path: Path) -> None:
    unbroken, killed, resumed = fresh_network(), fresh_network(), fresh_network()
    course = finetune(unbroken, **fitting(), checkpoint=tmp_path / "a.safetensors")

    def kill(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(killed, **fitting() | {"on_epoch": kill}, checkpoint=tmp_path / "b.safetensors")
    again = finetune(resumed, **fitting(), checkpoint=tmp_path / "b.safetensors")
    assert again.history == course.history
    assert len(course.history) == 5
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_best_weights_are_kept_and_training_stops_early(tmp_path: Path) -> None:
    network = fresh_network()
    job = fitting(epochs=30, learning_rate=0.3, patience=3)
    course = finetune(network, **job, checkpoint=tmp_path / "c.safetensors")
    losses = [epoch["tune_loss"] for epoch in course.history]
    assert course.best_loss == min(losses)
    assert course.best_epoch == int(np.argmin(losses))
    assert course.epoch - course.best_epoch <= 3
    assert course.epoch < 30


def test_only_the_last_groups_change_and_batch_statistics_stay(tmp_path: Path) -> None:
    network = fresh_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    job = fitting(groups=1, epochs=3, learning_rate=0.001, backbone_factor=1.0)
    finetune(network, **job, checkpoint=tmp_path / "d.safetensors")
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("body.layer4", "body.fc")) for name in changed)
    assert not any("running" in name for name in changed)


def test_the_rate_falls_on_a_plateau(tmp_path: Path) -> None:
    job = fitting(epochs=4, learning_rate=1e-6, plateau_patience=1, plateau_factor=0.1)
    course = finetune(fresh_network(), **job, checkpoint=tmp_path / "e.safetensors")
    rates = [epoch["learning_rate"] for epoch in course.history[1:]]
    assert rates[0] == 1e-6
    assert rates[-1] < 1e-6


def test_a_loss_that_is_not_a_number_stops_training_with_advice(tmp_path: Path) -> None:
    pixels = np.zeros((24, 1, SIZE, SIZE), np.float32)
    pixels[5] = np.nan
    with pytest.raises(TrainingError, match=r"The loss of epoch 1 is not a number. Lower train.finetune.learning_rate"):
        finetune(fresh_network(), **fitting(pixels=pixels), checkpoint=tmp_path / "f.safetensors")


def test_augmentation_repeats_itself_for_a_seed_and_stays_in_range() -> None:
    change = Augmentation(
        AugmentSection(rotate_degrees=10, translate=0.1, scale=0.1, flip_columns=True, gamma=0.3, noise=0.1), SIZE
    )
    pixels = torch.rand(3, 1, SIZE, SIZE)
    change.seed(5)
    first = change(pixels)
    change.seed(5)
    assert torch.equal(change(pixels), first)
    assert not torch.equal(change(pixels), first)
    assert first.shape == pixels.shape
    assert 0 <= first.min() <= first.max() <= 1


def test_no_augmentation_returns_the_frames_themselves() -> None:
    pixels = torch.rand(2, 1, SIZE, SIZE)
    assert torch.equal(Augmentation(AugmentSection(), SIZE)(pixels), pixels)
