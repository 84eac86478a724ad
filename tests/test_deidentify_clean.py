"""What stays of attributes that the Standard's table does not list: what images need, in the form of its kind."""

import io
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, ComprehensiveSRStorage, CTImageStorage, TwelveLeadECGWaveformStorage

from pipeline.deidentify.crosswalk import Secret
from pipeline.deidentify.instance import deidentify_bytes
from pipeline.deidentify.profile import Keep, Options, RefusalReason, RefusedError
from pipeline.deidentify.values import is_time, is_utc_offset
from pipeline.errors import UnreadableError
from pipeline.imaging.guard import silence_decoders
from pipeline.settings import Limits
from tests.builders import make_dataset, make_dicom
from tests.identified import file_bytes, item

SECRET = Secret(bytes(range(32)))
DESCRIPTORS = Options(frozenset({Keep.DESCRIPTORS}))
PATIENT = Options(frozenset({Keep.PATIENT}))


def result(content: bytes, options: Options = Options()) -> Dataset:  # noqa: B008
    return dcmread(io.BytesIO(deidentify_bytes(content, SECRET, options, Limits()).content))


def with_element(tag: int, representation: str, value: Any) -> Dataset:
    dataset = make_dataset()
    dataset.add_new(tag, representation, value)
    return result(file_bytes(dataset))


def code(value: str, meaning: str, scheme: str = "99HOSP") -> Dataset:
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def text_of(dataset: Dataset) -> str:
    return " ".join(str(element.value) for element in dataset.iterall() if element.VR != "SQ")


# Text


@pytest.mark.parametrize(
    "tag",
    [
        0x00100033, 0x00100034, 0x00181003, 0x00181803, 0x00102295, 0x00540400, 0x21000160, 0x00440012, 0x01000426,
        0x00720008, 0x00880130, 0x30040006, 0x0028702A, 0x00287007, 0x300600C8, 0x00440011, 0x00209453, 0x00080302,
    ],
)  # fmt: skip
@pytest.mark.parametrize("representation", ["LO", "SH"])
def test_text_that_is_neither_listed_nor_needed_is_replaced(tag: int, representation: str) -> None:
    made = with_element(tag, representation, "Secret 42")
    assert b"Secret" not in file_bytes(made)
    assert made[tag].value == "ANONYMIZED"


def test_text_that_images_need_stays() -> None:
    kept = {
        "Manufacturer": "Maker",
        "ManufacturerModelName": "M 1",
        "ConvolutionKernel": "B30f",
        "RescaleType": "HU",
        "WindowCenterWidthExplanation": ["LUNG", "BONE"],
    }
    made = result(make_dicom(**kept))
    assert {keyword: made.get(keyword) for keyword in kept} == kept


# Coded entries


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (code("121071", "Finding", "DCM"), ("121071", "DCM", "Finding")),
        (code("121071", "Wife of Mr Novak", "DCM"), ("121071", "DCM", "Finding")),
        (code("T-D3000", "Chest", "SRT"), ("T-D3000", "SRT", "Chest")),
        (code("77", "Chest left", "99HOSP"), ("ANONYMIZED", "ANONYMIZED", "Chest left")),
        (code("W7", "Dr Novak Ward 7"), ("ANONYMIZED", "ANONYMIZED", "ANONYMIZED")),
        (code("9999999", "Something new", "SCT"), ("9999999", "SCT", "ANONYMIZED")),
        (code("NOVAK", "Chest", "SCT"), ("ANONYMIZED", "SCT", "Chest")),
        (code("ug/mL", "Novak", "UCUM"), ("ug/mL", "UCUM", "ANONYMIZED")),
        (code("novak", "unit", "UCUM"), ("ANONYMIZED", "UCUM", "ANONYMIZED")),
    ],
)
@pytest.mark.parametrize("options", [Options(), DESCRIPTORS])
def test_coded_entries_keep_what_a_dictionary_knows(entry: Dataset, expected: tuple[str, str, str], options: Options) -> None:
    made = result(make_dicom(AnatomicRegionSequence=[entry]), options).AnatomicRegionSequence[0]
    assert (made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning) == expected


