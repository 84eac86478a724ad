"""Finds study files below a folder, and turns files or bytes of any supported kind into `Frame`s; content decides the kind."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, Reason, UnreadableError
from pipeline.imaging.dicom import is_dicom, read_dicom
from pipeline.imaging.guard import silence_decoders
from pipeline.imaging.raster import JPEG, PNG, TIFF, read_picture, read_tiff
from pipeline.records import DEFAULT_READING, Frame, Reading

HEAD = 512
"""Bytes from the start of a file that are enough to tell its kind."""

Reader = Callable[[bytes, str, Reading], Iterator[Frame]]


@dataclass(frozen=True, slots=True)
class StudyFile:
    """A file that may hold frames.

    Parameters
    ----------
    path
        Where it is.
    source
        The same below what was given to read, with forward slashes; characters that are no text are escaped.
    """

    path: Path
    source: str


def discover(root: Path) -> Iterator[StudyFile]:
    """Find the files to read, sorted by `source`.

    Hidden files and folders, DICOMDIR, linked folders, and links to files outside `root` are left out. What cannot be looked
    at, a folder that may not be listed for one, is found as a file, so that reading it says why nothing of it was read.

    Raises
    ------
    InputError
        Where there is nothing at `root`, or it may not be opened.
    """
    try:
        if root.is_file():
            return iter((StudyFile(root, _text(root.name)),))
        if not root.is_dir():
            raise InputError(f"There is no file or folder {_text(root.name)}. Check the path.")
        os.scandir(root).close()
    except OSError as error:
        raise InputError(f"{_text(root.name)} cannot be opened: {error.strerror}. Check its permissions.") from None
    return iter(sorted(_walk(root), key=lambda file: file.source))


def _walk(root: Path) -> Iterator[StudyFile]:
    inside = os.path.realpath(root)
    unlisted: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=unlisted.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            hidden = name.startswith(".") or name.upper() == "DICOMDIR"
            if not hidden and _may_be_file(path, inside):
                yield _below(root, path)
    yield from (_below(root, Path(error.filename)) for error in unlisted)


def _below(root: Path, path: Path) -> StudyFile:
    return StudyFile(path, _text(path.relative_to(root).as_posix()))


def _may_be_file(path: Path, inside: str) -> bool:
    """Say whether there is a file that does not lie outside, or something that cannot be looked at."""
    try:
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
            return False
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_frames(file: StudyFile, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read the frames of one file, in its order; the file is read once.

    Raises
    ------
    UnreadableError
        Where it cannot be opened, is no image, or is damaged. Frames before a damaged one have been yielded by then.
    """
    try:
        with file.path.open("rb") as stream:
            reader = _reader(stream.read(HEAD))
            if stream.seek(0, os.SEEK_END) > reading.limits.file_bytes:
                raise UnreadableError(
                    Reason.RESOURCE_LIMIT,
                    f"The file is larger than {reading.limits.file_bytes} bytes. Split it, or leave it out.",
                )
            stream.seek(0)
            content = stream.read()
    except OSError as error:
        raise UnreadableError(Reason.DECODE_FAILED, f"The file could not be opened: {error.strerror}.") from None
    silence_decoders()
    yield from reader(content, file.source, reading)


def read_frames_from_bytes(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read the frames of a file that is in memory already.

    Raises
    ------
    UnreadableError
        As `read_frames`.
    """
    reader = _reader(content[:HEAD])
    silence_decoders()
    yield from reader(content, source, reading)


def _reader(head: bytes) -> Reader:
    if not head:
        raise UnreadableError(Reason.NOT_AN_IMAGE, "The file is empty. Copy it again.")
    if head.startswith(PNG) or head.startswith(JPEG):
        return read_picture
    if is_dicom(head):
        return read_dicom
    if head.startswith(TIFF):
        return read_tiff
    raise UnreadableError(
        Reason.NOT_AN_IMAGE,
        "The file is not an image that octray reads: neither DICOM, PNG, JPEG nor TIFF, whatever its name says.",
    )
