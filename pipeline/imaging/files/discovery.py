"""Finds study files: those of a folder of any depth, the members of zip archives, and what a DICOMDIR names."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError, Reason, UnreadableError
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.files import archives, dicomdir
from pipeline.imaging.files.archives import find_members, is_archive
from pipeline.imaging.files.contents import read_bytes, read_head
from pipeline.imaging.files.leftovers import leftover
from pipeline.imaging.files.study_file import Refusal, StudyFile, as_name, as_text, harmless
from pipeline.settings import Limits, Reading

_HEAD = 512
_DICOMDIR = Limits(file_bytes=dicomdir.MOST_BYTES, frame_seconds=30.0)
_LINK_OUT = Refusal(
    Reason.UNSAFE_PATH, "The link leads out of the folder that was given, and is not followed. Copy the files themselves in."
)


def discover(
    root: Path, is_known: Callable[[StudyFile], bool] | None = None, skipped: Counter[str] | None = None
) -> Iterator[StudyFile]:
    """Find the files to read, sorted by `source`: those of a folder of any depth, and the members of every zip archive in it.

    `root` may also be one file, an archive, or a DICOMDIR, which stands for the files that it names. Hidden files and folders
    and what operating systems and network drives leave behind are left out; a DICOMDIR in a folder is no file of its own. What
    cannot be looked at or may not be read (a folder that may not be listed, a link that leads out, a file that a DICOMDIR names
    and that is missing, a damaged archive) is found as a file, so that reading it says why nothing of it was read.

    Parameters
    ----------
    root
        A folder or a file.
    is_known
        Says of a file that it was looked at before, is no archive and has not changed, so that it is not opened here; every
        file is opened where this is None.
    skipped
        Is told how often something was left out that a system leaves behind, by what it is; a folder counts once.

    Raises
    ------
    InputError
        Where there is nothing at `root`, or it may not be opened.
    """
    try:
        if root.is_file():
            return iter(sorted(_given(root, skipped), key=_by_source))
        if not root.is_dir():
            raise InputError(f"There is no file or folder {as_text(root.name)}. Check the path.")
        os.scandir(root).close()
    except OSError as error:
        raise InputError(f"{as_text(root.name)} cannot be opened: {error.strerror}. Check its permissions.") from None
    skipped = Counter() if skipped is None else skipped
    found = [
        one for file in _walk(root, skipped) for one in ((file,) if is_known and is_known(file) else _expanded(file, skipped))
    ]
    return iter(sorted(_without_dicomdirs(found), key=_by_source))


def _by_source(file: StudyFile) -> str:
    return file.source


def _given(path: Path, skipped: Counter[str] | None) -> Iterator[StudyFile]:
    file = StudyFile(path, as_text(path.name))
    if not dicomdir.is_dicomdir(_peek(file, _HEAD)):
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
        yield StudyFile(file.path, file.source, refusal=dicomdir.EMPTY)
    for file_id, path in dicomdir.find_files(folder, file_ids):
        if path is not None and (one := _reached(folder, path)) is not None:
            yield one
        else:
            yield _absent(file, file_id)


def _file_ids(file: StudyFile) -> tuple[dicomdir.FileId, ...]:
    """Parse a DICOMDIR in a worker process: no file is found before it is done, so that a damaged one must not stop it."""
    content = read_bytes(file, Reading(_DICOMDIR))
    with file_workers(1, _DICOMDIR) as pool:
        return tuple(pool.run(_referenced, content))


def _referenced(content: bytes) -> Iterator[dicomdir.FileId]:
    yield from dicomdir.referenced_files(content)


def _absent(directory: StudyFile, file_id: dicomdir.FileId) -> StudyFile:
    below = PurePosixPath(directory.source).parent.parts
    refusal = dicomdir.MISSING if dicomdir.is_inside(file_id) else dicomdir.OUTSIDE
    return StudyFile(directory.path, "/".join([*below, harmless(file_id).lstrip("/")]), directory.inside, refusal)


def _without_dicomdirs(files: list[StudyFile]) -> Iterator[StudyFile]:
    """Leave the DICOMDIRs out, and add the files that they name and that are missing.

    A file that only has the name of one is read as any other.
    """
    named = (file for file in files if dicomdir.is_named_dicomdir(file.source.rpartition("/")[2]))
    directories = [file for file in named if dicomdir.is_dicomdir(_peek(file, _HEAD))]
    there = {dicomdir.as_key(file.source.split("/")) for file in files} if directories else set()
    left_out = {id(file) for file in directories}
    yield from (file for file in files if id(file) not in left_out)
    for directory in directories:
        below = dicomdir.as_key(directory.source.split("/")[:-1])
        try:
            file_ids = _file_ids(directory)
        except UnreadableError:
            continue
        yield from (_absent(directory, one) for one in file_ids if (*below, *dicomdir.as_key(one)) not in there)


def _expanded(file: StudyFile, skipped: Counter[str] | None) -> Iterable[StudyFile]:
    return find_members(file, skipped) if is_archive(_peek(file, archives.HEAD)) else (file,)


def _peek(file: StudyFile, count: int) -> bytes:
    """Return the start of a file; nothing where it cannot be read, which reading it will say."""
    try:
        return read_head(file, count)
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
    """Return a file, a link that leads out with its refusal, or what cannot be looked at; None for a folder or a device."""
    try:
        if path.is_symlink() and _leads_out(path, inside):
            return _below(root, path, _LINK_OUT)
        return _below(root, path) if stat.S_ISREG(path.stat().st_mode) else None
    except OSError:
        return _below(root, path)


def _leads_out(path: Path, inside: str) -> bool:
    return not Path(os.path.realpath(path)).is_relative_to(inside)


def _reached(root: Path, path: Path) -> StudyFile | None:
    """Return what is at a path that was not walked to, so that any of its folders may be a link."""
    inside = os.path.realpath(root)
    return _below(root, path, _LINK_OUT) if _leads_out(path, inside) else _looked_at(root, path, inside)


def locate(root: Path, source: str) -> StudyFile:
    """Return the file or the member that `discover` found below `root` under the name `source`; reading says where it is gone.

    The members of the archives that were asked for last are remembered, so that asking for all of them lists each once.
    """
    folder = root.parent if root.is_file() else root
    parts = source.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return StudyFile(folder, source, refusal=_LINK_OUT)
    path = folder
    for part in parts:
        name = as_name(part)
        path = path / name if name is not None else path
        if name is None or os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where a folder may not be entered
            break
    if name is None or not os.path.lexists(path):
        return _gone(path, source)
    file = _reached(folder, path) or _below(folder, path)
    if file.source == source and not is_archive(_peek(file, archives.HEAD)):
        return file
    return _members(file, file.stat()).get(source) or _gone(path, source)


def _gone(path: Path, source: str) -> StudyFile:
    return StudyFile(path, source, refusal=Refusal(Reason.MISSING, "The file is not there any more. Copy it back."))


@lru_cache(maxsize=4)
def _members(file: StudyFile, looks: tuple[int, int, int]) -> dict[str, StudyFile]:
    return {one.source: one for one in find_members(file)}
