"""The Standard's own table of what happens to which attribute: DICOM PS3.15 Table E.1-1, read from `table_e1_1.csv`."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources

from pipeline.deidentify.options import Keep

PRIVATE = "private"
_SOURCE = "table_e1_1.csv"


class Action(StrEnum):
    """What happens to an attribute (PS3.15 Table E.1-1a).

    The combined actions of the table depend on the attribute's Type in the object at hand. Each is resolved to the one that
    conforms whatever the Type is: a dummy value where one may be needed, else an empty one, else removal.
    """

    DUMMY = "D"
    EMPTY = "Z"
    REMOVE = "X"
    KEEP = "K"
    CLEAN = "C"
    UID = "U"


_RESOLVED = {
    "X/Z": Action.EMPTY,
    "X/D": Action.DUMMY,
    "Z/D": Action.DUMMY,
    "X/Z/D": Action.DUMMY,
    "X/Z/U*": Action.UID,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    Parameters
    ----------
    tag
        Eight hexadecimal digits, `x` for any digit of a repeating group, or `private`.
    name
        The attribute's name.
    basic
        The action of the Basic Profile, as it stands in the table.
    options
        The actions of the options that have one for this attribute, by the name of the column.
    """

    tag: str
    name: str
    basic: str
    options: Mapping[str, str]

    def action(self, keep: Iterable[Keep]) -> Action:
        """Return the action with some options: one that keeps wins over one that cleans, and that over the Basic Profile."""
        chosen = {self.options.get(one.column) for one in keep}
        for action in (Action.KEEP, Action.CLEAN):
            if action.value in chosen:
                return action
        return _RESOLVED.get(self.basic) or Action(self.basic)


@cache
def edition() -> str:
    """Return which edition of the Standard the table is from, for example "DICOM PS3.15 2026d"."""
    return _text().splitlines()[0].removeprefix("# ").partition(",")[0]


@cache
def rules() -> Mapping[str, Rule]:
    """Return every row of the table by its tag."""
    rows = csv.DictReader(_text().splitlines()[1:])
    columns = [name for name in rows.fieldnames or () if name not in ("tag", "name", "basic")]
    return {
        row["tag"]: Rule(row["tag"], row["name"], row["basic"], {name: row[name] for name in columns if row[name]})
        for row in rows
    }


def find(tag: int) -> Rule | None:
    """Return the row for a tag, those of repeating groups (50xx, 60xx) and private ones too; None where there is none."""
    table = rules()
    if tag >> 16 & 1:
        return table[PRIVATE]
    digits = f"{tag:08X}"
    repeating = f"{digits[:2]}xx"
    return table.get(digits) or table.get(f"{repeating}{digits[4:]}") or table.get(f"{repeating}xxxx")


def _text() -> str:
    return resources.files(__package__).joinpath(_SOURCE).read_text(encoding="utf-8")
