"""Fine-tuning: trains the last groups of layers together with the head, and keeps the weights with the lowest tune loss.

Starting from a head that is already fitted changes the features less than starting from a random one, and holds better under
shift (Kumar et al., "Fine-tuning can distort pretrained features", ICLR 2022). Batch normalisation keeps the statistics of
the pretrained weights: small medical sets estimate them badly.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pipeline.atomic import replacing
from pipeline.config import AugmentSection, FinetuneSection
from pipeline.errors import TrainingError
from pipeline.evaluate.calibration import probabilities
from pipeline.evaluate.metrics import auroc, curve
from pipeline.frames import FloatArray
from pipeline.model.networks import Network
from pipeline.predictions import Activation
from pipeline.progress import Progress
from pipeline.train.head import count_terms, weighted_loss


@dataclass(slots=True)
class Course:
    """How far training has come.

    Parameters
    ----------
    epoch
        Number of epochs that are finished.
    best_epoch
        The one with the lowest tune loss; 0 is the linear head alone.
    best_loss
        Its tune loss.
    history
        One entry an epoch: names and values of its metrics.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(slots=True)
class State:
    """Everything that changes while a network is fine-tuned."""

    network: Network
    optimiser: AdamW
    scheduler: ReduceLROnPlateau
    best: dict[str, Tensor]
    course: Course


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


TEMPERATURES = np.geomspace(0.25, 8, 31).tolist()
"""Tried for the tune loss, about 12 % apart."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameSet:
    """Some of the frames of an index, on the network's grid.

    Parameters
    ----------
    pixels
        float32 of shape (n, 1, size, size) in [0, 1], of the whole index; may be a memory map.
    targets
        Of shape (n, labels): 1, 0 or nan.
    rows
        Which of the n frames belong to the set, rising.
    """

    pixels: FloatArray
    targets: NDArray[np.float64]
    rows: NDArray[np.int64]

    def batches(self, order: NDArray[np.int64], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels and targets of `size` frames at a time; `order` holds some of `rows`."""
        for start in range(0, len(order), size):
            chosen = np.sort(order[start : start + size])
            yield torch.from_numpy(self.pixels[chosen]), torch.from_numpy(self.targets[chosen]).float()


@dataclass(frozen=True, slots=True, eq=False)
class Fitting:
    """What stays the same over a fine-tuning run."""

    train: FrameSet
    tune: FrameSet
    class_weights: Tensor
    activation: Activation
    settings: FinetuneSection
    augmentation: Augmentation
    seed: int


def finetune(
    network: Network,
    fitting: Fitting,
    checkpoint: Path,
    on_epoch: Callable[[int, dict[str, float]], None],
    progress: Progress,
) -> Course:
    """Train `network` in place and leave it with its best weights.

    Parameters
    ----------
    network
        With a fitted head.
    fitting
        Frames, loss and settings.
    checkpoint
        File to resume from where it exists; written after each epoch. Epochs draw their random numbers from the seed and their
        own number, so that a resumed run equals one that was never stopped.
    on_epoch
        Called with the number of each finished epoch and its metrics, 0 being the head alone; again with the last one where a
        run is resumed, since the kill may have come before the first call.
    progress
        Shows the batches of each epoch.

    Raises
    ------
    TrainingError
        Where the loss is not a number.
    """
    unfreeze(network, fitting.settings.groups)
    network.to(memory_format=torch.channels_last)  # backward passes of depthwise convolutions are slow in the other layout
    state = _start(network, fitting)
    if checkpoint.is_file():
        load_checkpoint(checkpoint, state)
    else:
        judged = judge_tune(network, fitting, progress)
        state.course.best_loss = judged["tune_loss"]
        state.course.history.append(judged)
        save_checkpoint(checkpoint, state)
    on_epoch(state.course.epoch, state.course.history[-1])
    while not _finished(state.course, fitting.settings):
        epoch = state.course.epoch + 1
        train_loss = _train_epoch(state, fitting, epoch, progress)
        _judge_epoch(state, fitting, train_loss, progress)
        save_checkpoint(checkpoint, state)
        on_epoch(epoch, state.course.history[-1])
    network.load_state_dict(state.best, strict=False)
    network.to(memory_format=torch.contiguous_format)
    return state.course


def unfreeze(network: Network, groups: int) -> None:
    """Let the classifier and the last `groups` groups of the body be trained, and nothing else."""
    open_names = {name for names in network.parameter_groups()[-groups:] for name in names}
    for name, parameter in network.body.named_parameters():
        parameter.requires_grad_(name in open_names)
    for parameter in network.classifier.parameters():
        parameter.requires_grad_()


def judge_tune(network: Network, fitting: Fitting, progress: Progress) -> dict[str, float]:
    """Return the class-weighted loss on the tune split, and the mean AUROC of the labels where it is defined.

    The loss is the one at the temperature that suits these frames best: how certain the network is does not matter here, since
    the calibration split sets that afterwards (Berta et al., "Rethinking early stopping: refine, then calibrate", 2025).
    """
    network.eval()
    frames = fitting.tune
    with torch.no_grad():
        size = fitting.settings.batch_size
        batches = progress(frames.batches(frames.rows, size), "judging the tune split", math.ceil(len(frames.rows) / size))
        logits = torch.cat([network(pixels)[0] for pixels, _ in batches])
    truth = frames.targets[frames.rows]
    targets = torch.from_numpy(truth).float()
    terms = count_terms(truth, fitting.activation)
    losses = [weighted_loss(logits / t, targets, fitting.class_weights, fitting.activation, terms).item() for t in TEMPERATURES]
    judged = {"tune_loss": float(np.min(losses))}
    if math.isfinite(judged["tune_loss"]) and math.isfinite(area := _mean_auroc(logits.numpy(), truth, fitting.activation)):
        judged["tune_auroc"] = area
    return judged


