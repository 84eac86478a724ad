"""Scores studies: files are read and scored in worker processes, and what is found streams in the order of the studies."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TypeVar

from pipeline.errors import UnreadableError
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.sources import StudyFile
from pipeline.score.admission import read_admitted, read_whole
from pipeline.score.pictures import NOTHING_DRAWN, Drawing
from pipeline.score.predictor import Predictor
from pipeline.score.scoring import (
    Ended,
    Item,
    Outcome,
    Result,
    Scoring,
    batches,
    failed,
    outcome_of,
    predicted,
    reread,
    score_files,
    score_singly,
)

LEAST_READERS = 2
"""Processes that only read, even where there are fewer cores: one of them may wait for a disk or a network."""
FILES_AT_ONCE, SMALL_BYTES = 4, 2**18
"""So many files of at most that size are one task of a worker, so that they share calls of the network."""
TASKS_A_WORKER = 16
"""Tasks that are begun ahead of their use."""

Study = TypeVar("Study")

Member = tuple[StudyFile, tuple[Ended[Study], ...]]
"""A file, and the end of its study where it is the last of it."""


def score_studies(
    studies: Iterable[tuple[Study, Sequence[StudyFile]]],
    predictor: Predictor,
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


def _members(studies: Iterable[tuple[Study, Sequence[StudyFile]]]) -> Iterator[Member[Study]]:
    for study, files in studies:
        for number, file in enumerate(files, 1):
            yield file, (Ended(study),) if number == len(files) else ()


def _in_workers(members: Iterator[Member[Study]], scoring: Scoring, cores: int) -> Generator[Result[Study], None, None]:
    """Have a worker a core read files, run the network and draw, so that results alone pass between processes."""
    task, again = partial(score_files, scoring=scoring), partial(_alone, scoring=scoring)
    tasks = ((group, [file for file, _ in group]) for group in _groups(members))
    with (
        file_workers(cores, scoring.admission.reading.limits) as workers,
        closing(workers.map(task, tasks, TASKS_A_WORKER * cores)) as outcomes,
    ):
        for group, outcome in outcomes:
            yield from _of_group(group, outcome, again)


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


def _of_group(
    group: Sequence[Member[Study]], outcome: Outcome, again: Callable[[StudyFile], Outcome] | None = None, skip: int = 0
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


def _alone(file: StudyFile, scoring: Scoring) -> Outcome:
    """Score a file in a worker of its own."""
    with file_workers(1, scoring.admission.reading.limits) as workers:
        yield from workers.run(partial(score_singly, scoring=scoring), [file])


def _in_threads(members: Iterator[Member[Study]], scoring: Scoring, cores: int) -> Generator[Result[Study], None, None]:
    """Have workers read files, and run the network in this process: on a GPU, or where heatmaps need more than its graph."""
    threads = max(2, scoring.predictor.engine.calls(cores))  # one may draw what another has run
    begun: deque[Future[list[Result[Study]]]] = deque()
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="network") as pool,
        file_workers(1, scoring.admission.reading.limits) as again,
        closing(_read(members, scoring, cores)) as items,
    ):
        read = partial(again.run, partial(read_whole, admission=scoring.admission))

        def finished(batch: Sequence[Item[Study]]) -> list[Result[Study]]:
            return scoring.finished(reread(predicted(batch, scoring.predictor, scoring.drawing.is_computed), read))

        try:
            for batch in batches(items, scoring.predictor.engine.frames_at_once):
                begun.append(pool.submit(finished, batch))
                if len(begun) > 2 * threads:
                    yield from begun.popleft().result()
            while begun:
                yield from begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(members: Iterator[Member[Study]], scoring: Scoring, cores: int) -> Generator[Item[Study], None, None]:
    """Read files, several at a time, and mark where each study ends."""
    read = partial(read_admitted, admission=scoring.admission)
    with (
        file_workers(max(LEAST_READERS, cores), scoring.admission.reading.limits) as workers,
        closing(workers.map(read, ((member, member[0]) for member in members))) as outcomes,
    ):
        for (file, end), outcome in outcomes:
            yield from outcome_of(file, outcome)
            yield from end
