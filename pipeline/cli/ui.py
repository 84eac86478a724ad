"""`octray ui`: MLflow's own pages for the recorded runs."""

import argparse
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

HELP = "open MLflow's own pages for the recorded runs"
EXAMPLE = "octray ui --store sqlite:///mlruns/mlflow.db --port 5000"
_DEFAULT_STORE = "sqlite:///mlruns/mlflow.db"
_HOST = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--store", metavar="URI", help=f"where the runs are stored (default: MLFLOW_TRACKING_URI, else {_DEFAULT_STORE})"
    )
    parser.add_argument("--port", type=int, default=5000, help="port on this machine (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run MLflow's server, reachable from this machine only, until interrupted."""
    from pipeline.errors import InputError
    from services.api.command import listen

    store = args.store or os.environ.get("MLFLOW_TRACKING_URI") or _DEFAULT_STORE
    _check(store)
    listen(_HOST, args.port).close()
    sys.stderr.write(f"octray: MLflow opens at http://{_HOST}:{args.port}; Ctrl+C ends it.\n")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--host", _HOST, "--port", str(args.port)]
    if code := _run([*command, "--workers", "1"]):
        raise InputError(f"MLflow ended with exit code {code}; what it wrote above says why.")
    return 0


def _run(command: list[str]) -> int:
    """Run a command that starts processes of its own; all of them end with this one."""
    with subprocess.Popen(command, process_group=0) as process:  # noqa: S603 - the program is this Python
        try:
            return process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _check(store: str) -> None:
    """Raise InputError if there is nothing to show, before MLflow would create an empty store."""
    from pipeline.errors import InputError

    scheme, separator, rest = store.partition("://")
    if separator and scheme in ("http", "https"):
        raise InputError("The store is a running MLflow server: open its address in a browser instead.")
    path = rest.removeprefix("/") if scheme == "sqlite" else (rest if scheme == "file" else store)
    if (not separator or scheme in ("sqlite", "file")) and not Path(path).exists():
        raise InputError(
            f"There is no MLflow store {Path(path).name} yet. Run `octray train` first, or say where it is with --store."
        )
