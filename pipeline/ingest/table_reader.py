"""Reads a table as spreadsheets and programs write it: which encoding, which delimiter, and whether its rows are whole."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import InputError
from pipeline.frames import ImageRecord
from pipeline.ingest.spelling import same_text, shortened, trimmed

_LINES_SHOWN = 5
_COLUMNS_SHOWN = 40
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_SAVE_AS = "In Excel: File, Save As, CSV UTF-8 (Comma delimited). In pandas: table.to_csv('labels.csv', index=False)."
_NO_TEXT = {
    b"PK\x03\x04": "an Excel or OpenDocument workbook, or a zip archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"PAR1": "a Parquet file",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a compressed file",
    b"%PDF": "a PDF file",
    b"SQLite format 3": "a database",
}
"""What files begin with that are taken for tables, and what they are."""
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte order marks; the longer ones first."""
_HEAD = 2**12
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)
"""What Excel writes and reads in front of a table to name its delimiter."""
_NOT_WESTERN = re.compile(
    "[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff]{3}"  # three letters with accents in a row
    # a capital with an accent within a word
    "|[A-Za-z\u00df-\u00ff][\u00c0-\u00d6\u00d8-\u00de\u0160\u0152\u017d\u0178][a-z\u00df-\u00ff]"
    # a word without any letter from a to z
    "|(?<![A-Za-z\u00a1-\u0192])[\u00a1-\u0192]{2,}(?![A-Za-z])"
    # a sign within a word, except apostrophes, hyphens and dashes
    "|[A-Za-z\u00c0-\u00ff](?![\u2018\u2019\u00b4\u00b7\u2013\u2014])"
    "[^\x00-\x7f\u00c0-\u00ff\u0160\u0161\u0152\u0153\u017d\u017e\u0178\u0192][A-Za-z\u00c0-\u00ff\u0160\u0161\u0178]"
)
"""What words of Western Europe do not have, and words of other encodings turn into if they are read as Windows-1252."""
_PICTURE = re.compile(r"\.(png|jpe?g|tiff?|dcm|dicom|zip|bmp)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table as it was read.

    Parameters
    ----------
    path
        The file.
    columns
        Their names in Unicode NFC, up to the last that has one; empty for columns without a name.
    lines
        The line of the file in which each row begins, from 1.
    rows
        The cells of each row, without blanks around them, at least as many as there are columns.
    delimiter
        What stands between the cells.
    note
        What had to be assumed to read it, as a sentence; empty if nothing was.
    repeated
        Columns whose cells `join_tables` repeated, and by which columns: what they say is about all that is the same there.
    """

    path: Path
    columns: tuple[str, ...]
    lines: tuple[int, ...]
    rows: tuple[Sequence[str], ...]
    delimiter: str = ","
    note: str = ""
    repeated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def column(self, name: str) -> list[str]:
        """Return the cells of a column."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def in_lines(self, rows: Sequence[int]) -> str:
        """Return the lines of some rows, given by their positions, for a message: `line 3`, or `lines 3, 4 and 2 more`."""
        return in_lines([self.lines[row] for row in rows])


def in_lines(lines: Sequence[int]) -> str:
    """Return numbers of lines for a message."""
    more = f" and {len(lines) - _LINES_SHOWN} more" if len(lines) > _LINES_SHOWN else ""
    return f"{'line' if len(lines) == 1 else 'lines'} {', '.join(map(str, lines[:_LINES_SHOWN]))}{more}"


def read_table(path: Path, wanted: Collection[str] = ()) -> Table:
    """Read a table of text.

    Parameters
    ----------
    path
        CSV (RFC 4180) with commas, semicolons or tabs, in UTF-8, UTF-16 or Windows-1252.
    wanted
        Names of columns that it should have: of two delimiters that are possible, the one that gives more of them is taken.

    Raises
    ------
    InputError
        If it cannot be opened, is no such table, names a column twice, or has rows with more or fewer cells than columns.
    """
    try:
        content = path.read_bytes()
    except OSError:
        raise InputError(f"The table of labels {path.name} cannot be opened. Check the path given to --labels.") from None
    text, note = _decode(path, content)
    skipped = 0
    if named := _SEPARATOR_LINE.match(text):
        text, skipped = text[named.end() :], 1
    delimiter = named[1] if named else _delimiter(text, wanted)
    header, numbered = _cells(path, text, delimiter, skipped)
    if not numbered:
        raise InputError(f"{path.name} has no rows. It needs a line with the names of its columns, and one row per file.")
    _check_names(path, header)
    named_columns = max((number for number, name in enumerate(header, start=1) if name), default=0)
    _check_widths(path, numbered, named_columns, len(header), delimiter)
    lines, rows = zip(*numbered, strict=True)
    return Table(path, tuple(header[:named_columns]), lines, rows, delimiter, note)


def table_values(path: Path, column: str, records: Sequence[ImageRecord]) -> list[str]:
    """Return the cells of a column for rows of an index; a row that the table does not name has an empty text.

    Parameters
    ----------
    path
        A table as in `read_table`, with a column `patient_key`, `study_instance_uid` or `file` (the path below the source
        folder).
    column
        Its name.
    records
        The rows of the index.

    Raises
    ------
    InputError
        If a column is missing, or rows contradict each other.
    """
    table = read_table(path, (column, *_KEYS))
    key = next((name for name in _KEYS if name in table.columns), None)
    if key is None or column not in table.columns:
        missing = column if key else "patient_key, study_instance_uid or file"
        raise InputError(f"{path.name} has no column {missing}. It has {', '.join(filter(None, table.columns))}.")
    found: dict[str, str] = {}
    for name, cell in zip(table.column(key), table.column(column), strict=True):
        if found.setdefault(name, cell) != cell:
            raise InputError(f"{path.name} has both {found[name]!r} and {cell!r} as {column} of {name}. Keep one of the rows.")
    values = [found.get(_KEYS[key](record), "") for record in records]
    if not any(values):
        raise InputError(f"No {key} of {path.name} is one of the index. Copy them from its frames.parquet.")
    return values


_KEYS: Mapping[str, Callable[[ImageRecord], str]] = {
    "patient_key": lambda record: record.patient_key,
    "study_instance_uid": lambda record: record.key.study_instance_uid,
    "file": lambda record: record.source,
}
"""What the rows of a table may name, and where the index has it."""


def _decode(path: Path, content: bytes) -> tuple[str, str]:
    """Return the text of a table, and a sentence on its encoding if that had to be assumed."""
    if kind := next((kind for signature, kind in _NO_TEXT.items() if content.startswith(signature)), ""):
        raise InputError(f"{path.name} is {kind}, not a table of text. Save it as CSV, and give that. {_SAVE_AS}")
    encoding = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), "") or _utf_16(content)
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        if encoding:
            raise InputError(f"{path.name} is cut off, or its encoding is damaged. Save it again. {_SAVE_AS}") from None
        return _decode_western(path, content)
    if "\0" in text:
        raise InputError(f"{path.name} holds characters of value 0. Save it again. {_SAVE_AS}")
    return text, ""


