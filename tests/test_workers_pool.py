"""Work in other processes: order, streaming, and what becomes of a file whose decoder crashes, hangs or takes all memory."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.deidentify.profile import RefusalReason, RefusedError
from pipeline.errors import ConfigError, InputError, OctrayError, Reason, UnreadableError, WorkerError
from pipeline.imaging.file_workers import file_workers, warm_file_worker
from pipeline.imaging.sources import StudyFile, read_frames
from pipeline.settings import WorkerLimits
from pipeline.workers.ahead import BYTES_AHEAD, map_ahead, stream_ahead
from pipeline.workers.cores import usable_cores
from pipeline.workers.pool import WorkerPool, _idle_workers
from tests.builders import make_dicom
from tests.worker_tasks import (
    abort,
    be_killed,
    count,
    crash,
    demand,
    demand_beside,
    endless,
    fail,
    give_up,
    hang,
    hang_in_threads,
    hang_outside_python,
    picture,
    process_id,
    put_results_together,
    refuse,
    slow,
    take_time_beside,
    wait_longer,
    work_for,
    working_folder,
)

STRICT = WorkerLimits(frame_seconds=1.0, worker_bytes=2**29)


def is_running(process: int) -> bool:
    """Say whether any thread of a process is left; its first one is a zombie already while others still end."""
    place = Path(f"/proc/{process}")
    try:
        state = (place / "stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(list((place / "task").iterdir())) > 1
    except OSError:
        return False


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with file_workers(2) as made:
        yield made


@pytest.fixture(scope="module")
def strict() -> Iterator[WorkerPool]:
    with file_workers(2, STRICT) as made:
        yield made


def test_results_come_one_by_one(pool: WorkerPool) -> None:
    assert list(pool.run(count, 3)) == [0, 1, 2]
    assert next(pool.run(endless, 1)) == b"\0"


def test_it_is_another_process_that_is_used_again() -> None:
    with file_workers(1) as single:
        (first,), (second,) = single.run(process_id, 0), single.run(process_id, 0)
    assert first == second != os.getpid()


def test_a_worker_that_was_started_ahead_is_used() -> None:
    limits = WorkerLimits(frame_seconds=7.0)
    warm_file_worker(limits)
    warm_file_worker(limits)
    (waiting,) = (worker._process.pid for worker in _idle_workers[os.getpid()] if worker.limits.frame_seconds == 7.0)
    with file_workers(1, limits) as single:
        assert list(single.run(process_id, 0)) == [waiting]


def test_frames_of_a_file_are_the_same_as_in_this_process(pool: WorkerPool, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(make_dicom(np.random.default_rng(0).integers(0, 4096, (3, 20, 30), np.uint16)))
    file = StudyFile(tmp_path / "a.dcm", "a.dcm")
    here, there = list(read_frames(file)), list(pool.run(read_frames, file))
    assert [frame.pixels.tobytes() for frame in there] == [frame.pixels.tobytes() for frame in here]
    assert [frame.key for frame in there] == [frame.key for frame in here]


@pytest.mark.parametrize(
    ("task", "reason", "sentence"),
    [
        (crash, Reason.DECODER_CRASH, "The decoder crashed on this file"),
        (abort, Reason.DECODER_CRASH, "The decoder crashed on this file"),
        (hang, Reason.TIME_LIMIT, r"^Reading the file took more than 1 seconds of processor time\. Try again"),
        (hang_in_threads, Reason.TIME_LIMIT, r"took more than 1 seconds of processor time"),
        (be_killed, Reason.WORKER_ENDED, r"ended from outside, as a machine does that has too little memory\. Free some"),
        (refuse, Reason.COLOURED, r"^The picture is coloured\.$"),
        (fail, Reason.DECODE_FAILED, r"unexpected KeyError\. Please report it as a fault of octray\.$"),
    ],
)
def test_a_file_ends_with_a_reason_after_what_it_gave(strict: WorkerPool, task: object, reason: Reason, sentence: str) -> None:
    results = strict.run(task, 1)  # type: ignore[arg-type]
    next(results)
    with pytest.raises(UnreadableError, match=sentence) as caught:
        next(results)
    assert caught.value.reason is reason
    assert list(strict.run(count, 2)) == [0, 1]


def test_waiting_counts_by_the_clock_alone_whose_limit_is_generous(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = WorkerLimits(frame_seconds=0.5)
    assert limits.wall_seconds >= 60.0
    with file_workers(1, limits) as patient:
        assert next(patient.run(wait_longer, 1.5)) == 1.5
    monkeypatch.setattr(WorkerLimits, "wall_seconds", 1.0)
    with file_workers(1, replace(limits, frame_seconds=0.6)) as single:
        results = single.run(hang_outside_python, 1)
        next(results)
        with pytest.raises(UnreadableError, match=r"longer than 1 seconds, most of them waiting\. Check that") as caught:
            next(results)
        assert caught.value.reason is Reason.TIME_LIMIT
        assert list(single.run(count, 2)) == [0, 1]


def test_a_frame_has_its_time_on_a_machine_that_has_much_else_to_do() -> None:
    """Three seconds by the clock pass over one of processor time if others take most of it."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * usable_cores())]
    try:
        with file_workers(1, WorkerLimits(frame_seconds=2.0)) as single:
            (seconds,) = single.run(work_for, 1.0)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert seconds > 0


