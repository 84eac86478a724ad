"""The secret key, what is derived from it, and the encrypted crosswalk from original to new files that only it opens."""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, InvalidToken

from pipeline.errors import InputError

_KEY_BYTES = 32
_LONGEST_OFFSET = 3650

# The key


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret key of 32 bytes; the same key gives the same results in every file and every run.

    Every result is the HMAC-SHA256 (RFC 2104) of what it replaces and of the purpose. Without the key, nobody can compute one
    from the other, and results for different purposes tell nothing about each other.
    """

    key: bytes = field(repr=False)

    def uid(self, original: str) -> str:
        """Return the UID that replaces another, in the arc for UUIDs (PS3.5 B.2)."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', original)[:16], version=5).int}"

    def pseudonym(self, patient: str) -> str:
        """Return the pseudonym of a patient: P and 15 hexadecimal digits in capitals."""
        return f"P{self._digest('patient', patient).hex()[:15].upper()}"

    def alias(self, place: str) -> str:
        """Return what a refused file is called outside the crosswalk: F and 15 hexadecimal digits in capitals."""
        return f"F{self._digest('file', place).hex()[:15].upper()}"

    def file_key(self, place: str) -> str:
        """Return 32 hexadecimal digits by which another run recognises a file."""
        return self._digest("mark", place).hex()[:32]

    def offset_days(self, patient: str) -> int:
        """Return the number of days by which a patient's dates are moved: to the past, from -1 to -3650."""
        return -1 - int.from_bytes(self._digest("dates", patient)[:8], "big") % _LONGEST_OFFSET

    def crosswalk_key(self) -> bytes:
        """Return the key of the crosswalk's cipher, in the form that Fernet takes."""
        return urlsafe_b64encode(self._digest("crosswalk", ""))

    def _digest(self, purpose: str, text: str) -> bytes:
        return hmac.new(self.key, f"octray {purpose}\0{text}".encode("utf-8", "surrogatepass"), hashlib.sha256).digest()


def default_key_path() -> Path:
    """Return the key's default path: `octray/deidentify.key` in the user's configuration folder."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "octray" / "deidentify.key"


def make_or_read_key(path: Path) -> Secret:
    """Read the key file; make one that only its owner can read, if there is none.

    Raises
    ------
    InputError
        As `read_key`.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secrets.token_hex(_KEY_BYTES)}\n")
    return read_key(path)


def read_key(path: Path) -> Secret:
    """Read the key file.

    Raises
    ------
    InputError
        If there is none, others can read it, or it does not hold 32 bytes in hexadecimal digits.
    """
    if not path.is_file():
        raise InputError(f"There is no key {path.name}. Name the key file with which the files were de-identified.")
    if path.stat().st_mode & 0o077:
        raise InputError(f"Other users can read the key {path.name}. Make it private: chmod 600.")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise InputError(f"{path.name} is not a key: a key file holds 64 hexadecimal digits. Name another file, or a new one.")
    return Secret(key)


# The crosswalk

Entry = Mapping[str, Any]


def crosswalk_path(key: Path) -> Path:
    """Return the path of a key's crosswalk: beside the key, never with the files that are handed on."""
    return key.with_name(f"{key.name}.crosswalk")


def read_crosswalk(path: Path, secret: Secret) -> Iterator[Entry]:
    """Yield the entries in the order in which they were written; a last line that a killed run left unfinished is skipped.

    Raises
    ------
    InputError
        If the crosswalk was written with another key, or was altered.
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
                raise InputError(f"{path.name} belongs to another key, or it was altered. Name the right key.") from None


def show_crosswalk(key: Path | str | None = None) -> Iterator[Entry]:
    """Yield which file became which, or why it was refused, to whoever has the key; the entries name patients.

    Parameters
    ----------
    key
        The key file; None: the default of the user.

    Raises
    ------
    InputError
        As `read_key` and `read_crosswalk`.
    """
    path = Path(key) if key else default_key_path()
    yield from read_crosswalk(crosswalk_path(path), read_key(path))


class Crosswalk:
    """Appends encrypted entries to a crosswalk; entries that are in `known` are not added again.

    Raises
    ------
    InputError
        If another process writes to it.
    """

    def __init__(self, path: Path, secret: Secret, known: Iterable[Entry]) -> None:
        self._cipher = Fernet(secret.crosswalk_key())
        self._file = path.open("ab")
        path.chmod(0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _cut_unfinished_line(path)
            self._known = {_digest(entry) for entry in known}
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise InputError(f"Another octray uses the key of {path.name}. Wait until it has finished.") from None
            raise

    def __enter__(self) -> "Crosswalk":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def add(self, entry: Entry) -> None:
        """Encrypt an entry and append it."""
        digest = _digest(entry)
        if digest not in self._known:
            self._known.add(digest)
            self._file.write(self._cipher.encrypt(json.dumps(entry).encode()) + b"\n")
            self._file.flush()


def _digest(entry: Entry) -> bytes:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).digest()


def _cut_unfinished_line(path: Path) -> None:
    """Remove a last line that a killed run left unfinished."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
