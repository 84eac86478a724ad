"""What operating systems and network drives leave behind is skipped and counted; what only looks like it is not."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.imaging.files.names import leftover, skipped_line
from pipeline.imaging.sources import discover
from tests.builders import make_zip

FILES = (
    *("Thumbs.db", "a/THUMBS.DB", "a/desktop.ini", "a/Desktop.ini", "ehthumbs.db", "a/x.dcm:Zone.Identifier"),
    *(".DS_Store", "a/.DS_Store", "a/._x.dcm", ".directory"),
)
IN_FOLDERS = (
    *("@eaDir/x.png/SYNOPHOTO_THUMB_M.jpg", "a/@eaDir/x.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/old.dcm", "@Recycle/old.dcm"),
    *("@Recently-Snapshot/2026/x.dcm", "lost+found/#12", "System Volume Information/IndexerVolumeGuid"),
    *("$RECYCLE.BIN/S-1-5/$R1.dcm", "__MACOSX/a/._x.dcm", ".Trashes/501/x.dcm", ".Trash-1000/files/x"),
    *("found.000/file0000.chk", "#snapshot/x.dcm", ".snapshot/x.dcm", "Network Trash Folder/x.dcm"),
)
STUDIES = (
    *("a/x.dcm", "a/Thumbs.db.dcm", "eaDir/x.dcm", "recycle/x.dcm", "found/x.dcm", "found.0001/x.dcm", "snapshot/x.dcm"),
    *("$Recycle.Bin.d/y.dcm", "lost/found/x.dcm", "Volume/x.dcm"),
)


def write(root: Path) -> None:
    for name in (*FILES, *IN_FOLDERS, *STUDIES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_leftovers_are_skipped_in_folders_and_counted(tmp_path: Path) -> None:
    write(tmp_path)
    skipped: Counter[str] = Counter()
    assert [file.source for file in discover(tmp_path, skipped=skipped)] == sorted(STUDIES)
    assert (skipped["@eaDir"], skipped["Thumbs.db"], skipped["desktop.ini"], skipped[".DS_Store"]) == (2, 2, 2, 2)
    assert skipped.total() == len(FILES) + len(IN_FOLDERS)  # one file lies in each folder


def test_leftovers_are_skipped_in_archives_and_counted(tmp_path: Path) -> None:
    members = {name: name.encode() for name in (*FILES, *IN_FOLDERS, *STUDIES)}
    (tmp_path / "study.zip").write_bytes(make_zip(members | {"inner.zip": make_zip({"Thumbs.db": b"x", "b.dcm": b"y"})}))
    skipped: Counter[str] = Counter()
    found = [file.source for file in discover(tmp_path, skipped=skipped)]
    assert found == sorted(f"study.zip/{name}" for name in (*STUDIES, "inner.zip/b.dcm"))
    assert (skipped["@eaDir"], skipped["Thumbs.db"], skipped["AppleDouble (._*)"]) == (2, 3, 1)
    assert list(discover(tmp_path / "study.zip")) != []


def test_a_folder_that_is_given_is_looked_into_whatever_its_name_is(tmp_path: Path) -> None:
    write(tmp_path)
    assert [file.source for file in discover(tmp_path / "#recycle")] == ["old.dcm"]
    assert [file.source for file in discover(tmp_path / "Thumbs.db")] == ["Thumbs.db"]


@pytest.mark.parametrize("name", ["", "x.dcm", "IM0001", "thumbs", "desktop", "eaDir", "_x.dcm", ".x.part", "trash", "RECYCLE"])
def test_other_names_are_none(name: str) -> None:
    assert leftover(name) == ""


def test_one_line_says_what_was_skipped() -> None:
    assert skipped_line(Counter()) == ""
    line = skipped_line(Counter({"Thumbs.db": 2, "@eaDir": 31, "#recycle": 2}))
    assert line == "Skipped what operating systems and network drives leave behind: 31 @eaDir, 2 #recycle, 2 Thumbs.db."
