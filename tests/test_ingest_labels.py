"""Tables of labels: what they say, and every way in which they can be wrong."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.ingest.labels import FileFacts, folder_labels, match_files, read_labels
from pipeline.records import Split


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_labels_patients_and_splits_are_read_and_other_columns_ignored(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "file,age,label,patient_key,split\n./a/1.png, 4,X ,p1,train\na\\2.png,5,Y,p2,TEST\n\n"))
    assert table.columns == ("file", "age", "label", "patient_key", "split")
    assert table.facts == {
        "a/1.png": FileFacts(frozenset({"X"}), "p1", Split.TRAIN),
        "a/2.png": FileFacts(frozenset({"Y"}), "p2", Split.TEST),
    }


def test_a_file_in_several_rows_has_several_labels(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "file,label\n1.png,X\n1.png,Y\n1.png,X\n"))
    assert table.facts["1.png"].labels == {"X", "Y"}


def test_the_byte_order_mark_of_a_spreadsheet_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert read_labels(write(tmp_path, "file,label\n1.png,X\n", "utf-8-sig")).columns == ("file", "label")


def test_another_column_can_hold_the_patients(tmp_path: Path) -> None:
    path = write(tmp_path, "file,label,patient_key,mrn\n1.png,X,p,m\n")
    assert read_labels(path, "mrn").facts["1.png"].patient_key == "m"
    assert read_labels(path, r"(\d+)").facts["1.png"].patient_key is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("file,label\n", "has no rows"),
        ("name;label\n1.png;X\n", "has no column file and label; its columns are name;label"),
        ("file,finding\n1.png,X\n", "has no column label; its columns are file, finding"),
        ("file,label\na/1.png,\na/2.png,X\na/3.png\n", r"2 rows with an empty label: 1\.png, 3\.png\."),
        ("file,label\n,X\n", "1 rows with an empty file: line 2"),
        ("file,label,patient_key\n1.png,X,\n", "1 rows with an empty patient_key: 1.png"),
        ("file,label,split\n1.png,X,train\n2.png,X,\n", "1 rows with an empty split: 2.png"),
        ("file,label,split\n1.png,X,validation\n", "split validation. It must be one of train, tune, calibration, test"),
        ("file,label,patient_key\n1.png,X,p\n1.png,X,q\n", "two patients for 1 files: 1.png"),
        ("file,label,split\n1.png,X,train\n1.png,X,test\n", "two splits for 1 files: 1.png"),
        ('file,label\n"1.png,X\n', "is not a CSV file in UTF-8"),
    ],
)
def test_a_wrong_table_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_labels(write(tmp_path, text))
    assert str(caught.value).startswith("labels.csv")
    assert str(tmp_path) not in str(caught.value)


def test_a_table_that_is_missing_or_of_another_encoding_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels\.csv cannot be opened"):
        read_labels(tmp_path / "labels.csv")
    with pytest.raises(InputError, match="is not a CSV file in UTF-8"):
        read_labels(write(tmp_path, "file,label\nä.png,X\n", "latin-1"))


def test_an_empty_split_column_is_no_split(tmp_path: Path) -> None:
    assert read_labels(write(tmp_path, "file,label,split\n1.png,X,\n")).facts["1.png"].split is None


def test_files_are_found_below_the_source_and_beside_the_table(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "file,label\n1.png,X\nstudies/2.png,Y\n"))
    found = [(0, "1.png"), (0, "2.png"), (0, "3.png")]
    facts, note = match_files(table, [tmp_path / "studies"], found)
    assert {file_id: set(fact.labels) for file_id, fact in facts.items()} == {(0, "1.png"): {"X"}, (0, "2.png"): {"Y"}}
    assert note == (
        "Labels: 1 files named by their path below a source; 1 files named by their path below the table's own folder."
    )


def test_labels_for_files_outside_the_sources_are_counted(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "2.png").touch()
    table = read_labels(write(tmp_path, "file,label\nstudies/1.png,X\nother/2.png,Y\n"))
    facts, note = match_files(table, [tmp_path / "studies"], [(0, "1.png")])
    assert list(facts) == [(0, "1.png")]
    assert "1 labelled files lie outside the sources" in note


def test_labels_for_missing_files_are_counted_with_five_examples(tmp_path: Path) -> None:
    rows = "".join(f"deep/{number}.png,X\n" for number in range(7))
    table = read_labels(write(tmp_path, "file,label\n" + rows))
    with pytest.raises(InputError, match=r"labels for 7 files that are not there: 0\.png, 1\.png, .*4\.png and 2 more"):
        match_files(table, [tmp_path], [(0, "9.png")])


def test_a_name_in_two_sources_is_refused(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "file,label\n1.png,X\n"))
    with pytest.raises(InputError, match="names 1 files that are in two sources: 1.png"):
        match_files(table, [tmp_path / "a", tmp_path / "b"], [(0, "1.png"), (1, "1.png")])


def test_the_folder_names_the_label() -> None:
    facts = folder_labels([Path("data/set")], [(0, "x/NORMAL/1.png"), (0, "2.png")])
    assert {file_id: set(fact.labels) for file_id, fact in facts.items()} == {
        (0, "x/NORMAL/1.png"): {"NORMAL"},
        (0, "2.png"): {"set"},
    }
