"""Scores a folder: decodes ahead in threads, puts frames of all studies into batches, and streams results in bounded memory."""

import itertools
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.sources import StudyFile, discover, read_frames
from pipeline.progress import Progress, silent
from pipeline.records import Frame, FramePrediction, Quarantined
from pipeline.score.predictor import Predictor, check_intended_use

DECODERS = 2
FILES_AHEAD = 8
FRAMES_AHEAD = 4
_WAIT_SECONDS = 0.1


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
        In the order of `discover`, and within a file in the order of its frames. Held in memory are one batch and at most
        `FILES_AHEAD` files of at most `FRAMES_AHEAD` decoded frames each. Closing the iterator stops the decoding.

    Raises
    ------
    InputError
        Where `root` cannot be listed.
    """
    files = list(discover(root))
    pending: list[Frame | Quarantined] = []
    frames = 0
    with _Decoder(files) as decoder:
        for decoded in progress(decoder.files(), "Scoring", len(files)):
            for item in decoded:
                item = _refuse(item, predictor)
                pending.append(item)
                frames += isinstance(item, Frame)
                if frames == batch_size:
                    yield from _score(pending, predictor)
                    pending, frames = [], 0
    yield from _score(pending, predictor)


def _refuse(item: Frame | Quarantined, predictor: Predictor) -> Frame | Quarantined:
    if isinstance(item, Frame):
        try:
            check_intended_use(item, predictor.manifest)
        except UnreadableError as error:
            return Quarantined(item.source, error.reason, str(error), item.key.frame_number)
    return item


def _score(pending: list[Frame | Quarantined], predictor: Predictor) -> Iterator[Scored | Quarantined]:
    frames = [item for item in pending if isinstance(item, Frame)]
    predictions = iter(predictor.predict(frames))
    for item in pending:
        yield Scored(item, next(predictions)) if isinstance(item, Frame) else item


class _Decoder:
    """Reads files ahead of their use, in threads; each file has a bounded queue, and `None` ends it."""

    def __init__(self, files: Iterable[StudyFile]) -> None:
        self._files = iter(files)
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._stopped = threading.Event()
        self._ahead: deque[queue.Queue[Frame | Quarantined | None]] = deque()

    def __enter__(self) -> "_Decoder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def files(self) -> Iterator[Iterator[Frame | Quarantined]]:
        """Yield for each file what is in it; each must be used up before the next is taken."""
        self._start()
        while self._ahead:
            yield iter(self._ahead[0].get, None)
            self._ahead.popleft()
            self._start()

    def _start(self) -> None:
        while len(self._ahead) < FILES_AHEAD and (file := next(self._files, None)):
            items: queue.Queue[Frame | Quarantined | None] = queue.Queue(FRAMES_AHEAD)
            self._ahead.append(items)
            self._pool.submit(self._decode, file, items)

    def _decode(self, file: StudyFile, items: "queue.Queue[Frame | Quarantined | None]") -> None:
        for item in itertools.chain(_read(file), (None,)):
            self._put(items, item)
            if self._stopped.is_set():
                return

    def _put(self, items: "queue.Queue[Frame | Quarantined | None]", item: Frame | Quarantined | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                items.put(item, timeout=_WAIT_SECONDS)
                return


def _read(file: StudyFile) -> Iterator[Frame | Quarantined]:
    done = 0
    try:
        for frame in read_frames(file):
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
