"""Scores studies: files are read and scored in worker processes, and what is found streams in the order of the studies."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Generic, TypeVar

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.sandbox import Sandbox
from pipeline.imaging.sources import StudyFile
from pipeline.imaging.worker import beside_the_limits
from pipeline.records import FrameFacts, FramePrediction, Quarantined
from pipeline.score.admission import Admission, Admitted, read_admitted
from pipeline.score.pictures import NOTHING_DRAWN, Drawing, Drawn, pictures
from pipeline.score.view import View

if TYPE_CHECKING:  # worker processes load it beside their limit of memory
    from pipeline.score.predictor import Predictor

LEAST_WORKERS = 2
"""Processes that read files, even where there are fewer cores: one of them may wait for a disk or a network."""
ITEMS_AT_ONCE = 64
"""Frames, failures and ends in one batch, at most."""
FILES_AT_ONCE, SMALL_BYTES = 4, 2**18
"""So many files of at most that size are one task of a worker, so that they share calls of the network."""
TASKS_AHEAD = 64

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
Member = tuple[StudyFile, tuple[Ended[Study], ...]]
"""A file, and the end of its study where it is the last of it."""
_NEXT_FILE = Ended(None)


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
    Scored, Quarantined or Ended
        In the order of the studies, their files and the frames of these, and `Ended` behind the last of each study. Held in
        memory is what `Sandbox.map` lets wait, and where the network runs in this process, a few batches of frames on its
        grid. Closing the iterator ends all work.

    Raises
    ------
    BundleError
        Where the network returns what is no number, or the bundle was replaced under way.
    """
    members = _members(studies)
    with Sandbox(max(LEAST_WORKERS, cores), predictor.admission.reading.limits) as sandbox:
        if predictor.is_light:
            results = _in_workers(members, predictor, sandbox, drawing)
        else:
            results = _in_threads(members, predictor, sandbox, cores, drawing)
        with closing(results):
            yield from results


def _members(studies: Iterable[tuple[Study, Sequence[StudyFile]]]) -> Iterator[Member[Study]]:
    for study, files in studies:
        for number, file in enumerate(files, 1):
            yield file, (Ended(study),) if number == len(files) else ()


def _in_workers(
    members: Iterator[Member[Study]], predictor: "Predictor", sandbox: Sandbox, drawing: Drawing
) -> Generator[Result[Study], None, None]:
    """Have each worker read files, run the network on their frames and draw, so that results alone pass between processes."""
    begun: deque[list[Member[Study]]] = deque()

    def tasks() -> Iterator[list[StudyFile]]:
        for group in _groups(members):
            begun.append(group)
            yield [file for file, _ in group]

    task = partial(score_files, predictor=predictor, drawing=drawing)
    again = partial(_alone, predictor=predictor, drawing=drawing)
    with closing(sandbox.map(task, tasks(), TASKS_AHEAD)) as outcomes:
        for outcome in outcomes:
            yield from _of_group(begun.popleft(), outcome, again)


def _groups(members: Iterable[Member[Study]]) -> Iterator[list[Member[Study]]]:
    """Put small files together that follow each other."""
    group: list[Member[Study]] = []
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


def score_files(files: Sequence[StudyFile], predictor: "Predictor", drawing: Drawing) -> Outcome:
    """Score files one after the other, frames of several in one call of the network; made for worker processes."""
    admission = replace(predictor.admission, drawn=drawing.is_drawn)
    yield from _finished(batches(_admitted(files, admission), predictor.engine.frames_at_once), predictor, drawing)


def score_singly(files: Sequence[StudyFile], predictor: "Predictor", drawing: Drawing) -> Outcome:
    """Do what `score_files` does, but give what comes of each frame before the next is read."""
    admission = replace(predictor.admission, drawn=drawing.is_drawn)
    yield from _finished(([item] for item in _admitted(files, admission)), predictor, drawing)


def _finished(batches: Iterable[list[Item[None]]], predictor: "Predictor", drawing: Drawing) -> Outcome:
    for batch in batches:
        with beside_the_limits():
            results = finished(batch, predictor, drawing)
        yield results


def _admitted(files: Sequence[StudyFile], admission: Admission) -> Iterator[Item[None]]:
    for number, file in enumerate(files):
        if number:
            yield _NEXT_FILE
        yield from _outcome(file, read_admitted(file, admission))


