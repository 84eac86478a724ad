"""From the frames of a study, an eye or a patient to one result: the only definition of it, in training and in scoring.

A frame says of each label a probability. The log odds of all frames of a unit (a study, an eye or a patient) are pooled into
one number for each label, which a scale and an offset turn into log odds that are calibrated at that level. So a unit may have
several findings at once, in different frames, even if the labels of one frame exclude each other. The label that means no
finding must hold for all frames: it is pooled as the mirror image of a finding, if the way of pooling is not its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from pipeline.frames import FloatArray
from pipeline.predictions import Activation, ConformalBand, DecisionRule, OperatingPoint, Rounded, State

_Float64 = NDArray[np.float64]

LEAST = 1e-12
"""Probabilities are taken to lie this far from 0 and 1, so that log odds are finite."""
DECIDING_FRAMES = 3
"""How many frames are named for each label of a level, at most."""


class Level(StrEnum):
    """What a result is about, if it is not about one frame.

    `study`: all frames under one Study Instance UID (0020,000D). `eye`: the frames of one patient that show the same eye or
    side, R or L. `patient`: all frames of one patient. Eye and patient go over the studies at hand: those of an index, of a
    folder that is scored, or the one of a request.
    """

    STUDY = "study"
    EYE = "eye"
    PATIENT = "patient"


class Pooling(StrEnum):
    """How the log odds of frames become one number.

    `max`: the largest, for the label that means no finding the smallest. `noisy_or`: the log odds of a finding being in any
    frame if frames were independent, for the label that means no finding of it holding in all. `mean`: their mean.
    `attention`: their mean with weights that the network's features decide (`Attention`).
    """

    MAX = "max"
    NOISY_OR = "noisy_or"
    MEAN = "mean"
    ATTENTION = "attention"


def log_odds(probabilities: ArrayLike) -> _Float64:
    """Return log(p / (1 - p)) of probabilities of any shape, finite."""
    chances = np.clip(np.asarray(probabilities, np.float64), LEAST, 1 - LEAST)
    return np.asarray(np.log(chances) - np.log1p(-chances), np.float64)


def sigmoid(logits: ArrayLike) -> _Float64:
    """Return 1 / (1 + exp(-x)) of numbers of any size, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(logits, np.float64))), np.float64)


