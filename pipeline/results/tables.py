"""Results as tables (`predictions.csv`, `levels.csv`, `failures.csv`) and as one JSON object a frame.

The tables are RFC 4180: UTF-8, comma, CRLF, one header line. Numbers carry four digits after the point: more than anyone reads,
and fewer than what other hardware changes. Text that a spreadsheet would take for a formula gets a leading apostrophe, and so
does text that has one before such a start, so that whoever takes one apostrophe away has every text as it was."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.atomic import remove_leftovers, replacing, replacing_text
from pipeline.csv_escape import csv_escape
from pipeline.errors import Reason
from pipeline.frames import Quarantined
from pipeline.levels import LevelResult
from pipeline.predictions import DIGITS, FramePrediction, Prediction, State, rounded

Value = str | int | float | bool | None
Column = tuple[type[str | int | float | bool], Callable[[FramePrediction, Prediction], Value]]
"""The type of its values, and what gives one; None is what is not known."""

COLUMNS: Mapping[str, Column] = {
    "source": (str, lambda frame, _: frame.source),
    "study_instance_uid": (str, lambda frame, _: frame.key.study_instance_uid),
    "series_instance_uid": (str, lambda frame, _: frame.key.series_instance_uid),
    "sop_instance_uid": (str, lambda frame, _: frame.key.sop_instance_uid),
    "frame_number": (int, lambda frame, _: frame.key.frame_number),
    "laterality": (str, lambda frame, _: frame.facts.laterality),
    "view_position": (str, lambda frame, _: frame.facts.view_position),
    "label": (str, lambda _, prediction: prediction.label),
    "logit": (float, lambda _, prediction: rounded(prediction.logit)),
    "probability": (float, lambda _, prediction: rounded(prediction.probability)),
    "positive": (bool, lambda _, prediction: prediction.positive),
    "state": (str, lambda _, prediction: prediction.state.value),
    "operating_point": (float, lambda _, prediction: rounded(prediction.operating_point)),
    "disagreement": (
        float,
        lambda _, prediction: None if prediction.disagreement is None else rounded(prediction.disagreement),
    ),
    "conformal_set": (str, lambda _, prediction: ";".join(prediction.conformal_set)),
    "distance": (float, lambda frame, _: rounded(frame.distance)),
    "flags": (str, lambda frame, _: ";".join(flag.check for flag in frame.flags)),
    "bundle_id": (str, lambda frame, _: frame.bundle_id),
    "input_sha256": (str, lambda frame, _: frame.facts.file_sha256),
}


def rows_of(frame: FramePrediction) -> list[dict[str, Value]]:
    """Return the rows of a frame, one for each label, numbers rounded."""
    return [{name: value(frame, prediction) for name, (_, value) in COLUMNS.items()} for prediction in frame.predictions]


PREDICTION_COLUMNS = tuple(COLUMNS)
_LABEL_COLUMNS = ("label", "logit", "probability", "positive", "state", "operating_point", "disagreement", "conformal_set")
"""Those that differ between the rows of one frame."""
FAILURE_COLUMNS = ("source", "frame_number", "state", "reason", "message")
LEVEL_COLUMNS: Mapping[str, type[str | int | float | bool]] = {
    "level": str,
    "study_instance_uid": str,
    "patient": str,
    "laterality": str,
    "studies": int,
    "frames": int,
    "left_out": int,
    "pooling": str,
    "label": str,
    "probability": float,
    "positive": bool,
    "state": str,
    "operating_point": float,
    "deciding_source": str,
    "deciding_frame_number": int,
    "deciding_weight": float,
    "bundle_id": str,
}
"""Names and types of the columns about studies, eyes and patients."""
AddLevel = Callable[[LevelResult, str, str], None]
"""Adds the rows of a result, given the Study Instance UID if it is of one study, and a name of the patient within this table if
it is of all studies of a patient."""


def level_rows(bundle_id: str, result: LevelResult, study_instance_uid: str, patient: str) -> list[dict[str, Value]]:
    """Return the rows of a study, an eye or a patient, one for each label, numbers rounded.

    A result without a state has one row, without a label, whose state is `not_scorable`.
    """
    counts = (result.studies, result.frames, result.left_out, result.pooling.value)
    unit = (result.level.value, study_instance_uid, patient, result.laterality, *counts)
    rows: list[tuple[Value, ...]] = []
    for one in result.predictions:
        first, is_positive = one.deciding[0], one.state is State.POSITIVE
        said = (one.label, rounded(one.probability), is_positive, one.state.value, rounded(one.operating_point))
        rows.append((*unit, *said, first.source, first.frame_number, rounded(first.weight), bundle_id))
    if not rows:
        rows.append((*unit, "", None, None, State.NOT_SCORABLE.value, None, "", None, None, bundle_id))
    return [dict(zip(LEVEL_COLUMNS, row, strict=True)) for row in rows]


@contextmanager
def predictions_table(path: Path) -> Iterator[Callable[[FramePrediction], None]]:
    """Give what adds the rows of a frame, one for each label; the file appears at the end, whole or not at all."""
    with _table(path, PREDICTION_COLUMNS) as writer:
        yield lambda frame: writer.writerows([map(_cell, row.values()) for row in rows_of(frame)])


@contextmanager
def failures_table(path: Path) -> Iterator[Callable[[Quarantined], None]]:
    """Give what adds a file or frame that was not scored; the file appears at the end, with its header if there is none."""
    with _table(path, FAILURE_COLUMNS) as writer:
        yield lambda failure: writer.writerow(_failure_row(failure))


@contextmanager
def levels_table(path: Path, bundle_id: str) -> Iterator[AddLevel]:
    """Give what adds the `level_rows` of a study, an eye or a patient; the file appears at the end, whole or not at all."""
    with _table(path, tuple(LEVEL_COLUMNS)) as writer:
        yield lambda *about: writer.writerows([map(_cell, row.values()) for row in level_rows(bundle_id, *about)])


def frame_record(frame: FramePrediction) -> dict[str, Any]:
    """Return one frame with all its labels as a JSON object: the columns of the table, with lists instead of joined text."""
    rows = rows_of(frame)
    labels = [
        {name: row[name] for name in _LABEL_COLUMNS} | {"conformal_set": list(one.conformal_set)}
        for row, one in zip(rows, frame.predictions, strict=True)
    ]
    flags = [{"check": flag.check.value, "message": flag.message} for flag in frame.flags]
    values = {name: value for name, value in rows[0].items() if name not in _LABEL_COLUMNS}
    return values | {
        "predictions": labels,
        "flags": flags,
        "heatmaps": {one.label: one.picture for one in frame.heatmaps if one.picture},
    }


def failure_record(failure: Quarantined) -> dict[str, Any]:
    """Return a file or frame that was not scored as a JSON object; its state is `not_scorable`, or `no_image`."""
    return {
        "source": failure.source,
        "frame_number": failure.frame_number,
        "state": state_of(failure).value,
        "reason": str(failure.reason),
        "message": failure.message,
    }


def state_of(item: Quarantined) -> State:
    """Return the state of what was not scored: whether it could not be, or there is nothing to score in it."""
    return State.NO_IMAGE if item.reason == Reason.NO_IMAGE else State.NOT_SCORABLE


def _number(value: float) -> str:
    """Return a number with `DIGITS` digits after the point, and no minus before a zero."""
    return f"{rounded(value):.{DIGITS}f}"


def _cell(value: Value) -> str | int:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _number(value)
    return csv_escape(value) if isinstance(value, str) else value


def _failure_row(item: Quarantined) -> tuple[str | int, ...]:
    frame_number = item.frame_number or ""
    return (csv_escape(item.source), frame_number, state_of(item).value, csv_escape(item.reason), csv_escape(item.message))


@contextmanager
def _table(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    remove_leftovers(path)
    with replacing_text(path) as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        yield writer


_ROWS = 8_192
_ARROW = {str: "string", int: "int32", float: "double", bool: "bool"}


@contextmanager
def parquet_table(path: Path) -> Iterator[Callable[[FramePrediction], None]]:
    """Give what adds the rows of a frame, one for each label; the file appears at the end, whole or not at all.

    Memory does not grow with the rows, and equal rows give equal bytes. Text is as it is, without the guard of the CSV table;
    what is not known is null.
    """
    with _parquet(path, {name: kind for name, (kind, _) in COLUMNS.items()}) as add:
        yield lambda frame: add(rows_of(frame))


@contextmanager
def levels_parquet(path: Path, bundle_id: str) -> Iterator[AddLevel]:
    """Give what adds the `level_rows` of a study, an eye or a patient, as `parquet_table` does for frames."""
    with _parquet(path, LEVEL_COLUMNS) as add:
        yield lambda *about: add(level_rows(bundle_id, *about))


@contextmanager
def _parquet(path: Path, kinds: Mapping[str, type]) -> Iterator[Callable[[list[dict[str, Value]]], None]]:
    """Give what adds rows with columns of these types to a Parquet file."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = pyarrow.schema([(name, pyarrow.type_for_alias(_ARROW[kind])) for name, kind in kinds.items()])
    waiting: list[dict[str, Value]] = []
    remove_leftovers(path)
    with replacing(path) as temporary, temporary.open("wb") as file, ParquetWriter(file, schema) as writer:

        def add(rows: list[dict[str, Value]]) -> None:
            waiting.extend(rows)
            if len(waiting) >= _ROWS:
                writer.write_table(_typed(waiting, schema))
                waiting.clear()

        yield add
        if waiting:
            writer.write_table(_typed(waiting, schema))


def _typed(rows: Iterable[Mapping[str, Value]], schema: Any) -> Any:
    """Return rows as a table, by way of JSON: making one of Python objects imports pandas, a quarter of a second."""
    import pyarrow
    from pyarrow.json import ParseOptions, ReadOptions, read_json

    lines = "\n".join(map(json.dumps, rows)).encode()
    options = ReadOptions(use_threads=False, block_size=len(lines) + 1)
    return read_json(pyarrow.BufferReader(lines), options, ParseOptions(explicit_schema=schema))
