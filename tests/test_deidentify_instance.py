"""One file, from its bytes to bytes without identity: nothing is left, what may stay stays, and all of it is consistent."""

import io
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RawDataStorage,
    UID_dictionary,
)

from pipeline.deidentify.crosswalk import Secret
from pipeline.deidentify.instance import Deidentified, deidentify_bytes
from pipeline.deidentify.profile import Keep, Options, RefusalReason, RefusedError
from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.guard import silence_decoders
from pipeline.settings import Limits
from tests.builders import make_dataset, make_dicom, make_encapsulated
from tests.identified import (
    INSTANCE,
    SECRETS,
    SERIES,
    SOURCE,
    STUDY,
    file_bytes,
    item,
    make_identified,
    make_identified_dataset,
)

SECRET = Secret(bytes(range(32)))
BASIC = Options()
EVERYTHING = Options(frozenset(Keep))
KEEPING = [BASIC, *(Options(frozenset({one})) for one in Keep), EVERYTHING]


def deidentify(content: bytes, options: Options = BASIC, secret: Secret = SECRET) -> Deidentified:
    return deidentify_bytes(content, secret, options, Limits())


def result(content: bytes, options: Options = BASIC) -> Dataset:
    return dcmread(io.BytesIO(deidentify(content, options).content))


def uids(dataset: Dataset, keyword: str) -> set[str]:
    return {str(element.value) for element in dataset.iterall() if element.keyword == keyword}


def group(dataset: Dataset, index: int) -> Any:
    return dataset.PerFrameFunctionalGroupsSequence[index]


def day(text: str) -> datetime:
    return datetime.strptime(text[:8], "%Y%m%d")


# Nothing is left


@pytest.mark.parametrize("options", KEEPING, ids=lambda one: "+".join(sorted(keep.name for keep in one.keep)) or "basic")
@pytest.mark.parametrize("secret", SECRETS)
def test_nothing_of_the_file_that_is_full_of_identity_is_left(options: Options, secret: str) -> None:
    kept = Keep.UIDS in options.keep and secret in (STUDY, SERIES, INSTANCE, SOURCE)
    original = make_identified()
    assert secret.encode("iso-8859-1") in original
    assert (secret.encode("iso-8859-1") in deidentify(original, options).content) == kept


def test_private_groups_overlays_and_curves_are_out() -> None:
    tags = [element.tag for element in result(make_identified(), EVERYTHING).iterall()]
    assert [tag for tag in tags if tag.is_private or tag.group >> 8 in (0x50, 0x60) or tag.element == 0] == []


def test_unknown_attributes_are_out() -> None:
    dataset = make_dataset()
    dataset.add_new(0x00189FFE, "LO", "Doe")
    dataset.add_new(0x0008FFFC, "UN", b"Doe ")
    made = result(file_bytes(dataset))
    assert 0x00189FFE not in made
    assert 0x0008FFFC not in made


def test_the_file_meta_information_is_new() -> None:
    made = result(make_identified())
    assert "SourceApplicationEntityTitle" not in made.file_meta
    assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID
    assert made.preamble == bytes(128)


def test_sequences_that_say_who_are_filled_with_nothing() -> None:
    person = item(CodeValue="W77", CodingSchemeDesignator="99HOSP", CodeMeaning="Ann Whitfield")
    operator = item(PersonIdentificationCodeSequence=[person], InstitutionName="St. Elsewhere")
    made = result(make_dicom(OperatorIdentificationSequence=[operator]), BASIC)
    left = made.OperatorIdentificationSequence[0].PersonIdentificationCodeSequence[0]
    assert {left.CodeValue, left.CodeMeaning} == {"ANONYMIZED"}


def test_free_text_that_the_table_does_not_know_is_replaced() -> None:
    made = result(make_dicom(DocumentTitle="Letter for Doe", PartialViewDescription="", SegmentDescription="lung left"))
    assert (made.DocumentTitle, made.PartialViewDescription, made.SegmentDescription) == ("ANONYMIZED", "", "ANONYMIZED")


