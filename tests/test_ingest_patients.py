"""Patient keys: identifiers that leave no trace."""

from pipeline.ingest.patients import hash_patient, pseudonyms, read_patient_id
from tests.builders import make_dicom


def test_one_patient_in_two_forms_of_unicode_is_one() -> None:
    composed, decomposed = "M\u00fcller", "Mu\u0308ller"
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
