import io
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import data_store
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian

from pipeline.errors import UnreadableError
from pipeline.imaging.grayscale import Lut, Rendering, Rescale, Window, apply_range, apply_window, percentiles, render
from pipeline.imaging.sources import read_frames_from_bytes
from tests.builders import make_dataset, make_dicom

REAL = Path(data_store.__file__).parent / "data"
STORED = hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 4095))
WINDOWS = st.builds(
    Window,
    center=st.floats(-2000, 5000, width=32),
    width=st.floats(1, 5000, width=32),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)


def make_lut(data: np.ndarray, first: int, bits: int, vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, vr, [data.size % 65536, first, bits])
    item.add_new(0x00283006, "OW", data.astype("<u2").tobytes())
    return item


def read_one(pixels: np.ndarray, **overrides: object) -> np.ndarray:
    (frame,) = read_frames_from_bytes(make_dicom(pixels, **overrides), "a.dcm")
    return frame.pixels


@given(WINDOWS)
def test_windows_are_pydicoms(window: Window) -> None:
    stored = np.arange(0, 4096, 7, dtype=np.uint16).reshape(1, -1)
    dataset = make_dataset(stored, BitsStored=12, HighBit=11, WindowCenter=window.center, WindowWidth=window.width)
    dataset.VOILUTFunction = window.function
    with np.errstate(over="ignore"):
        expected = apply_windowing(stored.astype(np.float64), dataset) / 4095
    actual = apply_window(stored, Window(float(dataset.WindowCenter), float(dataset.WindowWidth), window.function))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@given(STORED, WINDOWS, st.booleans())
def test_windowing_is_monotone_and_stays_within_zero_and_one(stored: np.ndarray, window: Window, inverted: bool) -> None:
    grey, _ = render(stored, Rendering(voi=window, inverted=inverted))
    assert grey.dtype == np.float32
    assert grey.min() >= 0
    assert grey.max() <= 1
    ordered = grey.ravel()[np.argsort(stored.ravel(), kind="stable")]
    assert (np.diff(-ordered if inverted else ordered) >= 0).all()


@given(STORED)
def test_inverting_twice_is_the_identity(stored: np.ndarray) -> None:
    rendering = Rendering(voi=Window(2048, 4096))
    plain, _ = render(stored, rendering)
    inverted, _ = render(stored, Rendering(voi=rendering.voi, inverted=True))
    np.testing.assert_allclose(1 - inverted, plain, atol=1e-6)


def test_a_linear_window_of_width_one_is_a_step() -> None:
    assert apply_window(np.array([[99, 100, 101]]), Window(100, 1)).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("window", "valid"),
    [
        (Window(1, 1), True),
        (Window(1, 0.5), False),
        (Window(1, 0.5, "LINEAR_EXACT"), True),
        (Window(1, 0, "SIGMOID"), False),
        (Window(float("nan"), 5), False),
    ],
)
def test_widths_that_the_standard_forbids(window: Window, valid: bool) -> None:
    assert window.is_valid is valid


def test_a_range_of_no_width_is_a_step() -> None:
    assert apply_range(np.array([[1, 2, 3]]), 2, 2).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("name", ["vlut_04.dcm", "mlut_18.dcm", "RG1_UNCR.dcm", "RG3_UNCR.dcm", "693_UNCR.dcm", "MR2_UNCR.dcm"])
def test_real_files_come_out_as_in_pydicom(name: str) -> None:
    content = (REAL / name).read_bytes()
    (frame,) = read_frames_from_bytes(content, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(content))
        values = apply_modality_lut(dataset.pixel_array, dataset)
        shown = np.asarray(apply_voi_lut(values, dataset), np.float64)
    if "VOILUTSequence" in dataset:
        low, high = 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "WindowCenter" in dataset:
        window = apply_windowing(np.array([-1e9, 1e9]), dataset)
        low, high = float(window[0]), float(window[1])
    elif dataset.BitsStored <= 8:
        low, high = 0.0, 2.0**dataset.BitsStored - 1
    else:
        low, high = np.percentile(values, (0.5, 99.5))
    expected = np.clip((shown - low) / (high - low), 0, 1)
    expected = 1 - expected if dataset.PhotometricInterpretation == "MONOCHROME1" else expected
    assert frame.pixels.std() > 0.01
    np.testing.assert_allclose(frame.pixels, expected, atol=2e-5)


