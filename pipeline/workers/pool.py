"""Runs tasks in worker processes under limits of time and memory, so that no file can crash or stall the program.

This guards against accidents: a decoder that crashes, hangs or takes all memory. It is no defence against a file that takes
control of the decoder: a worker has the rights of the user.
"""

import atexit
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import Reason, UnreadableError, WorkerError
from pipeline.settings import WorkerLimits
from pipeline.workers.ahead import ITEMS_AHEAD, stream_ahead
from pipeline.workers.cores import usable_cores
from pipeline.workers.messages import Message, MessageKind, packed, receive, send
from pipeline.workers.process import OUT_OF_MEMORY

Handle = TypeVar("Handle")
Item = TypeVar("Item")
Result = TypeVar("Result")

_FROM_OUTSIDE = tuple(-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT))
"""Exit codes of a worker that somebody else has ended: no decoder sends itself these signals."""
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class WorkerPool:
    """Worker processes, each started when it is first needed; may be used by several threads at once.

    Parameters
    ----------
    workers
        How many tasks run at the same time; 0 takes one for each core that this process may use.
    limits
        Time for each result of a task, and the address space of a worker.
    preload
        Modules that a worker imports when it starts, so that this does not count as time of its first task.
    """

    def __init__(self, workers: int, limits: WorkerLimits, preload: Iterable[str] = ()) -> None:
        self.workers = workers or usable_cores()
        self._limits = limits
        self._preload = tuple(preload)
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.workers):
            self._idle.put(None)
        self._running: set[_Worker] = set()
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the busy workers; keep the idle ones for the next pool with the same limits, until the program ends."""
        with self._lock:
            self._closed = True
            idle = {self._idle.get() for _ in range(self._idle.qsize())}
            for _ in range(self.workers):
                self._idle.put(None)
            for worker in self._running:
                if worker in idle and worker.is_alive():
                    _put_idle(worker)
                else:
                    worker.end()
            self._running.clear()

    def run(self, task: Callable[[Item], Iterator[Result]], item: Item) -> Generator[Result, None, None]:
        """Run one task in a worker, as soon as one is free.

        Parameters
        ----------
        task
            A function that another process can import, or a `functools.partial` of one; what it takes and yields is pickled.
        item
            What it is called with.

        Yields
        ------
        Result
            What the task yields, as it comes. A worker waits while its results are not taken.

        Raises
        ------
        UnreadableError
            What the task raises; `TIME_LIMIT` or `MEMORY_LIMIT` if it took more than the limits allow, `DECODER_CRASH` if its
            process ended, `WORKER_ENDED` if somebody else ended it, `DECODE_FAILED` if it raised anything but an `OctrayError`.
        OctrayError
            What the task raises.
        WorkerError
            If a worker cannot be started.
        """
        messages = self._messages(task, item, _Busy())
        try:
            yield from _results(messages)
        finally:
            messages.close()

    def map(
        self, task: Callable[[Item], Iterator[Result]], items: Iterable[tuple[Handle, Item]], ahead: int = ITEMS_AHEAD
    ) -> Generator[tuple[Handle, Iterator[Result]], None, None]:
        """Run a task on many items, several at a time and ahead of their use, in bounded memory.

        Parameters
        ----------
        task
            As in `run`.
        items
            What it is called with, each with a handle, which stays in this process; taken as needed.
        ahead
            How many items are begun at a time.

        Yields
        ------
        tuple
            The handle of each item, in order, and what `run` would yield; results that are not taken before the next item are
            lost. Closing the iterator, or an interrupt while it waits, kills the busy workers.
        """
        busy = _Busy()
        work = partial(self._messages, task, busy=busy)
        for handle, messages in stream_ahead(work, items, self.workers, ahead=ahead, size=len, cancel=busy.end):
            yield handle, _results(messages)

    def _messages(self, task: Callable[[Item], Iterator[Result]], item: Item, busy: "_Busy") -> Generator[Message, None, None]:
        """Yield the messages of a worker on a task; the last one says that it is done or has failed."""
        worker = self._idle.get()
        done = False
        try:
            if worker and not worker.is_alive():
                self._remove(worker)
                worker = None
            worker = worker or self._started(busy)
            busy.add(worker)
            for message in worker.messages((_working_folder(), task, item)):
                done = message.kind is not MessageKind.RESULT
                yield message
        finally:
            if worker:
                busy.discard(worker)
            if worker and not (done and worker.is_alive()):
                self._remove(worker)
                worker = None
            self._idle.put(worker)

    def _started(self, busy: "_Busy") -> "_Worker":
        """Return a worker that is ready; one that ends while it starts is replaced once, unless it lacked memory."""
        worker = self._start()
        busy.add(worker)
        code = worker.exit_code_of_start()
        if code not in (None, OUT_OF_MEMORY) and not busy.is_ended:
            self._dismiss(worker, busy)
            worker = self._start()
            busy.add(worker)
            code = worker.exit_code_of_start()
        if code is not None:
            self._dismiss(worker, busy)
            raise _not_started(code, self._limits)
        return worker

    def _dismiss(self, worker: "_Worker", busy: "_Busy") -> None:
        busy.discard(worker)
        self._remove(worker)

    def _start(self) -> "_Worker":
        with self._lock:
            if self._closed:
                raise WorkerError("The worker processes have been ended already.")
            worker = _take_idle(self._limits, self._preload) or _Worker(self._limits, self._preload)
            self._running.add(worker)
            return worker

    def _remove(self, worker: "_Worker") -> None:
        with self._lock:
            self._running.discard(worker)
        worker.end()


class _Busy:
    """The workers that one call of `map` or `run` keeps busy, so that they can be ended together."""

    def __init__(self) -> None:
        self.is_ended = False
        self._workers: set[_Worker] = set()
        self._lock = threading.Lock()

    def add(self, worker: "_Worker") -> None:
        """Add a worker; it is killed at once if the others have been."""
        with self._lock:
            self._workers.add(worker)
            if self.is_ended:
                worker.end()

    def discard(self, worker: "_Worker") -> None:
        with self._lock:
            self._workers.discard(worker)

    def end(self) -> None:
        """Kill the workers, and those that are added later."""
        with self._lock:
            self.is_ended = True
            for worker in self._workers:
                worker.end()


class _Worker:
    """One process, and this end of the socket to it; it ends when this end is closed, so it never outlives this process."""

    def __init__(self, limits: WorkerLimits, preload: tuple[str, ...]) -> None:
        self.limits, self.preload = limits, preload
        arguments = (limits.frame_seconds, limits.wall_seconds, limits.worker_bytes, preload)
        self._connection, theirs = Pipe()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from pipeline.workers.process import work; "
            f"work({theirs.fileno()}, *{arguments!r})"
        )
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | _ONE_THREAD,
            pass_fds=(theirs.fileno(),),
            process_group=0,
        )
        theirs.close()
        self._ready = False

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Kill the process; whoever waits for a message of it gets its failure."""
        self._process.kill()
        self._process.wait()

    def exit_code_of_start(self) -> int | None:
        """Wait until it has started; return None if it has, or its exit code if it ended instead."""
        if not self._ready:
            try:
                receive(self._connection)
            except (EOFError, ConnectionError):
                return self._process.wait()
            self._ready = True
        return None

    def messages(self, request: object) -> Iterator[Message]:
        """Send a request and yield the messages that come back; if the process ends, a failure is the last one."""
        try:
            send(self._connection, packed(MessageKind.RESULT, request))
            kind = MessageKind.RESULT
            while kind is MessageKind.RESULT:
                message = receive(self._connection)
                kind = message.kind
                yield message
        except (EOFError, ConnectionError):
            yield packed(MessageKind.FAILED, self._failure(self._process.wait()))

    def _failure(self, code: int) -> UnreadableError:
        if code == -signal.SIGPROF:
            return UnreadableError(
                Reason.TIME_LIMIT,
                f"Reading the file took more than {self.limits.frame_seconds:g} seconds of processor time. Try again; if that "
                "does not help, save it in an encoding that is read faster, or make it smaller.",
            )
        if code == -signal.SIGALRM:
            return UnreadableError(
                Reason.TIME_LIMIT,
                f"Reading the file took longer than {self.limits.wall_seconds:g} seconds, most of them waiting. Check that its "
                "disk or network answers and that the machine is not overloaded, and try again.",
            )
        if code in _FROM_OUTSIDE:
            return UnreadableError(
                Reason.WORKER_ENDED,
                "The process that read the file was ended from outside, as a machine does that has too little memory. Free "
                "some, and try again.",
            )
        if code == OUT_OF_MEMORY:
            return UnreadableError(
                Reason.MEMORY_LIMIT,
                "Reading the file needs more memory than is available. Free some, make the file smaller, or split it.",
            )
        return UnreadableError(
            Reason.DECODER_CRASH,
            "The decoder crashed on this file. Copy or export it again, in another encoding if that does not help.",
        )


