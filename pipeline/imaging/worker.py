"""What runs in a worker process of a `Sandbox`: does one task after the other under limits, and sends each result at once."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.errors import OctrayError, Reason, UnreadableError, is_lack_of_memory
from pipeline.imaging.messages import Kind, Message, packed, receive, send

OUT_OF_MEMORY = 3
"""Exit code of a worker that has no memory left to say so."""


_seconds = 0.0, 0.0
"""Processor time and time by the clock for one result."""


def serve(handle: int, frame_seconds: float, wall_seconds: float, worker_bytes: int) -> None:
    """Do the tasks that come in until nobody sends any more, then end.

    Parameters
    ----------
    handle
        File descriptor of a socket; messages with working folder, task and item come in, others go out.
    frame_seconds
        Processor time of all threads for one result, without that of importing the task and of what is done
        `beside_the_limits`; if it takes more, the kernel ends the process with SIGPROF, even within a decoder.
    wall_seconds
        The same by the clock; the kernel ends the process with SIGALRM.
    worker_bytes
        Address space of this process, but for what is loaded `beside_the_limits`.
    """
    global _seconds  # of the only task at a time that this process has
    _seconds = frame_seconds, wall_seconds
    connection = Connection(handle)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(worker_bytes)
    try:
        _import_readers()
        send(connection, packed(Kind.READY))
        while True:
            for message in _messages(receive(connection)):
                send(connection, message)
    except (EOFError, ConnectionError):
        return
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


@contextmanager
def beside_the_limits(kept: bool = False) -> Iterator[None]:
    """Let what the block does, such as running a network, count neither as time nor as memory that reading a file takes.

    Parameters
    ----------
    kept
        Whether the memory that the block takes is held for good, and the limit is to be so much higher afterwards.
    """
    rest = _stop_clock()
    limit, most = resource.getrlimit(resource.RLIMIT_AS)
    if limit != most:
        before = _address_space() if kept else 0
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        yield
    finally:
        if limit != most:
            _limit_memory(limit + max(0, _address_space() - before) if kept else limit)
        _start_clock(*rest)


def restart_clock() -> None:
    """Give a task that puts several results together the time of one for each of them."""
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        _start_clock(*_seconds)


def _limit_memory(size: int) -> None:
    """Set the limit that can be raised again; the one that cannot stays, and is never exceeded."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if most == resource.RLIM_INFINITY else min(size, most), most))


def _address_space() -> int:
    """Return the bytes of address space that this process has (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _import_readers() -> None:
    """Import what reads files; a library that there is no memory to map is an ImportError."""
    try:
        import pipeline.imaging.sources  # noqa: F401
    except ImportError as error:
        if error.name is None or is_lack_of_memory(error):
            raise MemoryError from None
        raise


def _messages(request: Message) -> Iterator[Message]:
    """Yield a message for each result and one for the end; the clock stands still while one is being sent."""
    try:
        folder, task, item = request.content()
        if folder is not None:
            os.chdir(folder)
        _start_clock(*_seconds)
        for result in task(item):
            message = packed(Kind.RESULT, result)
            _stop_clock()
            yield message
            _start_clock(*_seconds)
        message = packed(Kind.DONE)
    except Exception as error:
        message = packed(Kind.FAILED, _speakable(error))
    _stop_clock()
    yield message


def _speakable(error: Exception) -> OctrayError:
    if isinstance(error, OctrayError):
        return error
    if isinstance(error, MemoryError):
        return UnreadableError(
            Reason.MEMORY_LIMIT,
            "Reading the file needs more memory than octray gives it. Scale the image down, or split the file.",
        )
    return UnreadableError(
        Reason.DECODE_FAILED,
        f"Reading the file ended in an unexpected {type(error).__name__}. Please report it as a fault of octray.",
    )


def _start_clock(processor_seconds: float, wall_seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, processor_seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def _stop_clock() -> tuple[float, float]:
    """Stop both timers, and return what was left of them; zeros if they stood still."""
    return signal.setitimer(signal.ITIMER_PROF, 0)[0], signal.setitimer(signal.ITIMER_REAL, 0)[0]
