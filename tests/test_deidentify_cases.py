"""Values that repeat an identifier or a date: found however they are spelled, kept if the file forces them, else refused."""

import hashlib
import io
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ComprehensiveSRStorage, RTStructureSetStorage

from pipeline.deidentify.crosswalk import Secret
from pipeline.deidentify.identifiers import _IDENTIFYING_CODES, _PERSON_NAMES, IDENTIFIERS
from pipeline.deidentify.instance import deidentify_bytes
from pipeline.deidentify.profile import Keep, Options, RefusalReason, RefusedError
from pipeline.deidentify.search import PLACEHOLDERS, days_in, is_common
from pipeline.deidentify.verify import _NEEDED_NUMBERS, FORCED_NUMBERS, is_free_number
from pipeline.errors import UnreadableError
from pipeline.settings import Limits
from tests.identified import file_bytes, item, make_radiograph

BASIC = Options()
DATES = Options(frozenset({Keep.DATES}))
UIDS = Options(frozenset({Keep.UIDS}))
GONE = "ANONYMIZED"


def result(content: bytes, options: Options = BASIC) -> Dataset:
    return dcmread(io.BytesIO(deidentify_bytes(content, Secret(bytes(32)), options, Limits()).content))


def refusal(content: bytes, options: Options = BASIC) -> str:
    with pytest.raises(RefusedError) as caught:
        result(content, options)
    assert caught.value.reason is RefusalReason.IDENTITY_LEFT
    return str(caught.value)


# What identifies is known by its attribute, whatever its value representation


@pytest.mark.parametrize("representation", ["PN", "LO", "SH", "ST", "UT", "LT", "UC", "OB", "UN"])
def test_a_name_in_any_value_representation_is_found_again(representation: str) -> None:
    name: Any = "Quillfeather^Zeb"
    name = name.encode() if representation in ("OB", "UN") else name
    made = result(
        make_radiograph(
            {"PatientName": (representation, name)},
            Manufacturer="Quillfeather CT",
            ImageType=["ORIGINAL", "PRIMARY", "QUILLFEATHER"],
        )
    )
    assert (made.Manufacturer, list(made.ImageType)) == (GONE, ["ORIGINAL", "PRIMARY", GONE])


@pytest.mark.parametrize("representation", ["PN", "LO", "SH", "ST", "UT"])
def test_a_physician_in_any_value_representation_is_found_again(representation: str) -> None:
    made = result(
        make_radiograph({"ReferringPhysicianName": (representation, "Underwood^Ann")}, SoftwareVersions="build Underwood")
    )
    assert made.SoftwareVersions == GONE


def test_a_name_without_parts_is_found_and_its_title_is_none() -> None:
    made = result(
        make_radiograph(
            {"OperatorsName": ("LO", "Dr. Underwood, Ann")}, SoftwareVersions="by Underwood", Manufacturer="DR Systems"
        )
    )
    assert (made.SoftwareVersions, made.Manufacturer) == (GONE, "DR Systems")


def test_bytes_of_a_name_are_read_in_the_character_set_of_the_file() -> None:
    content = make_radiograph({"PatientName": ("OB", "Müller^X ".encode("latin-1"))}, SpecificCharacterSet="ISO_IR 100")
    assert result(content).PatientID != ""
    dataset = dcmread(io.BytesIO(content))
    dataset.Manufacturer = "Fa. Müller"
    assert result(file_bytes(dataset)).Manufacturer == GONE


@pytest.mark.parametrize("representation", ["DA", "LO", "SH", "DT", "IS"])
def test_a_birth_date_in_any_value_representation_is_found_again(representation: str) -> None:
    made = result(
        make_radiograph({"PatientBirthDate": (representation, "19470823")}, SoftwareVersions="19470823", ScanOptions="19470823")
    )
    assert (made.SoftwareVersions, made.ScanOptions) == (GONE, GONE)


@pytest.mark.parametrize("written", ["23.08.1947", "1947-08-23", "23 AUG 1947", "August 23, 1947", "23081947", "47-08-23"])
@pytest.mark.parametrize("found", ["23.08.1947", "19470823", "8/23/47"])
def test_a_birth_date_that_is_no_date_of_dicom_is_found_again(written: str, found: str) -> None:
    assert result(make_radiograph({"PatientBirthDate": ("LO", written)}, SoftwareVersions=found)).SoftwareVersions == GONE


