"""Scores claimed studies on a Ray cluster: actors get the names of files, read and score them, and write to a shared folder."""

import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from itertools import chain, islice
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import InputError
from pipeline.job.cluster_actor import UNGUARDED, Place, asks_for_token
from pipeline.job.cluster_crew import Crew, Hand
from pipeline.job.scorer import Done, killed
from pipeline.store.types import Claim

_CHUNK = 32


class Cluster:
    """The actors of one job on a Ray cluster.

    Parameters
    ----------
    address
        Of the cluster, as in `ray.init`.
    place
        What the actors need to know.

    Raises
    ------
    InputError
        On entering it, where this process has no token for the cluster, or cannot reach it.
    """

    def __init__(self, address: str, place: Place) -> None:
        self._address = address
        self._place = place
        self._open = ExitStack()

    def __enter__(self) -> "Cluster":
        if not asks_for_token():
            raise InputError(UNGUARDED)
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints that a process has died, where results are expected
            stack.callback(ray.shutdown)
            _connect(self._address)
            self._crew = Crew(self._place)
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    def outcomes(self, claims: Iterable[Claim]) -> Iterator[Done]:
        """Have studies scored by whatever actor is idle, in chunks; those of an actor that died are tried again one by one.

        Raises
        ------
        OctrayError
            Where no actor can score, and the cluster asks for no token, has no free CPU, or lacks what an actor needs; or
            where an actor raises it.
        """
        chunks, running = _Chunks(claims), dict[Any, tuple[Hand, list[Claim]]]()
        while True:
            while self._crew.idle and (chunk := chunks.take()):
                hand = self._crew.idle.popleft()
                running[hand.actor.score.remote(chunk)] = hand, chunk
            if not running and chunks.is_empty():
                return
            for reference in self._crew.wait(running):
                hand, chunk = running.pop(reference)
                done = _fetched(reference)
                if done is not None:
                    self._crew.idle.append(hand)
                    yield from done
                    continue
                self._crew.replace(hand)
                if len(chunk) > 1:
                    chunks.split(chunk)
                else:
                    yield killed(chunk[0], self._place.base)


class _Chunks:
    """Claims, some at a time."""

    def __init__(self, claims: Iterable[Claim]) -> None:
        self._rest: Iterator[Claim] = iter(claims)
        self._alone: deque[Claim] = deque()

    def take(self) -> list[Claim]:
        return [self._alone.popleft()] if self._alone else list(islice(self._rest, _CHUNK))

    def split(self, chunk: list[Claim]) -> None:
        """Give back claims, which then come first, and one by one."""
        self._alone += chunk

    def is_empty(self) -> bool:
        first = list(islice(self._rest, 1))
        self._rest = chain(first, self._rest)
        return not first and not self._alone


def _fetched(reference: Any) -> list[Done] | None:
    """Return what an actor made of a chunk, None where it died, or the chunk was lost; raise what it raised itself."""
    try:
        return list(ray.get(reference))
    except RayTaskError as error:
        raise error.cause from None  # its own text is the traceback over there
    except RayError:
        return None


def _connect(address: str) -> None:
    try:
        with _own_sigterm():
            ray.init(address, namespace="octray", log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, RayError):
        raise InputError(
            "The Ray cluster cannot be reached. Check --address, that the token is that of the cluster, and that the versions "
            "of Ray and Python are the same there."
        ) from None


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep octray's way to end at a SIGTERM: `ray.init` puts a `sys.exit` in its place."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, handler)
