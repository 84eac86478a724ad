import csv
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.imaging.preprocess import mask_white_borders, white_borders
from pipeline.imaging.sources import StudyFile, read_frames


def make_bscan(rows: int = 240, columns: int = 320, seed: int = 0) -> np.ndarray:
    """Speckle with a saturated layer that runs from the left edge to the right one."""
    rng = np.random.default_rng(seed)
    scan = rng.gamma(2, 0.05, (rows, columns)).clip(0, 0.8).astype(np.float32)
    scan[rows // 2 : rows // 2 + 8] = 1
    return scan


def rotated(scan: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The scan turned with white filled in, through JPEG; and where white was filled in."""
    image = Image.fromarray((scan * 255).astype(np.uint8))
    filled = np.asarray(Image.new("L", image.size, 0).rotate(degrees, fillcolor=255)) > 0
    buffer = io.BytesIO()
    image.rotate(degrees, fillcolor=255).save(buffer, "JPEG", quality=90)
    return np.asarray(Image.open(buffer), np.float32) / 255, filled


@settings(deadline=None, max_examples=25)
@given(st.floats(1.5, 12), st.booleans(), st.integers(0, 100))
def test_wedges_of_a_rotation_are_found_and_tissue_is_not(degrees: float, clockwise: bool, seed: int) -> None:
    pixels, filled = rotated(make_bscan(seed=seed), -degrees if clockwise else degrees)
    masked = mask_white_borders(pixels)
    assert (masked[filled] == 0).mean() > 0.97
    changed = (masked != pixels) & ~filled
    assert changed.mean() < 0.02
    assert (masked >= 0.95).sum() > 0.9 * (pixels[~filled] >= 0.95).sum() - filled.sum() * 0.02


def test_a_frame_without_wedges_is_the_same_array() -> None:
    scan = make_bscan()
    assert mask_white_borders(scan) is scan
    assert not white_borders(scan).any()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("depth", [1, 2, 30])
def test_white_sides_of_any_depth_are_found(turns: int, depth: int) -> None:
    scan = make_bscan()
    scan[:depth] = 1
    turned = np.rot90(scan, turns)
    masked = np.rot90(mask_white_borders(turned), -turns)
    assert not masked[:depth].any()
    np.testing.assert_array_equal(masked[depth + 2 :], scan[depth + 2 :])


def test_white_inside_and_short_white_at_the_edge_are_left_alone() -> None:
    scan = make_bscan()
    scan[40:90, 100:200] = 1
    scan[:6, 50:64] = 1
    assert mask_white_borders(scan) is scan


def test_bright_tissue_that_is_not_fully_white_is_left_alone() -> None:
    scan = make_bscan()
    scan[60:140, :50] = 0.93
    assert mask_white_borders(scan) is scan


def test_the_input_is_not_changed_and_masking_twice_changes_nothing_more() -> None:
    pixels, _ = rotated(make_bscan(), 5)
    before = pixels.copy()
    once = mask_white_borders(pixels)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(mask_white_borders(once), once)


def test_white_frames_and_tiny_frames() -> None:
    assert not mask_white_borders(np.ones((20, 30), np.float32)).any()
    assert mask_white_borders(np.zeros((1, 1), np.float32)).shape == (1, 1)


def test_real_bscans_lose_their_wedges(shared_data: Path) -> None:
    folder = shared_data / "oct-kermany"
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::8]
    masked = Counter()
    for row in rows:
        (frame,) = read_frames(StudyFile(folder / row["file"], row["file"]))
        without = mask_white_borders(frame.pixels)
        masked[without is not frame.pixels] += 1
        for edge in (without[0], without[-1], without[:, 0], without[:, -1]):
            assert (edge >= 0.95).mean() < 0.05, row["file"]
        assert (without != frame.pixels).mean() < 0.3, row["file"]
    assert masked[True] > masked[False] > 0