_idle_workers: dict[int, list[_Worker]] = {}
"""Idle workers by process ID, so that a forked copy of this process does not use them. Starting one takes as long as reading
hundreds of small files."""

_idle_lock = threading.Lock()


def warm(limits: WorkerLimits, preload: tuple[str, ...] = ()) -> None:
    """Start a worker now for the next pool with these limits, so that it is ready when it is needed."""
    with _idle_lock:
        is_there = any((worker.limits, worker.preload) == (limits, preload) for worker in _idle_workers.get(os.getpid(), []))
    if not is_there:
        _put_idle(_Worker(limits, preload))


def _put_idle(worker: _Worker) -> None:
    with _idle_lock:
        if os.getpid() not in _idle_workers:
            _idle_workers[os.getpid()] = []
            atexit.register(_end_idle)
        _idle_workers[os.getpid()].append(worker)


def _take_idle(limits: WorkerLimits, preload: tuple[str, ...]) -> _Worker | None:
    with _idle_lock:
        waiting = _idle_workers.get(os.getpid(), [])
        for worker in waiting:
            if (worker.limits, worker.preload) == (limits, preload):
                waiting.remove(worker)
                return worker if worker.is_alive() else None
    return None


def _end_idle() -> None:
    for worker in _idle_workers.pop(os.getpid(), []):
        worker.end()


def _results(messages: Iterator[Message]) -> Iterator[Any]:
    for message in messages:
        if message.kind is MessageKind.RESULT:
            yield message.content()
        elif message.kind is MessageKind.FAILED:
            raise message.content()


def _working_folder() -> str | None:
    """Return the working folder of this process, or None if it was removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def _not_started(code: int, limits: WorkerLimits) -> WorkerError:
    if code == OUT_OF_MEMORY:
        return WorkerError(
            f"The process that reads files cannot start within {limits.worker_bytes // 2**20} MiB of memory. Free some, "
            "or raise OCTRAY_WORKER_BYTES if you set it."
        )
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return WorkerError(
        f"The process that reads files {how} while it started. Run it again; if that does not help, install octray again."
    )
