"""Messages between a pool and its workers; large arrays in them are sent without a copy."""

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MessageKind(Enum):
    """What a worker reports: that it is ready, one result of a task, the end of the task, or its failure."""

    READY = "ready"
    RESULT = "result"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """A message that arrived, still pickled, so that only its user pays for unpickling.

    Parameters
    ----------
    kind
        What it is.
    pickled
        The content without its buffers (PEP 574).
    buffers
        One uint8 array for each; the content unpickled lies in them, without a copy.
    """

    kind: MessageKind
    pickled: bytes = b""
    buffers: Sequence[NDArray[np.uint8]] = ()

    def __len__(self) -> int:
        return len(self.pickled) + sum(buffer.nbytes for buffer in self.buffers)

    def content(self) -> Any:
        """Return what was sent."""
        return pickle.loads(self.pickled, buffers=self.buffers)  # noqa: S301


def packed(kind: MessageKind, content: object = None) -> Message:
    """Return a message whose buffers are those of the content itself."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(content, pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append)
    return Message(kind, pickled, [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers])


def send(connection: Connection, message: Message) -> None:
    """Send a message.

    Raises
    ------
    ConnectionError
        If the other side has closed it.
    """
    sizes = [buffer.nbytes for buffer in message.buffers]
    connection.send_bytes(pickle.dumps((message.kind.value, message.pickled, sizes), pickle.HIGHEST_PROTOCOL))
    for buffer in message.buffers:
        rest = buffer.data
        while rest:
            rest = rest[os.write(connection.fileno(), rest) :]


def receive(connection: Connection) -> Message:
    """Wait for a message.

    Raises
    ------
    EOFError, ConnectionError
        If the other side has ended.
    """
    kind, pickled, sizes = pickle.loads(connection.recv_bytes())  # noqa: S301
    buffers = [np.empty(size, np.uint8) for size in sizes]
    for buffer in buffers:
        rest = buffer.data
        while rest:
            count = os.readv(connection.fileno(), [rest])
            if not count:
                raise EOFError
            rest = rest[count:]
    return Message(MessageKind(kind), pickled, buffers)