def test_low_values_of_monochrome1_are_white() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_allclose(read_one(ramp, PhotometricInterpretation="MONOCHROME1"), 1 - ramp / 255, atol=1e-6)


def test_presentation_lut_shape_inverse_says_the_same_as_monochrome1_and_does_not_undo_it() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for interpretation in ("MONOCHROME1", "MONOCHROME2"):
        pixels = read_one(ramp, PhotometricInterpretation=interpretation, PresentationLUTShape="INVERSE")
        np.testing.assert_allclose(pixels, 1 - ramp / 255, atol=1e-6)


def test_a_voi_lut_comes_before_a_window_and_after_the_rescale() -> None:
    stored = np.arange(64, dtype=np.uint16).reshape(8, 8)
    table = (np.arange(100) ** 2 % 1024).astype(np.uint16)
    overrides = {"RescaleSlope": 2, "RescaleIntercept": -10, "WindowCenter": 1, "WindowWidth": 1}
    pixels = read_one(stored, VOILUTSequence=Sequence([make_lut(table, 5, 10)]), **overrides)
    dataset = make_dataset(stored, VOILUTSequence=Sequence([make_lut(table, 5, 10)]), **overrides)
    expected = apply_voi_lut(np.asarray(apply_modality_lut(stored, dataset), np.int64), dataset) / 1023
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_a_modality_lut_comes_before_the_window() -> None:
    stored = np.arange(64, dtype=np.uint16).reshape(8, 8)
    table = np.linspace(4000, 0, 50).astype(np.uint16)
    lut = make_lut(table, 3, 16)
    lut.ModalityLUTType = "US"
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    pixels = read_one(stored, ModalityLUTSequence=Sequence([lut]), **window)
    dataset = make_dataset(stored, ModalityLUTSequence=Sequence([lut]), **window)
    expected = apply_voi_lut(apply_modality_lut(stored, dataset).astype(np.float64), dataset)
    assert expected.max() > expected.min()
    np.testing.assert_allclose(pixels, (expected - expected.min()) / (expected.max() - expected.min()), atol=1e-5)


def test_a_lut_of_bytes_is_read() -> None:
    item = make_lut(np.zeros(256, np.uint16), 0, 8)
    item.LUTData = bytes(range(255, -1, -1))
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_allclose(read_one(stored, VOILUTSequence=Sequence([item])), 1 - stored / 255, atol=1e-6)


@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
def test_luts_in_big_endian_files_are_swapped_as_words(kind: str) -> None:
    """OW: each word holds its first byte in its lower half (PS3.5 8.2)."""
    table = bytes(range(255, -1, -1))
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for bits, data in ((8, table), (16, (np.arange(256, dtype="<u2") * 257)[::-1].tobytes())):
        item = make_lut(np.zeros(256, np.uint16), 0, bits)
        item.LUTData = np.frombuffer(data, np.uint16).byteswap().tobytes()
        dataset = make_dataset(stored, **{kind: Sequence([item])})
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        (frame,) = read_frames_from_bytes(buffer.getvalue(), "a.dcm")
        np.testing.assert_allclose(frame.pixels, 1 - stored / 255, atol=1e-6)


@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_lut_with_entries_of_more_bits_than_it_says_keeps_them_and_it_is_said(kind: str) -> None:
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    window = {"WindowCenter": 2047.5, "WindowWidth": 4095, "VOILUTFunction": "LINEAR_EXACT"}
    content = make_dicom(stored, **{kind: Sequence([make_lut(stored.ravel(), 0, 8)])}, **window)
    (frame,) = read_frames_from_bytes(content, "a.dcm")
    np.testing.assert_allclose(frame.pixels, stored / 4095, atol=1e-6)
    assert "A lookup table holds values of 12 bits, though its descriptor says 8: it is read with 12." in frame.notes


