"""A file, or a member of a zip archive, that may hold frames: its path, whether it may be read, and its bytes."""

import io
import os
import time
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.guard import unreadable
from pipeline.settings import DEFAULT_READING, Reading

MOST_NESTED = 2**28
"""Bytes of an archive that lies deflated in another, and is therefore held in memory."""
DAMAGED = "The zip archive is damaged: it cannot be unpacked. Copy it again."

_LOCAL_HEADER, _SIGNATURE = 30, b"PK\x03\x04"
_HEAD = 2**14
_FRESH_NS = 2_000_000_000

FileStamp = tuple[int, int, int]
"""Size in bytes, time of the last change in ns, and a mark: if they are the same, so is the file."""


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
        """Return the refusal that an error stands for."""
        return Refusal(error.reason, str(error))


@dataclass(frozen=True, slots=True)
class ArchiveMember:
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
        Path of the file; for a member, of the archive.
    source
        The same below what was given to read, with forward slashes; as `as_text` gives it.
    inside
        The way to a member: each but the last is an archive that lies deflated in the one before; empty for a file.
    refusal
        Why it is not read; None if it may be.
    """

    path: Path
    source: str
    inside: tuple[ArchiveMember, ...] = ()
    refusal: Refusal | None = None

    def stat(self) -> FileStamp:
        """Return size in bytes, time of the last change in ns, and a mark that tells files apart.

        For a member they are its own size and the archive's time. The mark combines the time of the last change of the inode
        with the inode's number and, for a member, the size of the archive, the member's position in it and its CRC-32: it tells
        apart two files of one size that were written at once and change places.

        Raises
        ------
        UnreadableError
            If the file cannot be looked at.
        """
        try:
            found = self.path.stat()
        except OSError as error:
            raise not_opened(error) from None
        identity = zlib.crc32(repr((found.st_ino, found.st_size, self.inside)).encode())
        size = self.inside[-1].size if self.inside else found.st_size
        return size, found.st_mtime_ns, found.st_ctime_ns ^ identity


def file_stamp(file: StudyFile) -> FileStamp | None:
    """Return the stamp of a file; None if it cannot be looked at, or may not be read."""
    try:
        return file.stat() if file.refusal is None else None
    except UnreadableError:
        return None


def lasting_stamp(stamp: FileStamp | None) -> FileStamp | None:
    """Return a stamp, or None if the file was just written: it may change once more and keep its stamp."""
    return stamp if stamp and abs(time.time_ns() - stamp[1]) > _FRESH_NS else None


def not_opened(error: OSError) -> UnreadableError:
    """Return the error that says why a file could not be opened or read, without its path."""
    if isinstance(error, FileNotFoundError):
        return UnreadableError(Reason.MISSING, "The file does not exist any more, or is a link to nowhere. Copy the file back.")
    if isinstance(error, PermissionError):
        return UnreadableError(Reason.NOT_OPENED, f"The file could not be opened: {error.strerror}. Check its permissions.")
    return UnreadableError(
        Reason.NOT_OPENED, f"The file could not be read: {error.strerror}. Check its disk or network, and try again."
    )


def read_bytes(file: StudyFile, reading: Reading = DEFAULT_READING) -> bytes:
    """Read the whole content of a file or of a member of an archive.

    Raises
    ------
    UnreadableError
        If it may not be read, cannot be opened, is damaged, or is larger than the limits allow.
    """
    _check_refusal(file)
    most = reading.limits.file_bytes
    if file.inside:
        _check_size(file.inside[-1].size, most)
        with _open_container(file) as stream:
            return _whole(stream, file.inside[-1])
    try:
        with file.path.open("rb") as stream:
            _check_size(stream.seek(0, os.SEEK_END), most)
            stream.seek(0)
            return stream.read()
    except OSError as error:
        raise not_opened(error) from None


def read_head(file: StudyFile, count: int) -> bytes:
    """Read up to `count` bytes from the start of a file or of a member of an archive.

    Raises
    ------
    UnreadableError
        If it may not be read or cannot be opened.
    """
    _check_refusal(file)
    if file.inside:
        with _open_container(file) as stream:
            return unpack(stream, file.inside[-1], count)
    try:
        with file.path.open("rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise not_opened(error) from None


def _check_refusal(file: StudyFile) -> None:
    if file.refusal is not None:
        raise UnreadableError(file.refusal.reason, file.refusal.message)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise UnreadableError(Reason.RESOURCE_LIMIT, f"The file is larger than {most} bytes. Split it, or leave it out.")


def _open_container(file: StudyFile) -> IO[bytes]:
    """Open what holds the last member: the file, or the deflated archive in it."""
    try:
        if len(file.inside) > 1:
            found = file.path.stat()
            return io.BytesIO(_outer(file.path, file.inside[:-1], found.st_size, found.st_mtime_ns))
        return file.path.open("rb")
    except OSError as error:
        raise not_opened(error) from None


@lru_cache(maxsize=1)
def _outer(path: Path, inside: tuple[ArchiveMember, ...], size: int, mtime_ns: int) -> bytes:
    """Return the content of an archive within an archive; the last is cached, as its members are read one after another."""
    outer = StudyFile(path, "", inside)
    with _open_container(outer) as stream:
        return inflated(stream, inside[-1])


def inflated(stream: IO[bytes], member: ArchiveMember) -> bytes:
    """Return the content of an archive that lies deflated in another.

    Raises
    ------
    UnreadableError
        If it is too large to be held in memory, or damaged.
    """
    if member.size > MOST_NESTED:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT,
            f"The zip archive lies in another and has more than {MOST_NESTED // 2**20} MiB. Unpack the outer one first.",
        )
    return _whole(stream, member)


def data_start(stream: IO[bytes], member: ArchiveMember) -> int:
    """Return the position at which the packed data of a member begin, behind its local header.

    Raises
    ------
    UnreadableError
        If there is no such header.
    """
    with unreadable(DAMAGED):
        stream.seek(member.offset)
        header = stream.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or not header.startswith(_SIGNATURE):
        raise UnreadableError(Reason.DECODE_FAILED, DAMAGED)
    return member.offset + _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def unpack(stream: IO[bytes], member: ArchiveMember, count: int) -> bytes:
    """Return the first `count` bytes of a member, or fewer if its packed data end before.

    Raises
    ------
    UnreadableError
        If they cannot be inflated.
    """
    with unreadable(DAMAGED):
        stream.seek(data_start(stream, member))
        if member.method == zipfile.ZIP_STORED:
            return stream.read(min(count, member.packed))
        inflating, content, left = zlib.decompressobj(-zlib.MAX_WBITS), b"", member.packed
        while len(content) < count and left and (packed := stream.read(left if count > _HEAD else min(left, _HEAD))):
            content += inflating.decompress(packed, count - len(content))
            left -= len(packed)
        return content


def _whole(stream: IO[bytes], member: ArchiveMember) -> bytes:
    content = unpack(stream, member, member.size + 1)
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise UnreadableError(
            Reason.DECODE_FAILED, "The member of the zip archive is damaged: its checksum is wrong. Copy the archive again."
        )
    return content
