import hashlib
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import JPEG2000Lossless
from scipy import ndimage

from pipeline.frames import Box, ImageRecord, Split
from pipeline.imaging.preprocess import (
    FOCUS,
    GREY_STEPS,
    bright_height,
    grey_levels,
    grey_values,
    placement,
    prepare,
    reading_for,
)
from pipeline.imaging.reduced import JPEG_2000_OFFSET, whole_box
from pipeline.imaging.sources import locate
from pipeline.ingest.network_input import prepared_frames
from pipeline.predictions import FramePrediction, OperatingPoint, Task
from pipeline.score.predictor import Predictor
from pipeline.score.reading import Admitted, read_admitted
from pipeline.settings import Check, Fit, Limits, Policy, Preprocessing, Reading
from services.api.app import create_app
from services.api.options import Settings
from tests.builders import make_bundle, make_encapsulated, make_pixels, make_quality, score_folder
from tests.test_services_api import running

SIDES = st.integers(1, 400)
FITS = st.sampled_from(list(Fit))


@settings(deadline=None)
@given(SIDES, SIDES, FITS, st.booleans())
def test_every_frame_becomes_a_square_in_zero_to_one_twice_the_same(rows: int, columns: int, fit: Fit, mask: bool) -> None:
    pixels = np.random.default_rng(rows * columns).random((rows, columns), dtype=np.float32)
    before = pixels.copy()
    preprocessing = Preprocessing(48, fit, mask)
    first, second = prepare(pixels, preprocessing), prepare(pixels, preprocessing)
    assert first.shape == (1, 48, 48)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.tobytes() == second.tobytes()
    np.testing.assert_array_equal(grey_values(grey_levels(first)), first)
    np.testing.assert_array_equal(pixels, before)


def test_sixteen_bits_keep_every_value_that_the_network_can_see() -> None:
    levels = np.arange(GREY_STEPS + 1, dtype=np.uint16)
    np.testing.assert_array_equal(grey_levels(grey_values(levels)), levels)
    assert (grey_values(levels)[0], grey_values(levels)[-1]) == (0, 1)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 512))
def test_padded_frames_lie_within_the_grid_and_keep_their_aspect(rows: int, columns: int, size: int) -> None:
    box = placement(rows, columns, Preprocessing(size))
    assert max(box.rows, box.columns) == size
    assert min(box.rows, box.columns) >= 1
    assert 0 <= box.top <= size - box.rows
    assert 0 <= box.left <= size - box.columns
    assert abs(2 * box.top + box.rows - size) <= 1
    assert abs(2 * box.left + box.columns - size) <= 1
    assert abs(box.rows - rows * size / max(rows, columns)) <= 1


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_cropped_frames_cover_the_grid(rows: int, columns: int) -> None:
    box = placement(rows, columns, Preprocessing(64, Fit.CROP))
    assert box.top <= 0
    assert box.left <= 0
    assert box.top + box.rows >= 64 - 1e-9
    assert box.left + box.columns >= 64 - 1e-9
    assert box.rows / rows == pytest.approx(box.columns / columns)


@pytest.mark.parametrize(
    ("rows", "columns", "fit", "expected"),
    [
        (496, 512, Fit.PAD, Box(3, 0, 217, 224)),
        (100, 200, Fit.PAD, Box(56, 0, 112, 224)),
        (1, 5000, Fit.PAD, Box(111, 0, 1, 224)),
        (5000, 1, Fit.PAD, Box(0, 111, 224, 1)),
        (112, 224, Fit.CROP, Box(0, -112, 224, 448)),
        (10, 10, Fit.CROP, Box(0, 0, 224, 224)),
        (100, 200, Fit.FOCUS, Box(-48, -208, 320, 640)),
    ],
)
def test_placement(rows: int, columns: int, fit: Fit, expected: Box) -> None:
    assert placement(rows, columns, Preprocessing(224, fit)) == expected


