"""Evaluates predictions against the truth: every metric of every label and over all labels, each with its interval.

Weights of frames have shape (..., n): a row of ones gives the figure itself, one row for each resample the bootstrap. A figure
counts every frame alike, its interval counts patients (`pipeline.evaluate.intervals`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.evaluate.calibration import (
    Float64,
    adaptive_calibration_error,
    brier_score,
    expected_calibration_error,
    probabilities,
    ratio,
)
from pipeline.evaluate.intervals import TAIL, Estimate, auroc_limits, bootstrap, proportion_limits
from pipeline.predictions import Calibration, ConformalBand, DecisionRule, OperatingPoint, State, Task

PLURALS: Mapping[str, str] = {"frame": "frames", "study": "studies", "eye": "eyes", "patient": "patients"}
"""What can be evaluated. Figures of patients have their number once."""


FIXED = 0.95
"""The specificity at which a sensitivity is given, and the reverse."""


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

    The last two are the frames with and without the label that were uncertain. They count as errors in every metric but the
    predictive values, since an uncertain answer neither finds a disease nor rules it out (Schuetz, Schlattmann and Dewey, "Use
    of 3 x 2 tables with an intention to diagnose approach to assess clinical performance of diagnostic tests", BMJ 2012).
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


def net_benefit(probabilities: Float64, targets: Float64, thresholds: Float64) -> tuple[Float64, Float64]:
    """Return the net benefit of acting on frames from a probability on, and that of acting on all, each of shape (k,).

    Vickers and Elkin, "Decision curve analysis" (Medical Decision Making 2006): true positives less false positives, of all
    frames, if a false one weighs threshold / (1 - threshold) of a true one, which is what acting from that threshold on means.

    Parameters
    ----------
    probabilities, targets
        Shape (n,); n is not 0.
    thresholds
        Shape (k,), in (0, 1).
    """
    acted = probabilities >= thresholds[:, None]
    odds, prevalence = thresholds / (1 - thresholds), targets.mean()
    benefit = (acted @ targets - odds * (acted @ (1 - targets))) / len(targets)
    return benefit, np.asarray(prevalence - odds * (1 - prevalence), np.float64)


def sensitivity_at_specificity(points: Curve) -> Float64:
    """The largest sensitivity of thresholds whose specificity reaches `FIXED`; nan without positives or without negatives."""
    positives, negatives = (one[..., -1:].sum(-1) for one in (points.true_positives, points.false_positives))
    allowed = points.false_positives <= (1 - FIXED) * negatives[..., None] + 1e-9
    found = np.where(allowed, points.true_positives, 0).max(-1, initial=0)
    return ratio(np.where(negatives > 0, found, np.nan), positives)


def specificity_at_sensitivity(points: Curve) -> Float64:
    """The largest specificity of thresholds whose sensitivity reaches `FIXED`; nan without positives or without negatives."""
    positives, negatives = (one[..., -1:].sum(-1) for one in (points.true_positives, points.false_positives))
    allowed = points.true_positives >= FIXED * positives[..., None] - 1e-9
    spared = np.where(allowed, negatives[..., None] - points.false_positives, 0).max(-1, initial=0)
    return ratio(np.where(positives > 0, spared, np.nan), negatives)


def sensitivity(counts: Counts) -> Float64:
    """Part of the positives that was called positive; nan without positives."""
    return ratio(counts.true_positives, counts.positives)


def specificity(counts: Counts) -> Float64:
    """Part of the negatives that was called negative; nan without negatives."""
    return ratio(counts.true_negatives, counts.negatives)


def ppv(counts: Counts) -> Float64:
    """Positive predictive value: the part with the label of what was called positive; nan if nothing was."""
    return ratio(counts.true_positives, counts.true_positives + counts.false_positives)


def npv(counts: Counts) -> Float64:
    """Negative predictive value: the part without the label of what was called negative; nan if nothing was."""
    return ratio(counts.true_negatives, counts.true_negatives + counts.false_negatives)


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


RANKING: Mapping[str, Callable[[Curve], Float64]] = {
    "auroc": auroc,
    "average_precision": average_precision,
    "sensitivity_at_specificity_95": sensitivity_at_specificity,
    "specificity_at_sensitivity_95": specificity_at_sensitivity,
}
DECISION: Mapping[str, Callable[[Counts], Float64]] = {
    "sensitivity": sensitivity,
    "specificity": specificity,
    "ppv": ppv,
    "npv": npv,
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


ERRORS = ("ece", "adaptive_ece", "adaptive_ece_uncalibrated")
"""How far probabilities are from frequencies: in bins of equal width, and of equal size after and before calibration."""
METRICS = (*RANKING, *DECISION, *CALIBRATION, *ERRORS)
MACRO_METRICS = tuple(name for name in METRICS if name != "prevalence")
ARGMAX_METRICS = ("accuracy", "balanced_accuracy")
GRADE_METRICS = ("quadratic_kappa", "grade_error")
"""Further figures of the most probable label if labels are grades in their order."""

_MACRO, _ARGMAX = "macro", "argmax"
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

    def rows(self, places: NDArray[np.intp]) -> "Sample":
        """Return the sample of some of the frames."""
        return replace(
            self, logits=self.logits[places], targets=self.targets[places], groups=[self.groups[place] for place in places]
        )

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
        groups = np.asarray(self.groups, dtype=str)
        return tuple(
            LabelColumn(label, np.flatnonzero(~np.isnan(target)), chances, plain, target, states, groups, thresholds[label])
            for label, chances, plain, target, states in zip(
                self.labels,
                self.probabilities.T,
                probabilities(self.logits, self.task.activation).T,
                self.targets.T,
                self.states.T,
                strict=True,
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
    probabilities, uncalibrated, targets
        Shape (m,); uncalibrated probabilities are those of the network itself.
    states
        Shape (m,), as decided.
    groups
        Shape (m,), the patients.
    threshold
        Of the operating point.
    """

    def __init__(
        self,
        label: str,
        rows: NDArray[np.intp],
        chances: Float64,
        uncalibrated: Float64,
        targets: Float64,
        states: NDArray[np.object_],
        groups: NDArray[np.str_],
        threshold: float,
    ) -> None:
        self.label, self.rows, self.threshold = label, rows, threshold
        self.probabilities, self.uncalibrated = chances[rows], uncalibrated[rows]
        self.targets, self.states, self.groups = targets[rows], states[rows], groups[rows]

    def measure(self, weights: Float64) -> dict[str, Float64]:
        """Return the weighted metrics by name, each of shape (r,), for weights of shape (r, n) over the sample's frames."""
        return measure(self.probabilities, self.targets, self.states, weights[..., self.rows])

    @property
    def patients(self) -> tuple[int, int]:
        """How many patients have a frame with the label, and how many one without it; a patient may be both."""
        with_label, without = (len(np.unique(self.groups[self.targets == value])) for value in (1, 0))
        return with_label, without

    def closed_forms(self) -> dict[str, Estimate]:
        """Return the proportions among the metrics, and the area under the curve, with intervals that need no resamples."""
        present, positive, negative = self.targets == 1, self.states == State.POSITIVE, self.states == State.NEGATIVE
        everything = np.ones(len(present), bool)
        parts = {
            "sensitivity": (present, positive),
            "specificity": (~present, negative),
            "ppv": (positive, present),
            "npv": (negative, ~present),
            "prevalence": (everything, present),
            "uncertain": (everything, self.states == State.UNCERTAIN),
        }
        found = {name: proportion(hits[among], self.groups[among]) for name, (among, hits) in parts.items()}
        area = float(auroc(curve(self.probabilities, self.targets, np.ones(len(present)))))
        limits = None if np.isnan(area) else auroc_limits(self.probabilities, self.targets, self.groups)
        return found | {"auroc": Estimate.of(area, limits)}

    def predictive_values(self, prevalence: float) -> dict[str, Estimate]:
        """Return the predictive values if the label is as common as given, from the states of frames with and without it.

        The limits combine those of both rates, each with half of the error, so they hold at least as often as 95 %.

        Parameters
        ----------
        prevalence
            In (0, 1).
        """
        present, groups = self.targets == 1, self.groups
        found = {}
        for name, state, chance, wanted in (
            ("ppv", State.POSITIVE, prevalence, present),
            ("npv", State.NEGATIVE, 1 - prevalence, ~present),
        ):
            rates = []
            for rows in (wanted, ~wanted):
                hits = (self.states == state)[rows]
                limits = proportion_limits(hits, groups[rows], tail=TAIL / 2) if len(hits) else None
                rates.append((hits.mean() if len(hits) else np.nan, limits))
            (right, among), (wrong, others) = rates

            def value(right: float, wrong: float, chance: float = chance) -> float:
                return float(ratio(chance * right, chance * right + (1 - chance) * wrong))

            limits = (value(among[0], others[1]), value(among[1], others[0])) if among and others else None
            found[name] = Estimate.of(value(right, wrong), limits)
        return found


