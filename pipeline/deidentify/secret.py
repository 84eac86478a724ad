"""The secret key, and what is derived from it: new UIDs, pseudonyms, offsets of dates, the key of the crosswalk."""

import hashlib
import hmac
import os
import secrets
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import InputError

_BYTES = 32
_LONGEST_OFFSET = 3650


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret key of 32 bytes; the same key gives the same results in every file and every run.

    Every result is HMAC-SHA256 (RFC 2104) of what it replaces and of the purpose, so that nobody without the key can compute
    one from the other, and results for different purposes say nothing of each other.
    """

    key: bytes = field(repr=False)

    def uid(self, original: str) -> str:
        """Return the UID that replaces one, in the arc for UUIDs (PS3.5 B.2)."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', original)[:16], version=5).int}"

    def pseudonym(self, patient: str) -> str:
        """Return what replaces a patient's name and identifier: P and 15 capital hexadecimal digits."""
        return f"P{self._digest('patient', patient).hex()[:15].upper()}"

    def alias(self, place: str) -> str:
        """Return what a file is called that was not written: F and 15 capital hexadecimal digits, found in the crosswalk."""
        return f"F{self._digest('file', place).hex()[:15].upper()}"

    def mark(self, place: str) -> str:
        """Return 32 hexadecimal digits by which a file is known again in another run."""
        return self._digest("mark", place).hex()[:32]

    def offset_days(self, patient: str) -> int:
        """Return by how many days the dates of a patient are moved: 1 to 3650 days to the past, so always negative."""
        return -1 - int.from_bytes(self._digest("dates", patient)[:8], "big") % _LONGEST_OFFSET

    def crosswalk_key(self) -> bytes:
        """Return the key of the crosswalk's cipher in the form that Fernet takes."""
        return urlsafe_b64encode(self._digest("crosswalk", ""))

    def _digest(self, purpose: str, text: str) -> bytes:
        return hmac.new(self.key, f"octray {purpose}\0{text}".encode("utf-8", "surrogatepass"), hashlib.sha256).digest()


def default_key_path() -> Path:
    """Return where the key lies when no place is named: `octray/deidentify.key` in the user's folder of settings."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "octray" / "deidentify.key"


def make_or_read(path: Path) -> Secret:
    """Read the key file; make one, for its owner only, where there is none.

    Raises
    ------
    InputError
        As `read`.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secrets.token_hex(_BYTES)}\n")
    return read(path)


def read(path: Path) -> Secret:
    """Read the key file.

    Raises
    ------
    InputError
        Where there is none, others may read it, or it holds no key of 32 bytes in hexadecimal digits.
    """
    if not path.is_file():
        raise InputError(f"There is no key {path.name}. Name the key file with which the files were de-identified.")
    if path.stat().st_mode & 0o077:
        raise InputError(f"Others may read the key {path.name}. Make it yours alone: chmod 600.")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        key = b""
    if len(key) != _BYTES:
        raise InputError(f"{path.name} holds no key: 64 hexadecimal digits were expected. Name another file, or a new one.")
    return Secret(key)
