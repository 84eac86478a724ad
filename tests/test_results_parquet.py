"""The table as Parquet: what pyarrow reads back is what stands in the CSV table."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

from pipeline.predictions import FramePrediction, State
from pipeline.results import parquet
from pipeline.results.parquet import parquet_table
from pipeline.results.tables import PREDICTION_COLUMNS, predictions_table
from pipeline.settings import Check, Flag
from tests.builders import fill, make_key, make_prediction


def make_frames(count: int) -> list[FramePrediction]:
    frames = []
    for number in range(count):
        key = make_key(number + 1)
        known = number % 2 == 0
        predictions = tuple(
            make_prediction(
                label,
                (number + 1) / 7,
                number % 3 == 0,
                key=key,
                **({"state": State.UNCERTAIN} if known else {}),
                operating_point=0.25 if known else None,
            )
            for label in ("A", "=B")
        )
        flags = (Flag(Check.ROTATED, "Turned."),) if known else ()
        distance = 0.123456 if known else None
        frames.append(FramePrediction(key, f"=a/{number}.dcm", predictions, (), flags, "R", distance, "f" * 64))
    return frames


def read(path: Path) -> list[dict[str, object]]:
    with pyarrow.parquet.ParquetFile(path) as file:
        return list(file.read(use_threads=False).to_pylist())


def test_it_holds_the_rows_and_columns_of_the_csv_table_with_types(tmp_path: Path) -> None:
    frames = make_frames(5)
    fill(parquet_table(tmp_path / "x.parquet"), frames)
    fill(predictions_table(tmp_path / "x.csv"), frames)
    rows = read(tmp_path / "x.parquet")
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        texts = list(csv.DictReader(file))
    assert tuple(rows[0]) == PREDICTION_COLUMNS
    assert len(rows) == len(texts) == 10
    for row, text in zip(rows, texts, strict=True):
        assert row["source"] == text["source"].removeprefix("'")
        assert row["label"] == text["label"].removeprefix("'")
        for name in ("logit", "probability", "operating_point", "distance"):
            assert row[name] == (float(text[name]) if text[name] else None)
        assert str(row["positive"]).lower() == text["positive"]
        assert row["frame_number"] == int(text["frame_number"])
        for name in ("state", "conformal_set", "flags", "bundle_id", "input_sha256", "laterality", "sop_instance_uid"):
            assert row[name] == text[name]


def test_many_rows_are_written_in_groups_and_equal_rows_give_equal_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_ROWS", 4)
    for name in ("a", "b"):
        fill(parquet_table(tmp_path / name), iter(make_frames(5)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pyarrow.parquet.ParquetFile(tmp_path / "a") as file:
        assert file.num_row_groups == 3
    assert len(read(tmp_path / "a")) == 10


def test_no_rows_make_a_table_with_columns(tmp_path: Path) -> None:
    fill(parquet_table(tmp_path / "x"), [])
    with pyarrow.parquet.ParquetFile(tmp_path / "x") as file:
        assert tuple(file.schema_arrow.names) == PREDICTION_COLUMNS


def test_a_table_that_fails_is_not_there(tmp_path: Path) -> None:
    def frames() -> Iterator[FramePrediction]:
        yield make_frames(1)[0]
        raise ValueError("the source of the rows fails")

    with pytest.raises(ValueError, match="source of the rows"):
        fill(parquet_table(tmp_path / "x"), frames())
    assert list(tmp_path.iterdir()) == []


def test_any_text_comes_back_as_it_is(tmp_path: Path) -> None:
    text = 'a "quoted" \\ name\n\t\0 \u00e4\u4e2d\U0001f600 2026-11-26T10:00:00 true 1e5 null'
    (frame, *_) = make_frames(1)
    fill(parquet_table(tmp_path / "x.parquet"), [replace(frame, source=text)])
    assert [row["source"] for row in read(tmp_path / "x.parquet")] == [text] * 2