def proportion(hits: NDArray[np.bool_], groups: NDArray[np.str_]) -> Estimate:
    """Return which part of some frames counts, with its interval; parameters as in `proportion_limits`."""
    if not len(hits):
        return Estimate.of(np.nan, None)
    return Estimate.of(float(hits.mean()), proportion_limits(hits, groups))


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
    positive_patients, negative_patients
        How many patients these come from.
    threshold
        Of the operating point.
    metrics
        By the names in `METRICS`.
    at_prevalence
        `prevalence`, if one was given, and there `ppv` and `npv`.
    """

    label: str
    n_positive: int
    n_negative: int
    positive_patients: int
    negative_patients: int
    threshold: float
    metrics: Mapping[str, Estimate]
    at_prevalence: Mapping[str, float | Estimate] = field(default_factory=dict)


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
                    "positive_patients": label.positive_patients,
                    "negative_patients": label.negative_patients,
                    "threshold": label.threshold,
                    "metrics": _figures(label.metrics),
                }
                | ({"at_prevalence": _at_prevalence(label.at_prevalence)} if label.at_prevalence else {})
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


def evaluate(sample: Sample, resamples: int = 1000, seed: int = 0, prevalence: Mapping[str, float] | None = None) -> Evaluation:
    """Compute every metric with its 95 % interval, which counts patients.

    Proportions and areas under the receiver operating characteristic have intervals in closed form, the others resampled ones;
    for which figures no interval is honest, `pipeline.evaluate.intervals` says. The expected calibration error has none:
    resampling adds to its bias, so that percentiles often lie above the figure.

    Parameters
    ----------
    sample
        The frames of one split.
    resamples
        Of the bootstrap; with 0 there are only the intervals in closed form.
    seed
        Of the bootstrap.
    prevalence
        How common labels are where the predictive values are to hold, in (0, 1), by label.

    Raises
    ------
    InputError
        If a prevalence is of no label of the sample, or not between 0 and 1.
    """
    local = prevalence or {}
    if wrong := [label for label, part in local.items() if label not in sample.labels or not 0 < part < 1]:
        raise InputError(
            f"The prevalence of {', '.join(wrong)} cannot be used: give it as LABEL=0.02, with a label among "
            f"{', '.join(sample.labels)} and a number between 0 and 1."
        )
    columns, choice = sample.columns, sample.choice
    groups = np.asarray(sample.groups, dtype=str)
    unsure = np.asarray((sample.states == State.UNCERTAIN).any(axis=1), bool)
    estimates = bootstrap(lambda weights: _statistic(columns, choice, weights), sample.groups, resamples, seed, _rests(columns))
    for index, column in enumerate(columns):
        estimates |= {(index, name): estimate for name, estimate in column.closed_forms().items()}
    if choice:
        estimates[_ARGMAX, "accuracy"] = proportion(choice.chosen == choice.true, groups[choice.rows])
    estimates |= _calibration_errors(columns)
    return Evaluation(
        labels=tuple(
            _label_evaluation(column, _part(estimates, index), local.get(column.label)) for index, column in enumerate(columns)
        ),
        macro=_part(estimates, _MACRO),
        argmax=_part(estimates, _ARGMAX),
        uncertain=proportion(unsure, groups),
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
        name: np.mean([metrics[name] for metrics in labels], axis=0) for name in MACRO_METRICS if name not in ERRORS
    }
    argmax = choice.measure(weights) if choice else {}
    scopes: list[tuple[int | str, dict[str, Float64]]] = [*enumerate(labels), (_MACRO, macro), (_ARGMAX, argmax)]
    return {(scope, name): figures for scope, metrics in scopes for name, figures in metrics.items()}


def _rests(columns: Sequence[LabelColumn]) -> dict[_Key, int]:
    """Return on how many patients the figures rest that need frames with a label and frames without it."""
    fewest = [min(column.patients) for column in columns]
    both = [name for name in MACRO_METRICS if name not in (*CALIBRATION, "uncertain", *ERRORS)]
    rests: dict[_Key, int] = {(index, name): count for index, count in enumerate(fewest) for name in both}
    balanced = min(column.patients[0] for column in columns)
    return rests | {(_MACRO, name): min(fewest) for name in both} | {(_ARGMAX, "balanced_accuracy"): balanced}


def _calibration_errors(columns: Sequence[LabelColumn]) -> dict[_Key, Estimate]:
    found: list[tuple[int | str, Sequence[float]]] = []
    for index, column in enumerate(columns):
        errors = expected_calibration_error(column.probabilities, column.targets)
        sized = (adaptive_calibration_error(one, column.targets) for one in (column.probabilities, column.uncalibrated))
        found.append((index, (errors, *sized)))
    found.append((_MACRO, np.mean([errors for _, errors in found], axis=0).tolist()))
    return {
        (scope, name): Estimate.of(error, None) for scope, errors in found for name, error in zip(ERRORS, errors, strict=True)
    }


def _label_evaluation(column: LabelColumn, metrics: Mapping[str, Estimate], prevalence: float | None) -> LabelEvaluation:
    positives = int(column.targets.sum())
    return LabelEvaluation(
        column.label,
        positives,
        len(column.targets) - positives,
        *column.patients,
        column.threshold,
        metrics,
        {} if prevalence is None else {"prevalence": prevalence, **column.predictive_values(prevalence)},
    )


def _at_prevalence(found: Mapping[str, float | Estimate]) -> dict[str, Any]:
    return {name: asdict(value) if isinstance(value, Estimate) else value for name, value in found.items()}


def _part(estimates: Mapping[_Key, Estimate], scope: int | str) -> dict[str, Estimate]:
    return {name: estimate for (owner, name), estimate in estimates.items() if owner == scope}


def _figures(metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: asdict(estimate) for name, estimate in metrics.items()}
