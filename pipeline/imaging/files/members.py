"""Reads members of zip archives into memory, by their place in the archive; nothing is unpacked to the disk."""

import io
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.files.study_file import Member, StudyFile, not_opened
from pipeline.imaging.guard import translated
from pipeline.settings import Limits

MOST_NESTED = 2**28
"""Bytes of an archive that lies deflated in another, and is therefore held in memory."""
DAMAGED = "The zip archive is damaged: it cannot be unpacked. Copy it again."

_LOCAL_HEADER, _SIGNATURE = 30, b"PK\x03\x04"
_HEAD = 2**14


def inflated(stream: IO[bytes], member: Member) -> bytes:
    """Return the content of an archive that lies deflated in another.

    Raises
    ------
    UnreadableError
        Where it is too large to be held in memory, or damaged.
    """
    if member.size > MOST_NESTED:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT,
            f"The zip archive lies in another and has more than {MOST_NESTED // 2**20} MiB. Unpack the outer one first.",
        )
    return _whole(stream, member)


def read_member(file: StudyFile, limits: Limits) -> bytes:
    """Read a member of an archive.

    Raises
    ------
    UnreadableError
        Where it is larger than the limits allow, damaged, or the archive is gone.
    """
    if file.inside[-1].size > limits.file_bytes:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT, f"The file is larger than {limits.file_bytes} bytes. Split it, or leave it out."
        )
    with _holding(file) as stream:
        return _whole(stream, file.inside[-1])


def read_member_head(file: StudyFile, count: int) -> bytes:
    """Read up to `count` bytes from the start of a member of an archive.

    Raises
    ------
    UnreadableError
        Where it cannot be found any more.
    """
    with _holding(file) as stream:
        return unpack(stream, file.inside[-1], count)


def _holding(file: StudyFile) -> IO[bytes]:
    """Open what holds the last member: the file, or the deflated archive in it."""
    try:
        if len(file.inside) > 1:
            found = file.path.stat()
            return io.BytesIO(_outer(file.path, file.inside[:-1], found.st_size, found.st_mtime_ns))
        return file.path.open("rb")
    except OSError as error:
        raise not_opened(error) from None


@lru_cache(maxsize=1)
def _outer(path: Path, inside: tuple[Member, ...], size: int, mtime_ns: int) -> bytes:
    """Return the content of an archive within an archive; the last is kept, as its members are read one after another."""
    outer = StudyFile(path, "", inside)
    with _holding(outer) as stream:
        return inflated(stream, inside[-1])


def data_start(stream: IO[bytes], member: Member) -> int:
    """Return where the packed data of a member begin, behind its local header.

    Raises
    ------
    UnreadableError
        Where there is no such header.
    """
    with translated(DAMAGED):
        stream.seek(member.offset)
        header = stream.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or not header.startswith(_SIGNATURE):
        raise UnreadableError(Reason.DECODE_FAILED, DAMAGED)
    return member.offset + _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def unpack(stream: IO[bytes], member: Member, count: int) -> bytes:
    """Return the first `count` bytes of a member, or fewer where its packed data end before.

    Raises
    ------
    UnreadableError
        Where they cannot be inflated.
    """
    with translated(DAMAGED):
        stream.seek(data_start(stream, member))
        if member.method == zipfile.ZIP_STORED:
            return stream.read(min(count, member.packed))
        inflating, content, left = zlib.decompressobj(-zlib.MAX_WBITS), b"", member.packed
        while len(content) < count and left and (packed := stream.read(left if count > _HEAD else min(left, _HEAD))):
            content += inflating.decompress(packed, count - len(content))
            left -= len(packed)
        return content


def _whole(stream: IO[bytes], member: Member) -> bytes:
    content = unpack(stream, member, member.size + 1)
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise UnreadableError(
            Reason.DECODE_FAILED, "The member of the zip archive is damaged: its checksum is wrong. Copy the archive again."
        )
    return content
