import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.codestream import check_codestream, codestream_shape
from pipeline.imaging.dicom.codecs import PLUGIN, register
from pipeline.imaging.identity import pixel_sha256, stored_sha256
from pipeline.imaging.sources import read_frames_from_bytes
from tests.builders import make_dataset, make_dicom

GREY = (np.add.outer(np.arange(40), np.arange(56)) * 40 % 4096).astype(np.uint16)


def read_compressed(encoded: list[bytes], pixels: np.ndarray, syntax: str, **overrides: object) -> list[Frame]:
    dataset = make_dataset(pixels, PixelData=encapsulate(encoded), **overrides)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return list(read_frames_from_bytes(buffer.getvalue(), "a.dcm"))


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEGLSLossless, imagecodecs.jpegls_encode),
        (JPEG2000Lossless, lambda array: imagecodecs.jpeg2k_encode(array, level=0)),
        (JPEGLosslessSV1, lambda array: imagecodecs.ljpeg_encode(array, bitspersample=16)),
    ],
)
def test_lossless_codecs_give_back_every_frame(syntax: str, encode: Callable[[np.ndarray], bytes]) -> None:
    volume = np.stack([GREY, GREY[::-1], GREY * 3])
    frames = read_compressed([encode(one) for one in volume], volume, syntax)
    assert [frame.pixel_sha256 for frame in frames] == [pixel_sha256(one) for one in volume]
    assert frames[0].transfer_syntax_uid == syntax


