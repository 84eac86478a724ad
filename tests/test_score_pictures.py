"""Heatmap pictures: geometry against Pillow and planted hot spots, one colour scale, words where there is nothing."""

import io

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.imaging.preprocess import PANEL_GAP, onto_frame, placement, seen_square
from pipeline.predictions import Heatmap
from pipeline.score import pictures
from pipeline.score.pictures import Colours, caption, colours, draw, jpeg, png
from pipeline.score.reading import view_of
from pipeline.settings import Fit, Preprocessing
from tests.builders import make_frame, make_pixels

SIZE = 56
CELLS = 7
PAD, CROP = Preprocessing(SIZE), Preprocessing(SIZE, fit=Fit.CROP)


def make_heatmap(values: np.ndarray | None = None) -> Heatmap:
    array = np.zeros((CELLS, CELLS), np.float32) if values is None else values.astype(np.float32)
    return Heatmap("PNEUMONIA", bool(array.any()), values=array)


def mapped(values: np.ndarray, preprocessing: Preprocessing, rows: int, columns: int) -> np.ndarray:
    return onto_frame(values, placement(rows, columns, preprocessing), SIZE, (rows, columns))


def drawn(pixels: np.ndarray, heatmap: Heatmap) -> Colours:
    picture = draw(view_of(make_frame(pixels=pixels), PAD), heatmap, 1.0, "exact evidence")
    assert (picture.dtype, picture.shape[2]) == (np.uint8, 4)
    return picture


def opened(content: bytes, kind: str) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        assert (picture.format, picture.mode) == (kind, "RGB")
        return np.asarray(picture)


def test_a_square_frame_is_interpolated_as_pillow_does_it() -> None:
    values = np.random.default_rng(0).random((CELLS, CELLS), dtype=np.float32)
    expected = Image.fromarray(values).resize((91, 91), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(mapped(values, PAD, 91, 91), np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(60, 120), (120, 60), (100, 100), (31, 97)])
@pytest.mark.parametrize("preprocessing", [PAD, CROP])
def test_a_hot_cell_lands_where_the_network_saw_it(rows: int, columns: int, preprocessing: Preprocessing) -> None:
    values = np.zeros((CELLS, CELLS), np.float32)
    values[3, 4] = 1
    hottest = np.unravel_index(mapped(values, preprocessing, rows, columns).argmax(), (rows, columns))
    box = placement(rows, columns, preprocessing)
    row = box.top + (hottest[0] + 0.5) * box.rows / rows
    column = box.left + (hottest[1] + 0.5) * box.columns / columns
    cell = SIZE / CELLS
    assert abs(row - 3.5 * cell) <= box.rows / rows
    assert abs(column - 4.5 * cell) <= box.columns / columns


def test_what_the_crop_left_out_has_no_heat() -> None:
    heat = mapped(np.ones((CELLS, CELLS), np.float32), CROP, 50, 100)
    assert (heat[:, :24] == 0).all()
    assert (heat[:, -24:] == 0).all()
    np.testing.assert_allclose(heat[:, 26:-26], 1, atol=1e-6)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([PAD, CROP]))
def test_mapping_keeps_within_the_values(rows: int, columns: int, preprocessing: Preprocessing) -> None:
    values = np.random.default_rng(rows).random((CELLS, CELLS), dtype=np.float32)
    heat = mapped(values, preprocessing, rows, columns)
    assert heat.shape == (rows, columns)
    assert heat.min() >= 0
    assert heat.max() <= values.max() + 1e-6


def test_the_picture_shows_the_frame_and_beside_it_the_heat() -> None:
    values = np.zeros((CELLS, CELLS))
    values[1, 1] = 1.0
    pixels = np.full((280, 280), 0.5, np.float32)
    picture = drawn(pixels, make_heatmap(values))[..., :3].astype(int)
    left, right = picture[:280, :280], picture[:280, 288:568]
    assert (left == 128).all()
    assert np.abs(right[60, 60] - 128).max() > 60
    assert (right[200:, 200:] == 128).all()


def test_the_same_evidence_has_the_same_colour_in_every_picture() -> None:
    weak, strong = np.zeros((CELLS, CELLS)), np.zeros((CELLS, CELLS))
    weak[1, 1], strong[1, 1], strong[5, 5] = 0.3, 0.3, 0.9
    pixels = make_pixels(280, 280)
    first, second = (drawn(pixels, make_heatmap(values))[:120, 288:408] for values in (weak, strong))
    np.testing.assert_array_equal(first, second)


def test_above_full_scale_the_colour_stays() -> None:
    pixels = make_pixels(280, 280)
    first, second = (drawn(pixels, make_heatmap(np.full((CELLS, CELLS), value)))[:280, :568] for value in (1.0, 5.0))
    np.testing.assert_array_equal(first, second)