def test_descriptions_in_codes_are_cleaned_like_others() -> None:
    request = item(
        ScheduledProcedureStepDescription="Dr Novak",
        RequestedProcedureCodeSequence=[code("X3", "for Novak")],
        ScheduledProtocolCodeSequence=[code("X4", "proto Novak")],
        Manufacturer="Novak Ltd",
    )
    made = result(
        make_dicom(
            AdmittingDiagnosesCodeSequence=[code("X1", "Wife of Mr Novak, 12 Elm St")],
            ReasonForVisitCodeSequence=[code("X2", "Seen by Dr Novak 2023-04-09")],
            RequestAttributesSequence=[request],
        ),
        DESCRIPTORS,
    )
    assert "AdmittingDiagnosesCodeSequence" in made
    assert "Novak" not in text_of(made)
    assert "X1" not in text_of(made)


# Kinds of values


@pytest.mark.parametrize(
    ("tag", "representation", "value"),
    [
        (0x52009229, "OB", b"Weird^Al"),
        (0x00280A02, "OB", b"Weird^Al"),
        (0x00189445, "OB", b"Weird^Al"),
        (0x0008041B, "OB", b"Weird^Al"),
        (0x00282000, "OB", b"Weird^Al"),
        (0x00280106, "LO", "Weird^Al"),
        (0x00180050, "LO", "Weird^Al"),
        (0x00200070, "UT", "Weird^Al"),
        (0x00281201, "LT", "Weird^Al"),
        (0x7FE00020, "OW", b"Weird^Al"),
        (0x00420011 + 0x10000000, "UN", b"Weird^Al"),
    ],
)
def test_bytes_and_values_of_another_kind_are_out(tag: int, representation: str, value: Any) -> None:
    silence_decoders()
    made = with_element(tag, representation, value)
    assert b"Weird" not in file_bytes(made)


def test_text_takes_the_value_representation_of_the_dictionary() -> None:
    silence_decoders()
    dataset = make_dataset()
    dataset.add_new(0x00180015, "LO", "Chest")
    dataset.add_new(0x00180050, "LO", "1.5")
    made = result(file_bytes(dataset))
    assert (made["BodyPartExamined"].VR, made.BodyPartExamined) == ("CS", "CHEST")
    assert (made["SliceThickness"].VR, made.SliceThickness) == ("DS", 1.5)


def test_pixels_within_items_are_out_and_tables_stay() -> None:
    nested = item(PatientOrientation=["A", "B"])
    nested.add_new(0x7FE00010, "OW", b"Weber   ")
    table = item(LUTDescriptor=[2, 0, 16], ModalityLUTType="US")
    table.add_new(0x00283006, "OW", b"\1\0\2\0")
    made = result(make_dicom(SharedFunctionalGroupsSequence=[nested], ModalityLUTSequence=[table]))
    assert "PixelData" not in made.SharedFunctionalGroupsSequence[0]
    assert made.ModalityLUTSequence[0].LUTData == b"\1\0\2\0"
    assert len(made.PixelData) > 0


def test_signals_are_refused() -> None:
    wave = item()
    wave.add_new(0x54001010, "OB", b"Novak in wave ")
    content = make_dicom(SOPClassUID=TwelveLeadECGWaveformStorage, WaveformSequence=[wave])
    with pytest.raises(RefusedError, match="Leave it out") as caught:
        result(content)
    assert caught.value.reason is RefusalReason.NOT_SUPPORTED


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("chest", "CHEST"),
        ("VERY LONG LEFT LUNG", "ANONYMIZED"),
        ("O'NEIL", "ANONYMIZED"),
        ("", ""),
        ("T2_STAR", "T2_STAR"),
    ],
)
def test_code_strings_that_are_none_are_replaced(value: str, expected: str) -> None:
    silence_decoders()
    assert (with_element(0x00180015, "CS", value).BodyPartExamined or "") == expected


def test_one_value_that_is_none_leaves_the_others() -> None:
    silence_decoders()
    made = result(make_dicom(ImageType=["ORIGINAL", "PRIMARY", "Mr. Smith"]))
    assert list(made.ImageType) == ["ORIGINAL", "PRIMARY", "ANONYMIZED"]


def test_an_unknown_character_set_gives_way_to_unicode() -> None:
    silence_decoders()
    content = make_dicom(SpecificCharacterSet="ISO_IR 100", Manufacturer="Gerätebau").replace(b"ISO_IR 100", b"SMITH JOHN")
    made = result(content)
    assert (made.SpecificCharacterSet, made.Manufacturer) == ("ISO_IR 192", "Gerätebau")


