"""What runs in a worker process of a `Sandbox`: does one task after the other under limits, and sends each result at once."""

import io
import os
import pickle
import resource
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection

from pipeline.errors import OctrayError, Reason, UnreadableError

READY, RESULT, DONE, FAILED = b"o", b"r", b"d", b"x"
"""The first byte of a message; what follows a result or a failure is a pickle."""

OUT_OF_MEMORY = 3
"""Exit code of a worker that has no memory left to say so."""


def serve(handle: int, frame_seconds: float, worker_bytes: int) -> None:
    """Do the tasks that come in until nobody sends any more, then end.

    Parameters
    ----------
    handle
        File descriptor of a socket; a pickle of working folder, task and item comes in, messages go out.
    frame_seconds
        Time for one result, without that of importing the task; the kernel ends the process with SIGALRM, even within a
        decoder, where it takes longer.
    worker_bytes
        Address space of this process.
    """
    connection = Connection(handle)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (worker_bytes, worker_bytes))
    try:
        import pipeline.imaging.sources  # noqa: F401

        connection.send_bytes(READY)
        while True:
            for message in _messages(connection.recv_bytes(), frame_seconds):
                connection.send_bytes(message)
    except (EOFError, ConnectionError):
        return
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _messages(request: bytes, frame_seconds: float) -> Iterator[memoryview]:
    """Yield a message for each result and one for the end; the clock stands still while one is being sent."""
    try:
        folder, task, item = pickle.loads(request)  # noqa: S301
        os.chdir(folder)
        _start_clock(frame_seconds)
        for result in task(item):
            message = _packed(RESULT, result)
            _stop_clock()
            yield message
            _start_clock(frame_seconds)
        message = memoryview(DONE)
    except Exception as error:
        message = _packed(FAILED, _speakable(error))
    _stop_clock()
    yield message


def _packed(kind: bytes, content: object) -> memoryview:
    """Return a message; pickled into place, since a frame is large."""
    message = io.BytesIO(kind)
    message.seek(0, io.SEEK_END)
    pickle.dump(content, message, pickle.HIGHEST_PROTOCOL)
    return message.getbuffer()


def _speakable(error: Exception) -> OctrayError:
    if isinstance(error, OctrayError):
        return error
    if isinstance(error, MemoryError):
        return UnreadableError(Reason.RESOURCE_LIMIT, "Reading the file needs more memory than limits.worker_bytes allows.")
    return UnreadableError(
        Reason.DECODE_FAILED,
        f"Reading the file ended in an unexpected {type(error).__name__}. Please report it as a fault of octray.",
    )


def _start_clock(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _stop_clock() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
