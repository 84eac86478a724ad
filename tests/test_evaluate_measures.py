import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pipeline.evaluate.metrics import measure, net_benefit
from pipeline.predictions import State

THRESHOLD = 0.5


def at_fixed(targets, chances, weights, wanted):
    """The best rate of scikit-learn's curve where the other rate is at least 0.95."""
    false, true, _ = sk.roc_curve(targets, chances, sample_weight=weights, drop_intermediate=False)
    rates = {"sensitivity": true, "specificity": 1 - false}
    other = rates.pop("sensitivity" if wanted == "specificity" else "specificity")
    return np.max(rates[wanted][other >= 0.95 - 1e-9])


GOLDEN = {
    "auroc": lambda t, p, w: sk.roc_auc_score(t, p, sample_weight=w),
    "average_precision": lambda t, p, w: sk.average_precision_score(t, p, sample_weight=w),
    "sensitivity_at_specificity_95": lambda t, p, w: at_fixed(t, p, w, "sensitivity"),
    "specificity_at_sensitivity_95": lambda t, p, w: at_fixed(t, p, w, "specificity"),
    "sensitivity": lambda t, p, w: sk.recall_score(t, p >= THRESHOLD, sample_weight=w),
    "specificity": lambda t, p, w: sk.recall_score(t, p >= THRESHOLD, sample_weight=w, pos_label=0),
    "ppv": lambda t, p, w: sk.precision_score(t, p >= THRESHOLD, sample_weight=w, zero_division=np.nan),
    "npv": lambda t, p, w: sk.precision_score(t, p >= THRESHOLD, sample_weight=w, pos_label=0, zero_division=np.nan),
    "balanced_accuracy": lambda t, p, w: sk.balanced_accuracy_score(t, p >= THRESHOLD, sample_weight=w),
    "f1": lambda t, p, w: sk.f1_score(t, p >= THRESHOLD, sample_weight=w),
    "mcc": lambda t, p, w: sk.matthews_corrcoef(t, p >= THRESHOLD, sample_weight=w),
    "uncertain": lambda t, p, w: 0,
    "prevalence": lambda t, p, w: np.average(t, weights=w),
    "brier": lambda t, p, w: sk.brier_score_loss(t, p, sample_weight=w),
}


FIXED = {"sensitivity_at_specificity_95", "specificity_at_sensitivity_95"}


