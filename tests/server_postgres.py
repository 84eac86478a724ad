"""A PostgreSQL server of the tests' own: started in a temporary folder, on loopback, and ended with the tests."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_SECONDS = 60


def find_programs() -> Path | None:
    """Return the folder of `initdb` and `postgres`; Debian does not put it on the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("initdb"):
        places.append(Path(found).resolve().parent)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a server, and give the address of its database."""
    programs = find_programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="octray-postgres-"))
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses root
        as_user = {"user": "postgres", "group": "postgres", "extra_groups": ()}
        shutil.chown(folder, "postgres", "postgres")
    port = free_port()
    initdb = [programs / "initdb", "--auth=trust", "--username=octray", "--encoding=UTF8", "-D", folder / "data"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **as_user)
    command = [programs / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **as_user)
    try:
        _await(port)
        yield f"postgresql://octray@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # ends connections that are still open; SIGTERM would wait for them
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _await(port: int) -> None:
    import pg8000.exceptions
    import pg8000.native

    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            pg8000.native.Connection("octray", host="127.0.0.1", port=port, database="postgres").close()
            return
        except (pg8000.exceptions.InterfaceError, pg8000.exceptions.DatabaseError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Address of a PostgreSQL database; tests that need it are skipped where there is no server."""
    if find_programs() is None:
        pytest.skip("PostgreSQL is not here: install Debian's package postgresql")
    with running_postgres() as url:
        yield url