def test_text_that_the_table_keeps_is_replaced_where_it_repeats_a_name() -> None:
    made = result(make_dicom(PatientName="Philips^Ann", Manufacturer="Philips", ManufacturerModelName="Ingenia"))
    assert (made.Manufacturer, made.ManufacturerModelName) == ("ANONYMIZED", "Ingenia")


def test_a_name_in_a_code_string_is_replaced() -> None:
    made = result(
        make_dicom(PatientName="Smith^John", PatientID="MRN778812", BodyPartExamined="MRN778812", ContentLabel="SMITH")
    )
    assert (made.BodyPartExamined, made.ContentLabel) == ("ANONYMIZED", "ANONYMIZED")
    made = result(make_dicom(PatientName="Smith^John", ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "SMITH JOHN"]))
    assert list(made.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL", "ANONYMIZED"]


# What may stay stays


def test_the_pixels_are_the_same_bytes() -> None:
    original = make_identified()
    assert result(original).PixelData == dcmread(io.BytesIO(original)).PixelData


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_the_transfer_syntax_stays(syntax: str) -> None:
    dataset = make_identified_dataset()
    original = np.array(dcmread(io.BytesIO(file_bytes(dataset))).pixel_array)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = original.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    made = result(file_bytes(dataset), EVERYTHING)
    assert made.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(made.pixel_array, original)


def test_what_identifies_nobody_is_kept_in_its_character_set() -> None:
    made = result(make_dicom(SpecificCharacterSet="ISO_IR 100", Manufacturer="Gerätebau", KVP="70", ViewPosition="PA"))
    assert (made.SpecificCharacterSet, made.Manufacturer, made.KVP, made.ViewPosition) == ("ISO_IR 100", "Gerätebau", 70, "PA")


def test_japanese_names_are_found_and_nothing_is_left() -> None:
    dataset = make_dataset(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう")
    dataset.ImageComments = "山田"
    made = deidentify(file_bytes(dataset)).content
    assert "山田".encode("iso2022_jp")[3:7] not in made
    assert dcmread(io.BytesIO(made)).SpecificCharacterSet == ["", "ISO 2022 IR 87"]


# UIDs


def test_references_lead_to_what_they_led_to() -> None:
    source = result(make_identified(SOPInstanceUID=SOURCE))
    made = result(make_identified())
    assert uids(made, "ReferencedSOPInstanceUID") == {str(source.SOPInstanceUID)}
    assert uids(made, "SeriesInstanceUID") == {str(source.SeriesInstanceUID)}
    assert made.SOPInstanceUID != source.SOPInstanceUID


def test_registered_uids_are_kept_and_all_others_are_new() -> None:
    original, made = dcmread(io.BytesIO(make_identified())), result(make_identified())
    before = {str(element.value) for element in original.iterall() if element.VR == "UI"}
    after = {str(element.value) for element in made.iterall() if element.VR == "UI"}
    assert before & after == {uid for uid in before if uid in UID_dictionary} != set()
    assert {uid[:5] for uid in after - before} == {"2.25."}


def test_uids_are_kept_when_asked() -> None:
    made = result(make_identified(), Options(frozenset({Keep.UIDS})))
    assert (made.StudyInstanceUID, made.SOPInstanceUID) == (STUDY, INSTANCE)
    assert uids(made, "ReferencedSOPInstanceUID") == {SOURCE, STUDY} & uids(made, "ReferencedSOPInstanceUID") != set()


def test_the_name_of_the_file_holds_nothing_of_the_original_even_then() -> None:
    silence_decoders()
    content = make_identified().replace(SERIES.encode() + b"\0", b"../../Doe/x\0")
    made = deidentify(content, Options(frozenset({Keep.UIDS})))
    parts = made.name.removesuffix(".dcm").split("/")
    assert [part[:5] for part in parts] == [made.pseudonym[:5], "2.25.", "2.25.", "2.25."]
    assert b"Doe" in content
    assert b"Doe" not in made.content


# Dates


def test_dates_move_together_and_times_stay() -> None:
    options = Options(frozenset({Keep.DATES}))
    made, days = result(make_identified(), options), deidentify(make_identified(), options).offset_days
    assert days is not None
    dates = [made.StudyDate, group(made, 0).FrameContentSequence[0].FrameAcquisitionDateTime[:8]]
    assert {(day(text) - datetime(2019, 3, 4)).days for text in dates} == {days}
    first, second = (group(made, index).FrameContentSequence[0].FrameAcquisitionDateTime for index in (0, 1))
    assert (day(second) - day(first)).days == 1
    assert (first[8:], made.StudyTime) == ("101500.25+0100", "101112")
    assert made.AcquisitionDateTime == dates[0] + "101112.5"
    assert made.PatientBirthDate == ""
    assert made.LongitudinalTemporalInformationModified == "MODIFIED"


def test_two_studies_of_a_patient_keep_their_distance_and_two_patients_do_not() -> None:
    options = Options(frozenset({Keep.DATES}))
    first, second = deidentify(make_identified(), options), deidentify(make_identified(StudyInstanceUID="1.2.999.2"), options)
    other = deidentify(make_identified(PatientID="MRN-2"), options)
    assert first.offset_days == second.offset_days != other.offset_days
    assert first.pseudonym == second.pseudonym != other.pseudonym


def test_without_the_option_dates_say_nothing() -> None:
    made = result(make_identified())
    dates = {str(element.value) for element in made.iterall() if element.VR in ("DA", "DT")}
    assert dates == {"", "19000101", "19000101000000"}
    assert made.LongitudinalTemporalInformationModified == "REMOVED"


def test_a_date_that_is_none_is_not_kept() -> None:
    silence_decoders()
    content = make_dicom(AcquisitionDateTime="20190304101112", StudyDate="20190304")
    content = content.replace(b"20190304101112", b"March 4, Doe  ").replace(b"20190304", b"2019  XX")
    made = result(content, Options(frozenset({Keep.DATES})))
    assert (made.AcquisitionDateTime, made.StudyDate) == ("19000101000000", "")


def test_ages_and_times_that_are_none_are_not_kept() -> None:
    silence_decoders()
    content = make_dicom(PatientAge="057Y", StudyTime="101112", AcquisitionDateTime="20190304101112", ContentTime="101112")
    content = content.replace(b"057Y", b"Doe ").replace(b"\x06\x00101112", b"\x06\x00noonXX")
    made = result(content, Options(frozenset({Keep.DATES, Keep.PATIENT})))
    assert (made.PatientAge, made.StudyTime, made.ContentTime) == ("000Y", "", "000000")


# The patient


def test_the_patient_has_one_pseudonym_with_one_key() -> None:
    made = result(make_identified())
    assert made.PatientID == made.PatientName == SECRET.pseudonym("MRN-778812")
    assert deidentify(make_identified(), secret=Secret(bytes(32))).pseudonym != made.PatientID


@pytest.mark.parametrize(
    ("same", "one", "other"),
    [
        (True, {"PatientID": " P7 "}, {"PatientID": "P7", "PatientName": "Roe"}),
        (True, {"PatientID": None}, {"PatientID": "", "StudyInstanceUID": "1.2.3.4"}),
        (False, {"PatientID": None}, {"PatientID": None, "PatientBirthDate": "19700101"}),
        (False, {"PatientID": "", "PatientName": ""}, {"PatientID": "", "PatientName": "", "StudyInstanceUID": "1.2.3.4"}),
    ],
)
def test_who_is_one_patient(same: bool, one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (deidentify(make_dicom(**one)).pseudonym == deidentify(make_dicom(**other)).pseudonym) == same


def test_another_patient_that_is_named_within_has_a_pseudonym_too() -> None:
    made = result(make_dicom(ReferencedSeriesSequence=[item(PatientID="MOTHER-1", PatientName="Doe^Mary")]))
    assert made.ReferencedSeriesSequence[0].PatientID == SECRET.pseudonym("MOTHER-1")
    assert made.ReferencedSeriesSequence[0].PatientName == ""


@pytest.mark.parametrize(
    ("age", "kept"), [("057Y", "057Y"), ("089Y", "089Y"), ("090Y", "090Y"), ("101Y", "090Y"), ("013D", "013D")]
)
def test_characteristics_are_kept_when_asked_but_no_great_age(age: str, kept: str) -> None:
    made = result(make_identified(PatientAge=age), Options(frozenset({Keep.PATIENT})))
    assert (made.PatientSex, made.PatientAge, made.PatientWeight) == ("M", kept, 81)
    basic = result(make_identified(PatientAge=age))
    assert (basic.PatientSex, "PatientAge" in basic, "PatientWeight" in basic) == ("", False, False)


# Descriptions


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Chest PA/lateral, erect", True),
        ("OCT macula left", True),
        ("Chest PA Okonkwo", False),
        ("chest 4471", False),
        ("Thorax ap für Jörg", False),
    ],
)
def test_a_description_is_kept_where_every_word_is_known(text: str, kept: bool) -> None:
    content = make_dicom(StudyDescription=text, SpecificCharacterSet="ISO_IR 100")
    assert result(content, Options(frozenset({Keep.DESCRIPTORS}))).get("StudyDescription") == (text if kept else None)
    assert "StudyDescription" not in result(content)


def test_a_known_word_is_not_kept_where_it_is_the_name() -> None:
    options = Options(frozenset({Keep.DESCRIPTORS}))
    assert result(make_dicom(PatientName="Hand^Ann", StudyDescription="hand left"), options).StudyDescription == "ANONYMIZED"


# What it says of itself


@pytest.mark.parametrize("options", KEEPING)
def test_the_file_says_what_was_done(options: Options) -> None:
    made = result(make_identified(), options)
    codes = {
        code.CodeValue: (code.CodingSchemeDesignator, code.CodeMeaning) for code in made.DeidentificationMethodCodeSequence
    }
    assert codes.keys() == {"113100", *(one.code for one in options.keep)}
    assert {scheme for scheme, _ in codes.values()} == {"DCM"}
    assert made.PatientIdentityRemoved == "YES"
    assert made.DeidentificationMethod[0] == "octray: DICOM PS3.15 2026d"


def test_the_same_file_gives_the_same_bytes() -> None:
    assert deidentify(make_identified(), EVERYTHING) == deidentify(make_identified(), EVERYTHING)


def test_what_was_done_can_be_done_again() -> None:
    once = deidentify(make_identified(), EVERYTHING)
    again = result(once.content, EVERYTHING)
    assert again.PatientID == SECRET.pseudonym(once.pseudonym)
    assert len(again.DeidentificationMethodCodeSequence) == 5


# Structured reports


def make_report() -> bytes:
    dataset = make_dataset()
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, keyword)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ComprehensiveSRStorage
    dataset.Modality = "SR"
    concept = item(CodeValue="121071", CodingSchemeDesignator="DCM", CodeMeaning="Finding")
    reference = item(ReferencedSOPClassUID=ComprehensiveSRStorage, ReferencedSOPInstanceUID=SOURCE)
    dataset.ValueType = "CONTAINER"
    dataset.VerifyingObserverSequence = [item(VerifyingObserverName="Whitfield^Ann", VerifyingOrganization="St. Elsewhere")]
    dataset.ContentSequence = [
        item(ValueType="PNAME", ConceptNameCodeSequence=[concept], PersonName="Okonkwo^Ada"),
        item(ValueType="TEXT", ConceptNameCodeSequence=[concept], TextValue="Okonkwo saw Doe on 20190304"),
        item(ValueType="DATE", ConceptNameCodeSequence=[concept], Date="20190304"),
        item(ValueType="UIDREF", ConceptNameCodeSequence=[concept], UID=SOURCE),
        item(ValueType="IMAGE", ReferencedSOPSequence=[reference]),
        item(ValueType="CONTAINER", ContentSequence=[item(ValueType="DATETIME", DateTime="20190304101500")]),
    ]
    return file_bytes(dataset)


