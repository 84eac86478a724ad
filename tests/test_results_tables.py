"""Tables of results: CSV, JSON and Parquet."""

import csv
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frames import FrameFacts, Quarantined
from pipeline.predictions import FramePrediction, State, rounded
from pipeline.results import tables
from pipeline.results.tables import PREDICTION_COLUMNS, parquet_table, predictions_table
from pipeline.settings import Check, Flag
from tests.builders import fill, make_key, make_prediction, make_result


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_have_one_row_a_frame_and_label(tmp_path: Path) -> None:
    normal = make_prediction("NORMAL", 0.1, positive=False, logit=-2.00004)
    fill(tables.predictions_table(tmp_path / "p.csv"), [make_result(normal, make_prediction())])
    content = (tmp_path / "p.csv").read_bytes().decode()
    assert content == (
        "source,study_instance_uid,series_instance_uid,sop_instance_uid,frame_number,laterality,view_position,label,logit,probability,"
        "positive,state,operating_point,disagreement,conformal_set,distance,flags,bundle_id,input_sha256\r\n"
        "a/b.dcm,1.2.3.1,1.2.3.1.1,1.2.3.1.1.1,1,,,NORMAL,-2.0000,0.1000,false,negative,0.5000,,absent,0.5000,,b,\r\n"
        "a/b.dcm,1.2.3.1,1.2.3.1.1,1.2.3.1.1.1,1,,,PNEUMONIA,1.5000,0.9000,true,positive,0.5000,,present,0.5000,,b,\r\n"
    )


def test_what_is_not_certain_and_what_came_in_stand_in_the_row(tmp_path: Path) -> None:
    uncertain = make_prediction(state=State.UNCERTAIN, operating_point=0.43215)
    frame = replace(make_result(uncertain, laterality="L", view_position="PA", file_sha256="ab"), distance=0.71236)
    fill(tables.predictions_table(tmp_path / "p.csv"), [frame])
    (row,) = read(tmp_path / "p.csv")
    expected = {
        "state": "uncertain",
        "operating_point": f"{rounded(0.43215):.4f}",
        "conformal_set": "present;absent",
        "distance": "0.7124",
        "laterality": "L",
        "view_position": "PA",
        "input_sha256": "ab",
    }
    assert row | expected == row
    record = tables.frame_record(frame)
    assert (record["distance"], record["laterality"], record["view_position"]) == (0.7124, "L", "PA")
    assert record["input_sha256"] == "ab"
    assert record["predictions"][0]["conformal_set"] == ["present", "absent"]


def test_what_the_gate_found_stands_in_the_row(tmp_path: Path) -> None:
    flags = (Flag(Check.ROTATED, "Upside down."), Flag(Check.WHITE_BORDERS, "Wedges."))
    frame = replace(make_result(make_prediction()), flags=flags)
    fill(tables.predictions_table(tmp_path / "p.csv"), [frame])
    assert read(tmp_path / "p.csv")[0]["flags"] == "rotated;white_borders"
    assert tables.frame_record(frame)["flags"] == [
        {"check": "rotated", "message": "Upside down."},
        {"check": "white_borders", "message": "Wedges."},
    ]


def test_failures_are_written_even_when_there_are_none(tmp_path: Path) -> None:
    fill(tables.failures_table(tmp_path / "f.csv"), [])
    assert (tmp_path / "f.csv").read_bytes() == b"source,frame_number,state,reason,message\r\n"


def test_failures_name_file_frame_and_reason(tmp_path: Path) -> None:
    fill(
        tables.failures_table(tmp_path / "f.csv"),
        [Quarantined("a.dcm", "truncated", "Cut, short."), Quarantined("b", "r", "m", 3)],
    )
    first, second = read(tmp_path / "f.csv")
    expected = {"source": "a.dcm", "frame_number": "", "state": "not_scorable", "reason": "truncated", "message": "Cut, short."}
    assert first == expected
    assert second["frame_number"] == "3"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_text_that_a_spreadsheet_would_run_is_guarded(start: str, tmp_path: Path) -> None:
    source = f"{start}cmd|'/c calc'!A1,\"x\".dcm"
    fill(tables.predictions_table(tmp_path / "p.csv"), [make_result(make_prediction(logit=-1.0), source=source)])
    (row,) = read(tmp_path / "p.csv")
    assert row["source"] == f"'{source}"
    assert row["logit"] == "-1.0000"


@given(st.floats(-1e6, 1e6))
def test_numbers_have_four_digits_and_no_negative_zero(value: float) -> None:
    written = f"{rounded(value):.4f}"
    assert len(written.partition(".")[2]) == 4
    assert math.isclose(float(written), value, abs_tol=0.5001e-4)
    assert written != "-0.0000"


def test_a_file_name_that_is_not_utf8_is_written(tmp_path: Path) -> None:
    fill(tables.predictions_table(tmp_path / "p.csv"), [make_result(make_prediction(), source="f\udce4.png")])
    assert read(tmp_path / "p.csv")[0]["source"] == "f\\udce4.png"


def test_an_error_on_the_way_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("old")

    def frames() -> Iterator[FramePrediction]:
        yield make_result(make_prediction())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(tables.predictions_table(path), frames())
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("p.csv", "old")]


def test_a_frame_record_has_the_numbers_of_the_table() -> None:
    record = tables.frame_record(make_result(make_prediction(probability=0.123456)))
    assert record["source"] == "a/b.dcm"
    assert record["frame_number"] == 1
    assert record["bundle_id"] == "b"
    assert record["predictions"] == [
        {
            "label": "PNEUMONIA",
            "logit": 1.5,
            "probability": 0.1235,
            "positive": True,
            "state": "positive",
            "operating_point": 0.5,
            "disagreement": None,
            "conformal_set": ["present"],
        }
    ]


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
                **({"state": State.UNCERTAIN} if known else {}),
                operating_point=0.25,
            )
            for label in ("A", "=B")
        )
        flags = (Flag(Check.ROTATED, "Turned."),) if known else ()
        distance = 0.123456
        frames.append(
            FramePrediction(FrameFacts(key, f"=a/{number}.dcm", "R", file_sha256="f" * 64), "b", predictions, flags, distance)
        )
    return frames


def read_parquet(path: Path) -> list[dict[str, object]]:
    with pyarrow.parquet.ParquetFile(path) as file:
        return list(file.read(use_threads=False).to_pylist())


def test_it_holds_the_rows_and_columns_of_the_csv_table_with_types(tmp_path: Path) -> None:
    frames = make_frames(5)
    fill(parquet_table(tmp_path / "x.parquet"), frames)
    fill(predictions_table(tmp_path / "x.csv"), frames)
    rows = read_parquet(tmp_path / "x.parquet")
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
    monkeypatch.setattr(tables, "_ROWS", 4)
    for name in ("a", "b"):
        fill(parquet_table(tmp_path / name), iter(make_frames(5)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pyarrow.parquet.ParquetFile(tmp_path / "a") as file:
        assert file.num_row_groups == 3
    assert len(read_parquet(tmp_path / "a")) == 10


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
    fill(parquet_table(tmp_path / "x.parquet"), [replace(frame, facts=replace(frame.facts, source=text))])
    assert [row["source"] for row in read_parquet(tmp_path / "x.parquet")] == [text] * 2
