"""What rows of a table mean: files, folders, archives and frames, and how they may be ambiguous."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.frames import InstanceKey, LabelLevel
from pipeline.ingest.labels import FileFacts, JoinKey, SeveralRows, parse_columns, read_labels
from pipeline.ingest.matching import FrameId, join_frames, match_files


def write(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_files_are_found_below_the_source_and_beside_the_table(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "file,label\n1.png,X\nstudies/2.png,Y\n"))
    found = [(0, "1.png"), (0, "2.png"), *((0, f"{number}.png") for number in range(3, 8))]
    facts, (note, without) = match_files(table, [tmp_path / "studies"], found)
    assert without == "5 files have no row in labels.csv and are not used: 3.png, 4.png, 5.png and 2 more."
    assert {file_id: set(fact.labels) for file_id, fact in facts.items()} == {(0, "1.png"): {"X"}, (0, "2.png"): {"Y"}}
    assert note == (
        "Labels: 1 files named by their path below a source; 1 files named by their path below the table's own folder."
    )


def test_labels_for_files_outside_the_sources_are_counted(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "2.png").touch()
    table = read_labels(write(tmp_path, "file,label\nstudies/1.png,X\nother/2.png,Y\n"))
    facts, (note, *_) = match_files(table, [tmp_path / "studies"], [(0, "1.png")])
    assert list(facts) == [(0, "1.png")]
    assert "1 labelled files lie outside the sources" in note


def test_labels_for_missing_files_are_counted_with_five_examples(tmp_path: Path) -> None:
    rows = "".join(f"deep/{number}.png,X\n" for number in range(7))
    table = read_labels(write(tmp_path, "file,label\n" + rows))
    with pytest.raises(InputError, match=r"names files that do not exist \(7\): 0\.png, 1\.png, .*4\.png and 2 more"):
        match_files(table, [tmp_path], [(0, "9.png")])


def test_names_that_differ_from_files_only_in_case_are_said(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "file,label\n1.PNG,X\n3.png,X\n2.png,X\n"))
    _, notes = match_files(table, [tmp_path], [(0, "1.png"), (0, "2.png")])
    assert "Of 1 there is a file whose name differs only in upper and lower case: write it as it is." in " ".join(notes)
    with pytest.raises(InputError, match="Of 1 there is a file whose name differs only in upper and lower case"):
        match_files(table, [tmp_path], [(0, "a/1.png")])


def test_a_name_in_two_sources_is_refused(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "file,label\n1.png,X\n"))
    with pytest.raises(InputError, match="names 1 files that are in two sources: 1.png"):
        match_files(table, [tmp_path / "a", tmp_path / "b"], [(0, "1.png"), (1, "1.png")])


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder `real` of two files, one of which has a second name, and a link to the folder."""
    (tmp_path / "real" / "s").mkdir(parents=True)
    for name in ("1.png", "2.png"):
        (tmp_path / "real" / "s" / name).touch()
    (tmp_path / "real" / "s" / "also.png").symlink_to("1.png")
    (tmp_path / "link").symlink_to("real")
    return tmp_path


@pytest.mark.parametrize(
    "spelling", ["{}/real/s/1.png", "{}/link/s/1.png", "link/s/1.png", "./s/../real/s//1.png", "link\\s\\1.png", "also.png"]
)
@pytest.mark.parametrize("source", ["real/s", "link/s"])
def test_every_way_to_a_file_names_it(linked: Path, source: str, spelling: str) -> None:
    root = (linked / source).resolve()
    table = read_labels(write(linked, f"file,label\n1.png,X\n{spelling.format(linked)},Y\n"))
    facts, (note, *_) = match_files(table, [root], [(0, "1.png"), (0, "2.png")])
    assert facts == {(0, "1.png"): FileFacts(frozenset({"X", "Y"}))}
    assert note == "Labels: 1 files named by their path below a source."