def test_memory_has_a_limit(strict: WorkerPool) -> None:
    assert list(strict.run(demand, 2**20)) == [2**20]
    with pytest.raises(UnreadableError, match="needs more memory than octray gives it") as caught:
        list(strict.run(demand, 2**29))
    assert caught.value.reason is Reason.MEMORY_LIMIT


def test_what_is_taken_beside_the_limit_of_memory_leaves_it_as_it_is() -> None:
    with file_workers(1, STRICT) as single:
        results = single.run(demand_beside, 2**29)
        assert next(results) == 2**30
        with pytest.raises(UnreadableError, match="needs more memory than octray gives it"):
            next(results)
        with pytest.raises(UnreadableError, match="needs more memory than octray gives it"):
            list(single.run(demand, 2**30))


def test_what_is_done_beside_the_limit_of_time_leaves_it_as_it_is(strict: WorkerPool, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="took more than 1 seconds of processor time"):
        list(strict.run(take_time_beside, tmp_path / "done"))
    assert (tmp_path / "done").exists()


def test_results_that_are_given_together_have_the_time_of_one_for_each(strict: WorkerPool) -> None:
    assert list(strict.run(put_results_together, 4)) == [4]


def test_other_errors_of_octray_come_through(pool: WorkerPool) -> None:
    with pytest.raises(InputError, match=r"There is no file\."):
        list(pool.run(give_up, 0))


def test_a_worker_that_cannot_start_is_told() -> None:
    with (
        file_workers(1, WorkerLimits(worker_bytes=2**20)) as tiny,
        pytest.raises(WorkerError, match=r"cannot start within 1 MiB of memory\. Free some"),
    ):
        list(tiny.run(count, 1))


def test_the_time_is_that_of_one_result_and_not_of_who_takes_it(strict: WorkerPool) -> None:
    taken = 0
    for result in itertools.islice(strict.run(endless, 2**20), 4):
        time.sleep(0.4)
        taken += len(result)
    assert taken == 2**22


def test_many_items_keep_their_order_whatever_happens_to_some(pool: WorkerPool) -> None:
    assert [(handle, list(results)) for handle, results in pool.map(slow, enumerate(range(20, 40)))] == [
        (handle, [handle + 20]) for handle in range(20)
    ]
    found: list[object] = []
    for _, results in pool.map(crash, enumerate(range(6))):
        try:
            found.append(list(results))
        except UnreadableError as error:
            found.append(error.reason)
    assert found == [[0], Reason.DECODER_CRASH, [2], [3], [4], Reason.DECODER_CRASH]


def test_items_are_taken_as_needed_and_unused_results_are_lost(pool: WorkerPool) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10_000):
            taken.append(number)
            yield 3

    every = pool.map(count, enumerate(items()))
    assert [next(next(every)[1]) for _ in range(3)] == [0, 0, 0]
    every.close()
    assert len(taken) < 1_000


def test_who_catches_an_exception_of_the_work_gets_the_rest() -> None:
    def work(number: int) -> Iterator[bytes]:
        yield b"one"
        if number == 1:
            raise WorkerError("No worker.")

    found = []
    with closing(stream_ahead(work, enumerate(range(3)), 2)) as items:
        for number, results in items:
            with suppress(WorkerError):
                found += [(number, result) for result in results]
                found.append((number, b"whole"))
    assert found == [(0, b"one"), (0, b"whole"), (2, b"one"), (2, b"whole")]


def test_one_result_an_item_comes_in_order_and_few_are_begun_ahead() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            begun.append(number)
            yield number

    def work(number: int) -> int:
        time.sleep(0.01 * (number % 2 == 0))
        if number == 5:
            raise KeyError(number)
        return number

    found = []
    with closing(map_ahead(work, items(), 2, 4)) as results, suppress(KeyError):
        for number in results:
            found.append(number)
            assert len(begun) <= number + 4
    assert found == [0, 1, 2, 3, 4]


def test_what_waits_is_bounded(pool: WorkerPool) -> None:
    before = resident_bytes()
    results = pool.map(endless, enumerate([2**24] * 2))
    _, first = next(results)
    assert next(first) == bytes(2**24)
    time.sleep(1.0)
    assert resident_bytes() < before + 2 * BYTES_AHEAD
    results.close()


def test_two_workers_work_at_the_same_time() -> None:
    with file_workers(2) as both:
        found = {process for _, results in both.map(process_id, enumerate(range(40))) for process in results}
    assert len(found) == 2


def test_a_worker_at_work_is_ended_and_the_others_wait_for_more() -> None:
    limits = WorkerLimits(frame_seconds=9.0)  # of nobody else, so that no worker of theirs waits
    with file_workers(2, limits) as both:
        processes = {process for _, results in both.map(process_id, enumerate(range(40))) for process in results}
        held = both.run(endless, 1)
        next(held)
    left = {process for process in processes if is_running(process)}
    assert len(left) == 1
    with pytest.raises(UnreadableError):
        list(held)
    with file_workers(1, limits) as later:
        assert set(later.run(process_id, 0)) == left
    with file_workers(1, STRICT) as other:
        assert not set(other.run(process_id, 0)) & left


