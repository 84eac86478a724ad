"""The index: one row a frame, with labels, patient and split; a folder of Parquet, CSV and JSON, `index.json` written last."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from pipeline.atomic import remove_leftovers, replacing
from pipeline.csv_escape import csv_escape, csv_unescape
from pipeline.errors import InputError
from pipeline.frames import ImageRecord, InstanceKey, LabelLevel, Quarantined, Split
from pipeline.ingest.splits import Percent, strata_of
from pipeline.settings import Check

SCHEMA_VERSION = 3
FRAMES = "frames.parquet"
QUARANTINE = "quarantine.csv"
INDEX = "index.json"
FILES = (FRAMES, QUARANTINE, INDEX)
LABEL = "label."
_KEY = {
    "study_instance_uid": pa.string(),
    "series_instance_uid": pa.string(),
    "sop_instance_uid": pa.string(),
    "frame_number": pa.int32(),
}
_COLUMNS = {
    "root": pa.int32(),
    "source": pa.string(),
    "patient_key": pa.string(),
    "pixel_sha256": pa.string(),
    "split": pa.string(),
    "rows": pa.int32(),
    "columns": pa.int32(),
    "modality": pa.string(),
    "view_position": pa.string(),
    "laterality": pa.string(),
    "file_sha256": pa.string(),
    "flags": pa.list_(pa.string()),
    "label_level": pa.string(),
}
_QUARANTINE_COLUMNS = ("source", "reason", "message", "frame_number", "root")


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """Frames with what is known of them.

    Parameters
    ----------
    records
        One for each frame, in the order of studies, series, instances and frame numbers.
    quarantine
        What could not be used, and why.
    sources
        The source folders, absolute; `ImageRecord.root` points into them.
    labels
        Names of all labels, sorted.
    name
        Name of the index folder; empty before it is written.
    sha256
        Hash of `frames.parquet`; empty before it is written.
    seed
        Seed of the splits.
    percent
        Shares of the splits that were asked for; None if the table of labels gave the splits.
    """

    records: tuple[ImageRecord, ...]
    quarantine: tuple[Quarantined, ...]
    sources: tuple[Path, ...]
    labels: tuple[str, ...]
    name: str = ""
    sha256: str = ""
    seed: int = 0
    percent: Percent | None = None

    def of(self, split: Split) -> tuple[ImageRecord, ...]:
        """Return the records of one split."""
        return tuple(record for record in self.records if record.split == split)

    def targets(self, records: Sequence[ImageRecord], labels: Sequence[str]) -> NDArray[np.float64]:
        """Return what is true of some records.

        Parameters
        ----------
        records
            Rows of this index.
        labels
            Which labels, in which order.

        Returns
        -------
        NDArray
            float64 of shape (records, labels): 1 if the label is present, 0 if it is absent, nan if that is unknown.

        Raises
        ------
        InputError
            If the index does not have a label.
        """
        if unknown := [label for label in labels if label not in self.labels]:
            raise InputError(
                f"The index {self.name} has no label {', '.join(unknown)}; its labels are {', '.join(self.labels) or 'none'}."
            )
        values = {True: 1.0, False: 0.0, None: np.nan}
        table = [[values[record.labels.get(label)] for label in labels] for record in records]
        return np.array(table, dtype=np.float64).reshape(len(records), len(labels))

    def strata(self) -> list[list[str]]:
        """Return for each record what every split should have an example of, see `pipeline.ingest.splits.strata_of`."""
        return strata_of(self.targets(self.records, self.labels), self.labels)

    def duplicates(self) -> int:
        """Return how many frames have the same pixels as an earlier one."""
        return len(self.records) - len({record.pixel_sha256 for record in self.records})

    def contradictions(self) -> int:
        """Return how many pictures occur more than once with different labels."""
        pairs = {(record.pixel_sha256, tuple(sorted(record.labels.items(), key=str))) for record in self.records}
        return sum(count > 1 for count in Counter(pixels for pixels, _ in pairs).values())

    def unknown_patients(self) -> int:
        """Return how many frames name no patient; the study of each counts as one."""
        return sum(record.patient_key == record.key.study_instance_uid for record in self.records)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return for each split its frames, its patients, and the frames in which each label holds."""
        table = {}
        for split in Split:
            records = self.of(split)
            if split is Split.PROMOTION and not records:
                continue
            held = {label: sum(record.labels.get(label) is True for record in records) for label in self.labels}
            table[split.value] = {
                "frames": len(records),
                "patients": len({record.patient_key for record in records}),
            } | {LABEL + label: count for label, count in held.items()}
        return table


