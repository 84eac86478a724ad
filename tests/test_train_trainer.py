"""The trainer: its steps against bare loops of torch, a killed run against one that was not, and what it does about faults."""

import json
import math
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from pipeline.config import AugmentSection, FinetuneSection
from pipeline.errors import ConfigError, InputError, TrainingError
from pipeline.model.networks import Network, create_network
from pipeline.predictions import Task
from pipeline.progress import silent
from pipeline.train.augment import Augmentation
from pipeline.train.devices import Compute
from pipeline.train.prefix import cut
from pipeline.train.tasks import Objective
from pipeline.train.trainer import FrameSet, finetune, unfreeze

SIZE = 32
CHANGES = AugmentSection(rotate_degrees=5, translate=0.05, flip_columns=True, gamma=0.1, noise=0.01)


def fitting(pixels: np.ndarray | None = None, augment: AugmentSection = CHANGES, **settings: object) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    classes = np.arange(24) % 2
    frames = rng.random((24, 1, SIZE, SIZE), dtype=np.float32) * 0.5 if pixels is None else pixels
    frames[classes == 1, :, 8:16, 8:16] += 0.4
    targets = np.eye(2)[classes]
    train, tune = (FrameSet(frames, targets, rows) for rows in (np.arange(16), np.arange(16, 24)))
    return {
        "train": train,
        "tune": tune,
        "objective": Objective(Task.MULTICLASS, "none", targets[:16]),
        "settings": FinetuneSection.model_validate({"epochs": 4, "batch_size": 4, "groups": 2, "patience": 9} | settings),
        "augmentation": Augmentation(augment),
        "seed": 0,
        "on_epoch": lambda *_: None,
        "progress": silent,
    }


def fresh_network(architecture: str = "test_resnet") -> Network:
    torch.manual_seed(3)
    return create_network(architecture, 2).eval()


def kill_after(epoch: int) -> Callable[[int, dict[str, float]], None]:
    def kill(number: int, metrics: dict[str, float]) -> None:
        if number == epoch:
            raise KeyboardInterrupt

    return kill


def stored(checkpoint: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(checkpoint, framework="pt") as file:
        return json.loads(file.metadata()["state"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


# A run that is killed

EVERYTHING = {
    "optimizer": "sgd",
    "scheduler": "cosine",
    "warmup_epochs": 1,
    "ema_decay": 0.9,
    "clip_norm": 0.5,
    "accumulate": 3,
}


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({}, {}),
        (EVERYTHING, {}),
        ({"optimizer": "rmsprop", "monitor": "tune_auroc", "ema_decay": 0.5}, {"trains_statistics": True}),
        ({"views": 2, "plateau_patience": 1, "optimizer": "adam"}, {}),
        ({"clip_norm": 1.0}, {"compute": "float16"}),
    ],
)
def test_a_killed_run_ends_with_the_same_weights_as_one_that_was_not(
    settings: dict[str, Any], more: dict[str, Any], tmp_path: Path
) -> None:
    def job(**changed: Any) -> dict[str, Any]:
        compute = {"compute": Compute("cpu", more["compute"])} if "compute" in more else {}
        return fitting(**settings) | more | compute | changed

    unbroken, killed, resumed = fresh_network(), fresh_network(), fresh_network()
    course = finetune(unbroken, **job(checkpoint=tmp_path / "a.safetensors"))
    with pytest.raises(KeyboardInterrupt):
        finetune(killed, **job(checkpoint=tmp_path / "b.safetensors", on_epoch=kill_after(2)))
    again = finetune(resumed, **job(checkpoint=tmp_path / "b.safetensors"))
    assert again.history == course.history
    assert len(course.history) == 5
    assert_equal(unbroken, resumed)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


# Its steps against bare loops


OPTIMISERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.01),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, weight_decay=0.01, momentum=0.8, nesterov=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, weight_decay=0.01, momentum=0.8),
}


def bare_epoch(
    network: Network,
    job: dict[str, Any],
    optimiser: torch.optim.Optimizer,
    batch: int,
    clip: float = 0.0,
    training: bool = False,
) -> None:
    """One epoch as one would write it in torch, on the same frames in the same order."""
    pixels, targets = (torch.from_numpy(values).float() for values in (job["train"].pixels, job["train"].targets))
    order = np.random.default_rng((0, 1)).permutation(16)
    network.train(training)
    for start in range(0, 16, batch):
        rows = np.sort(order[start : start + batch])
        optimiser.zero_grad()
        functional.cross_entropy(network(pixels[rows])[0], targets[rows]).backward()
        if clip:
            nn.utils.clip_grad_norm_([value for value in network.parameters() if value.requires_grad], clip)
        optimiser.step()


