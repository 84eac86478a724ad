import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from pipeline.errors import UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.preprocess import prepare, reading_for
from pipeline.imaging.reduced import (
    BLOCK_OFFSET,
    JPEG_2000_OFFSET,
    block_averages,
    decode_jpeg,
    decode_jpeg_2000,
    reduced_shape,
    whole_box,
)
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.phantoms.drawing import draw_chest
from pipeline.settings import Fit, Limits, Preprocessing, Reading
from tests.builders import make_dicom, make_encapsulated

U12 = (12, False)
SIZE = 96


def j2k(pixels: NDArray[Any], bits: int = 12, reversible: bool = True, resolutions: int = 6) -> bytes:
    encoded: bytes = imagecodecs.jpeg2k_encode(
        pixels,
        level=0 if reversible else 60,
        codecformat="j2k",
        bitspersample=bits,
        reversible=reversible,
        resolutions=resolutions,
    )
    return encoded


def htj2k(pixels: NDArray[Any]) -> bytes:
    encoded: bytes = imagecodecs.htj2k_encode(pixels, reversible=True)
    return encoded


def jpeg(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def rle(pixels: NDArray[Any]) -> bytes:
    dataset = dcmread(io.BytesIO(make_dicom(pixels)))
    dataset.compress(uid.RLELossless)
    return next(generate_frames(dataset.PixelData, number_of_frames=1))


def ramp(rows: int, columns: int) -> NDArray[np.uint16]:
    return np.tile(np.arange(columns, dtype=np.uint16) * 8, (rows, 1))


def chest(bits: int) -> NDArray[Any]:
    grey = draw_chest(np.random.default_rng(5), "PNEUMONIA")[0]
    return np.rint(grey * (2**bits - 1)).astype(np.uint16 if bits > 8 else np.uint8)


def read(content: bytes, reading: Reading) -> Frame:
    (frame,) = read_frames_from_bytes(content, "image.dcm", reading)
    return frame


@settings(max_examples=60)
@given(st.integers(16, 150), st.integers(16, 150), st.integers(4, 60), st.booleans())
def test_any_shape_is_halved_as_often_as_asked(rows: int, columns: int, side: int, fast: bool) -> None:
    pixels = np.random.default_rng(rows).integers(0, 2**16, (rows, columns), np.uint16)
    values = decode_jpeg_2000((htj2k if fast else j2k)(pixels, *([] if fast else [16])), side, 16, signed=False)
    if values is None:
        assert min(rows, columns) < 2 * side or min(rows, columns) < 32
    else:
        assert side <= min(values.shape) < min(rows, columns)
        assert whole_box((rows, columns), values.shape, 0)[2] <= values.shape[0]


@pytest.mark.parametrize("encode", [j2k, lambda pixels: j2k(pixels, reversible=False), htj2k])
@pytest.mark.parametrize("columns", [256, 250, 243])
def test_samples_of_wavelets_lie_where_the_box_says(encode: Any, columns: int) -> None:
    encoded = encode(ramp(80, columns))
    values = decode_jpeg_2000(encoded, 20, *((16, False) if encode is htj2k else U12))
    assert values is not None
    _, left, _, wide = whole_box((80, columns), values.shape, JPEG_2000_OFFSET)
    centres = (np.arange(values.shape[1]) + 0.5 - left) * columns / wide - 0.5
    difference = values[0, 2:-3] - 8 * centres[2:-3]
    assert abs(difference.mean()) < 1  # samples lie 32 apart
    assert np.abs(difference).max() < 10


@pytest.mark.parametrize("columns", [160, 150, 131])
def test_samples_of_scaled_jpeg_lie_where_the_box_says(columns: int) -> None:
    values = decode_jpeg(jpeg((ramp(80, columns) // 8).astype(np.uint8)), 20)
    assert values is not None
    assert values.shape == reduced_shape((80, columns), 2)
    _, left, _, wide = whole_box((80, columns), values.shape, BLOCK_OFFSET)
    centres = (np.arange(values.shape[1]) + 0.5 - left) * columns / wide - 0.5
    np.testing.assert_allclose(values[0, 2:-3], centres[2:-3], atol=1)


@pytest.mark.parametrize("bits", [7, 8, 10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_values_keep_their_bits_and_their_sign(bits: int, signed: bool) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    coarse = np.random.default_rng(bits).integers(low, low + 2**bits, (4, 4))
    pixels = np.kron(coarse, np.ones((64, 64), int)).astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")
    values = decode_jpeg_2000(j2k(pixels, bits), 64, bits, signed)
    assert values is not None
    assert values.dtype == pixels.dtype
    np.testing.assert_array_equal(values[8::16, 8::16], coarse)


@pytest.mark.parametrize("encode", [lambda pixels: j2k(pixels, 16), htj2k])
def test_overshoot_at_an_edge_ends_at_black_and_at_white(encode: Any) -> None:
    pixels = np.zeros((128, 128), np.uint16)
    pixels[:, 61:] = 2**16 - 1
    values = decode_jpeg_2000(encode(pixels), 64, 16, signed=False)
    assert values is not None
    assert values[:, :30].max() < 2**15
    assert values[:, 32:].min() > 2**15


def test_too_few_levels_give_what_there_is() -> None:
    pixels = ramp(256, 256)
    two = decode_jpeg_2000(j2k(pixels, resolutions=2), 16, *U12)
    assert two is not None
    assert two.shape == (128, 128)
    assert decode_jpeg_2000(j2k(pixels, resolutions=1), 16, *U12) is None


@pytest.mark.parametrize(
    ("encoded", "stored"),
    [
        (j2k(ramp(64, 64)), (11, False)),
        (j2k(ramp(64, 64)), (12, True)),
        (j2k(np.zeros((64, 64, 3), np.uint8), 8), (8, False)),
        (b"", U12),
        (b"\xff\x4f\xff\x51", U12),
        (j2k(ramp(64, 64))[:90], U12),
        (htj2k(ramp(64, 64))[:90], (16, False)),
        (jpeg(np.zeros((64, 64), np.uint8)), (8, False)),
    ],
)
def test_what_is_not_as_expected_is_left_to_be_decoded_whole(encoded: bytes, stored: tuple[int, bool]) -> None:
    assert decode_jpeg_2000(encoded, 16, *stored) is None


@pytest.mark.parametrize(
    "encoded", [b"", jpeg(np.zeros((64, 64, 3), np.uint8)), jpeg(np.zeros((64, 64), np.uint8))[:200], j2k(ramp(64, 64))]
)
def test_jpegs_that_are_not_as_expected_are_left_to_be_decoded_whole(encoded: bytes) -> None:
    assert decode_jpeg(encoded, 16) is None


def test_a_shape_that_no_halving_gives_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot be halved"):
        whole_box((100, 100), (50, 49), 0)


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 20),
    st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4"]),
    st.integers(0, 7),
)
def test_blocks_are_averaged(rows: int, columns: int, side: int, kind: str, spare: int) -> None:
    limits = np.iinfo(kind)
    low, high = limits.min >> spare, limits.max >> spare
    values = np.random.default_rng(rows).integers(low, high, (rows, columns), kind, endpoint=True)
    found = block_averages(values, side, limits.bits - spare)
    block = 1
    while min(rows, columns) >= 2 * block * side:
        block *= 2
    assert found.dtype == values.dtype
    assert found.shape == (-(-rows // block), -(-columns // block))
    padded = np.pad(values.astype(float), ((0, -rows % block), (0, -columns % block)), mode="edge")
    expected = padded.reshape(found.shape[0], block, found.shape[1], block).mean((1, 3))
    assert np.abs(found - expected).max() <= 0.5


SYNTAXES = {
    "JPEG 2000": (uid.JPEG2000Lossless, 12, lambda pixels: j2k(pixels)),
    "lossy JPEG 2000": (uid.JPEG2000, 12, lambda pixels: j2k(pixels, reversible=False)),
    "HTJ2K": (uid.HTJ2KLossless, 16, htj2k),
    "JPEG": (uid.JPEGBaseline8Bit, 8, jpeg),
}
AVERAGED = {
    "uncompressed": (uid.ExplicitVRLittleEndian, 12, None),
    "uncompressed, 8 bits": (uid.ExplicitVRLittleEndian, 8, None),
    "JPEG-LS": (uid.JPEGLSLossless, 12, lambda pixels: imagecodecs.jpegls_encode(pixels, level=0)),
    "RLE": (uid.RLELossless, 12, lambda pixels: rle(pixels)),
    "lossless JPEG": (uid.JPEGLosslessSV1, 16, lambda pixels: imagecodecs.ljpeg_encode(pixels, bitspersample=16)),
}
WAYS: dict[str, dict[str, Any]] = {
    "window": {"WindowCenter": 0.45, "WindowWidth": 0.5},
    "sigmoid": {"WindowCenter": 0.5, "WindowWidth": 0.5, "VOILUTFunction": "SIGMOID"},
    "inverted": {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 0.5, "WindowWidth": 0.9},
}


def radiograph(name: str, way: str) -> bytes:
    syntax, bits, encode = (SYNTAXES | AVERAGED)[name]
    pixels = chest(bits)
    header = {key: value * 2**bits if isinstance(value, float) else value for key, value in WAYS[way].items()}
    if encode is None:
        return make_dicom(pixels, BitsStored=bits, HighBit=bits - 1, **header)
    return make_encapsulated(pixels, syntax, [[encode(pixels)]], BitsStored=bits, HighBit=bits - 1, **header)


@pytest.mark.parametrize("name", SYNTAXES | AVERAGED)
@pytest.mark.parametrize("way", WAYS)
def test_the_network_sees_what_it_would_see_of_the_whole_frame(name: str, way: str) -> None:
    content = radiograph(name, way)
    whole = read(content, Reading())
    for fit in (Fit.PAD, Fit.CROP):
        preprocessing = Preprocessing(SIZE, fit, exact_decoding=False)
        frame = read(content, reading_for(preprocessing, Limits()))
        assert min(frame.pixels.shape) < min(whole.pixels.shape)
        assert frame.shape == whole.shape
        difference = np.abs(prepare(frame.pixels, preprocessing, frame.whole_box) - prepare(whole.pixels, preprocessing))
        assert difference.mean() * 255 < 0.6


@pytest.mark.parametrize("name", SYNTAXES | AVERAGED)
def test_a_frame_that_was_not_decoded_whole_has_no_hashes(name: str) -> None:
    content = radiograph(name, "window")
    frame, whole = read(content, Reading(side=64)), read(content, Reading())
    assert frame.pixel_sha256 == frame.stored_sha256 == frame.instance_sha256 == ""
    assert all((whole.pixel_sha256, whole.stored_sha256, whole.instance_sha256))
    assert frame.key == whole.key
    assert whole.whole_shape is whole.whole_box is None


def test_hashes_are_left_out_where_nobody_needs_them() -> None:
    frame = read(radiograph("JPEG", "window"), Reading(hashes=False))
    assert frame.whole_shape is None
    assert frame.pixel_sha256 == frame.stored_sha256 == frame.instance_sha256 == ""


@pytest.mark.parametrize("name", ["JPEG 2000", "HTJ2K"])
def test_placing_samples_where_they_lie_takes_most_of_the_difference_away(name: str) -> None:
    content, preprocessing = radiograph(name, "window"), Preprocessing(SIZE, exact_decoding=False)
    frame = read(content, reading_for(preprocessing, Limits()))
    expected = prepare(read(content, Reading()).pixels, preprocessing)
    placed, unplaced = prepare(frame.pixels, preprocessing, frame.whole_box), prepare(frame.pixels, preprocessing)
    assert np.abs(placed - expected).mean() < np.abs(unplaced - expected).mean() / 2


WINDOW = {"WindowCenter": 2048, "WindowWidth": 2048}
TABLE = Dataset()
TABLE.LUTDescriptor, TABLE.LUTData = [4096, 0, 12], np.arange(4096, dtype="<u2").tobytes()
TABLE["LUTDescriptor"].VR, TABLE["LUTData"].VR = "US", "OW"


@pytest.mark.parametrize(
    "header",
    [
        {},
        WINDOW | {"Modality": "MR"},
        {"WindowCenter": 2048, "WindowWidth": 400},
        {"WindowCenter": -1000, "WindowWidth": 2500},
        WINDOW | {"RescaleSlope": -8, "RescaleIntercept": 100},
        WINDOW | {"PixelPaddingValue": 4095},
        WINDOW | {"SharedFunctionalGroupsSequence": [Dataset()]},
        WINDOW | {"ModalityLUTSequence": [TABLE]},
        {"VOILUTSequence": [TABLE]},
        {"PhotometricInterpretation": "PALETTE COLOR"},
    ],
)
def test_frames_whose_stored_values_are_no_plain_brightness_are_decoded_whole(header: dict[str, Any]) -> None:
    table = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [4096, 0, 16]), ("Data", np.arange(4096, dtype="<u2").tobytes()))
    }
    pixels = chest(12)
    extra = header | table if "PhotometricInterpretation" in header else header
    content = make_encapsulated(pixels, uid.JPEG2000Lossless, [[j2k(pixels)]], BitsStored=12, HighBit=11, **extra)
    assert read(content, Reading(side=64)).pixels.shape == pixels.shape
    assert read(make_dicom(pixels, BitsStored=12, HighBit=11, **extra), Reading(side=64)).pixels.shape == pixels.shape


def test_values_beyond_the_stored_bits_are_averaged_as_they_are() -> None:
    pixels = np.full((512, 512), 4200, np.uint16)
    pixels[:, :200] = 2000
    encoded = imagecodecs.jpegls_encode(pixels, level=0)
    header = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}
    content = make_encapsulated(pixels, uid.JPEGLSLossless, [[encoded]], **header)
    frame, whole = read(content, Reading(side=128)), read(content, Reading())
    assert frame.pixels.shape == (128, 128)
    assert frame.stored_range == whole.stored_range
    np.testing.assert_array_equal(frame.pixels, whole.pixels[::4, ::4])


def test_values_of_a_few_bits_are_not_averaged() -> None:
    content = make_dicom(np.tile(np.uint8([0, 1]), (256, 128)), BitsStored=1, HighBit=0)
    assert read(content, Reading(side=64)).pixels.shape == (256, 256)


@pytest.mark.parametrize("name", SYNTAXES)
@pytest.mark.parametrize("part", [0.2, 0.6, 0.9])
def test_damaged_frames_are_refused_as_if_they_were_decoded_whole(name: str, part: float) -> None:
    syntax, bits, encode = SYNTAXES[name]
    pixels = chest(bits)
    encoded = encode(pixels)
    cut = encoded[: int(part * len(encoded))] + b"\xff\xd9"
    content = make_encapsulated(pixels, syntax, [[cut]], BitsStored=bits, HighBit=bits - 1)
    try:
        whole = read(content, Reading())
    except UnreadableError:
        with pytest.raises(UnreadableError):
            read(content, Reading(side=10**6))
    else:
        assert read(content, Reading(side=64)).shape == whole.shape


def test_pictures_are_reduced_like_dicom_files() -> None:
    content = jpeg(chest(8))
    preprocessing = Preprocessing(SIZE, exact_decoding=False)
    frame, whole = read(content, reading_for(preprocessing, Limits())), read(content, Reading())
    assert frame.shape == whole.shape
    assert min(frame.pixels.shape) < min(whole.pixels.shape)
    difference = np.abs(prepare(frame.pixels, preprocessing, frame.whole_box) - prepare(whole.pixels, preprocessing))
    assert difference.mean() * 255 < 0.6