@pytest.mark.parametrize("uid", ["1.2.999.77", "1.2.999.1.1.1", "0"])
def test_a_class_that_is_not_the_standards_is_replaced(uid: str) -> None:
    reference = item(ReferencedSOPClassUID=uid, ReferencedSOPInstanceUID="1.2.999.1.1.1")
    made = result(make_dicom(SOPInstanceUID="1.2.999.1.1.1", ReferencedImageSequence=[reference]))
    assert made.ReferencedImageSequence[0].ReferencedSOPClassUID == SECRET.uid(uid)


# Times and ages


@pytest.mark.parametrize("text", ["10", "1011", "101112", "101112.5", "101112.123456", "10:11:12", "235960", " 101112 "])
def test_what_a_time_is(text: str) -> None:
    assert is_time(text)


@pytest.mark.parametrize("text", ["", "1", "123", "123456789012", "251112", "106112", "101112.1234567", "10:1112", "noon"])
def test_what_no_time_is(text: str) -> None:
    assert not is_time(text)


@pytest.mark.parametrize(("text", "expected"), [("+0200", True), ("-1130", True), ("0200", False), ("+19510203", False)])
def test_what_a_zone_is(text: str, expected: bool) -> None:
    assert is_utc_offset(text) == expected


def test_digits_that_are_no_time_are_not_kept() -> None:
    silence_decoders()
    content = make_dicom(StudyTime="101112.12345").replace(b"101112.12345", b"123456789012")
    assert b"123456789012" in content
    assert result(content, Options(frozenset({Keep.DATES}))).StudyTime == ""


def measured(concept: Dataset, value: str, unit: str) -> Dataset:
    amount = item(NumericValue=value, MeasurementUnitsCodeSequence=[code(unit, "unit", "UCUM")])
    return item(ValueType="NUM", ConceptNameCodeSequence=[concept], MeasuredValueSequence=[amount])


@pytest.mark.parametrize(
    ("concept", "value", "unit", "basic", "kept"),
    [
        (code("121033", "Subject Age", "DCM"), "95", "a", 0, 90),
        (code("121033", "Subject Age", "DCM"), "57", "a", 0, 57),
        (code("121033", "Subject Age", "DCM"), "1200", "mo", 0, 1080),
        (code("X", "Alter", "99HOSP"), "95", "a", 0, 90),
        (code("121206", "Distance", "DCM"), "95", "mm", 95, 95),
    ],
)
def test_ages_among_measurements(concept: Dataset, value: str, unit: str, basic: float, kept: float) -> None:
    content = make_dicom(SOPClassUID=BasicTextSRStorage, ContentSequence=[measured(concept, value, unit)])
    for options, expected in ((Options(), basic), (PATIENT, kept)):
        made = result(content, options).ContentSequence[0].MeasuredValueSequence[0]
        assert made.NumericValue == expected


def test_ages_within_items_are_limited_too() -> None:
    nested = item(PatientAge="095Y")
    made = result(make_dicom(PatientAge="150Y", SharedFunctionalGroupsSequence=[nested]), PATIENT)
    assert made.PatientAge == made.SharedFunctionalGroupsSequence[0].PatientAge == "090Y"


# Who is meant


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("uid", [None, ""])
def test_a_uid_that_is_missing_is_in_the_file_what_it_is_in_the_folder(keyword: str, uid: str | None) -> None:
    made = deidentify_bytes(make_dicom(SOPClassUID=CTImageStorage, **{keyword: uid}), SECRET, Options(), Limits())
    dataset = dcmread(io.BytesIO(made.content))
    _, study, series, instance = made.name.removesuffix(".dcm").split("/")
    assert (study, series, instance) == (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)


def test_one_identifier_of_two_issuers_is_two_patients() -> None:
    def pseudonym(**values: Any) -> str:
        return str(result(make_dicom(PatientID="7", **values)).PatientID)

    assert pseudonym(IssuerOfPatientID="A") == pseudonym(IssuerOfPatientID="A", PatientName="X")
    assert len({pseudonym(), pseudonym(IssuerOfPatientID="A"), pseudonym(IssuerOfPatientID="B")}) == 3
    made = result(make_dicom(ReferencedSeriesSequence=[item(PatientID="7", IssuerOfPatientID="A")]))
    assert made.ReferencedSeriesSequence[0].PatientID == pseudonym(IssuerOfPatientID="A")


# Graphics


STROKES = [10.0, 10.0, 18.5, 40.0, 26.0, 10.0]


