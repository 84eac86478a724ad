"""The command that serves a bundle, shared by `octray serve` and `python -m services.api`."""

import argparse
import copy
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from services.api.options import Settings

if TYPE_CHECKING:
    from pipeline.model.bundle import Bundle

HELP = "serve a bundle over HTTP"
EXAMPLE = "octray serve --bundle bundle/ --port 8000"
_GRACE_SECONDS = 20
_DEFAULTS = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--bundle", type=Path, required=True, help="folder that `octray train --out` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=_DEFAULTS.threads,
        help="threads for the network; 0: one per available core (default: %(default)s)",
    )
    parser.add_argument(
        "--concurrency", type=int, default=_DEFAULTS.concurrency, help="studies scored at once (default: %(default)s)"
    )
    parser.add_argument(
        "--max-body-mib",
        type=int,
        default=_DEFAULTS.max_body_bytes // 2**20,
        help="largest request in MiB (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from pipeline.model.bundle import load_bundle

    _check(args)

    def announce(address: str) -> None:
        sys.stderr.write(f"octray: serving {args.bundle.name} at {address}; Ctrl+C ends it.\n")

    serve(
        load_bundle(args.bundle),
        host=args.host,
        port=args.port,
        threads=args.threads,
        concurrency=args.concurrency,
        max_body_bytes=args.max_body_mib * 2**20,
        listening=announce,
    )
    return 0


def serve(
    bundle: "Bundle",
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int = _DEFAULTS.threads,
    concurrency: int = _DEFAULTS.concurrency,
    max_body_bytes: int = _DEFAULTS.max_body_bytes,
    listening: Callable[[str], object] | None = None,
) -> None:
    """Serve a bundle over HTTP until interrupted.

    Parameters
    ----------
    bundle
        As `load_bundle` gives it.
    host, port
        Address to listen on; port 0 takes a free one.
    threads, concurrency, max_body_bytes
        How many cores the network uses (0: each that may be used), how many studies are scored at once, and how large a request
        may be.
    listening
        Called with the address as soon as the service listens there.

    Raises
    ------
    InputError
        If the port is in use, or the address is not one of this machine.
    """
    import uvicorn

    from services.api.app import create_app

    settings = Settings(threads=threads, concurrency=concurrency, max_body_bytes=max_body_bytes)
    with listen(host, port) as listener:
        name, number = listener.getsockname()[:2]
        if listening:
            listening(f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}")
        config = uvicorn.Config(
            create_app(bundle, settings),
            log_config=_logging(),
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to `host` and `port`.

    Raises
    ------
    InputError
        If the port is in use, or the address is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"The port must be between 0 and 65535. Got {port} instead.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise InputError(
            f"Cannot listen on {host} port {port}: {error.strerror or error}. Give another with --port or --host."
        ) from None
    return listener


def _check(args: argparse.Namespace) -> None:
    for name, least in (("threads", 0), ("concurrency", 1), ("max_body_mib", 1)):
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            raise InputError(f"--{option} must be at least {least}. Got {getattr(args, name)} instead.")


def _logging() -> dict[str, object]:
    """Return uvicorn's own logging, all of it on standard error."""
    from uvicorn.config import LOGGING_CONFIG

    logging = copy.deepcopy(LOGGING_CONFIG)
    logging["handlers"]["access"]["stream"] = "ext://sys.stderr"
    return logging
