"""How often a bundle does not answer on its own test split, and how often its conformal sets hold the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.evaluate.calibration import Float64, probabilities
from pipeline.evaluate.conformal import coverage
from pipeline.evaluate.metrics import Sample
from pipeline.evaluate.outliers import Reference
from pipeline.predictions import ConformalBand


@dataclass(frozen=True, slots=True)
class Abstention:
    """What was measured on the test split.

    Parameters
    ----------
    conformal
        By label, as `evaluate.conformal.coverage` gives it; labels without a band are left out.
    frames
        Of the test split.
    refused
        How many of them are refused as unlike the training: false alarms.
    refused_low, refused_high
        95 % interval of the part that is refused, by Wilson (1927), frames taken as independent.
    """

    conformal: Mapping[str, Mapping[str, Any]]
    frames: int
    refused: int
    refused_low: float
    refused_high: float

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def measure_abstention(sample: Sample, bands: Sequence[ConformalBand], reference: Reference, features: Float64) -> Abstention:
    """Count on frames that nothing was fitted on.

    Parameters
    ----------
    sample
        Logits and targets of n frames.
    bands, reference
        Those of the bundle.
    features
        Pooled features of the same frames, shape (n, channels).
    """
    chances = probabilities(sample.logits, sample.activation, sample.temperature)
    refused = sum(reference.distance(one) > 1 for one in features)
    low, high = wilson(refused, len(features))
    return Abstention(coverage(chances, sample.targets, sample.labels, bands), len(features), refused, low, high)


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a part (Wilson, "Probable inference", 1927)."""
    z, part = 1.959964, count / total
    middle, scale = part + z**2 / (2 * total), 1 + z**2 / total
    reach = z * (part * (1 - part) / total + z**2 / (4 * total**2)) ** 0.5
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)
