"""Files that promise less than they demand, or more than they hold: each ends with a reason, before much is allocated."""

import struct
import tracemalloc
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.codestream import check_codestream_size, read_codestream
from pipeline.imaging.dicom.codecs import decode_rle
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.settings import Limits, Reading
from tests.builders import make_dicom, make_encapsulated
from tests.fuzz.bombs import j2k, jpeg

SMALL = (np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 256).astype(np.uint8)
J2K = imagecodecs.jpeg2k_encode(SMALL, codecformat="j2k", level=0)


def read(content: bytes) -> list[Frame]:
    return list(read_frames_from_bytes(content, "a.dcm"))


def refused(content: bytes) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        read(content)
    return caught.value


def with_siz(offset: int, form: str, *values: int) -> bytes:
    """The codestream with other values in its SIZ segment, `offset` bytes after its marker (ISO/IEC 15444-1 A.5.1)."""
    at = J2K.index(b"\xff\x51") + offset
    changed = struct.pack(form, *values)
    return J2K[:at] + changed + J2K[at + len(changed) :]


@pytest.mark.parametrize(
    ("encoded", "reason", "words"),
    [
        (with_siz(6, ">2L", 2**31, 64), Reason.RESOURCE_LIMIT, "64 x 2147483648 pixels"),
        (with_siz(6, ">4L", 2**32 - 1, 2**32 - 1, 2**32 - 65, 2**32 - 65), Reason.RESOURCE_LIMIT, "tiles of fewer"),
        (with_siz(22, ">2L", 1, 1), Reason.RESOURCE_LIMIT, "4096 tiles"),
        (with_siz(22, ">2L", 2**32 - 1, 1), Reason.RESOURCE_LIMIT, "64 tiles"),
        (with_siz(22, ">2L", 0, 64), Reason.DECODE_FAILED, "no valid JPEG header"),
        (with_siz(38, ">H", 16384), Reason.DECODE_FAILED, "no valid JPEG header"),
        (with_siz(40, ">B", 37), Reason.INCONSISTENT, "38 bits per sample"),
        (with_siz(40, ">B", 15), Reason.INCONSISTENT, "16 bits per sample, but Bits Allocated is 8"),
        (with_siz(41, ">2B", 2, 2), Reason.UNSUPPORTED_ENCODING, "different sizes"),
        (with_siz(41, ">2B", 0, 0), Reason.UNSUPPORTED_ENCODING, "different sizes"),
    ],
)
def test_jpeg_2000_that_says_other_than_its_header(encoded: bytes, reason: Reason, words: str) -> None:
    error = refused(make_encapsulated(SMALL, uid.JPEG2000Lossless, [[encoded]]))
    assert (error.reason, words in str(error)) == (reason, True), str(error)


@pytest.mark.parametrize(
    ("encoded", "syntax"),
    [(j2k(26_500, 26_500), uid.JPEG2000Lossless), (jpeg(65_500, 65_500), uid.JPEGBaseline8Bit)],
    ids=["jpeg 2000 of 700 MB", "jpeg of 4 GB"],
)
@pytest.mark.parametrize("side", [1, 64, 8192, 26_500, 65_500])
def test_an_enormous_picture_is_one_whatever_the_header_says(encoded: bytes, syntax: str, side: int) -> None:
    error = refused(make_encapsulated(SMALL, syntax, [[encoded]], Rows=side, Columns=side))
    assert error.reason is Reason.RESOURCE_LIMIT, str(error)


@pytest.mark.parametrize("samples", [1, 3, 5])
def test_the_limits_count_the_pixels_of_a_codestream_and_samples_beyond_colour(samples: int) -> None:
    encoded = imagecodecs.jpeg2k_encode(np.zeros((7, 9, samples), np.uint8), codecformat="j2k")
    enough = 7 * 9 if samples < 4 else 7 * 9 * 5 // 3
    check_codestream_size(encoded, Limits(frame_pixels=enough))
    with pytest.raises(UnreadableError, match=f"7 x 9 pixels of {samples} samples; octray reads up to {enough - 1}") as caught:
        check_codestream_size(encoded, Limits(frame_pixels=enough - 1))
    assert caught.value.reason is Reason.RESOURCE_LIMIT


@pytest.mark.parametrize(("pixels", "reason"), [(64 * 64, Reason.INCONSISTENT), (64 * 64 - 1, Reason.RESOURCE_LIMIT)])
def test_the_limits_of_the_reading_hold_for_codestreams(pixels: int, reason: Reason) -> None:
    content = make_encapsulated(SMALL, uid.JPEG2000Lossless, [[J2K]], Rows=32, Columns=32)
    with pytest.raises(UnreadableError) as caught:
        list(read_frames_from_bytes(content, "a.dcm", Reading(Limits(frame_pixels=pixels))))
    assert caught.value.reason is reason


def test_tiles_of_a_decent_size_are_read() -> None:
    encoded = imagecodecs.htj2k_encode(SMALL, reversible=True, tile=(32, 32))
    found = read_codestream(encoded)
    assert found is not None
    assert found.tiles == 4
    (frame,) = read(make_encapsulated(SMALL, uid.HTJ2KLossless, [[encoded]]))
    assert np.array_equal(np.rint(frame.pixels * 255), SMALL)


