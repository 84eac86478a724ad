"""The index on disk: what is written comes back, and damage is noticed."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.frames import ImageRecord, LabelLevel, Quarantined, Split
from pipeline.ingest.index import FILES, Index, difference, load_index, quarantine_to_csv, write_index
from pipeline.settings import Check
from tests.builders import make_key


def make_record(number: int = 1, **overrides: Any) -> ImageRecord:
    values: dict[str, Any] = {
        "key": make_key(number=number),
        "root": 0,
        "source": f"a/{number}.png",
        "patient_key": f"p{number}",
        "pixel_sha256": f"{number:064x}",
        "labels": {"X": True, "Y": None},
        "split": Split.TRAIN,
        "rows": 8,
        "columns": 9,
    }
    return ImageRecord(**(values | overrides))


def make_index(**overrides: Any) -> Index:
    values: dict[str, Any] = {
        "records": (
            make_record(1, file_sha256="f" * 64, label_level=LabelLevel.EYE),
            make_record(2, split=Split.TEST, labels={"X": False, "Y": True}, modality="DX", flags=(Check.ROTATED,)),
        ),
        "quarantine": (
            Quarantined("ä,\r\n.dcm", "truncated", 'It is "cut".'),
            Quarantined("b.dcm", "no_pixels", "No.", 3, root=1),
            Quarantined("=1+1.dcm", "blank", "-No."),
            Quarantined("'@x.dcm", "blank", "'No."),
        ),
        "sources": (Path("/data"),),
        "labels": ("X", "Y"),
        "seed": 4,
        "percent": (70, 10, 10, 10),
    }
    return Index(**(values | overrides))


def as_tuple(index: Index) -> tuple[Any, ...]:
    return tuple(getattr(index, name) for name in Index.__slots__)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    written = write_index(tmp_path / "set", make_index())
    assert written.name == "set"
    assert as_tuple(load_index(tmp_path / "set")) == as_tuple(written)


def test_a_spreadsheet_finds_no_formula() -> None:
    content = quarantine_to_csv([Quarantined(f"{first}1.dcm", "blank", "No.") for first in "=+-@\t\r"])
    cells = [row["source"] for row in csv.DictReader(io.StringIO(content.decode(), newline=""))]
    assert cells == [f"'{first}1.dcm" for first in "=+-@\t\r"]


def test_what_an_older_index_decided_otherwise_is_named(tmp_path: Path) -> None:
    assert difference(tmp_path, make_index()) == ""
    write_index(tmp_path, make_index())
    assert difference(tmp_path, make_index(records=())) == ""
    other = make_index(sources=(Path("/other"),), labels=("X",), percent=None, seed=5)
    assert difference(tmp_path, other) == "The index that was here had other sources, labels, shares, seed; it was replaced."


FULL = """
import resource, sys
from pathlib import Path
from dataclasses import replace
from pipeline.errors import InputError
from pipeline.ingest.index import load_index, write_index

index = load_index(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write_index(Path(sys.argv[1]), replace(index, quarantine=index.quarantine * 1000))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("most", [100, 2**15])
def test_an_index_that_cannot_be_written_leaves_the_older_one_whole(tmp_path: Path, most: int) -> None:
    before = write_index(tmp_path / "set", make_index())
    command = [sys.executable, "-c", FULL, str(tmp_path / "set"), str(most)]
    said = subprocess.run(command, capture_output=True, check=True, text=True, cwd=Path(__file__).parents[1])
    assert said.stdout.startswith("The index set cannot be written: File too large. Free some space")
    assert as_tuple(load_index(tmp_path / "set")) == as_tuple(before)
    assert {path.name for path in (tmp_path / "set").iterdir()} == set(FILES)


def test_the_same_index_has_the_same_hash_wherever_it_lies(tmp_path: Path) -> None:
    first, second = (write_index(tmp_path / name, make_index(sources=(Path(name),))) for name in "ab")
    assert first.sha256 == second.sha256
    assert write_index(tmp_path / "c", make_index(records=(make_record(3),))).sha256 != first.sha256


def test_the_parquet_file_is_typed_and_open_to_others(tmp_path: Path) -> None:
    write_index(tmp_path, make_index())
    table = pq.read_table(tmp_path / "frames.parquet")
    assert str(table.schema.field("label.Y").type) == "bool"
    assert table.schema.field("label.Y").nullable
    assert not table.schema.field("patient_key").nullable
    assert table.column("label.Y").to_pylist() == [None, True]


def test_the_summary_counts_frames_patients_and_labels(tmp_path: Path) -> None:
    write_index(tmp_path, make_index())
    summary = json.loads((tmp_path / "index.json").read_text())
    assert summary["counts"]["test"] == {"frames": 1, "patients": 1, "label.X": 0, "label.Y": 1}
    assert summary["sources"] == ["/data"]
    assert (summary["seed"], summary["percent"]) == (4, [70, 10, 10, 10])


def test_targets_are_one_zero_and_unknown() -> None:
    index = make_index()
    np.testing.assert_array_equal(index.targets(index.records, ("Y", "X")), [[np.nan, 1], [1, 0]])
    assert index.targets((), ("Y", "X")).shape == (0, 2)
    assert [record.source for record in index.of(Split.TEST)] == ["a/2.png"]
    with pytest.raises(InputError, match="has no label Z; its labels are X, Y"):
        index.targets(index.records, ("Z",))


def test_duplicates_and_contradictions_are_counted() -> None:
    same = [make_record(number, pixel_sha256="s") for number in (1, 2)]
    other = make_record(3, pixel_sha256="s", labels={"X": False, "Y": True})
    assert (make_index(records=tuple(same)).duplicates(), make_index(records=tuple(same)).contradictions()) == (1, 0)
    assert (make_index(records=(*same, other)).duplicates(), make_index(records=(*same, other)).contradictions()) == (2, 1)


def test_frames_that_name_no_patient_are_counted() -> None:
    assert make_index().unknown_patients() == 0
    assert make_index(records=(make_record(1), make_record(2, patient_key="1.2.3.2"))).unknown_patients() == 1


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("index.json", None, "is not an index: it has no readable index.json"),
        ("index.json", b"{", "The index.json of index set is damaged"),
        ("index.json", b"[]", "The index.json of index set is damaged"),
        ("index.json", b'{"schema_version": 4}', "has schema version 4; this octray reads 3. Install a newer octray"),
        ("index.json", b'{"schema_version": 2}', "has schema version 2; this octray reads 3. Ingest the studies again"),
        ("index.json", b'{"schema_version": 3}', "The index set is damaged"),
        ("frames.parquet", None, "is incomplete"),
        ("frames.parquet", b"PAR1", "The file frames.parquet of index set was altered or cut"),
        ("quarantine.csv", b"", "The file quarantine.csv of index set was altered or cut"),
    ],
)
def test_damage_is_noticed(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    write_index(tmp_path / "set", make_index())
    (tmp_path / "set" / file).unlink() if content is None else (tmp_path / "set" / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_index(tmp_path / "set")


def test_an_index_over_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "set").touch()
    with pytest.raises(InputError, match="The index set cannot be written"):
        write_index(tmp_path / "set", make_index())


def test_an_index_that_could_not_be_finished_is_none(tmp_path: Path) -> None:
    write_index(tmp_path, make_index())
    (tmp_path / "frames.parquet").unlink()
    (tmp_path / "frames.parquet").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_index(tmp_path, make_index())
    with pytest.raises(InputError, match="is incomplete"):
        load_index(tmp_path)
