"""The verifier: whatever is put back into a clean file is found, wherever it stands."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipeline.ingest.deidentify import values
from pipeline.ingest.deidentify.identity import Identity
from pipeline.ingest.deidentify.instance import deidentify_bytes
from pipeline.ingest.deidentify.options import Keep, Options, Refusal, RefusedError
from pipeline.ingest.deidentify.secret import Secret
from pipeline.ingest.deidentify.verify import PLACEHOLDERS, verify
from pipeline.records import Limits
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
    assert caught.value.refusal is Refusal.IDENTITY_LEFT
    assert any(one in str(caught.value) for one in place.split("|"))


def test_a_date_that_did_not_move_is_found() -> None:
    with pytest.raises(RefusedError, match=r"\(0008,0020\)"):
        check(put(StudyDate="20190304"), DATES)
    with pytest.raises(RefusedError, match=r"\(0018,9074\)"):
        check(into_frame(FrameAcquisitionDateTime="20190305101500.25+0100"), DATES)
    check(put(ContentDate="20190304"), DATES)


def test_a_uid_is_found_unless_uids_were_to_be_kept() -> None:
    check(put(FrameOfReferenceUID=SOURCE), Options(frozenset({Keep.UIDS})))


def test_deflated_bytes_are_searched_too() -> None:
    def change(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.add_new(0x00282000, "OB", b"xxMRN-778812xx")

    with pytest.raises(RefusedError, match="the bytes of the file"):
        check(change)


def test_no_message_says_what_was_found() -> None:
    with pytest.raises(RefusedError) as caught:
        check(put(PatientName="Müller^Jörg"))
    assert "ller" not in str(caught.value)


def test_the_list_of_placeholders_knows_every_dummy() -> None:
    kinds = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UT")
    assert {values.dummy(kind) for kind in kinds} <= PLACEHOLDERS