@pytest.mark.parametrize("window", [True, False])
def test_a_voi_lut_without_a_table_is_left_out_and_said_so(window: bool) -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    given = {"WindowCenter": 100, "WindowWidth": 50, "VOILUTFunction": "LINEAR_EXACT"} if window else {}
    content = make_dicom(stored, VOILUTSequence=Sequence([Dataset()]), **given)
    (frame,) = read_frames_from_bytes(content, "a.dcm")
    assert frame.notes == ("A VOI LUT of the file has no table and was ignored.",)
    np.testing.assert_array_equal(frame.pixels, read_one(stored, **given))


@pytest.mark.parametrize("described", [True, False])
def test_a_modality_lut_without_a_table_is_left_out_and_the_rescale_counts(described: bool) -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    empty = Dataset()
    if described:
        empty.add_new(0x00283002, "US", [256, 0, 16])
        empty.ModalityLUTType = "US"
    given = {
        "RescaleSlope": 2,
        "RescaleIntercept": -10,
        "WindowCenter": 100,
        "WindowWidth": 150,
        "VOILUTFunction": "LINEAR_EXACT",
    }
    content = make_dicom(stored, ModalityLUTSequence=Sequence([empty]), **given)
    (frame,) = read_frames_from_bytes(content, "a.dcm")
    assert frame.notes == ("The Modality LUT of the file has no table and was ignored.",)
    np.testing.assert_array_equal(frame.pixels, read_one(stored, **given))


