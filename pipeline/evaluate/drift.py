"""What a bundle keeps of the data it was made from, to recognise them elsewhere and to tell how unlike other data are."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.evaluate.calibration import Float64, probabilities, stored
from pipeline.frames import FloatArray
from pipeline.levels import log_odds
from pipeline.predictions import Activation

ALPHA = 0.05
"""Of all tests of a report together."""
DISTANCE = "distance"
"""Name of the test of inputs; the tests of scores have the names of the labels."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One test of whether other data are drawn as those of the calibration split.

    Parameters
    ----------
    statistic
        The largest distance between the two distribution functions, in [0, 1].
    p_value
        How often it would be as large without any drift, in [0, 1], not corrected for several tests.
    patients
        Of the other data.
    found
        Whether the p-value is below `ALPHA` divided by the number of tests.
    """

    statistic: float
    p_value: float
    patients: int
    found: bool


@dataclass(frozen=True, slots=True, eq=False)
class Home:
    """What a bundle keeps of its data: which frames they were, and how the patients of its calibration split scored.

    Frames are known by the first 8 bytes of the SHA-256 of a salt and the hash of their pixels. Whoever has a picture can ask
    whether the bundle knows it, which is the purpose; nobody learns a picture, a name or a patient from it, and since each
    index has its own salt, two bundles cannot be compared. It takes 8 bytes a frame, and one frame in 2^64 / n is taken for a
    known one by mistake. A picture that was compressed again or resized is not recognised.

    Parameters
    ----------
    salt
        The hash of the index of the training.
    frames
        Sorted, uint64.
    odds
        float32 of shape (labels, patients), each row sorted: log odds of one frame of each calibration patient, before
        calibration.
    distances
        float32 of shape (patients,), sorted: the distance of that frame from the training frames, in units of the threshold.
    """

    salt: str
    frames: NDArray[np.uint64]
    odds: FloatArray
    distances: FloatArray

    @classmethod
    def of(
        cls,
        salt: str,
        pixel_hashes: Iterable[str],
        logits: ArrayLike,
        distances: ArrayLike,
        activation: Activation,
        *,
        patients: Sequence[str],
        names: Sequence[str],
    ) -> "Home":
        """Return what a bundle keeps.

        Parameters
        ----------
        salt, activation
            As above, and that of the bundle.
        pixel_hashes
            `ImageRecord.pixel_sha256` of all frames of the index.
        logits, distances
            Of the frames of the calibration split, shape (n, labels) and (n,).
        patients, names
            The patient and the pixels' hash of each of these.
        """
        rows = one_a_patient(patients, names)
        odds = score_odds(logits, activation)[rows]
        kept = np.sort(np.asarray(distances, np.float64)[rows])
        return cls(salt, _hashes(salt, pixel_hashes), np.sort(odds, axis=0).T.astype(np.float32), kept.astype(np.float32))

    def knows(self, pixel_hashes: Sequence[str]) -> NDArray[np.bool_]:
        """Return which frames belong to the data of the bundle, shape (n,)."""
        each = np.array([_hash(self.salt, one) for one in pixel_hashes], np.uint64)
        return np.isin(each, self.frames)

    def with_frames(self, pixel_hashes: Iterable[str]) -> "Home":
        """Return it with more frames, those of a local calibration."""
        return replace(self, frames=np.union1d(self.frames, _hashes(self.salt, pixel_hashes)))

    def drift(
        self,
        labels: Sequence[str],
        logits: ArrayLike,
        distances: ArrayLike,
        activation: Activation,
        *,
        patients: Sequence[str],
        names: Sequence[str],
    ) -> dict[str, Drift]:
        """Compare other frames with those of the calibration split: their distance (`DISTANCE`), and the score of each label.

        Each is a Kolmogorov-Smirnov test of two samples with Bonferroni's correction, which found shifts best in the comparison
        of Rabanser, Günnemann and Lipton ("Failing loudly: an empirical study of methods for detecting dataset shift", NeurIPS
        2019), on one frame of each patient, since the frames of one patient resemble each other. Another mix of patients moves
        scores as well, without any fault of the network.

        Parameters
        ----------
        labels
            Of the bundle.
        logits, distances, patients, names
            As in `of`, of the other frames; a frame without a distance (nan) is farther than all others.
        activation
            That of the bundle.
        """
        from scipy.stats import ks_2samp

        rows = one_a_patient(patients, names)
        odds = score_odds(logits, activation)[rows]
        there = np.nan_to_num(np.asarray(distances, np.float64)[rows], nan=np.inf)
        pairs = {DISTANCE: (self.distances, there)} | {
            label: (home, here) for label, home, here in zip(labels, self.odds, odds.T, strict=True)
        }
        found = {}
        for name, (home, here) in pairs.items():
            tested = ks_2samp(home, here.astype(np.float32))
            low = bool(tested.pvalue < ALPHA / len(pairs))
            found[name] = Drift(float(tested.statistic), float(tested.pvalue), len(rows), low)
        return found

    def to_bytes(self) -> bytes:
        """Return it as safetensors."""
        return save({"frames": self.frames, "odds": self.odds, "distances": self.distances}, {"salt": self.salt})


def load_home(content: bytes, labels: int) -> Home:
    """Return what `Home.to_bytes` wrote.

    Raises
    ------
    ValueError
        If the content is something else, or is for another number of labels.
    """
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        home = Home(header["__metadata__"]["salt"], tensors["frames"], tensors["odds"], tensors["distances"])
    except (SafetensorError, KeyError, ValueError):
        raise ValueError("no frames, odds and distances") from None
    if home.odds.ndim != 2 or home.odds.shape != (labels, len(home.distances)) or home.frames.dtype != np.uint64:
        raise ValueError("frames, odds and distances do not belong together")
    return home


def score_odds(logits: ArrayLike, activation: Activation) -> Float64:
    """Return the log odds of frames before calibration, of shape (n, labels), which no calibration changes."""
    return log_odds(probabilities(stored(logits), activation))


def one_a_patient(patients: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Return the row of one frame of each patient: the one whose name comes first, names being hashes."""
    first: dict[str, int] = {}
    for row, (patient, name) in enumerate(zip(patients, names, strict=True)):
        if patient not in first or name < names[first[patient]]:
            first[patient] = row
    return np.array(sorted(first.values()), np.int64)


def _hash(salt: str, pixels: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{salt} {pixels}".encode()).digest()[:8], "big")


def _hashes(salt: str, pixels: Iterable[str]) -> NDArray[np.uint64]:
    return np.unique(np.array([_hash(salt, one) for one in pixels], np.uint64))
