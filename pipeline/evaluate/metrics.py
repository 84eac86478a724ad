"""Evaluates predictions against the truth: every metric of every label, and over all labels, with its interval."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.evaluate.bootstrap import Estimate, bootstrap
from pipeline.evaluate.calibration import Float64, expected_calibration_error, probabilities, ratio
from pipeline.evaluate.measures import CALIBRATION, DECISION, RANKING, measure
from pipeline.predictions import Activation, ConformalBand, DecisionRule, OperatingPoint, State

_ECE = "ece"
METRICS = (*RANKING, *DECISION, *CALIBRATION, _ECE)
MACRO_METRICS = tuple(name for name in METRICS if name != "prevalence")
ARGMAX_METRICS = ("accuracy", "balanced_accuracy")

_MACRO, _ARGMAX, _FRAMES = "macro", "argmax", "frames"
_Key = tuple[int | str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Frames to evaluate: the truth, what the network said, and how that becomes a decision.

    Parameters
    ----------
    logits
        Shape (n, labels), finite.
    targets
        Shape (n, labels) of 1, 0 and nan (not known).
    groups
        The patient of each frame, n of them.
    labels
        Names, in the order of the columns.
    activation, temperature
        As in `pipeline.evaluate.calibration.probabilities`.
    operating_points
        One for each label.
    bands, normal_label
        As in `DecisionRule.of`.

    Raises
    ------
    InputError
        Where there is no frame, a logit is not finite, a target is something else than 1, 0 or nan, a softmax target names
        more than one label, a label has no operating point, or the sizes do not fit together.
    """

    logits: NDArray[np.floating[Any]]
    targets: Float64
    groups: Sequence[str]
    labels: tuple[str, ...]
    activation: Activation
    temperature: float
    operating_points: tuple[OperatingPoint, ...]
    bands: tuple[ConformalBand, ...] = ()
    normal_label: str | None = None

    def __post_init__(self) -> None:
        for fault in self._faults():
            raise InputError(fault)

    def _faults(self) -> Iterable[str]:
        shape = (len(self.groups), len(self.labels))
        if not all(shape):
            yield "There is nothing to evaluate: the split has no labelled frame. Choose another split, or label more studies."
        if self.logits.shape != shape or self.targets.shape != shape:
            yield (
                f"Logits and targets must both have the shape (frames, labels) = {shape}. "
                f"Got {self.logits.shape} and {self.targets.shape} instead."
            )
        if broken := int((~np.isfinite(self.logits)).any(axis=1).sum()):
            yield f"The network's output is not a finite number in {broken} of {shape[0]} frames. Train the bundle again."
        if not np.isin(self.targets[~np.isnan(self.targets)], (0, 1)).all():
            yield "Targets must be 1, 0 or nan (not known)."
        if self.activation is Activation.SOFTMAX and (several := int(((self.targets == 1).sum(axis=1) > 1).sum())):
            yield (
                f"{several} of {shape[0]} frames have more than one label, but with softmax exactly one label holds. "
                "Use model.activation=sigmoid for labels that may hold together."
            )
        if without := [label for label in self.labels if label not in {point.label for point in self.operating_points}]:
            yield f"There is no operating point for {', '.join(without)}. Train the bundle again."

    @property
    def probabilities(self) -> Float64:
        """Calibrated, of shape (n, labels)."""
        return probabilities(self.logits, self.activation, self.temperature)

    @property
    def states(self) -> NDArray[np.object_]:
        """What the frames are said to be, of shape (n, labels)."""
        rule = DecisionRule.of(self.labels, self.operating_points, self.bands, self.activation, self.normal_label)
        return rule.states(self.probabilities)

    @property
    def columns(self) -> "tuple[Column, ...]":
        """The labels one by one, each with the frames for which it is known."""
        thresholds = {point.label: point.threshold for point in self.operating_points}
        return tuple(
            Column(label, np.flatnonzero(~np.isnan(target)), chances, target, states, thresholds[label])
            for label, chances, target, states in zip(
                self.labels, self.probabilities.T, self.targets.T, self.states.T, strict=True
            )
        )

    @property
    def choice(self) -> "Choice | None":
        """The most probable label of each frame beside the true one; None under sigmoid, where labels are independent."""
        if self.activation is Activation.SIGMOID:
            return None
        rows = np.flatnonzero((self.targets == 1).any(axis=1))
        return Choice(rows, self.logits[rows].argmax(axis=1), (self.targets[rows] == 1).argmax(axis=1), len(self.labels))


