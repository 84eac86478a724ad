"""The trainer: trains the last groups of layers, or all of them, together with the head, and keeps the best weights.

Starting from a head that is already fitted changes the features less than starting from a random one, and holds better under
shift (Kumar et al., "Fine-tuning can distort pretrained features", ICLR 2022). Batch normalisation keeps the statistics of
pretrained weights, since small medical sets estimate them badly; random weights have none, so theirs are trained.
"""

import json
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

from pipeline.atomic import remove_leftovers, replacing
from pipeline.config import FinetuneSection
from pipeline.errors import ConfigError, TrainingError
from pipeline.evaluate.calibration import probabilities
from pipeline.evaluate.metrics import auroc, curve
from pipeline.model.networks import Network
from pipeline.predictions import Activation
from pipeline.progress import Progress, silent
from pipeline.train.augment import Augmentation
from pipeline.train.devices import Compute
from pipeline.train.prefix import Batch, Batches, CachedPrefix, IndexRows, cut
from pipeline.train.tasks import Objective
from pipeline.train.workspace import PreparedFrames, disk_room


@dataclass(slots=True)
class Course:
    """The course of training so far.

    Parameters
    ----------
    epoch
        Number of epochs that are finished.
    best_epoch
        The one with the best monitored value; 0 is the state before the first one.
    best_value
        Its monitored value: the lowest tune loss, or the highest tune AUROC.
    history
        One entry an epoch: names and values of its metrics.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_value: float = math.nan
    history: list[dict[str, float]] = field(default_factory=list)


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
        Which of the frames belong to the set, rising.
    """

    pixels: PreparedFrames
    targets: NDArray[np.float64]
    rows: IndexRows


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
    trains_statistics: bool = False,
    workers: str | int = "auto",
    compute: Compute | None = None,
) -> Course:
    """Train `network` in place and leave it with its best weights, on the processor.

    Parameters
    ----------
    network
        With a fitted head.
    train, tune
        Frames that the weights learn from, and frames that choose between the epochs; of one index.
    objective
        Whose loss is minimised; made for the targets of `train`.
    settings, augmentation
        As configured.
    seed
        Epochs draw their random numbers from it and their own number, so that a resumed run equals one that was never stopped.
    checkpoint
        File to resume from if it exists; written after each epoch. What is cached lies beside it.
    on_epoch
        Called with the number of each finished epoch and its metrics; epoch 0 is the head alone. When a run is resumed, it is
        called again with the last epoch, since the kill may have come before the first call.
    progress
        Shows the batches of each epoch.
    trains_statistics
        Whether batch normalisation trains its statistics: if weights are random, since there are none to keep.
    workers
        As configured.
    compute
        By default this process alone, on the processor in float32.

    Raises
    ------
    TrainingError
        If the loss is not a number, or another process of the run has ended.
    ConfigError
        If the settings do not fit the network or the tune split.
    InputError
        If the disk has too little room for a checkpoint or the cache.
    """
    compute = compute or Compute()
    remove_leftovers(checkpoint)
    resumes = checkpoint.is_file()
    arguments: dict[str, Any] = {
        "network": network,
        "train": train,
        "tune": tune,
        "objective": objective,
        "settings": settings,
        "augmentation": augmentation,
        "seed": seed,
        "checkpoint": checkpoint,
        "trains_statistics": trains_statistics,
        "workers": workers,
    }
    compute.share(arguments)
    trainer = _Trainer(compute=compute, progress=progress, **arguments)
    trainer.run(resumes, on_epoch)
    trainer.finish()
    return trainer.course


def help_to_finetune(compute: Compute) -> None:
    """Take part in the training steps of process 0 until it has no more of them; for the other processes of a run."""
    while arguments := compute.share(None):
        trainer = _Trainer(compute=compute, progress=silent, **arguments)
        trainer.run(False, lambda *_: None)


def unfreeze(network: Network, groups: int) -> None:
    """Let the classifier and the last `groups` groups of the body be trained, and nothing else."""
    open_names = {name for names in network.parameter_groups()[-groups:] for name in names}
    for name, parameter in network.body.named_parameters():
        parameter.requires_grad_(name in open_names)
    for parameter in network.classifier.parameters():
        parameter.requires_grad_()


