"""Chooses for each label the probability from which it is called positive, on the calibration split."""

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from pipeline.errors import InputError
from pipeline.evaluate.calibration import Float64
from pipeline.evaluate.measures import Curve, curve
from pipeline.predictions import OperatingPoint

YOUDEN = "youden"
SENSITIVITY = re.compile(r"sensitivity>=(0\.\d+)")


def choose_operating_points(
    probabilities: Float64, targets: Float64, labels: Sequence[str], criterion: str
) -> tuple[OperatingPoint, ...]:
    """Choose a threshold for each label; what reaches it is positive.

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
    wanted = _wanted_sensitivity(criterion)
    columns = [(p[known], t[known]) for p, t in zip(probabilities.T, targets.T, strict=True) for known in [~np.isnan(t)]]
    _check_classes(labels, [column[1] for column in columns])
    return tuple(_choose(label, *column, criterion, wanted) for label, column in zip(labels, columns, strict=True))


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


def _choose(label: str, probabilities: Float64, targets: Float64, criterion: str, wanted: Fraction | None) -> OperatingPoint:
    points = curve(probabilities, targets, np.ones(len(targets)))
    positives, negatives = float(points.true_positives[-1]), float(points.false_positives[-1])
    if wanted is None:
        gains = points.true_positives * negatives - points.false_positives * positives
        cut = int(np.flatnonzero(gains == gains.max())[-1])
    else:
        cut = next(index for index, found in enumerate(points.true_positives) if int(found) >= wanted * int(positives))
    sensitivity = float(points.true_positives[cut]) / positives
    specificity = 1 - float(points.false_positives[cut]) / negatives
    return OperatingPoint(label, _between(points, cut), criterion, sensitivity, specificity)


def _between(points: Curve, cut: int) -> float:
    """Return the middle between a step and the next one below; the step itself where no number lies between them."""
    upper = float(points.thresholds[cut])
    lower = float(points.thresholds[cut + 1]) if cut + 1 < len(points.thresholds) else 0.0
    middle = lower + (upper - lower) / 2
    return middle if middle > lower else upper
