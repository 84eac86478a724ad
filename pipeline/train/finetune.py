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
from pipeline.train.tasks import Objective
from pipeline.train.workspace import PreparedFrames


@dataclass(slots=True)
class Course:
    """The course of training so far.

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


class Augmentation:
    """Changes batches at random; the same seed gives the same changes.

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
        """Set the seed; called at every epoch, so that a resumed run sees the same changes."""
        self._change.set_random_state(seed=seed)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the changed frames; like `pixels`, they are float32 of shape (n, 1, size, size) in [0, 1]."""
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
        Of the whole index.
    targets
        Of shape (n, labels): 1, 0 or nan.
    rows
        Which of the n frames belong to the set, rising.
    """

    pixels: PreparedFrames
    targets: NDArray[np.float64]
    rows: NDArray[np.int64]

    def batches(self, order: NDArray[np.int64], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels and targets of `size` frames at a time; `order` holds some of `rows`."""
        for start in range(0, len(order), size):
            chosen = np.sort(order[start : start + size])
            yield torch.from_numpy(self.pixels[chosen]), torch.from_numpy(self.targets[chosen]).float()


def finetune(
    network: Network,
    *,
    train: FrameSet,
    tune: FrameSet,
    objective: Objective,
    settings: FinetuneSection,
    augmentation: Augmentation,
    seed: int,
    checkpoint: Path,
    on_epoch: Callable[[int, dict[str, float]], None],
    progress: Progress,
) -> Course:
    """Train `network` in place and leave it with its best weights.

    Parameters
    ----------
    network
        With a fitted head.
    train, tune
        Frames that the weights learn from, and frames that choose between the epochs.
    objective
        Whose loss is minimised; made for the targets of `train`.
    settings, augmentation
        As configured.
    seed
        Epochs draw their random numbers from it and their own number, so that a resumed run equals one that was never stopped.
    checkpoint
        File to resume from if it exists; written after each epoch.
    on_epoch
        Called with the number of each finished epoch and its metrics; epoch 0 is the head alone. When a run is resumed, it is
        called again with the last epoch, since the kill may have come before the first call.
    progress
        Shows the batches of each epoch.

    Raises
    ------
    TrainingError
        If the loss is not a number.
    """
    unfreeze(network, settings.groups)
    network.to(memory_format=torch.channels_last)  # backward passes of depthwise convolutions are slow in the other layout
    run = _FineTuning(network, train, tune, objective, settings, augmentation, seed, progress)
    course = run.course
    if checkpoint.is_file():
        run.load(checkpoint)
    else:
        measured = run.measure_tune()
        course.best_loss = measured["tune_loss"]
        course.history.append(measured)
        run.save(checkpoint)
    on_epoch(course.epoch, course.history[-1])
    while course.epoch < settings.epochs and course.epoch - course.best_epoch < settings.patience:
        run.train_epoch()
        run.save(checkpoint)
        on_epoch(course.epoch, course.history[-1])
    network.load_state_dict(run.best, strict=False)
    network.to(memory_format=torch.contiguous_format)
    return course


def unfreeze(network: Network, groups: int) -> None:
    """Let the classifier and the last `groups` groups of the body be trained, and nothing else."""
    open_names = {name for names in network.parameter_groups()[-groups:] for name in names}
    for name, parameter in network.body.named_parameters():
        parameter.requires_grad_(name in open_names)
    for parameter in network.classifier.parameters():
        parameter.requires_grad_()


class _FineTuning:
    """A network during fine-tuning: its optimiser, learning rate, best weights and course, all kept in the checkpoint."""

    def __init__(
        self,
        network: Network,
        train: FrameSet,
        tune: FrameSet,
        objective: Objective,
        settings: FinetuneSection,
        augmentation: Augmentation,
        seed: int,
        progress: Progress,
    ) -> None:
        self._network, self._train, self._tune = network, train, tune
        self._objective, self._settings, self._augmentation = objective, settings, augmentation
        self._seed, self._progress = seed, progress
        head = list(network.classifier.parameters())
        known = {id(parameter) for parameter in head}
        backbone = [value for value in network.body.parameters() if value.requires_grad and id(value) not in known]
        self._optimiser = AdamW(
            [
                {"params": head, "lr": settings.learning_rate},
                {"params": backbone, "lr": settings.learning_rate * settings.backbone_factor},
            ],
            weight_decay=settings.weight_decay,
        )
        self._scheduler = ReduceLROnPlateau(self._optimiser, factor=settings.plateau_factor, patience=settings.plateau_patience)
        self.best = _trainable(network)
        self.course = Course()

    def measure_tune(self) -> dict[str, float]:
        """Return the loss on the tune split, and the mean AUROC of the labels if it is defined.

        The loss is taken at the temperature that suits these frames best: the network's certainty does not matter here, since
        the calibration split sets it afterwards (Berta et al., "Rethinking early stopping: refine, then calibrate",
        2025).
        """
        self._network.eval()
        frames, size = self._tune, self._settings.batch_size
        with torch.no_grad():
            count = math.ceil(len(frames.rows) / size)
            batches = self._progress(frames.batches(frames.rows, size), "measuring the tune split", count)
            logits = torch.cat([self._network(pixels)[0] for pixels, _ in batches])
        truth = frames.targets[frames.rows]
        targets, terms = torch.from_numpy(truth).float(), self._objective.terms(truth)
        losses = [self._objective.loss(logits / temperature, targets, terms).item() for temperature in TEMPERATURES]
        measured = {"tune_loss": float(np.min(losses))}
        activation = self._objective.task.activation
        area = _mean_auroc(logits.numpy(), truth, activation) if math.isfinite(measured["tune_loss"]) else math.nan
        return measured | ({"tune_auroc": area} if math.isfinite(area) else {})

    def train_epoch(self) -> None:
        """Go over the training frames once, measure the tune loss, keep the best weights, and lower the rate on a plateau."""
        course, epoch = self.course, self.course.epoch + 1
        train_loss = self._learn(epoch)
        measured = self.measure_tune()
        loss = measured["tune_loss"]
        if not math.isfinite(loss):
            raise TrainingError(
                f"The tune loss of epoch {epoch} is not a number. Lower train.finetune.learning_rate and train again."
            )
        rate = self._optimiser.param_groups[0]["lr"]
        course.epoch = epoch
        course.history.append({"train_loss": train_loss, **measured, "learning_rate": rate})
        if loss < course.best_loss:
            course.best_loss, course.best_epoch = loss, epoch
            self.best = _trainable(self._network)
        self._scheduler.step(loss)

    def _learn(self, epoch: int) -> float:
        """Take one step for each batch of training frames, and return the mean loss."""
        self._network.eval()  # batch normalisation keeps its statistics, and there is no other layer that differs
        torch.manual_seed(self._seed + epoch)
        self._augmentation.seed(self._seed + epoch)
        frames, size = self._train, self._settings.batch_size
        truth, generator = frames.targets[frames.rows], np.random.default_rng((self._seed, epoch))
        order = frames.rows[self._objective.epoch_order(truth, generator)]
        terms = self._objective.terms(truth)
        divisor = terms * size / len(order)
        total = 0.0
        for pixels, targets in self._progress(frames.batches(order, size), f"epoch {epoch}", math.ceil(len(order) / size)):
            logits, _ = self._network(self._augmentation(pixels))
            smoothing = self._settings.label_smoothing
            loss = self._objective.loss(logits, targets, divisor, label_smoothing=smoothing, drawn=True)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"The loss of epoch {epoch} is not a number. Lower train.finetune.learning_rate "
                    f"(now {self._settings.learning_rate}) and train again."
                )
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
            total += loss.item() * divisor
        return total / terms

    def save(self, path: Path) -> None:
        """Write everything that changes into one safetensors file; a reader finds either the old file or the new one."""
        tensors = {f"network/{name}": value for name, value in _trainable(self._network).items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        optimiser = self._optimiser.state_dict()
        for number, slots in optimiser["state"].items():
            tensors |= {f"optimiser/{number}/{name}": value for name, value in slots.items()}
        scalars = {
            "course": asdict(self.course),
            "groups": optimiser["param_groups"],
            "scheduler": self._scheduler.state_dict(),
        }
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with replacing(path, durable=True) as draft:
            save_file(contiguous, draft, metadata={"state": json.dumps(scalars)})

    def load(self, path: Path) -> None:
        """Restore what was saved for the same network and settings."""
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
                self.best[name] = value
            else:
                number, slot = name.split("/")
                slots.setdefault(int(number), {})[slot] = value
        self._network.load_state_dict(network, strict=False)
        self._optimiser.load_state_dict({"state": slots, "param_groups": scalars["groups"]})
        self._scheduler.load_state_dict(scalars["scheduler"])
        for name, value in scalars["course"].items():
            setattr(self.course, name, value)


def _trainable(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters that are being trained."""
    return {name: value.detach().clone() for name, value in network.named_parameters() if value.requires_grad}


def _mean_auroc(logits: FloatArray, truth: NDArray[np.float64], activation: Activation) -> float:
    areas = []
    for chance, target in zip(probabilities(logits, activation, 1.0).T, truth.T, strict=True):
        known = ~np.isnan(target)
        areas.append(float(auroc(curve(chance[known], target[known], np.ones(known.sum())))))
    return float(np.mean(areas))


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