def test_without_evidence_the_frame_stays_grey_and_the_picture_says_so() -> None:
    pixels = make_pixels(280, 280)
    empty = drawn(pixels, make_heatmap())
    np.testing.assert_array_equal(empty[:280, :280], empty[:280, 288:568])
    little = drawn(pixels, make_heatmap(np.full((CELLS, CELLS), 1e-9)))
    assert (empty[280:] != little[280:]).any()


@pytest.mark.parametrize(
    ("heatmap", "meaning", "words"),
    [
        (make_heatmap(), "exact evidence", "PNEUMONIA: no positive evidence"),
        (make_heatmap(np.ones((7, 7))), "exact evidence", "PNEUMONIA: exact evidence"),
        (make_heatmap(np.ones((7, 7))), "evidence by layercam", "PNEUMONIA: evidence by layercam"),
    ],
)
def test_the_words_below_a_picture_say_what_it_shows(
    monkeypatch: pytest.MonkeyPatch, heatmap: Heatmap, meaning: str, words: str
) -> None:
    assert caption(heatmap, meaning) == words
    written = []
    monkeypatch.setattr(pictures, "_write", lambda draw, place, text, width: written.append(text))
    pictures._surround.cache_clear()
    draw(view_of(make_frame(pixels=make_pixels(280, 280)), PAD), heatmap, 1.0, meaning)
    pictures._surround.cache_clear()
    assert written == ["evidence", words]


@pytest.mark.parametrize("fit", [Fit.CROP, Fit.FOCUS])
@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (300, 300), (31, 97)])
@pytest.mark.parametrize("height", [0.2, 0.5, 0.9])
def test_the_square_that_the_network_saw_is_where_its_pixels_come_from(fit: Fit, shape: tuple[int, int], height: float) -> None:
    preprocessing = Preprocessing(SIZE, fit=fit)
    box = placement(*shape, preprocessing, height)
    heat = onto_frame(np.ones((CELLS, CELLS), np.float32), box, SIZE, shape)
    top, left, bottom, right = seen_square(box, SIZE, shape) or (0, 0, *shape)
    rows, columns = np.flatnonzero(heat.any(axis=1)), np.flatnonzero(heat.any(axis=0))
    found = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
    assert np.abs(np.subtract((top, left, bottom, right), found)).max() <= 1
    assert (seen_square(box, SIZE, shape) is None) == (fit is Fit.CROP and shape == (300, 300))
    assert seen_square(placement(*shape, PAD), SIZE, shape) is None


def test_a_dashed_line_and_a_legend_show_the_square_that_the_network_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(pictures, "_write", lambda draw, place, text, width: written.append(text))
    pictures._surround.cache_clear()
    frame = make_frame(pixels=np.full((240, 400), 0.5, np.float32))
    whole, square = (draw(view_of(frame, one), make_heatmap(), 1.0, "exact evidence") for one in (PAD, CROP))
    pictures._surround.cache_clear()
    assert [text for text in written if "square" in text] == ["the square that the network saw; it did not look outside"]
    width = view_of(frame, CROP).grey.shape[1]
    heights, changed = 240, np.flatnonzero((whole[:240] != square[:240]).any(axis=(0, 2)))
    left = width + PANEL_GAP
    assert (changed.min(), changed.max()) == (left + 80, left + 319)  # the middle 240 of 400 columns, and only on the heatmap
    line = square[:heights, left + 80, 0].astype(int)
    assert {line.min(), line.max()} == {16, 235}  # shows on black and on white


def test_equal_arguments_give_equal_bytes() -> None:
    first, second = (drawn(make_pixels(), make_heatmap()) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (png(first), jpeg(first)) == (png(second), jpeg(second))


def test_files_show_the_picture() -> None:
    values = np.zeros((CELLS, CELLS))
    values[1, 1] = 1.0
    picture = drawn(make_pixels(280, 280), make_heatmap(values))
    np.testing.assert_array_equal(opened(png(picture), "PNG"), picture[..., :3])
    assert np.abs(opened(jpeg(picture), "JPEG").astype(int) - picture[..., :3]).mean() < 1.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (300, 4000)])
def test_odd_frames_are_drawn(shape: tuple[int, int]) -> None:
    drawn(np.zeros(shape, np.float32), make_heatmap(np.ones((CELLS, CELLS))))


def test_a_long_label_is_cut_and_not_drawn_outside() -> None:
    heatmap = Heatmap("a very long label " * 40, True, values=np.ones((CELLS, CELLS), np.float32))
    assert drawn(make_pixels(280, 280), heatmap).shape[1] < 700


def test_the_colours_are_those_of_matplotlib_and_lightness_rises_evenly() -> None:
    expected = np.rint(matplotlib.colormaps["plasma"](np.arange(256))[:, :3] * 255)
    assert np.abs(colours().astype(float) - expected).max() <= 8
    lightness = colours().astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness[::15]) > 0).all()
