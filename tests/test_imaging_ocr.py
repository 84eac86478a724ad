"""Text in pixels: found where Pillow wrote it, and nothing else about it is kept."""

import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import ConfigError
from pipeline.frames import FloatArray
from pipeline.imaging.quality import ocr
from pipeline.imaging.quality.gate import assess, check_tools
from pipeline.imaging.quality.ocr import TextBox, find_text
from pipeline.settings import Check, Gate, Policy
from tests.builders import make_frame, make_gate

TEXT = "DOE JANE 1970"


def write(text: str, size: int = 24, shape: tuple[int, int] = (300, 400)) -> tuple[FloatArray, tuple[int, int, int, int]]:
    """A grey picture with text at a place, and the left, top, right and bottom of its ink."""
    image = Image.new("L", (shape[1], shape[0]), 60)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size)
    draw.text((50, 200), text, fill=230, font=font)
    left, top, right, bottom = draw.textbbox((50, 200), text, font=font)
    return np.asarray(image, np.float32) / np.float32(255), (int(left), int(top), int(right), int(bottom))


def test_a_gate_that_asks_for_text_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)  # as if it were not installed
    check_tools(Gate())
    check_tools(make_gate({Check.BURNED_IN_TEXT: Policy.IGNORE}))
    for policy in (Policy.FLAG, Policy.REJECT):
        with pytest.raises(ConfigError, match=r"^quality\.burned_in_text needs text recognition: pip install 'octray\[ocr\]'"):
            check_tools(make_gate({Check.BURNED_IN_TEXT: policy}))
    with pytest.raises(ConfigError, match="not installed"):
        find_text(np.zeros((40, 40), np.float32))


@pytest.fixture(scope="module")
def _extra() -> Any:
    return pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")


@pytest.mark.usefixtures("_extra")
def test_text_is_found_where_it_stands() -> None:
    pixels, (left, top, right, bottom) = write(TEXT)
    boxes = find_text(pixels)
    assert sum(box.characters for box in boxes) == len(TEXT.replace(" ", ""))
    assert min(box.left for box in boxes) == pytest.approx(left, abs=8)
    assert max(box.left + box.columns for box in boxes) == pytest.approx(right, abs=8)
    assert all(top - 10 <= box.top and box.top + box.rows <= bottom + 10 for box in boxes)


@pytest.mark.usefixtures("_extra")
def test_a_box_never_leaves_the_frame() -> None:
    pixels, _ = write(TEXT, size=40)
    boxes = find_text(np.roll(pixels, -205, axis=0))
    assert boxes
    for box in boxes:
        assert min(box.top, box.left) >= 0
        assert box.top + box.rows <= 300
        assert box.left + box.columns <= 400


@pytest.mark.usefixtures("_extra")
def test_a_picture_without_text_has_none() -> None:
    smooth = np.linspace(0, 1, 200, dtype=np.float32) * np.ones((200, 1), np.float32)
    assert find_text(smooth) == ()


@pytest.mark.usefixtures("_extra")
@pytest.mark.parametrize(("text", "marked"), [(TEXT, True), ("R", False)])
def test_the_gate_marks_text_but_no_side_marker(text: str, marked: bool) -> None:
    gate = make_gate({Check.BURNED_IN_TEXT: Policy.FLAG})
    flags = assess(make_frame(pixels=write(text)[0]), gate)
    assert (Check.BURNED_IN_TEXT in {flag.check for flag in flags}) == marked
    assert not any(TEXT in flag.message for flag in flags)


def test_a_box_keeps_no_text() -> None:
    assert set(TextBox.__slots__) == {"top", "left", "rows", "columns", "characters"}


@pytest.mark.usefixtures("_extra")
@pytest.mark.parametrize("is_tall", [False, True])
def test_a_narrow_frame_is_read_without_enlarging_it_many_times(is_tall: bool) -> None:
    """A frame of 40 to 1000 pixels was enlarged to 736 x 18400, for which there was no memory."""
    pixels, (left, top, _, _) = write(TEXT, shape=(300, 1000))
    pixels = pixels[top - 10 : top + 30]
    (box,) = find_text(pixels)
    assert box.left == pytest.approx(left, abs=8)
    assert box.top + box.rows <= 40
    if is_tall:
        assert find_text(np.full((1000, 40), 0.5, np.float32)) == ()


def test_a_lack_of_memory_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1110134784")

    monkeypatch.setattr(ocr, "is_installed", lambda: True)
    monkeypatch.setattr(ocr, "_reader", lambda: fail)
    with pytest.raises(MemoryError):
        find_text(np.zeros((40, 40), np.float32))