@pytest.mark.parametrize("representation", ["IS", "DS", "UT", "UN", "FD"])
def test_an_identifier_in_any_value_representation_is_found_again(representation: str) -> None:
    values: dict[str, Any] = {"IS": "4471230", "DS": "4471230.0", "UN": b"4471230 ", "FD": 4471230.0}
    content = make_radiograph(
        {"AccessionNumber": (representation, values.get(representation, "4471230"))}, PatientID="A", SoftwareVersions="v4471230"
    )
    assert result(content).SoftwareVersions == GONE


def test_codes_of_persons_and_institutions_are_found_again() -> None:
    code = item(CodeValue="DOC4417", CodingSchemeDesignator="99HOSP", CodeMeaning="Underwood Ann")
    operator = item(PersonIdentificationCodeSequence=[code])
    made = result(
        make_radiograph(
            OperatorIdentificationSequence=[operator], SoftwareVersions="DOC4417", ManufacturerModelName="Underwoods"
        )
    )
    assert (made.SoftwareVersions, made.ManufacturerModelName) == (GONE, GONE)


# Days, however they are spelled


SPELLED = """
19470823 1947-08-23 1947/8/23 1947.08.23 1947:08:23 23.08.1947 23.8.1947 23/08/1947 8/23/1947 08-23-1947 23_08_1947 23AUG1947
AUG231947 1947AUG23 23-Aug-47 23.08.47 8/23/47 47-08-23 470823 230847 082347 23081947 08231947 19470823101112 23.VIII.1947
1947-08-23T10:11:12 V19470823101112 1947235
"""
SENTENCES = """
23 AUG 1947|23 AUGUST 1947|AUG 23, 1947|AUGUST 23, 1947|August 23rd, 1947|the 23rd of August 1947|23. August 1947
le 23 août 1947|23 de agosto de 1947|23 agosto 1947|23 augustus 1947|23 sierpnia 1947|23. srpna 1947|1947. augusztus 23.
23 Ağustos 1947|23 elokuuta 1947|23 Αυγούστου 1947|23 августа 1947 г.|1947年8月23日|1947년 8월 23일|２３．０８．１９４７
born 23.08.1947 in X|23 / 08 / 1947|Aug. 23 '47|昭和22年8月23日|S22.8.23|S22/08/23|23/08/2490
"""


@pytest.mark.parametrize("text", [*SPELLED.split(), *SENTENCES.strip().replace("\n", "|").split("|")])
def test_a_day_is_found_however_it_is_spelled(text: str) -> None:
    made = result(make_radiograph(SpecificCharacterSet="ISO_IR 192", SoftwareVersions=text, Manufacturer="Maker 1.2.47"))
    assert (made.SoftwareVersions, made.Manufacturer) == (GONE, "Maker 1.2.47")


@pytest.mark.parametrize(
    "text",
    ["1947", "AUG 1947", "23.8", "VB23A 8", "5.0.1947.13", "24.08.1947", "8/24/47", "18470823", "1947234", "1947400", "T2 3D"],
)
def test_other_days_and_versions_are_no_day_of_the_file(text: str) -> None:
    assert result(make_radiograph(SoftwareVersions=text)).SoftwareVersions == text


@given(
    st.dates(), st.sampled_from(["%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d %B %Y", "%b %d, %Y", "%d-%b-%Y"])
)
def test_every_day_of_the_calendar_is_read(day: Any, form: str) -> None:
    text = day.strftime(form.replace("%Y", f"{day.year:04d}"))
    assert day in days_in(text)


@given(st.text())
def test_no_text_is_too_strange_to_be_searched_for_days(text: str) -> None:
    assert isinstance(days_in(text), set)


@pytest.mark.parametrize(
    ("keyword", "value"), [("AcquisitionNumber", "19470823"), ("ExposureTime", "470823"), ("AcquisitionDuration", 19470823.0)]
)
def test_a_day_as_a_number_is_replaced(keyword: str, value: Any) -> None:
    assert float(result(make_radiograph(**{keyword: value}))[keyword].value) == 0


# Numbers as whole values, and parts


@pytest.mark.parametrize(
    "identifier", ["4471230", "MRN4471230", "4471230^^^HOSP", "MRN-447-1230", "0004471230", "HOSP/4471230/1"]
)
@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("SoftwareVersions", "4471230", GONE),
        ("SoftwareVersions", "4471230.0", GONE),
        ("SoftwareVersions", "4.47123E6", GONE),
        ("SoftwareVersions", "of 0004471230", GONE),
        ("AcquisitionNumber", "4471230", 0),
        ("KVP", "4471230.0", 0),
        ("KVP", "4.47123E6", 0),
        ("KVP", "-4471230", 0),
        ("KVP", "4471231", 4471231),
        ("AcquisitionDuration", 4471230.0, 0),
        ("RegionOfResidence", "4471230", None),
    ],
)
def test_an_identifier_is_found_as_a_whole_number_and_by_its_digits(
    identifier: str, keyword: str, value: Any, expected: Any
) -> None:
    assert result(make_radiograph(PatientID=identifier, **{keyword: value})).get(keyword) == expected