@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_steps_are_those_of_torchs_optimisers(name: str, tmp_path: Path) -> None:
    values = {"optimizer": name, "momentum": 0.8, "learning_rate": 0.01, "backbone_factor": 1.0}
    ours, bare = fresh_network(), fresh_network()
    job = fitting(augment=AugmentSection(), epochs=1, **values)
    finetune(ours, **job, checkpoint=tmp_path / "a.safetensors")
    unfreeze(bare, 2)
    bare_epoch(bare, job, OPTIMISERS[name]([value for value in bare.parameters() if value.requires_grad]), 4)
    _, tensors = stored(tmp_path / "a.safetensors")
    for key, value in bare.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(tensors[f"network/{key}"], value.detach(), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("trains_statistics", [False, True])
def test_accumulated_and_clipped_steps_are_those_of_larger_batches(trains_statistics: bool, tmp_path: Path) -> None:
    values = {"learning_rate": 0.01, "backbone_factor": 1.0, "clip_norm": 0.05, "optimizer": "sgd", "momentum": 0.8}
    batch = {"batch_size": 8} if trains_statistics else {"batch_size": 4, "accumulate": 2}
    ours, bare = fresh_network(), fresh_network()
    job = fitting(augment=AugmentSection(), epochs=1, **values, **batch)
    finetune(ours, **job, checkpoint=tmp_path / "a.safetensors", trains_statistics=trains_statistics)
    unfreeze(bare, 2)
    optimiser = OPTIMISERS["sgd"]([value for value in bare.parameters() if value.requires_grad])
    bare_epoch(bare, job, optimiser, 8, clip=0.05, training=trains_statistics)
    _, tensors = stored(tmp_path / "a.safetensors")
    expected = dict(bare.named_parameters()) | (dict(bare.named_buffers()) if trains_statistics else {})
    assert trains_statistics == any("running" in key for key in tensors)
    for key, value in expected.items():
        if f"network/{key}" in tensors:
            torch.testing.assert_close(tensors[f"network/{key}"], value.detach(), rtol=1e-3, atol=2e-4)


def test_the_average_of_the_weights_is_the_one_computed_by_hand(tmp_path: Path) -> None:
    def weights(number: int, metrics: dict[str, float]) -> None:
        course.append(stored(tmp_path / "a.safetensors")[1]["network/body.fc.bias"])

    course: list[torch.Tensor] = []
    job = fitting(epochs=3, batch_size=16, ema_decay=0.25, learning_rate=0.05) | {"on_epoch": weights}
    finetune(fresh_network(), **job, checkpoint=tmp_path / "a.safetensors")
    first, *steps = course
    average = first
    for decay, step in zip((2 / 11, 3 / 12, 0.25), steps, strict=True):
        average = decay * average + (1 - decay) * step
    torch.testing.assert_close(stored(tmp_path / "a.safetensors")[1]["average/body.fc.bias"], average)
    assert not torch.equal(average, steps[-1])


def test_the_rate_rises_and_falls_along_a_cosine(tmp_path: Path) -> None:
    job = fitting(epochs=6, batch_size=16, scheduler="cosine", warmup_epochs=2, learning_rate=0.01, layer_decay=0.5)
    course = finetune(fresh_network(), **job, checkpoint=tmp_path / "a.safetensors")
    falling = [0.005 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert [epoch["learning_rate"] for epoch in course.history[1:]] == pytest.approx([0.005, 0.01, *falling])
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=4)
    for rate in falling:
        assert optimiser.param_groups[0]["lr"] == pytest.approx(rate)
        optimiser.step()
        oracle.step()


def test_layers_learn_the_slower_the_further_they_are_from_the_head(tmp_path: Path) -> None:
    job = fitting(epochs=1, groups=3, learning_rate=0.01, backbone_factor=0.5, layer_decay=0.1)
    finetune(fresh_network(), **job, checkpoint=tmp_path / "a.safetensors")
    rates = [group["lr"] for group in stored(tmp_path / "a.safetensors")[0]["groups"]]
    assert rates == pytest.approx([0.01, 0.005, 0.0005, 0.00005])


def test_the_rate_falls_on_a_plateau(tmp_path: Path) -> None:
    job = fitting(epochs=4, learning_rate=1e-6, plateau_patience=1, plateau_factor=0.1)
    course = finetune(fresh_network(), **job, checkpoint=tmp_path / "e.safetensors")
    rates = [epoch["learning_rate"] for epoch in course.history[1:]]
    assert rates[0] == 1e-6
    assert rates[-1] < 1e-6


def test_a_constant_rate_stays(tmp_path: Path) -> None:
    job = fitting(epochs=4, learning_rate=1e-6, plateau_patience=1, scheduler="constant")
    course = finetune(fresh_network(), **job, checkpoint=tmp_path / "e.safetensors")
    assert {epoch["learning_rate"] for epoch in course.history[1:]} == {1e-6}


@pytest.mark.parametrize("monitor", ["tune_loss", "tune_auroc"])
def test_the_best_weights_are_kept_and_training_stops_early(monitor: str, tmp_path: Path) -> None:
    network = fresh_network()
    job = fitting(epochs=30, learning_rate=0.3, patience=3, monitor=monitor)
    course = finetune(network, **job, checkpoint=tmp_path / "c.safetensors")
    values = [epoch[monitor] for epoch in course.history]
    best = min(values) if monitor == "tune_loss" else max(values)
    assert (course.best_value, course.best_epoch) == (best, values.index(best))
    assert course.epoch - course.best_epoch == 3
    assert course.epoch < 30
    alone = finetune(network, **fitting(epochs=1), checkpoint=tmp_path / "d.safetensors")
    assert alone.history[0][monitor] == pytest.approx(best, rel=1e-5)


def test_only_the_last_groups_change_and_batch_statistics_stay(tmp_path: Path) -> None:
    network = fresh_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    job = fitting(groups=1, epochs=3, learning_rate=0.001, backbone_factor=1.0)
    finetune(network, **job, checkpoint=tmp_path / "d.safetensors")
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("body.layer4", "body.fc")) for name in changed)
    assert not any("running" in name for name in changed)
    assert not any(module.training for module in network.modules())


