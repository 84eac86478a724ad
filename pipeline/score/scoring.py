"""What is made of the frames of some files, or of one batch: everything but the order of studies; runs in worker processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import FrameFacts, Quarantined
from pipeline.imaging.sources import StudyFile
from pipeline.predictions import FramePrediction
from pipeline.score.admission import Admission, Admitted, read_admitted, read_whole
from pipeline.score.faults import of_the_network
from pipeline.score.pictures import Drawing, Drawn, pictures
from pipeline.score.view import View
from pipeline.workers.process import outside_limits, restart_clock

if TYPE_CHECKING:  # worker processes load it beside their limit of memory
    from pipeline.score.predictor import Predictor

ITEMS_AT_ONCE = 64
"""Frames, failures and ends in one batch, at most."""

Study = TypeVar("Study")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """A frame and what the bundle says of it.

    Parameters
    ----------
    facts
        The frame without its pixels.
    prediction
        What the bundle says.
    view
        What its heatmaps are drawn on; None where they are not.
    """

    facts: FrameFacts
    prediction: FramePrediction
    view: View | None


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A frame of which everything is known.

    Parameters
    ----------
    facts
        The frame without its pixels.
    prediction
        What the bundle says, with the heatmaps only where their values were asked for.
    pictures
        Of its heatmaps.
    """

    facts: FrameFacts
    prediction: FramePrediction
    pictures: tuple[Drawn, ...]


@dataclass(frozen=True, slots=True)
class Ended(Generic[Study]):
    """Says that everything of a study has come out."""

    study: Study


Item = Admitted | Quarantined | Ended[Study]
Result = Scored | Quarantined | Ended[Study]
Outcome = Iterator[list[Scored | Quarantined | Ended[None]]]
"""What came of some frames at a time, and `Ended` between what belongs to one file and to the next."""
_NEXT_FILE = Ended(None)


@dataclass(frozen=True, slots=True)
class Scoring:
    """How files are scored; where it is unpickled, the predictor is loaded anew.

    Parameters
    ----------
    predictor
        What scores.
    admission
        What is asked of files and frames.
    drawing
        What is made of heatmaps.
    """

    predictor: "Predictor"
    admission: Admission
    drawing: Drawing

    def finished(self, batch: Sequence[Item[Study] | Predicted]) -> list[Result[Study]]:
        """Return the items of a batch in their order, with all that is made of its frames in place of these.

        Parameters
        ----------
        batch
            As `predicted` and then `reread` leave it: no frame in it has to be read again.

        Raises
        ------
        BundleError, ScoringError
            If the network fails.
        """
        results: list[Result[Study]] = []
        for item in predicted(batch, self.predictor, self.drawing.is_computed):
            assert not isinstance(item, Admitted)  # noqa: S101 - for mypy
            results.append(self._scored(item) if isinstance(item, Predicted) else item)
        return results

    def _scored(self, item: Predicted) -> Scored:
        as_png = self.drawing.png and bool(item.facts.transfer_syntax_uid)
        drawn: tuple[Drawn, ...] = ()
        if item.view and (self.drawing.jpeg or as_png):
            drawn = pictures(item.prediction, item.view, self.predictor.manifest, self.drawing.jpeg, as_png)
        result = item.prediction
        return Scored(item.facts, result if self.drawing.maps else replace(result, heatmaps=()), drawn)


def score_files(files: Sequence[StudyFile], scoring: Scoring) -> Outcome:
    """Score files one after the other, frames of several in one call of the network; made for worker processes."""
    items = _items(files, scoring.admission)
    yield from _each_finished(batches(items, scoring.predictor.engine.frames_at_once), scoring)


def score_singly(files: Sequence[StudyFile], scoring: Scoring) -> Outcome:
    """Do what `score_files` does, but give what comes of each frame before the next is read."""
    yield from _each_finished(([item] for item in _items(files, scoring.admission)), scoring)


def _each_finished(some: Iterable[list[Item[None]]], scoring: Scoring) -> Outcome:
    for batch in some:
        with outside_limits():
            items = list(predicted(batch, scoring.predictor, scoring.drawing.is_computed))
        items = reread(items, partial(read_whole, admission=scoring.admission))
        with outside_limits():
            results = scoring.finished(items)
        yield results


def _items(files: Sequence[StudyFile], admission: Admission) -> Iterator[Item[None]]:
    """Read files one after the other, each frame within the time for one."""
    for number, file in enumerate(files):
        if number:
            yield _NEXT_FILE
        for item in outcome_of(file, read_admitted(file, admission)):
            yield item
            restart_clock()


def batches(items: Iterable[Item[Study]], size: int) -> Iterator[list[Item[Study]]]:
    """Group items, so that a group has at most `size` frames and `ITEMS_AT_ONCE` items."""
    batch: list[Item[Study]] = []
    frames = 0
    for item in items:
        batch.append(item)
        frames += isinstance(item, Admitted)
        if frames == size or len(batch) == ITEMS_AT_ONCE:
            yield batch
            batch, frames = [], 0
    if batch:
        yield batch


def predicted(
    batch: Sequence[Item[Study] | Predicted], predictor: "Predictor", heatmaps: bool
) -> Iterator[Item[Study] | Predicted]:
    """Yield the items of a batch in their order, with what the network says of its frames in place of these.

    A frame whose answer is too near a threshold for the resolution at which it was decoded stays; `reread` reads it whole.

    Raises
    ------
    BundleError, ScoringError
        If the network fails.
    """
    frames = [item for item in batch if isinstance(item, Admitted)]
    with of_the_network():
        results = iter(predictor.predict_admitted(frames, heatmaps))
    for item in batch:
        if isinstance(item, Admitted):
            result = next(results)
            yield Predicted(item.facts, result, item.view) if isinstance(result, FramePrediction) else result
        else:
            yield item


def reread(
    items: Iterable[Item[Study] | Predicted], read: Callable[[Admitted], Iterator[Admitted | Quarantined]]
) -> list[Item[Study] | Predicted]:
    """Return items in their order, with the frames among them read again, whole, or with the reason why they cannot be."""
    return [_reread(item, read) if isinstance(item, Admitted) else item for item in items]


def _reread(item: Admitted, read: Callable[[Admitted], Iterator[Admitted | Quarantined]]) -> Admitted | Quarantined:
    source, number = item.facts.source, item.facts.key.frame_number
    try:
        for found in list(read(item)):
            if isinstance(found, Quarantined) or found.facts.file_sha256 == item.facts.file_sha256:
                return found  # another file's frame may be another patient's
    except UnreadableError as error:
        return Quarantined(source, error.reason, str(error), number)
    return Quarantined(source, Reason.DECODE_FAILED, "The file was replaced while it was read. Score it again.", number)


def outcome_of(file: StudyFile, items: Iterator[Found]) -> Iterator[Found | Quarantined]:
    """Yield what came of a file; where reading it broke off, the last is a failure."""
    done = 0
    try:
        for item in items:
            yield item
            done += 1
    except UnreadableError as error:
        yield failed(file, done, error.reason, str(error))


def failed(file: StudyFile, done: int, reason: Reason, message: str) -> Quarantined:
    """Name the frame behind the last one that could be read, or the whole file where none could."""
    if not done:
        return Quarantined(file.source, reason, message)
    return Quarantined(file.source, reason, f"{message} No frame after this one was read.", done + 1)