@pytest.mark.parametrize(
    ("keyword", "value", "word"),
    [
        ("PatientAddress", "12 Quillmore Street, 45123 Oakhampton", "Quillmore"),
        ("PatientAddress", "12 Quillmore Street, 45123 Oakhampton", "OAKHAMPTON"),
        ("PatientAddress", "12 Quillmore Street, 45123 Oakhampton", "45123"),
        ("InstitutionName", "Oakhampton General Hospital", "xOakhamptons"),
        ("InstitutionAddress", "Königstrasse 5, Köpenick", "Koenigstrasse"),
        ("PatientID", "4471230^^^OAKHAMPTON", "Oakhampton"),
        ("DeviceSerialNumber", "SN 48213-7", "48213"),
        ("PatientComments", "call 0049622112345", "49622112345"),
    ],
)
def test_parts_of_five_characters_count(keyword: str, value: str, word: str) -> None:
    content = make_radiograph(SpecificCharacterSet="ISO_IR 192", ManufacturerModelName=f"for {word}", **{keyword: value})
    assert result(content).ManufacturerModelName == GONE


@pytest.mark.parametrize(
    ("keyword", "value", "text"),
    [
        ("PatientAddress", "12 Quillmore Street, 45123 Oakhampton", "Street, 12"),
        ("InstitutionName", "Oakhampton General Hospital, Medical Imaging Department", "General Medical Imaging"),
        ("InstitutionName", "Philips Medical Systems", "Philips Healthcare"),
        ("PatientComments", "Pneumonia of the left lung", "Pneumonia"),
        ("StationName", "AVANTO12", "Avanto"),
        ("PatientID", "PAT-12", "Pat 1"),
        ("StudyID", "1", "1.1"),
    ],
)
def test_common_words_and_short_parts_do_not(keyword: str, value: str, text: str) -> None:
    assert result(make_radiograph(ManufacturerModelName=text, **{keyword: value})).ManufacturerModelName == text


@given(st.text(alphabet="ABCDEFGHIJ0123456789-/ ^", min_size=5, max_size=16).filter(lambda text: any(map(str.isdigit, text))))
def test_whatever_an_identifier_looks_like_it_is_found_again(identifier: str) -> None:
    identifier = identifier.strip()
    text = f"build {identifier} of"
    made = result(make_radiograph(AccessionNumber=identifier, ManufacturerModelName=text))
    is_searched = len(identifier) >= 5 and identifier not in PLACEHOLDERS and set(identifier) - set("0-/ ^")
    assert made.ManufacturerModelName == GONE or not is_searched


# What the file or the Standard forces is no identity


TABLE = item(LUTDescriptor=[4096, 0, 12])
TABLE.add_new(0x00283006, "OW", np.arange(4096, dtype="<u2").tobytes())


@pytest.mark.parametrize(
    "keyword", ["PatientID", "AccessionNumber", "StationName", "DeviceSerialNumber", "PlateID", "PerformedProcedureStepID"]
)
@pytest.mark.parametrize("identifier", ["1024", "1025", "MRN1024"])
def test_an_image_of_1024_rows_is_written_whoever_is_called_so(keyword: str, identifier: str) -> None:
    made = result(make_radiograph(rows=1024, **{keyword: identifier}))
    assert (made.Rows, made.NumberOfFrames if "NumberOfFrames" in made else 1) == (1024, 1)


@pytest.mark.parametrize(
    ("identifier", "values"),
    [
        ("2048", {"TotalPixelMatrixColumns": 2048}),
        ("4096", {"VOILUTSequence": [TABLE]}),
        ("4095", {"LargestImagePixelValue": 4095, "SmallestImagePixelValue": 0}),
        ("63536", {"PixelPaddingValue": 63536}),
        ("4096", {"WindowCenter": "2048", "WindowWidth": "4096"}),
        ("2048", {"WindowCenter": ["2048", "40"], "WindowWidth": ["4096", "400"]}),
        ("1024", {"RescaleIntercept": "-1024", "RescaleSlope": "1", "RescaleType": "HU"}),
        ("10008", {"ReferencedImageSequence": [item(ReferencedSOPClassUID=ComprehensiveSRStorage)]}),
        ("121071", {"AnatomicRegionSequence": [item(CodeValue="121071", CodingSchemeDesignator="DCM", CodeMeaning="Finding")]}),
        ("10918", {"LossyImageCompressionMethod": "ISO_10918_1"}),
        ("000000", {"StudyTime": "101112"}),
        ("ISO_IR 100", {"SpecificCharacterSet": "ISO_IR 100"}),
        ("MONOCHROME2", {}),
    ],
)
def test_what_no_file_can_do_without_stays(identifier: str, values: dict[str, Any]) -> None:
    before, made = dcmread(io.BytesIO(content := make_radiograph(PatientID=identifier, **values))), result(content)
    kept = {keyword: made[keyword] for keyword in values if keyword != "StudyTime"}
    assert kept == {keyword: before[keyword] for keyword in kept}


