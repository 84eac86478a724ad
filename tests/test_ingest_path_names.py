"""Labels and patients in the paths of files."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.ingest.path_names import folder_labels, names_from_paths

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
        (
            "folder:0",
            "The value folder:0 of --label-from is neither folder, nor folder:N, nor a regular expression with one group",
        ),
        ("folder:one", "is neither folder"),
        ("(a)(b)", "is neither folder"),
        ("(", "is not a regular expression"),
    ],
)
def test_what_names_no_folder_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labels_of(text, CLASSES)


def test_blanks_and_forms_of_unicode_in_names_of_folders_make_no_new_label() -> None:
    found = ["\u00d6dem/1.png", "O\u0308dem/2.png", "\u00d6dem /3.png"]
    assert set(labels_of("folder", found).values()) == set(labels_of("^(.+)/", found).values()) == {"\u00d6dem"}


def patients_of(patient_from: str, files: list[str]) -> dict[str, str]:
    found = names_from_paths(patient_from, "--patient-from", [Path("data/set")], [(0, file) for file in files])
    return {file: name for (_, file), name in found.items()}


def test_a_pattern_or_a_folder_names_the_patient() -> None:
    files = ["DME-77-1.jpeg", "DME-77-2.jpeg", "x/CNV-8-1.jpeg"]
    assert patients_of(r"[A-Z]+-(\d+)-", files) == {files[0]: "77", files[1]: "77", files[2]: "8"}
    assert patients_of("folder:1", files) == {files[2]: "x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("(", "is not a regular expression"), ("mrn", "is neither folder:N nor a regular expression with one group")],
)
def test_what_names_no_patient_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        patients_of(text, ["a.png"])


def test_one_patient_in_two_forms_of_unicode_is_one() -> None:
    composed, decomposed = "M\u00fcller", "Mu\u0308ller"
    found = patients_of(f"^({decomposed}|x) ?/", [f"{composed}/1.png", f"{decomposed} /2.png"])
    assert list(found.values()) == [composed, composed]