def jpeg_with(height: int, precision: int = 8) -> bytes:
    encoded = imagecodecs.jpeg8_encode(SMALL)
    at = encoded.index(b"\xff\xc0") + 4
    return encoded[:at] + struct.pack(">BH", precision, height) + encoded[at + 3 :]


@pytest.mark.parametrize(("height", "words"), [(0, "0 x 64"), (65535, "65535 x 64"), (63, "63 x 64")])
def test_jpeg_whose_height_is_left_to_dnl_or_wrong_is_refused(height: int, words: str) -> None:
    dnl = b"\xff\xdc\x00\x04" + struct.pack(">H", 64)
    encoded = jpeg_with(height)
    for one in (encoded, encoded[:-2] + dnl + encoded[-2:]):
        error = refused(make_encapsulated(SMALL, uid.JPEGBaseline8Bit, [[one]]))
        assert error.reason is Reason.INCONSISTENT
        assert words in str(error)


def test_jpeg_of_more_bits_than_are_allocated_is_refused() -> None:
    error = refused(make_encapsulated(SMALL, uid.JPEGExtended12Bit, [[jpeg_with(64, precision=12)]]))
    assert "12 bits per sample, but Bits Allocated is 8" in str(error)


def rle_frame(offsets: list[int], data: bytes) -> bytes:
    return struct.pack("<16L", len(offsets), *offsets, *[0] * (15 - len(offsets))) + data


BOMB = bytes([0x81, 0]) * 500_000
"""PackBits that decode to 64 times their size."""


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", Reason.TRUNCATED),
        (bytes(10), Reason.DECODE_FAILED),
        (rle_frame([64], b""), Reason.DECODE_FAILED),
        (rle_frame([64], b"\x00"), Reason.DECODE_FAILED),
        (rle_frame([64, 70], bytes(80)), Reason.INCONSISTENT),
        (rle_frame([10**9], bytes(80)), Reason.DECODE_FAILED),
        (rle_frame([60], bytes(80)), Reason.DECODE_FAILED),
        (struct.pack("<16L", 2**32 - 1, *[64] * 15) + bytes(80), Reason.DECODE_FAILED),
        (rle_frame([64], BOMB), Reason.DECODE_FAILED),
    ],
)
def test_rle_that_contradicts_itself(encoded: bytes, reason: Reason) -> None:
    assert refused(make_encapsulated(SMALL, uid.RLELossless, [[encoded]] if encoded else [])).reason is reason


def test_an_rle_bomb_takes_no_more_memory_than_the_frame() -> None:
    encoded = rle_frame([64], BOMB)
    tracemalloc.start()
    with pytest.raises(Exception, match="OUTPUT_TOO_SMALL"):
        decode_rle(encoded, SMALL.size, 1, 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(encoded)


@pytest.mark.parametrize(
    "overrides",
    [
        {"BitsAllocated": 64, "BitsStored": 64, "HighBit": 63},
        {"BitsAllocated": 12, "BitsStored": 12, "HighBit": 11},
        {"BitsAllocated": 0, "BitsStored": 0},
        {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
        {"BitsAllocated": 65535},
        {"SamplesPerPixel": 0},
        {"SamplesPerPixel": 65535},
        {"NumberOfFrames": "-1"},
    ],
)
def test_pixel_types_that_octray_does_not_know_are_refused(overrides: dict[str, Any]) -> None:
    assert refused(make_dicom(SMALL, **overrides)).reason is Reason.INCONSISTENT


@pytest.mark.parametrize("frames", ["2147483647", "99999999999"])
def test_more_frames_than_the_limit_are_refused_before_anything_is_allocated(frames: str) -> None:
    dataset = make_dicom(SMALL, NumberOfFrames="1").replace(b"IS\x02\x001 ", b"IS\x0c\x00" + frames.encode().ljust(12))
    assert refused(dataset).reason is Reason.RESOURCE_LIMIT


def test_pixels_in_floating_point_of_the_wrong_length_are_refused() -> None:
    overrides = {"PixelData": None, "BitsAllocated": 32, "FloatPixelData": bytes(64)}
    assert refused(make_dicom(SMALL, **overrides)).reason is Reason.TRUNCATED
    overrides = {"PixelData": None, "BitsAllocated": 16, "FloatPixelData": bytes(4 * SMALL.size)}
    assert refused(make_dicom(SMALL, **overrides)).reason is Reason.INCONSISTENT


def test_two_elements_with_pixels_are_refused() -> None:
    overrides = {"BitsAllocated": 32, "FloatPixelData": bytes(4 * SMALL.size), "PixelData": bytes(4 * SMALL.size)}
    assert refused(make_dicom(SMALL, BitsStored=32, HighBit=31, **overrides)).reason in (
        Reason.DECODE_FAILED,
        Reason.INCONSISTENT,
    )


def test_functional_groups_that_are_fewer_than_the_frames_leave_the_others_unknown() -> None:
    group = Dataset()
    measures = Dataset()
    measures.PixelSpacing = [0.5, 0.5]
    group.PixelMeasuresSequence = Sequence([measures])
    volume = np.zeros((3, 8, 8), np.uint8)
    frames = read(make_dicom(volume, PerFrameFunctionalGroupsSequence=Sequence([group])))
    assert [frame.pixel_spacing_mm for frame in frames] == [(0.5, 0.5), None, None]
