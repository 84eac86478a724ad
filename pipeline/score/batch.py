"""Scores studies: reads ahead in worker processes, runs the network on frames of all studies, and streams what is found."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.sandbox import Sandbox
from pipeline.imaging.sources import StudyFile
from pipeline.records import FrameFacts, FramePrediction, Quarantined
from pipeline.score.admission import Admission, Admitted, read_admitted
from pipeline.score.predictor import Predictor
from pipeline.score.view import View

LEAST_READERS = 2
"""Processes that read files, even where there are fewer cores: one of them may wait for a disk or a network."""
ITEMS_AT_ONCE = 64
"""Frames, failures and ends of studies in one batch, at most."""

Study = TypeVar("Study")


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A frame and what the bundle says of it.

    Parameters
    ----------
    facts
        The frame without its pixels.
    prediction
        What the bundle says.
    view
        What its heatmaps are drawn on; None where they are not wanted.
    """

    facts: FrameFacts
    prediction: FramePrediction
    view: View | None


@dataclass(frozen=True, slots=True)
class Ended(Generic[Study]):
    """Says that everything of a study has come out."""

    study: Study


Item = Admitted | Quarantined | Ended[Study]
Result = Scored | Quarantined | Ended[Study]


def score_studies(
    studies: Iterable[tuple[Study, Sequence[StudyFile]]],
    predictor: Predictor,
    cores: int = 1,
    heatmaps: bool = True,
    drawn: bool = True,
) -> Generator[Result[Study], None, None]:
    """Score studies as they come; what cannot be read or is not meant for the bundle comes out as a failure.

    Parameters
    ----------
    studies
        Anything that names a study, with its files; taken as needed.
    predictor
        What scores.
    cores
        How many to keep at work: with as many processes that read, and calls of the network at a time.
    heatmaps
        Whether predictions carry heatmaps.
    drawn
        Whether frames come with views that heatmaps are drawn on.

    Yields
    ------
    Scored, Quarantined or Ended
        In the order of the studies, their files and the frames of these, and `Ended` behind the last of each study. Held in
        memory are a few batches of frames on the network's grid, and what `Sandbox.map` lets wait. Closing the iterator ends
        all reading.
    """
    calls = predictor.engine.calls(cores)
    begun: deque[tuple[list[Item[Study]], Future[list[FramePrediction | Quarantined]]]] = deque()
    with (
        Sandbox(max(LEAST_READERS, cores), predictor.admission.reading.limits) as sandbox,
        ThreadPoolExecutor(calls, thread_name_prefix="network") as pool,
        closing(_items(studies, sandbox, replace(predictor.admission, drawn=drawn))) as items,
    ):
        try:
            for batch in batches(items, predictor.engine.frames_at_once):
                begun.append((batch, pool.submit(predictor.predict_admitted, frames_of(batch), heatmaps)))
                if len(begun) > 2 * calls:
                    first, results = begun.popleft()
                    yield from scored(first, results.result())
            while begun:
                first, results = begun.popleft()
                yield from scored(first, results.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _items(
    studies: Iterable[tuple[Study, Sequence[StudyFile]]], sandbox: Sandbox, admission: Admission
) -> Generator[Item[Study], None, None]:
    """Read the files of all studies, several at a time, and mark where each study ends."""
    begun: deque[tuple[StudyFile, Ended[Study] | None]] = deque()

    def files() -> Iterator[StudyFile]:
        for study, members in studies:
            for file in members:
                begun.append((file, Ended(study) if file is members[-1] else None))
                yield file

    for outcome in sandbox.map(partial(read_admitted, admission=admission), files()):
        file, end = begun.popleft()
        yield from _outcome(file, outcome)
        if end:
            yield end


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


def frames_of(batch: Sequence[Item[Study]]) -> list[Admitted]:
    """Return the frames among the items of a batch."""
    return [item for item in batch if isinstance(item, Admitted)]


def scored(batch: Sequence[Item[Study]], results: Iterable[FramePrediction | Quarantined]) -> Iterator[Result[Study]]:
    """Yield the items of a batch in their order, with what the network says of its frames in place of these."""
    rest = iter(results)
    for item in batch:
        if isinstance(item, Admitted):
            result = next(rest)
            yield result if isinstance(result, Quarantined) else Scored(item.facts, result, item.view)
        else:
            yield item


def _outcome(file: StudyFile, items: Iterator[Admitted | Quarantined]) -> Iterator[Admitted | Quarantined]:
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
