"""The verifier: whatever is put back into a clean file is found, wherever it stands."""

import hashlib
import io
from collections.abc import Callable
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipeline.deidentify import values
from pipeline.deidentify.crosswalk import Secret
from pipeline.deidentify.identifiers import Identity
from pipeline.deidentify.instance import deidentify_bytes
from pipeline.deidentify.profile import Keep, Options, RefusalReason, RefusedError
from pipeline.deidentify.search import PLACEHOLDERS
from pipeline.deidentify.verify import repeated_identity, verify
from pipeline.errors import Reason, UnreadableError
from pipeline.settings import Limits
from tests.builders import make_dataset, make_dicom
from tests.identified import SOURCE, file_bytes, item, make_identified

DATES = Options(frozenset({Keep.DATES}))
Change = Callable[[Dataset], Any]


def check(change: Change, options: Options = Options()) -> None:  # noqa: B008
    """De-identify, put something back, and verify."""
    original = make_identified()
    made = deidentify_bytes(original, Secret(bytes(32)), options, Limits())
    dataset = dcmread(io.BytesIO(made.content))
    change(dataset)
    verify(file_bytes(dataset), Identity.of(dcmread(io.BytesIO(original))), made.pseudonym, options)


def put(**elements: Any) -> Change:
    return lambda dataset: dataset.update(item(**elements))


def into_frame(**elements: Any) -> Change:
    return lambda dataset: dataset.PerFrameFunctionalGroupsSequence[1].FrameContentSequence[0].update(item(**elements))


def set_meta(**elements: Any) -> Change:
    return lambda dataset: dataset.file_meta.update(item(**elements))