class _Frames(Dataset[Batch]):
    """Batches of frames: read from disk, and changed at random."""

    def __init__(self, frames: FrameSet, augmentation: Augmentation, seed: int) -> None:
        self._pixels, self._targets = frames.pixels, frames.targets
        self._augmentation, self._seed = augmentation, seed

    def __getitem__(self, key: tuple[int, IndexRows, IndexRows]) -> Batch:
        epoch, rows, draws = key
        pixels = torch.from_numpy(self._pixels[rows])
        if epoch:
            pixels = self._augmentation(pixels, self._seed, epoch, draws)
        return (pixels,), self.targets(rows)

    def targets(self, rows: IndexRows) -> Tensor:
        return torch.from_numpy(self._targets[rows]).float()


class _Trainer:
    """A network in training: optimiser, rates, averaged and best weights, and the course, all kept in the checkpoint."""

    def __init__(
        self,
        *,
        network: Network,
        train: FrameSet,
        tune: FrameSet,
        objective: Objective,
        settings: FinetuneSection,
        augmentation: Augmentation,
        seed: int,
        checkpoint: Path,
        trains_statistics: bool,
        workers: str | int,
        compute: Compute,
        progress: Progress,
    ) -> None:
        self._network, self._train, self._tune = network, train, tune
        self._objective, self._settings, self._augmentation, self._seed = objective, settings, augmentation, seed
        self._checkpoint, self._trains_statistics = checkpoint, trains_statistics
        self._compute, self._progress = compute, progress
        self._step_frames = settings.batch_size * settings.accumulate
        unfreeze(network, settings.groups)
        compute.place(network)
        self._mode(training=False)
        groups = _rated_parameters(network, settings)
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self._optimiser = _optimiser(groups, settings)
        steps = math.ceil(len(train.rows) / self._step_frames)
        self._cosine = LambdaLR(self._optimiser, _warm_cosine(settings, steps)) if settings.scheduler == "cosine" else None
        self._plateau = ReduceLROnPlateau(
            self._optimiser,
            mode="min" if settings.monitor == "tune_loss" else "max",
            factor=settings.plateau_factor,
            patience=settings.plateau_patience,
        )
        self._scaler = compute.scaler()
        self._steps = 0
        self.course = Course()
        learned = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
        state = network.state_dict()
        self._live = {name: value for name, value in state.items() if learned.get(name, trains_statistics)}
        self._statistics = [value for name, value in self._live.items() if name not in learned and value.is_floating_point()]
        self._best = _copies(self._live)
        self._average = _copies(self._live) if settings.ema_decay else {}
        self._frames = _Frames(train, augmentation, seed)
        self._batches: Batches = self._frames
        self._learner: nn.Module = network
        self._measured: nn.Module = network
        self._keys: list[tuple[int, IndexRows, IndexRows]] = []
        self._loading_processes = compute.loading_processes(0 if settings.views else workers)

    def run(self, resumes: bool, on_epoch: Callable[[int, dict[str, float]], None]) -> None:
        """Train until the last epoch, or until the monitored value has not become better for long enough."""
        course, settings = self.course, self._settings
        if resumes := self._compute.share(resumes):
            self._load()
        if settings.views and not self._is_over:
            self._cut()
        if not resumes:
            self._take(self._compute.share(self._measure_tune() if self._compute.rank == 0 else {}))
            self._save()
        on_epoch(course.epoch, course.history[-1])
        loader = self._make_loader(self._loading_processes)
        while not self._is_over:
            self._train_epoch(loader)
            self._save()
            on_epoch(course.epoch, course.history[-1])

    @property
    def _is_over(self) -> bool:
        course, settings = self.course, self._settings
        return course.epoch >= settings.epochs or course.epoch - course.best_epoch >= settings.patience

    def finish(self) -> None:
        """Leave the network with its best weights, as it was given: on the processor, in eval mode."""
        self._put(self._best)
        self._mode(training=False)
        self._network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._cache.unlink(missing_ok=True)

    # Data

    @property
    def _cache(self) -> Path:
        return self._checkpoint.with_name(f"{self._checkpoint.stem}-frozen-layers.npy")

    def _cut(self) -> None:
        """Replace frames by what the frozen layers make of them, and the network by its other layers."""
        if self._trains_statistics:
            raise ConfigError(
                ["train.finetune.views: trained batch statistics leave no layer frozen. Set train.finetune.views=0."]
            )
        if self._compute.rank == 0:
            self._batches = self._cached()
        self._compute.share(None)
        if self._compute.rank:
            self._batches = self._cached()
        _, self._measured = cut(self._network)
        self._mode(training=True)
        _, self._learner = cut(self._network)

    def _cached(self) -> CachedPrefix:
        return CachedPrefix(
            self._network,
            self._frames,
            self._frames.targets,
            self._train.rows,
            self._tune.rows,
            views=self._settings.views,
            batch_size=self._settings.batch_size,
            compute=self._compute,
            path=self._cache,
            progress=self._progress,
        )

    def _make_loader(self, workers: int) -> Iterable[Batch]:
        """Return what goes through `self._keys` each time, in worker processes of one thread if there are any."""
        return DataLoader(
            self._batches,  # type: ignore[arg-type]
            sampler=self._keys,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self._compute.device.type == "cuda",
            multiprocessing_context="forkserver" if workers else None,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),
        )

    def _plan(self, epoch: int) -> None:
        """Put the keys of an epoch's batches, or of this process's part of them, into `self._keys`."""
        train, size, world = self._train, self._settings.batch_size, self._compute.world
        truth, generator = train.targets[train.rows], np.random.default_rng((self._seed, epoch))
        order = train.rows[self._objective.epoch_order(truth, generator)]
        starts = list(range(0, len(order), size))
        if self._trains_statistics and len(starts) > 1 and len(order) - starts[-1] < 2 * world:
            starts.pop()  # batch normalisation needs two frames or more: the last ones join the batch before
        self._keys.clear()
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            places = start + np.argsort(order[start:stop], kind="stable")  # the disk is read in one direction
            mine = places[self._compute.rank :: world]
            self._keys.append((epoch, order[mine], mine))

    # Steps

    def _train_epoch(self, loader: Iterable[Batch]) -> None:
        """Go over the training frames once, measure the tune split, keep the best weights, and lower the rate on a plateau."""
        course, epoch = self.course, self.course.epoch + 1
        rate = self._optimiser.param_groups[0]["lr"]
        train_loss = self._learn(epoch, loader)
        measured = self._compute.share(self._measure_tune() if self._compute.rank == 0 else {})
        if not math.isfinite(measured["tune_loss"]):
            raise TrainingError(f"The tune loss of epoch {epoch} is not a number. {self._advice()}")
        course.epoch = epoch
        self._take({"train_loss": train_loss, **measured, "learning_rate": rate})
        if self._settings.scheduler == "plateau":
            self._plateau.step(measured[self._settings.monitor])

    def _take(self, metrics: dict[str, float]) -> None:
        """Put the metrics of an epoch into the course, and keep the weights if they are the best so far."""
        course, monitor = self.course, self._settings.monitor
        course.history.append(metrics)
        if monitor not in metrics:
            raise ConfigError(
                [
                    "train.finetune.monitor: the AUROC of the tune split is not defined: a label has no example there, or none "
                    "without it. Set train.finetune.monitor=tune_loss, or ingest with more patients in tune."
                ]
            )
        value, best = metrics[monitor], course.best_value
        if not value >= best if monitor == "tune_loss" else not value <= best:  # the first value is compared with nan
            course.best_value, course.best_epoch = value, course.epoch
            self._best = _copies(self._average or self._live)

    def _learn(self, epoch: int, loader: Iterable[Batch]) -> float:
        """Take the steps of one epoch, and return the mean loss."""
        self._mode(training=True)
        self._plan(epoch)
        torch.manual_seed(self._seed + epoch + 1_000_003 * self._compute.rank)  # of dropout
        truth = self._train.targets[self._train.rows]
        terms = self._objective.terms(truth)
        divisor = terms * self._step_frames / len(truth)
        total, together = 0.0, self._settings.accumulate
        shown = f"epoch {epoch}", len(self._keys)
        loss = torch.zeros((), device=self._compute.device)
        for number, (inputs, targets) in enumerate(self._progress(self._loaded(loader), *shown), 1):
            if len(targets):
                part = self._loss(inputs, targets, divisor, np.random.default_rng((self._seed, epoch, number, 1)))
                self._scaler.scale(part).backward()  # type: ignore[no-untyped-call]
                loss += part.detach()
            if number % together == 0 or number == len(self._keys):
                total += self._step(epoch, loss) * divisor
                loss.zero_()
        return total / terms

    def _loaded(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        try:
            for inputs, targets in loader:
                yield tuple(map(self._compute.load, inputs)), self._compute.load(targets)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                "A process that loads frames has ended. Give the machine or the container more (shared) memory, "
                "or set train.workers=0, and start again with --resume."
            ) from None

    def _loss(self, inputs: tuple[Tensor, ...], targets: Tensor, divisor: float, rng: np.random.Generator) -> Tensor:
        """Return a batch's part of the loss of a step."""
        partner, factor = np.arange(len(targets)), 1.0
        if self._augmentation.mixes:
            pixels, partner, factor = self._augmentation.mix(inputs[0], rng)
            inputs = (pixels,)
        with self._compute.autocast():
            logits, _ = self._learner(*inputs)
        smoothing = self._settings.label_smoothing
        loss = self._objective.loss(logits.float(), targets, divisor, label_smoothing=smoothing, drawn=True)
        if factor < 1:
            others = self._objective.loss(logits.float(), targets[partner], divisor, label_smoothing=smoothing, drawn=True)
            loss = factor * loss + (1 - factor) * others
        return loss

    def _step(self, epoch: int, loss: Tensor) -> float:
        """Change the weights by the gradients of all processes, and return the loss that these are of."""
        gradients = []
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        for value in self._statistics:
            value /= self._compute.world
        self._compute.sum([*gradients, *self._statistics, loss])
        found = loss.item()
        if not math.isfinite(found):
            raise TrainingError(f"The loss of epoch {epoch} is not a number. {self._advice()}")
        if self._settings.clip_norm:
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self._parameters, self._settings.clip_norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._optimiser.zero_grad()
        if self._cosine:
            self._cosine.step()
        self._steps += 1
        self._update_average()
        return found

    def _advice(self) -> str:
        rate = f"Lower train.finetune.learning_rate (now {self._settings.learning_rate})"
        clip = "" if self._settings.clip_norm else ", or limit the gradient with train.finetune.clip_norm=1"
        exact = ", or set train.precision=float32" if self._compute.is_reduced else ""
        return f"{rate}{clip}{exact}, and train again."

    def _mode(self, training: bool) -> None:
        """Put the layers that are trained into training mode; batch normalisation only if its statistics are trained."""
        self._network.train(training and self._trains_statistics)
        if training and not self._trains_statistics:
            _enter_training(self._network, False)

    # Measuring

    def _measure_tune(self) -> dict[str, float]:
        """Return the loss on the tune split, and the mean AUROC of the labels if it is defined.

        The loss is taken at the temperature that suits these frames best: the network's certainty does not matter here, since
        the calibration split sets it afterwards (Berta et al., "Rethinking early stopping: refine, then calibrate",
        2025).
        """
        rows, size = self._tune.rows, self._settings.batch_size
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        logits = []
        self._mode(training=False)
        with self._averaged(), torch.no_grad():
            for part in self._progress(parts, "measuring the tune split", len(parts)):
                inputs, _ = self._batches[0, part, part]
                with self._compute.autocast():
                    logits.append(self._measured(*map(self._compute.load, inputs))[0].float().cpu())
        found, truth = torch.cat(logits), self._tune.targets[rows]
        targets, terms = torch.from_numpy(truth).float(), self._objective.terms(truth)
        losses = [self._objective.loss(found / temperature, targets, terms).item() for temperature in TEMPERATURES]
        measured = {"tune_loss": float(np.min(losses))}
        finite = math.isfinite(measured["tune_loss"])
        area = mean_auroc(found.numpy(), truth, self._objective.task.activation) if finite else math.nan
        return measured | ({"tune_auroc": area} if math.isfinite(area) else {})

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Give the network its averaged weights, if there are any, while the block runs."""
        own = _copies(self._live) if self._average else {}
        self._put(self._average)
        try:
            yield
        finally:
            self._put(own)

    def _update_average(self) -> None:
        """Move the averaged weights towards the present ones; early on, when there is little to average, faster."""
        decay = min(self._settings.ema_decay, (1 + self._steps) / (10 + self._steps))
        for name, value in self._average.items():
            if value.is_floating_point():
                value.lerp_(self._live[name], 1 - decay)
            else:
                value.copy_(self._live[name])

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._live[name].copy_(value)

    # Checkpoints

    def _save(self) -> None:
        """Write everything that changes into one safetensors file; a reader finds either the old file or the new one."""
        if self._compute.rank:
            return
        parts = {"network": self._live, "best": self._best, "average": self._average}
        tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        optimiser = self._optimiser.state_dict()
        for number, slots in optimiser["state"].items():
            tensors |= {f"optimiser/{number}/{name}": value for name, value in slots.items() if value is not None}
        scalars = {
            "course": asdict(self.course),
            "steps": self._steps,
            "groups": optimiser["param_groups"],
            "plateau": self._plateau.state_dict(),
            "cosine": self._cosine.state_dict() if self._cosine else {},
            "scaler": self._scaler.state_dict(),
        }
        ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        with disk_room(self._checkpoint), replacing(self._checkpoint, durable=True) as draft:
            save_file(ready, draft, metadata={"state": json.dumps(scalars)})

    def _load(self) -> None:
        """Restore what was saved for the same network and settings."""
        with safe_open(self._checkpoint, framework="pt") as file:
            scalars = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, name = key.split("/", 1)
            if part == "optimiser":
                number, slot = name.split("/")
                slots.setdefault(int(number), {})[slot] = value
            else:
                with torch.no_grad():
                    {"network": self._live, "best": self._best, "average": self._average}[part][name].copy_(value)
        self._optimiser.load_state_dict({"state": slots, "param_groups": scalars["groups"]})
        self._plateau.load_state_dict(scalars["plateau"])
        if self._cosine:
            self._cosine.load_state_dict(scalars["cosine"])
        self._scaler.load_state_dict(scalars["scaler"])
        self._steps = scalars["steps"]
        for name, value in scalars["course"].items():
            setattr(self.course, name, value)


def _rated_parameters(network: Network, settings: FinetuneSection) -> list[dict[str, Any]]:
    """Return what is trained, from the head to the input, in groups of one learning rate, as torch's optimisers take it."""
    groups = [{"params": list(network.classifier.parameters()), "lr": settings.learning_rate}]
    named = dict(network.body.named_parameters())
    rate = settings.learning_rate * settings.backbone_factor
    for names in reversed(network.parameter_groups()):
        if parameters := [named[name] for name in names if named[name].requires_grad]:
            groups.append({"params": parameters, "lr": rate})
            rate *= settings.layer_decay
    return groups