def _mean_auroc(logits: FloatArray, truth: NDArray[np.float64], activation: Activation) -> float:
    areas = []
    for chance, target in zip(probabilities(logits, activation, 1.0).T, truth.T, strict=True):
        known = ~np.isnan(target)
        areas.append(float(auroc(curve(chance[known], target[known], np.ones(known.sum())))))
    return float(np.mean(areas))


def _start(network: Network, fitting: Fitting) -> State:
    head = list(network.classifier.parameters())
    known = {id(parameter) for parameter in head}
    backbone = [value for value in network.body.parameters() if value.requires_grad and id(value) not in known]
    settings = fitting.settings
    optimiser = torch.optim.AdamW(
        [
            {"params": head, "lr": settings.learning_rate},
            {"params": backbone, "lr": settings.learning_rate * settings.backbone_factor},
        ],
        weight_decay=settings.weight_decay,
    )
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=settings.plateau_factor, patience=settings.plateau_patience
    )
    return State(network, optimiser, scheduler, trainable(network), Course())


def _finished(course: Course, settings: FinetuneSection) -> bool:
    return course.epoch >= settings.epochs or course.epoch - course.best_epoch >= settings.patience


def _train_epoch(state: State, fitting: Fitting, epoch: int, progress: Progress) -> float:
    """Go over the training frames once and return the mean loss."""
    state.network.eval()  # batch normalisation keeps its statistics, and there is no other layer that differs
    torch.manual_seed(fitting.seed + epoch)
    fitting.augmentation.seed(fitting.seed + epoch)
    order = np.random.default_rng((fitting.seed, epoch)).permutation(fitting.train.rows)
    size = fitting.settings.batch_size
    batches = fitting.train.batches(order, size)
    terms = count_terms(fitting.train.targets[fitting.train.rows], fitting.activation)
    divisor = terms * size / len(order)
    total = 0.0
    for pixels, targets in progress(batches, f"epoch {epoch}", math.ceil(len(order) / size)):
        logits, _ = state.network(fitting.augmentation(pixels))
        smoothing = fitting.settings.label_smoothing
        loss = weighted_loss(logits, targets, fitting.class_weights, fitting.activation, divisor, smoothing)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"The loss of epoch {epoch} is not a number. Lower train.finetune.learning_rate "
                f"(now {fitting.settings.learning_rate}) and train again."
            )
        state.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimiser.step()
        total += loss.item() * divisor
    return total / terms


def _judge_epoch(state: State, fitting: Fitting, train_loss: float, progress: Progress) -> None:
    """Measure the tune loss, keep the weights if they are the best, and lower the rate on a plateau."""
    epoch = state.course.epoch + 1
    judged = judge_tune(state.network, fitting, progress)
    loss = judged["tune_loss"]
    if not math.isfinite(loss):
        raise TrainingError(
            f"The tune loss of epoch {epoch} is not a number. Lower train.finetune.learning_rate and train again."
        )
    rate = state.optimiser.param_groups[0]["lr"]
    state.course.epoch = epoch
    state.course.history.append({"train_loss": train_loss, **judged, "learning_rate": rate})
    if loss < state.course.best_loss:
        state.course.best_loss, state.course.best_epoch = loss, epoch
        state.best = trainable(state.network)
    state.scheduler.step(loss)


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


def trainable(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters that are being trained."""
    return {name: value.detach().clone() for name, value in network.named_parameters() if value.requires_grad}


def save_checkpoint(path: Path, state: State) -> None:
    """Write the state; a reader finds either the old file or the new one."""
    tensors = {f"network/{name}": value for name, value in trainable(state.network).items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    optimiser = state.optimiser.state_dict()
    for number, slots in optimiser["state"].items():
        tensors |= {f"optimiser/{number}/{name}": value for name, value in slots.items()}
    scalars = {
        "course": asdict(state.course),
        "groups": optimiser["param_groups"],
        "scheduler": state.scheduler.state_dict(),
    }
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path, durable=True) as draft:
        save_file(contiguous, draft, metadata={"state": json.dumps(scalars)})


def load_checkpoint(path: Path, state: State) -> None:
    """Set `state` to what was saved for the same network and settings."""
    with safe_open(path, framework="pt") as file:
        scalars = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    slots: dict[int, dict[str, Tensor]] = {}
    network: dict[str, Tensor] = {}
    for key, value in tensors.items():
        part, name = key.split("/", 1)
        if part == "network":
            network[name] = value
        elif part == "best":
            state.best[name] = value
        else:
            number, slot = name.split("/")
            slots.setdefault(int(number), {})[slot] = value
    state.network.load_state_dict(network, strict=False)
    state.optimiser.load_state_dict({"state": slots, "param_groups": scalars["groups"]})
    state.scheduler.load_state_dict(scalars["scheduler"])
    state.course = Course(**scalars["course"])