def test_signed_values_and_unused_high_bits() -> None:
    signed = np.array([[-1000, -500], [0, 500]], np.int16)
    np.testing.assert_allclose(
        read_one(signed, WindowCenter=-250, WindowWidth=1500, VOILUTFunction="LINEAR_EXACT"), (signed + 1000) / 1500, atol=1e-6
    )
    overlaid = np.array([[0x8000 | 100, 200], [0xF000 | 300, 4095]], np.uint16)
    pixels = read_one(overlaid, BitsStored=12, HighBit=11, WindowCenter=2047.5, WindowWidth=4095, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(pixels, np.array([[100, 200], [300, 4095]]) / 4095, atol=1e-6)


def test_without_a_window_percentiles_are_taken_said_so_and_padding_is_left_out() -> None:
    stored = np.full((40, 50), 60000, np.uint16)
    stored[:20] = np.arange(1000).reshape(20, 50) + 1000
    content = make_dicom(stored, PixelPaddingValue=60000)
    (frame,) = read_frames_from_bytes(content, "a.dcm")
    low, high = np.percentile(stored[:20], (0.5, 99.5))
    expected = np.clip((stored[:20].astype(float) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(frame.pixels, np.vstack([expected, np.zeros((20, 50))]), atol=1e-5)
    assert frame.notes == ("The file names no window: the grey levels run from percentile 0.5 to 99.5 of the values.",)


def test_padding_range_leaves_out_every_value_in_it() -> None:
    stored = np.arange(2000, dtype=np.uint16).reshape(40, 50)
    rendering = Rendering(padding=(0, 999))
    grey, _ = render(stored, rendering)
    low, high = np.percentile(stored[stored > 999], (0.5, 99.5))
    np.testing.assert_allclose(grey, np.clip((stored.astype(float) - low) / (high - low), 0, 1), atol=1e-5)


def test_a_frame_of_one_value_is_black_and_one_of_padding_alone_is_shown() -> None:
    constant = np.full((4, 4), 700, np.uint16)
    assert not render(constant, Rendering())[0].any()
    assert not render(constant, Rendering(padding=(700, 700)))[0].any()


def test_a_few_bright_values_in_a_black_frame_are_kept() -> None:
    stored = np.zeros((100, 100), np.uint16)
    stored[0, 0] = 900
    assert render(stored, Rendering())[0][0, 0] == 1


def test_eight_bits_without_a_window_keep_their_range() -> None:
    stored = np.array([[10, 20], [30, 40]], np.uint8)
    np.testing.assert_allclose(read_one(stored), stored / 255, atol=1e-7)
    np.testing.assert_allclose(read_one(stored, RescaleSlope=-1, RescaleIntercept=255), 1 - stored / 255, atol=1e-6)


def test_eight_bits_with_a_modality_lut_and_no_window_have_the_range_of_its_output() -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    peaked = 10 * np.minimum(np.arange(256), 255 - np.arange(256))
    pixels = read_one(stored, ModalityLUTSequence=Sequence([make_lut(peaked, 0, 16)]))
    np.testing.assert_allclose(pixels.ravel(), peaked / 1270, atol=1e-6)


def test_a_window_that_is_not_valid_is_left_out_and_said_so() -> None:
    (frame,) = read_frames_from_bytes(make_dicom(WindowCenter=100, WindowWidth=0), "a.dcm")
    assert frame.notes[0] == "The window in the file is not valid and was ignored."
    assert frame.pixels.max() == 1


def test_a_slope_of_zero_is_left_out_and_said_so() -> None:
    (frame,) = read_frames_from_bytes(make_dicom(RescaleSlope=0, RescaleIntercept=5), "a.dcm")
    assert frame.notes[0] == "Rescale Slope is 0, which would leave no image: the rescale was ignored."
    assert frame.pixels.std() > 0.1


@pytest.mark.parametrize(
    ("keyword", "name", "written"),
    [
        ("RescaleSlope", "Rescale Slope", b"notanr"),
        ("RescaleIntercept", "Rescale Intercept", b"notanr"),
        ("RescaleSlope", "Rescale Slope", b"nan   "),
    ],
)
def test_a_rescale_that_is_no_number_is_left_out_and_said_so(keyword: str, name: str, written: bytes) -> None:
    content = make_dicom(**{keyword: "2.5000"}).replace(b"2.5000", written)
    (frame,) = read_frames_from_bytes(content, "a.dcm")
    assert frame.notes[0] == f"{name} is not a number: it was ignored."
    np.testing.assert_array_equal(frame.pixels, next(read_frames_from_bytes(make_dicom(), "a.dcm")).pixels)


def test_a_rescale_that_is_too_long_or_empty() -> None:
    too_long, empty = make_dataset(), make_dataset(RescaleSlope="", RescaleIntercept="")
    too_long.add_new(0x00281053, "UT", "2" * 70000)
    notes = []
    for dataset in (too_long, empty):
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        notes.append([note for frame in read_frames_from_bytes(buffer.getvalue(), "a.dcm") for note in frame.notes])
    assert notes[0][0] == "Rescale Slope is not a number: it was ignored."
    assert "Rescale" not in "".join(notes[1])


def test_values_outside_a_table_take_its_ends() -> None:
    lut = Lut(np.array([10, 20, 30]), 5, 8)
    grey, _ = render(np.array([[0, 5, 6, 7, 99]]), Rendering(Rescale(), lut))
    np.testing.assert_allclose(grey * 255, [[10, 10, 20, 30, 30]], atol=1e-4)


def beside(**overrides: Any) -> bytes:
    """Values from 32,768 to 34,687, unless told otherwise, in a window or table that ends far below them."""
    stored = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40) + 32768
    return make_dicom(**{"pixels": stored} | overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        {"WindowCenter": 2048, "WindowWidth": 4096},
        {"WindowCenter": 65000, "WindowWidth": 400},
        {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 60000, "WindowWidth": 4096, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 32768, "WindowWidth": 4096, "RescaleSlope": 1, "RescaleIntercept": -32768},
        {"VOILUTSequence": Sequence([make_lut(np.arange(100, 3900, dtype=np.uint16), 0, 12)])},
        {"VOILUTSequence": Sequence([make_lut(np.arange(100, 3900, dtype=np.uint16), 40000, 12)])},
        {"WindowCenter": 2048, "WindowWidth": 4096, "PhotometricInterpretation": "MONOCHROME1"},
    ],
)
def test_a_window_beside_all_values_gives_way_to_percentiles_and_it_is_said(overrides: dict[str, Any]) -> None:
    (frame,) = read_frames_from_bytes(beside(**overrides), "a.dcm")
    ramp = np.arange(48 * 40).reshape(48, 40)
    low, high = np.percentile(ramp, (0.5, 99.5))
    expected = np.clip((ramp - low) / (high - low), 0, 1)
    expected = 1 - expected if "PhotometricInterpretation" in overrides else expected
    np.testing.assert_allclose(frame.pixels, expected, atol=1e-5)
    kind = "VOI LUT" if "VOILUTSequence" in overrides else "window"
    assert frame.notes == (
        f"The {kind} of the file lies beside the values of the frame and would hide it: the grey levels run from percentile "
        "0.5 to 99.5 of the values.",
    )


def test_a_window_beside_all_but_padding_and_a_few_values_gives_way() -> None:
    stored = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40) + 32768
    stored[:4], stored[20, 20] = 0, 2000
    (frame,) = read_frames_from_bytes(beside(pixels=stored, PixelPaddingValue=0, WindowCenter=2048, WindowWidth=4096), "a.dcm")
    low, high = np.percentile(stored[4:], (0.5, 99.5))
    expected = np.clip((stored[4:].astype(float) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(frame.pixels, np.vstack([np.zeros((4, 40)), expected]), atol=1e-5)
    assert "would hide it" in frame.notes[0]


def test_a_window_of_which_a_part_is_needed_stays() -> None:
    stored = np.zeros((40, 50), np.uint16)
    stored[0, :30] = 4000  # 1.5 % of the values
    pixels = read_one(stored, WindowCenter=2048, WindowWidth=2048)
    np.testing.assert_array_equal(pixels, stored > 0)
    assert (read_one(np.full((40, 50), 9, np.uint16), WindowCenter=2048, WindowWidth=2048) == 0).all()


WINDOWED = {"WindowCenter": 1500, "WindowWidth": 1001}
TABLED = {"VOILUTSequence": Sequence([make_lut(np.arange(4096, dtype=np.uint16), 0, 12)])}


@pytest.mark.parametrize("inverted", [{"PhotometricInterpretation": "MONOCHROME1"}, {"PresentationLUTShape": "INVERSE"}, {}])
@pytest.mark.parametrize("way", [WINDOWED, {}, TABLED])
@pytest.mark.parametrize("padding", [0, 4095])
def test_padding_is_black_whatever_the_window_and_the_sense(
    inverted: dict[str, Any], way: dict[str, Any], padding: int
) -> None:
    stored = np.arange(1000, 3000, dtype=np.uint16).reshape(40, 50)
    plain = read_one(stored, **inverted, **way)
    stored[:10] = padding
    padded = read_one(stored, **inverted, **way, PixelPaddingValue=padding)
    assert not padded[:10].any()
    if way:
        np.testing.assert_array_equal(padded[10:], plain[10:])
    else:
        assert padded[10:].min() == 0
        assert padded[10:].max() == 1


def test_padding_of_eight_bits_is_black() -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = read_one(stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0, PixelPaddingRangeLimit=31)
    np.testing.assert_allclose(pixels, np.where(stored < 32, 0, 1 - stored / 255), atol=1e-6)


def make_floats(values: np.ndarray, **overrides: object) -> bytes:
    dataset = make_dataset(np.zeros(values.shape, f"u{values.itemsize}"), **overrides)
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    setattr(dataset, "FloatPixelData" if values.itemsize == 4 else "DoubleFloatPixelData", values.tobytes())
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "Float"), (np.float64, "DoubleFloat")])
@pytest.mark.parametrize(
    ("paddings", "ends"),
    [
        ([-1e30], [-1e30]),
        ([-1.7e38], [-1.7e38]),
        ([-2000.5, -1000.25], [-3000.0, -1000.25]),
        ([2000.5, 3000.0], [3000.0, 1000.25]),
        ([np.nan], [np.nan]),
        ([np.inf], [np.inf]),
        ([-np.inf, -5000.0], [-np.inf, -4000.0]),
    ],
)
def test_padding_in_floating_point_neither_counts_nor_shows(
    dtype: type[np.generic], name: str, paddings: list[float], ends: list[float]
) -> None:
    picture = np.linspace(-1, 1, 2000).reshape(40, 50).astype(dtype)
    stored = picture.copy()
    for row, padding in enumerate(paddings):
        stored[2 * row : 2 * row + 2] = padding
    keys = dict(zip((f"{name}PixelPaddingValue", f"{name}PixelPaddingRangeLimit"), ends, strict=False))
    (frame,) = read_frames_from_bytes(make_floats(stored, **keys), "a.dcm")
    first = 2 * len(paddings)
    low, high = np.percentile(picture[first:].astype(float), (0.5, 99.5))
    np.testing.assert_allclose(frame.pixels[first:], np.clip((picture[first:] - low) / (high - low), 0, 1), atol=1e-5)
    assert not frame.pixels[:first].any()
    assert np.isfinite(frame.stored_range).all()


