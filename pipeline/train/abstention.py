"""How often a bundle does not answer on its own test split, and how often its states hold the truth."""

from collections.abc import Sequence

import numpy as np

from pipeline.evaluate.calibration import Float64
from pipeline.evaluate.decisions import Coverage, coverage
from pipeline.evaluate.metrics import Estimate, Evaluation, Sample
from pipeline.evaluate.outliers import Reference
from pipeline.model.bundle import Interval, LabelCoverage, MeasuredRefusals, MeasuredStates


def measure_states(sample: Sample, evaluation: Evaluation) -> MeasuredStates:
    """Return how often the states of a sample that nothing was fitted on hold the truth, and how often they are uncertain."""
    found = coverage(sample, evaluation.resamples, evaluation.seed)
    return MeasuredStates(
        frames=evaluation.frames,
        patients=evaluation.patients,
        uncertain=_interval(evaluation.uncertain),
        labels={label: _label_coverage(one) for label, one in found.items()},
    )


def measure_refusals(reference: Reference, features: Float64, patients: Sequence[str]) -> MeasuredRefusals:
    """Count frames that are refused though they are like those of the training, and the patients who have such a frame.

    Parameters
    ----------
    reference
        That of the bundle.
    features
        Pooled features of n frames that nothing was fitted on, shape (n, channels).
    patients
        The patient of each.
    """
    refused = [reference.distance(one) > 1 for one in features]
    concerned = {patient for patient, is_refused in zip(patients, refused, strict=True) if is_refused}
    low, high = wilson(len(concerned), len(set(patients)))
    return MeasuredRefusals(
        frames=len(refused),
        refused_frames=sum(refused),
        patients=len(set(patients)),
        refused_patients=len(concerned),
        low=low,
        high=high,
    )


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a part (Wilson, "Probable inference", 1927)."""
    z, part = 1.959964, count / total
    middle, scale = part + z**2 / (2 * total), 1 + z**2 / total
    reach = z * (part * (1 - part) / total + z**2 / (4 * total**2)) ** 0.5
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def _label_coverage(found: Coverage) -> LabelCoverage:
    return LabelCoverage(
        covered_positives=_interval(found.covered_positives),
        covered_negatives=_interval(found.covered_negatives),
        uncertain=_interval(found.uncertain),
    )


def _interval(estimate: Estimate) -> Interval:
    value, low, high = (None if np.isnan(one) else one for one in (estimate.value, estimate.low, estimate.high))
    return Interval(value=value, low=low, high=high)
