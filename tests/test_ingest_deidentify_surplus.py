"""Compressed pixel data: what lies beside the pixels is overwritten, every pixel and every offset stays."""

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from pipeline.imaging.dicom.codecs import register
from pipeline.ingest.deidentify.instance import deidentify_bytes
from pipeline.ingest.deidentify.options import Options
from pipeline.ingest.deidentify.secret import Secret
from pipeline.intake import Limits
from tests.builders import make_encapsulated

SECRET = b"Smith John 1951-02-03"
COMMENT = b"\xff\xfe" + (len(SECRET) + 2).to_bytes(2, "big") + SECRET
APPLICATION = b"\xff\xe1" + (len(SECRET) + 8).to_bytes(2, "big") + b"Exif\0\0" + SECRET
J2K_COMMENT = b"\xff\x64" + (len(SECRET) + 4).to_bytes(2, "big") + b"\0\1" + SECRET
PIXELS = np.random.default_rng(5).integers(0, 250, (2, 40, 48)).astype(np.uint8)
ENCODERS: dict[str, Any] = {
    JPEGBaseline8Bit: imagecodecs.jpeg8_encode,
    JPEGLosslessSV1: lambda pixels: imagecodecs.jpeg8_encode(pixels, lossless=True),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEG2000Lossless: lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=0),
    RLELossless: lambda pixels: RLELosslessEncoder.encode(
        pixels.tobytes(),
        rows=40,
        columns=48,
        samples_per_pixel=1,
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
    ),
}


def even(encoded: bytes) -> bytes:
    return encoded + bytes(len(encoded) % 2)


@pytest.fixture(autouse=True)
def decoders() -> None:
    register()


def deidentify(content: bytes) -> Dataset:
    return dcmread(io.BytesIO(deidentify_bytes(content, Secret(bytes(32)), Options(), Limits()).content))


def check(syntax: str, frames: list[list[bytes]], pixels: NDArray[Any] = PIXELS) -> None:
    content = make_encapsulated(pixels, syntax, frames)
    made = deidentify(content)
    before = dcmread(io.BytesIO(content))
    assert SECRET[:10] in content
    assert SECRET[:10] not in made.PixelData
    assert len(made.PixelData) <= len(before.PixelData)
    decoded = [imagecodecs.jpeg8_decode(b"".join(one)) for one in frames] if syntax == JPEGBaseline8Bit else pixels
    assert np.array_equal(made.pixel_array, np.squeeze(decoded))


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, RLELossless])
def test_frames_without_surplus_are_the_same_bytes(syntax: str) -> None:
    content = make_encapsulated(PIXELS, syntax, [[even(ENCODERS[syntax](one))] for one in PIXELS])
    assert deidentify(content).PixelData == dcmread(io.BytesIO(content)).PixelData


@pytest.mark.parametrize("syntax", ENCODERS)
def test_bytes_after_the_end_are_overwritten(syntax: str) -> None:
    check(syntax, [[even(ENCODERS[syntax](one) + SECRET)] for one in PIXELS])


@pytest.mark.parametrize("syntax", ENCODERS)
def test_fragments_that_belong_to_no_pixels_are_overwritten(syntax: str) -> None:
    check(syntax, [[even(ENCODERS[syntax](PIXELS[0])), even(SECRET)]], PIXELS[:1])


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless])
@pytest.mark.parametrize("segment", [COMMENT, APPLICATION], ids=["comment", "application"])
def test_segments_that_no_decoder_needs_are_overwritten(syntax: str, segment: bytes) -> None:
    encoded = [ENCODERS[syntax](one) for one in PIXELS]
    check(syntax, [[even(one[:2] + segment + one[2:])] for one in encoded])


def test_segments_between_scans_are_overwritten() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(buffer, "JPEG", progressive=True)
    encoded = buffer.getvalue()
    second = encoded.rindex(b"\xff\xda")
    second = encoded.rindex(b"\xff\xc4", 0, second) if b"\xff\xc4" in encoded[second - 200 : second] else second
    check(JPEGBaseline8Bit, [[even(encoded[:second] + COMMENT + encoded[second:])]], PIXELS[:1])


def test_what_a_camera_wrote_is_overwritten_and_colours_stay() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x13B], exif[0x132] = SECRET.decode(), "1951:02:03 10:00:00"
    colours = np.random.default_rng(6).integers(0, 250, (40, 48, 3)).astype(np.uint8)
    Image.fromarray(colours).save(buffer, "JPEG", comment=SECRET, exif=exif, subsampling=0)
    content = make_encapsulated(colours, JPEGBaseline8Bit, [[even(buffer.getvalue())]], PhotometricInterpretation="YBR_FULL")
    made = deidentify(content)
    assert b"1951:02:03" in content
    assert b"Smith" not in made.PixelData
    assert b"1951:02:03" not in made.PixelData
    assert b"JFIF" in made.PixelData
    assert np.array_equal(made.pixel_array, dcmread(io.BytesIO(content)).pixel_array)


def test_comments_of_jpeg_2000_are_overwritten_in_every_header() -> None:
    encoded = [ENCODERS[JPEG2000Lossless](one) for one in PIXELS]
    frames = []
    for one in encoded:
        tile, data = one.index(b"\xff\x90"), one.index(b"\xff\x93")
        length = int.from_bytes(one[tile + 6 : tile + 10], "big") + len(J2K_COMMENT)
        tile_header = one[tile : tile + 6] + length.to_bytes(4, "big") + one[tile + 10 : data]
        frames.append([even(one[:tile] + J2K_COMMENT + tile_header + J2K_COMMENT + one[data:])])
    check(JPEG2000Lossless, frames)


def test_boxes_of_jp2_with_metadata_are_overwritten() -> None:
    encoded = imagecodecs.jpeg2k_encode(PIXELS[0], codecformat="jp2", level=0)
    at = encoded.index(b"jp2c") - 4
    box = (len(SECRET) + 8).to_bytes(4, "big") + b"xml " + SECRET
    check(JPEG2000Lossless, [[even(encoded[:at] + box + encoded[at:])]], PIXELS[:1])


def test_frames_of_several_fragments_are_overwritten_across_them() -> None:
    frames = []
    for one in PIXELS:
        encoded = ENCODERS[JPEGBaseline8Bit](one)
        encoded = even(encoded[:2] + COMMENT + encoded[2:])
        frames.append([encoded[:20], encoded[20:100], encoded[100:]])
    check(JPEGBaseline8Bit, frames)
