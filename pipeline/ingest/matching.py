"""Finds what each row of a table of labels means: a file, all files of a folder or an archive, or frames by their "
"identifiers."""

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import TypeVar

from pipeline.errors import InputError
from pipeline.frames import InstanceKey, LabelLevel
from pipeline.imaging.files.names import as_name, as_text
from pipeline.ingest.labels import FileFacts, FileId, JoinKey, LabelTable, SeveralRows, unite
from pipeline.ingest.spelling import examples, look_like, same_text

_BELOW = "files named by their path below a source"
_BESIDE = "files named by their path below the table's own folder"
_WHOLE = "files named by their whole path"
_TAIL = "files named by the end of their path"
_FOLDER = "files in folders or archives that are named"
_MEANINGS = (_BELOW, _BESIDE, _WHOLE, _TAIL, _FOLDER)
_SHOWN = 3
Meant = TypeVar("Meant", FileId, JoinKey)
_Tails = tuple[dict[str, list[FileId]], dict[str, list[FileId]], dict[str, list[list[FileId]]]]
FrameId = tuple[FileId, InstanceKey]


def match_files(
    table: LabelTable, sources: Sequence[Path], files: Iterable[FileId], several_rows: SeveralRows = SeveralRows.REFUSE
) -> tuple[dict[FileId, FileFacts], list[str]]:
    """Find the files that each row of a table means.

    A name is, in this order: a path below a source; a path below the table's own folder, or a whole path; the end of a path
    below a source that no other file has, with or without the ending such as `.png`. Folders that all rows begin with are left
    out in the end, unless they are named like a split. A folder, or an archive, stands for all files in it. Links are followed
    on both sides, and names that differ only in their form of Unicode or in blanks at the end of a part are the same name,
    unless there is a file for each of them. Rows that mean one file say together what is known of it.

    Parameters
    ----------
    table
        What `read_labels` returned.
    sources
        The source folders.
    files
        Every file that was found in them.
    several_rows
        What holds if rows for one file contradict each other.

    Returns
    -------
    tuple
        What is known of each file, and sentences on how the names in the table were understood and what they leave out.

    Raises
    ------
    InputError
        If no row means a file, if one means more than one, or if rows contradict each other.
    """
    found = _Found(sources, files)
    names = list(dict.fromkeys(name for name, _ in table.rows if isinstance(name, str)))
    meant = _Names(table.path, found, names)
    stated: dict[FileId, list[FileFacts]] = {}
    for name, facts in table.rows:
        if isinstance(name, str):
            file_ids, is_folder = meant.files.get(name, ([], False))
            for file_id in file_ids:
                known = stated.setdefault(file_id, [])
                known.append(replace(facts, level=LabelLevel.STUDY) if is_folder else facts)
    united = _united(table, stated, several_rows, lambda file_id: file_id[1], "files")
    without = [source for root, source in found.files if (root, source) not in united]
    notes = meant.notes()
    if without:
        notes.append(f"{len(without)} files have no row in {table.path.name} and are not used: {examples(without, _SHOWN)}.")
    return united, notes


