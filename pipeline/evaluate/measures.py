"""Measures of one label on weighted frames: curves, confusion counts, and the lists of metrics that follow from them.

Every weight is an array of shape (..., n): a single row of ones gives the point estimate, one row a resample the bootstrap.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.calibration import Float64, brier_score, ratio
from pipeline.predictions import State


class Curve(NamedTuple):
    """What lies at or above each distinct probability, from the highest down.

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
    """Weights in the six fields of the confusion table, each of shape (...).

    The last two are the frames with and without the label that were uncertain. They are errors in every metric: an answer that
    is not given finds no disease and clears no patient (Schuetz, Schlattmann and Dewey, "Use of 3 x 2 tables with an intention
    to diagnose approach to assess clinical performance of diagnostic tests", BMJ 2012).
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
    """Add up positives and negatives from the highest probability down; equal probabilities are one step.

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


def count(states: NDArray[np.object_], targets: Float64, weights: Float64) -> Counts:
    """Fill the confusion table.

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
    """Mean of sensitivity and specificity; nan where either is."""
    return (sensitivity(counts) + specificity(counts)) / 2


def f1(counts: Counts) -> Float64:
    """Twice the true positives over these and all errors; nan without positives."""
    errors = counts.positives - counts.true_positives + counts.negatives - counts.true_negatives
    return ratio(2 * counts.true_positives, np.where(counts.positives > 0, 2 * counts.true_positives + errors, 0))


def mcc(counts: Counts) -> Float64:
    """Matthews correlation coefficient, in [-1, 1]; nan where truth or decision knows a single class."""
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
    """Return every metric of one label by its name, each of shape (...); parameters as in `curve` and `count`."""
    points, counts = curve(probabilities, targets, weights), count(states, targets, weights)
    ranking = {name: metric(points) for name, metric in RANKING.items()}
    decision = {name: metric(counts) for name, metric in DECISION.items()}
    calibration = {name: metric(probabilities, targets, weights) for name, metric in CALIBRATION.items()}
    return ranking | decision | calibration