def strokes(**others: Any) -> Dataset:
    return item(
        GraphicAnnotationUnits="PIXEL",
        GraphicDimensions=2,
        NumberOfGraphicPoints=3,
        GraphicData=STROKES,
        GraphicType="POLYLINE",
        **others,
    )


def make_state(sop_class: str, **elements: Any) -> bytes:
    dataset = make_dataset(Modality="PR", SOPClassUID=sop_class, **elements)
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, keyword)
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    return file_bytes(dataset)


@pytest.mark.parametrize("number", [*range(1, 9), 11])
def test_nothing_that_was_drawn_is_left_in_a_presentation_state(number: int) -> None:
    compound = item(CompoundGraphicUnits="PIXEL", GraphicDimensions=2, GraphicData=STROKES, CompoundGraphicType="MULTILINE")
    text = item(BoundingBoxTopLeftHandCorner=[18.5, 40.0], UnformattedTextValue="Weird")
    annotation = item(
        GraphicLayer="WEIRD",
        GraphicObjectSequence=[strokes()],
        TextObjectSequence=[text],
        CompoundGraphicSequence=[compound],
    )
    content = make_state(
        f"1.2.840.10008.5.1.4.1.1.11.{number}",
        GraphicAnnotationSequence=[annotation],
        GraphicLayerSequence=[item(GraphicLayer="WEIRD", GraphicLayerOrder=1, GraphicLayerDescription="Weird")],
        GraphicGroupSequence=[item(GraphicGroupID=1, GraphicGroupLabel="Weird")],
        SharedFunctionalGroupsSequence=[item(GraphicAnnotationSequence=[annotation])],
    )
    for options in (Options(), Options(frozenset(Keep))):
        made = result(content, options)
        assert [element.keyword for element in made.iterall() if "Graphic" in element.keyword] == []
        assert np.float32(18.5).tobytes() not in file_bytes(made)
        assert b"WEIRD" not in file_bytes(made).upper()


def test_outlines_in_a_report_lose_their_form_and_stay_valid() -> None:
    region = strokes(ValueType="SCOORD")
    content = make_state(ComprehensiveSRStorage, ContentSequence=[item(ValueType="CONTAINER", ContentSequence=[region])])
    made = result(content).ContentSequence[0].ContentSequence[0]
    assert (made.GraphicType, list(made.GraphicData)) == ("POLYLINE", [0.0] * 6)


# Classes


@pytest.mark.parametrize(
    "keyword", ["ReferencedSOPClassUID", "RelatedGeneralSOPClassUID", "AvailableTransferSyntaxUID", "SOPClassesInStudy"]
)
@pytest.mark.parametrize("uid", ["1.2.840.10008.5.1.4.1.1.48213", "1.2.840.10008.48213", "1.2.840.10008.1.2.4.482130"])
@pytest.mark.parametrize("options", [Options(), Options(frozenset(Keep))])
def test_a_class_that_the_standard_does_not_register_is_replaced(keyword: str, uid: str, options: Options) -> None:
    made = result(make_dicom(ReferencedSeriesSequence=[item(**{keyword: uid})]), options)
    assert made.ReferencedSeriesSequence[0].get(keyword) == SECRET.uid(uid)


@pytest.mark.parametrize(
    "uid", [CTImageStorage, "1.2.840.10008.1.2.4.70", "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.1.2.4.110", ""]
)
def test_a_class_that_the_standard_registers_stays(uid: str) -> None:
    made = result(make_dicom(ReferencedSeriesSequence=[item(ReferencedSOPClassUID=uid, AvailableTransferSyntaxUID=uid)]))
    (kept,) = made.ReferencedSeriesSequence
    assert (kept.ReferencedSOPClassUID, kept.AvailableTransferSyntaxUID) == (uid, uid)


@pytest.mark.parametrize("uid", ["1.2.840.10008.5.1.4.1.1.48213", "1.2.840.10008.1.2.1.48213"])
def test_an_object_of_a_class_that_the_standard_does_not_register_is_refused(uid: str) -> None:
    with pytest.raises(RefusedError) as caught:
        result(make_dicom(SOPClassUID=uid))
    assert caught.value.reason is RefusalReason.NOT_SUPPORTED


def test_a_transfer_syntax_that_the_standard_does_not_register_is_refused() -> None:
    content = make_dicom()
    assert content.count(b"1.2.840.10008.1.2.1\0") == 1
    with pytest.raises(UnreadableError):
        result(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.7\0"))
