"""Results as tables (`predictions.csv`, `failures.csv`) and as one JSON object a frame.

The tables are RFC 4180: UTF-8, comma, CRLF, one header line. Numbers carry four digits after the point: more than anyone reads,
and fewer than what other hardware changes. Text that a spreadsheet would take for a formula gets a leading apostrophe, and so
does text that has one before such a start, so that whoever takes one apostrophe away has every text as it was.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.atomic import remove_leftovers, replacing_text
from pipeline.csv_escape import csv_escape
from pipeline.errors import Reason
from pipeline.frames import Quarantined
from pipeline.predictions import FramePrediction, State
from pipeline.results.columns import COLUMNS, Value, rows_of
from pipeline.results.rounding import DIGITS, known, rounded

PREDICTION_COLUMNS = tuple(COLUMNS)
FAILURE_COLUMNS = ("source", "frame_number", "state", "reason", "message")


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


def frame_record(frame: FramePrediction) -> dict[str, Any]:
    """Return one frame with all its labels as a JSON object; the numbers are those of the table."""
    return {
        "source": frame.source,
        "study_instance_uid": frame.key.study_instance_uid,
        "series_instance_uid": frame.key.series_instance_uid,
        "sop_instance_uid": frame.key.sop_instance_uid,
        "frame_number": frame.key.frame_number,
        "laterality": frame.laterality,
        "view_position": frame.view_position,
        "distance": known(frame.distance),
        "input_sha256": frame.input_sha256,
        "bundle_id": frame.predictions[0].bundle_id if frame.predictions else "",
        "predictions": [
            {
                "label": prediction.label,
                "logit": rounded(prediction.logit),
                "probability": rounded(prediction.probability),
                "positive": prediction.positive,
                "state": prediction.state.value,
                "operating_point": known(prediction.operating_point),
                "conformal_set": list(prediction.conformal_set),
            }
            for prediction in frame.predictions
        ],
        "flags": [{"check": flag.check.value, "message": flag.message} for flag in frame.flags],
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


def number(value: float) -> str:
    """Return a number with `DIGITS` digits after the point, and no minus before a zero."""
    return f"{rounded(value):.{DIGITS}f}"


def _cell(value: Value) -> str | int:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value)
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
