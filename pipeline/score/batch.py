"""Scores a folder: decodes ahead in threads, puts frames of all studies into batches, and streams results in bounded memory."""

import itertools
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.sources import StudyFile, discover, read_frames
from pipeline.progress import Progress, silent
from pipeline.records import Frame, FramePrediction, Quarantined, Reading
from pipeline.score.predictor import Admitted, Predictor

DECODERS = 2
FILES_AHEAD = 8
FRAMES_AHEAD = 4
PIXELS_AHEAD = BATCH_PIXELS = 2**25  # 128 MiB as float32 each: three radiographs, or a hundred B-scans

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
        `BATCH_PIXELS`, and at most `FILES_AHEAD` files of at most `FRAMES_AHEAD` decoded frames each, together at most
        `PIXELS_AHEAD`; a larger frame passes alone, and each of `DECODERS` holds one more that waits for room. Closing the
        iterator stops the decoding.

    Raises
    ------
    InputError
        Where `root` cannot be listed.
    """
    files = list(discover(root))
    with _Decoder(files, predictor.reading) as decoder:
        items = itertools.chain.from_iterable(progress(decoder.files(), "Scoring", len(files)))
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
    predictions = iter(predictor.predict_admitted(admitted))
    for item in pending:
        yield Scored(item.frame, next(predictions)) if isinstance(item, Admitted) else item


class _Decoder:
    """Reads files ahead of their use, in threads; each file has a queue that `None` ends, and all share a budget of pixels."""

    def __init__(self, files: Iterable[StudyFile], reading: Reading) -> None:
        self._files = iter(files)
        self._reading = reading
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._changed = threading.Condition()
        self._stopped = False
        self._ahead: deque[_Queue] = deque()
        self._held = 0

    def __enter__(self) -> "_Decoder":
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._pool.shutdown(cancel_futures=True)

    def files(self) -> Iterator[Iterator[Frame | Quarantined]]:
        """Yield for each file what is in it; each must be used up before the next is taken."""
        self._start()
        while self._ahead:
            yield self._used_up(self._ahead[0])
            with self._changed:
                self._ahead.popleft()
                self._changed.notify_all()
            self._start()

    def _start(self) -> None:
        while len(self._ahead) < FILES_AHEAD and (file := next(self._files, None)):
            items: _Queue = deque()
            self._ahead.append(items)
            self._pool.submit(self._decode, file, items)

    def _used_up(self, items: "_Queue") -> Iterator[Frame | Quarantined]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: items)
                item = items.popleft()
                self._held -= _pixels(item)
                self._changed.notify_all()
            if item is None:
                return
            yield item

    def _decode(self, file: StudyFile, items: "_Queue") -> None:
        for item in itertools.chain(_read(file, self._reading), (None,)):
            self._put(items, item)
            if self._stopped:
                return

    def _put(self, items: "_Queue", item: Frame | Quarantined | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room(items, _pixels(item)))
            items.append(item)
            self._held += _pixels(item)
            self._changed.notify_all()

    def _has_room(self, items: "_Queue", pixels: int) -> bool:
        """Say whether `pixels` more may wait; the file in use gets one frame through always, so that it never stands still."""
        is_awaited = not items and items is self._ahead[0]
        return is_awaited or (len(items) < FRAMES_AHEAD and self._held + pixels <= PIXELS_AHEAD)


_Queue = deque[Frame | Quarantined | None]


def _read(file: StudyFile, reading: Reading) -> Iterator[Frame | Quarantined]:
    done = 0
    try:
        for frame in read_frames(file, reading):
            yield frame
            done += 1
    except UnreadableError as error:
        yield _failed(file, done, error.reason, str(error))
    except Exception as error:  # one file must never end the run of all others
        message = f"Reading the file ended in an unexpected {type(error).__name__}. Please report it as a fault of octray."
        yield _failed(file, done, Reason.DECODE_FAILED, message)


def _failed(file: StudyFile, done: int, reason: Reason, message: str) -> Quarantined:
    """Name the frame behind the last one that could be read, or the whole file where none could."""
    if not done:
        return Quarantined(file.source, reason, message)
    return Quarantined(file.source, reason, f"{message} No frame after this one was read.", done + 1)
