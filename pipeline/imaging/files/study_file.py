"""What is known of a file before it is read: where it lies, on the disk or in archives, and whether it may be read at all."""

import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Reason, UnreadableError

_ESCAPE = re.compile(r"\\(?:(\\)|x([0-9a-f]{2})|u([0-9a-f]{4})|([nrt]))")
_LINES = {"n": "\n", "r": "\r", "t": "\t"}
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something that was found is not read.

    Parameters
    ----------
    reason
        The stable code.
    message
        A sentence for people.
    """

    reason: Reason
    message: str

    @staticmethod
    def of(error: UnreadableError) -> "Refusal":
        """Return what an error says."""
        return Refusal(error.reason, str(error))


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member lies in a zip archive (PKWARE APPNOTE 4.3.12), so that it is read without reading the directory again.

    Parameters
    ----------
    offset
        Position of its local header in the file, or in the outer member that had to be inflated.
    packed, size
        Bytes in the archive, and once they are inflated.
    crc
        CRC-32 of the inflated bytes.
    method
        0 for stored, 8 for deflated.
    """

    offset: int
    packed: int
    size: int
    crc: int
    method: int


@dataclass(frozen=True, slots=True)
class StudyFile:
    """A file, or a member of an archive, that may hold frames.

    Parameters
    ----------
    path
        Where it is; for a member, where the archive is.
    source
        The same below what was given to read, with forward slashes; as `as_text` gives it.
    inside
        The way to a member: each but the last is an archive that lies deflated in the one before; empty for a file.
    refusal
        Why it is not read; None where it may be.
    """

    path: Path
    source: str
    inside: tuple[Member, ...] = ()
    refusal: Refusal | None = None

    def stat(self) -> tuple[int, int, int]:
        """Return size in bytes, time of the last change in ns, and a mark, by which it is seen that a file is another.

        Of a member they are its own size and the archive's time. The mark is the time of the last change of the inode, in ns,
        into which is folded which inode that is and, of a member, how large the archive is, where in it the member lies and
        its CRC-32: two files of one size that were written at once and change places are told apart.

        Raises
        ------
        UnreadableError
            Where the file cannot be looked at.
        """
        try:
            found = self.path.stat()
        except OSError as error:
            raise not_opened(error) from None
        identity = zlib.crc32(repr((found.st_ino, found.st_size, self.inside)).encode())
        size = self.inside[-1].size if self.inside else found.st_size
        return size, found.st_mtime_ns, found.st_ctime_ns ^ identity

    def place(self) -> tuple[str, tuple[int, ...]]:
        """Return what is the same for two ways to one file or one member, links followed."""
        return os.path.realpath(self.path), tuple(member.offset for member in self.inside)


def not_opened(error: OSError) -> UnreadableError:
    """Return the error that says why a file could not be opened or read, without its path."""
    if isinstance(error, FileNotFoundError):
        return UnreadableError(Reason.MISSING, "There is no file any more, or a link that leads nowhere. Copy the file back.")
    if isinstance(error, PermissionError):
        return UnreadableError(Reason.NOT_OPENED, f"The file could not be opened: {error.strerror}. Check its permissions.")
    return UnreadableError(
        Reason.NOT_OPENED, f"The file could not be read: {error.strerror}. Check its disk or network, and try again."
    )


def as_text(name: str) -> str:
    """Return a name of the file system as text that any terminal, table or page may show; what is none is escaped.

    Escaped are bytes that are no UTF-8 (`\\xe9`), control characters, those that turn the direction of writing, by which
    `gpj.exe` looks like `exe.jpg` (`\\x1b`, `\\u202e`), and the backslash itself (`\\\\`), so that no two names give one text.
    """
    return visible(os.fsencode(name).replace(b"\\", rb"\\").decode("utf-8", "backslashreplace"))


def as_name(text: str) -> str | None:
    """Return the name of the file system that `as_text` gives as `text`; None where it gives no name so."""
    try:
        name = os.fsdecode(_ESCAPE.sub(_unescaped, text).encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return None
    return name if as_text(name) == text else None


def _unescaped(found: re.Match[str]) -> str:
    backslash, byte, character, line = found.groups()
    if byte:
        return bytes.fromhex(byte).decode("utf-8", "surrogateescape")
    return backslash or (chr(int(character, 16)) if character else _LINES[line])


def visible(text: str) -> str:
    """Escape control characters, marks of direction, and halves of surrogate pairs, much as Python would write them."""
    return _UNSEEN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    """Write a character; one from 0x80 on has four digits, since two are those of a byte that is no UTF-8."""
    code = ord(found[0])
    return found[0].encode("unicode_escape").decode("ascii") if code < 0x80 else f"\\u{code:04x}"


def harmless(parts: Iterable[str]) -> str:
    """Join parts that come from inside a file to a path that leads nowhere else when it is joined to another."""
    return "/".join(r"\x2e\x2e" if part == ".." else as_text(part) for part in parts)