@pytest.mark.parametrize("options", [Options(), DATES, Options(frozenset(Keep))])
def test_a_clean_file_passes(options: Options) -> None:
    check(lambda dataset: None, options)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (put(PatientName="Müller^Jörg"), "(0010,0010)"),
        (put(PatientID="MRN-778812"), "Patient ID"),
        (put(PatientID="P0123456789ABCDE"), "Patient ID"),
        (put(PatientIdentityRemoved="NO"), "Patient ID"),
        (put(PatientBirthDate="19010101"), "(0010,0030)"),
        (put(StudyDate="19990909"), "(0008,0020)"),
        (put(Manufacturer="mrn-778812 lab"), "(0008,0070)"),
        (put(ManufacturerModelName="okonkwo's"), "(0018,1090)|(0008,1090)"),
        (put(SoftwareVersions=["1", "WARD9"]), "(0018,1020)"),
        (put(ConvolutionKernel="of 20190304"), "(0018,1210)"),
        (put(ConvolutionKernel="V20190304101112"), "(0018,1210)"),
        (put(ConvolutionKernel="born 17.03.1961"), "(0018,1210)"),
        (put(StationName="OTHER"), "(0008,1010)"),
        (put(PlacerOrderNumberImagingServiceRequest="77"), "(0040,2016)"),
        (put(RetrieveAETitle="HERE"), "(0008,0054)"),
        (put(CodeMeaning="B2"), "(0008,0104)"),
        (put(FrameOfReferenceUID=SOURCE), "(0020,0052)"),
        (put(BodyPartExamined="WARD9"), "(0018,0015)"),
        (put(BodyPartExamined="OKONKWO"), "(0018,0015)"),
        (put(ImageType=["ORIGINAL", "PRIMARY", "ANN WHITFIELD"]), "(0008,0008)"),
        (put(Manufacturer="MUELLER_JOERG"), "(0008,0070)"),
        (put(Manufacturer="jorgmuller"), "(0008,0070)"),
        (put(Manufacturer="xMRN_778812"), "(0008,0070)"),
        (put(Manufacturer="on 4 Mar 2019"), "(0008,0070)"),
        (put(SliceThickness="19610317"), "(0018,0050)"),
        (into_frame(PatientAge="091Y"), "(0010,1010)"),
        (into_frame(FrameAcquisitionDateTime="20190305101500"), "(0018,9074)"),
        (into_frame(FrameComments="seen by Quennell"), "(0020,9158)"),
        (into_frame(OperatorsName="Else^Some"), "(0008,1070)"),
        (set_meta(SourceApplicationEntityTitle="A"), "(0002,0016)"),
        (lambda dataset: dataset.add_new(0x00290010, "LO", "MAKER"), "(0029,0010)"),
        (lambda dataset: dataset.add_new(0x60000022, "LO", "x"), "(6000,0022)"),
        (lambda dataset: dataset.add_new(0x50000010, "US", 1), "(5000,0010)"),
        (lambda dataset: dataset.add_new(0x00189FFE, "UN", b"x "), "(0018,9ffe)"),
        (lambda dataset: dataset.add_new(0x00282000, "OB", "xMüller^Jörgx".encode("latin-1") + b" "), "the bytes of the file"),
        (lambda dataset: dataset.add_new(0x00282000, "OB", b"xxWhitfieldxx "), "the bytes of the file"),
        (lambda dataset: setattr(dataset, "preamble", b"x" * 128), "the preamble"),
    ],
)
def test_whatever_is_put_back_is_found(change: Change, place: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check(change)
    assert caught.value.reason is RefusalReason.IDENTITY_LEFT
    assert any(one in str(caught.value) for one in place.split("|"))


def test_a_date_that_did_not_move_is_found() -> None:
    with pytest.raises(RefusedError, match=r"\(0008,0020\)"):
        check(put(StudyDate="20190304"), DATES)
    with pytest.raises(RefusedError, match=r"\(0018,9074\)"):
        check(into_frame(FrameAcquisitionDateTime="20190305101500.25+0100"), DATES)
    check(put(ContentDate="20190304"), DATES)


def test_a_uid_is_found_unless_uids_were_to_be_kept() -> None:
    check(put(FrameOfReferenceUID=SOURCE), Options(frozenset({Keep.UIDS})))


@pytest.mark.parametrize(
    ("charset", "name", "text", "is_found"),
    [
        ("ISO_IR 100", "Smith^John", "SMITH_JOHN", True),
        ("ISO_IR 100", "Smith^John", "SMITHJOHN", True),
        ("ISO_IR 100", "Smith^John", "Smiths", True),
        ("ISO_IR 100", "Ng^Wei", "NgWei", True),
        ("ISO_IR 100", "Ng^Wei", "Ng's", True),
        ("ISO_IR 100", "Ng^Wei", "imaging", False),
        ("ISO_IR 100", "Ng^Wei", "weight", False),
        ("ISO_IR 100", "Müller^Jörg", "MUELLER", True),
        ("ISO_IR 100", "Müller^Jörg", "Muller", True),
        ("GB18030", "王^小东", "患者王小东胸片", True),
        ("GB18030", "王^伟", "患者王伟", True),
        ("GB18030", "王^伟", "王大伟", False),
        ("ISO_IR 192", "王小东", "患者王小东胸片", True),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", "山田太郎様", True),
        ("ISO_IR 192", "김^민준", "환자 김민준", True),
        ("ISO_IR 192", "Yamada^Tarou=山田^太郎=やまだ^たろう", "ヤマダ", True),
        ("ISO_IR 192", "Wałęsa^Lech", "Walesa", True),
        ("ISO_IR 192", "Đorđević^Ana", "DORDEVIC", True),
        ("ISO_IR 192", "Sørensen^Åge", "Sorensen", True),
        ("ISO_IR 144", "Иванов^Пётр", "у ИВАНОВА", True),
        ("ISO_IR 144", "Иванова^Анна", "для Ивановой", True),
        ("ISO_IR 144", "Ли^Ян", "лицо", False),
    ],
)
def test_names_are_found_as_they_are_written(charset: Any, name: str, text: str, is_found: bool) -> None:
    dataset = make_dataset(SpecificCharacterSet=charset, PatientName=name, Manufacturer=text)
    made = dcmread(io.BytesIO(deidentify_bytes(file_bytes(dataset), Secret(bytes(32)), Options(), Limits()).content))
    assert made.Manufacturer == ("ANONYMIZED" if is_found else text)


@pytest.mark.parametrize(
    ("identifier", "text", "is_found"),
    [
        ("77123", "x77123", True),
        ("77123", "7712-3", True),
        ("7712-3", "77123", True),
        ("PID77123", "PID77123_A", True),
        ("4711", "V4711", True),
        ("4711", "14711", False),
        ("12", "12", True),
        ("12", "1.2", False),
    ],
)
def test_identifiers_are_found_as_they_are_written(identifier: str, text: str, is_found: bool) -> None:
    content = make_dicom(PatientID=identifier, SoftwareVersions=text)
    made = dcmread(io.BytesIO(deidentify_bytes(content, Secret(bytes(32)), Options(), Limits()).content))
    assert made.SoftwareVersions == ("ANONYMIZED" if is_found else text)


@pytest.mark.parametrize(
    "values",
    [
        {"AccessionNumber": "CHEST", "BodyPartExamined": "CHEST"},
        {"PatientID": "CHEST", "BodyPartExamined": "CHEST"},
        {"PerformedProcedureStepID": "CHEST", "BodyPartExamined": "CHEST"},
        {"StationName": "AXIAL", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]},
        {"PatientID": "ORIGINAL", "ImageType": ["ORIGINAL", "PRIMARY"]},
        {"PatientName": "ABDOMEN^PHANTOM", "BodyPartExamined": "ABDOMEN"},
        {"PatientName": "Origin^Ann", "ImageType": ["ORIGINAL", "PRIMARY"]},
        {"PatientName": "Anonym^Ann", "Manufacturer": "Anonym"},
        {"InstitutionName": "MONOCHROME2"},
        {"OperatorsName": "YES"},
    ],
)
def test_files_in_which_somebody_is_called_like_a_defined_term_are_written(values: dict[str, Any]) -> None:
    made = dcmread(io.BytesIO(deidentify_bytes(make_dicom(**values), Secret(bytes(32)), Options(), Limits()).content))
    codes = {keyword: value for keyword, value in values.items() if keyword in ("BodyPartExamined", "ImageType")}
    assert {keyword: made[keyword].value for keyword in codes} == codes


