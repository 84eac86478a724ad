"""Scores claimed studies on a Ray cluster: actors get the names of files, read and score them, and write to a shared folder."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import BundleError, InputError, OctrayError
from pipeline.job.folder import STATE
from pipeline.job.scorer import ScoredClaim, Scorer, killed
from pipeline.model.bundle import load_bundle
from pipeline.results.dicom import Kind
from pipeline.score.predictor import Predictor
from pipeline.store.ledger import Claim
from pipeline.workers.ray_cluster import ENDED, FAILED, UNGUARDED, check_machine, connected, is_guarded


@dataclass(frozen=True, slots=True)
class ActorSettings:
    """What an actor needs to know; the paths must lead to the same folders on every machine.

    Parameters
    ----------
    bundle, bundle_id
        Folder of the bundle, and which bundle it is.
    code
        The versions here, as `software_versions` gives them.
    base, folder, heatmaps, objects
        As in `Scorer`.
    """

    bundle: Path
    bundle_id: str
    code: Mapping[str, str]
    base: Path
    folder: Path
    heatmaps: bool
    objects: frozenset[Kind]


class Actor:
    """Scores on one CPU of one machine, once it is ready."""

    def __init__(self, place: ActorSettings) -> None:
        self._place = place
        self._scorer: Scorer | None = None

    def ready(self) -> None:
        """Load the bundle: not in the constructor, since of what that raises only the text of a traceback arrives.

        Raises
        ------
        OctrayError
            If the cluster asks for no token, or this machine lacks something or has another version than the one that runs
            octray.
        """
        bundle_folder, base, out = self._place.bundle, self._place.base, self._place.folder
        check_machine(self._place.code, {bundle_folder: bundle_folder.name, base: base.name, out / STATE: out.name})
        bundle = load_bundle(bundle_folder)
        if bundle.manifest.bundle_id != self._place.bundle_id:
            name = self._place.bundle.name
            raise BundleError(f"A machine of the Ray cluster has another bundle as {name}. Copy the one there that is here.")
        place = self._place
        predictor = Predictor(bundle, threads=1)
        self._scorer = Scorer(predictor, place.base, place.folder, heatmaps=place.heatmaps, objects=place.objects)

    def score(self, claims: list[Claim]) -> list[ScoredClaim]:
        """Score studies in the order of their claims; call `ready` first."""
        assert self._scorer is not None  # noqa: S101 - for mypy
        return list(self._scorer.outcomes(claims))


_CPUS = 0.5
"""Of each actor, one for every CPU of the cluster: the other half is left to its worker process, and to Ray."""

_MOST_STARTS = 3
"""How often in a row an actor is started whose process ends before it is ready."""

_START_SECONDS = 120.0
_NO_CPU = "The Ray cluster does not start a process of octray. Check that it has a free CPU, and octray installed."


@dataclass(frozen=True, slots=True, eq=False)
class Hand:
    """One actor.

    Parameters
    ----------
    actor
        Its handle.
    node
        The node to start it on; Ray uses another one if that is gone.
    times
        How often in a row one was started there, this one included.
    """

    actor: Any
    node: str
    times: int


class Crew:
    """Actors, one for every CPU of the cluster that this process is connected to.

    Ray does not restart them: what is given to an actor while it restarts fails as if the actor had died of it.

    Parameters
    ----------
    place
        What the actors need to know.

    Attributes
    ----------
    idle
        Those that are ready and have nothing to do; one that is taken must be put back or replaced.
    """

    def __init__(self, place: ActorSettings) -> None:
        self.idle: deque[Hand] = deque()
        self._starting: dict[Any, Hand] = {}
        self._why: OctrayError = InputError(_NO_CPU)
        self._remote: Any = ray.remote(num_cpus=_CPUS, max_restarts=0)(Actor)
        self._place = place
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            for _ in range(int(node["Resources"].get("CPU", 0)) if node["Alive"] else 0):
                self._start(node["NodeID"])

    def wait(self, running: Collection[Any]) -> list[Any]:
        """Wait until an actor is ready, which is then idle, or one of the references can be fetched; return those that can.

        Parameters
        ----------
        running
            References to what actors were given to do.

        Raises
        ------
        OctrayError
            If nothing is running, and no actor is ready or becomes ready within two minutes.
        """
        waiting = [*self._starting, *running]
        timeout = None if running else _START_SECONDS
        ready = ray.wait(waiting, num_returns=1, timeout=timeout)[0] if waiting else []
        if not ready:
            raise self._why
        for reference in self._starting.keys() & set(ready):
            self._welcome(reference)
        return [reference for reference in ready if reference in running]

    def replace(self, hand: Hand) -> None:
        """Start another actor for one that has died, or of which nothing is known."""
        ray.kill(hand.actor)
        self._start(hand.node)

    def _start(self, node: str, times: int = 1) -> None:
        strategy = NodeAffinitySchedulingStrategy(node, soft=True)
        actor = self._remote.options(scheduling_strategy=strategy).remote(self._place)
        self._starting[actor.ready.remote()] = Hand(actor, node, times)

    def _welcome(self, reference: Any) -> None:
        """Take an actor that is ready; start another only if it died without an error."""
        hand = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayTaskError as error:
            self._why = error.cause if isinstance(error.cause, OctrayError) else InputError(FAILED)
        except RayError as error:
            if getattr(error, "actor_init_failed", False):
                self._why = InputError(FAILED)
            elif hand.times < _MOST_STARTS:
                self._start(hand.node, hand.times + 1)
            else:
                self._why = InputError(ENDED if is_guarded() else UNGUARDED)
        else:
            self.idle.append(hand)
            return
        ray.kill(hand.actor)


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
        On entering it, if this process has no token for the cluster or cannot reach it.
    """

    def __init__(self, address: str, place: ActorSettings) -> None:
        self._address = address
        self._place = place
        self._open = ExitStack()

    def __enter__(self) -> "Cluster":
        with ExitStack() as stack:
            stack.enter_context(connected(self._address))
            self._crew = Crew(self._place)
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    def outcomes(self, claims: Iterable[Claim]) -> Iterator[ScoredClaim]:
        """Have studies scored by whatever actor is idle, in chunks; those of an actor that died are tried again one by one.

        Raises
        ------
        OctrayError
            If no actor can score, and the cluster asks for no token, has no free CPU, or lacks what an actor needs; or if an
            actor raises it.
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


def _fetched(reference: Any) -> list[ScoredClaim] | None:
    """Return the results of a chunk, None if the actor died or the chunk was lost; raise what the actor raised."""
    try:
        return list(ray.get(reference))
    except RayTaskError as error:
        raise error.cause from None  # its own text is the traceback over there
    except RayError:
        return None