def _optimiser(groups: list[dict[str, Any]], settings: FinetuneSection) -> Optimizer:
    decay = settings.weight_decay
    if settings.optimizer == "sgd":
        return SGD(groups, momentum=settings.momentum, nesterov=settings.momentum > 0, weight_decay=decay)
    if settings.optimizer == "rmsprop":
        return RMSprop(groups, momentum=settings.momentum, weight_decay=decay)
    return (AdamW if settings.optimizer == "adamw" else Adam)(groups, weight_decay=decay)


def _warm_cosine(settings: FinetuneSection, steps: int) -> Callable[[int], float]:
    """Return the part of the learning rate for each step: it rises in a line, and falls to zero along a cosine.

    This is the schedule of Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017), without
    restarts; `steps` is the number in an epoch.
    """
    warm, total = round(settings.warmup_epochs * steps), settings.epochs * steps

    def part(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return (1 + math.cos(math.pi * (step - warm) / max(1, total - warm))) / 2

    return part


def _enter_training(module: nn.Module, around: bool) -> None:
    """Put a module with parameters that are trained into training mode; one without parameters follows those around it."""
    own = list(module.parameters())
    trained = any(parameter.requires_grad for parameter in own) if own else around
    module.training = trained and not isinstance(module, nn.modules.batchnorm._BatchNorm)
    for child in module.children():
        _enter_training(child, trained)


def _copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl+C to the process that trains; it ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def mean_auroc(logits: NDArray[np.floating[Any]], truth: NDArray[np.float64], activation: Activation) -> float:
    """Return the mean AUROC of the labels, nan if one has none; both arrays of shape (n, labels), truth 1, 0 or nan."""
    areas = []
    for chance, target in zip(probabilities(logits, activation, 1.0).T, truth.T, strict=True):
        known = ~np.isnan(target)
        areas.append(float(auroc(curve(chance[known], target[known], np.ones(known.sum())))))
    return float(np.mean(areas))
