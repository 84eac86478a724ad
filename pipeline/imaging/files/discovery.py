"""Finds study files: those of a folder of any depth, the members of zip archives, and what a DICOMDIR names."""

import io
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path, PurePosixPath

from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.uid import MediaStorageDirectoryStorage

from pipeline.errors import InputError, Reason, UnreadableError
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.files.archives import find_members, is_archive
from pipeline.imaging.files.names import as_name, as_text, harmless, leftover
from pipeline.imaging.files.study_file import FileStamp, Refusal, StudyFile, read_bytes, read_head
from pipeline.imaging.guard import silence_decoders, unreadable
from pipeline.settings import Limits, Reading, worker_limits

MOST_DICOMDIR_BYTES = 2**27
"""A larger DICOMDIR is not read; the record of one file takes about half a kilobyte."""
_MISSING = Refusal(Reason.MISSING, "The DICOMDIR names this file, but it is not there. Copy the disc or the folder again.")
_NAMES_NOTHING = Refusal(Reason.NO_PIXELS, "The DICOMDIR names no file. Give the folder that it lies in instead.")
_OUTSIDE = Refusal(
    Reason.UNSAFE_PATH, "The DICOMDIR names a file outside of its folder, which is not read. Copy the file there."
)

_DIRECTORY_CLASS = b"\x02\x00\x02\x00UI\x14\x00" + MediaStorageDirectoryStorage.encode()
"""Media Storage SOP Class UID of a directory with its tag and its length: other UIDs may begin with the same characters."""
_VERSION = re.compile(r"\.?(;[0-9]+)?$")

_FileId = tuple[str, ...]
"""Referenced File ID (0004,1500): the folders and the name of a file, below the folder of its DICOMDIR."""


def _is_named_dicomdir(name: str) -> bool:
    """Return whether a file of this name is a DICOMDIR (PS3.10 8.6), as discs spell it."""
    return _as_key((name,)) == ("DICOMDIR",)


