"""Fits what a bundle says of studies, eyes and patients: attention on the training split, the pooling on the tune split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor
from torch.nn import functional

from pipeline.config import Config
from pipeline.errors import InputError, TrainingError
from pipeline.evaluate.calibration import Float64
from pipeline.evaluate.units import Units, fit_level_rule, simplest_of_the_best, tune_losses
from pipeline.frames import TRAINING_SPLITS, FloatArray, Split
from pipeline.levels import Attention, LabelSet, Level, LevelRule, Pooling
from pipeline.train.training_data import TrainingData

HIDDEN, DECAYS, STEPS = 16, (0.1, 0.01, 0.001), 100
"""Hidden units of the attention, what its weights may cost (the tune split chooses), and steps of the optimiser."""
_STEEPEST = 5.0
"""The logarithm of the largest scale while attention is fitted."""
AUTO, NONE = "auto", "none"


@dataclass(frozen=True, slots=True, eq=False)
class FittedLevel:
    """A level of a bundle, and how it came about.

    Parameters
    ----------
    rule
        What the bundle carries.
    attention
        None if frames are pooled in another way.
    losses
        The loss on the tune split by each way that was tried.
    counts
        Units of each split.
    """

    rule: LevelRule
    attention: Attention | None
    losses: dict[Pooling, float]
    counts: dict[str, Any]

    def report(self) -> dict[str, Any]:
        """Return what `metrics.json` holds of it."""
        losses = {pooling.value: loss for pooling, loss in self.losses.items()}
        return {"pooling": self.rule.pooling.value, "tune_losses": losses, "splits": self.counts}


class LevelFrames:
    """What the network says of the frames of all splits, computed when it is first needed.

    Parameters
    ----------
    data
        Targets, patients and splits.
    run
        Returns logits (n, labels) and pooled features (n, channels) of the frames in some rows.
    is_refused
        Says of pooled features of one frame whether it is too unlike the training to be scored.
    odds
        Turns logits into what is pooled, as `frame_odds` does.
    labels
        Say what is pooled.
    """

    def __init__(
        self,
        data: TrainingData,
        run: Callable[[Split], tuple[FloatArray, Float64]],
        is_refused: Callable[[Float64], bool],
        odds: Callable[[FloatArray], Float64],
        labels: LabelSet,
    ) -> None:
        self._data, self._run, self._is_refused, self._odds, self.labels = data, run, is_refused, odds, labels
        self._known: dict[Split, tuple[Float64, NDArray[np.float32], NDArray[np.bool_]]] = {}

    def units(self, level: Level, split: Split, is_scored: bool = True) -> Units:
        """Return the units of a split; without what the network says of their frames if `is_scored` is false."""
        rows = self._data.rows(split)
        records, targets = [self._data.records[row] for row in rows], self._data.targets[rows]
        if not is_scored or not len(rows):
            return Units(level, records, targets, self.labels, np.zeros((len(rows), len(self.labels.is_mirrored))))
        if split not in self._known:
            logits, pooled = self._run(split)
            is_refused = np.array([split is not Split.TRAIN and self._is_refused(one) for one in pooled], bool)
            self._known[split] = self._odds(logits), pooled.astype(np.float32), is_refused
        odds, features, refused = self._known[split]
        return Units(level, records, targets, self.labels, odds, features, refused)


def fit_levels(config: Config, frames: LevelFrames) -> tuple[dict[Level, FittedLevel], dict[Level, str]]:
    """Fit all levels that the configuration asks for and the data can tell something about.

    Parameters
    ----------
    config
        `levels`, `evaluate` and the seed.
    frames
        Labels, splits, and what the network says.

    Returns
    -------
    tuple of dict
        The levels that were fitted, and for each of the others a sentence that says why not.

    Raises
    ------
    InputError
        If a level is asked for by the name of a pooling, and cannot be fitted.
    TrainingError
        If the loss of the attention is not a number.
    """
    fitted: dict[Level, FittedLevel] = {}
    left_out: dict[Level, str] = {}
    for level in Level:
        asked = getattr(config.levels, level.value)
        why = "The configuration leaves it out." if asked == NONE else _obstacle(frames, level, asked, tuple(fitted))
        if not why:
            fitted[level] = _fit(config, frames, level, tuple(Pooling) if asked == AUTO else (Pooling(asked),))
        elif asked in (AUTO, NONE):
            left_out[level] = why
        else:
            raise InputError(f"levels.{level.value}={asked} is not possible. {why} Set levels.{level.value}={NONE}.")
    return fitted, left_out


def attention_file(fitted: dict[Level, FittedLevel]) -> bytes | None:
    """Return the attention of all levels as safetensors; None if no level has one."""
    tensors = [one.attention.tensors(level) for level, one in fitted.items() if one.attention]
    return save({name: value for some in tensors for name, value in some.items()}) if tensors else None


def _obstacle(frames: LevelFrames, level: Level, asked: str, others: Sequence[Level]) -> str:
    """Return a sentence on why a level cannot or need not be fitted; empty if it can."""
    units = {split: frames.units(level, split, is_scored=False) for split in Split}
    name, every = level.value, [one for split in Split for one in units[split].names]
    if not every:
        return "No frame states which eye or side it shows."
    if max(size for split in Split for size in units[split].sizes) == 1:
        return f"Each {name} has one frame, so that its result is that of the frame."
    if asked == AUTO:
        for other in others:
            if all(_same(units[split], frames.units(other, split, is_scored=False)) for split in Split):
                return f"Each {name} has one {other.value}, so that its result is that of the {other.value}."
    for split in (
        (Split.TRAIN, Split.TUNE, Split.CALIBRATION) if asked == Pooling.ATTENTION else (Split.TUNE, Split.CALIBRATION)
    ):
        if lacking := units[split].lacking():
            return f"The split {split} has no {name} {lacking}."
        if lacking := frames.units(level, split).lacking():
            return f"The split {split} has no {name} {lacking} that has a frame like those of the training."
    return ""


def _same(units: Units, others: Units) -> bool:
    (rows, places), (other_rows, other_places) = units.frames(), others.frames()
    pairs = set(zip(places[np.argsort(rows)].tolist(), other_places[np.argsort(other_rows)].tolist(), strict=False))
    return len(rows) == len(other_rows) and len(pairs) == len(units.names) == len(others.names)


def _fit(config: Config, frames: LevelFrames, level: Level, poolings: Sequence[Pooling]) -> FittedLevel:
    """Choose a pooling by the tune split, and fit what follows on the calibration split."""
    tune, calibration = frames.units(level, Split.TUNE), frames.units(level, Split.CALIBRATION)
    found: dict[Pooling, Float64] = {}
    attention: Attention | None = None
    for pooling in poolings:
        if pooling is not Pooling.ATTENTION:
            found[pooling] = tune_losses(tune, tune.pooled(pooling))
            continue
        train = frames.units(level, Split.TRAIN)
        if train.lacking():
            continue
        for decay in DECAYS:
            try:
                tried = fit_attention(train, config.train.seed, decay)
            except TrainingError:
                if len(poolings) == 1:
                    raise
                continue
            losses = tune_losses(tune, tune.pooled(pooling, tried))
            if attention is None or np.nanmean(losses) < np.nanmean(found[pooling]):
                attention, found[pooling] = tried, losses
    best = simplest_of_the_best(found, tune.patients)
    if best is not Pooling.ATTENTION:
        attention = None
    evaluate = config.evaluate
    rule = fit_level_rule(
        level,
        best,
        calibration,
        attention,
        criterion=evaluate.criterion,
        alpha=evaluate.conformal_alpha,
        resamples=evaluate.bootstrap,
        seed=config.train.seed,
    )
    counts = {split.value: frames.units(level, split, is_scored=split is not Split.TRAIN).counts() for split in TRAINING_SPLITS}
    return FittedLevel(rule, attention, {pooling: float(np.nanmean(losses)) for pooling, losses in found.items()}, counts)


def fit_attention(units: Units, seed: int, decay: float) -> Attention:
    """Fit the attention that makes the truth of units most likely.

    The averages are turned into log odds by a scale and an offset of each label, which are fitted along and then dropped, as
    calibration has its own. The truth is drawn towards the middle as in `fit_scale`, and the scale is bounded, so that they
    stay finite if units can be told apart without an error. All frames are seen in each step, so that equal data, seed and
    threads give equal bytes.

    Parameters
    ----------
    units
        Of the training split, with features.
    seed
        Of the first weights.
    decay
        How much the squares of the weights add to the loss, features standardised.

    Raises
    ------
    TrainingError
        If the loss is not a number.
    """
    rows, members = units.frames()
    if units.features is None:
        raise ValueError("attention needs features")
    seen = units.features[rows].astype(np.float64)
    centre, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    features = torch.from_numpy((seen - centre) / spread)
    odds, place = torch.from_numpy(units.odds[rows]), torch.from_numpy(members)
    targets = torch.from_numpy(units.pooled_targets)
    known = ~torch.isnan(targets)
    present, absent = (targets == 1).sum(0), (targets == 0).sum(0)
    truth = torch.where(targets == 1, (present + 1) / (present + 2), 1 / (absent + 2))
    source = torch.Generator().manual_seed(seed)
    outputs, channels = targets.shape[1], features.shape[1]

    def weights(rows: int, columns: int) -> Tensor:
        drawn: Tensor = torch.randn(rows, columns, generator=source, dtype=torch.float64) / columns**0.5
        return drawn.requires_grad_()

    tanh, gate = weights(HIDDEN, channels), weights(HIDDEN, channels)
    output = torch.zeros(units.labels.weightings, HIDDEN, dtype=torch.float64, requires_grad=True)  # begins as the mean
    biases = torch.zeros(2, HIDDEN, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([[0.0] * outputs, [0.0] * outputs], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [tanh, gate, output, biases, scale], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        hidden = torch.tanh(features @ tanh.T + biases[0]) * torch.sigmoid(features @ gate.T + biases[1])
        pooled = _averages((hidden @ output.T).expand(-1, outputs), odds, place, len(targets))
        moved = pooled * scale[0].clamp(-_STEEPEST, _STEEPEST).exp() + scale[1]
        losses = functional.binary_cross_entropy_with_logits(moved, truth, reduction="none")
        cost = sum(one.square().sum() for one in (tanh, gate, output))
        return losses[known].mean() + decay * cost / 2

    def closure() -> Tensor:
        solver.zero_grad()
        total = loss()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    solver.step(closure)  # type: ignore[no-untyped-call]
    if not torch.isfinite(loss()):
        raise TrainingError("The loss of the attention is not a number. Set levels to other ways of pooling.")
    matrices = [one.detach().numpy() / spread for one in (tanh, gate)]
    found = [*matrices, output.detach().numpy(), *(biases.detach().numpy() - [one @ centre for one in matrices])]
    first, second, last, first_bias, second_bias = (one.astype(np.float32) for one in found)
    return Attention(first, first_bias, second, second_bias, last)


def _averages(scores: Tensor, odds: Tensor, place: Tensor, count: int) -> Tensor:
    """Return the average of odds within each unit, weighted by the softmax of scores; all of shape (n or units, pooled)."""
    index = place[:, None].expand_as(scores)
    most = torch.full((count, scores.shape[1]), -torch.inf, dtype=scores.dtype).scatter_reduce(
        0, index, scores.detach(), "amax"
    )
    heights = torch.exp(scores - most[place])
    empty = torch.zeros_like(most)
    return empty.index_add(0, place, heights * odds) / empty.index_add(0, place, heights)
