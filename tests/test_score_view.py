"""The size at which frames are drawn, and where the network's square lies on them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.imaging.preprocess import placement
from pipeline.score.view import MAX_HEIGHT, MAX_WIDTH, MIN_HEIGHT, display_shape, view_of
from pipeline.settings import Fit, Preprocessing
from tests.builders import make_frame, make_pixels


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_frames_are_drawn_small_enough_and_in_their_aspect(rows: int, columns: int) -> None:
    height, width = display_shape(rows, columns)
    assert 1 <= height <= MAX_HEIGHT
    assert 1 <= width <= MAX_WIDTH
    assert height >= MIN_HEIGHT or width == MAX_WIDTH
    assert abs(height * columns - width * rows) <= 0.5 * (rows + columns) + 1 or 1 in (height, width)


def test_a_view_is_the_frame_as_pillow_resizes_it() -> None:
    frame = make_frame(pixels=make_pixels(300, 200))
    view = view_of(frame, Preprocessing(32))
    levels = Image.fromarray(np.rint(frame.pixels * 255).astype(np.uint8))
    np.testing.assert_array_equal(view.grey, np.asarray(levels.resize(view.grey.shape[::-1], Image.Resampling.BILINEAR)))
    assert (view.grey.dtype, view.grey.shape, view.size) == (np.uint8, display_shape(300, 200), 32)


def test_a_frame_that_was_decoded_smaller_is_drawn_and_placed_like_the_whole_one() -> None:
    whole, crop = make_frame(pixels=make_pixels(400, 240)), Preprocessing(32, Fit.CROP)
    smaller = make_frame(pixels=make_pixels(200, 120), whole_shape=(400, 240), whole_box=(0.0, 0.0, 200.0, 120.0))
    view, expected = view_of(smaller, crop), view_of(whole, crop)
    assert view.grey.shape == expected.grey.shape
    assert view.box == expected.box == placement(400, 240, crop)
