import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import recall_score, roc_curve

from benchmarks.coverage import promises
from pipeline.errors import InputError
from pipeline.evaluate.decisions import choose_operating_points, expected_rates, with_figures
from pipeline.predictions import Task
from tests.builders import make_sample

CHANCES = st.lists(st.integers(0, 20).map(lambda step: step / 20), min_size=2, max_size=40)


def choose(chances, targets, criterion="youden"):
    return choose_operating_points(np.array(chances)[:, None], np.array(targets, float)[:, None], ("A",), criterion)[0]


def with_both_classes(chances, data):
    targets = data.draw(st.lists(st.integers(0, 1), min_size=len(chances) - 2, max_size=len(chances) - 2))
    return np.array(chances), np.array([0, 1, *targets])


@given(CHANCES, st.data())
def test_youden_is_the_best_point_of_scikit_learns_curve(chances, data):
    chances, targets = with_both_classes(chances, data)
    point = choose(chances, targets)
    false_rate, true_rate, _ = roc_curve(targets, chances, drop_intermediate=False)
    assert point.sensitivity + point.specificity - 1 == pytest.approx(np.max(true_rate - false_rate))


@given(CHANCES, st.data(), st.sampled_from(["youden", "sensitivity>=0.5", "sensitivity>=0.95"]))
def test_what_is_promised_is_what_the_threshold_gives(chances, data, criterion):
    chances, targets = with_both_classes(chances, data)
    point = choose(chances, targets, criterion)
    positive = chances >= point.threshold
    assert point.sensitivity == pytest.approx(recall_score(targets, positive))
    assert point.specificity == pytest.approx(recall_score(targets, positive, pos_label=0))
    assert 0 <= point.threshold <= 1
    assert point.criterion == criterion


@given(CHANCES, st.data(), st.sampled_from([0.5, 0.8, 0.95]))
def test_wanted_sensitivity_is_reached_with_the_best_specificity(chances, data, wanted):
    chances, targets = with_both_classes(chances, data)
    point = choose(chances, targets, f"sensitivity>={wanted}")
    assert point.sensitivity >= wanted
    false_rate, true_rate, _ = roc_curve(targets, chances, drop_intermediate=False)
    assert point.specificity == pytest.approx(1 - false_rate[true_rate >= wanted].min())


def test_wanted_sensitivity_is_exact_where_floating_point_is_not():
    assert 0.55 * 100 > 55
    point = choose(np.linspace(1, 0.01, 200), [1, 0] * 100, "sensitivity>=0.55")
    assert point.sensitivity == pytest.approx(0.55)


@given(CHANCES, st.data())
def test_the_threshold_lies_midway_between_neighbours(chances, data):
    chances, targets = with_both_classes(chances, data)
    threshold = choose(chances, targets).threshold
    above = chances[chances >= threshold].min()
    below = max([0.0, *chances[chances < threshold]])
    assert threshold == pytest.approx((above + below) / 2)


def test_neighbours_without_a_number_between_them():
    upper = np.nextafter(0.5, 1)
    point = choose([0.5, upper], [0, 1])
    assert point.threshold == upper
    assert (point.sensitivity, point.specificity) == (1, 1)


def test_of_equal_points_the_more_sensitive_one_is_taken():
    assert choose([0.9, 0.7, 0.5, 0.3], [1, 0, 1, 0]).sensitivity == 1


def test_a_ranking_upside_down_calls_everything_positive():
    point = choose([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1])
    assert (point.sensitivity, point.specificity) == (1, 0)
    assert point.threshold == pytest.approx(0.05)


def test_each_label_has_its_own_point_and_unknown_targets_are_left_out():
    chances = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.9], [0.2, 0.6]])
    targets = np.array([[1, 0], [1, 0], [np.nan, 1], [0, np.nan]])
    first, second = choose_operating_points(chances, targets, ("A", "B"), "youden")
    assert (first.label, first.threshold) == ("A", pytest.approx(0.4))
    assert (second.label, second.threshold) == ("B", pytest.approx(0.65))


def test_labels_with_one_class_are_all_named():
    targets = np.array([[1, 0, np.nan], [1, 1, np.nan]])
    expected = "A has no negative example; C has no positive example; C has no negative example. Give the split more patients"
    with pytest.raises(InputError, match=expected):
        choose_operating_points(np.full((2, 3), 0.5), targets, ("A", "B", "C"), "youden")


@pytest.mark.parametrize("criterion", ["f1", "sensitivity>=95", "sensitivity>=0.95 "])
def test_unknown_criterion(criterion):
    expected = f"The criterion must be youden or sensitivity>=0.NN, for example sensitivity>=0.95. Got {criterion!r}."
    with pytest.raises(InputError, match=re.escape(expected)):
        choose([0.2, 0.8], [0, 1], criterion)


@pytest.mark.parametrize("criterion", ["youden", "sensitivity>=0.8"])
def test_expected_rates_are_those_of_leaving_each_patient_out(criterion):
    rng = np.random.default_rng(0)
    groups = np.repeat([f"p{number}" for number in range(12)], rng.integers(1, 5, 12))
    targets = rng.integers(0, 2, len(groups)).astype(float)
    chances = np.round(expit(rng.normal(size=len(groups)) + targets), 2)
    hits = np.empty(len(groups), bool)
    for one in np.unique(groups):
        rest = groups != one
        hits[~rest] = chances[~rest] >= choose(chances[rest], targets[rest], criterion).threshold
    found, spared = expected_rates(chances, targets, groups, criterion)
    assert found.value == pytest.approx(hits[targets == 1].mean())
    assert spared.value == pytest.approx(1 - hits[targets == 0].mean())
    assert found.low < found.value < found.high


def test_of_a_threshold_that_was_chosen_elsewhere_what_it_does_here_is_expected():
    sample = make_sample(task=Task.MULTILABEL)
    points = with_figures(sample.operating_points, sample, are_chosen=False)
    for column, point in enumerate(points):
        chances, truth = sample.probabilities[:, column], sample.targets[:, column]
        found = point.expected_sensitivity, point.expected_specificity
        assert found[0].value == pytest.approx(recall_score(truth, chances >= 0.4)) == point.sensitivity
        assert found[1].value == pytest.approx(recall_score(truth, chances >= 0.4, pos_label=0)) == point.specificity
        assert found[1].low < found[1].value < found[1].high
    assert points != with_figures(sample.operating_points, sample)


def test_a_label_that_is_not_known_keeps_its_figures():
    targets = make_sample().targets.copy()
    targets[:, 1], targets[targets[:, 2] == 0, 2] = np.nan, np.nan
    sample = make_sample(task=Task.MULTILABEL, targets=targets)
    first, *others = with_figures(sample.operating_points, sample)
    assert first != sample.operating_points[0]
    assert tuple(others) == sample.operating_points[1:]


def test_without_a_second_patient_with_the_finding_nothing_is_expected():
    chances, targets = np.array([0.9, 0.8, 0.2, 0.1]), np.array([1.0, 1.0, 0.0, 0.0])
    found, spared = expected_rates(chances, targets, np.array(["p", "p", "q", "r"]), "youden")
    assert (found.value, found.low) == (None, None)
    assert spared.value is not None


def test_three_patients_promise_more_than_is_kept_and_what_is_expected_is_kept():
    """In simulated patients, as `benchmarks/coverage.py` prints it."""
    promised, kept, expected, held = promises(3, 1, 0.0, "sensitivity>=0.95", 150)
    assert promised == 1
    assert kept < 0.85
    assert expected == pytest.approx(kept, abs=0.08)
    assert held > 0.9
