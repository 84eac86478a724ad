"""The worklist: the order in which a reader should look at studies and frames, and their counts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline.errors import Reason
from pipeline.frames import Quarantined
from pipeline.levels import LabelSet, Level, LevelPrediction, LevelResult
from pipeline.predictions import FramePrediction, Prediction, State, rounded
from pipeline.results.patient import Patient

URGENT, UNCERTAIN, NOT_SCORED = 3000, 2000, 1000
"""Ranks of studies: a finding is positive from `URGENT` on, and uncertain from `UNCERTAIN` on; its place in the bundle's order
is added to these. At `NOT_SCORED` nothing is known, so a reader should see the study before negative ones."""

AnyPrediction = Prediction | LevelPrediction
"""What a bundle says of one label, in a frame or in a study, an eye or a patient."""
SomePrediction = TypeVar("SomePrediction", Prediction, LevelPrediction)


@dataclass(frozen=True, slots=True)
class Study:
    """A study in the worklist.

    Parameters
    ----------
    study_instance_uid
        Study Instance UID (0020,000D); empty if no file of the study could be read.
    frames
        Its scored frames, the most urgent first.
    failures
        Its files and frames that were not scored.
    rank
        As in `Ranking.of_study`.
    scored_at
        When it was first scored, in seconds since 1970.
    is_new
        Whether that was after the report was last written.
    patient
        Patient details; None if the report shows none.
    levels
        The results of the study and its eyes, and of its patient if there are several studies of it; of the levels that the
        bundle has.
    """

    study_instance_uid: str
    frames: tuple[FramePrediction, ...]
    failures: tuple[Quarantined, ...] = ()
    rank: int = 0
    scored_at: float = 0.0
    is_new: bool = False
    patient: Patient | None = None
    levels: tuple[LevelResult, ...] = ()

    @property
    def whole(self) -> tuple[LevelPrediction, ...]:
        """What the bundle says of the study as a whole; empty if it has no such level, or no frame was scored."""
        return whole_study(self.levels)

    @property
    def is_listed(self) -> bool:
        """Whether it belongs in the worklist: a letter that lies beside the studies does not."""
        return bool(self.frames) or any(failure.reason != Reason.NOT_AN_IMAGE for failure in self.failures)

    @property
    def main_source(self) -> str:
        """The file that decided the rank; the first file if nothing was scored."""
        return self.frames[0].source if self.frames else self.failures[0].source


def whole_study(levels: Iterable[LevelResult]) -> tuple[LevelPrediction, ...]:
    """Return the predictions of the study itself among the results of its levels; empty if there are none."""
    return next((one.predictions for one in levels if one.level is Level.STUDY), ())


@dataclass(frozen=True, slots=True)
class Ranking:
    """Orders findings, frames and studies by the urgency that a bundle gives to its labels.

    Parameters
    ----------
    normal_label
        The label that means no finding, which is never urgent; None if there is none.
    urgency
        Findings, the most urgent first; all others rank equally below them.
    """

    normal_label: str | None = None
    urgency: tuple[str, ...] = ()

    def findings(self, predictions: Sequence[SomePrediction]) -> list[SomePrediction]:
        """Return the labels other than the normal one, the most urgent first."""
        others = [prediction for prediction in predictions if prediction.label != self.normal_label]
        return sorted(others, key=self._key, reverse=True)

    def of_frame(self, predictions: Sequence[AnyPrediction]) -> tuple[int, float]:
        """Return the sort key of a frame, or of a study as a whole: the rank of its most urgent finding, and its probability.

        The probability is rounded as it is written, so that digits that are not shown, and that differ between machines, do not
        change the order.
        """
        return max((self._key(one) for one in predictions if one.label != self.normal_label), default=(0, 0.0))

    def of_study(self, frames: Iterable[FramePrediction], levels: Iterable[LevelResult] = ()) -> tuple[int, float]:
        """Return the sort key of a study: that of its result as a whole, if the bundle has that level.

        Else it is that of its most urgent frame, or `NOT_SCORED` if it has none.
        """
        if whole := whole_study(levels):
            return self.of_frame(whole)
        return max((self.of_frame(frame.predictions) for frame in frames), default=(NOT_SCORED, 0.0))

    def sorted(self, frames: Iterable[FramePrediction]) -> tuple[FramePrediction, ...]:
        """Return frames in the order in which a reader should look at them; equals keep their order."""
        return tuple(sorted(frames, key=lambda frame: self.of_frame(frame.predictions), reverse=True))

    def _key(self, one: AnyPrediction) -> tuple[int, float]:
        """Return the sort key of a finding. If it is negative, only its probability counts: an absent disease is not urgent."""
        level = {State.POSITIVE: URGENT, State.UNCERTAIN: UNCERTAIN}.get(one.state, 0)
        place = len(self.urgency) - self.urgency.index(one.label) if level and one.label in self.urgency else 0
        return level + place, rounded(one.probability)


def decisive(frames: Iterable[Sequence[Prediction]], labels: LabelSet) -> list[Prediction]:
    """Return for each label the prediction that decides its state in `LabelSet.states`.

    It is the most probable of those with that state, or the least probable for the label that means no finding. A grade may
    have a state in no frame, if one frame may have a milder and another a worse one: the prediction is then given that state.
    """
    every = [list(predictions) for predictions in frames]
    chosen = []
    for label, state in labels.states(every).items():
        known = [one for predictions in every for one in predictions if one.label == label]
        saying = [one for one in known if one.state is state] or known
        found = (min if label == labels.normal_label else max)(saying, key=lambda one: one.probability)
        chosen.append(found if found.state is state else replace(found, state=state))
    return chosen


@dataclass(frozen=True, slots=True)
class Totals:
    """The counts at the top of a report.

    Parameters
    ----------
    studies
        Studies with at least one scored frame.
    urgent, uncertain
        Studies with a positive finding, and those with only uncertain ones.
    incomplete
        Scored studies with a frame or a file that was not scored.
    not_scored
        Studies without any scored frame.
    new
        Studies, scored or not, that are new since the last report.
    frames
        Scored frames.
    failures
        Files and frames that were not scored.
    without_image
        DICOM objects that hold no image.
    first_at, last_at
        When the first and the last study were scored, in seconds since 1970; 0 if there is none.
    """

    studies: int = 0
    urgent: int = 0
    uncertain: int = 0
    incomplete: int = 0
    not_scored: int = 0
    new: int = 0
    frames: int = 0
    failures: int = 0
    without_image: int = 0
    first_at: float = 0.0
    last_at: float = 0.0

    @property
    def listed(self) -> int:
        """The number of studies in the worklist."""
        return self.studies + self.not_scored

    def plus(self, study: Study, without_image: int = 0) -> "Totals":
        """Return the counts with one more study, of which `without_image` objects hold no image."""
        is_scored = bool(study.frames)
        return Totals(
            self.studies + is_scored,
            self.urgent + (study.rank >= URGENT),
            self.uncertain + (UNCERTAIN <= study.rank < URGENT),
            self.incomplete + (is_scored and bool(study.failures)),
            self.not_scored + (study.is_listed and not is_scored),
            self.new + (study.is_listed and study.is_new),
            self.frames + len(study.frames),
            self.failures + len(study.failures),
            self.without_image + without_image,
            min(self.first_at or study.scored_at, study.scored_at),
            max(self.last_at, study.scored_at),
        )
