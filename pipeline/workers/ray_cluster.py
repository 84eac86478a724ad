"""A Ray cluster: the way to it, what its machines must have, and processes on it that run functions of octray.

The cluster must ask for a token, and its machines must have the same software and folders as this one.
"""

import itertools
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import InputError, OctrayError, TrainingError
from pipeline.plugins import load_plugins
from pipeline.version import software_versions
from pipeline.workers.cores import CORES, usable_cores

UNGUARDED = (
    "The Ray cluster must ask for a token, since whoever reaches it can run programs on it. Start it and octray with "
    "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN set."
)
FAILED = "octray cannot be started on a machine of the Ray cluster. Install octray[cluster] there, the same as here."
_GONE = (
    "The Ray cluster does not answer any more. What was finished is kept: start the cluster, and then the same command again "
    "(octray train with --resume)."
)
_MEMORY = "Check that its machines have enough memory."
ENDED = f"The processes of octray end on the Ray cluster before they are ready. {_MEMORY}"
MOST_LOST = 3
"""How often in a row processes may be lost before they have trained an epoch, or the trial that they began."""
_START_SECONDS, _END_SECONDS, _ASK_SECONDS = 120.0, 30.0, 30.0
_LOOK_SECONDS, _MOST_LOOKS = 2.0, 3
"""How long to wait between looks at the cluster, and how many of them in a row it may leave unanswered; Ray itself ends this
process if its cluster is away for a minute."""


class LostProcessError(Exception):
    """A process on the cluster ended without an error of its own, as it does if it is killed or its machine fails."""


# The way to a cluster


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect this process to a cluster; what Ray prints goes to standard error, since standard output is for results.

    Parameters
    ----------
    address
        Of the cluster, as in `ray.init`.

    Raises
    ------
    InputError
        If this process has no token for the cluster or cannot reach it.
    """
    if not asks_for_token():
        raise InputError(UNGUARDED)
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints deaths of processes
        stack.callback(ray.shutdown)
        _connect(address)
        yield


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


# What its machines must have


def asks_for_token() -> bool:
    """Say whether this process asks whoever connects for a token; the processes of a node do all or none."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def is_guarded() -> bool:
    """Return whether the cluster asks for a token; true if it does not answer, since Ray then keeps no actor alive."""
    answer = ray.remote(num_cpus=0, max_retries=0)(asks_for_token).remote()
    try:
        return bool(ray.get(answer, timeout=_ASK_SECONDS))
    except RayError:
        return True


def check_machine(code: Mapping[str, str], places: Mapping[Path, str]) -> None:
    """Check the machine that this process runs on; for processes on the cluster.

    Parameters
    ----------
    code
        The versions on the machine that runs octray, as `software_versions` gives them.
    places
        Files that must be there, and folders that must be there and not be empty, as they are if nothing is mounted; and how a
        message calls the folder.

    Raises
    ------
    InputError
        If the cluster asks for no token, or this machine lacks something or has another version.
    """
    if not asks_for_token():
        raise InputError(UNGUARDED)
    there = software_versions()
    if others := ", ".join(sorted(name for name in code.keys() | there.keys() if code.get(name) != there.get(name))):
        raise InputError(f"A machine of the Ray cluster has another version of {others}. Install the same there as here.")
    for place, name in places.items():
        try:
            is_there = place.is_file() or any(place.iterdir())
        except OSError:
            is_there = False
        if not is_there:
            raise InputError(
                f"A machine of the Ray cluster does not see the folder {name}, or sees it empty. Share it with all machines, "
                "under the same path."
            )


# Processes on it


