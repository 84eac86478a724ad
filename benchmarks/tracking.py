"""Measures what a server of MLflow that does not work costs a run: `python -m benchmarks.tracking`.

The run does what a training does: it begins, has ten epochs of three seconds, registers a bundle and ends. Printed are the
seconds that it took longer than the epochs, for a port that nobody listens on, a server that never answers, one that sends a
byte every tenth of a second, and one that takes three seconds for each answer, an error.
"""

import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.config import TrackingSection
from pipeline.train.tracking import Tracker

EPOCHS, SECONDS = 10, 3.0


def drip(connection: socket.socket) -> None:
    """Answer byte by byte, without end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.1)


def be_slow(connection: socket.socket) -> None:
    """Take three seconds for an answer that is no help."""
    time.sleep(3)
    connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def be_silent(connection: socket.socket) -> None:
    """Answer nothing."""
    time.sleep(3600)


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Listen on loopback, and answer each connection like this."""

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            answer(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def cost(uri: str, out: Path) -> float:
    """Return how many seconds longer than its epochs a run took."""
    facts = {"name": "index", "digest": "a", "source_type": "local", "source": "{}"}
    began = time.monotonic()
    tracker = Tracker(TrackingSection(uri=uri), out=out, key="run", name="run", parameters={}, dataset=facts)
    for epoch in range(EPOCHS):
        time.sleep(SECONDS)
        tracker.log_metrics({"tune_loss": 1 / (epoch + 1)}, epoch)
    tracker.finish()
    return time.monotonic() - began - EPOCHS * SECONDS


def main() -> None:
    """Print one line for each kind of server."""
    import mlflow  # noqa: F401 - its import is no part of the cost

    with tempfile.TemporaryDirectory() as folder:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        print(f"dead {cost(dead, Path(folder) / 'dead'):.1f} s")
        for name, answer in (("silent", be_silent), ("dripping", drip), ("slow", be_slow)):
            with server(answer) as uri:
                print(f"{name} {cost(uri, Path(folder) / name):.1f} s")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
