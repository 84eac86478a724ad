"""Finds the members of zip archives, nested ones too, and refuses those that could do harm."""

import io
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, cast

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.files.names import harmless, leftover
from pipeline.imaging.files.study_file import (
    DAMAGED,
    ArchiveMember,
    Refusal,
    StudyFile,
    data_start,
    inflated,
    not_opened,
    unpack,
)
from pipeline.imaging.guard import unreadable

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_HEAD = 132
"""Bytes from the start of a file that are enough to tell an archive."""
MOST_MEMBERS = 2**18
"""Members of an archive and of all archives within it."""
MOST_UNPACKED = 2**38
"""Bytes of all these members once they are inflated."""
MOST_DEPTH = 3
"""Archives within each other."""
MOST_DIRECTORY = 2**25
"""Bytes of the central directory of an archive."""
MOST_RATIO, RATIO_FROM = 250, 2**24
"""How many times its packed size a member may have if it inflates to this many bytes; radiographs seldom reach 5."""

_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_END_RECORD = 22
"""Bytes of the end of central directory record without its comment, the length of which ends it (APPNOTE 4.3.16)."""
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_DRIVE = re.compile(r"[A-Za-z]:")
_DOCUMENTS = {"[Content_Types].xml", "mimetype", "META-INF/MANIFEST.MF"}
_OUTSIDE = Refusal(
    Reason.UNSAFE_PATH, "The member of the zip archive has a path that leads out of the archive. Pack the folder again."
)
_LINK = Refusal(
    Reason.UNSAFE_PATH, "The member of the zip archive is a link, which is not followed. Pack the file itself instead."
)
_LOCKED = Refusal(
    Reason.UNSUPPORTED_ENCODING, "The member of the zip archive is encrypted. Unpack the archive with its password first."
)
_BOMB = Refusal(
    Reason.RESOURCE_LIMIT,
    f"The member of the zip archive inflates to more than {MOST_RATIO} times its packed size. Unpack the archive first.",
)


@dataclass(slots=True)
class _Spent:
    """How much of the limits an archive, with all archives within it, has used up, and what was skipped in it."""

    members: int = 0
    unpacked: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


class _Archive(io.RawIOBase):
    """An archive that is being listed, as a stream of its own: the `size` bytes of a file from `start` on.

    It refuses to read more at once than a directory may have.
    """

    def __init__(self, stream: IO[bytes], start: int, size: int, file: StudyFile, depth: int) -> None:
        self.stream, self.start, self.size, self.file, self.depth = stream, start, size, file, depth
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if at < 0:
            raise OSError("before the start")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def read(self, count: int = -1) -> bytes:
        left = max(self.size - self._at, 0)
        count = left if count < 0 else min(count, left)
        if count > MOST_DIRECTORY:
            raise UnreadableError(Reason.RESOURCE_LIMIT, "The zip archive has too many members. Unpack it first.")
        self.stream.seek(self.start + self._at)
        self._at += count
        return self.stream.read(count)


def is_archive(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a zip archive.

    A DICOM file is not one, even if its preamble, which applications may use as they like (PS3.10 7.1), begins like one. An
    archive is not DICOM, even if a long name of its first member, which begins at byte 30, has the letters DICM at byte 128.
    """
    in_a_name = 30 + int.from_bytes(head[26:28], "little") >= _HEAD
    return head.startswith(ZIP) and (head[128:132] != b"DICM" or in_a_name)


def find_members(file: StudyFile, skipped: Counter[str] | None = None) -> Iterator[StudyFile]:
    """Find the members of a zip archive; `source` of each is the archive's, a slash and the member's path.

    Members that may not be read (a path that leads out, a link, an encrypted member, a bomb, two members of one name) and
    damaged archives are found with a refusal. Folders, hidden files and leftovers of systems are skipped. A document that is a
    zip archive only by its format (an office file, a Java archive) is found as one file.
    """
    try:
        with file.path.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            yield from _list(_Archive(stream, 0, size, file, 1), _Spent(skipped=Counter() if skipped is None else skipped))
    except OSError as error:
        yield replace(file, refusal=Refusal.of(not_opened(error)))


def _list(archive: _Archive, spent: _Spent) -> Iterator[StudyFile]:
    try:
        infos = _directory(archive, spent)
        _check(archive, infos, spent)
    except UnreadableError as error:
        yield replace(archive.file, refusal=Refusal.of(error))
        return
    if _DOCUMENTS.intersection(info.filename for info in infos):
        yield archive.file
        return
    by_source: dict[str, list[zipfile.ZipInfo]] = {}
    for info in infos:
        by_source.setdefault(f"{archive.file.source}/{_path(info.filename)}", []).append(info)
    for source, named in by_source.items():
        yield from _found(archive, source, named, spent)


def _directory(archive: _Archive, spent: _Spent) -> list[zipfile.ZipInfo]:
    """Return the members that may be files of a study."""
    if archive.depth > MOST_DEPTH:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT, f"The zip archive lies in more than {MOST_DEPTH - 1} others. Unpack the outer ones first."
        )
    with unreadable(DAMAGED):
        with zipfile.ZipFile(cast(IO[bytes], archive)) as opened:
            every = opened.infolist()
        _check_end(archive)
    files = [info for info in every if not info.filename.endswith(("/", "\\"))]
    left_behind = {info.filename: path for info in files if (path := _leftover_path(info.filename))}
    spent.skipped.update(leftover(path[-1]) for path in set(left_behind.values()))
    found = [info for info in files if info.filename not in left_behind and not _is_hidden(info.filename)]
    if not every:
        raise UnreadableError(Reason.NOT_AN_IMAGE, "The zip archive is empty.")
    return found


def _check_end(archive: _Archive) -> None:
    """Check that the end record that `ZipFile` found, the last one, is at the end, followed by its comment and zeros at most.

    If it is not, the archive is cut off, and the record belongs to an archive within it.
    """
    archive.seek(max(0, archive.size - _END_RECORD - 2**16))
    tail = archive.read()
    start = tail.rfind(ZIP[1])
    end = start + _END_RECORD + int.from_bytes(tail[start + _END_RECORD - 2 : start + _END_RECORD], "little")
    if end > len(tail) or tail[end:].strip(b"\0"):
        raise UnreadableError(Reason.DECODE_FAILED, DAMAGED)


def _check(archive: _Archive, infos: Sequence[zipfile.ZipInfo], spent: _Spent) -> None:
    if sum(info.compress_size for info in infos) > archive.size:
        raise UnreadableError(Reason.INCONSISTENT, "The members of the zip archive overlap. Pack the folder again.")
    spent.members += len(infos)
    spent.unpacked += sum(info.file_size for info in infos)
    if spent.members > MOST_MEMBERS or spent.unpacked > MOST_UNPACKED:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT,
            f"The zip archive holds more than {MOST_MEMBERS} files or {MOST_UNPACKED // 2**30} GiB. Unpack it first.",
        )


def _parts(name: str) -> list[str]:
    """Return the parts of a member's path; some programs of Windows write backslashes."""
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in _parts(name))