@pytest.mark.parametrize("fit", list(Fit))
@pytest.mark.parametrize("shape", [(90, 150), (150, 90), (97, 61)])
def test_a_landmark_comes_to_lie_where_placement_says(fit: Fit, shape: tuple[int, int]) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    row, column = shape[0] // 2 + 6, shape[1] // 2 - 9
    spot = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 18).astype(np.float32)
    preprocessing = Preprocessing(64, fit)
    box = placement(*shape, preprocessing, bright_height(spot, preprocessing))
    found = ndimage.center_of_mass(prepare(spot, preprocessing)[0])
    expected = (box.top + (row + 0.5) * box.rows / shape[0] - 0.5, box.left + (column + 0.5) * box.columns / shape[1] - 0.5)
    np.testing.assert_allclose(found, expected, atol=0.2)


def test_resizing_averages_and_does_not_skip() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), (256, 128))
    grid = prepare(stripes, Preprocessing(32))
    np.testing.assert_allclose(grid[0, 4:-4, 4:-4], 0.5, atol=0.02)


def test_a_frame_of_the_right_size_is_left_alone() -> None:
    pixels = grey_values(grey_levels(make_pixels(40, 40)))
    for fit in (Fit.PAD, Fit.CROP):
        np.testing.assert_array_equal(prepare(pixels, Preprocessing(40, fit))[0], pixels)


@pytest.mark.parametrize("top", [2, 40, 88])
@pytest.mark.parametrize("mask", [False, True])
def test_focus_follows_a_bright_band_to_any_height(top: int, mask: bool) -> None:
    pixels = np.zeros((100, 140), np.float32)
    pixels[top : top + 10, 20:120] = 0.6
    preprocessing = Preprocessing(70, Fit.FOCUS, mask)
    grid = prepare(pixels, preprocessing)[0]
    assert round(FOCUS * 100) == 70
    assert bright_height(pixels, preprocessing) == pytest.approx((top + 5) / 100)
    np.testing.assert_array_equal(grid[30:40], np.full((10, 70), np.float32(0.6)))
    assert grid[:29].max() == grid[41:].max() == 0


def test_focus_is_not_drawn_to_white_borders_that_are_masked() -> None:
    pixels = np.zeros((100, 140), np.float32)
    pixels[60:70] = 0.6
    wedged = pixels.copy()
    wedged[:20] = 1.0
    masked, kept = Preprocessing(70, Fit.FOCUS, True), Preprocessing(70, Fit.FOCUS)
    np.testing.assert_array_equal(prepare(wedged, masked), prepare(pixels, masked))
    assert bright_height(wedged, masked) == bright_height(pixels, masked) > bright_height(wedged, kept)


def test_a_frame_without_anything_bright_is_shown_in_its_middle() -> None:
    preprocessing = Preprocessing(70, Fit.FOCUS)
    assert bright_height(np.full((100, 140), 0.2, np.float32), preprocessing) == 0.5
    assert prepare(np.full((100, 140), 0.2, np.float32), preprocessing).min() == np.float32(0.2)


def test_bars_are_black() -> None:
    grid = prepare(np.ones((10, 20), np.float32), Preprocessing(64))[0]
    assert not grid[:16].any()
    assert not grid[48:].any()
    assert (grid[16:48] == 1).all()


def test_white_borders_are_masked_only_where_asked() -> None:
    pixels = np.full((64, 64), 0.2, np.float32)
    pixels[:10] = 1
    assert prepare(pixels, Preprocessing(64))[0, 0].min() == 1
    assert prepare(pixels, Preprocessing(64, mask_white_borders=True))[0].max() < 0.21


@pytest.mark.parametrize(
    ("preprocessing", "side"),
    [
        (Preprocessing(224, exact_decoding=False), 448),
        (Preprocessing(224, Fit.CROP, exact_decoding=False), 448),
        (Preprocessing(224, exact_decoding=True), None),
        (Preprocessing(224, Fit.FOCUS, exact_decoding=False), None),
        (Preprocessing(224, mask_white_borders=True, exact_decoding=False), None),
    ],
)
def test_files_are_read_at_twice_the_resolution_of_the_network_unless_it_needs_all_pixels(
    preprocessing: Preprocessing, side: int | None
) -> None:
    assert reading_for(preprocessing, Limits()) == Reading(Limits(), side, hashes=False)
    explained = replace(preprocessing, voi_explanation="LUNG")
    assert reading_for(explained, Limits(file_pixels=9)) == Reading(Limits(file_pixels=9), side, "LUNG", hashes=False)


