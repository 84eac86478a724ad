"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from pipeline.atomic import remove_leftovers, replacing, replacing_text, write_bytes


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path, durable: bool) -> None:
    (tmp_path / "a").write_text("old")
    with replacing(tmp_path / "a", durable) as draft:
        draft.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_after_an_error_the_old_file_stays_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def fill_the_disk() -> None:
        with replacing(tmp_path / "a") as draft:
            draft.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    with replacing_text(tmp_path / "a") as first, replacing_text(tmp_path / "a") as second:
        first.write("first")
        second.write("second")
    assert (tmp_path / "a").read_text() == "first"


def test_a_missing_folder_is_made_for_a_whole_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "a", b"x", durable=True)
    assert (tmp_path / "new" / "a").read_bytes() == b"x"


def test_text_keeps_line_ends_and_names_that_are_not_utf_8(tmp_path: Path) -> None:
    with replacing_text(tmp_path / "a") as file:
        file.write("one\r\n\udcff\n")
    assert (tmp_path / "a").read_bytes() == b"one\r\n\\udcff\n"


def test_only_leftovers_of_that_file_are_deleted(tmp_path: Path) -> None:
    for name in (".a[1].0123abcd.part", ".a1.0123abcd.part", ".a[1].part", "a[1]"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "a[1]")
    assert names(tmp_path) == [".a1.0123abcd.part", ".a[1].part", "a[1]"]