def _utf_16(content: bytes) -> str:
    """Return which UTF-16 a text without a mark is in: every second byte of most letters is 0; empty if it is none."""
    head = content[:_HEAD]
    for encoding, zeros, letters in (("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2])):
        if len(zeros) > 1 and 2 * zeros.count(0) > len(zeros) and not letters.count(0):
            return encoding
    return ""


def _decode_western(path: Path, content: bytes) -> tuple[str, str]:
    """Read a text that is not UTF-8 as Windows-1252, unless it then has what words of Western Europe do not have."""
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        text = ""
    if not text or "\0" in text or _NOT_WESTERN.search(text):
        raise InputError(f"{path.name} is neither in UTF-8 nor in a Western European encoding. Save it again. {_SAVE_AS}")
    return text, (
        f"{path.name} is not in UTF-8 and was read as Windows-1252 (Western Europe). If letters with accents are wrong in the "
        "labels, save it as CSV in UTF-8."
    )


def _delimiter(text: str, wanted: Collection[str]) -> str:
    """Return the delimiter that gives the first line the most of the wanted columns, and then the most cells."""
    known = {name.casefold() for name in wanted}

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        except csv.Error:
            return 0, 0
        return sum(same_text(cell).casefold() in known for cell in cells), len(cells)

    return max(_DELIMITERS, key=fit)


def _cells(path: Path, text: str, delimiter: str, skipped: int) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the cells of the first line, and those of each row that is not empty with the number of its line."""
    numbered, line = [], 1
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        header = [same_text(name) for name in next(reader, [])]
        line = reader.line_num + 1
        for cells in reader:
            row = [trimmed(cell) for cell in cells]
            if any(row):
                numbered.append((line + skipped, row))
            line = reader.line_num + 1
    except csv.Error:
        raise InputError(
            f"{path.name} has no cells that can be told apart from line {line + skipped} on. A quotation mark is missing "
            "there, or there is one too many."
        ) from None
    return header, numbered


def _check_names(path: Path, header: Sequence[str]) -> None:
    counts = Counter(name.casefold() for name in header if name)
    if twice := sorted(shortened(name) for name, count in counts.items() if count > 1):
        raise InputError(
            f"{path.name} has more than one column {', '.join(twice[:_LINES_SHOWN])}. Leave one of each, or give them "
            "different names; case and blanks make no difference."
        )


def _check_widths(path: Path, rows: Sequence[tuple[int, Sequence[str]]], named: int, width: int, delimiter: str) -> None:
    """Refuse rows of which it is not certain which cell belongs to which column (RFC 4180, section 2, rule 4).

    Parameters
    ----------
    named
        How many columns there are up to the last that has a name; cells beyond must be empty.
    width
        How many cells the first line has.
    """
    more = [line for line, cells in rows if len(cells) > width or any(cells[named:])]
    fewer = [line for line, cells in rows if len(cells) < named]
    if more:
        between = _DELIMITERS.get(delimiter, delimiter).removesuffix("s")
        raise InputError(
            f"{path.name} has {named} columns, and more cells than that in {in_lines(more)}. Put quotation marks around a cell "
            f"that contains a {between}."
        )
    if fewer:
        raise InputError(
            f"{path.name} has {named} columns, and fewer cells than that in {in_lines(fewer)}. Add the cells that are missing, "
            "empty ones too."
        )


def join_tables(first: Table, second: Table) -> Table:
    """Join two tables by the columns that both have, such as labels of studies and a list of images with their splits.

    What stands in these columns may occur in several rows of one table, and in one row of the other, which is then repeated.
    Rows without a partner are left out, with a note.

    Raises
    ------
    InputError
        If the tables have no column in common, combinations occur several times in both, or no row has a partner.
    """
    both = f"{first.path.name} and {second.path.name}"
    known = {name.casefold(): name for name in second.columns if name}
    pairs = [(name, known[name.casefold()]) for name in first.columns if name.casefold() in known]
    if not pairs:
        raise InputError(
            f"{both} have no column in common to be joined by. Give the column that means the same in both, such as study_id, "
            "the same name."
        )
    by = ", ".join(name for name, _ in pairs)
    keys = [list(zip(*(table.column(pair[side]) for pair in pairs), strict=True)) for side, table in enumerate((first, second))]
    if all(len(set(some)) < len(some) for some in keys):
        raise InputError(
            f"{both} were to be joined by the columns that both have: {by}. In both, the same cells occur in several rows, so "
            "it is not certain which belong together. Rename or remove columns that mean something else."
        )
    order = (1, 0) if len(set(keys[1])) < len(keys[1]) else (0, 1)
    many, one = (((first, keys[0]), (second, keys[1]))[side] for side in order)
    further = [place for place, name in enumerate(one[0].columns) if name not in {pair[order[1]] for pair in pairs}]
    partners = dict(zip(one[1], one[0].rows, strict=True))
    kept = [row for row, key in enumerate(many[1]) if key in partners]
    if not kept:
        raise InputError(f"No row of {first.path.name} has the same {by} as a row of {second.path.name}. Check both tables.")
    lost = len(many[1]) - len(kept), len(partners.keys() - set(many[1]))
    notes = [table.note for table in (first, second)] + [
        f"Rows of {table.path.name} without a partner in {other.path.name} that were left out: {count}."
        for count, table, other in zip(lost, (many[0], one[0]), (one[0], many[0]), strict=True)
        if count
    ]
    width, keys_kept = len(many[0].columns), tuple(pair[order[0]] for pair in pairs)
    is_repeated = len(set(many[1])) < len(many[1])
    repeated = {one[0].columns[place]: keys_kept for place in further if is_repeated}
    return Table(
        many[0].path,
        (*many[0].columns, *(one[0].columns[place] for place in further)),
        tuple(many[0].lines[row] for row in kept),
        tuple((*many[0].rows[row][:width], *(partners[many[1][row]][place] for place in further)) for row in kept),
        many[0].delimiter,
        " ".join(filter(None, notes)),
        {**many[0].repeated, **one[0].repeated, **repeated},
    )


def no_column(table: Table, missing: Sequence[str], advice: str) -> InputError:
    """Return the error for columns that a table lacks; a first line that holds data, not names, is recognised."""
    if any(_PICTURE.search(name) for name in table.columns):
        return InputError(
            f"The first line of {table.path.name} holds data, not the names of columns. Put a line with their names in front "
            f"of it, such as {table.delimiter.join(('file', 'label'))}."
        )
    known = ", ".join(map(shortened, table.columns[:_COLUMNS_SHOWN]))
    more = f" and {len(table.columns) - _COLUMNS_SHOWN} more" if len(table.columns) > _COLUMNS_SHOWN else ""
    return InputError(f"{table.path.name} has no column {' and '.join(missing)}; its columns are {known}{more}. {advice}")
