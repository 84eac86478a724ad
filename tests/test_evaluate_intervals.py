"""Intervals in closed form against the formulas of their papers, and a part of the simulation in `benchmarks/coverage.py`."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from benchmarks.coverage import coverage
from pipeline.evaluate.intervals import auroc_limits, clustered_auroc, proportion_limits


@given(st.integers(2, 60), st.data())
def test_with_one_frame_a_patient_a_proportion_has_the_exact_interval_of_scipy(frames, data):
    hits = data.draw(st.integers(0, frames))
    found = proportion_limits(np.arange(frames) < hits, np.arange(frames))
    assert found == pytest.approx(tuple(binomtest(hits, frames).proportion_ci(0.95, "exact")))


def test_three_patients_without_a_miss_have_the_interval_of_three_hits_however_many_frames():
    groups = np.repeat([0, 1, 2], 30)
    assert proportion_limits(np.ones(90), groups) == pytest.approx((0.025 ** (1 / 3), 1))
    assert proportion_limits(np.zeros(90), groups) == pytest.approx((0, 1 - 0.025 ** (1 / 3)))
    assert proportion_limits(np.ones(30), np.zeros(30)) is None


def test_a_patient_whose_frames_are_alike_counts_once():
    rng = np.random.default_rng(0)
    hits = rng.random(40) < 0.8
    alone = proportion_limits(hits, np.arange(40))
    assert proportion_limits(np.repeat(hits, 10), np.repeat(np.arange(40), 10)) == pytest.approx(alone, abs=1e-9)


def test_frames_that_are_independent_count_nearly_one_by_one():
    rng = np.random.default_rng(1)
    hits = rng.random(6000) < 0.7
    low, high = proportion_limits(hits, np.repeat(np.arange(600), 10))
    exact = binomtest(int(hits.sum()), 6000).proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx(tuple(exact), abs=0.005)


def test_weights_that_make_patients_alike_give_the_interval_of_their_means():
    rng = np.random.default_rng(2)
    sizes, hits = rng.integers(1, 20, 25), rng.random(25) < 0.7
    groups = np.repeat(np.arange(25), sizes)
    found = proportion_limits(hits[groups], groups, 1 / sizes[groups])
    assert found == pytest.approx(proportion_limits(hits, np.arange(25)))


def delong(scores, targets):
    """The variance of DeLong, DeLong and Clarke-Pearson (1988), pair by pair."""
    positives, negatives = scores[targets == 1], scores[targets == 0]
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    return wins.mean(), wins.mean(1).var(ddof=1) / len(positives) + wins.mean(0).var(ddof=1) / len(negatives)


def obuchowski(scores, targets, groups):
    """The variance of Obuchowski (1997), equations 3 to 5, with sums over clusters written out."""
    rows = [np.flatnonzero(groups == one) for one in np.unique(groups)]
    x, y = scores[targets == 1], scores[targets == 0]
    area = np.mean([np.mean((one > y) + 0.5 * (one == y)) for one in x])
    s10 = s01 = s11 = 0.0
    with_label = without = 0
    for own in rows:
        xs, ys = scores[own][targets[own] == 1], scores[own][targets[own] == 0]
        v10 = sum(np.mean((one > y) + 0.5 * (one == y)) for one in xs) - len(xs) * area
        v01 = sum(np.mean((x > one) + 0.5 * (x == one)) for one in ys) - len(ys) * area
        with_label, without = with_label + (len(xs) > 0), without + (len(ys) > 0)
        s10, s01, s11 = s10 + v10**2, s01 + v01**2, s11 + v10 * v01
    m, n, clusters = len(x), len(y), len(rows)
    s10 *= with_label / ((with_label - 1) * m)
    s01 *= without / ((without - 1) * n)
    return area, s10 / m + s01 / n + 2 * s11 * clusters / (clusters - 1) / (m * n)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.booleans())
def test_areas_have_the_variance_of_obuchowski_and_of_delong_with_single_frames(seed, has_single_frames):
    rng = np.random.default_rng(seed)
    groups = np.arange(80) if has_single_frames else rng.integers(0, 12, 80)
    targets = rng.integers(0, 2, 80).astype(float)
    scores = np.round(rng.normal(size=80) + targets + rng.normal(size=80)[groups], 1)
    found = clustered_auroc(scores, targets, groups)
    assert found == pytest.approx(obuchowski(scores, targets, groups))
    if has_single_frames:
        assert found == pytest.approx(delong(scores, targets))


def test_an_area_of_one_has_a_lower_limit_that_rises_with_the_patients():
    def limits(patients):
        groups = np.repeat(np.arange(2 * patients), 7)
        return auroc_limits(np.repeat([0.9, 0.1], 7 * patients), np.repeat([1.0, 0.0], 7 * patients), groups)

    found = [limits(patients) for patients in (2, 3, 10, 50)]
    assert [low for low, _ in found] == pytest.approx([0.025 ** (1 / patients) for patients in (2, 3, 10, 50)])
    assert {high for _, high in found} == {1.0}
    assert limits(1) is None


def test_an_area_of_frames_that_are_all_alike_has_no_interval():
    assert auroc_limits(np.full(20, 0.5), np.repeat([1.0, 0.0], 10), np.arange(20)) is None


def test_intervals_hold_their_figure_and_narrow_with_patients():
    widths = []
    for patients in (5, 20, 80, 320):
        rng = np.random.default_rng(3)
        groups = np.repeat(np.arange(2 * patients), 5)
        targets = np.repeat([1.0, 0.0], 5 * patients)
        scores = rng.normal(size=len(groups)) + targets + rng.normal(size=2 * patients)[groups]
        (low, high), (area, _) = auroc_limits(scores, targets, groups), clustered_auroc(scores, targets, groups)
        assert low < area < high
        widths.append(high - low)
    assert all(one > other for one, other in pairwise(widths))


@pytest.mark.parametrize("method", ["sensitivity", "AUROC"])
@pytest.mark.parametrize("positives", [3, 10, 20])
def test_intervals_hold_the_truth_as_often_as_they_say(method, positives):
    """With 400 repetitions of a coverage of 0.95 fewer than 0.92 happen once in 300; what resampling gives lies far below."""
    found = [
        coverage(method, positives, most, correlation, 0.95, 400)[0] for most, correlation in ((1, 0.0), (30, 0.5), (30, 0.9))
    ]
    assert min(found) >= 0.92, found


def test_resampled_patients_would_not_hold_the_truth():
    """Otherwise the test above would show nothing."""
    assert coverage("sensitivity, resampled", 3, 30, 0.5, 0.95, 100)[0] < 0.8
    assert coverage("AUROC, resampled", 5, 30, 0.9, 0.95, 100)[0] < 0.9


def test_weights_whose_sum_is_not_exact_leave_a_perfect_proportion_perfect():
    groups = np.repeat(np.arange(30), 3)
    found = proportion_limits(np.ones(90), groups, np.full(90, 1 / 3) * np.repeat(np.linspace(1, 1.0001, 30), 3))
    assert found == pytest.approx((0.025 ** (1 / 30), 1), abs=1e-6)