def test_baseline_is_within_one_level_of_pillow() -> None:
    pixels = (GREY // 16).astype(np.uint8)
    encoded = imagecodecs.jpeg8_encode(pixels, level=90)
    (frame,) = read_compressed([encoded], pixels, JPEGBaseline8Bit)
    expected = np.asarray(Image.open(io.BytesIO(encoded)), float)
    assert np.abs(frame.pixels * 255 - expected).max() <= 1.01


def test_extended_with_twelve_bits() -> None:
    encoded = imagecodecs.jpeg8_encode(GREY // 16 * 16, level=100, bitspersample=12)
    window = {"WindowCenter": 2047.5, "WindowWidth": 4095, "VOILUTFunction": "LINEAR_EXACT"}
    (frame,) = read_compressed([encoded], GREY, JPEGExtended12Bit, BitsStored=12, HighBit=11, **window)
    assert np.abs(frame.pixels * 4095 - GREY // 16 * 16).mean() < 8


@pytest.mark.parametrize("interpretation", ["RGB", "YBR_FULL_422", "YBR_FULL"])
def test_grey_pictures_in_colour_jpegs_become_grey(interpretation: str) -> None:
    grey = (GREY // 16).astype(np.uint8)
    space = "RGB" if interpretation == "RGB" else "YCBCR"
    encoded = imagecodecs.jpeg8_encode(np.stack([grey] * 3, -1), level=95, colorspace="RGB", outcolorspace=space)
    (frame,) = read_compressed([encoded], np.stack([grey] * 3, -1), JPEGBaseline8Bit, PhotometricInterpretation=interpretation)
    assert np.abs(frame.pixels * 255 - grey).mean() < 4
    assert frame.photometric_interpretation == interpretation


def test_signed_values_in_unsigned_jpeg_ls_keep_their_sign() -> None:
    signed = GREY.astype(np.int16) - 2000
    (frame,) = read_compressed([imagecodecs.jpegls_encode(signed.view(np.uint16))], signed, JPEGLSLossless)
    assert frame.pixel_sha256 == pixel_sha256(signed)


LOSSLESS = {
    JPEGLosslessSV1: lambda array, bits: imagecodecs.ljpeg_encode(array, bitspersample=bits),
    JPEGLSLossless: lambda array, bits: imagecodecs.jpegls_encode(array, level=0),
    JPEG2000Lossless: lambda array, bits: imagecodecs.jpeg2k_encode(
        array, level=0, codecformat="j2k", bitspersample=bits, reversible=True
    ),
}


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("largest", [1030, 4095])
@pytest.mark.parametrize("way", [{"WindowCenter": 2048, "WindowWidth": 4096}, {}])
def test_values_of_more_bits_than_are_stored_do_not_wrap(syntax: str, largest: int, way: dict[str, int]) -> None:
    pixels = (GREY * (largest / 4095)).astype(np.uint16)
    pixels[0, 0] = largest
    header = {"BitsStored": 10, "HighBit": 9} | way
    (frame,) = read_compressed([LOSSLESS[syntax](pixels, 12)], pixels, syntax, **header)
    assert frame.stored_range == (pixels.min(), largest)
    assert frame.stored_sha256 == stored_sha256(pixels)
    (as_it_is,) = read_frames_from_bytes(make_dicom(pixels, **way), "a.dcm")
    np.testing.assert_array_equal(frame.pixels, as_it_is.pixels)
    assert frame.notes[0] == "The compressed image holds values beyond those of Bits Stored: they are read as they are."
    within = pixels % 1024
    (frame,) = read_compressed([LOSSLESS[syntax](within, 12)], within, syntax, **header)
    assert "Bits Stored" not in "".join(frame.notes)


def test_values_of_more_bits_than_are_stored_do_not_wrap_in_extended_jpeg() -> None:
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint16) * 32
    encoded = imagecodecs.jpeg8_encode(smooth, level=98, bitspersample=12)
    header = {"BitsStored": 10, "HighBit": 9, "WindowCenter": 2048, "WindowWidth": 4096}
    (frame,) = read_compressed([encoded], smooth, JPEGExtended12Bit, **header)
    assert np.abs(frame.pixels * 4095 - smooth).max() < 20


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_values_beyond_eight_stored_bits_are_shown_between_percentiles(syntax: str) -> None:
    (frame,) = read_compressed([LOSSLESS[syntax](GREY, 12)], GREY, syntax, BitsStored=8, HighBit=7)
    low, high = np.percentile(GREY, (0.5, 99.5))
    np.testing.assert_allclose(frame.pixels, np.clip((GREY - low) / (high - low), 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("syntax", "precision", "stored", "kept"),
    [
        *((syntax, *bits) for syntax in LOSSLESS for bits in ((16, 16, 16), (16, 12, 16), (16, 12, 12))),
        *(
            (syntax, *bits)
            for syntax in (JPEGLosslessSV1, JPEG2000Lossless)
            for bits in ((12, 12, 12), (12, 16, 12), (12, 10, 12))
        ),
    ],
)
def test_signs_are_found_at_the_codestreams_precision(syntax: str, precision: int, stored: int, kept: int) -> None:
    """`kept` bits of each word hold the value with its sign, the bits above them are 0."""
    signed = np.add.outer(np.arange(40), np.arange(56)).astype(np.int16) * 21 - 1000
    words = signed.view(np.uint16) & np.uint16(2**kept - 1)
    (frame,) = read_compressed([LOSSLESS[syntax](words, precision)], signed, syntax, BitsStored=stored, HighBit=stored - 1)
    assert frame.stored_sha256 == stored_sha256(signed)


@pytest.mark.parametrize(
    "encoded",
    [
        imagecodecs.jpeg8_encode(np.zeros((7, 9), np.uint8)),
        imagecodecs.jpegls_encode(np.zeros((7, 9), np.uint16)),
        imagecodecs.jpeg2k_encode(np.zeros((7, 9), np.uint16), codecformat="j2k"),
        imagecodecs.jpeg2k_encode(np.zeros((7, 9), np.uint16), codecformat="jp2"),
    ],
)
def test_codestreams_tell_their_size(encoded: bytes) -> None:
    assert codestream_shape(encoded) == (7, 9, 1)
    check_codestream(encoded, (7, 9, 1), 16)
    with pytest.raises(UnreadableError, match="is 7 x 9 with 1 samples per pixel, but the header says 7 x 8") as caught:
        check_codestream(encoded, (7, 8, 1), 16)
    assert caught.value.reason is Reason.INCONSISTENT
    with pytest.raises(UnreadableError, match="cut off") as caught:
        check_codestream(encoded[:-4] + bytes(64), (7, 9, 1), 16)
    assert caught.value.reason is Reason.TRUNCATED


@pytest.mark.parametrize("encoded", [b"", b"\xff\xd8", b"\xff\xd8\xff\xff\xff\xff", b"\xff\x4f\xff\x51\x00", b"nothing at all"])
def test_what_is_no_codestream_has_no_size(encoded: bytes) -> None:
    assert codestream_shape(encoded) is None
    with pytest.raises(UnreadableError, match="no valid JPEG header"):
        check_codestream(encoded, (1, 1, 1), 8)


def test_a_codestream_larger_than_its_header_is_refused_before_it_is_decoded() -> None:
    bomb = imagecodecs.jpeg2k_encode(np.zeros((2000, 2000), np.uint8))
    with pytest.raises(UnreadableError, match="2000 x 2000") as caught:
        read_compressed([bomb], np.zeros((64, 64), np.uint8), JPEG2000)
    assert caught.value.reason is Reason.INCONSISTENT
    good = imagecodecs.jpeg2k_encode(np.zeros((64, 64), np.uint8))
    with pytest.raises(UnreadableError, match="2000 x 2000"):
        read_compressed([good, bomb], np.zeros((2, 64, 64), np.uint8), JPEG2000)


def test_a_jp2_box_of_no_length_does_not_hang() -> None:
    encoded = bytearray(imagecodecs.jpeg2k_encode(np.zeros((7, 9), np.uint8), codecformat="jp2"))
    encoded[12:16] = bytes(4)
    with pytest.raises(UnreadableError, match="no valid JPEG header"):
        read_compressed([bytes(encoded)], np.zeros((7, 9), np.uint8), JPEG2000)


def test_many_threads_register_one_plugin() -> None:
    decoder = get_decoder(JPEG2000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: register(), range(32)))
    assert decoder.available_plugins.count(PLUGIN) == 1
