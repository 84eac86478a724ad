"""The command that serves a bundle, shared by `octray serve` and `python -m services.api`."""

import argparse
import copy
import signal
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
_BACKLOG = 2048
_DEFAULTS = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--bundle", type=Path, required=True, help="folder that `octray train --out` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--concurrency",
        type=int,
        default=_DEFAULTS.concurrency,
        help="studies scored at once, each on one core; 0: one for each core (default: %(default)s)",
    )
    parser.add_argument(
        "--max-body-mib",
        type=int,
        default=_DEFAULTS.max_body_bytes // 2**20,
        help="largest request in MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--max-upload-mib",
        type=int,
        default=_DEFAULTS.max_upload_bytes // 2**20,
        help="disk that all open requests may use, in MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--upload-folder",
        default=_DEFAULTS.upload_folder,
        help="where the folder for uploads is made (default: the system's temporary folder)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM, or until interrupted."""
    from pipeline.model.bundle import load_bundle

    _check(args)

    def announce(address: str) -> None:
        sys.stderr.write(f"octray: serving {args.bundle.name} at {address}; Ctrl+C ends it.\n")

    serve(
        load_bundle(args.bundle),
        host=args.host,
        port=args.port,
        concurrency=args.concurrency,
        max_body_bytes=args.max_body_mib * 2**20,
        max_upload_bytes=args.max_upload_mib * 2**20,
        upload_folder=args.upload_folder,
        listening=announce,
    )
    return 0


def serve(
    bundle: "Bundle",
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    concurrency: int = _DEFAULTS.concurrency,
    max_body_bytes: int = _DEFAULTS.max_body_bytes,
    max_upload_bytes: int = _DEFAULTS.max_upload_bytes,
    upload_folder: str = _DEFAULTS.upload_folder,
    listening: Callable[[str], object] | None = None,
) -> None:
    """Serve a bundle over HTTP until SIGTERM or Ctrl+C; studies that are being scored then are finished.

    Parameters
    ----------
    bundle
        As `load_bundle` gives it.
    host, port
        Address to listen on; port 0 takes a free one.
    concurrency
        How many studies are scored at once, each on one core; 0 takes one for each core.
    max_body_bytes, max_upload_bytes
        How large a request may be, and how much of the disk all open ones may use.
    upload_folder
        Where the folder for uploads is made; empty takes the system's temporary folder.
    listening
        Called with the address as soon as the service listens there.

    Raises
    ------
    InputError
        If the port is in use, the address is not one of this machine, or there is no place for uploads.
    KeyboardInterrupt
        After Ctrl+C, once everything is finished.
    """
    from services.api.app import create_app
    from services.api.server import Server

    settings = Settings(
        concurrency=concurrency, max_body_bytes=max_body_bytes, max_upload_bytes=max_upload_bytes, upload_folder=upload_folder
    )
    with listen(host, port) as listener:
        server = Server(create_app(bundle, settings), settings, _logging())
        name, number = listener.getsockname()[:2]
        if listening:
            listening(f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}")
        server.run(sockets=[listener])
    if server.ended_by is signal.SIGINT:
        raise KeyboardInterrupt


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
    from services.api.server import Listener

    listener = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio leaves small packets waiting
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(
            f"Cannot listen on {host} port {port}: {error.strerror or error}. Give another with --port or --host."
        ) from None
    return listener


def _check(args: argparse.Namespace) -> None:
    for name, least in (("concurrency", 0), ("max_body_mib", 1), ("max_upload_mib", 1)):
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            raise InputError(f"--{option} must be at least {least}. Got {getattr(args, name)} instead.")


def _logging() -> dict[str, object]:
    """Return uvicorn's own logging, all of it on standard error."""
    from uvicorn.config import LOGGING_CONFIG

    logging = copy.deepcopy(LOGGING_CONFIG)
    logging["handlers"]["access"]["stream"] = "ext://sys.stderr"
    return logging