class _Names:
    """What each name in a table means, by the files that were found."""

    def __init__(self, table: Path, found: "_Found", names: Sequence[str]) -> None:
        self._table, self._found = table, found
        self.files: dict[str, tuple[list[FileId], bool]] = {}
        """For each name its files, and whether it names their folder or archive."""
        self._ways: dict[FileId, str] = {}
        self._outside: set[str] = set()
        self._missing: list[str] = []
        self._left_out = ""
        twice, alike, ambiguous = self._match(names)
        if twice:
            raise InputError(
                f"{table.name} names {len(twice)} files that are in two sources: {examples(twice)}. Ingest the sources one by "
                "one."
            )
        if alike:
            raise InputError(
                f"{table.name} names {len(alike)} files of which there are two: {examples(alike)}. Their names differ only in "
                "blanks or in how letters with accents are encoded. Rename one of them."
            )
        if ambiguous:
            raise InputError(
                f"{table.name} names {len(ambiguous)} files of which there are several in different folders: "
                f"{examples(ambiguous)}. Write their paths below SOURCE into the table, or give --columns a template such as "
                "file={folder}/{file}."
            )
        if not self.files:
            raise InputError(
                f"{table.name} names files that do not exist ({len(self._missing)}): {examples(self._missing)}. "
                f"The column file must hold names of files below SOURCE, or paths below the folder of the table.{self._case()}"
                if self._missing
                else f"{table.name} names no file in the sources: all its files lie elsewhere."
            )

    def notes(self) -> list[str]:
        """Return sentences on how the names were understood, and on those that mean nothing."""
        counts = Counter(self._ways.values())
        parts = [f"{counts[way]} {way}" for way in _MEANINGS if counts[way]]
        parts += [f"{len(self._outside)} labelled files lie outside the sources and were left out"] if self._outside else []
        notes = [f"Labels: {'; '.join(parts)}."]
        if self._left_out:
            notes.append(f"The names in {self._table.name} begin with {self._left_out}, which was left out.")
        if self._missing:
            notes.append(
                f"{len(self._missing)} rows of {self._table.name} name files that do not exist: "
                f"{examples(self._missing, _SHOWN)}.{self._case()}"
            )
        return notes

    def _case(self) -> str:
        """Return how many missing files there would be in another case; a table from Windows does not care for it."""
        known = {same_text(posixpath.basename(name)).casefold() for _, name in self._found.files}
        count = sum(same_text(posixpath.basename(as_text(name))).casefold() in known for name in self._missing)
        said = f" Of {count} there is a file whose name differs only in upper and lower case: write it as it is."
        return said if count else ""

    def _match(self, names: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
        """Fill in what names mean; return those in two sources, those of which there are two, and those that are ambiguous."""
        twice: list[str] = []
        alike: list[str] = []
        ambiguous: list[str] = []
        shared = _shared_folders(names)
        bases = tuple(dict.fromkeys((self._table.absolute().parent, self._table.resolve().parent)))
        for name in names:
            paths: list[str] = []
            file_ids, way = self._found.below(name), _BELOW
            if not file_ids:
                paths = [self._found.resolve(base / name) for base in bases]
                file_ids = next(filter(None, map(self._found.at, paths)), [])
                way = _WHOLE if posixpath.isabs(name) else _BESIDE
            if len(file_ids) > 1:
                (twice if len({root for root, _ in file_ids}) > 1 else alike).append(name)
                continue
            is_folder = False
            if not file_ids and (file_ids := self._found.in_folder(name, paths)):
                is_folder, way = True, _FOLDER
                if len({root for root, _ in file_ids}) > 1:
                    twice.append(name)
                    continue
            if not file_ids and (outside := [path for path in paths if os.path.exists(path) and not self._found.covers(path)]):  # noqa: PTH110
                self._outside.add(outside[0])
                continue
            if not file_ids:
                groups = self._by_tail(name, shared)
                if len(groups) > 1:
                    ambiguous.append(name)
                    continue
                if groups:
                    ((file_ids, is_folder),) = groups
                    way = _FOLDER if is_folder else _TAIL
            if file_ids:
                self.files[name] = file_ids, is_folder
                for file_id in file_ids:
                    self._ways.setdefault(file_id, way)
            else:
                self._missing.append(name)
        return twice, alike, ambiguous

    def _by_tail(self, name: str, shared: Sequence[str]) -> list[tuple[list[FileId], bool]]:
        """Return the files, and the folders, whose path ends with a name; without the folders that all names share if need "
        "be."""
        parts = _parts(name)
        for left_out in range(len(shared) + 1):
            # The name of a file alone says too little, unless the folder that is left out is the source.
            if left_out and len(parts) - left_out < 2 and not self._found.has_source(shared[left_out - 1]):
                continue
            if groups := self._found.ending_with(parts[left_out:]):
                if left_out:
                    self._left_out = f"{'/'.join(shared[:left_out])}/"
                return groups
        return []


def _shared_folders(names: Sequence[str]) -> list[str]:
    """Return the folders that all names begin with, up to one that is named like a split, which tells files apart."""
    split = [_parts(name)[:-1] for name in names]
    shared: list[str] = []
    for level in zip(*split, strict=False) if len(split) > 1 else ():
        if len(set(level)) > 1 or look_like(level[:1]) == "splits":
            break
        shared.append(level[0])
    return shared


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".", "..")]