def test_what_is_no_number_and_no_padding_is_refused() -> None:
    stored = np.linspace(-1, 1, 2000).reshape(40, 50).astype(np.float32)
    stored[0, 0] = np.nan
    for keys in ({}, {"FloatPixelPaddingValue": -5.0}, {"DoubleFloatPixelPaddingValue": np.nan}):
        with pytest.raises(UnreadableError, match="not numbers"):
            list(read_frames_from_bytes(make_floats(stored, **keys), "a.dcm"))
    with pytest.raises(UnreadableError, match="not numbers"):
        list(read_frames_from_bytes(make_floats(np.full((40, 50), np.nan), DoubleFloatPixelPaddingValue=np.nan), "a.dcm"))


XA, XRF, BIPLANE = (f"1.2.840.10008.5.1.4.1.1.12.{number}" for number in (1, 2, 3))
ENHANCED_XA = "1.2.840.10008.5.1.4.1.1.12.1.1"


@pytest.mark.parametrize("sop_class", [XA, XRF, BIPLANE, ENHANCED_XA])
@pytest.mark.parametrize("relationship", [None, "LOG", "DISP", "LIN"])
@pytest.mark.parametrize("table", [True, False])
def test_the_modality_lut_of_angiography_is_not_for_display_as_in_dcmtk(
    sop_class: str, relationship: str | None, table: bool, tmp_path: Path
) -> None:
    if (dcmj2pnm := shutil.which("dcmj2pnm")) is None:
        pytest.skip("DCMTK is not installed")
    stored = np.arange(256, dtype=np.uint8).repeat(16).reshape(64, 64)
    lut = make_lut(np.minimum(4095, 80 + 12 * np.arange(256)), 0, 16)
    lut.ModalityLUTType = "US"
    modality = {"ModalityLUTSequence": Sequence([lut])} if table else {"RescaleSlope": 12, "RescaleIntercept": 80}
    said = {"PixelIntensityRelationship": relationship} if relationship else {}
    dataset = make_dataset(stored, SOPClassUID=sop_class, WindowCenter=127, WindowWidth=255, **modality, **said)
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    subprocess.run([dcmj2pnm, "+Ww", "127", "255", str(tmp_path / "a.dcm"), str(tmp_path / "a.pgm")], check=True)
    (frame,) = read_frames_from_bytes((tmp_path / "a.dcm").read_bytes(), "a.dcm")
    assert np.abs(frame.pixels * 255 - np.asarray(Image.open(tmp_path / "a.pgm"), float)).max() <= 1
    assert (frame.pixels == 1).mean() < 0.01 or sop_class == ENHANCED_XA


