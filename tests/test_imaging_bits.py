import io

import numpy as np
import pytest
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.dicom.decoding import aligned
from pipeline.imaging.dicom.layout import Bits
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.settings import Reading
from tests.builders import make_dataset, make_dicom, make_encapsulated
from tests.test_imaging_encodings import LOSSLESS, RAMP, sha256

SIGNED = (RAMP.astype(np.int16) - 2048).astype(np.int16)


def read(content: bytes) -> Frame:
    (frame,) = read_frames_from_bytes(content, "a.dcm")
    return frame


def with_overlay(content: bytes, bit: int, data: bytes = b"") -> bytes:
    """Add Overlay Bit Position, and Overlay Data where there are some, behind the last element of group 0028."""
    position = b"\x00\x60\x02\x01US\x02\x00" + bit.to_bytes(2, "little")
    stored = b"\x00\x60\x00\x30OW\x00\x00" + len(data).to_bytes(4, "little") + data if data else b""
    at = content.index(b"\xe0\x7f\x10\x00O")
    return content[:at] + position + stored + content[at:]


@pytest.mark.parametrize("pixels", [RAMP, SIGNED])
@pytest.mark.parametrize(("stored", "high"), [(12, 11), (12, 13), (12, 15), (14, 14)])
def test_values_are_those_of_the_bits_up_to_high_bit(pixels: np.ndarray, stored: int, high: int) -> None:
    """The words hold the values at their place, and noise above it."""
    place, rng = high + 1 - stored, np.random.default_rng(0)
    field = ((1 << stored) - 1) << place
    noise = rng.integers(0, 65536, pixels.shape, np.uint16) & np.uint16(0xFFFF ^ field ^ ((1 << place) - 1))
    words = ((pixels.view(np.uint16).astype(np.int64) << place) & field).astype(np.uint16) | noise
    layout = {"BitsStored": stored, "HighBit": high, "PixelRepresentation": int(pixels is SIGNED)}
    frame = read(make_dicom(words, **layout))
    assert frame.stored_sha256 == sha256(pixels)
    assert any(f"above bit {high}" in note for note in frame.notes) == (pixels is RAMP and high < 15)
    encoded = LOSSLESS[RLELossless](words)
    assert read(make_encapsulated(words, RLELossless, [[encoded]], **layout)).stored_sha256 == sha256(pixels)


def test_values_below_the_stored_bits_are_refused_since_high_bit_or_bits_stored_is_wrong() -> None:
    with pytest.raises(UnreadableError, match="High Bit is 15 with 12 bits stored, but the bits below hold values") as caught:
        read(make_dicom(RAMP + 1, BitsStored=12, HighBit=15))
    assert caught.value.reason is Reason.INCONSISTENT


@pytest.mark.parametrize(("bit", "high"), [(15, 11), (12, 11), (2, 15)])
def test_overlays_outside_the_stored_bits_are_left_out(bit: int, high: int) -> None:
    words = (RAMP << (high - 11)) | (RAMP % 2 << bit).astype(np.uint16)
    words[::3] |= np.uint16(1 << bit)
    frame = read(with_overlay(make_dicom(words, BitsStored=12, HighBit=high), bit))
    assert frame.stored_sha256 == sha256(RAMP)
    assert not any("Overlays" in note for note in frame.notes)


def test_overlays_in_compressed_pixels_are_left_out() -> None:
    words = RAMP | np.where(RAMP % 3 == 0, np.uint16(1 << 14), np.uint16(0))
    content = make_encapsulated(words, JPEGLSLossless, [[LOSSLESS[JPEGLSLossless](words)]], BitsStored=12, HighBit=11)
    assert read(with_overlay(content, 14)).stored_sha256 == sha256(RAMP)


def test_overlays_among_the_stored_bits_are_left_out_and_said_so() -> None:
    words = RAMP | np.where(RAMP % 3 == 0, np.uint16(1 << 12), np.uint16(0))
    content = make_dicom(words)
    frame = read(with_overlay(content, 12))
    assert frame.stored_sha256 == sha256(RAMP)
    assert frame.notes[0] == "Overlays lie in bits that the file gives to the pixels: they were ignored."


def test_overlays_with_data_of_their_own_change_nothing() -> None:
    content = make_dicom(RAMP + 8192)
    assert read(with_overlay(content, 13, bytes(280))).stored_sha256 == sha256(RAMP + 8192)
    assert read(with_overlay(content, 0)).stored_sha256 == sha256(RAMP + 8192)


@pytest.mark.parametrize(("stored", "high"), [(12, 10), (12, 16), (17, 16), (0, 15)])
def test_impossible_bits_are_refused(stored: int, high: int) -> None:
    with pytest.raises(UnreadableError, match="contradicts itself") as caught:
        read(make_dicom(RAMP, BitsStored=stored, HighBit=high))
    assert caught.value.reason is Reason.INCONSISTENT


def test_a_codestream_has_no_bits_below_the_stored_ones() -> None:
    with pytest.raises(UnreadableError, match="High Bit is 15 with 12 bits stored, which should end at 11"):
        read(make_encapsulated(RAMP, JPEGLSLossless, [[LOSSLESS[JPEGLSLossless](RAMP)]], BitsStored=12, HighBit=15))


def test_bits_of_big_endian_files() -> None:
    dataset = make_dataset(RAMP, PixelData=(RAMP << 4).astype(">u2").tobytes(), BitsStored=12, HighBit=15)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    assert read(buffer.getvalue()).stored_sha256 == sha256(RAMP)


def test_words_that_are_all_pixel_are_not_copied() -> None:
    assert aligned(RAMP, Bits(16, 16, 15)) is RAMP


def test_frames_with_overlays_are_not_averaged_by_a_decoder() -> None:
    words = RAMP | np.where(np.arange(56) % 2 == 0, np.uint16(1 << 15), np.uint16(0))
    layout = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}
    plain, overlaid = (
        make_encapsulated(one, JPEG2000Lossless, [[LOSSLESS[JPEG2000Lossless](one)]], **layout) for one in (RAMP, words)
    )
    (frame,) = read_frames_from_bytes(with_overlay(overlaid, 15), "a.dcm", Reading(side=10))
    assert frame.stored_sha256 == read(plain).stored_sha256