class Process:
    """One process on the cluster, on a CPU or a GPU of its own."""

    def ready(
        self, code: Mapping[str, str], places: Mapping[Path, str], folder: Path, plugins: Sequence[str] = ()
    ) -> "Machine":
        """Check the machine, go to the folder in which octray was started, load plug-ins, and say where this process runs."""
        check_machine(code, places)
        try:
            os.chdir(folder)
        except OSError:
            raise InputError(
                f"A machine of the Ray cluster does not see the folder {folder.name}, in which octray was started. Start it in "
                "a folder that all machines see under the same path."
            ) from None
        load_plugins(plugins)
        with socket.socket() as listener:
            listener.bind(("", 0))
            address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            return Machine(address, int(listener.getsockname()[1]), usable_cores())

    def run(self, environment: Mapping[str, str], function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function of octray."""
        os.environ.update(environment)
        return function(*arguments)


class Machine(NamedTuple):
    """Where a process runs: the address of its machine, a port that is free there, and the cores that octray may use there."""

    address: str
    port: int
    cores: int


class Call:
    """A call of a function in one of the processes, which `Processes.begin` makes."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
        self.function, self.arguments = function, arguments
        self.process: int | None = None
        self.reference: Any = None
        self.error: Exception | None = None
        self.losses = 0


class Processes:
    """Processes on the cluster that this process is connected to; they end with the block.

    Parameters
    ----------
    count
        How many there are.
    gpus
        Each gets a GPU of its own, if the cluster has any.
    sources
        Files and folders that every machine must see.
    out
        What they write; the folder around it must be the same on every machine.
    plugins
        Modules that they load before they run anything.

    Raises
    ------
    OctrayError
        On entering it, if the cluster is not protected, has too few free CPUs or GPUs, a machine lacks something, or processes
        end again and again before they are ready.
    """

    def __init__(self, count: int, *, gpus: bool, sources: Sequence[Path], out: Path, plugins: Sequence[str] = ()) -> None:
        self._count, self._gpus, self._plugins = count, gpus, plugins
        self._sources = {place.absolute(): place.name for place in sources}
        self._out = out.absolute()
        self._numbers = itertools.count()
        self._ready: dict[int, tuple[Any, Machine]] = {}
        self._calls: list[Call] = []
        self._head = ray.get_runtime_context().gcs_address

    def __enter__(self) -> "Processes":
        self._look()
        resources: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = int(self._gpus and resources.get("GPU", 0) >= 1)
        self._remote: Any = ray.remote(max_restarts=0, num_cpus=1, num_gpus=gpus)(Process)
        self._start(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._kill([actor for actor, _ in self._ready.values()])

    # A call in all of them

    def run_together(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run a function in all processes, which find each other as those that `torchrun` starts do.

        Raises
        ------
        LostProcessError
            If a process, or its machine, died.
        Exception
            What the function raised.
        InputError
            If the cluster does not answer any more.
        """
        given = [ray.put(argument) for argument in arguments]
        actors = [actor for actor, _ in self._ready.values()]
        references = [actor.run.remote(self._environment(rank), function, *given) for rank, actor in enumerate(actors)]
        waiting = references
        while waiting:
            done = self._wait(waiting)
            if any(map(_error, done)):  # one that was lost explains what the others then say
                ended, _ = ray.wait(references, num_returns=len(references), timeout=_END_SECONDS)
                errors = [error for reference in references if reference in ended and (error := _error(reference))]
                raise next((error for error in errors if isinstance(error, LostProcessError)), errors[0])
            waiting = [reference for reference in waiting if reference not in done]

    def _environment(self, rank: int) -> dict[str, str]:
        """Return what `torchrun` would tell a process; Ray shows each process its own GPU as number 0."""
        told = {CORES: os.environ[CORES]} if CORES in os.environ else {}
        if self._count == 1:
            return told
        machines = [machine for _, machine in self._ready.values()]
        return told | {
            "TORCHELASTIC_RUN_ID": "octray",
            "RANK": str(rank),
            "WORLD_SIZE": str(self._count),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": str(sum(machine.address == machines[rank].address for machine in machines)),
            "MASTER_ADDR": machines[0].address,
            "MASTER_PORT": str(machines[0].port),
        }

    # Calls side by side

    def share(self, value: object) -> object:
        """Return a reference to something large, which calls can be given in its place."""
        return ray.put(value)

    def begin(self, function: Callable[..., Any], *arguments: Any) -> Call:
        """Call a function in one process, as soon as one is idle."""
        call = Call(function, arguments)
        self._calls.append(call)
        self._assign()
        return call

    def result(self, call: Call) -> Any:
        """Wait for what a call returns; if a process is lost, a new one makes its call again.

        Raises
        ------
        TrainingError
            If this call lost its process three times.
        InputError
            If the cluster does not answer any more, or no process is left and none can be started.
        Exception
            What the function raised.
        """
        while call in self._calls:
            done = self._wait([one.reference for one in self._calls if one.process is not None])
            for one in [one for one in self._calls if one.process is not None and one.reference in done]:
                one.error = _error(one.reference)
                if isinstance(one.error, LostProcessError):
                    one.losses += 1
                    self._replace(one.process)
                    if one.losses < MOST_LOST:
                        one.process = None
                        continue
                    one.error = TrainingError(f"Its process ended {MOST_LOST} times on the Ray cluster. {_MEMORY}")
                self._calls.remove(one)
            self._assign()
        if call.error:
            raise call.error
        return ray.get(call.reference)

    def _assign(self) -> None:
        """Give waiting calls to idle processes, each with its share of the cores of its machine."""
        machines = [machine.address for _, machine in self._ready.values()]
        for call in self._calls:
            idle = self._ready.keys() - {one.process for one in self._calls}
            if call.process is None and idle:
                call.process = min(idle)
                actor, machine = self._ready[call.process]
                cores = int(os.environ.get(CORES, machine.cores)) // machines.count(machine.address)
                call.reference = actor.run.remote({CORES: str(max(1, cores))}, call.function, *call.arguments)

    def _replace(self, number: int | None) -> None:
        """Start another process for one that was lost; if that fails, those that are left go on without it."""
        assert number is not None  # noqa: S101 - for mypy
        self._kill([self._ready.pop(number)[0]])
        try:
            self._start(1)
        except InputError:
            if not self._ready:
                raise

    # Their start and their end

    def _start(self, count: int) -> None:
        """Start processes, and wait until they are ready; if one is lost before, start them again."""
        for _ in range(MOST_LOST):
            actors = [self._remote.remote() for _ in range(count)]
            try:
                machines = self._checked(actors)
            except LostProcessError:
                self._kill(actors)
            except BaseException:
                self._kill(actors)
                raise
            else:
                self._ready |= {next(self._numbers): pair for pair in zip(actors, machines, strict=True)}
                return
        raise InputError(ENDED)

    def _checked(self, actors: list[Any]) -> list[Machine]:
        with NamedTemporaryFile(dir=self._out.parent, prefix=f".{self._out.name}-") as proof:
            places = self._sources | {Path(proof.name): self._out.parent.name}
            code, folder = dict(software_versions()), Path.cwd()
            asked = [actor.ready.remote(code, places, folder, self._plugins) for actor in actors]
            waiting, end = asked, time.monotonic() + _START_SECONDS
            while waiting:
                done = self._wait(waiting, end)
                if not done:
                    raise InputError(
                        f"The Ray cluster does not start {self._count} processes of octray. Check that so many CPUs are free, "
                        "or GPUs if it has any, and that octray is installed there."
                    )
                for error in filter(None, map(_error, done)):
                    if isinstance(error, LostProcessError):
                        raise error if is_guarded() else InputError(UNGUARDED)
                    raise error if isinstance(error, OctrayError) else InputError(FAILED)
                waiting = [reference for reference in waiting if reference not in done]
        return list(ray.get(asked))

    def _wait(self, references: list[Any], end: float = math.inf) -> list[Any]:
        """Return what has ended, as soon as there is something; nothing if the time is over."""
        while time.monotonic() < end:
            done, _ = ray.wait(references, num_returns=1, timeout=_LOOK_SECONDS)
            if done:
                return list(done)
            self._look()
        return []

    def _look(self) -> None:
        """Raise if the cluster does not answer."""
        for number in range(_MOST_LOOKS):
            time.sleep(_LOOK_SECONDS if number else 0)
            if self._answers():
                return
        raise InputError(_GONE)

    def _answers(self) -> bool:
        host, _, port = self._head.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK_SECONDS).close()
        except OSError:
            return False
        return True

    def _kill(self, actors: list[Any]) -> None:
        if self._answers():
            for actor in actors:
                ray.kill(actor)


def _error(reference: Any) -> Exception | None:
    """Return what a process raised, or that it was lost, or None if it came to its end."""
    try:
        ray.get(reference)
    except RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
    except RayError as error:
        return InputError(FAILED) if getattr(error, "actor_init_failed", False) else LostProcessError()
    return None
