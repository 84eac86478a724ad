"""What the tests of the pool run in other processes; a module of its own, since those import it."""

import ctypes
import hashlib
import itertools
import mmap
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from pipeline.deidentify.crosswalk import Secret
from pipeline.deidentify.instance import Deidentified, deidentify_file
from pipeline.deidentify.profile import Options
from pipeline.errors import InputError, Reason, UnreadableError
from pipeline.imaging.files.study_file import StudyFile
from pipeline.score.study import AnyFile, Result, Scoring, score_files, score_singly
from pipeline.settings import Reading
from pipeline.workers.process import outside_limits, restart_clock


def count(number: int) -> Iterator[int]:
    yield from range(number)


def process_id(_: object) -> Iterator[int]:
    yield os.getpid()


def working_folder(_: object) -> Iterator[str]:
    yield os.getcwd()  # noqa: PTH109


def crash(number: int) -> Iterator[int]:
    yield number
    if number % 4 == 1:
        ctypes.string_at(0)


def abort(_: object) -> Iterator[int]:
    yield 1
    os.abort()


def crash_on_name(files: Sequence[StudyFile], scoring: Scoring) -> Iterator[list[Result]]:
    for file in files:
        if file.source.startswith("crash"):
            os.abort()
    yield from score_singly(files, scoring)


def fail_for_now_on_name(files: Sequence[StudyFile], scoring: Scoring) -> Iterator[list[Result]]:
    """Fail on files of some names as a loaded machine does, or a share that does not answer."""
    reasons = {"slow": Reason.TIME_LIMIT, "huge": Reason.MEMORY_LIMIT, "closed": Reason.NOT_OPENED}
    for file in files:
        if (reason := reasons.get(file.source.partition(".")[0])) is not None:
            raise UnreadableError(reason, "It cannot be read now. Try again.")
    yield from score_singly(files, scoring)


def crash_on_second(files: Sequence[StudyFile], scoring: Scoring) -> Iterator[list[Result]]:
    if len(files) > 1:
        yield from score_files(files[:1], scoring)
    os.abort()


def hang_after_two_frames(files: Sequence[StudyFile], scoring: Scoring) -> Iterator[list[Result]]:
    """Give what came of two frames and of what lies between them, then no more."""
    given = 0
    for items in score_files(files, scoring):
        for item in items:
            yield [item]
            given += item is not None
            while given == 2:
                pass


def crash_after_a_frame(files: Sequence[StudyFile], scoring: Scoring) -> Iterator[list[Result]]:
    yield from itertools.islice(score_singly(files, scoring), 1)
    os.abort()


def fail_to_run(files: Sequence[StudyFile], scoring: Scoring) -> Iterator[list[Result]]:
    """Score with a network that fails as one does that gets no memory."""
    scoring.predictor.engine.run = None  # type: ignore[assignment, method-assign]
    yield from score_files(files, scoring)


def load_without_memory(path: Path, bundle_id: str) -> object:
    """Load a predictor whose network gets no memory when it is first run."""
    from pipeline.model.engine import Engine
    from pipeline.score.study import loaded

    with patch.object(Engine, "run", side_effect=MemoryError):
        return loaded(path, bundle_id)


def hang(_: object) -> Iterator[int]:
    yield 1
    while True:
        pass


def hang_in_threads(_: object) -> Iterator[int]:
    """Wait for threads that take the time, as a decoder may that has threads of its own."""
    yield 1
    content = bytes(2**20)
    threads = [threading.Thread(target=lambda: [hashlib.sha256(content) for _ in itertools.count()]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def wait_longer(seconds: float) -> Iterator[float]:
    time.sleep(seconds)
    yield seconds


def work_for(seconds: float) -> Iterator[float]:
    """Take so much processor time; give how long it took by the clock."""
    begun = time.monotonic()
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    yield time.monotonic() - begun


def hang_outside_python(_: object) -> Iterator[int]:
    yield 1
    ctypes.CDLL(None).sleep(60)


def sleep_after_its_number(_: object) -> Iterator[int]:
    yield os.getpid()
    time.sleep(600)


def picture(shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    yield np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def demand(size: int) -> Iterator[int]:
    yield len(bytearray(size))


def demand_beside(size: int) -> Iterator[int]:
    """Keep that much beside the limit, take as much there for a while, then demand as much within it."""
    with outside_limits(keep_memory=True):
        kept = mmap.mmap(-1, size)
    with outside_limits():
        taken = mmap.mmap(-1, size)
    yield len(kept) + len(taken)
    taken.close()
    yield from demand(size)


def take_time_beside(path: Path) -> Iterator[int]:
    """Take longer than the limit beside it, leave a file, then take time without an end within it."""
    with outside_limits():
        end = time.process_time() + 1.5
        while time.process_time() < end:
            pass
    path.touch()
    while True:
        pass
    yield 0


def put_results_together(count: int) -> Iterator[int]:
    """Take half a second of processor time for each of so many results, and give them at once."""
    for _ in range(count):
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass
        restart_clock()
    yield count


def be_killed(_: object) -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number: int) -> Iterator[int]:
    yield from range(number)
    raise UnreadableError(Reason.COLOURED, "The picture is coloured.")


def give_up(_: object) -> Iterator[int]:
    raise InputError("There is no file.")
    yield 0


def fail(_: object) -> Iterator[int]:
    yield 1
    raise KeyError("a name that nobody may see")


def slow(number: int) -> Iterator[int]:
    time.sleep(0.05 if number % 2 else 0)
    yield number


def endless(size: int) -> Iterator[bytes]:
    for number in itertools.count():
        yield bytes([number % 256]) * size


def deidentify_unless_named(
    pair: tuple[StudyFile, Path], secret: Secret, options: Options, reading: Reading
) -> Iterator[str | Deidentified | None]:
    """Do what de-identification does, but crash or hang on the files called so, half of the new one written."""
    steps = deidentify_file(pair, secret, options, reading)
    yield next(steps)
    if pair[0].source in ("crash.dcm", "hang.dcm"):
        pair[1].write_bytes(b"half")
    if pair[0].source == "crash.dcm":
        os.abort()
    while pair[0].source == "hang.dcm":
        pass
    yield from steps


def deidentify_without_a_folder(
    pair: tuple[StudyFile, Path], secret: Secret, options: Options, reading: Reading
) -> Iterator[str | Deidentified | None]:
    """Do what de-identification does after somebody took the folder for the new files away."""
    yield from deidentify_file((pair[0], pair[1] / "gone" / "a"), secret, options, reading)


def score_slowly(files: Sequence[AnyFile], scoring: Scoring) -> Iterator[list[Result]]:
    """Score a volume at ten frames a second; a single frame as ever."""
    for number, items in enumerate(score_singly(files, scoring)):
        if number > 1:
            time.sleep(0.1)
        yield items


def wait_to_be_killed(files: Sequence[AnyFile], scoring: Scoring) -> Iterator[list[Result]]:
    """Score a frame, then wait until this process is killed; in the next attempt score all of them."""
    items = score_singly(files, scoring)
    yield next(items)
    place = place_of_waiting(os.getppid())
    if not place.exists():
        place.with_suffix(".new").write_text(str(os.getpid()))
        place.with_suffix(".new").replace(place)
        time.sleep(60)
    yield from items


def place_of_waiting(parent: int) -> Path:
    """Where `wait_to_be_killed` says which process waits."""
    return Path(tempfile.gettempdir()) / f"octray-waiting-{parent}"
