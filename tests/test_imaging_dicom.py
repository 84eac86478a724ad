import csv
import hashlib
import io
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import data_store
import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    OphthalmicTomographyImageStorage,
    RLELossless,
)

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging import guard
from pipeline.imaging.identity import pixel_sha256
from pipeline.imaging.sources import StudyFile, read_frames, read_frames_from_bytes
from pipeline.settings import DEFAULT_READING, Limits, Reading
from tests.builders import make_dataset, make_dicom, make_encapsulated

REAL = Path(data_store.__file__).parent / "data"


def read(content: bytes, reading: Reading = DEFAULT_READING) -> list[Frame]:
    return list(read_frames_from_bytes(content, "a.dcm", reading))


def refused(content: bytes, reading: Reading = DEFAULT_READING) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        read(content, reading)
    return caught.value


def make_item(**values: Any) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def write(dataset: Dataset, preamble: bool = True, **options: Any) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=preamble, **options)
    return buffer.getvalue()


def test_key_and_attributes_are_the_files_own() -> None:
    dataset = make_dataset(ViewPosition="PA", ImagerPixelSpacing=["0.2", "0.1"], PatientName="Doe^Jane")
    (frame,) = read(write(dataset))
    assert frame.key.study_instance_uid == dataset.StudyInstanceUID
    assert frame.key.series_instance_uid == dataset.SeriesInstanceUID
    assert frame.key.sop_instance_uid == dataset.SOPInstanceUID
    assert (frame.key.frame_number, frame.source, frame.modality, frame.view_position) == (1, "a.dcm", "CR", "PA")
    assert frame.pixel_spacing_mm == (0.2, 0.1)
    assert (frame.photometric_interpretation, frame.transfer_syntax_uid) == ("MONOCHROME2", "1.2.840.10008.1.2.1")
    assert frame.pixels.shape == (48, 40)
    assert frame.pixels.dtype == np.float32
    assert frame.pixels.flags.c_contiguous
    assert "Doe" not in repr(frame)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, ""),
        ({"Laterality": "L"}, "L"),
        ({"ImageLaterality": "R", "Laterality": "L"}, "R"),
        ({"ImageLaterality": "X", "Laterality": "L"}, "L"),
        ({"ImageLaterality": ""}, ""),
    ],
)
def test_laterality_is_image_laterality_first_and_never_guessed(overrides: dict[str, str], expected: str) -> None:
    assert read(make_dicom(**overrides))[0].laterality == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, None),
        ({"PixelSpacing": [0.3, 0.4], "ImagerPixelSpacing": [1, 1]}, (0.3, 0.4)),
        ({"NominalScannedPixelSpacing": [0.5, 0.5]}, (0.5, 0.5)),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [1, 2]}, (1.0, 2.0)),
        ({"PixelSpacing": [0.5]}, None),
    ],
)
def test_pixel_spacing(overrides: dict[str, Any], expected: tuple[float, float] | None) -> None:
    assert read(make_dicom(**overrides))[0].pixel_spacing_mm == expected


def test_ophthalmic_tomography_takes_each_frames_own_functional_group() -> None:
    volume = np.arange(3 * 6 * 5, dtype=np.uint16).reshape(3, 6, 5)
    dataset = make_dataset(volume, Modality="OPT", SOPClassUID=OphthalmicTomographyImageStorage, Laterality="L")
    measures = make_item(PixelMeasuresSequence=Sequence([make_item(PixelSpacing=[0.004, 0.012])]))
    measures.FrameAnatomySequence = Sequence([make_item(FrameLaterality="R")])
    dataset.SharedFunctionalGroupsSequence = Sequence([measures])
    window = make_item(WindowCenter=80, WindowWidth=80, VOILUTFunction="LINEAR_EXACT")
    rescale = make_item(RescaleSlope=2, RescaleIntercept=0)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [
            make_item(FrameAnatomySequence=Sequence([make_item(FrameLaterality="L")])),
            make_item(FrameVOILUTSequence=Sequence([window]), PixelValueTransformationSequence=Sequence([rescale])),
            make_item(PixelMeasuresSequence=Sequence([make_item(PixelSpacing=[0.005, 0.005])])),
        ]
    )
    frames = read(write(dataset))
    assert [frame.key.frame_number for frame in frames] == [1, 2, 3]
    assert [frame.laterality for frame in frames] == ["L", "R", "R"]
    assert [frame.pixel_spacing_mm for frame in frames] == [(0.004, 0.012), (0.004, 0.012), (0.005, 0.005)]
    np.testing.assert_allclose(frames[1].pixels, np.clip((volume[1] * 2 - 40.0) / 80, 0, 1), atol=1e-6)
    assert [frame.pixel_sha256 for frame in frames] == [pixel_sha256(one) for one in volume]


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_uids_that_are_missing_or_not_valid_are_derived_from_the_content(missing: str) -> None:
    for value in ("", "....", "=cmd()"):
        content = make_dicom(**{missing: value})
        (frame,), (again,) = read(content), read(content)
        (other,) = read(content + b"\xfc\xff\xfc\xffOB\x00\x00\x02\x00\x00\x00\x00\x00")
        uids = {"StudyInstanceUID": 0, "SeriesInstanceUID": 1, "SOPInstanceUID": 2}
        key, twin = ([*vars_of(one)] for one in (frame, other))
        assert re.fullmatch(r"2\.25\.\d{1,39}", key[uids[missing]])
        assert frame.key == again.key
        assert key[uids[missing]] != twin[uids[missing]]
        assert frame.notes[0] == f"{missing} missing or not valid: derived from the content."