def _leftover_path(name: str) -> tuple[str, ...]:
    """Return the path of the leftover of a system that a member is, or lies in; empty if it is none."""
    parts = _parts(name)
    return next((tuple(parts[: number + 1]) for number, part in enumerate(parts) if leftover(part)), ())


def _path(name: str) -> str:
    if not _DRIVE.match(name):
        return harmless(_parts(name))
    return "/".join((rf"{name[0]}\x3a", *filter(None, (harmless(_parts(name[2:])),))))


def _found(archive: _Archive, source: str, named: Sequence[zipfile.ZipInfo], spent: _Spent) -> Iterator[StudyFile]:
    info = named[0]
    file, refusal = archive.file, _refusal(info)
    if len(named) > 1:
        refusal = Refusal(Reason.INCONSISTENT, f"The zip archive has {len(named)} members of this name. Pack the folder again.")
    start = archive.start + info.header_offset
    member = ArchiveMember(start, info.compress_size, info.file_size, info.CRC, info.compress_type)
    found = StudyFile(file.path, source, (*file.inside, member), refusal)
    if refusal is not None:
        yield found
        return
    try:
        nested = is_archive(unpack(archive.stream, member, _HEAD))
    except UnreadableError:
        nested = False
    yield from _nested(archive, found, spent) if nested else (found,)


def _refusal(info: zipfile.ZipInfo) -> Refusal | None:
    name = info.orig_filename
    if _DRIVE.match(name) or name.startswith(("/", "\\")) or ".." in _parts(name):
        return _OUTSIDE
    if stat.S_ISLNK(info.external_attr >> 16):
        return _LINK
    if info.flag_bits & _ENCRYPTED:
        return _LOCKED
    if info.compress_type not in (_STORED, _DEFLATED):
        return Refusal(
            Reason.UNSUPPORTED_ENCODING,
            f"The member of the zip archive is packed by method {info.compress_type}, which octray does not unpack. "
            "Pack the folder again, with Deflate.",
        )
    bomb = info.file_size > RATIO_FROM and info.file_size > MOST_RATIO * info.compress_size
    return _BOMB if bomb else None


def _nested(archive: _Archive, found: StudyFile, spent: _Spent) -> Iterator[StudyFile]:
    """List an archive within an archive: in place if it is stored as it is, in memory if it is deflated."""
    member = found.inside[-1]
    try:
        if member.method == _STORED:
            start, size = data_start(archive.stream, member), member.size
            inner = _Archive(
                archive.stream, start, size, StudyFile(found.path, found.source, archive.file.inside), archive.depth + 1
            )
        else:
            content = inflated(archive.stream, member)
            inner = _Archive(io.BytesIO(content), 0, len(content), found, archive.depth + 1)
    except UnreadableError as error:
        yield replace(found, refusal=Refusal.of(error))
        return
    for one in _list(inner, spent):
        # An archive that is refused, or is a document, is read as the member that it is.
        yield StudyFile(one.path, one.source, found.inside, one.refusal) if one.source == found.source else one
