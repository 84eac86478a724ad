"""Conformal bands: coverage of either class, sets that are never empty, and labels that have too few examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.conformal import conformal_bands, conformal_set, coverage
from pipeline.evaluate.operating_point import choose_operating_points
from pipeline.predictions import ConformalBand, OperatingPoint


def point(threshold: float, label: str = "A") -> OperatingPoint:
    return OperatingPoint(label, threshold, "youden", 0.9, 0.9)


def column(positives: list[float], negatives: list[float]) -> tuple[np.ndarray, np.ndarray]:
    chances = np.array([*positives, *negatives])[:, None]
    return chances, np.repeat([1.0, 0.0], [len(positives), len(negatives)])[:, None]


chance = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))


@given(st.lists(chance, min_size=9, max_size=40), st.lists(chance, min_size=9, max_size=40), chance, st.floats(0.1, 0.6))
def test_no_set_is_empty_and_one_side_agrees_with_the_operating_point(
    positives: list[float], negatives: list[float], probability: float, alpha: float
) -> None:
    chances, truth = column(positives, negatives)
    points = choose_operating_points(chances, truth, ["A"], "youden")
    (band,) = conformal_bands(chances, truth, points, alpha)
    for value in (probability, *positives, *negatives, points[0].threshold, band.present_from, band.absent_below):
        found = conformal_set(value, band)
        positive = value >= points[0].threshold
        assert ("present" if positive else "absent") in found


@given(st.lists(chance, min_size=10, max_size=60), st.lists(chance, min_size=10, max_size=60), st.floats(0.1, 0.6))
def test_leaving_one_out_the_truth_is_missed_at_most_alpha_often(
    positives: list[float], negatives: list[float], alpha: float
) -> None:
    """The law behind the coverage: of n + 1 exchangeable examples at most alpha (n + 1) lie outside the band of the others."""
    missed = 0
    for number in range(len(positives)):
        rest = positives[:number] + positives[number + 1 :]
        chances, truth = column(rest, negatives)
        (band,) = conformal_bands(chances, truth, [point(0.5)], alpha)
        missed += "present" not in conformal_set(positives[number], band)
    assert missed <= alpha * len(positives) + 1e-6
    missed = 0
    for number in range(len(negatives)):
        chances, truth = column(positives, negatives[:number] + negatives[number + 1 :])
        (band,) = conformal_bands(chances, truth, [point(0.5)], alpha)
        missed += "absent" not in conformal_set(negatives[number], band)
    assert missed <= alpha * len(negatives) + 1e-6


def test_coverage_holds_on_new_frames_and_is_not_far_above() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        # classes that overlap so much that the quantiles, and not the threshold, decide
        chances, truth = column(list(rng.beta(3, 2, 60)), list(rng.beta(2, 3, 60)))
        bands = conformal_bands(chances, truth, [point(0.5)], 0.1)
        new = column(list(rng.beta(3, 2, 200)), list(rng.beta(2, 3, 200)))
        figures = coverage(*new, ["A"], bands)["A"]
        found.append((figures["covered_positives"], figures["covered_negatives"], figures["uncertain"]))
    positives, negatives, uncertain = np.mean(found, axis=0)
    assert 0.895 < positives < 0.93
    assert 0.895 < negatives < 0.93
    assert 0.3 < uncertain < 0.9


def test_edges_are_the_order_statistics_moved_to_the_next_value() -> None:
    chances, truth = column([0.2, 0.4, 0.6, *[0.9] * 17], [0.8, 0.7, 0.3, *[0.1] * 17])
    (band,) = conformal_bands(chances, truth, [point(0.5)], 0.1)  # floor(0.1 * 21) = 2: the second of either side
    assert band.present_from == pytest.approx(0.35)
    assert band.absent_below == pytest.approx(0.75)


def test_a_separation_leaves_the_threshold_alone() -> None:
    chances, truth = column([0.9] * 20, [0.1] * 20)
    (band,) = conformal_bands(chances, truth, [point(0.5)], 0.1)
    assert (band.present_from, band.absent_below) == (0.5, 0.5)


def test_too_few_or_unknown_examples_give_no_band() -> None:
    enough, few = ([0.9] * 9, [0.1] * 9), ([0.9] * 8, [0.1] * 9)
    assert [band.label for band in conformal_bands(*column(*enough), [point(0.5)], 0.1)] == ["A"]
    assert conformal_bands(*column(*few), [point(0.5)], 0.1) == ()
    chances, truth = column(*enough)
    truth[0] = np.nan
    assert conformal_bands(chances, truth, [point(0.5)], 0.1) == ()
    assert conformal_set(0.7, None) == ()


def test_coverage_counts_known_frames_by_hand() -> None:
    chances = np.array([[0.9], [0.5], [0.1], [0.2], [0.55], [0.5]])
    truth = np.array([[1.0], [1.0], [1.0], [0.0], [0.0], [np.nan]])
    band = ConformalBand("A", 0.4, 0.6)
    figures = coverage(chances, truth, ["A"], [band])
    assert figures == {"A": {"covered_positives": 2 / 3, "covered_negatives": 1.0, "uncertain": 0.4}}
    assert coverage(chances, truth * 0, ["A"], [band])["A"]["covered_positives"] is None
    assert coverage(chances, truth, ["B"], [band]) == {}
