"""Writes files that exist whole or not at all: under a temporary name beside the real one, renamed when they are complete."""

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path; when the block ends, the file there replaces `path`, and after an error it is deleted.

    Several processes may write the same path at a time: the last one wins. A killed process leaves a file
    `.NAME.XXXXXXXX.part`, which `remove_leftovers` deletes.

    Parameters
    ----------
    path
        The file, in a folder that exists.
    durable
        Whether the file must survive a power failure once the block has ended: it is synced before it is renamed, and the
        folder afterwards.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_text(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file for writing that replaces `path` when the block ends without an error.

    Line ends are written as given. Bytes of a file name that are not UTF-8 (surrogates) are written as `\\udcXX`.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        yield file


def write_bytes(path: Path, content: bytes, durable: bool = False) -> None:
    """Write a whole file, in a folder that is made if it does not exist; see `replacing`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable) as temporary:
        temporary.write_bytes(content)


def remove_leftovers(path: Path) -> None:
    """Delete what killed processes left of `path`; for the one process that may write it."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
        leftover.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