@pytest.mark.parametrize(
    ("identifier", "keyword", "value"),
    [
        ("100000", "InstanceNumber", "100000"),
        ("120000", "KVP", "120000"),
        ("48213", "KVP", "48213"),
        ("48213", "AcquisitionNumber", "48213"),
        ("1000", "AcquisitionDuration", 1000.0),
        ("1024", "InstanceNumber", "1024"),
        ("1024", "ExposureTime", "1024"),
        ("1024", "SeriesNumber", "1024"),
    ],
)
@pytest.mark.parametrize("place", ["PatientID", "DeviceSerialNumber"])
def test_a_free_number_that_equals_an_identifier_becomes_0(identifier: str, keyword: str, value: Any, place: str) -> None:
    made = result(make_radiograph(rows=1024, **{place: identifier, keyword: value}))
    assert float(made[keyword].value) == 0


def test_only_the_value_that_equals_an_identifier_is_replaced() -> None:
    made = result(make_radiograph(PatientID="1024", FieldOfViewDimensions=["1024", "300"], SoftwareVersions=["1024", "VB17"]))
    assert (list(made.FieldOfViewDimensions), list(made.SoftwareVersions)) == ([0, 300], [GONE, "VB17"])


@pytest.mark.parametrize(
    ("identifier", "values", "place"),
    [
        ("48213", {"WindowCenter": "48213", "WindowWidth": "100"}, "(0028,1050)"),
        ("1500", {"WindowCenter": "-600", "WindowWidth": "1500"}, "(0028,1051)"),
        ("48213", {"RescaleIntercept": "-48213", "RescaleSlope": "1"}, "(0028,1052)"),
        ("1000", {"DiffusionBValue": 1000.0}, "(0018,9087)"),
        ("4471230", {"ImagePositionPatient": ["4471230", "0", "0"]}, "(0020,0032)"),
    ],
)
def test_a_number_that_the_image_needs_is_refused(identifier: str, values: dict[str, Any], place: str) -> None:
    message = refusal(make_radiograph(PatientID=identifier, **values))
    assert place in message
    assert "--allow SHA256:ATTRIBUTE" in message
    assert identifier not in message


@pytest.mark.parametrize("number", ["ROINumber", "ReferencedROINumber"])
def test_a_number_to_which_others_refer_is_refused(number: str) -> None:
    dataset = dcmread(io.BytesIO(make_radiograph(PatientID="48213", SOPClassUID=RTStructureSetStorage)))
    dataset.StructureSetROISequence = [item(**{number: "48213"})]
    refusal(file_bytes(dataset))


def test_a_measured_value_is_never_made_up() -> None:
    amount = item(NumericValue="48213", MeasurementUnitsCodeSequence=[item(CodeValue="mm", CodingSchemeDesignator="UCUM")])
    content = make_radiograph(PatientID="48213", ContentSequence=[item(ValueType="NUM", MeasuredValueSequence=[amount])])
    assert "(0040,a30a)" in refusal(content)


def test_times_that_are_kept_are_searched_too() -> None:
    made = result(make_radiograph(PatientID="101112", StudyTime="101112", SeriesTime="101113"), DATES)
    assert (made.StudyTime, made.SeriesTime) == ("000000", "101113")


@pytest.mark.parametrize("uid", ["1.2.3.4471230.5", "1.2.3.19470823.5", "1.2.3.1.4471230"])
def test_kept_uids_hold_no_identifier_of_the_patient(uid: str) -> None:
    content = make_radiograph(FrameOfReferenceUID=uid)
    assert "(0020,0052)" in refusal(content, UIDS)
    assert result(content).FrameOfReferenceUID.startswith("2.25.")


def test_kept_uids_may_hold_a_device_and_longer_numbers() -> None:
    content = make_radiograph(FrameOfReferenceUID="1.3.12.2.1107.5.48213.144712300", DeviceSerialNumber="48213")
    assert result(content, UIDS).FrameOfReferenceUID == "1.3.12.2.1107.5.48213.144712300"


