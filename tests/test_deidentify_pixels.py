"""Images that may identify the patient: which they are, and what blanking changes in them."""

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.utils import compress
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    OphthalmicTomographyImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    VLWholeSlideMicroscopyImageStorage,
)

from pipeline.deidentify.crosswalk import Secret
from pipeline.deidentify.instance import deidentify_bytes
from pipeline.deidentify.pixels import blank, may_show_identity
from pipeline.deidentify.profile import Options, Rectangle, RefusalReason, RefusedError
from pipeline.imaging.dicom.dataset import parse
from pipeline.imaging.dicom.layout import read_layout
from pipeline.imaging.guard import silence_decoders
from pipeline.imaging.quality import ocr
from pipeline.settings import Limits
from tests.builders import make_dataset, make_dicom, make_encapsulated
from tests.identified import file_bytes, item

BOX = Rectangle(4, 2, 10, 5)
BLANK = Options(rectangles=(BOX,))


def deidentify(content: bytes, options: Options = BLANK) -> Dataset:
    return dcmread(io.BytesIO(deidentify_bytes(content, Secret(bytes(32)), options, Limits()).content))


def blanked(pixels: NDArray[Any]) -> NDArray[Any]:
    expected = pixels.copy()
    expected[..., 2:7, 4:14] = 0
    return expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, False),
        ({"BurnedInAnnotation": "YES"}, True),
        ({"RecognizableVisualFeatures": "YES", "BurnedInAnnotation": "NO"}, True),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, True),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "BurnedInAnnotation": "NO"}, False),
        ({"SOPClassUID": UltrasoundImageStorage, "Modality": "US"}, True),
        ({"SOPClassUID": UltrasoundMultiFrameImageStorage}, True),
        ({"SOPClassUID": OphthalmicTomographyImageStorage, "Modality": "OPT"}, False),
        ({"SOPClassUID": SegmentationStorage}, False),
        ({"SOPClassUID": CTImageStorage, "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, True),
        ({"SOPClassUID": CTImageStorage, "ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}, False),
        ({"SOPClassUID": CTImageStorage, "ImageType": ["DERIVED", "SECONDARY", "AXIAL", "SCREENSAVE"]}, True),
        ({"SOPClassUID": CTImageStorage, "ImageType": ["DERIVED", "SECONDARY", "SCREEN_SAVE"]}, True),
        ({"SOPClassUID": CTImageStorage, "ImageType": ["DERIVED", "SECONDARY", "OTHER", "DOSE_INFO"]}, True),
        ({"SOPClassUID": VLWholeSlideMicroscopyImageStorage, "ImageType": ["ORIGINAL", "PRIMARY", "LABEL"]}, True),
        ({"SOPClassUID": CTImageStorage, "SecondaryCaptureDeviceManufacturer": "Grabber"}, True),
        ({"SOPClassUID": CTImageStorage, "BurnedInAnnotation": "Y"}, True),
        ({"SOPClassUID": CTImageStorage, "BurnedInAnnotation": "UNKNOWN"}, True),
        ({"SOPClassUID": CTImageStorage, "BurnedInAnnotation": "no?"}, True),
        ({"SOPClassUID": CTImageStorage, "BurnedInAnnotation": "no"}, False),
        ({"SOPClassUID": CTImageStorage, "BurnedInAnnotation": ""}, False),
        ({"Modality": "OT"}, True),
        ({"ConversionType": "WSD"}, True),
    ],
)
def test_which_images_may_show_who_the_patient_is(values: dict[str, Any], expected: bool) -> None:
    silence_decoders()
    assert may_show_identity(make_dataset(**values)) == expected


def test_such_an_image_is_refused_unless_something_is_done() -> None:
    content = make_dicom(BurnedInAnnotation="YES")
    with pytest.raises(RefusedError, match="--blank") as caught:
        deidentify(content, Options())
    assert caught.value.reason is RefusalReason.BURNED_IN
    made = deidentify(content)
    assert made.BurnedInAnnotation == "NO"
    assert [code.CodeValue for code in made.DeidentificationMethodCodeSequence] == ["113100", "113101"]


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((31, 33), "u1"), ((31, 33), "u2"), ((31, 33), "i2"), ((31, 33), "u4"), ((3, 31, 33), "u2"), ((31, 33, 3), "u1")],
)
def test_pixels_outside_the_rectangle_keep_their_values(shape: tuple[int, ...], kind: str) -> None:
    pixels = np.random.default_rng(1).integers(1, 100, shape).astype(kind)
    expected = np.moveaxis(blanked(np.moveaxis(pixels, -1, 0)), 0, -1) if shape[-1] == 3 else blanked(pixels)
    assert np.array_equal(deidentify(make_dicom(pixels)).pixel_array, expected)


