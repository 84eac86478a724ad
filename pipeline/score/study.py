"""Scores studies: files are read and scored in worker processes, and what is found streams in the order of the files.

There is one way for a folder, a cluster and the HTTP service, with one rule for what fails: if a worker process ends, or takes
too much time or memory, the files that it was given are scored again, each alone in another worker. Only a file that fails
there too is reported as a failure.
"""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import numpy as np

from pipeline.errors import BundleError, OctrayError, Reason, ScoringError, UnreadableError
from pipeline.frames import Quarantined, of_whole_file
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.sources import StudyFile
from pipeline.predictions import FramePrediction, StudyRecord
from pipeline.score.pictures import drawn
from pipeline.score.reading import Admission, Admitted, InMemoryFile, read_admitted, read_whole
from pipeline.workers.ahead import ITEMS_AHEAD, stream_ahead
from pipeline.workers.pool import WorkerPool
from pipeline.workers.process import outside_limits, restart_clock

if TYPE_CHECKING:
    from pipeline.score.predictor import Predictor

HeatmapForm = Literal["values", "jpeg", "png"]
"""What is made of heatmaps: their values, or pictures of all but that of the label that means no finding."""

NO_FRAME_AFTER = "No frame after this one was read."
ITEMS_AT_ONCE = 64
"""Frames, failures and ends of files in one batch, at most."""
LEAST_READERS = 2
"""Processes that only read, even if there are fewer cores: one of them may wait for a disk or a network."""
FILES_AT_ONCE, SMALL_BYTES = 4, 2**18
"""This many files of at most this size are one task of a worker, so that they share calls of the network."""
TASKS_A_WORKER = 16
"""Tasks that are begun ahead of their use."""

Study = TypeVar("Study")
AnyFile = StudyFile | InMemoryFile
Item = Admitted | Quarantined | None
"""A frame that was read, one that is not used, or the end of a file."""
Result = FramePrediction | Quarantined | None
"""The same once the frame is scored."""
Found = TypeVar("Found", Admitted | Quarantined | None, FramePrediction | Quarantined | None)
Grouped = TypeVar("Grouped")


@dataclass(frozen=True, slots=True, eq=False)
class _Member(Generic[Study]):
    """A file of a study."""

    file: AnyFile
    study: Study
    is_last: bool
    begun_at: str


