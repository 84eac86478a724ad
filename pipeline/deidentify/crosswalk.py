"""The crosswalk: which file became which, sealed line by line so that only the holder of the key can read it."""

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, InvalidToken

from pipeline.deidentify.secret import Secret
from pipeline.errors import InputError

Entry = Mapping[str, Any]


def crosswalk_path(key: Path) -> Path:
    """Return where the crosswalk of a key lies: beside it, never with the files that are handed on."""
    return key.with_name(f"{key.name}.crosswalk")


def read(path: Path, secret: Secret) -> Iterator[Entry]:
    """Yield every entry, in the order in which they were written; a last line that a killed run left unfinished is left out.

    Raises
    ------
    InputError
        Where the key is not the one with which it was written, or the crosswalk was altered.
    """
    if not path.is_file():
        return
    cipher = Fernet(secret.crosswalk_key())
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(cipher.decrypt(line.strip()))
            except InvalidToken:
                raise InputError(
                    f"{path.name} cannot be opened with this key, or it was altered. Name the right key."
                ) from None


class Writer:
    """Adds entries to a crosswalk, each of them written before the next; what is `known` is not added again.

    Raises
    ------
    InputError
        Where another writes to it.
    """

    def __init__(self, path: Path, secret: Secret, known: Iterable[Entry]) -> None:
        self._cipher = Fernet(secret.crosswalk_key())
        self._file = path.open("ab")
        path.chmod(0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _cut_unfinished(path)
            self._known = {_digest(entry) for entry in known}
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise InputError(f"Another octray uses the key of {path.name}. Wait until it is done.") from None
            raise

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._file.close()

    def add(self, entry: Entry) -> None:
        """Seal one entry and append it."""
        digest = _digest(entry)
        if digest not in self._known:
            self._known.add(digest)
            self._file.write(self._cipher.encrypt(json.dumps(entry).encode()) + b"\n")
            self._file.flush()


def _digest(entry: Entry) -> bytes:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).digest()


def _cut_unfinished(path: Path) -> None:
    """Remove a last line that a killed run left unfinished."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
