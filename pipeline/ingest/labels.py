"""What a table of labels means: which of its columns say what, and what each row says is there, is absent, or is not known."""

import ast
import difflib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import reduce
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipeline.errors import InputError
from pipeline.frames import LabelLevel, Split
from pipeline.ingest.spelling import plain, same_text, shortened, trimmed
from pipeline.ingest.table_reader import Table, in_lines, join_tables, no_column, read_table

FileId = tuple[int, str]
"""Position of the source folder and path of the file below it."""

Meant = TypeVar("Meant")

ROLES = (
    *("file", "label", "labels", "patient_key", "split"),
    *("study_instance_uid", "series_instance_uid", "sop_instance_uid", "laterality"),
)
"""What a column of a table can say."""
_JOINS = ("study_instance_uid", "series_instance_uid", "sop_instance_uid", "laterality", "patient_key")
_ALL_STATED = "*"
_NO_VALUE = frozenset({"nan", "<na>", "nat", "#n/a", "n/a"})
"""What programs write for a cell without a value."""
_STATED = {
    "1": "present", "true": "present", "yes": "present", "y": "present", "x": "present",
    "0": "absent", "false": "absent", "no": "absent", "n": "absent",
    "-1": "uncertain",
    "": "empty",
}  # fmt: skip
"""What a cell of a column that is a label says, in small letters and without decimals."""
_DECIMALS = re.compile(r"(?<=\d)[.,]0+$")
_LINE_BREAK = re.compile(r"[\r\n]")
_ROLE_FOLLOWS = re.compile(r",(?=\s*\w+\s*=)")
_TEMPLATE = re.compile(r"\{([^{}]+)\}")
_EYES = {
    "r": "R", "right": "R", "od": "R", "re": "R", "rechts": "R", "droite": "R",
    "l": "L", "left": "L", "os": "L", "le": "L", "links": "L", "gauche": "L",
    "b": "B", "both": "B", "ou": "B", "u": "U",
}  # fmt: skip
_KNOWN_NAMES = {
    "file": (
        *("file", "filename", "imageindex", "path", "filepath", "imagepath", "imagefile", "dicomid", "imageid", "image", "img"),
        *("images", "imagename", "fname", "bild", "datei", "dateiname", "fichier", "archivo", "imagen"),
        *("id", "patientid"),
    ),
    "label": (
        *("label", "findinglabels", "labels", "classname", "class", "diagnosis", "disease", "finding", "findings", "category"),
        *("pathology", "condition", "grade", "level", "dx", "befund", "diagnose", "diagnostic", "diagnostico", "target"),
    ),
    "patient_key": (
        "patientkey",
        "patientid",
        "pid",
        "patient",
        "subjectid",
        "subject",
        "mrn",
        "ptid",
        "patientennummer",
        "patnr",
    ),
}
"""Names of columns in public tables, without case, blanks and underscores, the most certain first; only ever proposed."""


_NAMES_OF_FILES = frozenset(_KNOWN_NAMES["file"]) - {"id", "patientid"}
_MEANT = {
    "study_instance_uid": "study",
    "series_instance_uid": "series",
    "sop_instance_uid": "instance",
    "laterality": "eye",
    "patient_key": "patient",
}
"""What rows mean that are joined by a column."""


_SPLITS = {
    **{split.value: split for split in Split},
    **dict.fromkeys(("training", "trn", "learn"), Split.TRAIN),
    **dict.fromkeys(("testing", "tst", "holdout", "hold-out"), Split.TEST),
}
"""What a cell of the column split says, in small letters."""
_VALIDATION = frozenset({"val", "valid", "validate", "validation", "dev", "devel", "development"})
"""What public tables call the patients that are neither for training nor for the test."""


class Uncertain(StrEnum):
    """What -1 in a column that is a label means in training: nothing is known, absent (U-Zeros) or present (U-Ones).

    Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison", AAAI 2019.
    """

    IGNORE = "ignore"
    ZEROS = "zeros"
    ONES = "ones"


class Empty(StrEnum):
    """What an empty cell means: nothing is known, or no label applies."""

    UNKNOWN = "unknown"
    ABSENT = "absent"