@st.composite
def frames(draw):
    """Probabilities with ties, targets of both classes, and whole weights, all from one seed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(4, 60))
    targets = np.concatenate([[0, 1], rng.integers(0, 2, n - 2)]).astype(np.float64)
    chances = np.clip(rng.integers(0, 11, n) / 10 * 0.7 + targets * 0.3 * rng.random(), 0, 1)
    return chances, targets, rng.integers(0, 4, n).astype(np.float64)


def figures(chances, targets, weights):
    return measure(chances, targets, decided(chances >= THRESHOLD), weights)


def decided(positive):
    return np.where(positive, State.POSITIVE, State.NEGATIVE).astype(object)


def test_every_metric_has_its_oracle():
    assert set(figures(np.array([0.2]), np.array([1.0]), np.ones(1))) == set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
@settings(max_examples=60)
@given(sample=frames())
def test_each_weighted_metric_is_scikit_learns(name, sample):
    chances, targets, weights = sample
    weights[:2] += 1
    found = float(figures(chances, targets, weights)[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = GOLDEN[name](targets, chances, weights)
    if np.isnan(expected) or (name == "mcc" and len(np.unique((chances >= THRESHOLD)[weights > 0])) == 1):
        assert np.isnan(found)
    else:
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["sensitivity", "specificity", "balanced_accuracy", "f1", "mcc"])
@given(sample=frames(), seed=st.integers(0, 100))
def test_an_uncertain_frame_counts_as_an_error(name, sample, seed):
    chances, targets, weights = sample
    weights[:2] += 1
    unsure = np.random.default_rng(seed).random(len(chances)) < 0.3
    states = decided(chances >= THRESHOLD)
    states[unsure] = State.UNCERTAIN
    worst = measure(chances, targets, decided(np.where(unsure, targets == 0, chances >= THRESHOLD)), weights)
    found = measure(chances, targets, states, weights)
    np.testing.assert_allclose(found[name], worst[name], atol=1e-12)
    assert found["uncertain"] == pytest.approx(np.average(unsure, weights=weights))


@given(sample=frames())
def test_a_weight_counts_like_so_many_rows(sample):
    chances, targets, weights = sample
    times = weights.astype(int)
    repeated = figures(np.repeat(chances, times), np.repeat(targets, times), np.ones(times.sum()))
    for name, figure in figures(chances, targets, weights).items():
        np.testing.assert_allclose(figure, repeated[name], atol=1e-12, err_msg=name)


@given(sample=frames(), factor=st.floats(0.1, 10))
def test_a_common_factor_of_the_weights_changes_nothing(sample, factor):
    chances, targets, weights = sample
    scaled = figures(chances, targets, weights * factor)
    for name, figure in figures(chances, targets, weights).items():
        np.testing.assert_allclose(figure, scaled[name], atol=1e-9, err_msg=name)


@given(sample=frames())
def test_rows_of_weights_are_taken_one_by_one(sample):
    chances, targets, weights = sample
    stacked = np.stack([np.ones_like(weights), weights, np.zeros_like(weights)])
    together = figures(chances, targets, stacked)
    for row, alone in enumerate(stacked):
        for name, figure in figures(chances, targets, alone).items():
            np.testing.assert_allclose(together[name][row], figure, atol=1e-12, err_msg=name)


@given(sample=frames(), seed=st.integers(0, 100))
def test_the_order_of_the_frames_changes_nothing(sample, seed):
    chances, targets, weights = sample
    order = np.random.default_rng(seed).permutation(len(chances))
    shuffled = figures(chances[order], targets[order], weights[order])
    for name, figure in figures(chances, targets, weights).items():
        np.testing.assert_allclose(figure, shuffled[name], atol=1e-12, err_msg=name)


@given(sample=frames())
def test_ranking_metrics_see_only_the_ranking(sample):
    chances, targets, weights = sample
    found, bent = figures(chances, targets, weights), figures(chances**3, targets, weights)
    np.testing.assert_allclose(found["auroc"], bent["auroc"])
    np.testing.assert_allclose(found["average_precision"], bent["average_precision"])


def test_swapping_the_classes_mirrors_the_area():
    rng = np.random.default_rng(0)
    chances, targets = rng.integers(0, 9, 50) / 10, rng.integers(0, 2, 50).astype(np.float64)
    found, swapped = figures(chances, targets, np.ones(50)), figures(chances, 1 - targets, np.ones(50))
    assert found["auroc"] == pytest.approx(1 - swapped["auroc"])


@pytest.mark.parametrize(
    ("target", "undefined"),
    [
        (0.0, FIXED | {"auroc", "average_precision", "sensitivity", "balanced_accuracy", "f1", "mcc"}),
        (1.0, FIXED | {"auroc", "specificity", "balanced_accuracy", "mcc"}),
    ],
)
def test_one_class_leaves_undefined_what_needs_the_other(target, undefined):
    found = figures(np.array([0.2, 0.4, 0.7]), np.full(3, target), np.ones(3))
    assert {name for name, figure in found.items() if np.isnan(figure)} == undefined


def test_without_frames_nothing_is_defined():
    assert all(np.isnan(figure) for figure in figures(np.array([]), np.array([]), np.array([])).values())


def test_no_positive_decision_is_a_sensitivity_of_zero_and_no_correlation():
    found = figures(np.array([0.1, 0.2, 0.3]), np.array([0.0, 1.0, 1.0]), np.ones(3))
    assert (found["sensitivity"], found["specificity"], found["f1"]) == (0, 1, 0)
    assert np.isnan(found["mcc"])


def test_net_benefit_is_counted_by_hand():
    chances, targets = np.array([0.9, 0.6, 0.4, 0.1]), np.array([1.0, 0.0, 1.0, 0.0])
    benefit, of_all = net_benefit(chances, targets, np.array([0.2, 0.5, 0.95]))
    assert benefit == pytest.approx([2 / 4 - 1 / 4 * 0.25, 1 / 4 - 1 / 4, 0])
    assert of_all == pytest.approx([0.5 - 0.5 * 0.25, 0.5 - 0.5, 0.5 - 0.5 * 19])
