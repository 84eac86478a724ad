"""How far a frame lies from those that a bundle was trained on, by the last feature map of the network.

The distance is that of Mahalanobis from the mean of training frames, on features of unit length (Mueller and Hein,
"Mahalanobis++: improving OOD detection via feature normalization", ICML 2025), their covariance shrunk as Ledoit and Wolf do
("A well-conditioned estimator for large-dimensional covariance matrices", 2004), since there are often fewer frames than
channels. What it was compared with is measured by `benchmarks/outliers.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.evaluate.calibration import Float64
from pipeline.frames import FloatArray

MOST_FRAMES = 1000
FALSE_ALARMS = 0.01
RANKED_PATIENTS = 99
"""From this many patients on, the largest of them is what one in a hundred further patients exceeds."""
_LEAST_VARIANCE = 1e-12  # features are float32, so that less is rounding


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Mean and covariance of training features, from which distances are measured.

    Parameters
    ----------
    mean
        float64 of shape (channels,), rounded to float32: of the features of training frames, each of unit length.
    whitening
        float64 of shape (channels, channels), also rounded: the length of this times (features - mean) is the distance.
    threshold
        The distance that counts as 1.
    calibration_frames, calibration_patients
        How many frames, of how many patients, the threshold was fixed on; 0 if it came from a bundle.
    """

    mean: Float64
    whitening: Float64
    threshold: float
    calibration_frames: int = 0
    calibration_patients: int = 0

    def distance(self, features: Float64) -> float:
        """Return how far a frame lies, in units of the threshold: above 1 it is unlike the training.

        The result is bit for bit the same whatever frames come before or after, and nan if a feature is nan.

        Parameters
        ----------
        features
            As `pooled` gives them, shape (channels,).
        """
        return _raw_distance(self.mean, self.whitening, features) / self.threshold

    def refuses(self, features: Float64) -> bool:
        """Return whether a frame is unlike the training; one whose distance is not a number is."""
        return not self.distance(features) <= 1

    def to_bytes(self) -> bytes:
        """Return mean and whitening as safetensors; the threshold goes into the manifest."""
        return save({name: np.ascontiguousarray(getattr(self, name), np.float32) for name in ("mean", "whitening")})


def load_reference(content: bytes, threshold: float) -> Reference:
    """Return the reference that `Reference.to_bytes` wrote.

    Raises
    ------
    ValueError
        If the content is not such a reference, or the threshold is no distance.
    """
    try:
        tensors = load(content)
        mean, whitening = tensors["mean"], tensors["whitening"]
    except (SafetensorError, KeyError):
        raise ValueError("no mean and whitening of features") from None
    if mean.ndim != 1 or whitening.shape != (len(mean), len(mean)) or not threshold > 0:
        raise ValueError("mean, whitening and threshold do not belong together")
    return Reference(np.asarray(mean, np.float64), np.asarray(whitening, np.float64), threshold)


def pooled(features: FloatArray) -> Float64:
    """Return the mean over the cells of one frame's feature map.

    Parameters
    ----------
    features
        float32 of shape (channels, map_rows, map_columns).
    """
    cells = features.reshape(len(features), -1).astype(np.float64)
    return np.asarray(np.einsum("ck->c", cells) / cells.shape[1])


def reference_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return at most `MOST_FRAMES` of the training frames, evenly spread over their order: the same for the same index."""
    if len(rows) <= MOST_FRAMES:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST_FRAMES).astype(np.int64)]


def fit_reference(train: ArrayLike, calibration: ArrayLike, patients: Sequence[str]) -> Reference:
    """Describe the features of training frames, and fix the threshold so that at most 1 % of patients have a frame refused.

    Parameters
    ----------
    train, calibration
        Pooled features, shape (n, channels) each.
    patients
        The patient of each calibration frame.
    """
    from sklearn.covariance import ledoit_wolf  # a second that scoring does not need

    seen = np.stack([_unit(one) for one in np.asarray(train, np.float64)])
    centre = seen.mean(axis=0)
    covariance, _ = ledoit_wolf(seen - centre, assume_centered=True)
    covariance[np.diag_indices_from(covariance)] += _LEAST_VARIANCE
    mean, whitening = (
        one.astype(np.float32).astype(np.float64) for one in (centre, np.linalg.inv(np.linalg.cholesky(covariance)))
    )
    distances = [_raw_distance(mean, whitening, one) for one in np.asarray(calibration, np.float64)]
    farthest = 2 * float(np.linalg.norm(whitening, 2))  # two vectors of length one are at most 2 apart
    threshold = max(min(refusal_threshold(distances, patients), farthest), np.finfo(np.float32).tiny.item())
    return Reference(mean, whitening, threshold, len(distances), len(set(patients)))


def refusal_threshold(distances: Sequence[float], patients: Sequence[str]) -> float:
    """Return the distance that the farthest frame of one further patient exceeds with a chance of 1 %.

    Each patient counts once, with the largest distance of its frames, since the frames of one patient resemble each other.
    From `RANKED_PATIENTS` patients on, the threshold is the ceil(0.99 (n + 1))-th smallest of these n distances, and the
    chance is at most 1 % if the further patient can be exchanged with them (conformal prediction; Vovk, Gammerman and Shafer
    2005). Fewer do not show what one in a hundred exceeds: there the threshold is the upper limit of a prediction interval for
    one further patient, log distances taken as normal (Hahn and Meeker 1991, chapter 4), and no less than the largest; with
    one patient it is infinite.

    Parameters
    ----------
    distances
        Of the calibration frames.
    patients
        The patient of each.
    """
    named = np.asarray(patients, dtype=str)
    largest = np.sort([np.max(np.asarray(distances)[named == one]) for one in np.unique(named)])
    count = len(largest)
    if count >= RANKED_PATIENTS:
        return float(largest[math.ceil((1 - FALSE_ALARMS) * (count + 1) - 1e-9) - 1])
    if count < 2:
        return math.inf
    from scipy import special  # a fifth of a second that scoring does not need

    logs = np.log(np.maximum(largest, 1e-6))
    spread = float(logs.std(ddof=1)) * math.sqrt(1 + 1 / count) * float(special.stdtrit(count - 1, 1 - FALSE_ALARMS))
    return float(max(largest[-1], np.exp(logs.mean() + spread)))


def _raw_distance(mean: Float64, whitening: Float64, features: Float64) -> float:
    """Return the distance of Mahalanobis; each frame by itself, without a matrix product over frames."""
    white = np.einsum("rc,c->r", whitening, _unit(features) - mean)  # the same bits on any number of threads
    return float(np.sqrt(np.sum(white**2)))


def _unit(features: Float64) -> Float64:
    """Return features of length one; if all are zero, they stay so, which no frame of the training is."""
    return np.asarray(features / max(float(np.sqrt(np.sum(features**2))), np.finfo(np.float64).tiny))
