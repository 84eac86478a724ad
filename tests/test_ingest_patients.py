"""Patient keys: patterns on paths, and identifiers that leave no trace."""

import re

import pytest

from pipeline.errors import InputError
from pipeline.ingest.patients import hash_patient, keys_from_paths, parse_patient_pattern, pseudonyms, read_patient_id
from tests.builders import make_dicom


def test_a_column_is_no_pattern() -> None:
    assert parse_patient_pattern("mrn", ("file", "label", "mrn")) is None
    assert parse_patient_pattern(None) is None


def test_a_pattern_takes_its_group_from_the_path() -> None:
    pattern = parse_patient_pattern(r"^[A-Z]+-(\d+)-", ("file", "label"))
    assert pattern is not None
    assert keys_from_paths(pattern, ["DME-77-1.jpeg", "DME-77-2.jpeg", "CNV-8-1.jpeg"]) == {
        "DME-77-1.jpeg": "77",
        "DME-77-2.jpeg": "77",
        "CNV-8-1.jpeg": "8",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(", "is not a regular expression"),
        ("mrn", "neither one of the columns file, label nor a regular expression with one group"),
        ("(a)(b)", "neither one of the columns"),
    ],
)
def test_what_is_neither_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_patient_pattern(text, ("file", "label"))


def test_without_a_table_the_message_speaks_of_labels() -> None:
    with pytest.raises(InputError, match="a column of the table given by --labels"):
        parse_patient_pattern("mrn")


def test_files_that_a_pattern_does_not_match_are_counted() -> None:
    with pytest.raises(InputError, match=r"does not match the path of 2 files: b\.png, c\.png\."):
        keys_from_paths(re.compile(r"^(\d+)?/?"), ["1/a.png", "x/b.png", "y/c.png"])


def test_one_patient_in_two_forms_of_unicode_is_one() -> None:
    composed, decomposed = "M\u00fcller", "Mu\u0308ller"
    pattern = parse_patient_pattern(f"^({decomposed}|x) ?/")
    assert pattern is not None
    assert set(keys_from_paths(pattern, [f"{composed}/1.png", f"{decomposed} /2.png"]).values()) == {composed}
    written = {"SpecificCharacterSet": "ISO_IR 192"}
    assert read_patient_id(make_dicom(PatientID=decomposed, **written)) == read_patient_id(
        make_dicom(PatientID=composed, **written)
    )


def test_the_identifier_is_read_without_its_padding() -> None:
    assert read_patient_id(make_dicom(PatientID=" 007 ")) == "007"
    assert read_patient_id(make_dicom(PatientID=None)) == ""
    assert read_patient_id(b"no DICOM") == ""


def test_the_hash_of_an_identifier_is_an_hmac() -> None:
    # RFC 4231, test case 2
    assert hash_patient("what do ya want for nothing?", b"Jefe") == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )
    assert hash_patient("", b"Jefe") == ""


def test_pseudonyms_are_numbers_in_the_order_of_the_files() -> None:
    assert pseudonyms(["zoe", "", "adam", "zoe"]) == {"zoe": "patient-00001", "adam": "patient-00002"}