def test_a_broken_modality_lut_that_is_not_for_display_does_no_harm() -> None:
    lut = make_lut(np.arange(9), 0, 16)
    lut.LUTDescriptor = [12, 0, 16]
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = read_one(ramp, SOPClassUID=XA, ModalityLUTSequence=Sequence([lut]))
    np.testing.assert_allclose(pixels, ramp / 255, atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_of_whole_files_are_pydicoms(function: str) -> None:
    stored = np.arange(-600, 600, dtype=np.int16).reshape(30, 40)
    window = {"WindowCenter": [40, 0], "WindowWidth": [400, 1000], "VOILUTFunction": function}
    pixels = read_one(stored, RescaleSlope=2, RescaleIntercept=-100, **window)
    dataset = make_dataset(stored, RescaleSlope=2, RescaleIntercept=-100, **window)
    shown = apply_voi_lut(apply_modality_lut(stored, dataset), dataset, index=0)
    low, high = -32768 * 2 - 100, 32767 * 2 - 100
    np.testing.assert_allclose(pixels, (shown - low) / (high - low), atol=1e-5)


@pytest.mark.parametrize(("vr", "first"), [("SS", -600), ("US", 65536 - 600)])
@pytest.mark.parametrize("rescaled", [False, True])
def test_a_voi_lut_of_negative_values_is_read_however_its_start_is_written(vr: str, first: int, rescaled: bool) -> None:
    values = np.arange(-600, 600, dtype=np.int16).reshape(30, 40)
    stored = (values + 1000).astype(np.uint16) if rescaled else values
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1000} if rescaled else {}
    lut = make_lut(np.arange(1200, dtype=np.uint16), first, 16, vr)
    pixels = read_one(stored, VOILUTSequence=Sequence([lut]), **rescale)
    np.testing.assert_allclose(pixels, (values + 600) / 65535, atol=1e-6)