def test_compressed_frames_are_decoded_and_their_values_kept() -> None:
    pixels = np.random.default_rng(2).integers(1, 4000, (2, 32, 32)).astype("u2")
    dataset = make_dataset(pixels)
    compress(dataset, RLELossless)
    made = deidentify(file_bytes(dataset))
    assert made.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(made.pixel_array, blanked(pixels))


def test_a_rectangle_beyond_the_image_blanks_what_there_is() -> None:
    pixels = np.full((16, 16), 7, np.uint8)
    made = deidentify(make_dicom(pixels), Options(rectangles=(Rectangle(12, 12, 1000, 1000),)))
    assert made.pixel_array.sum() == 7 * (16 * 16 - 4 * 4)


@pytest.mark.parametrize("box", [Rectangle(16, 0, 5, 5), Rectangle(0, 16, 5, 5), Rectangle(9000, 9000, 5, 5)])
@pytest.mark.parametrize("values", [{}, {"BurnedInAnnotation": "YES"}, {"Modality": "OT"}])
def test_a_rectangle_outside_the_image_is_refused(box: Rectangle, values: dict[str, Any]) -> None:
    content = make_dicom(np.full((16, 16), 7, np.uint8), **values)
    with pytest.raises(RefusedError, match="outside the image of 16 rows and 16 columns") as caught:
        deidentify(content, Options(rectangles=(BOX, box)))
    assert caught.value.reason is RefusalReason.OUTSIDE


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, Options(), "NO"),
        ({"ImageType": ["DERIVED", "PRIMARY"], "BurnedInAnnotation": "NO"}, Options(), "NO"),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, Options(), None),
        ({"ImageType": ["DERIVED", "SECONDARY"], "BurnedInAnnotation": ""}, Options(), None),
        ({}, Options(), None),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, BLANK, "NO"),
    ],
)
def test_that_nothing_is_burned_in_is_said_only_where_it_is_known(
    values: dict[str, Any], options: Options, expected: str | None
) -> None:
    assert deidentify(make_dicom(**values), options).get("BurnedInAnnotation") == expected


@pytest.mark.parametrize(("syntax", "expected"), [(JPEGBaseline8Bit, "01"), (RLELossless, None)])
def test_blanked_pixels_that_were_compressed_with_loss_say_so(syntax: str, expected: str | None) -> None:
    pixels = np.full((32, 32), 9, np.uint8)
    if syntax == RLELossless:
        dataset = make_dataset(pixels)
        compress(dataset, RLELossless)
        content = file_bytes(dataset)
    else:
        content = make_encapsulated(pixels, JPEGBaseline8Bit, [[imagecodecs.jpeg8_encode(pixels)]])
    assert deidentify(content).get("LossyImageCompression") == expected


def test_values_that_no_longer_hold_are_removed() -> None:
    made = deidentify(make_dicom(SmallestImagePixelValue=1, LargestImagePixelValue=1919))
    assert "SmallestImagePixelValue" not in made
    assert "LargestImagePixelValue" not in made


def test_single_bits_cannot_be_blanked() -> None:
    content = make_dicom(BitsAllocated=1, BitsStored=1, HighBit=0, Rows=16, Columns=16, PixelData=bytes(32))
    with pytest.raises(RefusedError) as caught:
        deidentify(content)
    assert caught.value.reason is RefusalReason.NOT_SUPPORTED


