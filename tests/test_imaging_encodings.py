"""Every transfer syntax, single and multi-frame, with and without offset tables."""

import hashlib
import io
import struct
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread, uid
from pydicom.pixels.encoders import RLELosslessEncoder

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.settings import Reading
from tests.builders import make_dataset, make_dicom, make_encapsulated
from tests.ljpeg import encode_lossless

RAMP = (np.add.outer(np.arange(40), np.arange(56)) * 40 % 4096).astype(np.uint16)
VOLUME = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]])


RLE_OPTIONS = {
    "rows": 40,
    "columns": 56,
    "samples_per_pixel": 1,
    "number_of_frames": 1,
    "bits_allocated": 16,
    "bits_stored": 16,
    "pixel_representation": 0,
    "photometric_interpretation": "MONOCHROME2",
}
EIGHT_BITS = {"bits_allocated": 8, "bits_stored": 8, "photometric_interpretation": "RGB"}
Encoder = Callable[[np.ndarray], bytes]


def pillow(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


LOSSLESS: dict[str, Encoder] = {
    uid.RLELossless: lambda array: RLELosslessEncoder.encode(array, **RLE_OPTIONS),
    uid.JPEGLossless: lambda array: encode_lossless(array, 6),
    uid.JPEGLosslessSV1: lambda array: imagecodecs.ljpeg_encode(array, bitspersample=16),
    uid.JPEGLSLossless: imagecodecs.jpegls_encode,
    uid.JPEG2000Lossless: lambda array: imagecodecs.jpeg2k_encode(array, level=0),
    uid.JPEG2000: lambda array: imagecodecs.jpeg2k_encode(array, reversible=True),
    uid.HTJ2KLossless: lambda array: imagecodecs.htj2k_encode(array, reversible=True),
    uid.HTJ2KLosslessRPCL: lambda array: imagecodecs.htj2k_encode(array, reversible=True, tlm=True),
    uid.HTJ2K: lambda array: imagecodecs.htj2k_encode(array, reversible=True),
}


def read(content: bytes) -> list[Frame]:
    return list(read_frames_from_bytes(content, "a.dcm"))


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def thirds(encoded: bytes) -> list[bytes]:
    """Fragments of even length."""
    size = len(encoded) // 6 * 2
    return [encoded[:size], encoded[size : 2 * size], encoded[2 * size :]]


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_one_compressed_frame(syntax: str) -> None:
    (frame,) = read(make_encapsulated(RAMP, syntax, [[LOSSLESS[syntax](RAMP)]]))
    assert frame.stored_sha256 == frame.instance_sha256 == sha256(RAMP)
    assert frame.transfer_syntax_uid == syntax


@pytest.mark.parametrize("table", ["none", "basic", "extended"])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_compressed_frames_with_and_without_offset_tables(syntax: str, table: str) -> None:
    frames = read(make_encapsulated(VOLUME, syntax, [[LOSSLESS[syntax](one)] for one in VOLUME], table))
    assert [frame.stored_sha256 for frame in frames] == [sha256(one) for one in VOLUME]
    assert frames[-1].instance_sha256 == sha256(VOLUME)


@pytest.mark.parametrize("table", ["none", "basic"])
@pytest.mark.parametrize("syntax", [syntax for syntax in LOSSLESS if syntax != uid.RLELossless])
def test_frames_split_over_several_fragments(syntax: str, table: str) -> None:
    frames = read(make_encapsulated(VOLUME, syntax, [thirds(LOSSLESS[syntax](one)) for one in VOLUME], table))
    assert [frame.stored_sha256 for frame in frames] == [sha256(one) for one in VOLUME]
    (frame,) = read(make_encapsulated(RAMP, syntax, [thirds(LOSSLESS[syntax](RAMP))], table))
    assert frame.stored_sha256 == sha256(RAMP)


@pytest.mark.parametrize(
    ("syntax", "encode", "oracle", "levels"),
    [
        (uid.JPEGBaseline8Bit, lambda array: imagecodecs.jpeg8_encode(array, level=80), pillow, 1),
        (
            uid.JPEG2000,
            lambda array: imagecodecs.jpeg2k_encode(array, level=40, codecformat="j2k"),
            pillow,
            0,
        ),
        (
            uid.JPEG2000,
            lambda array: imagecodecs.jpeg2k_encode(array, level=40, codecformat="jp2"),
            pillow,
            0,
        ),
        (uid.HTJ2K, lambda array: imagecodecs.htj2k_encode(array, level=0.01, reversible=False), imagecodecs.htj2k_decode, 1),
        (uid.JPEGLSNearLossless, lambda array: imagecodecs.jpegls_encode(array, level=2), None, 2),
    ],
)
def test_lossy_frames_are_within_a_level_of_another_decoder(
    syntax: str, encode: Encoder, oracle: Callable[[bytes], np.ndarray] | None, levels: int
) -> None:
    volume = (VOLUME // 16).astype(np.uint8)
    encoded = [encode(one) for one in volume]
    frames = read(make_encapsulated(volume, syntax, [[one] for one in encoded], "basic"))
    for frame, one, original in zip(frames, encoded, volume, strict=True):
        expected = original if oracle is None else oracle(one)
        assert np.abs(np.rint(frame.pixels * 255) - expected).max() <= levels


LOSSY: dict[str, Encoder] = {
    uid.JPEGBaseline8Bit: lambda array: imagecodecs.jpeg8_encode((array // 16).astype(np.uint8), level=90),
    uid.JPEGExtended12Bit: lambda array: imagecodecs.jpeg8_encode(array, level=90, bitspersample=12),
    uid.JPEGLSNearLossless: lambda array: imagecodecs.jpegls_encode(array, level=3),
    uid.JPEG2000: lambda array: imagecodecs.jpeg2k_encode(array, level=40),
    uid.HTJ2K: lambda array: imagecodecs.htj2k_encode(array, level=0.01, reversible=False),
}


@pytest.mark.parametrize("table", ["none", "basic", "extended"])
@pytest.mark.parametrize("syntax", LOSSY)
def test_lossy_frames_are_the_same_alone_and_among_others(syntax: str, table: str) -> None:
    stored = VOLUME // 16 if syntax == uid.JPEGBaseline8Bit else VOLUME
    stored = stored.astype(np.uint8 if syntax == uid.JPEGBaseline8Bit else np.uint16)
    encoded = [LOSSY[syntax](one) for one in VOLUME]
    alone = [read(make_encapsulated(stored[0], syntax, [[one]]))[0].stored_sha256 for one in encoded]
    whole = read(make_encapsulated(stored, syntax, [[one] for one in encoded], table))
    split = read(make_encapsulated(stored, syntax, [thirds(one) for one in encoded], "none" if table == "extended" else table))
    assert [frame.stored_sha256 for frame in whole] == [frame.stored_sha256 for frame in split] == alone
    assert len(set(alone)) == 3


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i2", "<u4", "<i4"])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    ],
)
def test_uncompressed_frames(syntax: uid.UID, frames: int, dtype: str) -> None:
    rng = np.random.default_rng(frames)
    limits = np.iinfo(dtype)
    volume = rng.integers(limits.min, limits.max, (frames, 5, 7), endpoint=True).astype(dtype)
    array = volume[0] if frames == 1 else volume
    big = not syntax.is_little_endian
    dataset = make_dataset(array, PixelData=array.astype(array.dtype.newbyteorder(">" if big else "<")).tobytes())
    dataset["PixelData"].VR = "OW" if volume.itemsize > 1 or syntax.is_implicit_VR else "OB"
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    read_back = read(buffer.getvalue())
    assert [frame.stored_sha256 for frame in read_back] == [sha256(one) for one in volume]
    assert [frame.stored_range for frame in read_back] == [(one.min(), one.max()) for one in volume]


@pytest.mark.parametrize("encapsulated", [False, True])
def test_single_bits_of_frames_that_do_not_end_at_a_byte(encapsulated: bool) -> None:
    volume = np.random.default_rng(1).integers(0, 2, (3, 5, 7)).astype(np.uint8)
    bits = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}
    if encapsulated:
        frames = [[single_bit_rle(one)] for one in volume]
        content = make_encapsulated(volume, uid.RLELossless, frames, **bits)
    else:
        content = make_dicom(volume, PixelData=np.packbits(volume, bitorder="little").tobytes(), **bits)
    read_back = read(content)
    assert [frame.stored_sha256 for frame in read_back] == [sha256(one) for one in volume]
    np.testing.assert_array_equal(np.stack([frame.pixels for frame in read_back]), volume)


@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_single_bits_in_big_endian_files_are_swapped_as_words(vr: str) -> None:
    """OW: each word holds its first byte in its lower half (PS3.5 8.1.1)."""
    volume = np.random.default_rng(2).integers(0, 2, (3, 8, 16)).astype(np.uint8)
    packed = np.packbits(volume, bitorder="little").tobytes()
    swapped = np.frombuffer(packed, np.uint16).byteswap().tobytes()
    dataset = make_dataset(volume, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=swapped if vr == "OW" else packed)
    dataset["PixelData"].VR = vr
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    assert [frame.stored_sha256 for frame in read(buffer.getvalue())] == [sha256(one) for one in volume]


def single_bit_rle(array: np.ndarray) -> bytes:
    """One segment of packed bits, each literal run of one byte."""
    packed = np.packbits(array, bitorder="little").tobytes()
    return struct.pack("<16L", 1, 64, *[0] * 14) + b"".join(b"\0" + packed[at : at + 1] for at in range(len(packed)))


def test_an_offset_table_that_points_elsewhere_is_set_aside() -> None:
    encoded = [thirds(imagecodecs.jpegls_encode(one)) for one in VOLUME]
    for frames in (encoded, [[b"".join(one)] for one in encoded]):
        good = make_encapsulated(VOLUME, uid.JPEGLSLossless, frames, "basic")
        start = good.index(b"\xfe\xff\x00\xe0\x0c\x00\x00\x00") + 8
        for offsets in ((0, 9, 10**9), (5, 6, 7), (0, 0, 0), (0, 2**32 - 1, 1)):
            bad = good[:start] + struct.pack("<3L", *offsets) + good[start + 12 :]
            assert [frame.stored_sha256 for frame in read(bad)] == [sha256(one) for one in VOLUME]


@pytest.mark.parametrize("offsets", [b"", bytes(7), struct.pack("<3Q", 0, 2**63, 2**64 - 1), struct.pack("<1Q", 4)])
def test_an_extended_offset_table_that_points_elsewhere_is_set_aside(offsets: bytes) -> None:
    frames = [[imagecodecs.jpegls_encode(one)] for one in VOLUME]
    content = make_encapsulated(VOLUME, uid.JPEGLSLossless, frames, ExtendedOffsetTable=offsets)
    assert [frame.stored_sha256 for frame in read(content)] == [sha256(one) for one in VOLUME]


def test_too_few_frames_are_told() -> None:
    encoded = imagecodecs.jpegls_encode(RAMP)
    for frames in ([[encoded], [encoded]], [[encoded], *[[one] for one in thirds(encoded)]]):
        with pytest.raises(UnreadableError, match="hold 2 of 3 frames") as caught:
            read(make_encapsulated(VOLUME, uid.JPEGLSLossless, frames))
        assert caught.value.reason is Reason.TRUNCATED


@pytest.mark.parametrize("table", ["none", "basic", "extended"])
@pytest.mark.parametrize("frames", [1, 2, None])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_more_frames_than_the_header_says_are_told(syntax: str, frames: int | None, table: str) -> None:
    encoded = [[LOSSLESS[syntax](one)] for one in VOLUME]
    with pytest.raises(UnreadableError, match=f"hold 3 frames, but the header says {frames or 1}") as caught:
        read(make_encapsulated(VOLUME, syntax, encoded, table, NumberOfFrames=frames))
    assert caught.value.reason is Reason.INCONSISTENT


@pytest.mark.parametrize("syntax", [syntax for syntax in LOSSLESS if syntax != uid.RLELossless])
def test_more_frames_are_told_from_more_fragments(syntax: str) -> None:
    split = [thirds(LOSSLESS[syntax](one)) for one in VOLUME]
    with pytest.raises(UnreadableError, match="hold 3 frames, but the header says 2"):
        read(make_encapsulated(VOLUME, syntax, split, NumberOfFrames=2))
    (frame,) = read(make_encapsulated(RAMP, syntax, [[*split[0], b"\0\0"]]))
    assert frame.stored_sha256 == sha256(RAMP)


@pytest.mark.parametrize("side", [None, 8])
@pytest.mark.parametrize("codecformat", ["j2k", "jp2"])
def test_signed_codestreams_under_an_unsigned_header_are_refused(codecformat: str, side: int | None) -> None:
    signed = RAMP.astype(np.int16) - 2048
    encoded = imagecodecs.jpeg2k_encode(signed, level=0, codecformat=codecformat)
    window = {"Modality": "DX", "WindowCenter": 0, "WindowWidth": 65536}
    (frame,) = read(make_encapsulated(signed, uid.JPEG2000Lossless, [[encoded]], **window))
    assert frame.stored_range == (signed.min(), signed.max())
    content = make_encapsulated(signed, uid.JPEG2000Lossless, [[encoded]], PixelRepresentation=0, **window)
    with pytest.raises(UnreadableError, match="signed values, but Pixel Representation is 0") as caught:
        list(read_frames_from_bytes(content, "a.dcm", Reading(side=side)))
    assert caught.value.reason is Reason.INCONSISTENT


@pytest.mark.parametrize("syntax", [syntax for syntax in LOSSLESS if syntax != uid.RLELossless])
def test_a_frame_of_several_pictures_is_refused_with_their_number(syntax: str) -> None:
    encoded = [LOSSLESS[syntax](one) for one in VOLUME]
    for joined in (b"".join(encoded), bytes(2).join(encoded)):
        with pytest.raises(UnreadableError, match="hold 3 pictures") as caught:
            read(make_encapsulated(RAMP, syntax, [[joined]]))
        assert caught.value.reason is Reason.INCONSISTENT


def one_segment(*runs: bytes) -> bytes:
    return struct.pack("<16L", 1, 64, *[0] * 14) + b"".join(runs)


CUT_RUN = "The last run of an RLE segment claims more bytes than there are; the frame was complete without them."


@pytest.mark.parametrize(
    "last", [b"\x7f" + bytes(128), b"\x7f" + bytes(64), b"\x05\x09", b"\x80\x05", b"\x80\xc0", b"\x00", b"\x80"]
)
def test_a_last_rle_run_that_claims_too_much_does_no_harm_to_a_complete_frame(last: bytes) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    runs = b"\x7f" + pixels.tobytes()[:128], b"\x7f" + pixels.tobytes()[128:]
    content = make_encapsulated(pixels, uid.RLELossless, [[one_segment(*runs, last)]])
    (frame,) = read(content)
    assert frame.stored_sha256 == sha256(pixels)
    is_whole = last in (b"\x7f" + bytes(128), b"\x00", b"\x80")
    assert frame.notes == (() if is_whole else (CUT_RUN,))


@pytest.mark.parametrize("missing", [0, 2, 40])
def test_a_last_rle_run_counts_as_far_as_it_reaches(missing: int) -> None:
    pixels = np.arange(201, dtype=np.uint8).reshape(3, 67)
    runs = b"\x7f" + pixels.tobytes()[:128], b"\x7f" + pixels.tobytes()[128 : 201 - missing]
    content = make_encapsulated(pixels, uid.RLELossless, [[one_segment(*runs)]])
    if not missing:
        (frame,) = read(content)
        assert frame.stored_sha256 == sha256(pixels)
        np.testing.assert_array_equal(dcmread(io.BytesIO(content)).pixel_array, pixels)
        assert frame.notes == (CUT_RUN,)
    else:
        with pytest.raises(UnreadableError) as caught:
            read(content)
        assert caught.value.reason is Reason.DECODE_FAILED


def test_colour_in_rle_and_in_planes_is_that_of_pydicom() -> None:
    grey = np.repeat((RAMP // 16).astype(np.uint8)[..., None], 3, axis=-1)
    planes = grey.transpose(2, 0, 1)
    encoded = RLELosslessEncoder.encode(grey, **RLE_OPTIONS | {"samples_per_pixel": 3, "planar_configuration": 0} | EIGHT_BITS)
    (frame,) = read(make_encapsulated(grey, uid.RLELossless, [[encoded]], PlanarConfiguration=1))
    (native,) = read(make_dicom(grey, PixelData=planes.tobytes(), PlanarConfiguration=1))
    assert frame.stored_sha256 == native.stored_sha256 == sha256(grey)
    assert frame.pixel_sha256 == read(make_dicom(grey[..., 0]))[0].pixel_sha256