def test_with_random_weights_batch_statistics_are_trained_and_kept_with_the_best_weights(tmp_path: Path) -> None:
    network = fresh_network()
    job = fitting(epochs=3, batch_size=5)  # 16 frames: the last batch would hold one, of which there is no variance
    course = finetune(network, **job, checkpoint=tmp_path / "d.safetensors", trains_statistics=True)
    means = {name: value for name, value in network.state_dict().items() if name.endswith("running_mean")}
    assert all(value.abs().max() > 0 for value in means.values())
    state, tensors = stored(tmp_path / "d.safetensors")
    assert state["course"]["best_epoch"] == course.best_epoch
    for name, value in means.items():
        assert torch.equal(tensors[f"best/{name}"], value)


def test_dropout_is_at_work_in_trained_layers_only(tmp_path: Path) -> None:
    class Watched(nn.Dropout):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            seen[self].add(self.training)
            return super().forward(pixels)

    network = fresh_network()
    first, last = Watched(), Watched()
    seen: dict[nn.Module, set[bool]] = {first: set(), last: set()}
    network.body.layer1.add_module("drop", first)
    network.body.layer4.add_module("drop", last)
    finetune(network, **fitting(epochs=1, groups=1), checkpoint=tmp_path / "d.safetensors")
    assert seen == {first: {False}, last: {False, True}}


# Precision, workers


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bits_learn_the_same_within_their_precision(precision: str, tmp_path: Path) -> None:
    exact, reduced = fresh_network(), fresh_network()
    course = finetune(exact, **fitting(), checkpoint=tmp_path / "a.safetensors")
    other = finetune(reduced, **fitting(), checkpoint=tmp_path / "b.safetensors", compute=Compute("cpu", precision))
    losses, rough = ([epoch["train_loss"] for epoch in one.history[1:]] for one in (course, other))
    assert losses == pytest.approx(rough, rel=0.05)
    assert losses != rough
    assert {value.dtype for value in reduced.parameters()} == {torch.float32}
    assert bool(stored(tmp_path / "b.safetensors")[0]["scaler"]) == (precision == "float16")


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ConfigError, match=r"train\.device: this machine has no cuda device .* Set train\.device=auto\."):
        Compute("cuda")
    assert Compute("auto").device.type in ("cpu", "mps")


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_weights(tmp_path: Path) -> None:
    alone, helped = fresh_network(), fresh_network()
    finetune(alone, **fitting(), checkpoint=tmp_path / "a.safetensors", workers=0)
    finetune(helped, **fitting(), checkpoint=tmp_path / "b.safetensors", workers=2)
    assert_equal(alone, helped)


# The frozen layers, cached