def _of_group(
    group: Sequence[Member[Study]], outcome: Outcome, again: Callable[[StudyFile], Outcome] | None = None
) -> Iterator[Result[Study]]:
    """Yield what came of files that were scored together.

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
            else:
                yield item
                done += 1
    except UnreadableError as error:
        if again:
            for member in rest:
                yield from islice(_of_group([member], again(member[0])), done, None)
                done = 0
            return
        yield _failed(rest[0][0], done, error.reason, str(error))
    yield from rest[0][1]


def _alone(file: StudyFile, predictor: "Predictor", drawing: Drawing) -> Outcome:
    """Score a file in a worker of its own."""
    with Sandbox(1, predictor.admission.reading.limits) as sandbox:
        yield from sandbox.run(partial(score_singly, predictor=predictor, drawing=drawing), [file])


def _in_threads(
    members: Iterator[Member[Study]], predictor: "Predictor", sandbox: Sandbox, cores: int, drawing: Drawing
) -> Generator[Result[Study], None, None]:
    """Have workers read files, and run the network in this process: on a GPU, or where heatmaps need more than its graph."""
    calls = predictor.engine.calls(cores)
    begun: deque[Future[list[Result[Study]]]] = deque()
    with (
        ThreadPoolExecutor(calls, thread_name_prefix="network") as pool,
        closing(_read(members, sandbox, replace(predictor.admission, drawn=drawing.is_drawn))) as items,
    ):
        try:
            for batch in batches(items, predictor.engine.frames_at_once):
                begun.append(pool.submit(finished, batch, predictor, drawing))
                if len(begun) > 2 * calls:
                    yield from begun.popleft().result()
            while begun:
                yield from begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(members: Iterator[Member[Study]], sandbox: Sandbox, admission: Admission) -> Generator[Item[Study], None, None]:
    """Read files, several at a time, and mark where each study ends."""
    begun: deque[Member[Study]] = deque()

    def files() -> Iterator[StudyFile]:
        for member in members:
            begun.append(member)
            yield member[0]

    for outcome in sandbox.map(partial(read_admitted, admission=admission), files()):
        file, end = begun.popleft()
        yield from _outcome(file, outcome)
        yield from end


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
    batch: Sequence[Item[Study]], predictor: "Predictor", heatmaps: bool
) -> Iterator[Predicted | Quarantined | Ended[Study]]:
    """Yield the items of a batch in their order, with what the network says of its frames in place of these."""
    frames = [item for item in batch if isinstance(item, Admitted)]
    results = iter(predictor.predict_admitted(frames, heatmaps))
    for item in batch:
        if isinstance(item, Admitted):
            result = next(results)
            yield result if isinstance(result, Quarantined) else Predicted(item.facts, result, item.view)
        else:
            yield item


def finished(batch: Sequence[Item[Study]], predictor: "Predictor", drawing: Drawing) -> list[Result[Study]]:
    """Return the items of a batch in their order, with all that is made of its frames in place of these."""
    return [
        _scored(item, predictor, drawing) if isinstance(item, Predicted) else item
        for item in predicted(batch, predictor, drawing.is_computed)
    ]


def _scored(item: Predicted, predictor: "Predictor", drawing: Drawing) -> Scored:
    as_png = drawing.png and bool(item.facts.transfer_syntax_uid)
    drawn = pictures(item.prediction, item.view, predictor.manifest, drawing.jpeg, as_png) if item.view else ()
    return Scored(item.facts, item.prediction if drawing.maps else replace(item.prediction, heatmaps=()), drawn)


def _outcome(file: StudyFile, items: Iterator[Found]) -> Iterator[Found | Quarantined]:
    """Yield what came of a file; where reading it broke off, the last is a failure."""
    done = 0
    try:
        for item in items:
            yield item
            done += 1
    except UnreadableError as error:
        yield _failed(file, done, error.reason, str(error))


def _failed(file: StudyFile, done: int, reason: Reason, message: str) -> Quarantined:
    """Name the frame behind the last one that could be read, or the whole file where none could."""
    if not done:
        return Quarantined(file.source, reason, message)
    return Quarantined(file.source, reason, f"{message} No frame after this one was read.", done + 1)
