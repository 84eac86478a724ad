"""How far a frame lies from those that a bundle was trained on, by the last feature map of the network.

The distance is that to the k-th nearest training frame on features of unit length (Sun et al., "Out-of-distribution detection
with deep nearest neighbors", ICML 2022). What it was compared with is measured by `benchmarks/outliers.py`.
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

NEIGHBOURS = 5
MOST_ROWS = 1000
FALSE_ALARMS = 0.01
RANKED_PATIENTS = 99
"""From so many patients on, the largest of them is what one in a hundred further patients exceeds."""
BANK = "bank"
_FARTHEST = 2.0  # between vectors of length one


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What distances are measured against.

    Parameters
    ----------
    bank
        float64 of shape (rows, channels), rounded to float32: pooled features of training frames, each of unit length.
    neighbours
        The k of the k-th nearest.
    threshold
        The distance that counts as 1.
    calibration_frames, calibration_patients
        How many frames, of how many patients, the threshold was fixed on; 0 if it came from a bundle.
    """

    bank: Float64
    neighbours: int
    threshold: float
    calibration_frames: int = 0
    calibration_patients: int = 0

    def distance(self, features: Float64) -> float:
        """Return how far a frame lies, in units of the threshold: above 1 it is unlike the training.

        The same bits come out whatever frames come before or after; nan comes out where a feature is nan.

        Parameters
        ----------
        features
            As `pooled` gives them, shape (channels,).
        """
        return _raw_distance(self.bank, features, self.neighbours) / self.threshold

    def to_bytes(self) -> bytes:
        """Return the bank as safetensors; the numbers beside it go into the manifest."""
        return save({BANK: np.ascontiguousarray(self.bank, np.float32)})


def load_reference(content: bytes, neighbours: int, threshold: float) -> Reference:
    """Return the reference whose bank `Reference.to_bytes` wrote.

    Raises
    ------
    ValueError
        Where the content is not such a bank, or the numbers do not fit it.
    """
    try:
        bank = load(content)[BANK]
    except (SafetensorError, KeyError):
        raise ValueError("no bank of features") from None
    if bank.ndim != 2 or not 1 <= neighbours <= len(bank) or not threshold > 0:
        raise ValueError("bank, neighbours and threshold do not belong together")
    return Reference(np.asarray(bank, np.float64), neighbours, threshold)


def pooled(features: FloatArray) -> Float64:
    """Return the mean over the cells of one frame's feature map.

    Parameters
    ----------
    features
        float32 of shape (channels, map_rows, map_columns).
    """
    cells = features.reshape(len(features), -1).astype(np.float64)
    return np.asarray(np.einsum("ck->c", cells) / cells.shape[1])


def bank_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return at most `MOST_ROWS` of the training frames, evenly spread over their order: the same for the same index."""
    if len(rows) <= MOST_ROWS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST_ROWS).astype(np.int64)]


def fit_reference(train: ArrayLike, calibration: ArrayLike, patients: Sequence[str], neighbours: int = NEIGHBOURS) -> Reference:
    """Keep the features of training frames, and fix the threshold so that at most 1 % of patients have a frame refused.

    Parameters
    ----------
    train, calibration
        Pooled features, shape (n, channels) each.
    patients
        The patient of each calibration frame.
    neighbours
        The k of the k-th nearest; no more than there are training frames.
    """
    bank = np.stack([_unit(one) for one in np.asarray(train, np.float64)]).astype(np.float32).astype(np.float64)
    k = min(neighbours, len(bank))
    distances = [_raw_distance(bank, one, k) for one in np.asarray(calibration, np.float64)]
    threshold = min(refusal_threshold(distances, patients), _FARTHEST)
    threshold = max(threshold, np.finfo(np.float32).tiny.item())
    return Reference(bank, k, threshold, len(distances), len(set(patients)))


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


def _raw_distance(bank: Float64, features: Float64, neighbours: int) -> float:
    """Return the Euclidean distance to the k-th nearest row; each frame by itself, without a matrix product over frames."""
    cosines = np.einsum("rc,c->r", bank, _unit(features))  # the same bits on any number of threads
    nearest = np.partition(cosines, len(cosines) - neighbours)[len(cosines) - neighbours]
    return float(np.sqrt(np.maximum(0.0, 2 - 2 * nearest)))


def _unit(features: Float64) -> Float64:
    """Return features of length one; where all are zero, they stay so and lie as far from every frame as its opposite half."""
    return np.asarray(features / max(float(np.sqrt(np.sum(features**2))), np.finfo(np.float64).tiny))