def test_a_report_is_cleaned_and_keeps_its_structure() -> None:
    made = deidentify(make_report()).content
    assert not [secret for secret in ("Whitfield", "Okonkwo", "Elsewhere", "20190304", SOURCE) if secret.encode() in made]
    report = dcmread(io.BytesIO(made))
    name, text, date, uid, image, container = report.ContentSequence
    assert (name.PersonName, text.TextValue, date.Date) == ("ANONYMIZED", "ANONYMIZED", "19000101")
    assert uid.UID == image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == SECRET.uid(SOURCE)
    assert text.ConceptNameCodeSequence[0].CodeMeaning == "Finding"
    assert container.ContentSequence[0].DateTime == "19000101000000"
    assert "BurnedInAnnotation" not in report


# RefusedFile


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (b"", RefusalReason.NOT_DICOM),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), RefusalReason.NOT_DICOM),
        (make_dicom(SOPClassUID=EncapsulatedPDFStorage, EncapsulatedDocument=b"%PDF"), RefusalReason.NOT_SUPPORTED),
        (make_dicom(SOPClassUID=RawDataStorage), RefusalReason.NOT_SUPPORTED),
        (make_dicom(SOPClassUID="1.3.12.2.1107.5.9.1"), RefusalReason.NOT_SUPPORTED),
        (make_dicom(BurnedInAnnotation="YES"), RefusalReason.BURNED_IN),
    ],
    ids=["empty", "png", "pdf", "raw", "private", "burned in"],
)
def test_what_cannot_be_cleaned_is_refused(content: bytes, refusal: RefusalReason) -> None:
    with pytest.raises(RefusedError) as caught:
        deidentify(content)
    assert caught.value.reason is refusal