def score_study(
    files: Iterable[AnyFile],
    predictor: "Predictor",
    *,
    heatmaps: Collection[HeatmapForm] = (),
    cores: int = 1,
    in_workers: bool | None = None,
    draws: Callable[[], bool] | None = None,
    cancel: Callable[[], str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Generator[FramePrediction | Quarantined | StudyRecord, None, None]:
    """Score the files of one study; its record comes last.

    Parameters
    ----------
    files
        At least one; taken as needed, so that few are in memory if they are `InMemoryFile`s.
    predictor
        What scores.
    heatmaps, cores, in_workers, draws, cancel, progress
        As in `score_studies`.

    Yields
    ------
    FramePrediction, Quarantined or StudyRecord
        Frames in the order of the files as soon as they are scored, with the heatmaps that were asked for; what is not used; at
        the end the record of all of them, without the content of heatmaps.

    Raises
    ------
    BundleError, ScoringError
        As `score_studies`.
    """
    readers = max(LEAST_READERS, cores)
    some = score_studies(
        [(None, files)],
        predictor,
        heatmaps=heatmaps,
        cores=cores,
        in_workers=in_workers,
        draws=draws,
        cancel=cancel,
        progress=progress,
        tasks_ahead=2 * readers,
    )
    with closing(some):
        for _, item in some:
            yield item


def score_studies(
    studies: Iterable[tuple[Study, Iterable[AnyFile]]],
    predictor: "Predictor",
    *,
    heatmaps: Collection[HeatmapForm] = (),
    cores: int = 1,
    in_workers: bool | None = None,
    draws: Callable[[], bool] | None = None,
    cancel: Callable[[], str] | None = None,
    progress: Callable[[int], None] | None = None,
    tasks_ahead: int | None = None,
) -> Generator[tuple[Study, FramePrediction | Quarantined | StudyRecord], None, None]:
    """Score studies as they come, so that many small ones share worker processes and calls of the network.

    Parameters
    ----------
    studies
        Anything that names a study, with its files, of which it has at least one; taken as needed.
    predictor
        What scores.
    heatmaps
        In which forms heatmaps are wanted.
    cores
        How many to keep at work.
    in_workers
        Whether worker processes run the network too, one for each core: best for many files. Otherwise they only read, and this
        process runs the network: best for one study at a time, on a GPU, or if heatmaps need more than the graph. None chooses
        by the predictor.
    draws
        Is asked whether pictures are still wanted, in another thread and ahead of their use: before those of each frame are
        drawn if this process runs the network, else before each group of files is given to a worker. None draws all.
    cancel
        Is asked before each frame, and says in a sentence why to stop, or nothing to go on. The files that are not finished
        then are reported with the sentence and `Reason.TIME_LIMIT`.
    progress
        Called with the number of finished files.
    tasks_ahead
        How many groups of small files, or single large ones, are begun ahead of their use.

    Yields
    ------
    tuple
        The name of a study, and what comes of it as in `score_study`: studies, files and frames in their order, behind the last
        of each study its `StudyRecord`. Held in memory is what `WorkerPool.map` lets wait, a few batches of frames if this
        process runs the network, and the record of one study. Closing the iterator ends all work.

    Raises
    ------
    BundleError
        If the network returns what is no number, or the bundle was replaced in the meantime.
    ScoringError
        If the network fails otherwise.
    """
    pictures = frozenset(heatmaps) & {"jpeg", "png"}
    scoring = Scoring(predictor, replace(predictor.admission, drawn=bool(pictures)), frozenset(heatmaps), draws)
    if in_workers is None:
        in_workers = predictor.runs_in_workers
    run = _network_in_workers if in_workers else _network_here
    frames: list[FramePrediction] = []
    not_used: list[Quarantined] = []
    finished = 0
    with closing(run(_members(studies), scoring, cores, cancel, tasks_ahead)) as results:
        for member, item in results:
            if isinstance(item, FramePrediction):
                frames.append(item.without_content())
                yield member.study, item
            elif item is not None:
                not_used.append(item)
                yield member.study, item
            else:
                finished += 1
                if progress:
                    progress(finished)
                if member.is_last:
                    yield member.study, _record(frames, not_used, member.begun_at)
                    frames, not_used = [], []


def without_partial_files(record: StudyRecord) -> StudyRecord:
    """Return a record in which a file that could not be read to its end counts for nothing but one failure."""
    broken = {row.source: row for row in record.not_used if row.message.endswith(NO_FRAME_AFTER)}
    rows = [
        row
        if row.source not in broken
        else replace(row, message=row.message.removesuffix(f" {NO_FRAME_AFTER}"), frame_number=None)
        for row in record.not_used
        if broken.get(row.source, row) is row
    ]
    frames = tuple(frame for frame in record.frames if frame.source not in broken)
    return replace(record, frames=frames, not_used=tuple(rows))


def _members(studies: Iterable[tuple[Study, Iterable[AnyFile]]]) -> Iterator[_Member[Study]]:
    for study, files in studies:
        begun_at, rest = _now(), iter(files)
        file = next(rest, None)
        while file is not None:
            following = next(rest, None)
            yield _Member(file, study, following is None, begun_at)
            file = following


def _record(frames: Sequence[FramePrediction], not_used: Sequence[Quarantined], begun_at: str) -> StudyRecord:
    """Return the record of a study; of a file without a scored frame, equal reasons become one."""
    scored = {frame.source for frame in frames}
    rows: list[Quarantined] = []
    for source, group in groupby(not_used, lambda row: row.source):
        some = tuple(group)
        rows += some if source in scored else of_whole_file(some)
    uid = frames[0].key.study_instance_uid if frames else ""
    return StudyRecord(uid, tuple(frames), tuple(rows), begun_at, _now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# Where the network runs.

Results = Generator[tuple[_Member[Study], Result], None, None]


def _network_in_workers(
    members: Iterator[_Member[Study]],
    scoring: "Scoring",
    cores: int,
    cancel: Callable[[], str] | None,
    tasks_ahead: int | None,
) -> Results[Study]:
    """Have a worker a core read files, run the network and draw, so that results alone pass between processes."""
    task, alone = partial(score_files, scoring=scoring), partial(score_singly, scoring=scoring)
    with file_workers(cores) as workers:
        yield from _outcomes(members, workers, task, alone, tasks_ahead or TASKS_A_WORKER * cores, cancel)


def _network_here(
    members: Iterator[_Member[Study]],
    scoring: "Scoring",
    cores: int,
    cancel: Callable[[], str] | None,
    tasks_ahead: int | None,
) -> Results[Study]:
    """Have workers read files, and run the network and draw in threads of this process."""
    threads = max(2, scoring.predictor.engine.calls(cores))  # one may draw what another has run
    task = partial(read_files, admission=scoring.admission)
    with (
        file_workers(max(LEAST_READERS, cores)) as workers,
        file_workers(1) as rereading,
        closing(_outcomes(members, workers, task, task, tasks_ahead or ITEMS_AHEAD // FILES_AT_ONCE, cancel)) as items,
    ):
        read = partial(rereading.run, partial(read_whole, admission=scoring.admission))

        def scored(batch: Sequence[tuple[_Member[Study], Item]]) -> Iterator[tuple[_Member[Study], Result]]:
            frames = [replace(item, file=one.file) if isinstance(item, Admitted) else item for one, item in batch]
            yield from zip((one for one, _ in batch), scoring.scored(frames, read), strict=True)

        some = batches(items, scoring.predictor.engine.frames_at_once, lambda pair: isinstance(pair[1], Admitted))
        ahead = stream_ahead(scored, ((None, batch) for batch in some), threads, ahead=2 * threads, size=_bytes_of_heatmaps)
        with closing(ahead) as streams:
            for _, results in streams:
                yield from results


def _bytes_of_heatmaps(pair: tuple[object, Result]) -> int:
    result = pair[1]
    heatmaps = result.heatmaps if isinstance(result, FramePrediction) else ()
    return sum(len(one.jpeg) + len(one.png) + (0 if one.values is None else one.values.nbytes) for one in heatmaps)


# Tasks of workers, and what is done if one fails.


def _outcomes(
    members: Iterator[_Member[Study]],
    workers: WorkerPool,
    task: Callable[[Sequence[AnyFile]], Iterator[list[Found]]],
    alone: Callable[[Sequence[AnyFile]], Iterator[list[Found]]],
    tasks_ahead: int,
    cancel: Callable[[], str] | None,
) -> Generator[tuple[_Member[Study], Found], None, None]:
    """Yield what workers make of files, each item with its file, and None at the end of each file."""
    unfinished: deque[_Member[Study]] = deque()
    done, why = 0, ""

    def taken() -> Iterator[_Member[Study]]:
        for member in members:
            unfinished.append(member)
            yield member

    tasks = ((group, [member.file for member in group]) for group in _groups(taken()))
    with closing(workers.map(task, tasks, tasks_ahead)) as outcomes:
        for member, item in _retried(outcomes, alone):
            if item is None:
                unfinished.popleft()
                done = 0
            elif why := cancel() if cancel else "":
                break
            else:
                done += 1
            yield member, item
    if not why:
        return
    for member in chain(unfinished, members):
        yield member, failed(member.file, done, Reason.TIME_LIMIT, why)
        yield member, None
        done = 0


def _retried(
    outcomes: Iterable[tuple[Sequence[_Member[Study]], Iterator[list[Found]]]],
    alone: Callable[[Sequence[AnyFile]], Iterator[list[Found]]],
) -> Iterator[tuple[_Member[Study], Found]]:
    """Yield the results of files that were scored together; those on which a worker failed are scored again, each alone.

    If a worker fails on several files it is not known on which, and it may have been ended from outside.
    """
    for group, outcome in outcomes:
        rest, done = deque(group), 0
        try:
            for item in chain.from_iterable(outcome):
                yield rest[0], item
                done = 0 if item is None else done + 1
                if item is None:
                    rest.popleft()
        except UnreadableError:
            for member in rest:
                yield from ((member, item) for item in _scored_alone(member.file, alone, skip=done))
                done = 0


def _scored_alone(file: AnyFile, task: Callable[[Sequence[AnyFile]], Iterator[list[Found]]], skip: int) -> Iterator[Found]:
    """Yield what another worker makes of a file, but for the first items, which have come out already."""
    done = 0
    try:
        with file_workers(1) as workers:
            for item in chain.from_iterable(workers.run(task, [file])):
                if item is not None:
                    done += 1
                    if done > skip:
                        yield item
    except UnreadableError as error:
        yield failed(file, max(done, skip), error.reason, str(error))
    yield None


def failed(file: AnyFile, done: int, reason: Reason, message: str) -> Quarantined:
    """Name the frame behind the last one that could be read, or the whole file if none could."""
    if not done:
        return Quarantined(file.source, reason, message)
    return Quarantined(file.source, reason, f"{message} {NO_FRAME_AFTER}", done + 1)


def _groups(members: Iterable[_Member[Study]]) -> Iterator[list[_Member[Study]]]:
    """Put small files together that follow each other."""
    group: list[_Member[Study]] = []
    for member in members:
        is_small = _is_small(member.file)
        if group and (not is_small or len(group) == FILES_AT_ONCE):
            yield group
            group = []
        group.append(member)
        if not is_small:
            yield group
            group = []
    if group:
        yield group


def _is_small(file: AnyFile) -> bool:
    if isinstance(file, InMemoryFile):
        return len(file.content) <= SMALL_BYTES
    try:
        return not file.inside and file.path.stat().st_size <= SMALL_BYTES
    except OSError:
        return True  # it cannot be opened, which reading it will say


def batches(items: Iterable[Grouped], size: int, is_frame: Callable[[Grouped], bool]) -> Iterator[list[Grouped]]:
    """Group items, so that a group has at most `size` frames and `ITEMS_AT_ONCE` items."""
    batch: list[Grouped] = []
    frames = 0
    for item in items:
        batch.append(item)
        frames += is_frame(item)
        if frames == size or len(batch) == ITEMS_AT_ONCE:
            yield batch
            batch, frames = [], 0
    if batch:
        yield batch


# What runs in workers.


@dataclass(frozen=True, slots=True)
class Scoring:
    """How frames are scored; a process that unpickles it loads the predictor, once for all that follow.

    Parameters
    ----------
    predictor
        What scores.
    admission
        Decides which files and frames are scored.
    heatmaps
        In which forms heatmaps are wanted.
    draws
        As in `score_studies`.
    """

    predictor: "Predictor"
    admission: Admission
    heatmaps: frozenset[HeatmapForm]
    draws: Callable[[], bool] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the place of the bundle instead of the predictor, which cannot be pickled, and whether to draw by now."""
        forms = self.heatmaps if self.draws is None or self.draws() else self.heatmaps - {"jpeg", "png"}
        return _unpickled, (self.predictor.path, self.predictor.manifest.bundle_id, self.admission, forms)

    def scored(
        self,
        batch: Sequence[Item],
        read: Callable[[Admitted], Iterator[Admitted | Quarantined]],
        unlimited: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Iterator[Result]:
        """Yield the items of a batch in their order, with results in place of frames; each is drawn when it is needed.

        Parameters
        ----------
        batch
            Of one file or several.
        read
            Reads a frame whole, if its answer is too near a threshold for the resolution at which it was decoded.
        unlimited
            Encloses what the network and the pictures take, which counts for no file.

        Raises
        ------
        BundleError, ScoringError
            If the network fails.
        """
        results: list[Result] = [None if isinstance(item, Admitted) else item for item in batch]
        frames = {place: item for place, item in enumerate(batch) if isinstance(item, Admitted)}
        unscored = dict(frames)
        while unscored:
            with unlimited(), of_the_network():
                found = self.predictor.predict_admitted(list(unscored.values()), bool(self.heatmaps))
            scored, unscored = unscored, {}
            for (place, frame), result in zip(scored.items(), found, strict=True):
                item = _reread(frame, read) if isinstance(result, Admitted) else result
                if isinstance(item, Admitted):
                    frames[place] = unscored[place] = item
                else:
                    results[place] = item
        for place, one in enumerate(results):
            if isinstance(one, FramePrediction):
                with unlimited():
                    one = self._drawn(one, frames.pop(place))
            yield one

    def _drawn(self, result: FramePrediction, frame: Admitted) -> FramePrediction:
        """Return what the bundle says of a frame, its heatmaps with what is asked of them."""
        heatmaps, manifest = result.heatmaps, self.predictor.manifest
        if frame.view and (self.draws is None or self.draws()):
            as_jpeg, as_png = "jpeg" in self.heatmaps, "png" in self.heatmaps
            heatmaps = tuple(
                one if one.label == manifest.normal_label else drawn(one, frame.view, manifest, as_jpeg, as_png)
                for one in heatmaps
            )
        if "values" not in self.heatmaps:
            heatmaps = tuple(replace(one, values=None) for one in heatmaps if one.rows or one.fault)
        return replace(result, heatmaps=heatmaps)


def _unpickled(path: Path, bundle_id: str, admission: Admission, heatmaps: frozenset[HeatmapForm]) -> Scoring:
    return Scoring(loaded(path, bundle_id), admission, heatmaps)


def read_files(files: Sequence[AnyFile], admission: Admission) -> Iterator[list[Item]]:
    """Read files one after the other, each frame within the time for one; made for worker processes."""
    for item in _items(files, admission):
        yield [replace(item, file=None) if isinstance(item, Admitted) else item]  # which has its content, if it is in memory


def score_files(files: Sequence[AnyFile], scoring: Scoring) -> Iterator[list[Result]]:
    """Score files one after the other, frames of several in one call of the network; made for worker processes."""
    read = partial(read_whole, admission=scoring.admission)
    items = _items(files, scoring.admission)
    for batch in batches(items, scoring.predictor.engine.frames_at_once, lambda item: isinstance(item, Admitted)):
        yield list(scoring.scored(batch, read, outside_limits))


def score_singly(files: Sequence[AnyFile], scoring: Scoring) -> Iterator[list[Result]]:
    """Do what `score_files` does, but give what comes of each frame before the next is read."""
    read = partial(read_whole, admission=scoring.admission)
    for item in _items(files, scoring.admission):
        yield list(scoring.scored([item], read, outside_limits))


def _items(files: Sequence[AnyFile], admission: Admission) -> Iterator[Item]:
    """Yield what is read of each file, and None behind it; if reading breaks off, the last is a failure."""
    for file in files:
        done = 0
        try:
            for item in read_admitted(file, admission):
                yield item
                done += 1
                restart_clock()
        except UnreadableError as error:
            yield failed(file, done, error.reason, str(error))
            restart_clock()
        yield None


def _reread(item: Admitted, read: Callable[[Admitted], Iterator[Admitted | Quarantined]]) -> Admitted | Quarantined:
    source, number = item.facts.source, item.facts.key.frame_number
    try:
        for found in list(read(item)):
            if isinstance(found, Quarantined) or found.facts.file_sha256 == item.facts.file_sha256:
                return found  # another file's frame may be another patient's
    except UnreadableError as error:
        return Quarantined(source, error.reason, str(error), number)
    return Quarantined(source, Reason.DECODE_FAILED, "The file was replaced while it was read. Score it again.", number)


@lru_cache(maxsize=1)
def loaded(path: Path, bundle_id: str) -> "Predictor":
    """Return the predictor of a bundle, for one core; the same again for the same bundle.

    What it imports counts as the network and not as reading, so that this module must not import it.

    Raises
    ------
    BundleError
        If the bundle cannot be used, or another one lies there by now.
    ScoringError
        If there is no memory for the network, for example.
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


@contextmanager
def of_the_network() -> Iterator[None]:
    """Turn whatever the block raises, but for errors of octray, into what is not taken for a fault of the files.

    Raises
    ------
    ScoringError
        If the block ends in any other exception, such as one of ONNX Runtime.
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
