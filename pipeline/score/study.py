"""Scores studies: files are read and scored in worker processes, and what is found streams in the order of the studies."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from pipeline.errors import BundleError, OctrayError, Reason, ScoringError, UnreadableError
from pipeline.frames import Quarantined
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.sources import StudyFile
from pipeline.predictions import FramePrediction
from pipeline.score.pictures import NOTHING_DRAWN, Drawing, drawn
from pipeline.score.reading import Admission, Admitted, View, read_admitted, read_whole
from pipeline.workers.ahead import map_ahead
from pipeline.workers.process import outside_limits, restart_clock

if TYPE_CHECKING:
    from pipeline.score.predictor import Predictor


@contextmanager
def of_the_network() -> Iterator[None]:
    """Turn whatever the block raises, but for errors of octray, into what is not taken for a fault of the files.

    Raises
    ------
    ScoringError
        Where the block ends in any other exception, such as one of ONNX Runtime.
    """
    try:
        yield
    except OctrayError:
        raise
    except Exception as error:
        raise ScoringError(
            f"The network ended in an unexpected {type(error).__name__}. Start again with more memory free; if that does not "
            "help, please report it as a fault of octray."
        ) from None


@lru_cache(maxsize=1)
def loaded(path: Path, bundle_id: str) -> "Predictor":
    """Return the predictor of a bundle, for one core; the same again for the same bundle.

    Raises
    ------
    BundleError
        Where the bundle cannot be used, or another one lies there by now.
    ScoringError
        Where there is no memory for the network, for example.
    """
    with outside_limits(keep_memory=True), of_the_network():
        from pipeline.model.bundle import load_bundle
        from pipeline.score.predictor import Predictor

        predictor = Predictor(load_bundle(path), threads=1)
        size = predictor.engine.size
        predictor.engine.run(np.zeros((predictor.engine.frames_at_once, 1, size, size), np.float32))  # takes what a call takes
    if predictor.manifest.bundle_id != bundle_id:
        raise BundleError(f"The bundle {path.name} was replaced while it was in use. Start again.")
    return predictor


ITEMS_AT_ONCE = 64
"""Frames, failures and ends in one batch, at most."""

Study = TypeVar("Study")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """What the bundle says of a frame, and what its heatmaps are drawn on; None if they are not."""

    prediction: FramePrediction
    view: View | None


@dataclass(frozen=True, slots=True)
class Ended(Generic[Study]):
    """Says that everything of a study has come out."""

    study: Study


Item = Admitted | Quarantined | Ended[Study]
Result = FramePrediction | Quarantined | Ended[Study]
FileResults = Iterator[list[FramePrediction | Quarantined | Ended[None]]]
"""What came of some frames at a time, and `Ended` between what belongs to one file and to the next."""
_NEXT_FILE = Ended(None)


@dataclass(frozen=True, slots=True)
class Scoring:
    """How files are scored; a process that unpickles it loads the predictor, once for all that follow.

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

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the place of the bundle instead of the predictor, which cannot be pickled."""
        return _unpickled, (self.predictor.path, self.predictor.manifest.bundle_id, self.admission, self.drawing)

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

    def _scored(self, item: Predicted) -> FramePrediction:
        """Return what the bundle says of a frame, its heatmaps with what is asked of them."""
        result, view, manifest = item.prediction, item.view, self.predictor.manifest
        as_png = self.drawing.png and bool(result.facts.transfer_syntax_uid)
        heatmaps = result.heatmaps
        if view and (self.drawing.jpeg or as_png):
            heatmaps = tuple(
                one if one.label == manifest.normal_label else drawn(one, view, manifest, self.drawing.jpeg, as_png)
                for one in heatmaps
            )
        if not self.drawing.maps:
            heatmaps = tuple(replace(one, values=None) for one in heatmaps if one.rows or one.fault)
        return replace(result, heatmaps=heatmaps)


def _unpickled(path: Path, bundle_id: str, admission: Admission, drawing: Drawing) -> Scoring:
    return Scoring(loaded(path, bundle_id), admission, drawing)


def score_files(files: Sequence[StudyFile], scoring: Scoring) -> FileResults:
    """Score files one after the other, frames of several in one call of the network; made for worker processes."""
    items = _items(files, scoring.admission)
    yield from _each_finished(batches(items, scoring.predictor.engine.frames_at_once), scoring)


def score_singly(files: Sequence[StudyFile], scoring: Scoring) -> FileResults:
    """Do what `score_files` does, but give what comes of each frame before the next is read."""
    yield from _each_finished(([item] for item in _items(files, scoring.admission)), scoring)


def _each_finished(some: Iterable[list[Item[None]]], scoring: Scoring) -> FileResults:
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
            yield Predicted(result, item.view) if isinstance(result, FramePrediction) else result
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


LEAST_READERS = 2
"""Processes that only read, even where there are fewer cores: one of them may wait for a disk or a network."""
FILES_AT_ONCE, SMALL_BYTES = 4, 2**18
"""So many files of at most that size are one task of a worker, so that they share calls of the network."""
TASKS_A_WORKER = 16
"""Tasks that are begun ahead of their use."""


_Member = tuple[StudyFile, tuple[Ended[Study], ...]]
"""A file, and the end of its study where it is the last of it."""


def score_studies(
    studies: Iterable[tuple[Study, Sequence[StudyFile]]],
    predictor: "Predictor",
    cores: int = 1,
    drawing: Drawing = NOTHING_DRAWN,
) -> Generator[Result[Study], None, None]:
    """Score studies as they come; what cannot be read or is not meant for the bundle comes out as a failure.

    Parameters
    ----------
    studies
        Anything that names a study, with its files; taken as needed.
    predictor
        What scores.
    cores
        How many to keep at work.
    drawing
        What is made of heatmaps.

    Yields
    ------
    FramePrediction, Quarantined or Ended
        In the order of the studies, their files and the frames of these, and `Ended` behind the last of each study. Held in
        memory is what `WorkerPool.map` lets wait, and where the network runs in this process, a few batches of frames on its
        grid. Closing the iterator ends all work.

    Raises
    ------
    BundleError
        Where the network returns what is no number, or the bundle was replaced under way.
    ScoringError
        Where the network fails otherwise.
    """
    scoring = Scoring(predictor, replace(predictor.admission, drawn=drawing.is_drawn), drawing)
    run = _in_workers if predictor.is_light else _in_threads
    with closing(run(_members(studies), scoring, cores)) as results:
        yield from results


def _members(studies: Iterable[tuple[Study, Sequence[StudyFile]]]) -> Iterator[_Member[Study]]:
    for study, files in studies:
        for number, file in enumerate(files, 1):
            yield file, (Ended(study),) if number == len(files) else ()


def _in_workers(members: Iterator[_Member[Study]], scoring: Scoring, cores: int) -> Generator[Result[Study], None, None]:
    """Have a worker a core read files, run the network and draw, so that results alone pass between processes."""
    task, again = partial(score_files, scoring=scoring), partial(_alone, scoring=scoring)
    tasks = ((group, [file for file, _ in group]) for group in _groups(members))
    with (
        file_workers(cores) as workers,
        closing(workers.map(task, tasks, TASKS_A_WORKER * cores)) as outcomes,
    ):
        for group, outcome in outcomes:
            yield from _of_group(group, outcome, again)


def _groups(members: Iterable[_Member[Study]]) -> Iterator[list[_Member[Study]]]:
    """Put small files together that follow each other."""
    group: list[_Member[Study]] = []
    for member in members:
        is_small = _is_small(member[0])
        if group and (not is_small or len(group) == FILES_AT_ONCE):
            yield group
            group = []
        group.append(member)
        if not is_small:
            yield group
            group = []
    if group:
        yield group


def _is_small(file: StudyFile) -> bool:
    try:
        return not file.inside and file.path.stat().st_size <= SMALL_BYTES
    except OSError:
        return True  # it cannot be opened, which reading it will say


def _of_group(
    group: Sequence[_Member[Study]],
    outcome: FileResults,
    again: Callable[[StudyFile], FileResults] | None = None,
    skip: int = 0,
) -> Iterator[Result[Study]]:
    """Yield what came of files that were scored together, but for the first `skip` frames, and the ends of their studies.

    Where a worker failed on several frames it is not known on which: the files are scored again alone, but for what has come
    out already.
    """
    rest = deque(group)
    done = 0
    try:
        for item in chain.from_iterable(outcome):
            if isinstance(item, Ended):
                yield from rest.popleft()[1]
                done = 0
                continue
            done += 1
            if done > skip:
                yield item
    except UnreadableError as error:
        if again:
            for member in rest:
                yield from _of_group([member], again(member[0]), skip=done)
                done = 0
            return
        yield failed(rest[0][0], max(done, skip), error.reason, str(error))
    yield from rest[0][1]


def _alone(file: StudyFile, scoring: Scoring) -> FileResults:
    """Score a file in a worker of its own."""
    with file_workers(1) as workers:
        yield from workers.run(partial(score_singly, scoring=scoring), [file])


def _in_threads(members: Iterator[_Member[Study]], scoring: Scoring, cores: int) -> Generator[Result[Study], None, None]:
    """Have workers read files, and run the network in this process: on a GPU, or where heatmaps need more than its graph."""
    threads = max(2, scoring.predictor.engine.calls(cores))  # one may draw what another has run
    with (
        file_workers(1) as again,
        closing(_read(members, scoring, cores)) as items,
    ):
        read = partial(again.run, partial(read_whole, admission=scoring.admission))

        def finished(batch: Sequence[Item[Study]]) -> list[Result[Study]]:
            return scoring.finished(reread(predicted(batch, scoring.predictor, scoring.drawing.is_computed), read))

        some = batches(items, scoring.predictor.engine.frames_at_once)
        with closing(map_ahead(finished, some, threads, 2 * threads)) as results:
            yield from chain.from_iterable(results)


def _read(members: Iterator[_Member[Study]], scoring: Scoring, cores: int) -> Generator[Item[Study], None, None]:
    """Read files, several at a time, and mark where each study ends."""
    read = partial(read_admitted, admission=scoring.admission)
    with (
        file_workers(max(LEAST_READERS, cores)) as workers,
        closing(workers.map(read, ((member, member[0]) for member in members))) as outcomes,
    ):
        for (file, end), outcome in outcomes:
            yield from outcome_of(file, outcome)
            yield from end
