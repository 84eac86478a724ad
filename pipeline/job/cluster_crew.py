"""The actors of one job on a Ray cluster: starts them, replaces those that die, and drops those that cannot score."""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import InputError, OctrayError
from pipeline.job.cluster_actor import UNGUARDED, Actor, Place, asks_for_token

_CPUS = 0.5
"""Of each actor, one for every CPU of the cluster: the other half is left to its worker process, and to Ray."""

_MOST_STARTS = 3
"""How often in a row an actor is started whose process ends before it is ready."""

_START_SECONDS = 120.0
_ASK_SECONDS = 30.0
_NO_CPU = "The Ray cluster starts no process of octray. Check that it has a free CPU, and octray installed."
_ENDED = "The processes of octray end on the Ray cluster before they are ready. Check that its machines have enough memory."
_FAILED = "octray cannot be started on a machine of the Ray cluster. Install octray[cluster] there, the same as here."


@dataclass(frozen=True, slots=True, eq=False)
class Hand:
    """One actor.

    Parameters
    ----------
    actor
        Its handle.
    node
        Where it was to be started; Ray takes another one where that is gone.
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
        Those that are ready and have nothing to do; whoever takes one puts it back, or has it replaced.
    """

    def __init__(self, place: Place) -> None:
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
            Where nothing is running, and no actor is ready, or gets ready within two minutes.
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
        """Take an actor that is ready, or learn why it is not: only one that died without a word is worth another try."""
        hand = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayTaskError as error:
            self._why = error.cause if isinstance(error.cause, OctrayError) else InputError(_FAILED)
        except RayError as error:
            if getattr(error, "actor_init_failed", False):
                self._why = InputError(_FAILED)
            elif hand.times < _MOST_STARTS:
                self._start(hand.node, hand.times + 1)
            else:
                self._why = InputError(_ENDED if _is_guarded() else UNGUARDED)
        else:
            self.idle.append(hand)
            return
        ray.kill(hand.actor)


def _is_guarded() -> bool:
    """Say whether the cluster asks for a token, as far as it answers; where it does not, Ray lets no actor live."""
    answer = ray.remote(num_cpus=0, max_retries=0)(asks_for_token).remote()
    try:
        return bool(ray.get(answer, timeout=_ASK_SECONDS))
    except RayError:
        return True