def pool(
    odds: _Float64, pooling: Pooling, is_normal: NDArray[np.bool_], scores: _Float64 | None = None
) -> tuple[_Float64, _Float64]:
    """Pool the frames of one unit.

    Parameters
    ----------
    odds
        Log odds of shape (n, labels), finite, n at least 1.
    pooling
        In which way.
    is_normal
        Shape (labels,): which label means no finding.
    scores
        Shape (n, labels), as from `Attention.scores`; needed for attention alone.

    Returns
    -------
    tuple of _Float64
        The pooled log odds of shape (labels,), finite, and how much each frame counts in them, of shape (n, labels): not
        negative, with the sum 1 over the frames. For noisy-or these are the parts of log(1 - p) of the unit.

    Notes
    -----
    1 - p of a noisy-or is the product of 1 - p of its frames (Pearl, "Probabilistic Reasoning in Intelligent Systems", 1988,
    section 4.3.2). The product of thousands of frames underflows, so the logarithm of it is taken, from which the log odds
    follow without it.
    """
    sign = np.where(is_normal, -1.0, 1.0)
    if pooling is Pooling.MAX:
        weights = np.zeros_like(odds)
        weights[(odds * sign).argmax(axis=0), np.arange(odds.shape[1])] = 1
    elif pooling is Pooling.NOISY_OR:
        parts = np.logaddexp(0, odds * sign)
        total = parts.sum(axis=0)
        return sign * (total + np.log(-np.expm1(-total))), parts / total
    elif pooling is Pooling.MEAN:
        weights = np.full_like(odds, 1 / len(odds))
    else:
        if scores is None:
            raise ValueError("attention needs scores")
        weights = np.exp(scores - scores.max(axis=0))
        weights /= weights.sum(axis=0)
    return (weights * odds).sum(axis=0), weights


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Gated attention (Ilse, Tomczak and Welling, "Attention-based deep multiple instance learning", ICML 2018, equation 9).

    The score of a frame with features h is w . (tanh(V h + v) * sigmoid(U h + u)), and its weight the softmax of the scores of
    all frames of the unit, for each label by itself. The paper averages features with these weights and classifies the average.
    With the linear head of a network that is the average of its frames' logits; so log odds are averaged, of whatever network.

    Parameters
    ----------
    tanh_weight, gate_weight
        V and U, float32 of shape (hidden, channels).
    tanh_bias, gate_bias
        v and u, float32 of shape (hidden,).
    output
        w, float32 of shape (labels, hidden).
    """

    tanh_weight: FloatArray
    tanh_bias: FloatArray
    gate_weight: FloatArray
    gate_bias: FloatArray
    output: FloatArray

    def scores(self, features: ArrayLike) -> _Float64:
        """Return the score of one frame for each label; it does not depend on other frames.

        Parameters
        ----------
        features
            As `evaluate.outliers.pooled` gives them, shape (channels,).
        """
        seen = np.asarray(features, np.float32).astype(np.float64)  # as training keeps them
        hidden = np.tanh(_times(self.tanh_weight, seen) + self.tanh_bias)
        hidden *= sigmoid(_times(self.gate_weight, seen) + self.gate_bias)
        return _times(self.output, hidden)

    @property
    def channels(self) -> int:
        """How many features it takes."""
        return int(self.tanh_weight.shape[1])

    def tensors(self, level: Level) -> dict[str, FloatArray]:
        """Return its arrays by the names that they have in the file of a bundle."""
        return {f"{level}.{name}": np.ascontiguousarray(getattr(self, name), np.float32) for name in self.__slots__}

    @classmethod
    def of(cls, tensors: Mapping[str, FloatArray], level: Level, labels: int) -> "Attention":
        """Return what `tensors` named.

        Raises
        ------
        ValueError
            If an array is missing, or they do not fit together, or to so many labels.
        """
        try:
            found = cls(*(tensors[f"{level}.{name}"] for name in cls.__slots__))
        except KeyError as error:
            raise ValueError(f"no tensor {error.args[0]}") from None
        hidden, channels = found.output.shape[-1:] + found.tanh_weight.shape[-1:]
        shapes = ((hidden, channels), (hidden,), (hidden, channels), (hidden,), (labels, hidden))
        if tuple(getattr(found, name).shape for name in cls.__slots__) != shapes:
            raise ValueError(f"the tensors of level {level} do not fit together")
        return found


def _times(matrix: FloatArray, vector: _Float64) -> _Float64:
    """Multiply without BLAS, whose result depends on the number of its threads."""
    return np.asarray(np.einsum("ij,j->i", matrix.astype(np.float64), vector))


@dataclass(frozen=True, slots=True)
class LevelRule:
    """From pooled log odds to the states of a level; travels in the bundle.

    Parameters
    ----------
    level, pooling
        What is pooled, and how.
    scales, offsets
        One for each label: the calibrated log odds are scale x pooled + offset, the scale positive.
    operating_points, bands
        One for each label, as in a frame, fitted on the units of this level.
    """

    level: Level
    pooling: Pooling
    scales: tuple[Annotated[float, Field(gt=0)], ...]
    offsets: tuple[float, ...]
    operating_points: tuple[OperatingPoint, ...]
    bands: tuple[ConformalBand, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the outputs."""
        return tuple(point.label for point in self.operating_points)

    def calibrated(self, pooled: _Float64) -> _Float64:
        """Return calibrated log odds of pooled ones, of shape (..., labels); finite if those are."""
        return np.asarray(np.multiply(pooled, self.scales) + self.offsets, np.float64)

    def states(self, logits: _Float64, normal_label: str | None) -> NDArray[np.object_]:
        """Return the state of each label in each unit by `DecisionRule.states`, labels not exclusive.

        Parameters
        ----------
        logits
            As from `calibrated`, of shape (units, labels).
        normal_label
            The label that means no finding; None if there is none.
        """
        rule = DecisionRule.of(self.labels, self.operating_points, self.bands, Activation.SIGMOID, normal_label)
        return rule.states(sigmoid(logits))


