"""From the frames of a study, an eye or a patient to one result: the only definition of it, in training and in scoring.

A frame says of each label a probability. The log odds of all frames of a unit (a study, an eye or a patient) are pooled into
one number for each label, which a scale and an offset turn into log odds that are calibrated at that level. So a unit may have
several findings at once, in different frames, even if the labels of one frame exclude each other. The label that means no
finding must hold for all frames: it is pooled as the mirror image of a finding, if the way of pooling is not its own. If labels
are grades, a unit has exactly one of them, as a frame has: steps between grades are pooled instead (`LabelSet`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from pipeline.frames import FloatArray
from pipeline.predictions import Activation, ConformalBand, DecisionRule, OperatingPoint, Prediction, Rounded, State, Task

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


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of a bundle, and what is pooled of them.

    Each label is pooled by itself, unless they are grades. Of these a unit has exactly one, the worst of its frames. So what is
    pooled is, for each grade but the mildest, whether the grade is this one or a worse one: the cumulative probabilities of an
    ordinal model (McCullagh, "Regression models for ordinal data", Journal of the Royal Statistical Society B 1980). They never
    rise from one grade to the next, before and after pooling, and their differences are the probabilities of the grades.

    Parameters
    ----------
    labels
        In the order of the outputs.
    task
        Says whether they are grades.
    normal_label
        The label that means no finding; None if there is none. If it is the last of the grades, these are given from the worst
        to the mildest, else from the mildest to the worst.
    """

    labels: tuple[str, ...]
    task: Task
    normal_label: str | None = None

    @property
    def are_grades(self) -> bool:
        """Whether exactly one holds in a unit."""
        return self.task is Task.ORDINAL

    @property
    def is_normal(self) -> NDArray[np.bool_]:
        """Which label means no finding, of shape (labels,)."""
        return np.array([label == self.normal_label for label in self.labels], bool)

    @property
    def by_severity(self) -> tuple[str, ...]:
        """The labels; if they are grades, from the mildest to the worst."""
        return self.labels[::-1] if self.are_grades and self.labels[-1] == self.normal_label else self.labels

    @property
    def is_mirrored(self) -> NDArray[np.bool_]:
        """Which pooled number must hold for all frames, of shape (pooled,): that of the normal label, but no step."""
        return np.zeros(len(self.labels) - 1, bool) if self.are_grades else self.is_normal

    @property
    def weightings(self) -> int:
        """For how many of the pooled numbers attention weighs frames apart; steps share their weights, or they could cross."""
        return 1 if self.are_grades else len(self.labels)

    def odds(self, probabilities: ArrayLike) -> _Float64:
        """Return the log odds to pool, of shape (n, pooled), of the calibrated probabilities of frames, (n, labels)."""
        chances = np.asarray(probabilities, np.float64)
        return log_odds(self._at_least(chances) if self.are_grades else chances)

    def pooled_targets(self, targets: _Float64) -> _Float64:
        """Return what is true of what is pooled, of shape (n, pooled): 1, 0 or nan, from the truth of labels, (n, labels)."""
        if not self.are_grades:
            return targets
        ordered = self._sorted(targets)
        can, cannot_be_milder = ordered != 0, np.logical_and.accumulate(ordered == 0, axis=1)[:, :-1]
        can_be_worse = np.logical_or.accumulate(can[:, ::-1], axis=1)[:, -2::-1]
        return np.where(can_be_worse, np.where(cannot_be_milder, 1.0, np.nan), 0.0)

    def label_targets(self, pooled: _Float64) -> _Float64:
        """Return the truth of labels, of shape (n, labels), that `pooled_targets` made, of shape (n, pooled)."""
        if not self.are_grades:
            return pooled
        reached, passed = np.pad(pooled, ((0, 0), (1, 0)), constant_values=1), np.pad(pooled, ((0, 0), (0, 1)))
        is_absent, is_present = (reached == 0) | (passed == 1), (reached == 1) & (passed == 0)
        return self._sorted(np.where(is_absent, 0.0, np.where(is_present, 1.0, np.nan)))

    def probabilities(self, logits: _Float64) -> _Float64:
        """Return the probabilities of the labels, of shape (..., labels), from calibrated log odds of shape (..., pooled)."""
        chances = sigmoid(logits)
        return self._differences(chances) if self.are_grades else chances

    def pooled_probabilities(self, frames: ArrayLike) -> _Float64:
        """Return probabilities of the frames of a unit together, of shape (labels,), if nothing was fitted for its level.

        Of each label the largest, of the one that means no finding the smallest; of grades those of which the cumulative
        probabilities are the largest ones.

        Parameters
        ----------
        frames
            Probabilities of shape (n, labels), n at least 1.
        """
        chances = np.asarray(frames, np.float64)
        if self.are_grades:
            return self._differences(self._at_least(chances).max(axis=0))
        return np.asarray(np.where(self.is_normal, chances.min(axis=0), chances.max(axis=0)), np.float64)

    def states(self, frames: Iterable[Sequence[Prediction]]) -> dict[str, State]:
        """Return one state for each label of the frames of a unit together, if nothing was fitted for its level.

        A finding is positive if it is in any frame; else uncertain if any frame is uncertain; else negative. The label that
        means no finding must hold for all frames: it is negative if it is in any; else uncertain if any is; else positive. Of
        grades, the worst one of the frames is that of the unit: a grade is negative if it cannot be the worst, given those
        that no frame is negative of; positive if only it can; else uncertain.

        Parameters
        ----------
        frames
            The predictions of each scored frame.

        Returns
        -------
        dict
            By label, in the order of the first frame; empty without frames, since nothing can be said then.
        """
        found = [{one.label: one.state for one in predictions} for predictions in frames]
        if self.are_grades and found:
            order = self.by_severity
            possible = [[place for place, label in enumerate(order) if one[label] is not State.NEGATIVE] for one in found]
            least = max((places[0] for places in possible if places), default=0)
            remaining = {order[place] for places in possible for place in places if place >= least}
            kept = State.POSITIVE if len(remaining) == 1 else State.UNCERTAIN
            return {label: kept if label in remaining else State.NEGATIVE for label in found[0]}
        return {
            label: _decided({one[label] for one in found if label in one}, label == self.normal_label)
            for label in dict.fromkeys(label for one in found for label in one)
        }

    def _sorted(self, values: _Float64) -> _Float64:
        """Bring columns of labels into the order of their severity, or back."""
        return np.asarray(values if self.by_severity == self.labels else values[..., ::-1], np.float64)

    def _at_least(self, chances: _Float64) -> _Float64:
        """Return the probabilities of each grade but the mildest or a worse one, of shape (n, grades - 1)."""
        return np.minimum(np.cumsum(self._sorted(chances)[:, ::-1], axis=1)[:, -2::-1], 1.0)

    def _differences(self, cumulative: _Float64) -> _Float64:
        edges = [(0, 0)] * (cumulative.ndim - 1)
        from_here = np.pad(cumulative, [*edges, (1, 0)], constant_values=1.0)
        return self._sorted(from_here - np.pad(cumulative, [*edges, (0, 1)]))