def test_the_file_behind_a_link_is_known_by_its_own_name(linked: Path) -> None:
    table = read_labels(write(linked, "file,label\n1.png,X\n"))
    assert list(match_files(table, [linked / "real" / "s"], [(0, "also.png"), (0, "2.png")])[0]) == [(0, "also.png")]


def test_a_table_behind_a_link_speaks_of_files_beside_the_link_or_beside_itself(linked: Path) -> None:
    (linked / "tables").mkdir()
    write(linked / "tables", "file,label\nreal/s/1.png,X\n../real/s/2.png,Y\n")
    (linked / "labels.csv").symlink_to("tables/labels.csv")
    facts, (note, *_) = match_files(read_labels(linked / "labels.csv"), [linked / "real" / "s"], [(0, "1.png"), (0, "2.png")])
    assert sorted(facts) == [(0, "1.png"), (0, "2.png")]
    assert note == "Labels: 2 files named by their path below the table's own folder."


def test_members_of_an_archive_can_be_named_by_their_whole_path(linked: Path) -> None:
    (linked / "real" / "a.zip").touch()
    table = read_labels(write(linked, f"file,label\n{linked}/link/a.zip/x/1.png,X\n"))
    facts, (note, *_) = match_files(table, [linked / "real"], [(0, "a.zip/x/1.png")])
    assert list(facts) == [(0, "a.zip/x/1.png")]
    assert note == "Labels: 1 files named by their whole path."


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1.png,X,p,train\n{}/link/s/1.png,X,q,train\n", "two patients for 1 files: 1.png"),
        ("1.png,X,p,train\nlink/s/1.png,X,p,test\n", "two splits for 1 files: 1.png"),
    ],
)
def test_rows_that_contradict_each_other_under_two_names_are_refused(linked: Path, rows: str, message: str) -> None:
    table = read_labels(write(linked, "file,label,patient_key,split\n" + rows.format(linked)))
    with pytest.raises(InputError, match=message) as caught:
        match_files(table, [linked / "real" / "s"], [(0, "1.png")])
    assert str(linked) not in str(caught.value)


def test_names_of_files_in_two_forms_of_unicode_or_with_blanks_are_one(tmp_path: Path) -> None:
    composed, decomposed = "\u00d6dem", "O\u0308dem"
    found = [(0, f"{decomposed}/1.png"), (0, "a /2.png ")]
    table = read_labels(write(tmp_path, f"file,label\n{composed}/1.png,X\n{tmp_path}/s/{composed}/1.png,Y\na/2.png,X\n"))
    facts, _ = match_files(table, [tmp_path / "s"], found)
    assert facts == {found[0]: FileFacts(frozenset({"X", "Y"})), found[1]: FileFacts(frozenset({"X"}))}


def test_two_files_whose_names_are_alike_are_told_apart_only_by_their_exact_names(tmp_path: Path) -> None:
    composed, decomposed = "\u00d6.png", "O\u0308.png"
    exact = read_labels(write(tmp_path, f"file,label\n{composed},X\n{decomposed},Y\n"))
    facts, _ = match_files(exact, [tmp_path], [(0, composed), (0, decomposed)])
    assert {source: set(fact.labels) for (_, source), fact in facts.items()} == {composed: {"X"}, decomposed: {"Y"}}
    with pytest.raises(InputError, match="names 1 files of which there are two"):
        match_files(read_labels(write(tmp_path, "file,label\n1.png,X\n")), [tmp_path], [(0, "1.png "), (0, "\u200b1.png")])


def test_rows_whose_file_is_missing_are_counted_with_three_names(tmp_path: Path) -> None:
    rows = "".join(f"deep/{number}.png,X\n" for number in range(7))
    table = read_labels(write(tmp_path, "file,label\n9.png,X\n" + rows))
    facts, notes = match_files(table, [tmp_path], [(0, "9.png")])
    assert list(facts) == [(0, "9.png")]
    assert notes[1] == "7 rows of labels.csv name files that do not exist: 0.png, 1.png, 2.png and 4 more."