def test_damaged_files_are_refused() -> None:
    silence_decoders()
    content = make_identified()
    for cut in range(0, len(content), 13):
        with pytest.raises((UnreadableError, RefusedError)):
            deidentify(content[:cut])
    with pytest.raises(UnreadableError) as caught:
        deidentify(content[:-8])
    assert caught.value.reason is Reason.TRUNCATED


# Bad input


def test_malformed_files_end_written_or_refused(shared_data: Path) -> None:
    silence_decoders()
    ends = Counter(end_of(path.read_bytes()) for path in sorted((shared_data / "dicom-malformed").rglob("*")) if path.is_file())
    assert ends.keys() <= {"written", *Reason, *RefusalReason}
    assert ends["written"] > 20


@pytest.mark.parametrize("seed", range(40))
def test_altered_files_end_written_or_refused(seed: int) -> None:
    silence_decoders()
    generator = np.random.default_rng(seed)
    content = bytearray(make_identified())
    for at in generator.integers(0, len(content), 6):
        content[at] ^= 1 << int(generator.integers(8))
    assert end_of(bytes(content)) in {"written", *Reason, *RefusalReason}


def end_of(content: bytes) -> str:
    try:
        deidentify(content, EVERYTHING)
    except UnreadableError as error:
        return error.reason
    except RefusedError as error:
        return error.reason
    return "written"


def test_encapsulated_pixels_get_the_value_representation_that_the_standard_asks_for() -> None:
    pixels = np.zeros((8, 8), np.uint16)
    codestream = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=0)
    right = make_encapsulated(pixels, JPEG2000Lossless, [[codestream]])
    wrong = right.replace(b"\xe0\x7f\x10\x00OB", b"\xe0\x7f\x10\x00OW")
    assert wrong != right
    assert deidentify(wrong).content == deidentify(right).content