def _decided(states: set[State], must_hold_for_all: bool) -> State:
    order = (State.POSITIVE, State.UNCERTAIN, State.NEGATIVE)
    return next(state for state in (order[::-1] if must_hold_for_all else order) if state in states)


def pool(
    odds: _Float64, pooling: Pooling, is_mirrored: NDArray[np.bool_], scores: _Float64 | None = None
) -> tuple[_Float64, _Float64]:
    """Pool the frames of one unit.

    Parameters
    ----------
    odds
        As from `LabelSet.odds`, of shape (n, pooled), finite, n at least 1.
    pooling
        In which way.
    is_mirrored
        As in `LabelSet`, of shape (pooled,).
    scores
        Shape (n, weightings), as from `Attention.scores`; needed for attention alone.

    Returns
    -------
    tuple of _Float64
        The pooled log odds of shape (pooled,), finite, and how much each frame counts in them, of shape (n, pooled): not
        negative, with the sum 1 over the frames. For noisy-or these are the parts of log(1 - p) of the unit.

    Notes
    -----
    1 - p of a noisy-or is the product of 1 - p of its frames (Pearl, "Probabilistic Reasoning in Intelligent Systems", 1988,
    section 4.3.2). The product of thousands of frames underflows, so the logarithm of it is taken, from which the log odds
    follow without it.
    """
    sign = np.where(is_mirrored, -1.0, 1.0)
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
        weights = np.broadcast_to(weights / weights.sum(axis=0), odds.shape)
    return (weights * odds).sum(axis=0), weights


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Gated attention (Ilse, Tomczak and Welling, "Attention-based deep multiple instance learning", ICML 2018, equation 9).

    The score of a frame with features h is w . (tanh(V h + v) * sigmoid(U h + u)), and its weight the softmax of the scores of
    all frames of the unit, for each label by itself, but for all grades alike. The paper averages features with these weights
    and classifies the average. With the linear head of a network that is the average of its frames' logits; so log odds are
    averaged, of whatever network.

    Parameters
    ----------
    tanh_weight, gate_weight
        V and U, float32 of shape (hidden, channels).
    tanh_bias, gate_bias
        v and u, float32 of shape (hidden,).
    output
        w, float32 of shape (weightings, hidden), as in `LabelSet`.
    """

    tanh_weight: FloatArray
    tanh_bias: FloatArray
    gate_weight: FloatArray
    gate_bias: FloatArray
    output: FloatArray

    def scores(self, features: ArrayLike) -> _Float64:
        """Return the score of one frame in each weighting; it does not depend on other frames.

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
    def of(cls, tensors: Mapping[str, FloatArray], level: Level, weightings: int) -> "Attention":
        """Return what `tensors` named.

        Raises
        ------
        ValueError
            If an array is missing, or they do not fit together, or to so many weightings.
        """
        try:
            found = cls(*(tensors[f"{level}.{name}"] for name in cls.__slots__))
        except KeyError as error:
            raise ValueError(f"no tensor {error.args[0]}") from None
        hidden, channels = found.output.shape[-1:] + found.tanh_weight.shape[-1:]
        shapes = ((hidden, channels), (hidden,), (hidden, channels), (hidden,), (weightings, hidden))
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
        One for each of the pooled numbers, which are labels or, of grades, steps: the calibrated log odds are scale x pooled +
        offset, the scale positive. Steps have one scale, and offsets that do not rise, so that they never cross.
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
        """Return calibrated log odds of pooled ones, of shape (..., pooled); finite if those are."""
        return np.asarray(np.multiply(pooled, self.scales) + self.offsets, np.float64)

    def fits(self, labels: LabelSet) -> bool:
        """Return whether it is a rule for these labels."""
        count = len(labels.is_mirrored)
        may_cross = labels.are_grades and (len(set(self.scales)) > 1 or list(self.offsets) != sorted(self.offsets)[::-1])
        return self.labels == labels.labels and len(self.scales) == len(self.offsets) == count and not may_cross

    def states(self, probabilities: _Float64, labels: LabelSet) -> NDArray[np.object_]:
        """Return the state of each label in each unit by `DecisionRule.states`, labels exclusive only if they are grades.

        Parameters
        ----------
        probabilities
            Of shape (units, labels).
        labels
            Those of the bundle.
        """
        activation = Activation.SOFTMAX if labels.are_grades else Activation.SIGMOID
        rule = DecisionRule.of(self.labels, self.operating_points, self.bands, activation, labels.normal_label)
        return rule.states(probabilities)


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
    labels: LabelSet,
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
        As in `pool`; without frames of shape (0, pooled).
    frames
        Source and number of each frame.
    labels
        Those of the bundle.
    left_out, studies, laterality
        As in `LevelResult`.
    """
    if not len(odds):
        why = f"None of the images of this {rule.level.value} could be scored." if left_out else "It has no image."
        return LevelResult(rule.level, rule.pooling, (), 0, left_out, studies, laterality, why)
    pooled, weights = pool(odds, rule.pooling, labels.is_mirrored, scores)
    chances = labels.probabilities(rule.calibrated(pooled))
    states = rule.states(chances[None], labels)[0]

    def deciding(label: str, column: int) -> tuple[DecidingFrame, ...]:
        if labels.are_grades:  # whether it is this grade or a worse one; of the mildest, whether it is not
            column = max(labels.by_severity.index(label) - 1, 0)
        sign = -1 if labels.is_mirrored[column] else 1
        return _deciding(weights[:, column], sign * odds[:, column], frames)

    predictions = tuple(
        LevelPrediction(point.label, float(chances[column]), states[column], point.threshold, deciding(point.label, column))
        for column, point in enumerate(rule.operating_points)
    )
    return LevelResult(rule.level, rule.pooling, predictions, len(odds), left_out, studies, laterality)


def _deciding(weights: _Float64, evidence: _Float64, frames: Sequence[tuple[str, int]]) -> tuple[DecidingFrame, ...]:
    """Name the frames of the largest weights; of equal ones, as with the mean, those that say most."""
    order = np.lexsort((-evidence, -weights))[:DECIDING_FRAMES]
    return tuple(
        DecidingFrame(frames[place][0], frames[place][1], float(weights[place])) for place in order if weights[place] > 0
    )
