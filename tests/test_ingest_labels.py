"""Tables of labels: what they say, and every way in which they can be wrong."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.frames import Split
from pipeline.ingest.labels import FileFacts, folder_labels, label_warning, match_files, patient_key_warning, read_labels


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
        ("name;label\n1.png;X\n", "has no column file and label; its columns are name;label\\. .* Save it again with commas"),
        ("file,finding\n1.png,X\n", "has no column label; its columns are file, finding"),
        ("file,label\na/1.png,\na/2.png,X\na/3.png,\n", r"an empty label in lines 2, 4\."),
        ("file,label\n,X\n", "an empty file in line 2"),
        ("file,label,patient_key\n1.png,X,\n", "an empty patient_key in line 2"),
        ("file,label,split\n1.png,X,train\n2.png,X,\n", "an empty split in line 3"),
        ("file,label,split\n1.png,X,validation\n", "split validation. It must be one of train, tune, calibration, test"),
        ("file,label,patient_key\n1.png,X,p\n1.png,X,q\n", "two patients for 1 files: 1.png"),
        ("file,label,split\n1.png,X,train\n1.png,X,test\n", "two splits for 1 files: 1.png"),
        ('file,label\n0.png,X\n"1.png,X\n2.png,X\n', "told apart from line 3 on. A quotation mark is missing there"),
        ('file,label\n"1.png"e,X\n', "told apart from line 2 on. A quotation mark is missing there, or there is one too many"),
        ('file,"label\n1.png,X\n', "told apart from line 1 on"),
        ("file\tlabel\n1.png\tX\n", "Save it again with commas between the cells"),
        ("file,label,note,patient_key\n1.png,X,see, p1,p1\n2.png,X,,p2\n", "has 4 columns, and more cells than that in line 2"),
        ("file,age,label\n" + "1.png,61,5,X\n" * 7, "more cells than that in lines 2, 3, 4, 5, 6 and 2 more"),
        ('file,label,note\n1.png,X,"two\nlines"\n\n2.png,X,a,b\n', "more cells than that in line 5"),
        ("file,label\n1.png,X,\n", "has 2 columns, and more cells than that in line 2"),
        ("file,label,,\n1.png,Effusion, left,\n", "has 2 columns, and more cells than that in line 2"),
        ("file,note,label,age\n1.png,X,61\n", "has 4 columns, and fewer cells than that in line 2"),
        ("file,label\n1.png\n", "has 2 columns, and fewer cells than that in line 2"),
        ("file,label,label\n1.png,X,Y\n", "more than one column label"),
        ("file,label,patient_key,patient_key\n1.png,X,p,q\n", "more than one column patient_key"),
        ("file,label, Label\n1.png,X,Y\n", "more than one column label"),
        ("file,label,\ufefflabel\n1.png,X,Y\n", "more than one column label"),
        ("file,label,\u00c4rztin,A\u0308rztin\n1.png,X,a,b\n", "more than one column \u00e4rztin"),
        (
            'file,label,note\n1.png,X,"a\n2.png,X,b\n3.png,Y,"\n',
            "cell that holds whole rows in line 2: a quotation mark is missing",
        ),
        ('file,label,note\n1.png,X,"a\r\n"" 2.png"",""X"",b"\n', "cell that holds whole rows in line 2"),
        ("file,label\n1.png,nan\n2.png,X\n", "nan or the like as label in line 2"),
        ("file,label,patient_key\na/1.png,X,NaN\n2.png,X,<NA>\n", "nan or the like as patient_key in lines 2, 3"),
        ('file,label\n1.png,"X\n2.png,Y"\n', "line break inside a cell of the column label in line 2"),
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
    with pytest.raises(InputError, match=r"names files that do not exist \(7\): 0\.png, 1\.png, .*4\.png and 2 more"):
        match_files(table, [tmp_path], [(0, "9.png")])


def test_a_name_in_two_sources_is_refused(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "file,label\n1.png,X\n"))
    with pytest.raises(InputError, match="names 1 files that are in two sources: 1.png"):
        match_files(table, [tmp_path / "a", tmp_path / "b"], [(0, "1.png"), (1, "1.png")])


def test_blanks_marks_and_case_in_the_header_make_no_difference(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "\ufeff File ,LABEL\u00a0,Patient_Key,Split,Age,,\n1.png,X,p,test,3,,\n", "utf-8-sig"))
    assert table.columns == ("file", "label", "patient_key", "split", "Age")
    assert table.facts == {"1.png": FileFacts(frozenset({"X"}), "p", Split.TEST)}


def test_columns_without_a_name_are_ignored(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, ",file,label,,note\n0,1.png,X,y,z\n1,2.png,,y,z\n".replace(",,y", ",W,y")))
    assert {file: set(facts.labels) for file, facts in table.facts.items()} == {"1.png": {"X"}, "2.png": {"W"}}


def test_labels_and_patients_in_two_forms_of_unicode_are_one(tmp_path: Path) -> None:
    composed, decomposed = "\u00d6dem", "O\u0308dem"
    table = read_labels(
        write(tmp_path, f"file,label,patient_key\n1.png,{composed},{composed}\n1.png,{decomposed} ,{decomposed}\n")
    )
    assert table.facts == {"1.png": FileFacts(frozenset({composed}), composed)}


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
    facts, note = match_files(table, [root], [(0, "1.png"), (0, "2.png")])
    assert facts == {(0, "1.png"): FileFacts(frozenset({"X", "Y"}))}
    assert note == "Labels: 1 files named by their path below a source."


def test_the_file_behind_a_link_is_known_by_its_own_name(linked: Path) -> None:
    table = read_labels(write(linked, "file,label\n1.png,X\n"))
    assert list(match_files(table, [linked / "real" / "s"], [(0, "also.png"), (0, "2.png")])[0]) == [(0, "also.png")]


def test_a_table_behind_a_link_speaks_of_files_beside_the_link_or_beside_itself(linked: Path) -> None:
    (linked / "tables").mkdir()
    write(linked / "tables", "file,label\nreal/s/1.png,X\n../real/s/2.png,Y\n")
    (linked / "labels.csv").symlink_to("tables/labels.csv")
    facts, note = match_files(read_labels(linked / "labels.csv"), [linked / "real" / "s"], [(0, "1.png"), (0, "2.png")])
    assert sorted(facts) == [(0, "1.png"), (0, "2.png")]
    assert note == "Labels: 2 files named by their path below the table's own folder."


def test_members_of_an_archive_can_be_named_by_their_whole_path(linked: Path) -> None:
    (linked / "real" / "a.zip").touch()
    table = read_labels(write(linked, f"file,label\n{linked}/link/a.zip/x/1.png,X\n"))
    facts, note = match_files(table, [linked / "real"], [(0, "a.zip/x/1.png")])
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


CLASSES = [f"{label}/p{number:02d}/{eye}/1.png" for label in ("CNV", "NORMAL") for number in range(12) for eye in ("OD", "OS")]


def labels_of(label_from: str, files: list[str], source: str = "data/set") -> dict[str, str]:
    facts = folder_labels(label_from, [Path(source)], [(0, file) for file in files])
    return {file: next(iter(fact.labels)) for (_, file), fact in facts.items()}


def test_the_only_folder_names_the_label() -> None:
    assert labels_of("folder", ["NORMAL/1.png", "CNV/2.png"]) == {"NORMAL/1.png": "NORMAL", "CNV/2.png": "CNV"}


def test_a_source_without_folders_is_the_label_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "CNV").mkdir()
    (tmp_path / "CNV" / "1.png").touch()
    sources = [Path("data/set"), tmp_path / "CNV" / "1.png", Path("NORMAL")]
    facts = folder_labels("folder", sources, [(0, "2.png"), (1, "1.png"), (2, "DRUSEN/1.png"), (2, "readme.txt")])
    assert {file_id: set(fact.labels) for file_id, fact in facts.items()} == {
        (0, "2.png"): {"set"},
        (1, "1.png"): {"CNV"},
        (2, "DRUSEN/1.png"): {"DRUSEN"},
    }


def test_one_of_several_folders_is_not_guessed() -> None:
    with pytest.raises(InputError) as caught:
        labels_of("folder", CLASSES)
    assert str(caught.value).startswith(
        "There are up to 3 levels of folders below SOURCE, and each could be the label: folder:1 (2 names), folder:2 (12 "
        "names that look like patients), folder:3 (2 names that look like eyes). Name the folder that is the label"
    )


@pytest.mark.parametrize(
    ("label_from", "labels"),
    [
        ("folder:1", {"CNV", "NORMAL"}),
        ("folder:-3", {"CNV", "NORMAL"}),
        ("folder:-1", {"OD", "OS"}),
        ("^([^/]+)/p", {"CNV", "NORMAL"}),
        ("/p[0-9]+/(.)", {"O"}),
    ],
)
def test_the_user_says_which_folder_is_the_label(label_from: str, labels: set[str]) -> None:
    assert set(labels_of(label_from, CLASSES).values()) == labels


def test_files_without_the_folder_that_is_named_have_no_label() -> None:
    files = ["train/CNV/1.png", "train/2.png", "3.png"]
    assert labels_of("folder:2", files) == {"train/CNV/1.png": "CNV"}
    assert labels_of("^train/([^/]+)/", files) == {"train/CNV/1.png": "CNV"}
    with pytest.raises(InputError, match="--label-from folder:3 gives none of the 3 files a label"):
        labels_of("folder:3", files)


def test_an_archive_that_is_given_is_no_folder_and_one_in_a_source_is(tmp_path: Path) -> None:
    (tmp_path / "set.zip").touch()
    assert labels_of("folder", ["set.zip/CNV/1.png"], str(tmp_path / "set.zip")) == {"set.zip/CNV/1.png": "CNV"}
    assert labels_of("folder:2", ["set.zip/CNV/1.png"], str(tmp_path)) == {"set.zip/CNV/1.png": "CNV"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder:0", "is neither folder, nor folder:N, nor a regular expression with one group"),
        ("folder:one", "is neither folder"),
        ("(a)(b)", "is neither folder"),
        ("(", "is not a regular expression"),
    ],
)
def test_what_names_no_folder_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labels_of(text, CLASSES)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["OD", "OS"], "The labels OD, OS look like eyes, not like findings."),
        (["left_eye", "Right Eye"], "The labels Right Eye, left_eye look like eyes"),
        (["L", "NORMAL", "R"], "The labels L, NORMAL, R look like eyes"),
        (["test", "train", "val"], "The labels test, train, val look like splits"),
        ([f"Patient {number}" for number in range(30)], "The 30 labels look like patients"),
        ([f"{number:07d}" for number in range(8)], "The 8 labels look like patients"),
        ([f"{name}_Hans" for name in "abcdefghijklmnopqrst"], "The 20 labels look like patients"),
        (["NORMAL", "Normal"], "The labels NORMAL, Normal differ only in case or blanks, and count as different."),
        (["No finding", "No\u00a0finding", "X"], "The labels No finding, No\u00a0finding differ only in case or blanks"),
        (["Pneu\u00admonia", "Pneumonia"], "The labels Pneumonia, Pneu\u00admonia differ only in case or blanks"),
        (["CNV", "DME", "DRUSEN", "NORMAL"], ""),
        (["0", "1", "2", "3", "4"], ""),
        (["AMD", "DME", "ERM", "NO", "RAO", "RVO", "VID"], ""),
    ],
)
def test_labels_that_look_like_no_findings_are_named(labels: list[str], sentence: str) -> None:
    said = label_warning(labels, {label: {"p1", "p2"} for label in labels}, from_folders=True)
    assert said.startswith(sentence)
    assert bool(said) == bool(sentence)


def test_one_label_for_each_patient_is_named() -> None:
    assert label_warning(["A", "B"], {"A": {"p1"}, "B": {"p1", "p2"}}, from_folders=False) == ""
    said = label_warning(["A", "B"], {"A": {"p1"}, "B": {"p2"}}, from_folders=False)
    assert said == "The 2 labels look like patients, not like findings. Check the column label of the table."


def test_blanks_and_forms_of_unicode_in_names_of_folders_make_no_new_label() -> None:
    found = ["\u00d6dem/1.png", "O\u0308dem/2.png", "\u00d6dem /3.png"]
    assert set(labels_of("folder", found).values()) == set(labels_of("^(.+)/", found).values()) == {"\u00d6dem"}


def test_lines_of_a_comment_are_no_rows(tmp_path: Path) -> None:
    table = read_labels(
        write(tmp_path, 'file,label,note\n1.png,X,"seen before, no change\nclear, X, no change\n2.png, Z"\n2.png,Y,X\n')
    )
    assert table.facts["1.png"].labels == {"X"}


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        (["P1", "p1", "P2"], 2),
        (["0012", "12", "12.0", '="0012"', "'0012", "13"], 5),
        (["A B", "AB", "A\u00a0B"], 3),
        (["P-01", "P-10", "P-100", "1.05", "1.5"], 0),
    ],
)
def test_patient_keys_that_differ_only_in_their_spelling_are_counted_and_not_shown(keys: list[str], count: int) -> None:
    said = patient_key_warning(keys)
    assert said.startswith(f"{count} patient keys differ from another only in case") if count else not said
