"""`predictions.parquet`: the rows and columns of `predictions.csv`, with types, for those who read tables with programs."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.atomic import remove_leftovers, replacing
from pipeline.predictions import FramePrediction
from pipeline.results.columns import COLUMNS, Value, rows_of

_ROWS = 8_192
_ARROW = {str: "string", int: "int32", float: "double", bool: "bool"}


@contextmanager
def parquet_table(path: Path) -> Iterator[Callable[[FramePrediction], None]]:
    """Give what adds the rows of a frame, one for each label; the file appears at the end, whole or not at all.

    Memory does not grow with the rows, and equal rows give equal bytes. Text is as it is, without the guard of the CSV table;
    what is not known is null.
    """
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = pyarrow.schema([(name, pyarrow.type_for_alias(_ARROW[kind])) for name, (kind, _) in COLUMNS.items()])
    waiting: list[dict[str, Value]] = []
    remove_leftovers(path)
    with replacing(path) as temporary, ParquetWriter(temporary, schema) as writer:

        def add(frame: FramePrediction) -> None:
            waiting.extend(rows_of(frame))
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