def test_a_voi_lut_of_large_values_starts_where_it_says() -> None:
    stored = np.arange(40000, 41200, dtype=np.uint16).reshape(30, 40)
    lut = make_lut(np.arange(1200, dtype=np.uint16), 40000, 16)
    np.testing.assert_allclose(read_one(stored, VOILUTSequence=Sequence([lut])), (stored - 40000.0) / 65535, atol=1e-6)


@pytest.mark.parametrize("padding", [-2000, 63536])
def test_padding_of_signed_pixels_is_found_however_it_is_written(padding: int) -> None:
    stored = np.full((40, 50), -2000, np.int16)
    stored[:20] = np.arange(1000).reshape(20, 50)
    dataset = make_dataset(stored)
    dataset.add_new(0x00280120, "SS" if padding < 0 else "US", padding)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    (frame,) = read_frames_from_bytes(buffer.getvalue(), "a.dcm")
    low, high = np.percentile(stored[:20], (0.5, 99.5))
    np.testing.assert_allclose(frame.pixels[:20], np.clip((stored[:20] - low) / (high - low), 0, 1), atol=1e-5)
    assert not frame.pixels[20:].any()


def test_padding_of_unsigned_pixels_is_found_when_it_is_written_as_negative() -> None:
    stored = np.full((40, 50), 63536, np.uint16)
    stored[:20] = np.arange(1000).reshape(20, 50)
    dataset = make_dataset(stored, WindowCenter=500, WindowWidth=1000)
    dataset.add_new(0x00280120, "SS", -2000)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    (frame,) = read_frames_from_bytes(buffer.getvalue(), "a.dcm")
    assert frame.pixels[:20].any()
    assert not frame.pixels[20:].any()


def test_presentation_lut_shape_identity_says_nothing_about_monochrome1() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = read_one(ramp, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="IDENTITY")
    np.testing.assert_allclose(pixels, 1 - ramp / 255, atol=1e-6)


@pytest.mark.parametrize("overrides", [{}, {"WindowCenter": 0, "WindowWidth": 1e308}, {"RescaleSlope": 1e308}])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values_beyond_what_can_be_computed_are_refused(overrides: dict[str, float]) -> None:
    dataset = make_dataset(np.zeros((10, 10), np.uint64), **overrides)
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.DoubleFloatPixelData = (np.linspace(-1, 1, 100) * 1.7e308).tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    with pytest.raises(UnreadableError, match="could not be converted to grey levels"):
        list(read_frames_from_bytes(buffer.getvalue(), "a.dcm"))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (-17.3, 4000.7), (99.25, 99.75), (-3e9, 3e9), (60000.1, 60001)])
def test_ranges_are_computed_as_exactly_as_float32_can_say(dtype: type[np.generic], low: float, high: float) -> None:
    values = np.random.default_rng(0).integers(-128, 128, (40, 30)).astype(dtype)
    expected = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(apply_range(values, low, high), expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float64])
def test_percentiles_are_those_of_numpy(dtype: type[np.generic]) -> None:
    values = np.random.default_rng(1).normal(0, 40, (57, 31)).astype(np.int8).astype(dtype)
    np.testing.assert_allclose(percentiles(values, (0.5, 99.5)), np.percentile(values, (0.5, 99.5)), rtol=1e-12)
