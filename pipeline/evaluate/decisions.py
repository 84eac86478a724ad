"""Fits decisions on the calibration split: the threshold of each label, and the band around it that is called uncertain.

In the band neither presence nor absence of a label can be ruled out. It is split conformal prediction for each class by itself
("Mondrian", or class-conditional: Vovk, "Conditional validity of inductive conformal predictors", Machine Learning 2013) and
for frames that come in groups, the patients (Dunn, Wasserman and Ramdas, "Distribution-free prediction sets for two-layer
hierarchical models", JASA 2023; Lee, Barber and Willett, "Distribution-free inference with hierarchical data", 2023).
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.evaluate.calibration import Float64
from pipeline.evaluate.intervals import CELLS, Estimate, bootstrap, proportion_limits
from pipeline.evaluate.metrics import LabelColumn, Sample, confusion_counts, curve, proportion, sensitivity, specificity
from pipeline.predictions import ConformalBand, Interval, OperatingPoint, State, patients_needed

YOUDEN = "youden"
SENSITIVITY = re.compile(r"sensitivity>=(0\.\d+)")


def choose_operating_points(
    probabilities: Float64, targets: Float64, labels: Sequence[str], criterion: str
) -> tuple[OperatingPoint, ...]:
    """Choose a threshold for each label, and give the sensitivity and specificity at it.

    The threshold lies midway between the lowest probability that is positive and the next one below it (zero below the last),
    so that rounding does not move a frame across it.

    Parameters
    ----------
    probabilities
        Shape (n, labels), calibrated, in [0, 1].
    targets
        Shape (n, labels) of 1, 0 and nan (not known, left out).
    labels
        Names, in the order of the columns.
    criterion
        `youden`: the largest sensitivity + specificity - 1 (Youden 1950), of equal ones that with the larger sensitivity.
        `sensitivity>=0.NN`: the largest specificity whose sensitivity reaches 0.NN.

    Raises
    ------
    InputError
        If the criterion is not one of these, or a label has no positive or no negative example.
    """
    _wanted_sensitivity(criterion)
    columns = [(p[known], t[known]) for p, t in zip(probabilities.T, targets.T, strict=True) for known in [~np.isnan(t)]]
    _check_classes(labels, [column[1] for column in columns])
    return tuple(_choose(label, *column, criterion) for label, column in zip(labels, columns, strict=True))


def _wanted_sensitivity(criterion: str) -> Fraction | None:
    match = SENSITIVITY.fullmatch(criterion)
    if match is None and criterion != YOUDEN:
        raise InputError(
            f"The criterion must be youden or sensitivity>=0.NN, for example sensitivity>=0.95. Got {criterion!r}."
        )
    return Fraction(match[1]) if match else None


def _check_classes(labels: Sequence[str], targets: Sequence[Float64]) -> None:
    """Raise one error that names all labels whose operating point cannot be chosen."""
    missing = [
        f"{label} has no {kind} example"
        for label, column in zip(labels, targets, strict=True)
        for kind, value in (("positive", 1), ("negative", 0))
        if not np.any(column == value)
    ]
    if missing:
        raise InputError(
            f"An operating point cannot be chosen on the calibration split: {'; '.join(missing)}. "
            "Give the split more patients, or leave the label out."
        )


def thresholds(probabilities: Float64, targets: Float64, weights: Float64, criterion: str) -> Float64:
    """Return the threshold that the criterion chooses for each row of weights.

    Parameters
    ----------
    probabilities, targets
        Of one label in the n frames for which it is known.
    weights
        Shape (r, n), not negative: how often each frame counts.
    criterion
        As in `choose_operating_points`.

    Returns
    -------
    Float64
        Shape (r,); nan for a row without positives or without negatives.
    """
    wanted = _wanted_sensitivity(criterion)
    points = curve(probabilities, targets, weights)
    positives, negatives = points.true_positives[:, -1:], points.false_positives[:, -1:]
    found, alarms = points.true_positives, points.false_positives
    drawn = np.diff(found + alarms, axis=1, prepend=0) > 0  # a probability that no drawn frame has is no step
    if wanted is None:
        gains = np.where(drawn, found * negatives - alarms * positives, -np.inf)
        cuts = gains.shape[1] - 1 - gains[:, ::-1].argmax(axis=1)  # of equal gains the last
    else:
        reached = found * wanted.denominator >= wanted.numerator * positives
        cuts = (drawn & reached).argmax(axis=1)
    later = drawn & (np.arange(drawn.shape[1]) > cuts[:, None])
    upper = points.thresholds[cuts]
    lower = np.where(later.any(axis=1), points.thresholds[later.argmax(axis=1)], 0.0)
    middle = lower + (upper - lower) / 2
    chosen: Float64 = np.where(middle > lower, middle, upper)  # no number may lie between them
    return np.where(((positives > 0) & (negatives > 0))[:, 0], chosen, np.nan)


def _choose(label: str, probabilities: Float64, targets: Float64, criterion: str) -> OperatingPoint:
    (threshold,) = thresholds(probabilities, targets, np.ones((1, len(targets))), criterion)
    positive = probabilities >= threshold
    sensitivity, specificity = positive[targets == 1].mean(), 1 - positive[targets == 0].mean()
    return OperatingPoint(label, float(threshold), criterion, float(sensitivity), float(specificity))


def with_figures(points: tuple[OperatingPoint, ...], sample: Sample, *, are_chosen: bool = True) -> tuple[OperatingPoint, ...]:
    """Return the points with their figures on frames of a calibration; a label without frames of both kinds keeps its own.

    Sensitivity and specificity are those of the states, which depend on bands and other labels as well. On so few patients as
    a calibration split may have they promise too much, since the threshold was chosen for these very frames; so the points also
    get what `expected_rates` says.

    Parameters
    ----------
    points
        One for each label.
    sample
        The frames.
    are_chosen
        Whether the thresholds were chosen on these frames. If they were not, what to expect of them is what they do here.
    """
    return tuple(
        _with_figures(point, column, are_chosen) if min(column.patients) else point
        for point, column in zip(points, sample.columns, strict=True)
    )


def _with_figures(point: OperatingPoint, column: LabelColumn, is_chosen: bool) -> OperatingPoint:
    counts = confusion_counts(column.states, column.targets, np.ones(len(column.rows)))
    if is_chosen:
        found, spared = expected_rates(column.probabilities, column.targets, column.groups, point.criterion)
    else:
        found, spared = _rates(column.probabilities >= point.threshold, column.targets, column.groups)
    return replace(
        point,
        sensitivity=float(sensitivity(counts)),
        specificity=float(specificity(counts)),
        expected_sensitivity=Interval(found.value, found.low, found.high),
        expected_specificity=Interval(spared.value, spared.low, spared.high),
    )


def expected_rates(
    probabilities: Float64, targets: Float64, groups: NDArray[np.str_], criterion: str
) -> tuple[Estimate, Estimate]:
    """Return the sensitivity and specificity that a threshold so chosen has in further patients, with 95 % intervals.

    The threshold is chosen again without each patient and applied to that patient's frames (leave-one-out, by patient). The
    intervals are those of `proportion_limits`; with one patient of a kind there is nothing to choose from without it.

    Parameters
    ----------
    probabilities, targets
        Of one label in the n frames for which it is known.
    groups
        The patient of each, shape (n,).
    criterion
        As in `choose_operating_points`.
    """
    _, members = np.unique(groups, return_inverse=True)
    chosen = np.empty(members.max() + 1)
    at_once = max(1, CELLS // len(members))
    for start in range(0, len(chosen), at_once):
        left_out = np.arange(start, min(start + at_once, len(chosen)))
        chosen[left_out] = thresholds(probabilities, targets, (members != left_out[:, None]).astype(np.float64), criterion)
    is_defined, nothing = ~np.isnan(chosen[members]), Estimate.of(np.nan, None)
    found, spared = _rates(probabilities >= chosen[members], targets, groups)
    return found if is_defined[targets == 1].all() else nothing, spared if is_defined[targets == 0].all() else nothing


def _rates(positive: NDArray[np.bool_], targets: Float64, groups: NDArray[np.str_]) -> tuple[Estimate, Estimate]:
    """Return the part of the frames with a label that are called positive, and of those without it that are not."""
    present, absent = targets == 1, targets == 0
    return proportion(positive[present], groups[present]), proportion(~positive[absent], groups[absent])


def conformal_bands(
    probabilities: Float64,
    targets: Float64,
    groups: Sequence[str],
    points: Sequence[OperatingPoint],
    alpha: float,
    resamples: int,
    seed: int,
) -> tuple[ConformalBand, ...]:
    """Fit the band of each label on the calibration split.

    A band has two purposes, and it reaches as far as the wider of them.

    First, it covers the truth: in a patient like those of the calibration split, a frame with the label lies below
    `present_from`, and a frame without it at or above `absent_below`, each with a chance of at most `alpha`. Let K
    patients have frames with the label, N_k of them each. Then `present_from` is the largest probability seen in these frames
    that has a mass of at least 1 - alpha at or above it, if each frame has the mass 1 / (N_k (K + 1)). If the patients can be
    exchanged, and the frames of a patient as well, the chance of a miss is at most alpha, with or without ties, however many
    frames a patient has (Lee, Barber and Willett 2023, theorem 1; with one frame each, the edge is the floor(alpha (K + 1))-th
    smallest). Each patient counts once, since the frames of one patient resemble each other.

    This is the coverage of a frame, on average over patients: more often than alpha, one of the frames of a patient is missed.
    The edges exist from `patients_needed` patients with the label and as many without it. With fewer of either, nothing is
    promised for the label, and its band has only the second purpose.

    Second, it covers the 95 % interval of the operating point, which is chosen again on resampled patients: between the
    thresholds that other samples of as many patients would have given, the side of the threshold means nothing. (The threshold
    of Youden's index converges slowly, with the cube root of n, so percentiles of the bootstrap are only a guide.)

    The first edge is moved outwards to the middle between it and the next probability seen, so that rounding does not move a
    frame across it. All this only widens bands. The temperature and the operating point come from the same frames: the
    quantiles follow any rising function of the logits, so under sigmoid this costs nothing, and under softmax no more than one
    number fitted to all frames can cost. `benchmarks/states.py` measures it.

    Parameters
    ----------
    probabilities
        Shape (n, labels), calibrated, in [0, 1].
    targets
        Shape (n, labels) of 1, 0 and nan (not known, left out).
    groups
        The patient of each frame.
    points
        The operating point of each label, in the order of the columns.
    alpha
        How often the truth may be missed, in (0, 1).
    resamples, seed
        Of the bootstrap.
    """
    patients = np.asarray(groups, dtype=str)
    columns = zip(points, probabilities.T, targets.T, strict=True)
    return tuple(_band(point, chances, truth, patients, alpha, resamples, seed) for point, chances, truth in columns)


def coverage(sample: Sample) -> dict[str, dict[str, Estimate]]:
    """Return how often the states of each label hold the truth and how often they are uncertain, with 95 % intervals.

    Each label has three figures: `covered_positives` is the part of its positive frames that are not called negative, and
    `covered_negatives` the part of its negative frames that are not called positive, in both of which patients count alike;
    `uncertain` is the part of all frames, for which the label is known, that is uncertain.

    Parameters
    ----------
    sample
        Frames that the bands were not fitted on.
    """
    states, targets = sample.states, sample.targets
    patients = np.asarray(sample.groups, dtype=str)
    questions = {
        "covered_positives": (targets == 1, states != State.NEGATIVE, True),
        "covered_negatives": (targets == 0, states != State.POSITIVE, True),
        "uncertain": (~np.isnan(targets), states == State.UNCERTAIN, False),
    }

    def answer(asked: NDArray[np.bool_], holds: NDArray[np.bool_], by_patient: bool) -> Estimate:
        if not asked.any():
            return Estimate.of(np.nan, None)
        hits, groups = holds[asked].astype(np.float64), patients[asked]
        weights = _shares(groups) if by_patient else np.ones(len(groups))
        return Estimate.of(float(weights @ hits / weights.sum()), proportion_limits(hits, groups, weights))

    return {
        label: {name: answer(asked[:, column], holds[:, column], by) for name, (asked, holds, by) in questions.items()}
        for column, label in enumerate(sample.labels)
    }


def open_labels(sample: Sample, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Return how many labels cannot be ruled out in a frame, on average: the size of the sets that the states stand for.

    Parameters are those of `evaluate`.
    """
    counts = np.asarray((sample.states != State.NEGATIVE).sum(axis=1), np.float64)
    return bootstrap(lambda weights: {0: weights @ counts / weights.sum(axis=1)}, sample.groups, resamples, seed)[0]


def _band(
    point: OperatingPoint,
    chances: Float64,
    truth: Float64,
    patients: NDArray[np.str_],
    alpha: float,
    resamples: int,
    seed: int,
) -> ConformalBand:
    known = ~np.isnan(truth)
    interval = bootstrap(
        lambda weights: {0: thresholds(chances[known], truth[known], weights, point.criterion)},
        patients[known].tolist(),
        resamples,
        seed,
    )[0]
    seen, with_label, without = np.unique(chances[known]), truth == 1, truth == 0
    counts = len(set(patients[with_label])), len(set(patients[without]))
    low, high = [point.threshold], [point.threshold]
    if interval.low is not None and interval.high is not None:
        low, high = [*low, interval.low], [*high, interval.high]
    if min(counts) >= patients_needed(alpha):
        low.append(_below(seen, _edge(chances[with_label], patients[with_label], alpha, 1)))
        high.append(_above(seen, _edge(chances[without], patients[without], alpha, -1)))
    return ConformalBand(point.label, min(low), max(high), *counts)


def _edge(chances: Float64, patients: NDArray[np.str_], alpha: float, side: int) -> float:
    """Return the edge that a further patient's frame lies below (side 1) or above (side -1) with a chance of at most alpha."""
    scores, count = side * chances, len(set(patients))
    allowed = count - (1 - alpha) * (count + 1)  # mass beyond the edge, in units of 1 / (K + 1)
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    beyond = np.append(0, np.cumsum(_shares(patients)[order]))[np.searchsorted(ordered, ordered)]
    return float(side * ordered[beyond <= allowed + 1e-9][-1])  # 0.9 x 30 is a little more than 27


def _shares(patients: NDArray[np.str_]) -> Float64:
    """Return for each frame 1 / (number of frames of its patient)."""
    _, members, counts = np.unique(patients, return_inverse=True, return_counts=True)
    return np.asarray(1 / counts[members], np.float64)


def _below(seen: Float64, edge: float) -> float:
    """Return the middle between an edge and the next lower value, zero below the last."""
    lower = seen[seen < edge]
    return edge - (edge - float(lower[-1] if len(lower) else 0.0)) / 2


def _above(seen: Float64, edge: float) -> float:
    """Return the middle between an edge and the next higher value, one above the last; always above the edge."""
    higher = seen[seen > edge]
    middle = edge + (float(higher[0] if len(higher) else 1.0) - edge) / 2
    return max(middle, float(np.nextafter(edge, np.inf)))