@pytest.mark.skipif(not ocr.is_installed(), reason="the extra ocr is not installed")
@pytest.mark.parametrize("has_text", [False, True])
def test_single_bits_stay_if_there_is_no_text_among_them(has_text: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "find_text", lambda pixels: (ocr.TextBox(0, 0, 4, 4, 5),) * has_text)
    data = np.random.default_rng(5).bytes(32)
    content = make_dicom(BitsAllocated=1, BitsStored=1, HighBit=0, Rows=16, Columns=16, PixelData=data)
    if has_text:
        with pytest.raises(RefusedError, match="single bit"):
            deidentify(content, Options(clean_pixels=True))
    else:
        assert deidentify(content, Options(clean_pixels=True)).PixelData == data


def test_bytes_behind_single_bits_are_cut_off_although_nothing_is_blanked() -> None:
    data = np.random.default_rng(5).bytes(32)
    content = make_dicom(BitsAllocated=1, BitsStored=1, HighBit=0, Rows=16, Columns=16, PixelData=data + b"Smith John 51")
    dataset, syntax, _ = parse(content, Limits())
    steps = list(blank(dataset, read_layout(dataset, syntax, Limits()), lambda stored: ()))
    assert (steps, dataset.PixelData) == ([None], data)


@pytest.mark.parametrize(("shape", "kind"), [((31, 33), "u2"), ((2, 31, 33), "i2"), ((31, 33), "u4"), ((31, 33), "u1")])
def test_big_endian_files_are_blanked_and_stay_big_endian(shape: tuple[int, ...], kind: str) -> None:
    pixels = np.random.default_rng(1).integers(1, 100, shape).astype(kind)
    table = item(LUTDescriptor=[2, 0, 16], ModalityLUTType="US")
    table.add_new(0x00283006, "OW", b"\1\2\3\4")
    dataset = make_dataset(pixels, ModalityLUTSequence=[table])
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.add_new(0x7FE00010, "OB" if kind == "u1" else "OW", pixels.astype(f">{kind}").tobytes() + bytes(pixels.nbytes % 2))
    made = deidentify(file_bytes(dataset))
    assert made.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    assert np.array_equal(made.pixel_array, blanked(pixels))
    assert made.ModalityLUTSequence[0].LUTData == b"\1\2\3\4"


def test_an_overlay_among_the_bits_of_the_pixels_is_cleared() -> None:
    pixels = np.random.default_rng(3).integers(0, 4096, (16, 16)).astype("u2")
    dataset = make_dataset(pixels | 0x8000, BitsStored=12, HighBit=11)
    dataset.add_new(0x60000010, "US", 16)
    dataset.add_new(0x60000011, "US", 16)
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 15)
    made = deidentify(file_bytes(dataset), Options())
    assert made.PixelData == pixels.astype("<u2").tobytes()


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("behind", [b"Smith John 19510203", b"!"])
def test_bytes_behind_the_pixels_are_cut_off(kind: str, behind: bytes) -> None:
    pixels = np.arange(15 * 15, dtype=kind).reshape(15, 15)
    data = pixels.tobytes()
    made = deidentify(make_dicom(pixels, PixelData=data + behind + bytes(len(data + behind) % 2)), Options())
    assert made.PixelData == data + bytes(len(data) % 2)


@pytest.mark.parametrize("order", ["<", ">"])
def test_bits_that_are_not_stored_are_cleared(order: str) -> None:
    pixels = np.random.default_rng(3).integers(0, 4096, (16, 16)).astype("u2")
    dataset = make_dataset(pixels, BitsStored=12, HighBit=11)
    hidden = pixels | (np.random.default_rng(4).integers(0, 16, (16, 16)) << 12).astype("u2")
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if order == "<" else ExplicitVRBigEndian
    dataset.PixelData = hidden.astype(f"{order}u2").tobytes()
    assert deidentify(file_bytes(dataset), Options()).PixelData == pixels.astype(f"{order}u2").tobytes()


def test_the_padding_byte_of_swapped_words_is_cleared_and_no_other() -> None:
    pixels = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
    dataset = make_dataset(pixels)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.add_new(0x7FE00010, "OW", b"\2\1\4\3\6\5\x08\7!\x09")
    made = deidentify(file_bytes(dataset), Options())
    assert made.PixelData == b"\2\1\4\3\6\5\x08\7\0\x09"
    assert np.array_equal(made.pixel_array, pixels)


