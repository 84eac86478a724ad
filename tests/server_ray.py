"""A Ray cluster of the tests' own: nodes of one CPU each on loopback, with a token, ended with the tests."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.server_postgres import free_port

_SECONDS = 120
_STORE = str(2**27)


@dataclass(frozen=True)
class RayCluster:
    """Where it is, and what a program needs in its environment to be let in."""

    address: str
    environment: Mapping[str, str]


@contextmanager
def running_ray(nodes: int, pinned: bool = False, guarded: bool = True) -> Iterator[RayCluster]:
    """Run a cluster of so many nodes, each held to a core of its own where they are pinned; it asks for a token if guarded."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "RAY_AUTH_MODE": "token" if guarded else "disabled",
        "RAY_AUTH_TOKEN": os.urandom(16).hex(),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    head = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false", f"--temp-dir={folder}"]
    try:
        with ExitStack() as stack:
            for number in range(nodes):
                pin = ["taskset", "--cpu-list", str(number)] if pinned else []
                arguments = head if number == 0 else [f"--address={address}"]
                stack.enter_context(_node(pin, arguments, environment))
                _await(address, number + 1, environment)
            yield RayCluster(address, environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def another_node(cluster: RayCluster, count: int) -> Iterator[int]:
    """Let one more node join, with which there are so many; yield its process, that `end_node` may end."""
    with _node([], [f"--address={cluster.address}"], cluster.environment) as process:
        _await(cluster.address, count, cluster.environment)
        yield process.pid


def end_node(number: int) -> None:
    """Kill all processes of a node at once, as if its machine had lost its power."""
    os.kill(number, signal.SIGSTOP)
    for child in _children(number):
        end_node(child)
    os.kill(number, signal.SIGKILL)


def _children(number: int) -> list[int]:
    text = " ".join(path.read_text() for path in Path(f"/proc/{number}/task").glob("*/children"))
    return [int(child) for child in text.split()]


@contextmanager
def _node(pin: list[str], arguments: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    common = ["--num-cpus=1", "--block", "--node-ip-address=127.0.0.1", f"--object-store-memory={_STORE}"]
    command = [*pin, sys.executable, "-m", "ray.scripts.scripts", "start", *common, *arguments]
    with subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # with --block it ends all processes of its node


_COUNT = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)
print(sum(node["Alive"] for node in ray.nodes()))
"""


def _await(address: str, nodes: int, environment: Mapping[str, str]) -> None:
    deadline = time.monotonic() + _SECONDS
    command = [sys.executable, "-c", _COUNT, address]
    while True:
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == str(nodes):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(done.stderr[-2000:])
        time.sleep(0.5)
