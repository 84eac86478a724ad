"""Files into frames on a bundle's terms, and how people see them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Box, Quarantined
from pipeline.imaging.preprocess import placement, prepare
from pipeline.imaging.sources import locate
from pipeline.score.reading import (
    MAX_HEIGHT,
    MAX_WIDTH,
    MIN_HEIGHT,
    Admission,
    Admitted,
    InMemoryFile,
    display_shape,
    read_admitted,
    view_of,
)
from pipeline.settings import Check, Fit, Policy, Preprocessing, Reading
from tests.builders import make_dicom, make_frame, make_gate, make_pixels

GATE = make_gate({Check.BLANK: Policy.REJECT, Check.TOO_SMALL: Policy.FLAG}, smallest_side=64)
ADMISSION = Admission(Reading(hashes=False), GATE, Preprocessing(32))


def make_volume() -> bytes:
    """A frame with a picture, one without, and another with one."""
    picture = (make_frame().pixels * 255).astype(np.uint8)
    return make_dicom(np.stack([picture, np.zeros_like(picture), picture[::-1]]))


def test_a_frame_comes_on_the_grid_with_its_facts_and_flags() -> None:
    frame = make_frame(laterality="L", file_sha256="f" * 64)
    admitted = ADMISSION.admit(frame)
    assert admitted.pixels.tobytes() == prepare(frame.pixels, ADMISSION.preprocessing).tobytes()
    assert (admitted.facts.key, admitted.facts.laterality, admitted.facts.file_sha256) == (frame.key, "L", "f" * 64)
    assert (admitted.facts.rows, admitted.facts.columns) == frame.pixels.shape
    assert [flag.check for flag in admitted.flags] == [Check.TOO_SMALL]
    assert admitted.view is not None
    assert replace(ADMISSION, drawn=False).admit(frame).view is None


def test_a_frame_that_the_gate_refuses_is_an_error() -> None:
    with pytest.raises(UnreadableError) as caught:
        ADMISSION.admit(make_frame(pixels=np.zeros((80, 80), np.float32)))
    assert caught.value.reason is Reason.BLANK


@pytest.mark.parametrize("in_memory", [False, True])
def test_refused_frames_come_out_in_their_place(in_memory: bool, tmp_path: Path) -> None:
    content = make_volume()
    (tmp_path / "a.dcm").write_bytes(content)
    file = locate(tmp_path, "a.dcm")
    first, refused, last = read_admitted(InMemoryFile("a.dcm", content) if in_memory else file, ADMISSION)
    assert isinstance(refused, Quarantined)
    assert (refused.source, refused.reason, refused.frame_number) == ("a.dcm", "blank", 2)
    for number, item in ((1, first), (3, last)):
        assert isinstance(item, Admitted)
        assert item.facts.key.frame_number == number
        assert len(item.facts.file_sha256) == (0 if in_memory else 64)


def test_what_cannot_be_read_is_an_error() -> None:
    with pytest.raises(UnreadableError):
        list(read_admitted(InMemoryFile("a.dcm", b""), ADMISSION))


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
    smaller = make_frame(pixels=make_pixels(200, 120), whole_shape=(400, 240), whole_box=Box(0.0, 0.0, 200.0, 120.0))
    view, expected = view_of(smaller, crop), view_of(whole, crop)
    assert view.grey.shape == expected.grey.shape
    assert view.box == expected.box == placement(400, 240, crop)