def test_a_path_means_the_same_as_in_this_process(pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert list(pool.run(working_folder, 0)) == [str(tmp_path / name)]


def test_a_worker_that_died_while_it_waited_is_replaced() -> None:
    with file_workers(1) as single:
        (first,) = single.run(process_id, 0)
        os.kill(first, signal.SIGKILL)
        while is_running(first):
            time.sleep(0.01)
        (second,) = single.run(process_id, 0)
    assert second != first


def test_a_closed_pool_says_so() -> None:
    with file_workers(1) as closed:
        pass
    with pytest.raises(WorkerError, match="have been ended already"):
        next(closed.run(count, 1))


@pytest.mark.parametrize("shape", [(700, 600), (0, 3), (1,)])
def test_an_array_arrives_whole_and_may_be_written(pool: WorkerPool, shape: tuple[int, ...]) -> None:
    (arrived,) = pool.run(picture, shape)
    assert np.array_equal(arrived, np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    arrived += 1


def test_a_working_folder_that_was_taken_away_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with file_workers(1, WorkerLimits(frame_seconds=6.5)) as fresh:
        assert list(fresh.run(count, 3)) == [0, 1, 2]


STARTS = """
import os, signal
from pathlib import Path

seen = Path({seen!r})
seen.write_text(seen.read_text() + "." if seen.exists() else ".")
if len(seen.read_text()) <= {fatal}:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("fatal", "starts"), [(1, 2), (2, 2)])
def test_a_worker_that_is_killed_while_it_starts_is_started_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fatal: int, starts: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STARTS.format(seen=str(tmp_path / "seen"), fatal=fatal))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with file_workers(1, WorkerLimits(frame_seconds=7.0 + fatal / 4)) as unlucky:
        if fatal == 1:
            assert list(unlucky.run(count, 3)) == [0, 1, 2]
        else:
            with pytest.raises(WorkerError, match=r"was ended by signal 9 while it started\. Run it again"):
                list(unlucky.run(count, 3))
    assert (tmp_path / "seen").read_text() == "." * starts


def test_it_works_from_a_thread(pool: WorkerPool) -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(pool.run(count, 4)), daemon=True)
    thread.start()
    thread.join(30)
    assert found == [0, 1, 2, 3]


PROGRAM = """
import sys
from pipeline.imaging.file_workers import file_workers
from tests.worker_tasks import process_id, slow

with file_workers(2) as pool:
    print(*{process for _, results in pool.map(process_id, enumerate(range(40))) for process in results}, flush=True)
    for _, results in pool.map(slow, enumerate(range(100_000))):
        list(results)
"""


SLEEPERS = """
from pipeline.settings import WorkerLimits
from pipeline.imaging.file_workers import file_workers
from tests.worker_tasks import sleep_after_its_number

with file_workers(2, WorkerLimits(frame_seconds=600.0)) as pool:
    for _, results in pool.map(sleep_after_its_number, enumerate(range(2))):
        for process in results:
            print(process, flush=True)
"""


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("stopped", [False, True])
def test_an_interrupt_does_not_wait_for_the_work_under_way(stopped: bool) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", SLEEPERS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    assert program.stdout
    worker = int(program.stdout.readline())
    if stopped:
        os.kill(worker, signal.SIGSTOP)
    program.send_signal(signal.SIGINT)
    try:
        assert b"KeyboardInterrupt" in program.communicate(timeout=30)[1]
        assert not is_running(worker)
    finally:
        program.kill()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_program(number: signal.Signals) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    assert program.stdout
    workers = [int(process) for process in program.stdout.readline().split()]
    program.send_signal(number)
    _, said = program.communicate(timeout=30)
    assert len(workers) == 2
    assert said.count(b"Traceback") == (number == signal.SIGINT)
    deadline = time.monotonic() + 20
    while any(is_running(process) for process in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_running(process) for process in workers)


def kinds_of(kind: type[OctrayError]) -> list[type[OctrayError]]:
    """An error and all of pipeline that are derived from it."""
    derived = (below for below in kind.__subclasses__() if below.__module__.startswith("pipeline."))
    return [kind, *(one for below in derived for one in kinds_of(below))]


@pytest.mark.parametrize("kind", kinds_of(OctrayError))
def test_every_error_of_octray_can_pass_between_processes(kind: type[OctrayError]) -> None:
    given: dict[type[OctrayError], tuple[object, ...]] = {
        ConfigError: (["size is no number.", "fit is no word."],),
        RefusedError: (RefusalReason.NOT_DICOM, "It is a letter."),
        UnreadableError: (Reason.TRUNCATED, "It is cut off."),
    }
    error = kind(*given.get(kind, ("No.",)))
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(copy), str(copy), vars(copy)) == (kind, str(error), vars(error))