def write_index(path: Path, index: Index) -> Index:
    """Write an index into a folder, an older one there replaced; return it with its name and hash.

    Raises
    ------
    InputError
        If the folder cannot be written; an older index then stays as it was.
    """
    frames = frames_to_parquet(index.records, index.labels)
    written = replace(index, name=path.absolute().name, sha256=hashlib.sha256(frames).hexdigest())
    quarantine = quarantine_to_csv(index.quarantine)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "name": written.name,
        "sources": [str(source) for source in index.sources],
        "labels": index.labels,
        "seed": index.seed,
        "percent": index.percent,
        "counts": index.counts(),
        "duplicates": index.duplicates(),
        "files": {FRAMES: written.sha256, QUARANTINE: hashlib.sha256(quarantine).hexdigest()},
    }
    contents = {FRAMES: frames, QUARANTINE: quarantine, INDEX: f"{json.dumps(summary, indent=2)}\n".encode()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:  # replaces the older files when the new ones are complete; the last one entered first
            for name, content in reversed(contents.items()):
                remove_leftovers(path / name)
                stack.enter_context(replacing(path / name)).write_bytes(content)
    except OSError as error:
        raise InputError(
            f"The index {written.name} cannot be written: {error.strerror}. Free some space, or give --out another folder."
        ) from None
    return written


def difference(path: Path, index: Index) -> str:
    """Return a sentence on what differs in the index that is at `path`; empty if there is none, or nothing differs."""
    try:
        older = _read_summary(path, path.name)
    except InputError:
        return ""
    pairs = {
        "sources": (older.get("sources"), [str(source) for source in index.sources]),
        "labels": (older.get("labels"), list(index.labels)),
        "shares": (older.get("percent"), list(index.percent) if index.percent else None),
        "seed": (older.get("seed"), index.seed),
    }
    other = [name for name, (before, now) in pairs.items() if before != now]
    return f"The index that was here had other {', '.join(other)}; it was replaced." if other else ""


def load_index(path: Path | str) -> Index:
    """Load an index and check that its files are those that were written.

    Raises
    ------
    InputError
        If it is missing, damaged, or of another schema.
    """
    path = Path(path)
    name = path.absolute().name
    summary = _read_summary(path, name)
    try:
        contents = {file: (path / file).read_bytes() for file in (FRAMES, QUARANTINE)}
        for file, content in contents.items():
            if hashlib.sha256(content).hexdigest() != summary["files"][file]:
                raise InputError(f"The file {file} of index {name} was altered or cut. Ingest the studies again.")
        labels = tuple(summary["labels"])
        return Index(
            frames_from_parquet(contents[FRAMES], labels),
            quarantine_from_csv(contents[QUARANTINE]),
            tuple(Path(source) for source in summary["sources"]),
            labels,
            summary["name"],
            summary["files"][FRAMES],
            summary["seed"],
            tuple(summary["percent"]) if summary["percent"] else None,
        )
    except OSError:
        raise InputError(
            f"The index {name} is incomplete: one of its files cannot be read. Ingest the studies again."
        ) from None
    except (KeyError, TypeError, ValueError, pa.ArrowException):
        raise InputError(f"The index {name} is damaged. Ingest the studies again.") from None


def _read_summary(path: Path, name: str) -> dict[str, Any]:
    try:
        text = (path / INDEX).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"{name} is not an index: it has no readable {INDEX}. Give the folder that `octray ingest --out` wrote."
        ) from None
    try:
        summary: dict[str, Any] = json.loads(text)
        version = int(summary["schema_version"])
    except (ValueError, TypeError, KeyError):
        raise InputError(f"The {INDEX} of index {name} is damaged. Ingest the studies again.") from None
    if version != SCHEMA_VERSION:
        mend = "Install a newer octray." if version > SCHEMA_VERSION else "Ingest the studies again."
        raise InputError(f"The index {name} has schema version {version}; this octray reads {SCHEMA_VERSION}. {mend}")
    return summary


