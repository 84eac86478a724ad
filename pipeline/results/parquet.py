"""`predictions.parquet`: the rows and columns of `predictions.csv`, with types, for those who read tables with programs."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.records import FramePrediction, Prediction
from pipeline.results.record import rounded
from pipeline.results.tables import known

_ROWS = 8_192
_TEXT, _WHOLE, _NUMBER, _TRUTH = "string", "int32", "double", "bool"
_TYPES = {
    "source": _TEXT,
    "study_instance_uid": _TEXT,
    "series_instance_uid": _TEXT,
    "sop_instance_uid": _TEXT,
    "frame_number": _WHOLE,
    "laterality": _TEXT,
    "label": _TEXT,
    "logit": _NUMBER,
    "probability": _NUMBER,
    "positive": _TRUTH,
    "state": _TEXT,
    "operating_point": _NUMBER,
    "conformal_set": _TEXT,
    "distance": _NUMBER,
    "flags": _TEXT,
    "bundle_id": _TEXT,
    "input_sha256": _TEXT,
}


@contextmanager
def parquet_table(path: Path) -> Iterator[Callable[[FramePrediction], None]]:
    """Give what adds the rows of a frame, one for each label; the file appears at the end, whole or not at all.

    Memory does not grow with the rows, and equal rows give equal bytes. Text is as it is, without the guard of the CSV table;
    what is not known is null.
    """
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in _TYPES.items()])
    temporary = path.with_name(f".{path.name}.part")
    waiting: list[dict[str, Any]] = []
    try:
        with ParquetWriter(temporary, schema) as writer:

            def add(frame: FramePrediction) -> None:
                waiting.extend(_row(frame, prediction) for prediction in frame.predictions)
                if len(waiting) >= _ROWS:
                    writer.write_table(_typed(waiting, schema))
                    waiting.clear()

            yield add
            if waiting:
                writer.write_table(_typed(waiting, schema))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _typed(rows: Iterable[Mapping[str, Any]], schema: Any) -> Any:
    """Return rows as a table, by way of JSON: making one of Python objects imports pandas, a quarter of a second."""
    import pyarrow
    from pyarrow.json import ParseOptions, ReadOptions, read_json

    lines = "\n".join(map(json.dumps, rows)).encode()
    options = ReadOptions(use_threads=False, block_size=len(lines) + 1)
    return read_json(pyarrow.BufferReader(lines), options, ParseOptions(explicit_schema=schema))


def _row(frame: FramePrediction, prediction: Prediction) -> dict[str, Any]:
    return {
        "source": frame.source,
        "study_instance_uid": frame.key.study_instance_uid,
        "series_instance_uid": frame.key.series_instance_uid,
        "sop_instance_uid": frame.key.sop_instance_uid,
        "frame_number": frame.key.frame_number,
        "laterality": frame.laterality,
        "label": prediction.label,
        "logit": rounded(prediction.logit),
        "probability": rounded(prediction.probability),
        "positive": prediction.positive,
        "state": prediction.state.value,
        "operating_point": known(prediction.operating_point),
        "conformal_set": ";".join(prediction.conformal_set),
        "distance": known(frame.distance),
        "flags": ";".join(flag.check for flag in frame.flags),
        "bundle_id": prediction.bundle_id,
        "input_sha256": frame.input_sha256,
    }