@dataclass(frozen=True, slots=True)
class DecidingFrame:
    """A frame that counts most in the result of a level.

    Parameters
    ----------
    source, frame_number
        The frame.
    weight
        How much it counts, in (0, 1]: the weights of all frames of the unit have the sum 1.
    """

    source: str
    frame_number: int
    weight: Rounded


@dataclass(frozen=True, slots=True)
class LevelPrediction:
    """What a bundle says of one label in one study, eye or patient.

    Parameters
    ----------
    label
        The finding.
    probability
        Calibrated at this level, in [0, 1].
    state
        By the operating point and the band of this level.
    operating_point
        The threshold of the label at this level, in [0, 1].
    deciding
        The frames that count most, at most `DECIDING_FRAMES`, the one that counts most first.
    """

    label: str
    probability: Rounded
    state: State
    operating_point: Rounded
    deciding: tuple[DecidingFrame, ...] = ()


@dataclass(frozen=True, slots=True)
class LevelResult:
    """What a bundle says of one study, eye or patient.

    Parameters
    ----------
    level, pooling
        As in the bundle's rule.
    predictions
        One for each label, in the bundle's order; empty if no frame was scored.
    frames
        How many scored frames were pooled.
    left_out
        How many files and frames of it were not scored and therefore say nothing here.
    studies
        How many studies they come from.
    laterality
        R or L for an eye, else empty.
    why_unknown
        A sentence if there is no state, else empty.
    """

    level: Level
    pooling: Pooling
    predictions: tuple[LevelPrediction, ...]
    frames: int
    left_out: int = 0
    studies: int = 1
    laterality: str = ""
    why_unknown: str = ""


def level_result(
    rule: LevelRule,
    odds: _Float64,
    frames: Sequence[tuple[str, int]],
    normal_label: str | None,
    scores: _Float64 | None = None,
    *,
    left_out: int = 0,
    studies: int = 1,
    laterality: str = "",
) -> LevelResult:
    """Return the result of one unit.

    Parameters
    ----------
    rule
        That of the bundle for the level.
    odds, scores
        As in `pool`; without frames of shape (0, labels).
    frames
        Source and number of each frame.
    normal_label
        The label that means no finding; None if there is none.
    left_out, studies, laterality
        As in `LevelResult`.
    """
    if not len(odds):
        why = f"None of the images of this {rule.level.value} could be scored." if left_out else "It has no image."
        return LevelResult(rule.level, rule.pooling, (), 0, left_out, studies, laterality, why)
    pooled, weights = pool(odds, rule.pooling, np.array([label == normal_label for label in rule.labels]), scores)
    logits = rule.calibrated(pooled)
    states = rule.states(logits[None], normal_label)[0]
    predictions = tuple(
        LevelPrediction(
            point.label,
            float(sigmoid(logits[column])),
            states[column],
            point.threshold,
            _deciding(weights[:, column], (-1 if point.label == normal_label else 1) * odds[:, column], frames),
        )
        for column, point in enumerate(rule.operating_points)
    )
    return LevelResult(rule.level, rule.pooling, predictions, len(odds), left_out, studies, laterality)


def _deciding(weights: _Float64, evidence: _Float64, frames: Sequence[tuple[str, int]]) -> tuple[DecidingFrame, ...]:
    """Name the frames of the largest weights; of equal ones, as with the mean, those that say most."""
    order = np.lexsort((-evidence, -weights))[:DECIDING_FRAMES]
    return tuple(
        DecidingFrame(frames[place][0], frames[place][1], float(weights[place])) for place in order if weights[place] > 0
    )