def frames_to_parquet(records: Sequence[ImageRecord], labels: Sequence[str]) -> bytes:
    """Return a Parquet file with one row a record and one nullable column `label.NAME` for each label."""
    values: dict[str, list[Any]] = {name: [getattr(record.key, name) for record in records] for name in _KEY}
    values |= {name: [getattr(record, name) for record in records] for name in _COLUMNS}
    values["label_level"] = [level or "" for level in values["label_level"]]
    values |= {LABEL + label: [record.labels.get(label) for record in records] for label in labels}
    types = _KEY | _COLUMNS
    fields = [pa.field(name, types.get(name, pa.bool_()), nullable=name not in types) for name in values]
    buffer = pa.BufferOutputStream()
    parquet.write_table(pa.table(values, schema=pa.schema(fields)), buffer, compression="zstd")
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def frames_from_parquet(content: bytes, labels: Sequence[str]) -> tuple[ImageRecord, ...]:
    """Return the records of a Parquet file that `frames_to_parquet` made.

    Read by one thread from Arrow's own buffer: after `read_table` on a Python file object, 6 of 120 processes aborted at their
    end; after this, none of 150 (pyarrow 25.0.1, a busy machine; the cause is not known).
    """
    return tuple(
        _to_record(row, labels) for row in parquet.ParquetFile(pa.BufferReader(content)).read(use_threads=False).to_pylist()
    )


def _to_record(row: Mapping[str, Any], labels: Sequence[str]) -> ImageRecord:
    values = {name: row[name] for name in _COLUMNS} | {"split": Split(row["split"])}
    values["flags"] = tuple(map(Check, row["flags"]))
    values["label_level"] = LabelLevel(row["label_level"]) if row["label_level"] else None
    return ImageRecord(
        key=InstanceKey(*(row[name] for name in _KEY)), labels={label: row[LABEL + label] for label in labels}, **values
    )


def quarantine_to_csv(quarantine: Sequence[Quarantined]) -> bytes:
    """Return a CSV file with one row for each file or frame that could not be used.

    A text that a spreadsheet would take for a formula is preceded by an apostrophe.
    """
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(_QUARANTINE_COLUMNS)
    table.writerows([_cell(getattr(row, name)) for name in _QUARANTINE_COLUMNS] for row in quarantine)
    return text.getvalue().encode()


def quarantine_from_csv(content: bytes) -> tuple[Quarantined, ...]:
    """Return the rows of a CSV file that `quarantine_to_csv` made."""
    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    return tuple(
        Quarantined(
            source=csv_unescape(row["source"]),
            reason=row["reason"],
            message=csv_unescape(row["message"]),
            frame_number=int(row["frame_number"]) if row["frame_number"] else None,
            root=int(row["root"]),
        )
        for row in rows
    )


def _cell(value: object) -> object:
    return csv_escape(value) if isinstance(value, str) else value


def column_values(records: Sequence[ImageRecord], column: str) -> list[str]:
    """Return a column of some rows of an index as text; what is not known is an empty text.

    Parameters
    ----------
    records
        The rows.
    column
        `modality`, `view_position`, `laterality`, `label_level`, `flags`, `rows`, `columns`, `root`, or `label.NAME`.

    Raises
    ------
    InputError
        If the index has no such column.
    """
    labels = sorted({LABEL + label for record in records for label in record.labels})
    if column in labels:
        known = {True: "yes", False: "no", None: ""}
        return [known[record.labels.get(column.removeprefix(LABEL))] for record in records]
    if column == "flags":
        return [", ".join(record.flags) for record in records]
    if column not in _GROUPING:
        raise InputError(
            f"The index has no column {column} to group frames by. It has {', '.join((*_GROUPING, 'flags', *labels))}; other "
            "columns can be in a table of your own (--table)."
        )
    return ["" if (value := getattr(record, column)) is None else str(value) for record in records]


_GROUPING = ("modality", "view_position", "laterality", "label_level", "rows", "columns", "root")
