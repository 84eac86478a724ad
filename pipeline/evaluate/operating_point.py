"""Chooses for each label the probability from which it is called positive, on the calibration split."""

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from pipeline.errors import InputError
from pipeline.evaluate.calibration import Float64
from pipeline.evaluate.measures import curve
from pipeline.predictions import OperatingPoint

YOUDEN = "youden"
SENSITIVITY = re.compile(r"sensitivity>=(0\.\d+)")


def choose_operating_points(
    probabilities: Float64, targets: Float64, labels: Sequence[str], criterion: str
) -> tuple[OperatingPoint, ...]:
    """Choose a threshold for each label; sensitivity and specificity are those of calling positive what reaches it.

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
        Where the criterion is not one of these, or a label has no positive or no negative example.
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
    """Name every label whose operating point cannot be chosen, all of them at once."""
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
