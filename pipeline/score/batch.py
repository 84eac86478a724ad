"""Scores studies: decodes ahead in worker processes, puts frames of all studies into batches, and streams what is found."""

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.sandbox import Sandbox
from pipeline.imaging.sources import StudyFile, open_file
from pipeline.intake import Reading
from pipeline.records import Frame, FramePrediction, Quarantined
from pipeline.score.predictor import Admitted, Predictor

DECODERS = 2
BATCH_PIXELS = 2**25  # 128 MiB as float32: three radiographs, or a hundred B-scans

Item = TypeVar("Item")
Study = TypeVar("Study")


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A frame and what the bundle says of it."""

    frame: Frame
    prediction: FramePrediction


@dataclass(frozen=True, slots=True)
class Ended(Generic[Study]):
    """Says that everything of a study has come out."""

    study: Study


def score_studies(
    studies: Iterable[tuple[Study, Sequence[StudyFile]]], predictor: Predictor, batch_size: int = 16, heatmaps: bool = True
) -> Generator[Scored | Quarantined | Ended[Study], None, None]:
    """Score studies as they come; what cannot be read or is not meant for the bundle comes out as a failure.

    Parameters
    ----------
    studies
        Anything that names a study, with its files; taken as needed.
    predictor
        What scores.
    batch_size
        Frames that are scored at once, across files and studies.
    heatmaps
        Whether predictions carry heatmaps.

    Yields
    ------
    Scored, Quarantined or Ended
        In the order of the studies, their files and the frames of these, and `Ended` behind the last of each study. Held in
        memory are one batch of at most `BATCH_PIXELS`, and what `Sandbox.map` lets wait. Closing the iterator ends all reading.
    """
    with Sandbox(DECODERS, predictor.reading.limits) as sandbox:
        items = _items(studies, sandbox, predictor)
        for batch in batches(items, batch_size):
            yield from _score(batch, predictor, heatmaps)


def _items(
    studies: Iterable[tuple[Study, Sequence[StudyFile]]], sandbox: Sandbox, predictor: Predictor
) -> Iterator[Admitted | Quarantined | Ended[Study]]:
    """Read the files of all studies, several at a time, and mark where each study ends."""
    begun: deque[tuple[StudyFile, Ended[Study] | None]] = deque()

    def files() -> Iterator[StudyFile]:
        for study, members in studies:
            for file in members:
                begun.append((file, Ended(study) if file is members[-1] else None))
                yield file

    for frames in sandbox.map(partial(read_hashed, reading=predictor.reading), files()):
        file, end = begun.popleft()
        for item in _outcome(file, frames):
            yield _admit(item, predictor)
        if end:
            yield end


def read_hashed(file: StudyFile, reading: Reading) -> Iterator[Frame]:
    """Read the frames of a file, each with the hash of the file; as `read_frames`, and made for worker processes as well."""
    content, frames = open_file(file, reading)
    file_sha256 = hashlib.sha256(content).hexdigest()
    for frame in frames:
        yield replace(frame, file_sha256=file_sha256)


def batches(items: Iterable[Item], size: int, most_pixels: int | None = None) -> Iterator[list[Item]]:
    """Group items, so that a group has at most `size` frames and at most `most_pixels`; a larger frame is a group of its own.

    Parameters
    ----------
    items
        Frames, admitted or not, and whatever else comes among them, which counts for nothing.
    size
        Most frames of a group.
    most_pixels
        Most pixels of a group; `BATCH_PIXELS` where it is None.
    """
    most = BATCH_PIXELS if most_pixels is None else most_pixels
    batch: list[Item] = []
    frames = pixels = 0
    for item in items:
        if frames and pixels + _pixels(item) > most:
            yield batch
            batch, frames, pixels = [], 0, 0
        batch.append(item)
        frames += isinstance(item, Frame | Admitted)
        pixels += _pixels(item)
        if frames == size:
            yield batch
            batch, frames, pixels = [], 0, 0
    if batch:
        yield batch


def _pixels(item: object) -> int:
    frame = item.frame if isinstance(item, Admitted) else item
    return frame.pixels.size if isinstance(frame, Frame) else 0


def _admit(item: Frame | Quarantined, predictor: Predictor) -> Admitted | Quarantined:
    if isinstance(item, Quarantined):
        return item
    try:
        return predictor.admit(item)
    except UnreadableError as error:
        return Quarantined(item.source, error.reason, str(error), item.key.frame_number)


def _score(
    pending: list[Admitted | Quarantined | Ended[Study]], predictor: Predictor, heatmaps: bool
) -> Iterator[Scored | Quarantined | Ended[Study]]:
    admitted = [item for item in pending if isinstance(item, Admitted)]
    results = iter(predictor.predict_admitted(admitted, heatmaps))
    for item in pending:
        if isinstance(item, Admitted):
            result = next(results)
            yield result if isinstance(result, Quarantined) else Scored(item.frame, result)
        else:
            yield item


def _outcome(file: StudyFile, frames: Iterator[Frame]) -> Iterator[Frame | Quarantined]:
    done = 0
    try:
        for frame in frames:
            yield frame
            done += 1
    except UnreadableError as error:
        yield _failed(file, done, error.reason, str(error))


def _failed(file: StudyFile, done: int, reason: Reason, message: str) -> Quarantined:
    """Name the frame behind the last one that could be read, or the whole file where none could."""
    if not done:
        return Quarantined(file.source, reason, message)
    return Quarantined(file.source, reason, f"{message} No frame after this one was read.", done + 1)