def test_signs_and_padding_values_stay_the_same_bytes() -> None:
    signed = np.random.default_rng(3).integers(-2048, 2048, (16, 16)).astype("i2")
    content = make_dicom(signed, BitsStored=12, HighBit=11)
    assert deidentify(content, Options()).PixelData == signed.tobytes()
    unsigned = np.random.default_rng(3).integers(0, 4096, (16, 16)).astype("u2")
    unsigned[:4] = 63536
    content = make_dicom(unsigned, BitsStored=12, HighBit=11, PixelPaddingValue=63536)
    assert deidentify(content, Options()).PixelData == unsigned.tobytes()


def test_pixels_of_a_second_kind_are_out() -> None:
    dataset = make_dataset()
    dataset.add_new(0x7FE00009, "OD", b"Smith   ")
    assert "DoubleFloatPixelData" not in deidentify(file_bytes(dataset), Options())


@pytest.mark.slow
@pytest.mark.skipif(not ocr.is_installed(), reason="the extra ocr is not installed")
@pytest.mark.parametrize("depth", ["u1", "u2"])
def test_text_is_found_and_blanked_and_the_rest_kept(depth: str) -> None:
    picture = Image.fromarray((np.random.default_rng(4).random((240, 360)) * 60 + 60).astype("u1"))
    ImageDraw.Draw(picture).text((30, 20), "WHITFIELD ANN 1961", fill=255, font_size=24)
    pixels = np.array(picture).astype(depth) * (16 if depth == "u2" else 1)
    made = deidentify(make_dicom(pixels, BurnedInAnnotation="YES"), Options(clean_pixels=True)).pixel_array
    text = pixels == pixels.max()
    assert made[text].max() == 0
    assert np.array_equal(made[80:], pixels[80:])


@pytest.mark.skipif(not ocr.is_installed(), reason="the extra ocr is not installed")
def test_a_picture_that_is_taken_for_text_as_a_whole_is_refused_and_not_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "find_text", lambda pixels: (ocr.TextBox(2, 2, 30, 30, 12),))
    with pytest.raises(RefusedError, match="covers more than a quarter") as caught:
        deidentify(make_dicom(np.full((40, 48), 100, np.uint16), BurnedInAnnotation="YES"), Options(clean_pixels=True))
    assert caught.value.reason is RefusalReason.BURNED_IN


@pytest.mark.parametrize("signed", [False, True])
def test_values_beyond_the_stored_bits_of_a_compressed_image_are_kept(signed: bool) -> None:
    pixels = np.arange(40 * 30).reshape(40, 30) * 3
    pixels = (pixels - 1800).astype(np.int16) if signed else pixels.astype(np.uint16)
    encoded = imagecodecs.jpegls_encode(pixels.view(np.uint16), level=0)
    content = make_encapsulated(pixels, JPEGLSLossless, [[encoded]], BitsStored=10, HighBit=9, BurnedInAnnotation="NO")
    made = deidentify(content)
    np.testing.assert_array_equal(made.pixel_array, blanked(pixels))
    assert (made.BitsStored, made.HighBit) == (12, 11)


@pytest.mark.skipif(not ocr.is_installed(), reason="the extra ocr is not installed")
@pytest.mark.parametrize(
    ("characters", "values", "is_written"),
    [(2, {}, True), (3, {}, False), (2, {"BurnedInAnnotation": "YES"}, False), (2, {"Modality": "OT"}, False)],
)
def test_two_lungs_are_no_eleven(
    characters: int, values: dict[str, Any], is_written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ocr, "find_text", lambda pixels: (ocr.TextBox(0, 0, 40, 48, characters), ocr.TextBox(1, 1, 4, 6, 2)))
    content = make_dicom(np.full((40, 48), 100, np.uint16), **values)
    if not is_written:
        with pytest.raises(RefusedError, match="covers more than a quarter"):
            deidentify(content, Options(clean_pixels=True))
        return
    made = deidentify(content, Options(clean_pixels=True)).pixel_array
    assert made[:8, :10].max() == 0
    assert made[8:].min() == made[:, 10:].min() == 100
