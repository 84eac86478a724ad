"""Scores claimed studies on a Ray cluster: actors get the names of files, read and score them, and write to a shared folder."""

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from pipeline.errors import InputError
from pipeline.job.outputs import Wanted
from pipeline.job.scorer import Done, Scorer, killed
from pipeline.ledger.types import Claim
from pipeline.model.bundle import load_bundle
from pipeline.score.predictor import Predictor

_CHUNK = 32
_CPUS = 0.5
"""Of each actor, one for every CPU of the cluster: the other half is left to its worker process, and to Ray."""

_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Place:
    """What an actor needs to know; the paths must lead to the same folders on every machine.

    Parameters
    ----------
    bundle
        Folder of the bundle.
    base, folder, wanted
        As in `Scorer`.
    """

    bundle: Path
    base: Path
    folder: Path
    wanted: Wanted


class Cluster:
    """The actors of one job on a Ray cluster that asks for a token.

    Parameters
    ----------
    address
        Of the cluster, as in `ray.init`.
    place
        What the actors need to know.

    Raises
    ------
    InputError
        On entering it, where the cluster cannot be reached, does not ask for a token, or starts no actor.
    """

    def __init__(self, address: str, place: Place) -> None:
        self._address = address
        self._place = place
        self._actors: list[Any] = []
        self._quiet = ExitStack()

    def __enter__(self) -> "Cluster":
        if os.environ.get("RAY_AUTH_MODE") != "token":
            raise InputError(
                "The Ray cluster must ask for a token, since whoever reaches it can run programs on it. Start it and octray "
                "with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN set."
            )
        try:
            ray.init(self._address, namespace="octray", log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, RayError):
            raise InputError(
                "The Ray cluster cannot be reached. Check --address, and that the token is that of the cluster."
            ) from None
        self._quiet.enter_context(redirect_stdout(sys.stderr))  # Ray prints that a process has died, where results are expected
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        ray.shutdown()
        self._quiet.close()

    def outcomes(self, claims: Iterable[Claim]) -> Iterator[Done]:
        """Have studies scored by whatever actor is idle, in chunks; those of an actor that died are tried again one by one."""
        rest, alone = iter(claims), deque[Claim]()
        idle, running = deque(self._actors), dict[Any, tuple[Any, list[Claim]]]()
        while True:
            while idle and (chunk := [alone.popleft()] if alone else list(islice(rest, _CHUNK))):
                actor = idle.popleft()
                running[actor.score.remote(chunk)] = actor, chunk
            if not running:
                return
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            actor, chunk = running.pop(ready)
            idle.append(actor)
            try:
                yield from ray.get(ready)
            except RayActorError:
                if len(chunk) == 1:
                    yield killed(chunk[0], self._place.base)
                else:
                    alone += chunk

    def _start(self) -> None:
        """Start an actor for every CPU, spread over the nodes, and wait for the first of them."""
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        count = max(1, int(resources.get("CPU", 1)))
        remote = ray.remote(num_cpus=_CPUS, max_restarts=-1, scheduling_strategy="SPREAD")(_Actor)
        self._actors = [remote.remote(self._place) for _ in range(count)]
        ready, _ = ray.wait([actor.ready.remote() for actor in self._actors], num_returns=count, timeout=_START_SECONDS)
        if not ready:
            ray.shutdown()
            raise InputError("The Ray cluster starts no process of octray. Check that it has a free CPU, and octray installed.")


class _Actor:
    """Scores on one CPU of one machine."""

    def __init__(self, place: Place) -> None:
        predictor = Predictor(load_bundle(place.bundle), threads=1)
        self._scorer = Scorer(predictor, place.base, place.folder, place.wanted)

    def ready(self) -> bool:
        return True

    def score(self, claims: list[Claim]) -> list[Done]:
        return list(self._scorer.outcomes(claims))
