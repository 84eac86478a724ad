"""In which order a reader should look at studies and frames; pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from pipeline.predictions import FramePrediction, Prediction, State
from pipeline.results.rounding import rounded
from pipeline.results.states import study_states

URGENT = 2
"""Rank of a study with a finding that is positive."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A heatmap that is already drawn.

    Parameters
    ----------
    label
        The finding.
    path
        The file; below the folder of results where it is relative.
    has_positive_evidence
        As in `Heatmap`.
    rows, columns
        Of the frame alone, which stands at the upper left of the picture; 0 if unknown.
    """

    label: str
    path: PurePath
    has_positive_evidence: bool
    rows: int = 0
    columns: int = 0


@dataclass(frozen=True, slots=True)
class ReportFrame:
    """A frame's result with the pictures that belong to it."""

    prediction: FramePrediction
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """All scored frames of one study.

    Parameters
    ----------
    study_instance_uid
        Study Instance UID (0020,000D).
    frames
        Most urgent first.
    urgent
        Whether a label other than the normal one is positive in a frame.
    """

    study_instance_uid: str
    frames: tuple[ReportFrame, ...]
    urgent: bool


def study_of(uid: str, frames: Iterable[ReportFrame], normal_label: str | None) -> Study:
    """Return a study with its frames in the order in which a reader should look at them; what is equal keeps its order."""
    ranked = sorted(frames, key=lambda frame: urgency(frame.prediction.predictions, normal_label), reverse=True)
    return Study(uid, tuple(ranked), urgency_of(ranked, normal_label)[0] == URGENT)


def urgency(predictions: Sequence[Prediction], normal_label: str | None) -> tuple[int, float]:
    """Return what frames are sorted by: a rank, and the highest probability among the findings that give it.

    The rank is `URGENT` where a finding is positive, 1 where one is uncertain, else 0. The probability is the one that is
    written, so that no digit which nobody sees, and other hardware changes, decides about the order.
    """
    found = findings(predictions, normal_label)
    ranks = {State.POSITIVE: URGENT, State.UNCERTAIN: 1}
    return max(((ranks.get(one.state, 0), rounded(one.probability)) for one in found), default=(0, 0.0))


def urgency_of(frames: Iterable[ReportFrame], normal_label: str | None) -> tuple[int, float]:
    """Return the urgency of a study: that of its most urgent frame."""
    return max((urgency(frame.prediction.predictions, normal_label) for frame in frames), default=(0, 0.0))


def decisive(frames: Iterable[Sequence[Prediction]], normal_label: str | None) -> list[Prediction]:
    """Return for each label the prediction that decides its state in `study_states`.

    Of the frames that say that state it is the most probable one, and for the label of no finding the least probable one.
    """
    every = [list(predictions) for predictions in frames]
    chosen = []
    for label, state in study_states(every, normal_label).items():
        saying = [one for predictions in every for one in predictions if one.label == label and one.state is state]
        chosen.append((min if label == normal_label else max)(saying, key=lambda one: one.probability))
    return chosen


def findings(predictions: Sequence[Prediction], normal_label: str | None) -> list[Prediction]:
    """Return the labels other than the normal one: positives first, then uncertain ones, each by falling probability."""
    others = [prediction for prediction in predictions if prediction.label != normal_label]
    order = (State.POSITIVE, State.UNCERTAIN)
    return sorted(others, key=lambda one: (*(one.state is not state for state in order), -one.probability))