FILES = [
    (0, "train/p1/s1/a.jpg"),
    (0, "train/p1/s1/b.jpg"),
    (0, "train/p2/s2/a.jpg"),
    (0, "p3.zip/x/c.dcm"),
    (0, "p3.zip/d.dcm"),
]


def meant(folder: Path, name: str, files: list[tuple[int, str]] = FILES, source: str = "set", more: str = "") -> list[str]:
    table = read_labels(write(folder, f"file,label\n{name},X\n{more}"))
    facts, _ = match_files(table, [folder / source], files)
    return [file for _, file in facts]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("b.jpg", ["train/p1/s1/b.jpg"]),
        ("b", ["train/p1/s1/b.jpg"]),
        ("p2/s2/a.jpg", ["train/p2/s2/a.jpg"]),
        ("s2/a", ["train/p2/s2/a.jpg"]),
        ("train/p1", ["train/p1/s1/a.jpg", "train/p1/s1/b.jpg"]),
        ("train/p1/", ["train/p1/s1/a.jpg", "train/p1/s1/b.jpg"]),
        ("s1", ["train/p1/s1/a.jpg", "train/p1/s1/b.jpg"]),
        ("p3.zip", ["p3.zip/x/c.dcm", "p3.zip/d.dcm"]),
        ("p3", ["p3.zip/x/c.dcm", "p3.zip/d.dcm"]),
    ],
)
def test_the_end_of_a_path_folders_and_archives_are_found(tmp_path: Path, name: str, files: list[str]) -> None:
    assert meant(tmp_path, name) == files


@pytest.mark.parametrize("name", ["a.jpg", "a"])
def test_a_name_that_several_files_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"names 1 files of which there are several in different folders: {name}. Write their"):
        meant(tmp_path, name)
    with pytest.raises(InputError, match="names 1 files of which there are several"):
        meant(tmp_path, "5", [(0, "x/5.png"), (0, "y/5/1.png")])


def test_a_folder_gives_its_files_the_label_of_a_study(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "file,label\ns1,X\ntrain/p1/s1/b.jpg,Y\ntrain/p2/s2/a.jpg,Y\n"))
    facts, notes = match_files(table, [tmp_path], FILES)
    assert {file: (set(one.labels), one.level) for (_, file), one in facts.items()} == {
        "train/p1/s1/a.jpg": ({"X"}, LabelLevel.STUDY),
        "train/p1/s1/b.jpg": ({"X", "Y"}, LabelLevel.FRAME),
        "train/p2/s2/a.jpg": ({"Y"}, LabelLevel.FRAME),
    }
    assert notes[0] == "Labels: 1 files named by their path below a source; 2 files in folders or archives that are named."


def test_folders_that_all_rows_begin_with_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "file,label\nSet-1.0/train/p1/s1/a.jpg,X\nSet-1.0/train/p2/s2/a.jpg,Y\n"))
    facts, notes = match_files(table, [tmp_path / "small"], FILES)
    assert [file for _, file in facts] == ["train/p1/s1/a.jpg", "train/p2/s2/a.jpg"]
    assert notes[1] == "The names in labels.csv begin with Set-1.0/, which was left out."


@pytest.mark.parametrize(
    ("rows", "source"),
    [
        ("train/1.png,X\ntrain/2.png,X\n", "train"),  # the rows of one split, the files of another
        ("p1/1.png,X\np1/2.png,X\n", "p2"),  # the rows of one patient, the files of another
    ],
)
def test_folders_that_tell_files_apart_are_not_left_out(tmp_path: Path, rows: str, source: str) -> None:
    table = read_labels(write(tmp_path, f"file,label\n{rows}"))
    with pytest.raises(InputError, match="names files that do not exist"):
        match_files(table, [tmp_path / source], [(0, "test/1.png"), (0, "test/2.png")])