class Column:
    """One label in the frames for which it is known.

    Attributes
    ----------
    rows
        Positions of these m frames in the sample.
    probabilities, targets
        Shape (m,).
    states
        Shape (m,): what was decided.
    threshold
        Of the operating point.
    """

    def __init__(
        self,
        label: str,
        rows: NDArray[np.intp],
        chances: Float64,
        targets: Float64,
        states: NDArray[np.object_],
        threshold: float,
    ) -> None:
        self.label, self.rows, self.threshold = label, rows, threshold
        self.probabilities, self.targets, self.states = chances[rows], targets[rows], states[rows]

    def measure(self, weights: Float64) -> dict[str, Float64]:
        """Return the weighted metrics by name, each of shape (r,), for weights of shape (r, n) over the sample's frames."""
        return measure(self.probabilities, self.targets, self.states, weights[..., self.rows])


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One label a frame: the chosen and the true one, as positions, each of shape (m,), in the m frames at `rows`."""

    rows: NDArray[np.intp]
    chosen: NDArray[np.intp]
    true: NDArray[np.intp]
    labels: int

    def confusion(self) -> tuple[tuple[int, ...], ...]:
        """Count the frames by true label (rows) and chosen label (columns)."""
        cells = np.bincount(self.true * self.labels + self.chosen, minlength=self.labels**2)
        return tuple(tuple(map(int, row)) for row in cells.reshape(self.labels, self.labels))

    def measure(self, weights: Float64) -> dict[str, Float64]:
        """Return accuracy, and balanced accuracy as the mean sensitivity of the labels: nan where one has no frame.

        Weights have shape (r, n) over all frames of the sample, each figure shape (r,).
        """
        members, chosen = np.eye(self.labels)[self.true], np.eye(self.labels)[self.chosen]
        known = weights[..., self.rows]
        totals, right = known @ members, known @ (members * chosen)
        figures = ratio(right.sum(-1), totals.sum(-1)), ratio(right, totals).mean(-1)
        return dict(zip(ARGMAX_METRICS, figures, strict=True))


@dataclass(frozen=True, slots=True)
class LabelEvaluation:
    """One label against the rest, in the frames for which it is known.

    Parameters
    ----------
    label
        The finding.
    n_positive, n_negative
        Frames.
    threshold
        Of the operating point.
    metrics
        By the names in `METRICS`.
    """

    label: str
    n_positive: int
    n_negative: int
    threshold: float
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of one split.

    Parameters
    ----------
    labels
        In the order of the bundle.
    macro
        Means over the labels, by the names in `MACRO_METRICS`; nan where one label's figure is.
    argmax
        Accuracy and balanced accuracy of the most probable label, by the names in `ARGMAX_METRICS`; empty under sigmoid.
    uncertain
        The part of the frames in which at least one label is uncertain.
    confusion
        Frames by true (rows) and most probable label (columns); empty under sigmoid.
    frames, patients
        How many were evaluated.
    temperature
        That made the probabilities.
    resamples, seed
        Of the bootstrap.
    """

    labels: tuple[LabelEvaluation, ...]
    macro: Mapping[str, Estimate]
    argmax: Mapping[str, Estimate]
    uncertain: Estimate
    confusion: tuple[tuple[int, ...], ...]
    frames: int
    patients: int
    temperature: float
    resamples: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return what `metrics.json` holds; a figure that is not defined is None."""
        return {
            "frames": self.frames,
            "patients": self.patients,
            "temperature": self.temperature,
            "resamples": self.resamples,
            "seed": self.seed,
            "labels": {
                label.label: {
                    "n_positive": label.n_positive,
                    "n_negative": label.n_negative,
                    "threshold": label.threshold,
                    "metrics": _figures(label.metrics),
                }
                for label in self.labels
            },
            "macro": _figures(self.macro),
            "argmax": _figures(self.argmax),
            "uncertain": self.uncertain.to_json(),
            "confusion": [list(row) for row in self.confusion],
        }


def evaluate(sample: Sample, resamples: int = 1000, seed: int = 0) -> Evaluation:
    """Compute every metric with its 95 % interval over resampled patients.

    The expected calibration error has no interval: resampling adds to its bias, so that percentiles often lie above the figure.

    Parameters
    ----------
    sample
        The frames of one split.
    resamples
        Of the bootstrap; with 0 there are no intervals.
    seed
        Of the bootstrap.
    """
    columns, choice = sample.columns, sample.choice
    unsure = np.asarray((sample.states == State.UNCERTAIN).any(axis=1), np.float64)

    def statistic(weights: Float64) -> dict[_Key, Float64]:
        return _statistic(columns, choice, weights) | {(_FRAMES, "uncertain"): ratio(weights @ unsure, weights.sum(axis=1))}

    estimates = bootstrap(statistic, sample.groups, resamples, seed) | _calibration_errors(columns)
    return Evaluation(
        labels=tuple(_label_evaluation(column, _part(estimates, index)) for index, column in enumerate(columns)),
        macro=_part(estimates, _MACRO),
        argmax=_part(estimates, _ARGMAX),
        uncertain=estimates[_FRAMES, "uncertain"],
        confusion=choice.confusion() if choice else (),
        frames=len(sample.groups),
        patients=len(set(sample.groups)),
        temperature=sample.temperature,
        resamples=resamples,
        seed=seed,
    )


def _statistic(columns: Sequence[Column], choice: Choice | None, weights: Float64) -> dict[_Key, Float64]:
    labels = [column.measure(weights) for column in columns]
    macro: dict[str, Float64] = {
        name: np.mean([metrics[name] for metrics in labels], axis=0) for name in MACRO_METRICS if name != _ECE
    }
    argmax = choice.measure(weights) if choice else {}
    scopes: list[tuple[int | str, dict[str, Float64]]] = [*enumerate(labels), (_MACRO, macro), (_ARGMAX, argmax)]
    return {(scope, name): figures for scope, metrics in scopes for name, figures in metrics.items()}


def _calibration_errors(columns: Sequence[Column]) -> dict[_Key, Estimate]:
    errors = [expected_calibration_error(column.probabilities, column.targets) for column in columns]
    scopes: list[tuple[int | str, float]] = [*enumerate(errors), (_MACRO, float(np.mean(errors)))]
    return {(scope, _ECE): Estimate(error, np.nan, np.nan, 0) for scope, error in scopes}


def _label_evaluation(column: Column, metrics: Mapping[str, Estimate]) -> LabelEvaluation:
    positives = int(column.targets.sum())
    return LabelEvaluation(column.label, positives, len(column.targets) - positives, column.threshold, metrics)


def _part(estimates: Mapping[_Key, Estimate], scope: int | str) -> dict[str, Estimate]:
    return {name: estimate for (owner, name), estimate in estimates.items() if owner == scope}


def _figures(metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_json() for name, estimate in metrics.items()}