def join_frames(
    table: LabelTable,
    frames: Mapping[FrameId, JoinKey],
    several_rows: SeveralRows = SeveralRows.REFUSE,
    key_of: Callable[[JoinKey], JoinKey] = lambda key: key,
) -> tuple[dict[FrameId, FileFacts], list[str]]:
    """Find the frames that each row of a table means if its rows name no files.

    Parameters
    ----------
    table
        What `read_labels` returned.
    frames
        Every frame that can be used, with all that it can be joined by.
    several_rows
        What holds if rows for the same frames contradict each other.
    key_of
        Returns what a row's key is among `frames`, if identifiers are replaced there.

    Returns
    -------
    tuple
        What is known of each frame that a row means, and sentences for the user.

    Raises
    ------
    InputError
        If no row means a frame, or rows contradict each other.
    """
    rows: dict[JoinKey, list[FileFacts]] = {}
    for key, facts in table.rows:
        if isinstance(key, JoinKey):
            rows.setdefault(key_of(key), []).append(facts)
    united = _united(table, rows, several_rows, lambda key: "", "groups of frames")
    asked = [role in table.joined_by for role in JoinKey._fields]
    found: dict[FrameId, FileFacts] = {}
    used: set[JoinKey] = set()
    for frame_id, known in frames.items():
        key = JoinKey(*(value if needed else "" for value, needed in zip(known, asked, strict=True)))
        if key in united:
            found[frame_id] = united[key]
            used.add(key)
    by = " and ".join(table.joined_by)
    if not found:
        raise InputError(
            f"No row of {table.path.name} has the {by} of a frame: {len(united)} in the table, {len(frames)} frames. Check "
            "--columns; spreadsheets take leading zeros, and the last digits of long numbers, away."
        )
    notes = [f"Labels: {len(found)} frames joined by {by}, with {len(used)} rows or groups of rows."]
    if rest := len(united) - len(used):
        notes.append(f"{rest} of {len(united)} rows of {table.path.name} have a {by} that no frame has.")
    return found, notes


def _united(
    table: LabelTable,
    stated: Mapping[Meant, Sequence[FileFacts]],
    several_rows: SeveralRows,
    name_of: Callable[[Meant], str],
    what: str,
) -> dict[Meant, FileFacts]:
    """Return what all rows together say of each file or key.

    Raises
    ------
    InputError
        If they give one two patients or two splits, or contradict each other in a label and that is refused.
    """
    united: dict[Meant, FileFacts] = {}
    clashes: dict[str, list[Meant]] = {}
    for meant, facts in stated.items():
        if len(facts) == 1:
            united[meant] = facts[0]
            continue
        united[meant], clash = unite(facts, states_absence=table.states_absence, several_rows=several_rows)
        if clash:
            clashes.setdefault(clash, []).append(meant)
    for clash in ("patients", "splits", "labels"):
        if meant_twice := clashes.get(clash):
            named = examples(filter(None, map(name_of, meant_twice)))
            where = f"{len(meant_twice)} {what}{': ' if named else ''}{named}"
            if clash == "labels":
                raise InputError(
                    f"{table.path.name} has rows that contradict each other, with 1 and with 0 for one label, for {where}. "
                    "Keep one row for each; or say what holds with --several-rows: any, majority, or unknown."
                )
            raise InputError(f"{table.path.name} gives two {clash} for {where}. Keep one for each file.")
    return united


