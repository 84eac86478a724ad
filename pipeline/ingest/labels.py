"""Reads what is known about the files: a table of labels, or the names of their folders."""

import csv
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import TypeVar

from pipeline.errors import InputError
from pipeline.frames import Split
from pipeline.imaging.files.names import as_name, as_text

_EXAMPLES = 5
_SHOWN = 60
"""Characters of a cell that a message shows."""
_AROUND = re.compile(r"^[\s\u200b\ufeff]+|[\s\u200b\ufeff]+$")
"""Blanks, and the byte order mark that is left when tables are copied together."""
_LINE_BREAK = re.compile(r"[\r\n]")
_NO_VALUE = ("nan", "<na>", "nat", "#n/a")
"""What programs write for a cell without a value."""
_ZEROS = re.compile(r"(?<!\d)(?<!\d\.)0+(?=\d)")
_OWN_COLUMNS = ("file", "label", "patient_key", "split")
_BELOW = "files named by their path below a source"
_BESIDE = "files named by their path below the table's own folder"
_WHOLE = "files named by their whole path"
_NAME_THE_FOLDER = (
    "Name the folder that is the label with --label-from: folder:1 for the first below SOURCE, folder:2 for the second, "
    "folder:-1 for the one in which a file lies, or a regular expression with one group for the path below SOURCE."
)
_PATIENTS = "patients"
_NO_FINDINGS = {
    "eyes": frozenset(("od", "os", "ou", "re", "le", "l", "r", "left", "right", "both"))
    | {"lefteye", "righteye", "botheyes", "eyeleft", "eyeright"}
    | {"links", "rechts", "gauche", "droite", "izquierda", "derecha", "sinistra", "destra"},
    "splits": frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
    | {"tune", "tuning", "calibration", "dev", "holdout"},
}
_MANY_NUMBERS, _MANY_FOLDERS = 8, 20
"""From how many numbered names, and names of folders, labels look like patients: no scale of grades is so long."""
FileId = tuple[int, str]
"""Position of the source folder and path of the file below it."""
Name = TypeVar("Name", str, FileId)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the table says of one file, for all of its frames: its labels, and its patient and split if given."""

    labels: frozenset[str]
    patient_key: str | None = None
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A table of labels: what it says of each file, by the text in its column `file`."""

    path: Path
    columns: tuple[str, ...]
    facts: Mapping[str, FileFacts]


def examples(names: Iterable[str]) -> str:
    """Return up to five names and how many there are in all, for an error message; files by their own names only."""
    found = sorted({shortened(posixpath.basename(name)) for name in names})
    more = f" and {len(found) - _EXAMPLES} more" if len(found) > _EXAMPLES else ""
    return ", ".join(found[:_EXAMPLES]) + more


def shortened(text: str) -> str:
    """Return a cell as a message may show it."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def same_text(text: str) -> str:
    """Return a name in the one form in which two spellings of it are equal: Unicode NFC, without blanks around it."""
    return unicodedata.normalize("NFC", _AROUND.sub("", text))


def read_labels(path: Path, patient_key: str | None = None) -> LabelTable:
    """Read a table of labels.

    Parameters
    ----------
    path
        CSV (RFC 4180) in UTF-8 with the columns `file` and `label`, and optionally `split` and a column of patient keys; other
        columns are ignored. A file with several rows has several labels.
    patient_key
        What was given as `--patient-key`: patient keys are read if it is a column's name, or if it is None and there is a
        column named `patient_key`.

    Raises
    ------
    InputError
        If the table cannot be read, lacks a column or names one twice, has a row with more or fewer cells than columns or an
        empty cell in a column that counts, or contradicts itself.
    """
    columns, rows = _read_rows(path)
    wanted = "patient_key" if patient_key is None else same_text(patient_key)
    patient = wanted if wanted in columns else None
    split = "split" if any(row.get("split") for row in rows) else None
    for column in filter(None, ("file", "label", patient, split)):
        if empty := [row[""] for row in rows if not row[column]]:
            raise InputError(f"{path.name} has an empty {column} in {_lines(empty)}. Fill the cells in, or leave the rows out.")
        if column != "file" and (unknown := [row[""] for row in rows if row[column].lower() in _NO_VALUE]):
            raise InputError(
                f"{path.name} has {_NO_VALUE[0]} or the like as {column} in {_lines(unknown)}. A "
                "program wrote this for a cell without a value: fill the cells in, or leave the rows out."
            )
        if broken := [row[""] for row in rows if _LINE_BREAK.search(row[column])]:
            raise InputError(
                f"{path.name} has a line break inside a cell of the column {column} in {_lines(broken)}. "
                "A quotation mark may be missing there."
            )
    _check_swallowed(path, columns, rows)
    stated = [
        (
            _slashes(row["file"]),
            FileFacts(
                frozenset((same_text(row["label"]),)),
                same_text(row[patient]) if patient else None,
                _parse_split(path, row[split]) if split else None,
            ),
        )
        for row in rows
    ]
    return LabelTable(path, columns, _united(path, stated))


def _read_rows(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Return the column names and the rows, no cell with blanks around it; the line number stands under the empty name."""
    numbered, line = [], 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [same_text(name) for name in next(reader, [])]
            line = reader.line_num + 1
            for cells in reader:
                numbered.append((line, [_AROUND.sub("", cell) for cell in cells]))
                line = reader.line_num + 1
    except OSError:
        raise InputError(f"The table of labels {path.name} cannot be opened. Check the path given to --labels.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path.name} is not a CSV file in UTF-8. Save it again as CSV (UTF-8, commas).") from None
    except csv.Error:
        raise InputError(
            f"{path.name} has no cells that can be told apart from line {line} on. A quotation mark is missing there, or there "
            "is one too many."
        ) from None
    numbered = [(line, cells) for line, cells in numbered if any(cells)]
    if any("\0" in cell for _, cells in numbered for cell in cells):
        raise InputError(f"{path.name} holds characters of value 0. Save it again as CSV (UTF-8, commas).")
    if not numbered:
        raise InputError(f"{path.name} has no rows. It needs the columns file and label, and one row per file.")
    columns = _columns(path, header)
    _check_widths(path, numbered, len(columns), len(header))
    return columns, [
        {name: cell for name, cell in zip(columns, cells, strict=False) if name} | {"": str(line)} for line, cells in numbered
    ]