def test_the_folder_of_another_machine_is_left_out_if_it_is_the_source(tmp_path: Path) -> None:
    table = read_labels(
        write(
            tmp_path,
            "file,label\n/data/x/images/1.png,X\nC:\\data/2.png,X\n/data/x/images/2.png,X\n".replace("C:\\data/2.png,X\n", ""),
        )
    )
    facts, _ = match_files(table, [tmp_path / "images"], [(0, "1.png"), (0, "2.png")])
    assert len(facts) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1.png,X,p,\n1.png,X,q,\n", "two patients for 1 files: 1.png"),
        ("1.png,X,p,train\n1.png,X,p,test\n", "two splits for 1 files: 1.png"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(tmp_path: Path, rows: str, message: str) -> None:
    table = read_labels(write(tmp_path, "file,label,patient_key,split\n" + rows))
    with pytest.raises(InputError, match=message):
        match_files(table, [tmp_path], [(0, "1.png")])


def test_readers_that_contradict_each_other_are_refused_unless_it_is_said_who_is_right(tmp_path: Path) -> None:
    rows = "a.png,1,0\na.png,0,0\na.png,1,\n"
    table = read_labels(write(tmp_path, "file,A,B\n" + rows), {"labels": "A+B"})
    with pytest.raises(
        InputError, match=r"with 1 and with 0 for one label, for 1 files: a.png. .*--several-rows: any, majority"
    ):
        match_files(table, [tmp_path], [(0, "a.png")])
    for several, labels, unknown in (("any", {"A"}, set()), ("majority", {"A"}, set()), ("unknown", set(), {"A"})):
        facts = match_files(table, [tmp_path], [(0, "a.png")], SeveralRows(several))[0][0, "a.png"]
        assert (facts.labels, facts.unknown) == (labels, unknown)


# Frames by their identifiers


def frame(number: int, study: str, laterality: str = "", patient: str = "") -> tuple[FrameId, JoinKey]:
    key = InstanceKey(study, "1", str(number), 1)
    return ((0, f"{number}.dcm"), key), JoinKey(study, "1", str(number), laterality, patient)


FRAMES = dict([frame(1, "1.1", "R", "p"), frame(2, "1.1", "L", "p"), frame(3, "1.2", "R", "q"), frame(4, "1.3")])


@pytest.mark.parametrize(
    ("columns", "rows", "found"),
    [
        ("study_instance_uid=uid", "1.1,,,X\n1.3,,,Y\n9.9,,,Z\n", {"1": {"X"}, "2": {"X"}, "4": {"Y"}}),
        ("patient_key=pid", ",p,,X\n", {"1": {"X"}, "2": {"X"}}),
        ("patient_key=pid,laterality=eye", ",p,OD,X\n,p,OS,Y\n,q,OU,Z\n", {"1": {"X"}, "2": {"Y"}}),
        ("study_instance_uid=uid,laterality=eye", "1.1,,left,X\n1.1,,left,Y\n", {"2": {"X", "Y"}}),
        ("sop_instance_uid=uid", "3,,,X\n", {"3": {"X"}}),
    ],
)
def test_rows_are_joined_with_frames(tmp_path: Path, columns: str, rows: str, found: dict[str, set[str]]) -> None:
    table = read_labels(write(tmp_path, "uid,pid,eye,label\n" + rows), parse_columns([columns]))
    facts, notes = join_frames(table, FRAMES)
    assert {key.sop_instance_uid: set(one.labels) for (_, key), one in facts.items()} == found
    assert notes[0].startswith(f"Labels: {len(found)} frames joined by ")


def test_rows_that_mean_no_frame_are_counted_without_their_patients(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "pid,label\np,X\nSecret^Name,Y\n"), {"patient_key": "pid"})
    _, notes = join_frames(table, FRAMES)
    assert notes[1] == "1 of 2 rows of labels.csv have a patient_key that no frame has."
    other = read_labels(write(tmp_path, "pid,label\n12,X\n13,Y\n"), {"patient_key": "pid"})
    with pytest.raises(
        InputError, match="No row of labels.csv has the patient_key of a frame: 2 in the table, 4 frames. .*zeros"
    ):
        join_frames(other, FRAMES)