def _is_dicomdir(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a DICOMDIR, by its Media Storage SOP Class UID (0002,0002)."""
    return head[128:132] == b"DICM" and _DIRECTORY_CLASS in head


def _referenced_files(content: bytes) -> Iterator[_FileId]:
    """Yield the files that the records in use of a DICOMDIR name, in the order of the records, each once.

    Raises
    ------
    UnreadableError
        If it is damaged.
    """
    silence_decoders()
    with unreadable("The DICOMDIR is damaged and cannot be read. Give the folder that it lies in instead."):
        dataset = dcmread(io.BytesIO(content))
        sequence = dataset.get_item("DirectoryRecordSequence")
        if isinstance(sequence, RawDataElement) and len(sequence.value or b"") < sequence.length:
            raise UnreadableError(Reason.TRUNCATED, "The DICOMDIR is cut off. Give the folder that it lies in instead.")
        used = (record for record in dataset.DirectoryRecordSequence if record.get("RecordInUseFlag", 0xFFFF) != 0)
        named = [record.ReferencedFileID for record in used if record.get("ReferencedFileID")]
        file_ids = dict.fromkeys((one,) if isinstance(one, str) else tuple(map(str, one)) for one in named)
    yield from file_ids


def _as_key(parts: Iterable[str]) -> _FileId:
    """Return one form for all spellings of a path: capitals, no version (`;1`), no empty extension (ISO 9660)."""
    return tuple(_VERSION.sub("", part.upper()) for part in parts)


def _is_inside(file_id: _FileId) -> bool:
    """Return whether a File ID stays below its folder."""
    return all(part not in ("", ".", "..") and not set(part) & set("/\\:\0") for part in file_id)


def _find_files(folder: Path, file_ids: Iterable[_FileId]) -> Iterator[tuple[_FileId, Path | None]]:
    """Find files below a folder by their File IDs; None if there is none. Each folder is listed once."""
    listed: dict[Path, dict[_FileId, str]] = {}
    for file_id in file_ids:
        path: Path | None = folder
        for part in file_id:
            path = _entry(path, part, listed) if path is not None and _is_inside(file_id) else None
        yield file_id, path


def _entry(folder: Path, part: str, listed: dict[Path, dict[_FileId, str]]) -> Path | None:
    if folder not in listed:
        try:
            listed[folder] = {_as_key((as_text(path.name),)): path.name for path in folder.iterdir()}
        except OSError:
            listed[folder] = {}
    name = listed[folder].get(_as_key((part,)))
    return None if name is None else folder / name


_HEAD = 512
_DICOMDIR_SECONDS = 30.0
_LINK_OUT = Refusal(
    Reason.UNSAFE_PATH, "The link leads out of the given folder and is not followed. Copy the files into the folder."
)


def discover(
    root: Path | str, is_known: Callable[[StudyFile], bool] | None = None, skipped: Counter[str] | None = None
) -> Iterator[StudyFile]:
    """Find the files to read, sorted by `source`: those of a folder of any depth, and the members of every zip archive in it.

    `root` may also be one file, an archive, or a DICOMDIR, which stands for the files that it names. Hidden files and folders
    and leftovers of operating systems and network drives are skipped; a DICOMDIR in a folder does not count as a file. What
    cannot or may not be read (a folder that may not be listed, a link that leads out, a missing file that a DICOMDIR names, a
    damaged archive) is found as a file, so that reading it gives the reason.

    Parameters
    ----------
    root
        A folder or a file.
    is_known
        Returns whether a file was seen before, is not an archive and has not changed, so that it is not opened here; by default
        every file is opened.
    skipped
        Counts the leftovers of systems that were skipped, by what they are; a folder counts once.

    Raises
    ------
    InputError
        If there is nothing at `root`, or it may not be opened.
    """
    root = Path(root)
    try:
        if root.is_file():
            return iter(sorted(_given(root, skipped), key=attrgetter("source")))
        if not root.is_dir():
            raise InputError(f"There is no file or folder {as_text(root.name)}. Check the path.")
        os.scandir(root).close()
    except OSError as error:
        raise InputError(f"{as_text(root.name)} cannot be opened: {error.strerror}. Check its permissions.") from None
    skipped = Counter() if skipped is None else skipped
    found = [
        one for file in _walk(root, skipped) for one in ((file,) if is_known and is_known(file) else _expanded(file, skipped))
    ]
    return iter(sorted(_without_dicomdirs(found), key=attrgetter("source")))


def discover_all(
    sources: Iterable[Path],
    leave_out: Iterable[Path] = (),
    is_known: Callable[[int, StudyFile], bool] | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[tuple[int, StudyFile]]:
    """Find the files of several sources, each file once, even if two sources or two links lead to it.

    Parameters
    ----------
    sources
        Files or folders.
    leave_out
        Files that are not studies, such as octray's own.
    is_known
        As in `discover`, given the position of the source and the file.
    skipped
        As in `discover`.

    Yields
    ------
    tuple
        The position of the source, and a file as `discover` finds it.

    Raises
    ------
    InputError
        As `discover`.
    """
    real_folder = lru_cache(maxsize=None)(os.path.realpath)  # so that a file costs one system call
    seen: set[tuple[str, tuple[int, ...]]] = {(os.path.realpath(path), ()) for path in leave_out}
    for position, source in enumerate(sources):
        for file in discover(source, partial(is_known, position) if is_known else None, skipped):
            path = file.path
            real = os.path.realpath(path) if path.is_symlink() else os.path.join(real_folder(path.parent), path.name)  # noqa: PTH118
            place = real, tuple(member.offset for member in file.inside)
            if file.refusal or place not in seen:
                seen.add(place)
                yield position, file


def _given(path: Path, skipped: Counter[str] | None) -> Iterator[StudyFile]:
    file = StudyFile(path, as_text(path.name))
    if not _is_dicomdir(_peek(file)):
        return _without_dicomdirs(list(_expanded(file, skipped)))
    return _named(file)


def _named(file: StudyFile) -> Iterator[StudyFile]:
    """Return the files that a DICOMDIR names."""
    folder = file.path.parent
    try:
        file_ids = _file_ids(file)
    except UnreadableError as error:
        yield StudyFile(file.path, file.source, refusal=Refusal.of(error))
        return
    if not file_ids:
        yield StudyFile(file.path, file.source, refusal=_NAMES_NOTHING)
    for file_id, path in _find_files(folder, file_ids):
        if path is not None and (one := _reached(folder, path)) is not None:
            yield one
        else:
            yield _absent(file, file_id)


def _file_ids(file: StudyFile) -> tuple[_FileId, ...]:
    """Parse a DICOMDIR in a worker process, so that a damaged one cannot end the program before any file is found."""
    content = read_bytes(file, Reading(Limits(file_bytes=MOST_DICOMDIR_BYTES)))
    with file_workers(1, replace(worker_limits(), frame_seconds=_DICOMDIR_SECONDS)) as pool:
        return tuple(pool.run(_referenced_files, content))


def _absent(directory: StudyFile, file_id: _FileId) -> StudyFile:
    below = PurePosixPath(directory.source).parent.parts
    refusal = _MISSING if _is_inside(file_id) else _OUTSIDE
    return StudyFile(directory.path, "/".join([*below, harmless(file_id).lstrip("/")]), directory.inside, refusal)


def _without_dicomdirs(files: list[StudyFile]) -> Iterator[StudyFile]:
    """Leave the DICOMDIRs out, and add the missing files that they name.

    A file that is a DICOMDIR only by its name is read as any other.
    """
    named = (file for file in files if _is_named_dicomdir(file.source.rpartition("/")[2]))
    directories = [file for file in named if _is_dicomdir(_peek(file))]
    there = {_as_key(file.source.split("/")) for file in files} if directories else set()
    left_out = {id(file) for file in directories}
    yield from (file for file in files if id(file) not in left_out)
    for directory in directories:
        below = _as_key(directory.source.split("/")[:-1])
        try:
            file_ids = _file_ids(directory)
        except UnreadableError:
            continue
        yield from (_absent(directory, one) for one in file_ids if (*below, *_as_key(one)) not in there)


def _expanded(file: StudyFile, skipped: Counter[str] | None) -> Iterable[StudyFile]:
    return find_members(file, skipped) if is_archive(_peek(file)) else (file,)


def _peek(file: StudyFile) -> bytes:
    """Return the start of a file; nothing if it cannot be read: reading it as a whole gives the reason."""
    try:
        return read_head(file, _HEAD)
    except UnreadableError:
        return b""


def _walk(root: Path, skipped: Counter[str]) -> Iterator[StudyFile]:
    inside = os.path.realpath(root)
    unlisted: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=unlisted.append):
        left_behind = {name: kind for name in (*names, *folders) if (kind := leftover(name))}
        skipped.update(left_behind.values())
        names = [name for name in names if name not in left_behind]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_behind]
        for name in (*names, *folders):
            if not name.startswith(".") and (file := _looked_at(root, Path(folder, name), inside)) is not None:
                yield file
    yield from (_below(root, Path(error.filename)) for error in unlisted)


def _below(root: Path, path: Path, refusal: Refusal | None = None) -> StudyFile:
    return StudyFile(path, as_text(path.relative_to(root).as_posix()), refusal=refusal)


def _looked_at(root: Path, path: Path, inside: str) -> StudyFile | None:
    """Return a file, also one that cannot be looked at, or a link that leads out, with its refusal; None for other things."""
    try:
        if path.is_symlink() and _leads_out(path, inside):
            return _below(root, path, _LINK_OUT)
        return _below(root, path) if stat.S_ISREG(path.stat().st_mode) else None
    except OSError:
        return _below(root, path)


def _leads_out(path: Path, inside: str) -> bool:
    return not Path(os.path.realpath(path)).is_relative_to(inside)


def _reached(root: Path, path: Path) -> StudyFile | None:
    """Return the file at a path that was not walked to, so that any of its folders may be a link."""
    inside = os.path.realpath(root)
    return _below(root, path, _LINK_OUT) if _leads_out(path, inside) else _looked_at(root, path, inside)


def locate(root: Path, source: str) -> StudyFile:
    """Return the file or the member that `discover` found below `root` as `source`; reading it fails if it is gone.

    The members of the last archives are cached, so that locating all of them lists each archive once.
    """
    folder = root.parent if root.is_file() else root
    parts = source.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return StudyFile(folder, source, refusal=_LINK_OUT)
    path = folder
    for part in parts:
        name = as_name(part)
        path = path / name if name is not None else path
        if name is None or os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises if a folder may not be entered
            break
    if name is None or not os.path.lexists(path):
        return _gone(path, source)
    file = _reached(folder, path) or _below(folder, path)
    if file.source == source and not is_archive(_peek(file)):
        return file
    return _members(file, file.stat()).get(source) or _gone(path, source)


def _gone(path: Path, source: str) -> StudyFile:
    return StudyFile(path, source, refusal=Refusal(Reason.MISSING, "The file is not there any more. Copy it back."))


@lru_cache(maxsize=4)
def _members(file: StudyFile, stamp: FileStamp) -> dict[str, StudyFile]:
    return {one.source: one for one in find_members(file)}