def _check_swallowed(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Refuse a cell that holds whole rows, which would be lost: a quotation mark is missing, or there is one too many.

    Raises
    ------
    InputError
        With the lines in which such cells begin. A line of a cell is a row if it has a label and a kind of file that rows have.
    """
    file, label = columns.index("file"), columns.index("label")
    labels, kinds = {row["label"] for row in rows}, {_kind(row["file"]) for row in rows}
    found = []
    for row in rows:
        lines = [line for cell in row.values() for line in _LINE_BREAK.split(cell)[1:]]
        split = [[_AROUND.sub("", cell.strip(' "')) for cell in line.split(",")] for line in lines]
        whole = [cells for cells in split if len(cells) > max(file, label) and " " not in cells[file]]
        if any(cells[label] in labels and _kind(cells[file]) in kinds for cells in whole):
            found.append(row[""])
    if found:
        raise InputError(
            f"{path.name} has a cell that holds whole rows in {_lines(found)}: a quotation mark is missing, or one too many."
        )


def _kind(file: str) -> str:
    return posixpath.splitext(file)[1].lower()


def _columns(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the columns up to the last one that has a name; `Label` is `label`, as for all that octray reads."""
    counts = Counter(name.casefold() for name in header if name)
    if twice := sorted(shortened(name) for name, count in counts.items() if count > 1):
        raise InputError(
            f"{path.name} has more than one column {', '.join(twice[:_EXAMPLES])}. Leave one of each, or give them different "
            "names; case and blanks make no difference."
        )
    named = max((number for number, name in enumerate(header, start=1) if name), default=0)
    columns = tuple(name.casefold() if name.casefold() in _OWN_COLUMNS else name for name in header[:named])
    if missing := [name for name in ("file", "label") if name not in columns]:
        known = ", ".join(map(shortened, columns[:_SHOWN]))
        saved = "" if len(header) > 1 or not re.search("[;\t]", header[0]) else " Save it again with commas between the cells."
        raise InputError(
            f"{path.name} has no column {' and '.join(missing)}; its columns are {known}. "
            f"It needs file and label, separated by commas, in its first line.{saved}"
        )
    return columns


def _check_widths(path: Path, rows: Sequence[tuple[int, Sequence[str]]], named: int, width: int) -> None:
    """Refuse rows of which it is not certain which cell belongs to which column (RFC 4180, section 2, rule 4).

    Parameters
    ----------
    named
        How many columns there are up to the last that has a name; cells beyond must be empty.
    width
        How many cells the first line has.
    """
    more = [str(line) for line, cells in rows if len(cells) > width or any(cells[named:])]
    fewer = [str(line) for line, cells in rows if len(cells) < named]
    if more:
        raise InputError(
            f"{path.name} has {named} columns, and more cells than that in {_lines(more)}. Put quotation marks around a cell "
            "that contains a comma."
        )
    if fewer:
        raise InputError(
            f"{path.name} has {named} columns, and fewer cells than that in {_lines(fewer)}. Add the cells that are missing, "
            "empty ones too."
        )


def _lines(numbers: Sequence[str]) -> str:
    more = f" and {len(numbers) - _EXAMPLES} more" if len(numbers) > _EXAMPLES else ""
    return f"{'line' if len(numbers) == 1 else 'lines'} {', '.join(numbers[:_EXAMPLES])}{more}"


def _slashes(file: str) -> str:
    return posixpath.normpath(file.replace("\\", "/"))


def _united(path: Path, stated: Iterable[tuple[Name, FileFacts]]) -> dict[Name, FileFacts]:
    """Return what all rows together say of each file.

    Raises
    ------
    InputError
        If they give a file two patients or two splits.
    """
    facts: dict[Name, FileFacts] = {}
    clashes: dict[str, set[Name]] = {"patients": set(), "splits": set()}
    for name, new in stated:
        known = facts.setdefault(name, new)
        if known.patient_key != new.patient_key:
            clashes["patients"].add(name)
        if known.split != new.split:
            clashes["splits"].add(name)
        facts[name] = replace(known, labels=known.labels | new.labels)
    for what, names in clashes.items():
        if names:
            files = examples(name if isinstance(name, str) else name[1] for name in names)
            raise InputError(f"{path.name} gives two {what} for {len(names)} files: {files}. Keep one for each file.")
    return facts


def _parse_split(path: Path, text: str) -> Split:
    try:
        return Split(text.lower())
    except ValueError:
        raise InputError(f"{path.name} has the split {shortened(text)}. It must be one of {', '.join(Split)}.") from None


def match_files(table: LabelTable, sources: Sequence[Path], files: Iterable[FileId]) -> tuple[dict[FileId, FileFacts], str]:
    """Find the file that each row of a table means: below a source, or else beside the table itself or by its whole path.

    Links are followed on both sides, and names that differ only in their form of Unicode or in blanks at the end of a part are
    the same name, unless there is a file for each of them. Rows that mean one file say together what is known of it.

    Parameters
    ----------
    table
        What `read_labels` returned.
    sources
        The source folders.
    files
        Every file that was found in them.

    Returns
    -------
    tuple
        What is known of each file, and a sentence on how the names in the table were understood.

    Raises
    ------
    InputError
        If a row means no file, or more than one, or if rows contradict each other.
    """
    found = _Found(sources, files)
    stated: list[tuple[FileId, FileFacts]] = []
    ways: dict[FileId, str] = {}
    missing: list[str] = []
    twice: list[str] = []
    alike: list[str] = []
    outside: set[str] = set()
    bases = (table.path.absolute().parent, table.path.resolve().parent)
    for file, facts in table.facts.items():
        meant, way = found.below(file), _BELOW
        if not meant:
            paths = [os.path.realpath(base / file) for base in bases]
            meant = next(filter(None, map(found.at, paths)), [])
            way = _WHOLE if posixpath.isabs(file) else _BESIDE
        if len(meant) > 1:
            (twice if len({root for root, _ in meant}) > 1 else alike).append(file)
        elif meant:
            stated.append((meant[0], facts))
            ways.setdefault(meant[0], way)
        elif left_out := [path for path in paths if os.path.isfile(path) and not found.covers(path)]:  # noqa: PTH113
            outside.add(left_out[0])
        else:
            missing.append(file)
    if missing:
        raise InputError(
            f"{table.path.name} names files that do not exist ({len(missing)}): {examples(missing)}. "
            "The column file must hold paths below SOURCE, or below the folder of the table."
        )
    if twice:
        raise InputError(
            f"{table.path.name} names {len(twice)} files that are in two sources: {examples(twice)}. "
            "Ingest the sources one by one."
        )
    if alike:
        raise InputError(
            f"{table.path.name} names {len(alike)} files of which there are two: {examples(alike)}. Their names differ only in "
            "blanks or in how letters with accents are encoded. Rename one of them."
        )
    counts = Counter(ways.values())
    parts = [f"{counts[way]} {way}" for way in (_BELOW, _BESIDE, _WHOLE) if counts[way]]
    parts += [f"{len(outside)} labelled files lie outside the sources and were left out"] if outside else []
    return _united(table.path, stated), f"Labels: {'; '.join(parts)}."


class _Found:
    """The files that were found in some sources, by every name under which a table may know them."""

    def __init__(self, sources: Sequence[Path], files: Iterable[FileId]) -> None:
        self._sources = sources
        self._files = dict.fromkeys(files)
        self._alike: dict[str, list[FileId]] = {}
        for file_id in self._files:
            self._alike.setdefault(_alike(file_id[1]), []).append(file_id)

    def below(self, file: str) -> list[FileId]:
        """Return the files that have this path below a source: literally, else in another spelling, else behind a link."""
        name = as_text(file)
        exact = [(root, name) for root in range(len(self._sources)) if (root, name) in self._files]
        if exact or posixpath.isabs(file) or file.startswith("../"):
            return exact
        linked = (self.at(os.path.realpath(source / file)) for source in self._sources)
        return self._alike.get(_alike(name)) or list(dict.fromkeys(chain.from_iterable(linked)))

    def at(self, path: str) -> list[FileId]:
        """Return the files that lie at a path without links: literally, else in another spelling of the same name."""
        name = as_text(path)
        alike = self._real.get(_alike(name), {})
        return [file_id for file_id, real in alike.items() if real == name] or list(alike)

    def covers(self, path: str) -> bool:
        """Return whether a path without links lies in a source, so that a file there would have been found."""
        return any(Path(path).is_relative_to(os.path.realpath(source)) for source in self._sources)

    @cached_property
    def _real(self) -> dict[str, dict[FileId, str]]:
        """The files by their paths without links, in one spelling, with these paths; members lie below their archive."""
        folders = lru_cache(maxsize=None)(os.path.realpath)
        found: dict[str, dict[FileId, str]] = {}
        for root, source in self._files:
            path = self._sources[root].joinpath(*(as_name(part) or part for part in source.split("/")))
            real = as_text(os.path.realpath(path) if path.is_symlink() else os.path.join(folders(path.parent), path.name))  # noqa: PTH118
            found.setdefault(_alike(real), {})[root, source] = real
        return found


def _alike(path: str) -> str:
    return "/".join(map(same_text, path.split("/")))


def folder_labels(label_from: str, sources: Sequence[Path], files: Iterable[FileId]) -> dict[FileId, FileFacts]:
    """Take the label of each file from the names of the folders in which it lies.

    Parameters
    ----------
    label_from
        `folder` for the only folder between a source and its files, or the source itself if all its files lie at its top;
        `folder:N` for the N-th folder below the source, `folder:-1` for the one in which a file lies; or a regular expression
        with one group for the path below the source.
    sources
        What was given to read; an archive in a source is a folder.
    files
        Every file that was found.

    Returns
    -------
    dict
        What is known of the files that have a label.

    Raises
    ------
    InputError
        If `label_from` is none of these, if one of several folders could be meant, or if no file has a label.
    """
    folders = {(root, file): _folders(sources[root], file) for root, file in files}
    if label_from == "folder":
        names = _only_folders(sources, folders)
    elif level := re.fullmatch(r"folder:(-?[1-9][0-9]{0,3})", label_from):
        names = {file_id: _at(path, int(level[1])) for file_id, path in folders.items()}
    else:
        pattern = path_pattern(label_from, "The value of --label-from", "neither folder, nor folder:N,")
        found = {file_id: pattern.search(unicodedata.normalize("NFC", file_id[1])) for file_id in folders}
        names = {file_id: match[1] or "" for file_id, match in found.items() if match}
    facts = {file_id: FileFacts(frozenset((label,))) for file_id, name in names.items() if (label := same_text(name))}
    if not facts:
        raise InputError(f"--label-from {label_from} gives none of the {len(folders)} files a label. {_NAME_THE_FOLDER}")
    return facts


def path_pattern(text: str, subject: str, otherwise: str) -> re.Pattern[str]:
    """Compile a regular expression with one group that is searched for in the path of a file below its source.

    Raises
    ------
    InputError
        If it is none; `subject` and `otherwise` say in the message where it was given, and what else it is not.
    """
    try:
        pattern = re.compile(unicodedata.normalize("NFC", text))
    except re.error as error:
        raise InputError(f"{subject} {text} is not a regular expression: {error}.") from None
    if pattern.groups != 1:
        raise InputError(f"{subject} {text} is {otherwise} nor a regular expression with one group, such as '^([^/]+)/'.")
    return pattern


def _folders(source: Path, file: str) -> list[str]:
    """Return the names of the folders between what was given to read and a file in it, the outermost first."""
    folders = file.split("/")[:-1]
    return folders[1:] if source.is_file() else folders


def _at(folders: Sequence[str], level: int) -> str:
    """Return the name of the folder at a level, 1 for the outermost and -1 for the innermost; empty if there is none."""
    place = level - 1 if level > 0 else level
    return folders[place] if -len(folders) <= place < len(folders) else ""


def _only_folders(sources: Sequence[Path], folders: Mapping[FileId, Sequence[str]]) -> dict[FileId, str]:
    """Return the name of the only folder of each file, or of its source if all files of that lie at its top.

    Raises
    ------
    InputError
        If files lie in folders within folders: octray does not guess which of them is the label.
    """
    deepest = Counter[int]()
    for (root, _), path in folders.items():
        deepest[root] = max(deepest[root], len(path))
    if (most := max(deepest.values(), default=0)) > 1:
        levels = [{name for path in folders.values() if (name := same_text(_at(path, level + 1)))} for level in range(most)]
        known = (
            f"folder:{level} ({len(names)} {'name' if len(names) == 1 else 'names'}{_that_look_like(names)})"
            for level, names in enumerate(levels, start=1)
        )
        raise InputError(
            f"There are up to {most} levels of folders below SOURCE, and each could be the label: {', '.join(known)}. "
            f"{_NAME_THE_FOLDER}"
        )
    return {
        (root, file): path[0] if path else "" if deepest[root] else _own_name(sources[root], file)
        for (root, file), path in folders.items()
    }


def _own_name(source: Path, file: str) -> str:
    """Return the name of what was given to read; of the folder around it if that is a single picture."""
    place = source.resolve()
    return place.parent.name if place.is_file() and "/" not in file else place.name


def label_warning(labels: Sequence[str], patients: Mapping[str, Collection[str]], from_folders: bool) -> str:
    """Return a sentence if labels look like eyes, patients or splits, or like each other; empty if they do not.

    Parameters
    ----------
    labels
        All of them.
    patients
        For each label the patients in whom it occurs.
    from_folders
        Whether they are names of folders, which say of each file one thing only.
    """
    one_each = len(labels) > 1 and all(len(patients[label]) == 1 for label in labels)
    many = from_folders and len(labels) >= _MANY_FOLDERS
    alike = _look_like(labels) or (_PATIENTS if one_each or many else "")
    which = f"{len(labels)} labels" if alike == _PATIENTS else f"labels {examples(labels)}"
    mend = _NAME_THE_FOLDER if from_folders else "Check the column label of the table."
    twice = _alike_but_for_spelling(labels)
    said = [
        f"The {which} look like {alike}, not like findings. {mend}" if alike else "",
        f"The labels {examples(twice)} differ only in case or blanks, and count as different." if twice else "",
    ]
    return " ".join(filter(None, said))


def patient_key_warning(keys: Collection[str]) -> str:
    """Return a sentence if patient keys look like two spellings of one patient, who may then be in two splits."""
    twice = _alike_but_for_spelling(keys)
    if not twice:
        return ""
    return (
        f"{len(twice)} patient keys differ from another only in case, blanks, leading zeros or signs of a spreadsheet, and "
        "count as different patients, who may be in different splits. If they are the same, write them in the same way."
    )


def _alike_but_for_spelling(names: Iterable[str]) -> list[str]:
    """Return names that are equal without case, blanks, leading zeros, and signs of spreadsheets (="0012", 12.0)."""
    forms = {name: _ZEROS.sub("", re.sub(r"\.0+$", "", _unspaced(name))) for name in names}
    counts = Counter(forms.values())
    return sorted(name for name, form in forms.items() if counts[form] > 1)


def _unspaced(name: str) -> str:
    """Return a name in compatible characters, without case, blanks, unseen characters, and signs of a spreadsheet."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    seen = (one for one in plain if not one.isspace() and unicodedata.category(one) != "Cf")
    return "".join(one for one in seen if one not in "=\"'")


def _look_like(names: Collection[str]) -> str:
    """Return what names look like if not like findings: eyes, splits, or patients, which are numbered."""
    words = {re.sub(r"[\W_]+", "", name).casefold() for name in names}
    for what, known in _NO_FINDINGS.items():
        if len(words & known) > 1 or 2 * len(words & known) >= len(words) > 0:
            return what
    shapes = Counter(re.sub(r"[0-9]+", "0", name) for name in names)
    numbered = max((count for shape, count in shapes.items() if "0" in shape), default=0)
    return _PATIENTS if numbered >= _MANY_NUMBERS and 2 * numbered >= len(names) else ""


def _that_look_like(names: Collection[str]) -> str:
    what = _look_like(names)
    return f" that look like {what}" if what else ""
