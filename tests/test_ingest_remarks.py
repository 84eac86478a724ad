"""What a user is told of labels and patients before training."""

from pathlib import Path

import pytest

from pipeline.frames import ImageRecord, Split
from pipeline.ingest.index import Index
from pipeline.ingest.remarks import label_remarks, patient_remarks
from tests.builders import make_key


def make_index(rows: list[tuple[str, set[str]]], labels: tuple[str, ...] = ()) -> Index:
    """Frames of patients with labels."""
    labels = labels or tuple(sorted({label for _, held in rows for label in held}))
    records = tuple(
        ImageRecord(
            make_key(number=number),
            0,
            f"{number}.png",
            patient,
            str(number),
            {one: one in held for one in labels},
            Split.TRAIN,
            8,
            8,
        )
        for number, (patient, held) in enumerate(rows)
    )
    return Index(records, (), (Path("/data"),), labels)


def two_patients_each(labels: list[str]) -> Index:
    return make_index([(patient, {label}) for label in labels for patient in ("p1", "p2")])


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
        (["NORMAL", "Normal"], "The labels NORMAL (2 frames), Normal (2 frames) differ only in case, blanks or invisible"),
        (["No finding", "No\u00a0finding", "X"], "The labels No finding (2 frames), No\\u00a0finding (2 frames) differ only"),
        (["Pneu\u00admonia", "Pneumonia"], "The labels Pneumonia (2 frames), Pneu\\u00admonia (2 frames) differ only"),
        (["CNV", "DME", "DRUSEN"], ""),
        (
            ["0", "1"],
            'In a configuration, put these labels in quotes: data.labels=["0", "1"]. YAML reads some of them as numbers',
        ),
        (["AMD", "DME", "NO"], 'In a configuration, put these labels in quotes: data.labels=["AMD", "DME", "NO"].'),
        (["X", "None", "N/A"], "The label None (2 frames) may stand for a cell without a value."),
        (
            ["Mass", "No Finding"],
            "The label No Finding seems to mean no finding. Say so in the configuration: data.normal_label='No",
        ),
    ],
)
def test_labels_that_look_like_no_findings_are_named(labels: list[str], sentence: str) -> None:
    said = label_remarks(two_patients_each(labels), from_folders=True)
    assert any(one.startswith(sentence) for one in said) if sentence else not said


def test_one_label_for_each_patient_is_named() -> None:
    assert label_remarks(make_index([("p1", {"A"}), ("p1", {"B"}), ("p2", {"B"})]), from_folders=False) == []
    said = label_remarks(make_index([("p1", {"A"}), ("p2", {"B"})]), from_folders=False)
    assert said == ["The 2 labels look like patients, not like findings. Check which column of the table holds the labels."]


def test_a_finding_beside_no_finding_is_named() -> None:
    rows = [("p1", {"Normal", "Mass"}), ("p2", {"Normal"}), ("p3", {"Mass", "Edema"}), ("p1", {"Edema"})]
    said = " ".join(label_remarks(make_index(rows), from_folders=False))
    assert "1 frames have Normal and a finding: 0.png. Correct the table" in said


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
    said = patient_remarks(make_index([(key, {"A"}) for key in keys]), "")
    assert said[0].startswith(f"{count} patient keys differ from another only in case") if count else not said


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["unknown", "p2", "unknown"], "The patient key unknown (2 frames) may stand for patients who are not known"),
        (["Anonymous", "N/A", "p2"], "The patient key Anonymous, N/A (2 frames) may stand"),
        (["1,23457E+11", "p2"], "1 patient keys look like numbers that a spreadsheet has rounded"),
        (["1.2E+05", "3e+12", "01. Mrz", "1-Mar", "5. Mai", "12-Sep", "p2"], "6 patient keys look like numbers"),
        (["1E5", "2024-03-01", "12-A", "Mary", "1-Marta Schmidt", "10 Nova Scotia", "0"], ""),
    ],
)
def test_patient_keys_that_are_none_are_named(keys: list[str], sentence: str) -> None:
    said = patient_remarks(make_index([(key, {"A"}) for key in keys]), "")
    assert said[0].startswith(sentence) if sentence else not said


def test_a_pattern_that_takes_too_much_or_too_little_for_the_patient_is_named() -> None:
    every, one, two = (make_index([(f"p{number % most}", {"A"}) for number in range(12)]) for most in (12, 1, 2))
    assert patient_remarks(every, "(.*)")[0].startswith("--patient-from gives each of 12 files a patient of its own.")
    assert patient_remarks(one, "(p)")[0].startswith("--patient-from gives all 12 files the same patient.")
    assert patient_remarks(every, "") == patient_remarks(two, "(.)") == []