def test_what_else_a_frame_says_of_itself() -> None:
    volume = np.arange(3 * 6 * 5, dtype=np.uint16).reshape(3, 6, 5)
    dataset = make_dataset(volume, BodyPartExamined="CHEST", InstanceNumber="7")
    frames = read(write(dataset))
    assert {frame.sop_class_uid for frame in frames} == {dataset.SOPClassUID}
    assert {(frame.body_part, frame.instance_number, frame.number_of_frames) for frame in frames} == {("CHEST", 7, 3)}
    assert [frame.stored_range for frame in frames] == [(0, 29), (30, 59), (60, 89)]
    assert [frame.stored_sha256 for frame in frames] == [hashlib.sha256(one.tobytes()).hexdigest() for one in volume]
    assert [frame.instance_sha256 for frame in frames] == ["", "", hashlib.sha256(volume.tobytes()).hexdigest()]


def test_stored_values_are_hashed_in_little_endian_whatever_the_file_has() -> None:
    pixels = np.arange(12, dtype=np.int16).reshape(3, 4) - 5
    dataset = make_dataset(pixels, PixelData=pixels.astype(">i2").tobytes())
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    (frame,) = read(write(dataset))
    assert frame.stored_sha256 == frame.instance_sha256 == hashlib.sha256(pixels.astype("<i2").tobytes()).hexdigest()
    assert frame.stored_range == (-5, 6)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, None),
        ({"ImagePositionPatient": [1, 2, 3]}, None),
        ({"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, 3),
        ({"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, -1),
        ({"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, None),
        ({"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0]}, None),
    ],
)
def test_slice_position_is_the_way_along_the_normal(overrides: dict[str, Any], expected: float | None) -> None:
    assert read(make_dicom(**overrides))[0].slice_position_mm == expected


def test_slice_positions_of_functional_groups_come_first() -> None:
    dataset = make_dataset(np.zeros((2, 4, 4), np.uint8), ImagePositionPatient=[9, 9, 9])
    plane = make_item(ImageOrientationPatient=[1, 0, 0, 0, 0, 1])
    dataset.SharedFunctionalGroupsSequence = Sequence([make_item(PlaneOrientationSequence=Sequence([plane]))])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [make_item(PlanePositionSequence=Sequence([make_item(ImagePositionPatient=[0, y, 5])])) for y in (0.25, 0.5)]
    )
    assert [frame.slice_position_mm for frame in read(write(dataset))] == [-0.25, -0.5]


WINDOWS = {
    "WindowCenter": [10, 20, 30],
    "WindowWidth": [10, 10, 10],
    "WindowCenterWidthExplanation": ["NORMAL", "HARDER", "SOFTER"],
    "VOILUTFunction": "LINEAR_EXACT",
}


@pytest.mark.parametrize(
    ("explanation", "center", "words"),
    [
        ("", 10, "has 3 VOI LUTs or windows: the first was used"),
        ("HARDER", 20, None),
        (" softer ", 30, None),
        ("NONE SUCH", 10, "the requested explanation: the first was used"),
    ],
)
def test_one_of_several_windows_is_chosen_by_its_explanation(explanation: str, center: int, words: str | None) -> None:
    stored = np.arange(50, dtype=np.uint16).reshape(5, 10)
    (frame,) = read(make_dicom(stored, **WINDOWS), Reading(voi_explanation=explanation))
    np.testing.assert_allclose(frame.pixels, np.clip((stored.astype(float) - center + 5) / 10, 0, 1), atol=1e-6)
    assert (words in frame.notes[0]) if words else frame.notes == ()


def test_one_of_several_tables_is_chosen_by_its_explanation() -> None:
    tables = []
    for text, top in (("NORMAL", 255), ("LUNG", 51)):
        table = make_item(LUTData=np.linspace(0, top, 50).astype("<u2").tobytes(), LUTExplanation=text)
        table.add_new(0x00283002, "US", [50, 0, 8])
        tables.append(table)
    content = make_dicom(np.arange(50, dtype=np.uint16).reshape(5, 10), VOILUTSequence=Sequence(tables), **WINDOWS)
    tops = [read(content, Reading(voi_explanation=text))[0].pixels.max() for text in ("", "lung", "HARDER")]
    assert tops == pytest.approx([1, 0.2, 1])
    assert read(content, Reading(voi_explanation="HARDER"))[0].pixels[0, 0] == 0


def vars_of(frame: Frame) -> tuple[str, str, str]:
    return frame.key.study_instance_uid, frame.key.series_instance_uid, frame.key.sop_instance_uid


def test_equal_pixels_have_equal_hashes_whatever_their_encoding() -> None:
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    dataset = make_dataset(pixels)
    big = make_dataset(pixels)
    big.PixelData = pixels.astype(">u2").tobytes()
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    implicit = make_dataset(pixels)
    implicit.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    hashes = {read(write(one))[0].pixel_sha256 for one in (dataset, big, implicit)}
    assert len(hashes) == 1
    assert hashes != {read(make_dicom(pixels.reshape(4, 3)))[0].pixel_sha256}


def test_files_without_preamble_or_transfer_syntax_are_read() -> None:
    whole = make_dicom()
    (expected,) = read(whole)
    (no_preamble,) = read(whole[132:])
    assert no_preamble.pixel_sha256 == expected.pixel_sha256
    for implicit in (True, False):
        dataset = make_dataset()
        del dataset.file_meta
        bare = write(dataset, preamble=False, implicit_vr=implicit, little_endian=True)
        (frame,) = read(bare)
        assert frame.pixel_sha256 == expected.pixel_sha256
        assert "names no transfer syntax" in frame.notes[0]


def test_a_volume_is_read_frame_by_frame() -> None:
    frames = read_frames_from_bytes(make_dicom(np.zeros((500, 4, 4), np.uint8)), "a.dcm")
    assert next(frames).key.frame_number == 1
    assert sum(1 for _ in frames) == 499


def test_pixel_values_in_floating_point() -> None:
    values = np.linspace(-3, 9, 100, dtype=np.float32).reshape(10, 10)
    dataset = make_dataset(np.zeros((10, 10), np.uint32), WindowCenter=3, WindowWidth=12, VOILUTFunction="LINEAR_EXACT")
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.FloatPixelData = values.tobytes()
    np.testing.assert_allclose(read(write(dataset))[0].pixels, (values + 3) / 12, atol=1e-6)
    dataset.FloatPixelData = np.where(values > 8, np.nan, values).astype(np.float32).tobytes()
    assert refused(write(dataset)).reason is Reason.INCONSISTENT


GREY, COLOURS = np.arange(48 * 40, dtype=np.uint8).reshape(48, 40), np.repeat(np.arange(64, dtype=np.uint8), 3).reshape(8, 8, 3)
COMPRESSED = {
    RLELossless: lambda pixels: RLELosslessEncoder.encode(make_dataset(pixels)),
    JPEG2000Lossless: lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0),
    JPEGLSLossless: imagecodecs.jpegls_encode,
}


@pytest.mark.parametrize("syntax", [None, *COMPRESSED])
@pytest.mark.parametrize(
    ("pixels", "overrides", "note"),
    [
        (GREY, {"NumberOfFrames": 0}, "Number of Frames is 0: the file was read as one frame."),
        (COLOURS, {"NumberOfFrames": 0}, "Number of Frames is 0: the file was read as one frame."),
        (GREY, {"SamplesPerPixel": None}, "Samples per Pixel is missing: it was taken as 1, as MONOCHROME2 has it."),
        (
            GREY,
            {"SamplesPerPixel": None, "PhotometricInterpretation": "MONOCHROME1"},
            "Samples per Pixel is missing: it was taken as 1, as MONOCHROME1 has it.",
        ),
        (COLOURS, {"SamplesPerPixel": None}, "Samples per Pixel is missing: it was taken as 3, as RGB has it."),
    ],
)
def test_what_a_header_leaves_open_but_implies_is_read_with_a_note(
    pixels: np.ndarray, overrides: dict[str, Any], note: str, syntax: str | None
) -> None:
    """pydicom, as DCMTK, reads a file of 0 frames as one; both know the samples of a grey picture."""
    if syntax is None:
        content = make_dicom(pixels, **overrides)
    else:
        content = make_encapsulated(pixels, syntax, [[COMPRESSED[syntax](pixels)]], **overrides)
    (frame,) = read(content)
    assert frame.stored_sha256 == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert frame.notes == (note,)
    assert frame.number_of_frames == 1


@pytest.mark.parametrize(
    ("overrides", "reason", "words"),
    [
        ({"PixelData": None}, Reason.NO_PIXELS, "no pixel data"),
        ({"PixelData": b""}, Reason.NO_PIXELS, "empty"),
        ({"Rows": 0}, Reason.EMPTY_IMAGE, "0 rows and 40 columns"),
        ({"Columns": 0}, Reason.EMPTY_IMAGE, "48 rows and 0 columns"),
        ({"Rows": 60000, "Columns": 60000}, Reason.RESOURCE_LIMIT, "60000 x 60000"),
        ({"Rows": 49}, Reason.TRUNCATED, "3840 of 3920 bytes"),
        ({"Rows": 24}, Reason.INCONSISTENT, "describes 1920"),
        ({"NumberOfFrames": 2}, Reason.TRUNCATED, "3840 of 7680 bytes"),
        ({"NumberOfFrames": -1}, Reason.INCONSISTENT, "Number of Frames is -1"),
        ({"SamplesPerPixel": None, "PhotometricInterpretation": "RGB"}, Reason.TRUNCATED, "3840 of 11520 bytes"),
        ({"BitsStored": 17}, Reason.INCONSISTENT, "Bits Stored is 17 of 16"),
        ({"BitsStored": 12}, Reason.INCONSISTENT, "High Bit is 15 with 12 bits stored"),
        ({"BitsStored": 12, "HighBit": 0}, Reason.INCONSISTENT, "High Bit is 0 with 12 bits stored"),
        ({"BitsAllocated": 24}, Reason.INCONSISTENT, "Bits Allocated is 24"),
        ({"BitsAllocated": None}, Reason.INCONSISTENT, "no valid BitsAllocated"),
        ({"PixelRepresentation": 2}, Reason.INCONSISTENT, "Pixel Representation"),
        ({"SamplesPerPixel": 3}, Reason.INCONSISTENT, "Samples per Pixel is 3 with MONOCHROME2"),
        ({"PhotometricInterpretation": "CMYK"}, Reason.UNSUPPORTED_ENCODING, "CMYK"),
        ({"PhotometricInterpretation": "MILLER_JANE"}, Reason.UNSUPPORTED_ENCODING, "is missing, or no term of the Standard;"),
        ({"PhotometricInterpretation": None}, Reason.UNSUPPORTED_ENCODING, "is missing, or no term of the Standard;"),
    ],
)
def test_headers_that_contradict_their_pixels_are_refused(overrides: dict[str, Any], reason: Reason, words: str) -> None:
    error = refused(make_dicom(**overrides))
    assert error.reason is reason
    assert words in str(error)


def test_a_missing_high_bit_is_that_of_the_bits_stored() -> None:
    assert len(read(make_dicom(BitsStored=12, HighBit=None))) == 1


def test_padding_after_the_last_frame_is_no_fault() -> None:
    pixels = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert read(make_dicom(pixels, PixelData=pixels.tobytes() + b"\0"))[0].pixel_sha256 == pixel_sha256(pixels)


def test_unknown_and_video_transfer_syntaxes_are_refused() -> None:
    for uid, words in (("1.2.3.4", "does not know"), ("1.2.840.10008.1.2.4.100", "MPEG2")):
        dataset = make_dataset()
        dataset.PixelData = encapsulate([b"abcd"])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = uid
        error = refused(write(dataset, implicit_vr=False, little_endian=True))
        assert error.reason is Reason.UNSUPPORTED_ENCODING
        assert words in str(error)


def make_palette(stored: np.ndarray, table: np.ndarray, bits: int, **overrides: Any) -> Dataset:
    """A picture whose three palettes are the same, so that it is grey."""
    dataset = make_dataset(stored, PhotometricInterpretation="PALETTE COLOR", **overrides)
    for number in range(3):
        dataset.add_new(0x00281101 + number, "US", [table.size, 0, bits])
        dataset.add_new(0x00281201 + number, "OW", table.tobytes())
    return dataset


@pytest.mark.parametrize(("bits", "container", "white"), [(8, "u1", 255), (16, "<u2", 65535), (8, "<u2", 255), (16, "u1", 255)])
@pytest.mark.parametrize("overrides", [{}, {"WindowCenter": 5, "WindowWidth": 10}, {"PixelRepresentation": 1}])
def test_palettes_that_hold_grey_run_over_the_range_of_their_entries(
    bits: int, container: str, white: int, overrides: dict[str, Any]
) -> None:
    stored = np.arange(120, dtype=np.uint8).reshape(10, 12)
    table = np.linspace(white // 5, white // 2, 120).astype(container)
    dataset = make_palette(stored, table, bits, **overrides)
    (frame,) = read(write(dataset))
    expected = apply_color_lut(stored, dataset)[..., 0] / white
    np.testing.assert_allclose(frame.pixels, expected, atol=1e-6)
    assert frame.notes == ()


def test_palettes_in_big_endian_are_the_same_picture() -> None:
    stored, table = np.arange(64, dtype=np.uint8).reshape(8, 8), np.arange(0, 65536, 1024).astype("<u2")
    little, big = make_palette(stored, table, 16), make_palette(stored, table.astype(">u2"), 16)
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    (expected,), (frame,) = read(write(little)), read(write(big))
    np.testing.assert_array_equal(frame.pixels, expected.pixels)
    assert frame.pixel_sha256 == expected.pixel_sha256


def test_palettes_with_entries_beyond_their_bits_are_refused() -> None:
    table = np.arange(0, 65536, 1024).astype("<u2")
    error = refused(write(make_palette(np.arange(64, dtype=np.uint8).reshape(8, 8), table, 8)))
    assert error.reason is Reason.INCONSISTENT
    assert "colour palette holds 64512, more than its 8 bits" in str(error)


def test_broken_lookup_tables_are_refused() -> None:
    table = make_item(LUTData=bytes(6))
    table.add_new(0x00283002, "US", [4, 0, 16])
    assert refused(make_dicom(VOILUTSequence=Sequence([table]))).reason is Reason.INCONSISTENT


@pytest.mark.parametrize("sop", ["lossless", "baseline"])
def test_every_cut_of_a_compressed_file_is_told(sop: str) -> None:
    dataset = make_dataset(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))
    encoder = imagecodecs.jpeg2k_encode if sop == "lossless" else imagecodecs.jpeg8_encode
    dataset.PixelData = encapsulate([encoder(dataset.pixel_array)])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless if sop == "lossless" else JPEGBaseline8Bit
    content = write(dataset)
    assert len(read(content)) == 1
    for cut in range(len(content) * 4 // 10, len(content) - 8, len(content) // 40):
        assert refused(content[:cut]).reason in (Reason.TRUNCATED, Reason.NO_PIXELS), cut


def test_every_cut_of_an_uncompressed_file_is_told() -> None:
    content = make_dicom()
    for cut in range(0, len(content), 97):
        error = refused(content[:cut])
        assert error.reason in (Reason.TRUNCATED, Reason.NO_PIXELS, Reason.NOT_AN_IMAGE, Reason.INCONSISTENT), cut


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_flipped_bytes_end_as_frames_or_as_unreadable(data: st.DataObject) -> None:
    uids = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "SOPInstanceUID": "1.4"}
    dataset = make_dataset(np.arange(30, dtype=np.uint16).reshape(5, 6), WindowCenter=5, WindowWidth=9, **uids)
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.4"
    content = bytearray(write(dataset))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(132, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        frames = read(bytes(content))
    except UnreadableError:
        return
    assert all(np.isfinite(frame.pixels).all() and 0 <= frame.pixels.min() <= frame.pixels.max() <= 1 for frame in frames)


def test_a_second_frame_that_is_damaged_comes_after_the_first() -> None:
    pixels = np.zeros((2, 16, 16), np.uint8)
    dataset = make_dataset(pixels)
    good = imagecodecs.jpeg2k_encode(pixels[0])
    dataset.PixelData = encapsulate([good, good[:60] + bytes(20) + good[80:]])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    frames = read_frames_from_bytes(write(dataset), "a.dcm")
    assert next(frames).key.frame_number == 1
    with pytest.raises(UnreadableError, match="pixel data of frame 2 are damaged") as caught:
        next(frames)
    assert caught.value.reason is Reason.DECODE_FAILED


def test_deflated_files_are_read_up_to_a_limit() -> None:
    dataset = make_dataset(np.zeros((1024, 1024), np.uint8))
    plain = write(dataset)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    bomb = write(dataset)
    assert len(bomb) < 5000
    for content in (bomb, bomb[132:]):
        assert read(content)[0].pixel_sha256 == read(plain)[0].pixel_sha256
    for content in (bomb, bomb[132:]):
        error = refused(content, Reading(Limits(inflated_bytes=2**20)))
        assert error.reason is Reason.RESOURCE_LIMIT
        assert "inflates to more than 1 MiB" in str(error)
    assert len(read(plain)) == 1
    reason = refused(bomb[:-1000], Reading(Limits(inflated_bytes=2**21))).reason
    assert reason in (Reason.TRUNCATED, Reason.DECODE_FAILED)


def test_nothing_of_pydicom_reaches_the_user(caplog: pytest.LogCaptureFixture) -> None:
    content = make_dicom(RescaleSlope=1, RescaleIntercept=0).replace(b"DS\x02\x001 ", b"DS\x02\x00x ")
    guard.silence_decoders()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(content)
    assert not caught
    assert not caplog.records


def test_every_real_and_malformed_file_ends_as_frames_or_as_unreadable(shared_data: Path) -> None:
    with (shared_data / "dicom-samples" / "manifest.csv").open(newline="") as file:
        kinds = {row["file"]: row for row in csv.DictReader(file)}
    files = [*(shared_data / "dicom-samples" / "files").iterdir(), *(shared_data / "dicom-malformed").rglob("*.dcm")]
    grey = [name for name, row in kinds.items() if row["kind"] == "ok" and row["photometric"].startswith("MONOCHROME")]
    unread = {}
    for path in files:
        try:
            frames = list(read_frames(StudyFile(path, path.name)))
        except UnreadableError as error:
            unread[path.name] = str(error)
            continue
        assert all(0 <= frame.pixels.min() <= frame.pixels.max() <= 1 for frame in frames), path.name
    assert len(grey) > 70
    assert not set(grey) & set(unread)
    assert all(message.endswith(".") and str(shared_data) not in message for message in unread.values())


def test_the_real_radiograph_is_the_same_picture_in_four_encodings() -> None:
    names = ("RG1_UNCR", "RG1_UNCI", "RG1_J2KR", "RG1_J2KI")
    plain, implicit, lossless, lossy = (read((REAL / f"{name}.dcm").read_bytes())[0] for name in names)
    assert plain.pixel_sha256 == lossless.pixel_sha256 != lossy.pixel_sha256 == implicit.pixel_sha256
    assert np.abs(plain.pixels - lossy.pixels).mean() < 1 / 255
    assert (plain.modality, plain.view_position, plain.photometric_interpretation) == ("CR", "PA", "MONOCHROME1")
    assert plain.pixels[900:1000, 900:1000].mean() > plain.pixels[900:1000, 400:500].mean()  # the spine is whiter than the lung


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_photometric_interpretation_in_small_letters_is_read() -> None:
    pixels = np.arange(2000, dtype=np.uint16).reshape(40, 50)
    (expected,) = read_frames_from_bytes(make_dicom(pixels, PhotometricInterpretation="MONOCHROME1"), "a.dcm")
    content = make_dicom(pixels, PhotometricInterpretation="MONOCHROME1").replace(b"MONOCHROME1", b"monochrome1")
    (frame,) = read_frames_from_bytes(content, "a.dcm")
    np.testing.assert_array_equal(frame.pixels, expected.pixels)