class _Found:
    """The files that were found in some sources, by every name under which a table may know them."""

    def __init__(self, sources: Sequence[Path], files: Iterable[FileId]) -> None:
        self._sources = sources
        self.files = dict.fromkeys(files)
        self._tails_of: dict[int, _Tails] = {}
        self._resolved: dict[str, tuple[str, bool]] = {}
        self._alike: dict[str, list[FileId]] = {}
        for file_id in self.files:
            self._alike.setdefault(_alike(file_id[1]), []).append(file_id)

    def below(self, file: str) -> list[FileId]:
        """Return the files that have this path below a source: literally, else in another spelling, else behind a link."""
        name = as_text(file)
        exact = [(root, name) for root in range(len(self._sources)) if (root, name) in self.files]
        if exact or posixpath.isabs(file) or file.startswith("../"):
            return exact
        linked = (self.at(self.resolve(source / file)) for source in self._sources)
        return self._alike.get(_alike(name)) or list(dict.fromkeys(chain.from_iterable(linked)))

    def at(self, path: str) -> list[FileId]:
        """Return the files that lie at a path without links: literally, else in another spelling of the same name."""
        name = as_text(path)
        alike = self._real.get(_alike(name), {})
        return [file_id for file_id, real in alike.items() if real == name] or list(alike)

    def resolve(self, path: Path) -> str:
        """Return a path without links, as `os.path.realpath`; each folder is looked up once."""
        folder, name = os.path.split(path)
        if name in ("", ".", ".."):
            return os.path.realpath(path)
        if folder not in self._resolved:
            self._resolved[folder] = (real := os.path.realpath(folder)), os.path.isdir(real)  # noqa: PTH112
        real, exists = self._resolved[folder]
        whole = os.path.join(real, name)  # noqa: PTH118
        return os.path.realpath(whole) if exists and os.path.islink(whole) else whole  # noqa: PTH114

    def in_folder(self, name: str, paths: Iterable[str]) -> list[FileId]:
        """Return all files in a folder or archive, by its path below a source, else by its paths without links."""
        below = self._folders.get(_alike(as_text(name)), {})
        inside = list(chain.from_iterable(below.values()))
        return inside or next(filter(None, (self._real_folders.get(_alike(as_text(path)), []) for path in paths)), [])

    def ending_with(self, parts: Sequence[str]) -> list[tuple[list[FileId], bool]]:
        """Return the files whose path ends with these parts, else if its ending is left out, each by itself; and folders."""
        end = tuple(map(same_text, map(as_text, parts)))
        if not end:
            return []
        tail = "/".join(end)
        files, stems, folders = self._tails(len(end))
        found = files.get(tail) or stems.get(tail, [])
        return [([file_id], False) for file_id in found] + [(inside, True) for inside in folders.get(tail, [])]

    def covers(self, path: str) -> bool:
        """Return whether a path without links lies in a source, so that a file there would have been found."""
        return any(Path(path).is_relative_to(os.path.realpath(source)) for source in self._sources)

    def has_source(self, name: str) -> bool:
        """Return whether a source has this name."""
        return any(same_text(source.name) == same_text(name) for source in self._sources)

    def _tails(self, length: int) -> _Tails:
        """Return the files by the last parts of their paths, the files without their ending, and the folders and archives."""
        if length not in self._tails_of:
            files: dict[str, list[FileId]] = {}
            stems: dict[str, list[FileId]] = {}
            folders: dict[str, list[list[FileId]]] = {}
            for path, file_ids in self._alike.items():
                tail = path.split("/")[-length:]
                if len(tail) == length:
                    name, ending = posixpath.splitext(tail[-1])
                    files.setdefault("/".join(tail), []).extend(file_ids)
                    if ending:
                        stems.setdefault("/".join((*tail[:-1], name)), []).extend(file_ids)
            for path, by_root in self._folders.items():
                tail = path.split("/")[-length:]
                if len(tail) == length:
                    for name in dict.fromkeys((tail[-1], tail[-1].removesuffix(".zip"))):
                        folders.setdefault("/".join((*tail[:-1], name)), []).extend(by_root.values())
            self._tails_of[length] = files, stems, folders
        return self._tails_of[length]

    @cached_property
    def _folders(self) -> dict[str, dict[int, list[FileId]]]:
        """The files in each folder or archive, by its path below a source, and by the source."""
        folders: dict[str, dict[int, list[FileId]]] = {}
        for root, source in self.files:
            parts = _alike(source).split("/")[:-1]
            for end in range(1, len(parts) + 1):
                folders.setdefault("/".join(parts[:end]), {}).setdefault(root, []).append((root, source))
        return folders

    @cached_property
    def _real_folders(self) -> dict[str, list[FileId]]:
        """The files in each folder or archive within the sources, by its path without links."""
        tops = tuple(_alike(as_text(os.path.realpath(source))) for source in self._sources)
        folders: dict[str, list[FileId]] = {}
        for real, files in self._real.items():
            parts = real.split("/")[:-1]
            for end in range(len(parts), 1, -1):
                folder = "/".join(parts[:end])
                folders.setdefault(folder, []).extend(files)
                if folder in tops:
                    break
        return folders

    @cached_property
    def _real(self) -> dict[str, dict[FileId, str]]:
        """The files by their paths without links, in one spelling, with these paths; members lie below their archive."""
        folders = lru_cache(maxsize=None)(os.path.realpath)
        found: dict[str, dict[FileId, str]] = {}
        for root, source in self.files:
            path = self._sources[root].joinpath(*(as_name(part) or part for part in source.split("/")))
            real = as_text(os.path.realpath(path) if path.is_symlink() else os.path.join(folders(path.parent), path.name))  # noqa: PTH118
            found.setdefault(_alike(real), {})[root, source] = real
        return found


def _alike(path: str) -> str:
    return "/".join(map(same_text, path.split("/")))