@pytest.mark.parametrize("fit", [Fit.PAD, Fit.CROP])
@pytest.mark.parametrize("shape", [(400, 600), (403, 601), (600, 402)])
def test_a_landmark_lies_at_the_same_place_at_any_resolution(fit: Fit, shape: tuple[int, int]) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    spot = np.exp(-((rows - shape[0] // 2 - 40) ** 2 + (columns - shape[1] // 2 + 60) ** 2) / 1800).astype(np.float32)
    preprocessing = Preprocessing(64, fit)
    sampled = spot[::4, ::4]
    box = whole_box(shape, (sampled.shape[0], sampled.shape[1]), JPEG_2000_OFFSET)
    np.testing.assert_allclose(prepare(sampled, preprocessing, box, shape), prepare(spot, preprocessing), atol=0.01)


@pytest.mark.parametrize("fit", [Fit.CROP, Fit.FOCUS])
@pytest.mark.parametrize("shape", [(401, 600), (402, 601), (600, 403), (406, 600), (400, 598)])
def test_the_square_is_that_of_the_whole_frame_at_any_resolution(fit: Fit, shape: tuple[int, int]) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    spot = np.exp(-((rows - shape[0] // 2 - 20.2) ** 2 + (columns - shape[1] // 2 + 10) ** 2) / 900).astype(np.float32)
    preprocessing = Preprocessing(64, fit)
    sampled = spot[::4, ::4]
    box = whole_box(shape, (sampled.shape[0], sampled.shape[1]), JPEG_2000_OFFSET)
    places = [ndimage.center_of_mass(prepare(*one)[0]) for one in ((sampled, preprocessing, box, shape), (spot, preprocessing))]
    np.testing.assert_allclose(*places, atol=0.01)


def test_training_folders_and_http_give_the_network_the_same_bytes(tmp_path: Path) -> None:
    pixels = np.rint(np.clip(ndimage.zoom(make_pixels(40, 36), 5, order=1), 0, 1) * 4095).astype(np.uint16)
    encoded = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", bitspersample=12, reversible=True, resolutions=5)
    header = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}
    content = make_encapsulated(pixels, JPEG2000Lossless, [[encoded]], **header)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "a.dcm").write_bytes(content)
    preprocessing = Preprocessing(32, exact_decoding=False)
    points = (OperatingPoint("NORMAL", 0.999, "youden", 0.9, 0.8), OperatingPoint("PNEUMONIA", 0.999, "youden", 0.9, 0.8))
    far = {  # nothing competes and nothing is near a threshold, or the frame would be read whole
        "task": Task.MULTILABEL,
        "operating_points": points,
        "quality": make_quality(dict.fromkeys(Check, Policy.IGNORE)),
    }
    bundle = make_bundle(tmp_path / "bundle", preprocessing=preprocessing, **far)
    predictor = Predictor(bundle)
    (scored,) = score_folder(tmp_path / "studies", predictor)
    assert isinstance(scored, FramePrediction)
    assert (scored.facts.decoded_rows, scored.facts.decoded_columns) == (100, 90)
    assert (scored.facts.rows, scored.facts.columns) == (200, 180)
    record = ImageRecord(
        key=scored.facts.key,
        root=0,
        source="a.dcm",
        patient_key="P1",
        pixel_sha256="",
        labels={},
        split=Split.TEST,
        rows=200,
        columns=180,
        file_sha256=hashlib.sha256(content).hexdigest(),
    )
    (trained,) = prepared_frames([record], [tmp_path / "studies"], preprocessing)
    with running(create_app(bundle, Settings())) as client:
        (answered,) = client.post("/v1/predict", files=[("files", ("a.dcm", content))]).json()["frames"]
    (admitted,) = read_admitted(locate(tmp_path / "studies", "a.dcm"), predictor.admission)
    assert isinstance(admitted, Admitted)
    assert admitted.pixels.tobytes() == trained.tobytes()
    for prediction in scored.predictions:
        assert answered["labels"][prediction.label]["logit"] == prediction.logit