@pytest.mark.parametrize("architecture", ["test_resnet", "vit_tiny_patch16_224", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_network_is_cut_into_frozen_and_trained_layers(architecture: str, groups: int) -> None:
    network = fresh_network(architecture)
    unfreeze(network, groups)
    first, rest = cut(network)
    size = 224 if architecture.startswith("vit") else SIZE
    pixels = torch.rand(3, 1, size, size)
    expected = network(pixels)
    between = first(pixels)
    assert not any(part.requires_grad for part in between)
    found = rest(*between)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    found[0].sum().backward()
    assert all((value.grad is not None) == value.requires_grad for value in network.parameters())


def test_cached_layers_are_computed_once_and_teach_the_same(tmp_path: Path) -> None:
    cached, plain = fresh_network(), fresh_network()
    calls = []
    cached.body.conv1[0].register_forward_hook(lambda *_: calls.append(1))
    nothing = AugmentSection()
    course = finetune(cached, **fitting(augment=nothing, views=1, groups=1), checkpoint=tmp_path / "a.safetensors")
    other = finetune(plain, **fitting(augment=nothing, groups=1), checkpoint=tmp_path / "b.safetensors")
    assert len(calls) == 1 + 4 + 2  # the shape, and batches of 4 of 16 + 8 frames
    for one, two in zip(course.history, other.history, strict=True):
        assert one == pytest.approx(two, rel=2e-3)


def test_views_differ_and_take_turns(tmp_path: Path) -> None:
    courses = [
        finetune(fresh_network(), **fitting(views=views, groups=1), checkpoint=tmp_path / f"{views}.safetensors").history
        for views in (1, 3)
    ]
    assert courses[0] != courses[1]


def test_random_weights_leave_nothing_to_cache(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained batch statistics leave no layer frozen"):
        finetune(fresh_network(), **fitting(views=2), checkpoint=tmp_path / "a.safetensors", trains_statistics=True)


# Faults


def test_a_loss_that_is_not_a_number_stops_training_with_advice(tmp_path: Path) -> None:
    pixels = np.zeros((24, 1, SIZE, SIZE), np.float32)
    pixels[5] = np.nan
    advice = r"The loss of epoch 1 is not a number\. Lower train\.finetune\.learning_rate \(now 0\.001\), or limit the gradient"
    with pytest.raises(TrainingError, match=advice):
        finetune(fresh_network(), **fitting(pixels=pixels), checkpoint=tmp_path / "f.safetensors")


def test_a_split_without_an_auroc_cannot_be_monitored_by_it(tmp_path: Path) -> None:
    job = fitting(monitor="tune_auroc")
    job["tune"] = FrameSet(job["tune"].pixels, job["tune"].targets, np.array([16, 18]))
    with pytest.raises(ConfigError, match=r"train\.finetune\.monitor: the AUROC of the tune split is not defined"):
        finetune(fresh_network(), **job, checkpoint=tmp_path / "f.safetensors")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow above `size` bytes; writing then fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_it(tmp_path: Path) -> None:
    checkpoint, network = tmp_path / "a.safetensors", fresh_network()
    with pytest.raises(KeyboardInterrupt):
        finetune(network, **fitting() | {"on_epoch": kill_after(1)}, checkpoint=checkpoint)
    before = checkpoint.read_bytes()
    with largest_file(len(before) // 2), pytest.raises(InputError, match=r"^There is no room for a\.safetensors in"):
        finetune(network, **fitting(), checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_no_room_for_the_cached_layers_is_found_before_they_are_computed(tmp_path: Path) -> None:
    with largest_file(100), pytest.raises(InputError, match=r"^There is no room for a-frozen-layers\.npy .* GB are needed and"):
        finetune(fresh_network(), **fitting(views=2), checkpoint=tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"warmup_epochs": 1}, "warmup_epochs belongs to scheduler=cosine"),
        ({"warmup_epochs": 3, "scheduler": "cosine", "epochs": 2}, "warmup_epochs must not be more than epochs"),
    ],
)
def test_a_warm_up_needs_its_schedule(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        FinetuneSection.model_validate(values)


def test_rates_of_the_mixed_run_fall_too(tmp_path: Path) -> None:
    mixing = AugmentSection(mixup=0.4, cutmix=1.0)
    course = finetune(
        fresh_network(), **fitting(augment=mixing, epochs=6, learning_rate=0.01), checkpoint=tmp_path / "m.safetensors"
    )
    losses = [epoch["tune_loss"] for epoch in course.history]
    assert min(losses[1:]) < losses[0]
    assert all(one["learning_rate"] >= two["learning_rate"] for one, two in pairwise(course.history[1:]))