# Every kind of attribute


VALUES: dict[str, Any] = {
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "CS", "AE", "PN"), "QUILLFEATHER 1"),
    **dict.fromkeys(("US", "UL", "SL", "FL", "FD", "SV", "UV"), 48213),
    **{"IS": "48213", "DS": "48213.0", "DA": "19470823", "DT": "19470823101112", "UI": "1.2.48213.19470823", "TM": "048213"},
}
EXEMPT = FORCED_NUMBERS | {"PatientName", "PatientID", "SOPClassUID"}
SOME = [
    (tag, next(kind for kind in entry[0].split(" or ") if kind in VALUES))
    for tag, entry in sorted(DicomDictionary.items())
    if tag >= 0x00080000 and set(entry[0].split(" or ")) & VALUES.keys() and entry[4] and entry[4] not in EXEMPT
][::23]


@pytest.mark.parametrize("options", [BASIC, Options(frozenset(Keep))])
@pytest.mark.parametrize("is_nested", [False, True])
def test_wherever_an_identifier_stands_it_is_gone_or_the_file_refused(options: Options, is_nested: bool) -> None:
    written = 0
    for tag, kind in SOME:
        dataset = dcmread(io.BytesIO(make_radiograph(PatientID="MRN48213", BurnedInAnnotation="NO")))
        nested = item()
        dataset.SharedFunctionalGroupsSequence = [nested]
        (nested if is_nested else dataset).add_new(tag, kind, VALUES[kind])
        try:
            made = deidentify_bytes(file_bytes(dataset), Secret(bytes(32)), options, Limits()).content
        except (RefusedError, UnreadableError):
            continue
        written += 1
        assert re.search(rb"QUILLFEATHER|(?<!\d)(48213|19470823)(?!\d)", made.upper()) is None
        dataset = dcmread(io.BytesIO(made))
        place = dataset.get("SharedFunctionalGroupsSequence", [item()])[0] if is_nested else dataset
        assert tag not in place or place[tag].value != 48213
    assert written > len(SOME) / 2


# What somebody has looked at


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_one_attribute_of_one_file_is_allowed() -> None:
    content = make_radiograph(PatientID="1500", WindowCenter="-600", WindowWidth="1500", Manufacturer="V 1500")
    window = int(Tag("WindowWidth"))
    options = Options(allowed=frozenset({(sha256(content), window), (sha256(b"another"), int(Tag("Manufacturer")))}))
    made = deidentify_bytes(content, Secret(bytes(32)), options, Limits())
    dataset = dcmread(io.BytesIO(made.content))
    assert (dataset.WindowWidth, dataset.Manufacturer, made.allowed) == (1500, GONE, ("WindowWidth",))
    other = make_radiograph(PatientID="1500", WindowCenter="-601", WindowWidth="1500")
    assert "(0028,1051)" in refusal(other, options)
    assert "(0028,1051)" in refusal(content, Options(allowed=frozenset({(sha256(content), int(Tag("WindowCenter")))})))


def test_what_is_always_replaced_cannot_be_allowed() -> None:
    content = make_radiograph(StationName="WARD48213")
    options = Options(
        allowed=frozenset((sha256(content), int(Tag(one))) for one in ("PatientName", "PatientID", "StationName"))
    )
    made = result(content, options)
    assert (made.StationName, "Quillfeather" in str(made.PatientName)) == (GONE, False)


# The lists


@pytest.mark.parametrize("keyword", sorted(FORCED_NUMBERS | IDENTIFIERS))
def test_every_attribute_of_the_lists_is_one_of_dicom(keyword: str) -> None:
    assert tag_for_keyword(keyword) is not None


def test_no_forced_number_is_free_and_references_are_neither_made_up() -> None:
    assert [keyword for keyword in FORCED_NUMBERS if is_free_number(int(Tag(keyword)))] == []
    assert [
        keyword for keyword in ("ReferencedBeamNumber", "BeamNumber", "PixelSpacing") if is_free_number(int(Tag(keyword)))
    ] == []
    assert is_free_number(int(Tag("InstanceNumber")))
    assert [
        keyword for keyword in _NEEDED_NUMBERS | _PERSON_NAMES | _IDENTIFYING_CODES if tag_for_keyword(keyword) is None
    ] == []


@pytest.mark.parametrize("word", ["Hospital", "Street", "chest", "LATERAL", "Klinikum"])
def test_common_words_are_listed(word: str) -> None:
    assert is_common(word)
