"""The worker's side of a `WorkerPool`: does one task after the other under limits, and sends each result at once."""

import importlib
import os
import resource
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.errors import OctrayError, Reason, UnreadableError, is_lack_of_memory
from pipeline.workers.messages import Message, MessageKind, packed, receive, send

OUT_OF_MEMORY = 3
"""Exit code of a worker that lacks even the memory to say so."""
_LEAST_MEMORY = 2**22
"""A process whose address space is this near to its limit cannot import a module."""

_seconds = 0.0, 0.0
"""Processor time and time by the clock for one result."""


def work(handle: int, cpu_seconds: float, wall_seconds: float, memory_bytes: int, preload: Sequence[str]) -> None:
    """Run incoming tasks until the pool closes the connection, then end.

    Parameters
    ----------
    handle
        File descriptor of a socket; messages with working folder, task and item come in, others go out.
    cpu_seconds
        Processor time of all threads for one result, without that of importing the task and of what is done
        `outside_limits`; if it takes more, the kernel ends the process with SIGPROF, even within a decoder.
    wall_seconds
        The same by the clock; the kernel ends the process with SIGALRM.
    memory_bytes
        Address space of this process, except for what is loaded `outside_limits`.
    preload
        Modules to import before the first task.
    """
    global _seconds  # a process does one task at a time
    _seconds = cpu_seconds, wall_seconds
    connection = Connection(handle)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(memory_bytes)
    try:
        _import(preload)
        send(connection, packed(MessageKind.READY))
        while True:
            for message in _messages(receive(connection)):
                send(connection, message)
    except (EOFError, ConnectionError):
        return
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


@contextmanager
def outside_limits(keep_memory: bool = False) -> Iterator[None]:
    """Lift the limits of time and memory for a block, such as running a network.

    Parameters
    ----------
    keep_memory
        Whether the memory that the block takes stays in use, so that the limit is raised by it afterwards.
    """
    rest = _stop_clock()
    limit, most = resource.getrlimit(resource.RLIMIT_AS)
    if limit != most:
        before = _address_space() if keep_memory else 0
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        yield
    finally:
        if limit != most:
            _limit_memory(limit + max(0, _address_space() - before) if keep_memory else limit)
        _start_clock(*rest)


def restart_clock() -> None:
    """Give a task the time of one result again; for tasks that yield several results together."""
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        _start_clock(*_seconds)


def _limit_memory(size: int) -> None:
    """Set the limit that can be raised again; the one that cannot stays, and is never exceeded."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if most == resource.RLIM_INFINITY else min(size, most), most))


def _address_space() -> int:
    """Return the bytes of address space that this process has (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _import(modules: Iterable[str]) -> None:
    """Import modules.

    Raises
    ------
    MemoryError
        If there is too little memory, whatever Python makes of that: a shared library that cannot be mapped raises ImportError,
        and the parser of Python 3.11 a SyntaxError on correct source.
    """
    try:
        for module in modules:
            importlib.import_module(module)
    except Exception as error:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        is_full = limit != resource.RLIM_INFINITY and _address_space() + _LEAST_MEMORY > limit
        if is_full or is_lack_of_memory(error) or (isinstance(error, ImportError) and error.name is None):
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
            message = packed(MessageKind.RESULT, result)
            _stop_clock()
            yield message
            _start_clock(*_seconds)
        message = packed(MessageKind.DONE)
    except Exception as error:
        message = packed(MessageKind.FAILED, _speakable(error))
    _stop_clock()
    yield message


def _speakable(error: Exception) -> OctrayError:
    if isinstance(error, OctrayError):
        return error
    if isinstance(error, MemoryError):
        return UnreadableError(
            Reason.MEMORY_LIMIT,
            "Reading the file needs more memory than octray gives it. Make the file smaller, or split it.",
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
