"""Evaluates predictions against the truth: every metric of every label and over all labels, each with its interval.

Weights of frames have shape (..., n): a row of ones gives the figure itself, one row for each resample the bootstrap. Intervals
of 95 % come from drawing patients with replacement, not frames, since the frames of one patient resemble each other.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.evaluate.calibration import Float64, brier_score, expected_calibration_error, probabilities, ratio
from pipeline.predictions import Calibration, ConformalBand, DecisionRule, Interval, OperatingPoint, State, Task

PLURALS: Mapping[str, str] = {"frame": "frames", "study": "studies", "eye": "eyes", "patient": "patients"}
"""What can be evaluated. Figures of patients have their number once."""


class Curve(NamedTuple):
    """Positives and negatives at or above each distinct probability, from the highest down.

    Parameters
    ----------
    thresholds
        Shape (k,), falling.
    true_positives, false_positives
        Weights, shape (..., k).
    """

    thresholds: Float64
    true_positives: Float64
    false_positives: Float64


class Counts(NamedTuple):
    """The six cells of the confusion table, as sums of weights of shape (...).

    The last two are the frames with and without the label that were uncertain. They count as errors in every metric, since an
    uncertain answer neither finds a disease nor rules it out (Schuetz, Schlattmann and Dewey, "Use of 3 x 2 tables with an
    intention to diagnose approach to assess clinical performance of diagnostic tests", BMJ 2012).
    """

    true_positives: Float64
    false_positives: Float64
    false_negatives: Float64
    true_negatives: Float64
    uncertain_positives: Float64
    uncertain_negatives: Float64

    @property
    def positives(self) -> Float64:
        """Of all frames with the label."""
        return self.true_positives + self.false_negatives + self.uncertain_positives

    @property
    def negatives(self) -> Float64:
        """Of all frames without the label."""
        return self.true_negatives + self.false_positives + self.uncertain_negatives


def curve(probabilities: Float64, targets: Float64, weights: Float64) -> Curve:
    """Sum positives and negatives from the highest probability down; equal probabilities are one step.

    Parameters
    ----------
    probabilities
        Shape (n,).
    targets
        Shape (n,) of 1 and 0.
    weights
        Shape (..., n), not negative.
    """
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])
    sorted_weights = weights[..., order]
    everything = np.cumsum(sorted_weights, axis=-1)[..., ends]
    positives = np.cumsum(sorted_weights * targets[order], axis=-1)[..., ends]
    return Curve(ordered[ends], positives, everything - positives)


def confusion_counts(states: NDArray[np.object_], targets: Float64, weights: Float64) -> Counts:
    """Return the confusion table of one label.

    Parameters
    ----------
    states
        Shape (n,): what was decided.
    targets
        Shape (n,) of 1 and 0.
    weights
        Shape (..., n), not negative.
    """
    present = targets == 1
    decided = [states == state for state in (State.POSITIVE, State.NEGATIVE, State.UNCERTAIN)]
    positive, negative, uncertain = (np.asarray(one, bool) for one in decided)
    pairs = ((positive, present), (positive, ~present), (negative, present), (negative, ~present))
    fields = np.stack([*(one & other for one, other in pairs), uncertain & present, uncertain & ~present], axis=1)
    return Counts(*np.moveaxis(weights @ fields.astype(np.float64), -1, 0))


def auroc(points: Curve) -> Float64:
    """Area under the receiver operating characteristic, ties counted half; nan without positives or without negatives."""
    rises = np.diff(points.false_positives, prepend=0)
    middles = points.true_positives - np.diff(points.true_positives, prepend=0) / 2
    totals = points.true_positives[..., -1:] * points.false_positives[..., -1:]
    return ratio((rises * middles).sum(-1), totals.sum(-1))


def average_precision(points: Curve) -> Float64:
    """Mean of the precision over the steps in sensitivity, without interpolation; nan without positives."""
    steps = np.diff(points.true_positives, prepend=0)
    called = points.true_positives + points.false_positives
    precision = np.divide(points.true_positives, called, out=np.zeros_like(called), where=called != 0)
    return ratio((steps * precision).sum(-1), points.true_positives[..., -1:].sum(-1))


def sensitivity(counts: Counts) -> Float64:
    """Part of the positives that was called positive; nan without positives."""
    return ratio(counts.true_positives, counts.positives)


def specificity(counts: Counts) -> Float64:
    """Part of the negatives that was called negative; nan without negatives."""
    return ratio(counts.true_negatives, counts.negatives)


def balanced_accuracy(counts: Counts) -> Float64:
    """Mean of sensitivity and specificity; nan if either is."""
    return (sensitivity(counts) + specificity(counts)) / 2


def f1(counts: Counts) -> Float64:
    """Twice the true positives over these and all errors; nan without positives."""
    errors = counts.positives - counts.true_positives + counts.negatives - counts.true_negatives
    return ratio(2 * counts.true_positives, np.where(counts.positives > 0, 2 * counts.true_positives + errors, 0))


def mcc(counts: Counts) -> Float64:
    """Matthews correlation coefficient, in [-1, 1]; nan if the truth or the decisions have a single class."""
    tp, tn = counts.true_positives, counts.true_negatives
    fn, fp = counts.positives - tp, counts.negatives - tn
    return ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def prevalence(counts: Counts) -> Float64:
    """Part of the frames that has the label."""
    return ratio(counts.positives, counts.positives + counts.negatives)


def uncertain(counts: Counts) -> Float64:
    """Part of the frames that was called neither positive nor negative."""
    return ratio(counts.uncertain_positives + counts.uncertain_negatives, counts.positives + counts.negatives)


RANKING: Mapping[str, Callable[[Curve], Float64]] = {"auroc": auroc, "average_precision": average_precision}
DECISION: Mapping[str, Callable[[Counts], Float64]] = {
    "sensitivity": sensitivity,
    "specificity": specificity,
    "balanced_accuracy": balanced_accuracy,
    "f1": f1,
    "mcc": mcc,
    "prevalence": prevalence,
    "uncertain": uncertain,
}
CALIBRATION: Mapping[str, Callable[[Float64, Float64, Float64], Float64]] = {"brier": brier_score}


def measure(probabilities: Float64, targets: Float64, states: NDArray[np.object_], weights: Float64) -> dict[str, Float64]:
    """Return every metric of one label by its name, each of shape (...); parameters as in `curve` and `confusion_counts`."""
    points, counts = curve(probabilities, targets, weights), confusion_counts(states, targets, weights)
    ranking = {name: metric(points) for name, metric in RANKING.items()}
    decision = {name: metric(counts) for name, metric in DECISION.items()}
    calibration = {name: metric(probabilities, targets, weights) for name, metric in CALIBRATION.items()}
    return ranking | decision | calibration


Key = TypeVar("Key", bound=Hashable)

PERCENTILES = (2.5, 97.5)
CELLS = 2**18


@dataclass(frozen=True, slots=True)
class Estimate(Interval):
    """A figure with its 95 % interval: percentiles 2.5 and 97.5 over the resamples in which the figure is defined.

    Parameters
    ----------
    left_out
        In how many resamples it is not defined, for example because none of the drawn patients has the finding.
    """

    left_out: int


def bootstrap(
    statistic: Callable[[Float64], Mapping[Key, Float64]], groups: Sequence[str], resamples: int, seed: int
) -> dict[Key, Estimate]:
    """Estimate figures with percentile intervals over resamples of whole patients (Efron and Tibshirani 1993, chapter 13).

    Parameters
    ----------
    statistic
        Takes weights of shape (r, n) and returns figures of shape (r,), nan if one is not defined.
    groups
        The patient of each of the n frames. With fewer than two patients there is no interval: it is nan.
    resamples
        How often as many patients as there are, are drawn.
    seed
        Equal seeds give equal intervals, whatever the order of the frames.
    """
    names, members = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    values = statistic(np.ones((1, len(members))))
    drawn: dict[Key, list[Float64]] = {key: [np.empty(0)] for key in values}
    for counts in _draw(len(names), resamples, max(1, CELLS // len(members)), seed):
        for key, figures in statistic(counts[:, members]).items():
            drawn[key].append(figures)
    enough = len(names) > 1
    return {key: _estimate(float(values[key][0]), np.concatenate(parts), enough) for key, parts in drawn.items()}


def _draw(patients: int, resamples: int, at_once: int, seed: int) -> Iterator[Float64]:
    """Yield how often each patient was drawn, in parts of shape (at most at_once, patients)."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        yield rng.multinomial(patients, np.full(patients, 1 / patients), size=size).astype(np.float64)


def _estimate(value: float, figures: Float64, enough: bool) -> Estimate:
    defined = figures[~np.isnan(figures)]
    low, high = map(float, np.percentile(defined, PERCENTILES)) if enough and len(defined) else (None, None)
    return Estimate(None if np.isnan(value) else value, low, high, len(figures) - len(defined))


_ECE = "ece"
METRICS = (*RANKING, *DECISION, *CALIBRATION, _ECE)
MACRO_METRICS = tuple(name for name in METRICS if name != "prevalence")
ARGMAX_METRICS = ("accuracy", "balanced_accuracy")
GRADE_METRICS = ("quadratic_kappa", "grade_error")
"""Further figures of the most probable label if labels are grades in their order."""

_MACRO, _ARGMAX, _FRAMES = "macro", "argmax", "frames"
_Key = tuple[int | str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Frames to evaluate: the truth, the network's logits, and how these become decisions.

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
    task
        Says how logits become probabilities, and which figures there are.
    calibration
        As in the bundle.
    operating_points
        One for each label.
    bands, normal_label
        As in `DecisionRule.of`.
    unit
        What is evaluated: each row is a frame, a study, an eye or a patient.

    Raises
    ------
    InputError
        If there is no frame, a logit is not finite, a target is something else than 1, 0 or nan, a target names
        more than one label though only one can hold, a label has no operating point, or the sizes do not fit together.
    """

    logits: NDArray[np.floating[Any]]
    targets: Float64
    groups: Sequence[str]
    labels: tuple[str, ...]
    task: Task
    calibration: Calibration
    operating_points: tuple[OperatingPoint, ...]
    bands: tuple[ConformalBand, ...] = ()
    normal_label: str | None = None
    unit: str = "frame"

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
        if len(self.calibration.temperatures) != shape[1]:
            found = len(self.calibration.temperatures)
            yield f"The calibration has {found} temperatures for {shape[1]} labels. Train the bundle again."
        if not np.isin(self.targets[~np.isnan(self.targets)], (0, 1)).all():
            yield "Targets must be 1, 0 or nan (not known)."
        if self.task is not Task.MULTILABEL and (several := int(((self.targets == 1).sum(axis=1) > 1).sum())):
            yield (
                f"{several} of {shape[0]} frames have more than one label, but in a {self.task} task exactly one label "
                f"holds. Use task={Task.MULTILABEL} for labels that may hold together."
            )
        if without := [label for label in self.labels if label not in {point.label for point in self.operating_points}]:
            yield f"There is no operating point for {', '.join(without)}. Train the bundle again."

    @property
    def probabilities(self) -> Float64:
        """Calibrated, of shape (n, labels)."""
        return probabilities(self.logits, self.task.activation, self.calibration.temperatures, self.calibration.offsets)

    @property
    def states(self) -> NDArray[np.object_]:
        """The state of each label in each frame, of shape (n, labels)."""
        rule = DecisionRule.of(self.labels, self.operating_points, self.bands, self.task.activation, self.normal_label)
        return rule.states(self.probabilities)

    @property
    def columns(self) -> "tuple[LabelColumn, ...]":
        """Each label with the frames for which it is known."""
        thresholds = {point.label: point.threshold for point in self.operating_points}
        return tuple(
            LabelColumn(label, np.flatnonzero(~np.isnan(target)), chances, target, states, thresholds[label])
            for label, chances, target, states in zip(
                self.labels, self.probabilities.T, self.targets.T, self.states.T, strict=True
            )
        )

    @property
    def choice(self) -> "Choice | None":
        """The most probable label of each frame beside the true one; None if the task is multilabel: labels are independent."""
        if self.task is Task.MULTILABEL:
            return None
        rows = np.flatnonzero((self.targets == 1).any(axis=1))
        chosen, true = self.logits[rows].argmax(axis=1), (self.targets[rows] == 1).argmax(axis=1)
        return Choice(rows, chosen, true, len(self.labels), self.task is Task.ORDINAL)


class LabelColumn:
    """One label in the frames for which it is known.

    Attributes
    ----------
    rows
        Positions of these m frames in the sample.
    probabilities, targets
        Shape (m,).
    states
        Shape (m,), as decided.
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
    """One label for each frame: the chosen and the true one, as positions, each of shape (m,), in the m frames at `rows`.

    `has_grades` says whether the labels are grades in their order.
    """

    rows: NDArray[np.intp]
    chosen: NDArray[np.intp]
    true: NDArray[np.intp]
    labels: int
    has_grades: bool = False

    def confusion(self) -> tuple[tuple[int, ...], ...]:
        """Count the frames by true label (rows) and chosen label (columns)."""
        cells = np.bincount(self.true * self.labels + self.chosen, minlength=self.labels**2)
        return tuple(tuple(map(int, row)) for row in cells.reshape(self.labels, self.labels))

    def measure(self, weights: Float64) -> dict[str, Float64]:
        """Return accuracy, and balanced accuracy as the mean sensitivity of the labels: nan if one has no frame.

        With grades also kappa with quadratic weights (Cohen, "Weighted kappa", 1968), nan if all frames are of one grade, and
        the mean number of grades between the chosen and the true one. Weights have shape (r, n) over all frames of the sample,
        each figure shape (r,).
        """
        members, chosen = np.eye(self.labels)[self.true], np.eye(self.labels)[self.chosen]
        known = weights[..., self.rows]
        totals, right = known @ members, known @ (members * chosen)
        figures = ratio(right.sum(-1), totals.sum(-1)), ratio(right, totals).mean(-1)
        measured = dict(zip(ARGMAX_METRICS, figures, strict=True))
        if self.has_grades:
            apart = np.abs(np.arange(self.labels)[:, None] - np.arange(self.labels))
            by_chance = ((totals @ apart**2) * (known @ chosen)).sum(-1)
            squares = known @ apart[self.true, self.chosen] ** 2
            grades = 1 - ratio(squares * known.sum(-1), by_chance), ratio(known @ apart[self.true, self.chosen], known.sum(-1))
            measured |= dict(zip(GRADE_METRICS, grades, strict=True))
        return measured


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
        Means over the labels, by the names in `MACRO_METRICS`; nan if one label's figure is.
    argmax
        Of the most probable label, by the names in `ARGMAX_METRICS` and, if labels are grades, `GRADE_METRICS`; empty if the
        task is multilabel.
    uncertain
        The part of the frames in which at least one label is uncertain.
    confusion
        Frames by true (rows) and most probable label (columns); empty if the task is multilabel.
    frames, patients
        How many were evaluated.
    calibration
        That made the probabilities.
    resamples, seed
        Of the bootstrap.
    unit
        What was evaluated, as in `Sample`; what is said of frames here holds for it.
    levels
        The figures of studies, eyes and patients, by the names of the levels.
    folds
        The figures of each fold by itself, without intervals; empty if there are no folds.
    """

    labels: tuple[LabelEvaluation, ...]
    macro: Mapping[str, Estimate]
    argmax: Mapping[str, Estimate]
    uncertain: Estimate
    confusion: tuple[tuple[int, ...], ...]
    frames: int
    patients: int
    calibration: Calibration
    resamples: int
    seed: int
    unit: str = "frame"
    levels: "Mapping[str, Evaluation]" = field(default_factory=dict)
    folds: "tuple[Evaluation, ...]" = ()

    def to_json(self) -> dict[str, Any]:
        """Return what `metrics.json` holds; a figure that is not defined is None."""
        return {
            PLURALS[self.unit]: self.frames,
            "patients": self.patients,
            "calibration": asdict(self.calibration),
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
            "uncertain": asdict(self.uncertain),
            "confusion": [list(row) for row in self.confusion],
        } | self._parts()

    def _parts(self) -> dict[str, Any]:
        """Return the figures of levels and folds, as far as there are any."""
        parts: dict[str, Any] = {"levels": {level: one.to_json() for level, one in self.levels.items()}} if self.levels else {}
        if self.folds:
            folds = [one.to_json() for one in self.folds]
            spread = {
                group: {name: _spread([one[group][name]["value"] for one in folds]) for name in folds[0][group]}
                for group in (_MACRO, _ARGMAX)
            }
            parts |= {"folds": folds, "spread": spread}
        return parts


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
        calibration=sample.calibration,
        resamples=resamples,
        seed=seed,
        unit=sample.unit,
    )


def _unit(evaluation: Mapping[str, Any]) -> str:
    """Return what an `Evaluation.to_json` is about, as in `Sample`."""
    return next(unit for unit, plural in PLURALS.items() if plural in evaluation)


def flat_figures(evaluation: Mapping[str, Any], split: str) -> dict[str, float]:
    """Return the figures of `Evaluation.to_json` under one name each, for MLflow; figures that are not defined are left out.

    The names are `<split>_<metric>` for the means over the labels, `<split>_argmax_<metric>`, `<split>_<label>_<metric>`, and
    `<split>_uncertain_frames`; those of a level `<level>_<split>_<metric>` and so on, and `<level>_<split>_uncertain_studies`,
    `_eyes` or `_patients`. Those of folds are `fold_<number>_<metric>` and so on, the number from 1; their mean and standard
    deviation are `folds_mean_<metric>` and `folds_sd_<metric>`. An empty evaluation has no figures.
    """
    if not evaluation:
        return {}
    groups = {f"{split}_": evaluation["macro"] | {f"uncertain_{PLURALS[_unit(evaluation)]}": evaluation["uncertain"]}}
    groups[f"{split}_argmax_"] = evaluation["argmax"]
    groups |= {f"{split}_{label}_": found["metrics"] for label, found in evaluation["labels"].items()}
    figures = {prefix + name: figure["value"] for prefix, group in groups.items() for name, figure in group.items()}
    for level, found in evaluation.get("levels", {}).items():
        figures |= flat_figures(found, f"{level}_{split}")
    for number, found in enumerate(evaluation.get("folds", ()), 1):
        figures |= flat_figures(found, f"fold_{number}")
    for group, metrics in evaluation.get("spread", {}).items():
        scope = "" if group == _MACRO else f"{group}_"
        figures |= {f"folds_{kind}_{scope}{name}": found[kind] for name, found in metrics.items() for kind in ("mean", "sd")}
    return {name: value for name, value in figures.items() if value is not None}


def _spread(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Return mean and standard deviation (of a sample) of a figure over the folds in which it is defined, and how many."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "folds": len(known),
    }


def _statistic(columns: Sequence[LabelColumn], choice: Choice | None, weights: Float64) -> dict[_Key, Float64]:
    labels = [column.measure(weights) for column in columns]
    macro: dict[str, Float64] = {
        name: np.mean([metrics[name] for metrics in labels], axis=0) for name in MACRO_METRICS if name != _ECE
    }
    argmax = choice.measure(weights) if choice else {}
    scopes: list[tuple[int | str, dict[str, Float64]]] = [*enumerate(labels), (_MACRO, macro), (_ARGMAX, argmax)]
    return {(scope, name): figures for scope, metrics in scopes for name, figures in metrics.items()}


def _calibration_errors(columns: Sequence[LabelColumn]) -> dict[_Key, Estimate]:
    errors = [expected_calibration_error(column.probabilities, column.targets) for column in columns]
    scopes: list[tuple[int | str, float]] = [*enumerate(errors), (_MACRO, float(np.mean(errors)))]
    return {(scope, _ECE): Estimate(None if np.isnan(error) else error, None, None, 0) for scope, error in scopes}


def _label_evaluation(column: LabelColumn, metrics: Mapping[str, Estimate]) -> LabelEvaluation:
    positives = int(column.targets.sum())
    return LabelEvaluation(column.label, positives, len(column.targets) - positives, column.threshold, metrics)


def _part(estimates: Mapping[_Key, Estimate], scope: int | str) -> dict[str, Estimate]:
    return {name: estimate for (owner, name), estimate in estimates.items() if owner == scope}


def _figures(metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: asdict(estimate) for name, estimate in metrics.items()}
