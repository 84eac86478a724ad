"""What was read is kept: nothing is read twice, nothing is trusted that was read otherwise, and no patient is named."""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.imaging.files.study_file import file_stamp
from pipeline.imaging.sources import StudyFile
from pipeline.ingest.journal import Journal

PLACE = ("/data", "a/ä.dcm")
READ, FAILED = '{"frames": []}', '{"failure": null}'


@pytest.fixture
def file(tmp_path: Path) -> StudyFile:
    (tmp_path / "study.dcm").write_bytes(b"content")
    return StudyFile(tmp_path / "study.dcm", "study.dcm")


def begun(path: Path | None, bound_to: str = "one") -> Journal:
    journal = Journal(path, bound_to)
    journal.begin()
    return journal


@pytest.mark.parametrize("read", [READ, FAILED, ""])
def test_what_is_put_comes_back(tmp_path: Path, file: StudyFile, read: str) -> None:
    with begun(tmp_path / "index" / "j") as journal:
        journal.put(PLACE, file_stamp(file), read)
        salt = journal.salt
    with Journal(tmp_path / "index" / "j", "one") as journal:
        assert [*journal.get([PLACE])] == [read]
        assert journal.knows(PLACE, file)
        assert not journal.knows(("/data", "other"), file)
        assert journal.salt == salt
        assert len(salt) == 32


def test_a_file_that_looks_otherwise_is_not_known(tmp_path: Path, file: StudyFile) -> None:
    with begun(None) as journal:
        journal.put(PLACE, file_stamp(file), READ)
        journal.put(("/data", "again"), None, FAILED)
        assert journal.knows(PLACE, file)
        assert not journal.knows(("/data", "again"), file)
        assert [*journal.get([("/data", "again")])] == [FAILED]
        file.path.write_bytes(b"content and more")
        assert not journal.knows(PLACE, file)
        file.path.unlink()
        assert not journal.knows(PLACE, file)


def test_files_that_are_gone_are_forgotten(file: StudyFile) -> None:
    with begun(None) as journal:
        for name in "abc":
            journal.put(("/data", name), file_stamp(file), READ)
        journal.keep_only([("/data", "b"), ("/data", "new")])
        assert [*journal.get([("/data", "b")])] == [READ]
        with pytest.raises(KeyError):
            list(journal.get([("/data", "a")]))


def test_another_way_of_reading_begins_anew(tmp_path: Path, file: StudyFile) -> None:
    with begun(tmp_path / "j") as journal:
        journal.put(PLACE, file_stamp(file), READ)
        salt = journal.salt
    with Journal(tmp_path / "j", "two") as journal:
        assert not journal.knows(PLACE, file)
        assert journal.salt != salt


def test_nothing_is_written_before_it_is_begun(tmp_path: Path, file: StudyFile) -> None:
    with Journal(tmp_path / "index" / "j", "one") as journal:
        assert not journal.knows(PLACE, file)
    assert not (tmp_path / "index").exists()


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    with begun(tmp_path / "j"):
        pass
    assert stat.S_IMODE((tmp_path / "j").stat().st_mode) == 0o600


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE about (name TEXT, value TEXT)")
        database.execute("INSERT INTO about VALUES ('bound_to', 'one')")
        database.commit()


def text_file(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be looked at" * 40)


@pytest.mark.parametrize("make", [other_database, text_file])
def test_what_somebody_else_keeps_there_is_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "j")
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(InputError, match=r"^The j that is there was not made by octray\. Move it away"):
        begun(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == before


@pytest.mark.parametrize("left", [0, 5000, 9000])
def test_one_that_is_empty_or_cut_off_is_begun_anew(tmp_path: Path, file: StudyFile, left: int) -> None:
    with begun(tmp_path / "j") as journal:
        for number in range(200):
            journal.put(("/data", str(number)), file_stamp(file), READ)
    with (tmp_path / "j").open("r+b") as written:
        written.truncate(left)
    with begun(tmp_path / "j") as journal:
        assert not journal.knows(("/data", "0"), file)
        journal.put(PLACE, file_stamp(file), READ)
        assert [*journal.get([PLACE])] == [READ]


FULL = """
import resource, sys
from pathlib import Path
from pipeline.errors import InputError
from pipeline.ingest.journal import Journal

try:
    with Journal(Path(sys.argv[1]), "one") as journal:
        journal.begin()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        for number in range(100):
            journal.put(("/data", str(number)), (1, 2, 3), "x" * 2000)
except InputError as error:
    print(error)
"""


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    said = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "j")], capture_output=True, check=True, text=True)
    assert said.stdout.startswith("The journal.sqlite of the index cannot be written: the disk is full or failing. Free some")
    assert said.stderr == ""


def test_two_at_once_are_told_apart(tmp_path: Path) -> None:
    with begun(tmp_path / "j"), pytest.raises(InputError, match=r"^Another octray writes to this journal\.sqlite\. Wait"):
        begun(tmp_path / "j")


def test_the_second_of_two_is_told_apart_even_where_nothing_is_written_yet(tmp_path: Path) -> None:
    with begun(tmp_path / "j"):
        for _ in range(2):
            with pytest.raises(InputError, match=r"^Another octray writes"), Journal(tmp_path / "j", "one") as second:
                second.begin()


def test_files_that_change_places_are_not_known(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(path.name.encode())
        os.utime(path, (1.6e9, 1.6e9))
    files = [StudyFile(path, path.name) for path in paths]
    with begun(None) as journal:
        for one in files:
            journal.put(("/data", one.source), file_stamp(one), READ)
        paths[0].rename(tmp_path / "c")
        paths[1].rename(paths[0])
        (tmp_path / "c").rename(paths[1])
        assert not any(journal.knows(("/data", one.source), one) for one in files)


def test_damage_is_told_without_a_path(tmp_path: Path) -> None:
    with begun(tmp_path / "j") as journal:
        pass
    sqlite3.connect(tmp_path / "j").execute("DROP TABLE octray_units").connection.close()
    with (
        pytest.raises(InputError, match=r"^The journal\.sqlite of the index cannot be used\. Delete it"),
        Journal(tmp_path / "j", "one") as journal,
    ):
        list(journal.get([PLACE]))


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"The index cannot be written: .*Give --out another folder\."):
        begun(tmp_path / "file" / "j")
