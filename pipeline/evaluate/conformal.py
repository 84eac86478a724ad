"""A band around each operating point in which neither presence nor absence of a label can be ruled out; numpy alone."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.evaluate.calibration import Float64
from pipeline.predictions import ConformalBand, OperatingPoint

ABSENT, PRESENT = "absent", "present"


def conformal_bands(
    probabilities: Float64, targets: Float64, points: Sequence[OperatingPoint], alpha: float
) -> tuple[ConformalBand, ...]:
    """Fit the band of each label on the calibration split: split conformal prediction, for each class by itself.

    Conditional on the class ("Mondrian"), as in Vovk, "Conditional validity of inductive conformal predictors" (ACML 2012,
    Machine Learning 2013); finite-sample quantiles as in Angelopoulos and Bates, "A gentle introduction to conformal
    prediction" (2021). Let n be the number of positive examples and k = floor(alpha (n + 1)). Where a new positive example
    can be exchanged with those n, its probability lies strictly below their k-th smallest with a chance of at most k / (n +
    1), at most alpha, ties or not. "present" stays in the set from that value on, and from the operating point's threshold on
    where that is lower; "absent" likewise up to the k-th largest of the negative examples, and below the threshold. Both
    steps, and moving each edge outwards to the middle between it and the next probability that was seen, so that rounding
    does not move a frame across it, only make sets larger. Hence the set holds the truth in at least 1 - alpha of the
    positive and of the negative frames; and since `present_from` <= threshold <= `absent_below`, it is never empty and agrees
    with the operating point where it names one side.

    Parameters
    ----------
    probabilities
        Shape (n, labels), calibrated, in [0, 1].
    targets
        Shape (n, labels) of 1, 0 and nan (not known, left out).
    points
        The operating point of each label, in the order of the columns.
    alpha
        How often a set may miss the truth, in (0, 1).

    Returns
    -------
    tuple of ConformalBand
        Of the labels with at least 1 / alpha - 1 positive and as many negative examples; with fewer no finite quantile exists.
    """
    columns = zip(points, probabilities.T, targets.T, strict=True)
    bands = (_band(point, chances, truth, alpha) for point, chances, truth in columns)
    return tuple(band for band in bands if band is not None)


def conformal_set(probability: float, band: ConformalBand | None) -> tuple[str, ...]:
    """Return what cannot be ruled out: "present", "absent" or both; nothing where the label has no band."""
    if band is None:
        return ()
    kept = ((PRESENT, probability >= band.present_from), (ABSENT, probability < band.absent_below))
    return tuple(name for name, stays in kept if stays)


def coverage(
    probabilities: Float64, targets: Float64, labels: Sequence[str], bands: Sequence[ConformalBand]
) -> dict[str, dict[str, Any]]:
    """Return for each label with a band how often its set holds the truth, and how often it says nothing.

    Parameters
    ----------
    probabilities, targets
        As in `conformal_bands`, of frames that the bands were not fitted on.
    labels
        Names, in the order of the columns.
    bands
        As `conformal_bands` gives them.

    Returns
    -------
    dict
        By label: `covered_positives` and `covered_negatives` (parts of the frames with and without the label, None where there
        are none), and `uncertain` (part of the frames whose label is known).
    """
    found = {}
    by_label = {band.label: band for band in bands}
    for label, chances, truth in zip(labels, probabilities.T, targets.T, strict=True):
        if band := by_label.get(label):
            present, absent = chances >= band.present_from, chances < band.absent_below
            found[label] = {
                "covered_positives": _part(present[truth == 1]),
                "covered_negatives": _part(absent[truth == 0]),
                "uncertain": _part((present & absent)[~np.isnan(truth)]),
            }
    return found


def _band(point: OperatingPoint, chances: Float64, truth: Float64, alpha: float) -> ConformalBand | None:
    seen = np.unique(chances[~np.isnan(truth)])
    lowest = _order_statistic(chances[truth == 1], alpha)
    highest = _order_statistic(-chances[truth == 0], alpha)
    if lowest is None or highest is None:
        return None
    return ConformalBand(
        label=point.label,
        present_from=min(_below(seen, lowest), point.threshold),
        absent_below=max(_above(seen, -highest), point.threshold),
    )


def _order_statistic(values: Float64, alpha: float) -> float | None:
    """Return the floor(alpha (n + 1))-th smallest of n values; None where that is before the first."""
    rank = math.floor(alpha * (len(values) + 1) + 1e-9)  # 0.1 * 30 is a little less than 3
    return float(np.sort(values)[rank - 1]) if rank else None


def _below(seen: Float64, edge: float) -> float:
    """Return the middle between an edge and the next lower value, zero below the last."""
    lower = seen[seen < edge]
    return edge - (edge - float(lower[-1] if len(lower) else 0.0)) / 2


def _above(seen: Float64, edge: float) -> float:
    """Return the middle between an edge and the next higher value, one above the last; always above the edge."""
    higher = seen[seen > edge]
    middle = edge + (float(higher[0] if len(higher) else 1.0) - edge) / 2
    return max(middle, float(np.nextafter(edge, np.inf)))


def _part(chosen: Float64) -> float | None:
    return float(np.mean(chosen)) if len(chosen) else None