def test_a_uid_of_one_digit_is_none() -> None:
    reference = item(ReferencedSOPClassUID="0", ReferencedSOPInstanceUID="0")
    deidentify_bytes(make_dicom(ReferencedImageSequence=[reference]), Secret(bytes(32)), Options(), Limits())


@pytest.mark.parametrize("name", ["Basic^Ivan", "Profile^Dicom", "Octray^X", "DCM"])
def test_what_was_done_is_said_whoever_the_patient_is(name: str) -> None:
    content = make_dicom(PatientName=name, OperatorsName=name, DeidentificationMethod=f"by {name}")
    made = dcmread(io.BytesIO(deidentify_bytes(content, Secret(bytes(32)), Options(), Limits()).content))
    assert list(made.DeidentificationMethod) == ["octray: DICOM PS3.15 2026d", "Basic Application Confidentiality Profile"]
    assert [code.CodeValue for code in made.DeidentificationMethodCodeSequence] == ["113100"]


def test_sequences_that_are_nested_too_deeply_are_refused() -> None:
    nested = item(PatientName="Deep^X")
    for _ in range(64):
        nested = item(SharedFunctionalGroupsSequence=[nested])
    assert deidentify_bytes(
        make_dicom(ReferencedSeriesSequence=nested[0x52009229].value), Secret(bytes(32)), Options(), Limits()
    )
    content = make_dicom(ReferencedSeriesSequence=[item(SharedFunctionalGroupsSequence=[nested])])
    with pytest.raises(UnreadableError, match="nested more than 64 deep") as caught:
        deidentify_bytes(content, Secret(bytes(32)), Options(), Limits())
    assert caught.value.reason is Reason.RESOURCE_LIMIT


@pytest.mark.parametrize(
    ("number", "spelled"),
    [(2437, "8ADA6"), (57804, "4D93"), (87712, "A55120")],
    ids=["a name of three letters", "a day of the file", "an identifier of five digits"],
)
def test_a_pseudonym_that_happens_to_spell_something_of_the_file_identifies_nobody(number: int, spelled: str) -> None:
    secret = Secret(hashlib.sha256(str(number).encode()).digest())
    pseudonym = secret.pseudonym("MRN-778812")
    assert spelled in pseudonym
    other = item(PatientName="Other^Otto", PatientID="MRN-778812")
    original = make_identified(ReferencedPatientSequence=[other])
    dataset = dcmread(io.BytesIO(deidentify_bytes(original, secret, Options(), Limits()).content))
    assert (dataset.PatientID, dataset.PatientName) == (pseudonym, pseudonym)


def test_an_identifier_that_looks_like_a_pseudonym_is_found_in_an_item() -> None:
    old = "PB8ADA6F223F56E0"
    identity = Identity.of(item(PatientID=old))
    left = item(RequestAttributesSequence=[item(PatientID=old)])
    assert [text for _, text in repeated_identity(left, identity, Options())] == [old]


def test_deflated_bytes_are_searched_too() -> None:
    def change(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.add_new(0x00282000, "OB", b"\xffMRN-778812xx")

    with pytest.raises(RefusedError, match="the bytes of the file"):
        check(change)


def test_no_message_says_what_was_found() -> None:
    with pytest.raises(RefusedError) as caught:
        check(put(PatientName="Müller^Jörg"))
    assert "ller" not in str(caught.value)


def test_the_list_of_placeholders_knows_every_dummy() -> None:
    kinds = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UT")
    assert {values.dummy(kind) for kind in kinds} <= PLACEHOLDERS
