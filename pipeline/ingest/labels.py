"""Reads what is known about the files: a table of labels, or the names of their folders."""

import csv
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import InputError
from pipeline.records import Split

_EXAMPLES = 5
_SHOWN = 60
"""Characters of a cell that a message shows."""
FileId = tuple[int, str]
"""Position of the source folder and path of the file below it."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the table says of one file, for all of its frames: its labels, its patient and its split, where given."""

    labels: frozenset[str]
    patient_key: str | None = None
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class LabelTable:
    """The rows of a table of labels: the table's `file` cell to what it says."""

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


def read_labels(path: Path, patient_key: str | None = None) -> LabelTable:
    """Read a table of labels.

    Parameters
    ----------
    path
        CSV in UTF-8 with the columns `file` and `label`, and optionally `split` and a column of patient keys; other columns are
        ignored. A file that stands in several rows has several labels.
    patient_key
        What was given as `--patient-key`: patient keys are read where it is a column's name, or where it is None and there is a
        column named `patient_key`.

    Raises
    ------
    InputError
        Where the table cannot be read, lacks a column, has an empty cell in one that counts, or contradicts itself.
    """
    columns, rows = _read_rows(path)
    if missing := [name for name in ("file", "label") if name not in columns]:
        known = ", ".join(map(shortened, columns[:_SHOWN]))
        raise InputError(
            f"{path.name} has no column {' and '.join(missing)}; its columns are {known}. "
            "It needs file and label, separated by commas, in its first line."
        )
    wanted = "patient_key" if patient_key is None else patient_key
    patient = wanted if wanted in columns else None
    split = "split" if any(row.get("split") for row in rows) else None
    for column in filter(None, ("file", "label", patient, split)):
        if empty := [row["file"] or f"line {row['']}" for row in rows if not row[column]]:
            raise InputError(
                f"{path.name} has {len(empty)} rows with an empty {column}: {examples(empty)}. "
                "Fill the cells in, or leave the rows out."
            )
    return LabelTable(path, columns, _collect(path, rows, patient, split))


def _read_rows(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Return the column names and the rows, every cell stripped; the line number stands under the empty name."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            columns = tuple(name.strip() for name in next(reader, []))
            rows = [
                {"": str(reader.line_num)}
                | {name: cell.strip() for name, cell in zip(columns, _padded(cells, len(columns)), strict=False)}
                for cells in reader
                if any(cell.strip() for cell in cells)
            ]
    except OSError:
        raise InputError(f"The table of labels {path.name} cannot be opened. Check the path given to --labels.") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{path.name} is not a CSV file in UTF-8. Save it again as CSV (UTF-8, commas).") from None
    if any("\0" in cell for row in rows for cell in row.values()):
        raise InputError(f"{path.name} holds characters of value 0. Save it again as CSV (UTF-8, commas).")
    if not rows:
        raise InputError(f"{path.name} has no rows. It needs the columns file and label, and one row a file.")
    return columns, rows


def _padded(cells: Sequence[str], length: int) -> list[str]:
    """Return the cells of a row, with empty ones for those that it lacks."""
    return [*cells, *[""] * (length - len(cells))]


def _collect(path: Path, rows: Sequence[Mapping[str, str]], patient: str | None, split: str | None) -> dict[str, FileFacts]:
    facts: dict[str, FileFacts] = {}
    clashes: dict[str, list[str]] = {"patients": [], "splits": []}
    for row in rows:
        file = posixpath.normpath(row["file"].replace("\\", "/"))
        new = FileFacts(
            frozenset((row["label"],)), row[patient] if patient else None, _parse_split(path, row[split]) if split else None
        )
        known = facts.setdefault(file, new)
        if known.patient_key != new.patient_key:
            clashes["patients"].append(file)
        if known.split != new.split:
            clashes["splits"].append(file)
        facts[file] = replace(known, labels=known.labels | new.labels)
    for what, files in clashes.items():
        if files:
            raise InputError(
                f"{path.name} gives two {what} for {len(set(files))} files: {examples(files)}. Keep one for each file."
            )
    return facts


def _parse_split(path: Path, text: str) -> Split:
    try:
        return Split(text.lower())
    except ValueError:
        raise InputError(f"{path.name} has the split {shortened(text)}. It must be one of {', '.join(Split)}.") from None


def match_files(table: LabelTable, sources: Sequence[Path], files: Iterable[FileId]) -> tuple[dict[FileId, FileFacts], str]:
    """Find the file that each row of a table means: below a source, or else beside the table itself.

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
        Where a row means no file, or files in two sources.
    """
    found = set(files)
    matched: dict[FileId, FileFacts] = {}
    missing, twice, beside, outside = [], [], 0, 0
    for file, facts in table.facts.items():
        below = [(root, file) for root in range(len(sources)) if (root, file) in found]
        near = below or [file_id for file_id in _beside(table.path, file, sources) if file_id in found]
        if len(below) > 1:
            twice.append(file)
        elif near:
            beside += not below
            matched[near[0]] = facts
        elif (table.path.parent / file).is_file() and not any(_beside(table.path, file, sources)):
            outside += 1
        else:
            missing.append(file)
    if missing:
        raise InputError(
            f"{table.path.name} has labels for {len(missing)} files that are not there: {examples(missing)}. "
            "The column file must hold paths below a source folder, or below the table's own folder."
        )
    if twice:
        raise InputError(
            f"{table.path.name} names {len(twice)} files that are in two sources: {examples(twice)}. "
            "Ingest the sources one by one."
        )
    return matched, _understood(len(matched) - beside, beside, outside)


def _beside(table: Path, file: str, sources: Sequence[Path]) -> Iterator[FileId]:
    """Yield the files of the sources that a path below the table's folder means."""
    path = Path(os.path.normpath(table.resolve().parent / file))
    for root, source in enumerate(sources):
        if path.is_relative_to(source):
            yield root, path.relative_to(source).as_posix()


def _understood(below: int, beside: int, outside: int) -> str:
    parts = [
        f"{below} files named by their path below a source" if below else "",
        f"{beside} files named by their path below the table's own folder" if beside else "",
        f"{outside} labelled files lie outside the sources and were left out" if outside else "",
    ]
    return "Labels: " + "; ".join(filter(None, parts)) + "."


def folder_labels(sources: Sequence[Path], files: Iterable[FileId]) -> dict[FileId, FileFacts]:
    """Return for each file the name of the folder that it lies in as its label; the source's own name at its top."""
    return {
        (root, source): FileFacts(frozenset((posixpath.basename(posixpath.dirname(source)) or sources[root].name,)))
        for root, source in files
    }
