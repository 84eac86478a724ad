"""Scores a folder: decodes ahead in worker processes, puts frames of all studies into batches, and streams what is found."""

import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.sandbox import Sandbox
from pipeline.imaging.sources import StudyFile, discover, read_frames
from pipeline.progress import Progress, silent
from pipeline.records import Frame, FramePrediction, Quarantined
from pipeline.score.predictor import Admitted, Predictor

DECODERS = 2
BATCH_PIXELS = 2**25  # 128 MiB as float32: three radiographs, or a hundred B-scans

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A frame and what the bundle says of it."""

    frame: Frame
    prediction: FramePrediction


def score_folder(
    root: Path, predictor: Predictor, progress: Progress = silent, batch_size: int = 16
) -> Generator[Scored | Quarantined, None, None]:
    """Score every study file below a folder; what cannot be read or is not meant for the bundle comes out as a failure.

    Parameters
    ----------
    root
        A folder, or one file.
    predictor
        What scores.
    progress
        Is shown the files as they are done.
    batch_size
        Frames that are scored at once, across files and studies.

    Yields
    ------
    Scored or Quarantined
        In the order of `discover`, and within a file in the order of its frames. Held in memory are one batch of at most
        `BATCH_PIXELS`, and what `Sandbox.map` lets wait. Closing the iterator ends the decoding.

    Raises
    ------
    InputError
        Where `root` cannot be listed.
    """
    files = list(discover(root))
    with Sandbox(DECODERS, predictor.reading.limits) as sandbox:
        read = sandbox.map(partial(read_frames, reading=predictor.reading), files)
        outcomes = (_outcome(file, frames) for file, frames in zip(files, read, strict=True))
        items = itertools.chain.from_iterable(progress(outcomes, "Scoring", len(files)))
        for batch in batches((_admit(item, predictor) for item in items), batch_size):
            yield from _score(batch, predictor)


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


def _score(pending: list[Admitted | Quarantined], predictor: Predictor) -> Iterator[Scored | Quarantined]:
    admitted = [item for item in pending if isinstance(item, Admitted)]
    results = iter(predictor.predict_admitted(admitted))
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