class SeveralRows(StrEnum):
    """What holds if rows for the same files contradict each other, for example those of several readers."""

    REFUSE = "refuse"
    UNKNOWN = "unknown"
    ANY = "any"
    MAJORITY = "majority"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is known of a file or a frame before it is read.

    Parameters
    ----------
    labels
        Those that are present.
    patient_key, split
        None if they are not given.
    unknown
        Labels of which it is not known whether they are present; all that are in neither set are absent.
    level
        For what the labels were given.
    """

    labels: frozenset[str]
    patient_key: str | None = None
    split: Split | None = None
    unknown: frozenset[str] = frozenset()
    level: LabelLevel = LabelLevel.FRAME


class JoinKey(NamedTuple):
    """By what a row means frames if it names no file; empty if the table does not say it."""

    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sop_instance_uid: str = ""
    laterality: str = ""
    patient_key: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class LabelTable:
    """A table of labels.

    Parameters
    ----------
    path
        The file.
    rows
        What each row means, a name of files or a `JoinKey`, and what it says of them.
    joined_by
        The parts of the `JoinKey` that the table has; none if its rows name files.
    labels
        Every label that a row could say something of.
    states_absence
        Whether each row says of every label whether it is absent; otherwise rows for the same files add up.
    notes
        Sentences for the user.
    has_validation
        Whether the rows of `Split.TUNE` are those of a validation split, which has yet to give some of them to calibration.
    """

    path: Path
    rows: tuple[tuple[str | JoinKey, FileFacts], ...]
    joined_by: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    states_absence: bool = False
    notes: tuple[str, ...] = ()
    has_validation: bool = False


def parse_columns(texts: Iterable[str]) -> dict[str, str]:
    """Read which columns of a table say what: `file=image,label=finding`; a comma in a column's name does no harm.

    Raises
    ------
    InputError
        If one says nothing that a column can say, or something is said twice.
    """
    columns: dict[str, str] = {}
    for part in (part for text in texts for part in _ROLE_FOLLOWS.split(text)):
        role, equals, name = (trimmed(one) for one in part.partition("="))
        if not equals or not name:
            raise InputError(f"--columns must be like file=image,label=finding. Got {shortened(part)} instead.")
        if role not in ROLES:
            near = difflib.get_close_matches(role, ROLES, n=1)
            meant = f"Did you mean {near[0]}?" if near else f"It can say {', '.join(ROLES)}."
            raise InputError(f"--columns: {shortened(role)} is nothing that a column can say. {meant}")
        if role in columns:
            raise InputError(f"--columns names {role} twice. Join the names of columns with +, as in {role}=A+B.")
        columns[role] = name
    if "label" in columns and "labels" in columns:
        raise InputError(
            "--columns names both label, a column that holds labels, and labels, columns that each are a label. Leave one out."
        )
    return columns


def read_labels(
    paths: Path | Sequence[Path],
    columns: Mapping[str, str] | None = None,
    *,
    uncertain: Uncertain = Uncertain.IGNORE,
    empty: Empty | None = None,
    with_patients: bool = True,
) -> LabelTable:
    """Read a table of labels.

    Parameters
    ----------
    paths
        See `pipeline.ingest.table_reader.read_table`; several tables are joined, one after the other, by `join_tables`.
    columns
        Which column says what, as `parse_columns` returns it; what it leaves out is said by columns of the same name. `file`
        names files, folders or archives, and may be a template such as `p{patient}/{image}.png`. `label` holds labels: one,
        several with `|` between them, or a list such as `['mass', 'edema']`. `labels` names columns that each are a label:
        `A+B`, `A..D` for all from A to D, or `*` for all that hold only 1, 0, -1 or nothing and say nothing else. Without
        `file`, rows mean all frames of a study, a series, an instance, an eye or a patient.
    uncertain
        What -1 means.
    empty
        What an empty cell means. If None, it is refused in a column that holds labels, and unknown in one that is a label.
    with_patients
        Whether patients are taken from the table; it may still mean frames by their patient.

    Raises
    ------
    InputError
        If the table cannot be read, lacks a column, or has a row that does not say what it should.
    """
    columns = columns or {}
    tables = [read_table(path, [*ROLES, *columns.values()]) for path in ([paths] if isinstance(paths, Path) else paths)]
    table = reduce(join_tables, tables)
    return _Meaning(table, columns, uncertain, empty, with_patients).label_table()


class _Meaning:
    """The columns of a table by what they say, and what its rows say with them."""

    def __init__(
        self, table: Table, columns: Mapping[str, str], uncertain: Uncertain, empty: Empty | None, with_patients: bool
    ) -> None:
        self._table, self._asked = table, columns
        self._uncertain, self._empty = uncertain, empty
        self._notes = [table.note] if table.note else []
        self._files = self._names("file")
        self._joined_by = () if self._files else self._joins()
        self._holding = self._names("label") if "labels" not in columns else ()
        self._stating = () if self._holding else self._stating_columns()
        patient = self._one("patient_key")
        self._patient = patient if with_patients and "patient_key" not in self._joined_by else ""
        self._split = self._one("split")
        if self._split and not any(table.column(self._split)):
            self._split = ""
        self._check_all_there()

    # Which column says what

    def _names(self, role: str) -> tuple[str, ...]:
        """Return the columns, or the templates of columns, that say something: those asked for, else one of the same name."""
        if role not in self._asked:
            same = [name for name in self._table.columns if _bare(name) == _bare(role)]
            exact = [name for name in same if name.casefold() == role]
            return tuple((exact or same)[:1])
        text = self._asked[role]
        if _TEMPLATE.search(text):
            for name in _TEMPLATE.findall(text):
                self._find(name)
            return (text,)
        return (found,) if (found := self._known(text)) else tuple(self._find(part) for part in text.split("+"))

    def _one(self, role: str) -> str:
        names = self._names(role)
        if len(names) > 1:
            raise InputError(f"--columns: {role} must be one column. Got {self._asked[role]} instead.")
        return names[0] if names else ""

    def _known(self, text: str) -> str:
        """Return the column of this name, in whatever case; empty if there is none."""
        name = same_text(text)
        if name in self._table.columns:
            return name
        return next((column for column in self._table.columns if column and column.casefold() == name.casefold()), "")

    def _find(self, text: str) -> str:
        found = self._known(text)
        if not found:
            near = difflib.get_close_matches(same_text(text), list(filter(None, self._table.columns)), n=1)
            raise no_column(self._table, [same_text(text)], f"Did you mean {near[0]}?" if near else "Correct --columns.")
        return found

    def _joins(self) -> tuple[str, ...]:
        """Return by what rows mean frames if they name no file: an instance, a series or a study before a patient."""
        found = [role for role in _JOINS if role in self._asked and self._one(role)]
        if any(role.endswith("_uid") for role in found):
            found = [role for role in found if role != "patient_key"]
        if not found or found == ["laterality"]:
            return ()
        asked = set(self._asked.values())
        files = [name for name in self._table.columns if _bare(name) in _NAMES_OF_FILES and name not in asked]
        if files:
            raise InputError(
                f"{self._table.path.name} has a column {files[0]}, which may name files, but --columns names none for file: "
                f"every label would apply to all frames of a {_MEANT[found[-1]]}. Add file={files[0]} to --columns; or remove "
                "the column from the table if that is right."
            )
        return tuple(found)

    def _stating_columns(self) -> tuple[str, ...]:
        """Return the columns that each are a label."""
        if "labels" not in self._asked:
            return ()
        text = self._asked["labels"]
        if text == _ALL_STATED:
            found = self._possible_labels()
            if not found:
                raise InputError(
                    f"No column of {self._table.path.name} holds only 1, 0, -1 or nothing. Name them in --columns."
                )
            self._notes.append(f"The columns that are labels: {', '.join(found)}.")
            return found
        first, dots, last = text.partition("..")
        if dots and not self._known(text):
            places = [self._table.columns.index(self._find(name)) for name in (first, last)]
            return tuple(filter(None, self._table.columns[places[0] : places[1] + 1]))
        return self._names("labels")

    def _possible_labels(self) -> tuple[str, ...]:
        """Return the columns that say nothing else and hold only 1, 0, -1 or nothing, at least one of them 1."""
        used = {name for role in ROLES if role not in ("label", "labels") for name in self._names(role)}
        used |= {self._known(name) for text in used for name in _TEMPLATE.findall(text)}
        free = [name for name in self._table.columns if name and name not in used]
        numbers = {"1", "0", "-1", ""}
        cells = {name: {"" if _is_empty(cell) else _number(cell) for cell in self._table.column(name)} for name in free}
        return tuple(name for name in free if "1" in cells[name] <= numbers)

    def _check_all_there(self) -> None:
        missing = [] if self._files or self._joined_by else ["file"]
        missing += [] if self._holding or self._stating else ["label"]
        if missing:
            raise no_column(self._table, missing, self._proposal())
        if len(self._holding) > 1 and len(self._holding) != len(self._files):
            raise InputError("--columns: several columns for label need as many columns for file, each with its own label.")

    def _proposal(self) -> str:
        """Return how --columns may be for this table, by names of columns in public tables and by what cells hold."""
        bare = {_bare(name): name for name in self._table.columns}
        chosen = {
            role: self._asked.get(role) or next((bare[name] for name in names if name in bare), "")
            for role, names in _KNOWN_NAMES.items()
        }
        if chosen["file"] == chosen["patient_key"]:
            chosen["patient_key"] = ""
        stated = [name for name in self._possible_labels() if name not in chosen.values()]
        if len(stated) > 1 and "label" not in self._asked:
            places = [self._table.columns.index(name) for name in stated]
            in_a_row = places == list(range(places[0], places[0] + len(places)))
            chosen |= {
                "label": "",
                "labels": f"{stated[0]}..{stated[-1]}" if in_a_row and len(stated) > 3 else "+".join(stated),
            }
        if chosen["file"] and (chosen["label"] or chosen.get("labels")):
            parts = ",".join(f"{role}={name}" for role, name in chosen.items() if name)
            return f"For this table it may be: --columns {_quoted(parts)}"
        return (
            "Say which columns are which, as in --columns file=NAME,label=NAME; label is a column that holds labels, and "
            "labels=A+B are columns that hold 1 or 0 each."
        )

    # What the rows say

    def label_table(self) -> LabelTable:
        """Return what all rows say."""
        names = self._row_names()
        patients = [same_text(cell) for cell in self._filled(self._patient, "patient_key")] if self._patient else None
        splits, has_validation = self._splits()
        said = list(zip(*(self._said(place) for place in range(max(len(self._holding), 1))), strict=True))
        level = self._level()
        facts: dict[object, FileFacts] = {}
        rows: list[tuple[str | JoinKey, FileFacts]] = []
        for row, own_names in enumerate(names):
            for place, name in enumerate(own_names):
                labels, unknown = said[row][min(place, len(said[row]) - 1)]
                if not name or (self._holding and unknown):
                    continue
                parts = labels, patients[row] if patients else None, splits[row] if splits else None, unknown, level
                rows.append((name, facts.setdefault(parts, FileFacts(*parts))))
        self._check_swallowed()
        labels = set().union(*(one.labels | one.unknown for one in facts.values()), self._stating)
        if not rows:
            raise InputError(f"No row of {self._table.path.name} has a label. Fill the cells in, or see --empty.")
        return LabelTable(
            self._table.path,
            tuple(rows),
            self._joined_by,
            tuple(sorted(map(same_text, labels))),
            bool(self._stating),
            tuple(self._notes),
            has_validation,
        )

    def _level(self) -> LabelLevel:
        if not self._files:
            levels = {
                "sop_instance_uid": LabelLevel.INSTANCE,
                "laterality": LabelLevel.EYE,
                "study_instance_uid": LabelLevel.STUDY,
                "series_instance_uid": LabelLevel.STUDY,
                "patient_key": LabelLevel.PATIENT,
            }
            return next(level for role, level in levels.items() if role in self._joined_by)
        repeated = [self._table.repeated[one] for one in (*self._holding, *self._stating) if one in self._table.repeated]
        if repeated:
            return LabelLevel.PATIENT if repeated[0] == self._names("patient_key") else LabelLevel.STUDY
        if len(self._files) > 1 and len(self._holding) < 2:  # one row says the same of several files
            return LabelLevel.PATIENT if self._patient else LabelLevel.STUDY
        return LabelLevel.FRAME

    def _row_names(self) -> list[tuple[str | JoinKey, ...]]:
        """Return for each row the names of the files that it means, or by what it means frames."""
        if not self._files:
            cells = {role: self._filled(self._one(role), role) for role in self._joined_by}
            if "laterality" in cells:
                cells["laterality"] = self._eyes(cells["laterality"])
            count = len(self._table.rows)
            return [(JoinKey(**{role: same_text(cells[role][row]) for role in cells}),) for row in range(count)]
        columns = [self._file_names(file) for file in self._files]
        if len(columns) > 1:  # a patient with one eye has one picture
            return [tuple(_slashes(name) if name else "" for name in names) for names in zip(*columns, strict=True)]
        return [(_slashes(name),) for name in columns[0]]

    def _file_names(self, file: str) -> list[str]:
        if not _TEMPLATE.search(file):
            return self._table.column(file) if len(self._files) > 1 else self._filled(file, "file")
        cells = {name: self._filled(self._find(name), name) for name in _TEMPLATE.findall(file)}
        return [_TEMPLATE.sub(lambda found, row=row: cells[found[1]][row], file) for row in range(len(self._table.rows))]  # type: ignore[misc]

    def _eyes(self, cells: Sequence[str]) -> list[str]:
        if wrong := [row for row, cell in enumerate(cells) if cell.casefold() not in _EYES]:
            raise InputError(
                f"{self._table.path.name} has the laterality {shortened(cells[wrong[0]])} in {self._table.in_lines(wrong)}. It "
                "must be R or L, OD or OS, right or left."
            )
        return [_EYES[cell.casefold()] for cell in cells]

    def _said(self, place: int) -> list[tuple[frozenset[str], frozenset[str]]]:
        """Return for each row the labels that are present, and those that are not known."""
        return self._stated() if self._stating else self._held(self._holding[place])

    def _held(self, column: str) -> list[tuple[frozenset[str], frozenset[str]]]:
        """Return what a column says that holds labels; a row of which nothing is known has a label without a name
        as unknown."""
        cells = self._table.column(column)
        self._check_breaks(column, cells)
        split = _listed if all(cell[:1] + cell[-1:] == "[]" for cell in cells if not _is_empty(cell)) else _separated
        known: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        rows, without = [], []
        for row, cell in enumerate(cells):
            if cell not in known:
                labels = split(cell) if not _is_empty(cell) else []
                if labels is None:
                    raise InputError(
                        f"{self._table.path.name} has a list that cannot be read as {column} in {self._table.in_lines([row])}. "
                        "It must be like ['mass', 'edema']."
                    )
                known[cell] = frozenset(labels), frozenset() if labels or self._empty is Empty.ABSENT else frozenset(("",))
            if not known[cell][0]:
                without.append(row)
            rows.append(known[cell])
        if without and self._empty is None:
            raise InputError(
                f"{self._table.path.name} has an empty {column}, or nan or the like, in {self._table.in_lines(without)}. Fill "
                "the cells in; or leave these rows out with --empty unknown, or say with --empty absent that no label applies "
                "there."
            )
        if without and self._empty is Empty.UNKNOWN:
            self._notes.append(f"{len(without)} rows of {self._table.path.name} have no label and were left out.")
        return rows

    def _stated(self) -> list[tuple[frozenset[str], frozenset[str]]]:
        """Return what columns say that each are a label."""
        meant = {"present": "present", "absent": "absent", "uncertain": "unknown", "empty": "unknown"}
        if self._uncertain is not Uncertain.IGNORE:
            meant["uncertain"] = "present" if self._uncertain is Uncertain.ONES else "absent"
        if self._empty is Empty.ABSENT:
            meant["empty"] = "absent"
        counts = dict.fromkeys(_STATED.values(), 0)
        columns = []
        for name in self._stating:
            cells = self._table.column(name)
            said = {cell: _STATED.get("" if _is_empty(cell) else _number(cell).casefold()) for cell in set(cells)}
            if wrong := [row for row, cell in enumerate(cells) if said[cell] is None]:
                raise InputError(
                    f"{self._table.path.name} has {shortened(cells[wrong[0]])} in the column {name} in "
                    f"{self._table.in_lines(wrong)}. A column that is a label holds 1, 0, -1 (uncertain) or nothing."
                )
            states = [said[cell] or "" for cell in cells]
            for state in counts:
                counts[state] += states.count(state)
            if "present" in states and "absent" not in states and "empty" in states and self._empty is None:
                self._notes.append(
                    f"The column {name} has no 0. Its empty cells count as unknown; if they mean absent, give --empty absent."
                )
            columns.append([meant[state] for state in states])
        self._tell_unknown(counts)
        labels = [same_text(name) for name in self._stating]
        known: dict[tuple[str, ...], tuple[frozenset[str], frozenset[str]]] = {}
        for states_of_row in zip(*columns, strict=True):
            if states_of_row not in known:
                pairs = list(zip(labels, states_of_row, strict=True))
                known[states_of_row] = (
                    frozenset(label for label, state in pairs if state == "present"),
                    frozenset(label for label, state in pairs if state == "unknown"),
                )
        return [known[states_of_row] for states_of_row in zip(*columns, strict=True)]

    def _tell_unknown(self, counts: Mapping[str, int]) -> None:
        uncertain, empty = counts["uncertain"], counts["empty"]
        if uncertain and self._uncertain is Uncertain.IGNORE:
            self._notes.append(
                f"{uncertain} cells are -1 (uncertain) and count as unknown: training leaves them out. --uncertain zeros or "
                "ones counts them as absent or present."
            )
        if empty and self._empty is None:
            self._notes.append(
                f"{empty} cells are empty and count as unknown: training leaves them out. --empty absent counts them as absent."
            )

    def _filled(self, column: str, role: str) -> list[str]:
        """Return the cells of a column that must not be empty.

        Raises
        ------
        InputError
            With the lines of cells that are, that hold `nan` or the like, or a line break.
        """
        cells = self._table.column(column)
        name = self._table.path.name
        if empty := [row for row, cell in enumerate(cells) if not cell]:
            raise InputError(
                f"{name} has an empty {role} in {self._table.in_lines(empty)}. Fill the cells in, or leave the rows out."
            )
        if role != "file" and (unknown := [row for row, cell in enumerate(cells) if cell.casefold() in _NO_VALUE]):
            raise InputError(
                f"{name} has nan or the like as {role} in {self._table.in_lines(unknown)}. A program wrote this for a cell "
                "without a value: fill the cells in, or leave the rows out."
            )
        self._check_breaks(role, cells)
        return cells

    def _check_breaks(self, role: str, cells: Sequence[str]) -> None:
        if broken := [row for row, cell in enumerate(cells) if _LINE_BREAK.search(cell)]:
            raise InputError(
                f"{self._table.path.name} has a line break inside a cell of the column {role} in "
                f"{self._table.in_lines(broken)}. A quotation mark may be missing there."
            )

    def _splits(self) -> tuple[list[Split] | None, bool]:
        """Return the split of each row, if the table gives it, and whether `tune` stands for a validation split."""
        if not self._split:
            return None, False
        cells = [cell.casefold() for cell in self._filled(self._split, "split")]
        name, validation = self._table.path.name, sorted(_VALIDATION.intersection(cells))
        if wrong := [row for row, cell in enumerate(cells) if cell not in _SPLITS and cell not in _VALIDATION]:
            unsplit = "leave split out of --columns" if "split" in self._asked else "give the column another name"
            raise InputError(
                f"{name} has the split {shortened(cells[wrong[0]])} in {self._table.in_lines(wrong)}. It must be one of "
                f"{', '.join(Split)}; validation, too, is divided between tune and calibration. To let octray divide the "
                f"patients, {unsplit}."
            )
        own = [split for split in (Split.TUNE, Split.CALIBRATION) if split in cells]
        if validation and own:
            raise InputError(
                f"{name} has the split {validation[0]} and also {' and '.join(own)}. octray chooses on tune, and fits "
                f"thresholds on calibration: call each patient of {validation[0]} one of these."
            )
        if validation:
            self._notes.append(
                f"The patients of the split {validation[0]} of {name} were divided between tune, on which training chooses, "
                "and calibration, on which thresholds are fitted. For another division, write tune and calibration into the "
                "table."
            )
        return [_SPLITS.get(cell, Split.TUNE) for cell in cells], bool(validation)

    def _check_swallowed(self) -> None:
        """Refuse a cell that holds whole rows, which would be lost: a quotation mark is missing, or there is one too many.

        Raises
        ------
        InputError
            With the lines in which such cells begin. A line of a cell is a row if it has a kind of file and labels that rows
            have.
        """
        table = self._table
        if not self._files or _TEMPLATE.search(self._files[0]):
            return
        places = [table.columns.index(name) for name in (self._files[0], *(self._holding or self._stating))]
        known = [
            {_kind(cell) for cell in table.column(self._files[0])},
            *(set(table.column(table.columns[at])) for at in places[1:]),
        ]
        found = []
        ends = (*table.lines[1:], table.lines[-1] + 2)
        for line, end, cells in zip(table.lines, ends, table.rows, strict=True):
            if end == line + 1:
                continue
            for part in (part for cell in cells if _LINE_BREAK.search(cell) for part in _LINE_BREAK.split(cell)[1:]):
                inner = [trimmed(cell.strip(' "')) for cell in part.split(table.delimiter)]
                if len(inner) > max(places) and " " not in inner[places[0]]:
                    values = [_kind(inner[places[0]]), *(inner[at] for at in places[1:])]
                    if all(value in seen for value, seen in zip(values, known, strict=True)):
                        found.append(line)
        if found:
            raise InputError(
                f"{table.path.name} has a cell that holds whole rows in {in_lines(sorted(set(found)))}: a quotation mark is "
                "missing, or one too many."
            )


def unite(facts: Sequence[FileFacts], *, states_absence: bool, several_rows: SeveralRows) -> tuple[FileFacts, str]:
    """Return what several rows together say of the same files, and what they contradict each other in, if that is refused.

    Parameters
    ----------
    facts
        What each row says.
    states_absence
        As in `LabelTable`; otherwise the labels of all rows hold.
    several_rows
        What holds for a label that is present by one row and absent by another.

    Returns
    -------
    tuple
        The facts; and `patients`, `splits`, `labels` or nothing.
    """
    first = facts[0]
    for what in ("patient_key", "split"):
        if len({getattr(one, what) for one in facts}) > 1:
            return first, {"patient_key": "patients", "split": "splits"}[what]
    level = min((one.level for one in facts), key=list(LabelLevel).index)
    labels = frozenset().union(*(one.labels for one in facts))
    if not states_absence:
        return FileFacts(labels, first.patient_key, first.split, level=level), ""
    present, unknown = set(), set()
    for label in labels | frozenset().union(*(one.unknown for one in facts)):
        known = [label in one.labels for one in facts if label not in one.unknown]
        agreed = not known or len(set(known)) == 1
        if not agreed and several_rows is SeveralRows.REFUSE:
            return first, "labels"
        votes = 2 * sum(known) - len(known)
        if not known or (
            not agreed and (several_rows is SeveralRows.UNKNOWN or (several_rows is SeveralRows.MAJORITY and not votes))
        ):
            unknown.add(label)
        elif votes > 0 or (any(known) and several_rows is SeveralRows.ANY):
            present.add(label)
    return FileFacts(frozenset(present), first.patient_key, first.split, frozenset(unknown), level), ""


def with_one_spelling(rows: Sequence[tuple[Meant, FileFacts]]) -> tuple[list[tuple[Meant, FileFacts]], list[str]]:
    """Return rows in which labels that differ only in case, blanks or invisible characters are one, and a note on that.

    The spelling is the one that most rows have.
    """
    counts = Counter(label for _, facts in rows for label in facts.labels)
    first: dict[str, str] = {}
    for label, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        first.setdefault(plain(label), label)
    changed = {label: first[plain(label)] for label in counts if first[plain(label)] != label}
    if not changed:
        return list(rows), []
    new = {
        facts: replace(facts, labels=frozenset(changed.get(label, label) for label in facts.labels))
        for facts in {facts for _, facts in rows}
    }
    said = ", ".join(f"{label} ({counts[label]})" for label in sorted(changed))
    return [(meant, new[facts]) for meant, facts in rows], [
        f"Spellings that were merged, with their rows: {said}; into {', '.join(sorted(set(changed.values())))}."
    ]


def _is_empty(cell: str) -> bool:
    return not cell or cell.casefold() in _NO_VALUE


def _number(cell: str) -> str:
    """Return a cell without decimals that are zero: 1.0 and, in many countries, 1,0 are 1."""
    return _DECIMALS.sub("", cell)


def _separated(cell: str) -> list[str]:
    return [label for part in cell.split("|") if (label := same_text(part))]


def _listed(cell: str) -> list[str] | None:
    """Return the labels of a list as Python writes it; None if it is none."""
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not all(isinstance(one, str) for one in found):
        return None
    return [label for one in found if (label := same_text(one))]


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _quoted(text: str) -> str:
    """Return an argument as a shell takes it."""
    return "'" + text.replace("'", "'\\''") + "'" if re.search(r"[^\w=,.+/-]", text) else text


def _kind(file: str) -> str:
    return posixpath.splitext(file)[1].lower()


def _slashes(file: str) -> str:
    return posixpath.normpath(file.replace("\\", "/"))
