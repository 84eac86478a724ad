"""Fine-tuning: trains the last groups of layers together with the head, and keeps the weights with the lowest tune loss.

Starting from a head that is already fitted changes the features less than starting from a random one, and holds better under
shift (Kumar et al., "Fine-tuning can distort pretrained features", ICLR 2022). Batch normalisation keeps the statistics of
the pretrained weights: small medical sets estimate them badly.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import FinetuneSection
from pipeline.errors import TrainingError
from pipeline.evaluate.calibration import probabilities
from pipeline.evaluate.metrics import auroc, curve
from pipeline.frames import FloatArray
from pipeline.model.networks import Network
from pipeline.predictions import Activation
from pipeline.progress import Progress
from pipeline.train.augment import Augmentation
from pipeline.train.checkpoint import Course, State, load_checkpoint, save_checkpoint, trainable
from pipeline.train.loss import count_terms, weighted_loss

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
