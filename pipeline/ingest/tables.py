"""The tables of an index as bytes: frames as Parquet, quarantined files as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from pipeline.csv_escape import csv_escape, csv_unescape
from pipeline.frames import ImageRecord, InstanceKey, Quarantined, Split
from pipeline.settings import Check

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
}
_QUARANTINE_COLUMNS = ("source", "reason", "message", "frame_number", "root")


def frames_to_parquet(records: Sequence[ImageRecord], labels: Sequence[str]) -> bytes:
    """Return a Parquet file with one row a record and one nullable column `label.NAME` for each label."""
    values: dict[str, list[Any]] = {name: [getattr(record.key, name) for record in records] for name in _KEY}
    values |= {name: [getattr(record, name) for record in records] for name in _COLUMNS}
    values |= {LABEL + label: [record.labels.get(label) for record in records] for label in labels}
    types = _KEY | _COLUMNS
    fields = [pa.field(name, types.get(name, pa.bool_()), nullable=name not in types) for name in values]
    buffer = pa.BufferOutputStream()
    parquet.write_table(pa.table(values, schema=pa.schema(fields)), buffer, compression="zstd")
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def frames_from_parquet(content: bytes, labels: Sequence[str]) -> tuple[ImageRecord, ...]:
    """Return the records of a Parquet file that `frames_to_parquet` made; of one by octray 0.1, without what it did not know.

    Read by one thread from Arrow's own buffer: after `read_table` on a Python file object, 6 of 120 processes aborted at their
    end; after this, none of 150 (pyarrow 25.0.1, a busy machine; the cause is not known).
    """
    return tuple(
        _to_record(row, labels) for row in parquet.ParquetFile(pa.BufferReader(content)).read(use_threads=False).to_pylist()
    )


def _to_record(row: Mapping[str, Any], labels: Sequence[str]) -> ImageRecord:
    values = {name: row[name] for name in _COLUMNS if name in row} | {"split": Split(row["split"])}
    values["flags"] = tuple(Check(code) for code in row.get("flags", ()))
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
            root=int(row.get("root", 0)),
        )
        for row in rows
    )


def _cell(value: object) -> object:
    return csv_escape(value) if isinstance(value, str) else value
