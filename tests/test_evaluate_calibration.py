import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit, log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from pipeline.errors import InputError
from pipeline.evaluate.calibration import (
    TEMPERATURE_RANGE,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    fit_temperatures,
    probabilities,
)
from pipeline.predictions import Activation, Calibration

LOGITS = hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(2, 5)), elements=st.floats(-60, 60, width=32))
TEMPERATURES = st.floats(*TEMPERATURE_RANGE)


def drawn(activation: Activation, temperature: float, n: int = 4000, labels: int = 3, seed: int = 0):
    """Logits, and targets that follow the probabilities at `temperature` exactly."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(n, labels))
    chances = probabilities(logits, activation, temperature)
    if activation is Activation.SIGMOID:
        return logits, (rng.random((n, labels)) < chances).astype(np.float64)
    return logits, np.eye(labels)[[rng.choice(labels, p=row) for row in chances]]


@given(LOGITS, TEMPERATURES)
def test_softmax_is_scipys_and_sums_to_one(logits, temperature):
    found = probabilities(logits, Activation.SOFTMAX, temperature)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, softmax(logits.astype(np.float64) / temperature, axis=1), rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(found.sum(axis=1), 1)


@given(LOGITS, TEMPERATURES)
def test_sigmoid_is_scipys(logits, temperature):
    found = probabilities(logits, Activation.SIGMOID, temperature)
    np.testing.assert_allclose(found, expit(logits.astype(np.float64) / temperature), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("activation", Activation)
def test_huge_logits_stay_finite(activation):
    found = probabilities(np.array([[1e30, -1e30], [-800.0, 800.0]]), activation, 0.05)
    np.testing.assert_array_equal(found, [[1, 0], [0, 1]])


@given(LOGITS, TEMPERATURES)
def test_calibration_keeps_the_most_probable_label(logits, temperature):
    before, after = (probabilities(logits, Activation.SOFTMAX, t) for t in (1.0, temperature))
    chosen = logits.argmax(axis=1, keepdims=True)
    assert np.all(np.take_along_axis(after, chosen, axis=1) == after.max(axis=1, keepdims=True))
    assert np.all(np.take_along_axis(before, chosen, axis=1) == before.max(axis=1, keepdims=True))


@given(st.integers(0, 1000), st.floats(0.2, 5))
def test_calibration_keeps_the_ranking(seed, temperature):
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(size=(60, 2)), np.tile([0, 1], 30)
    before = probabilities(logits, Activation.SIGMOID, 1.0)[:, 0]
    after = probabilities(logits, Activation.SIGMOID, temperature)[:, 0]
    assert roc_auc_score(targets, after) == roc_auc_score(targets, before)


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_targets_is_found_again(activation, temperature):
    assert fit_temperature(*drawn(activation, temperature), activation) == pytest.approx(temperature, rel=0.06)


def test_the_temperature_is_the_most_likely_one():
    logits, targets = drawn(Activation.SOFTMAX, 1.7, n=1500)
    candidates = np.geomspace(1, 3, 501)
    losses = [-(targets * log_softmax(logits / t, axis=1)).sum(axis=1).mean() for t in candidates]
    best = candidates[int(np.argmin(losses))]
    assert fit_temperature(logits, targets, Activation.SOFTMAX) == pytest.approx(best, rel=5e-3)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.5, 2))
def test_scaled_logits_scale_the_temperature(seed, factor):
    logits, targets = drawn(Activation.SIGMOID, 1.0, n=300, seed=seed)
    plain = fit_temperature(logits, targets, Activation.SIGMOID)
    assert fit_temperature(logits * factor, targets, Activation.SIGMOID) == pytest.approx(plain * factor, rel=1e-3)


@pytest.mark.parametrize("activation", Activation)
def test_targets_that_are_not_known_count_for_nothing(activation):
    logits, targets = drawn(activation, 1.5, n=300)
    more_logits = np.vstack([logits, np.full((50, 3), 9.0)])
    more_targets = np.vstack([targets, np.full((50, 3), np.nan)])
    expected = fit_temperature(logits, targets, activation)
    assert fit_temperature(more_logits, more_targets, activation) == pytest.approx(expected, rel=1e-5)


def test_a_single_unknown_target_is_left_out_under_sigmoid():
    logits, targets = drawn(Activation.SIGMOID, 1.5, n=300)
    hidden = targets.copy()
    hidden[:200, 0] = np.nan
    wrong = np.where(np.isnan(hidden), 1 - targets, hidden)
    found = fit_temperature(logits, hidden, Activation.SIGMOID)
    assert found == pytest.approx(1.5, rel=0.25)
    assert fit_temperature(logits, wrong, Activation.SIGMOID) > 1.5 * found


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("frames", [20, 2000])
def test_perfect_separation_gives_no_more_certainty_than_the_frames_support(activation, frames):
    targets = np.eye(2)[np.arange(frames) % 2]
    logits = 8.0 * targets - 4 + np.random.default_rng(0).normal(scale=0.5, size=targets.shape)
    temperature = fit_temperature(logits, targets, activation)
    doubt = 1 - probabilities(logits, activation, temperature)[targets == 1].mean()
    assert TEMPERATURE_RANGE[0] < temperature < TEMPERATURE_RANGE[1]
    assert doubt == pytest.approx(0.5 / (frames + 1), rel=0.5)


def test_labels_that_are_independent_get_a_temperature_each():
    """Two labels, one far too certain and one far too doubtful: a shared temperature leaves both wrong."""
    rng = np.random.default_rng(3)
    true = rng.normal(0, 2, (6000, 2))
    targets = (rng.random(true.shape) < expit(true)).astype(float)
    logits = true * [4.0, 0.5]
    fit, new = slice(0, 3000), slice(3000, None)
    own = fit_temperatures(logits[fit], targets[fit], Activation.SIGMOID)
    assert own.temperatures == pytest.approx((4.0, 0.5), rel=0.1)
    assert own.offsets == (0, 0)
    shared = Calibration.of(fit_temperature(logits[fit], targets[fit], Activation.SIGMOID), 2)

    def errors(calibration):
        chances = probabilities(logits[new], Activation.SIGMOID, calibration.temperatures, calibration.offsets)
        return [expected_calibration_error(*columns) for columns in zip(chances.T, targets[new].T, strict=True)]

    assert max(errors(own)) < 0.025
    assert min(errors(shared)) > 0.04


def test_labels_that_exclude_each_other_share_a_temperature():
    logits, targets = drawn(Activation.SOFTMAX, 2.0)
    found = fit_temperatures(logits, targets, Activation.SOFTMAX)
    assert found == Calibration.of(fit_temperature(logits, targets, Activation.SOFTMAX), 3)


def test_a_label_that_is_never_known_keeps_the_shared_temperature():
    logits, targets = drawn(Activation.SIGMOID, 2.0)
    targets[:, 1] = np.nan
    found = fit_temperatures(logits, targets, Activation.SIGMOID).temperatures
    assert found[1] == fit_temperature(logits, targets, Activation.SIGMOID)
    assert found[0] == fit_temperature(logits[:, [0]], targets[:, [0]], Activation.SIGMOID)


def test_the_temperature_stays_in_its_range():
    targets = np.eye(2)[np.arange(40) % 2]
    assert fit_temperature(targets * 1e-4, targets, Activation.SOFTMAX) == pytest.approx(TEMPERATURE_RANGE[0], rel=1e-3)
    assert fit_temperature(-targets * 1e4, targets, Activation.SOFTMAX) == pytest.approx(TEMPERATURE_RANGE[1], rel=1e-3)


@pytest.mark.parametrize("activation", Activation)
def test_nothing_known_is_an_error(activation):
    with pytest.raises(InputError, match="No target is known to fit the temperature on"):
        fit_temperature(np.zeros((3, 2)), np.full((3, 2), np.nan), activation)


@pytest.mark.parametrize("bins", [5, 15])
def test_calibration_error_is_that_of_scikit_learns_bins(bins):
    rng = np.random.default_rng(1)
    chances = rng.random(500)
    targets = (rng.random(500) < chances**2).astype(np.float64)
    observed, predicted = calibration_curve(targets, chances, n_bins=bins)
    counts = np.histogram(chances, bins, (0, 1))[0]
    expected = np.sum(np.abs(observed - predicted) * counts) / 500
    assert expected_calibration_error(chances, targets, bins) == pytest.approx(expected)


def test_calibration_error_by_hand():
    assert expected_calibration_error(np.array([0.0, 1.0, 1.0, 0.3]), np.array([0.0, 1.0, 0.0, 1.0]), 2) == pytest.approx(0.425)
    assert np.isnan(expected_calibration_error(np.array([]), np.array([])))


def test_brier_score_is_scikit_learns():
    rng = np.random.default_rng(2)
    chances, targets = rng.random(100), rng.integers(0, 2, 100).astype(np.float64)
    assert brier_score(chances, targets) == pytest.approx(brier_score_loss(targets, chances))


def test_scoring_imports_neither_scikit_learn_nor_scipy_nor_matplotlib():
    code = "import sys, pipeline.evaluate.calibration; print({'sklearn', 'scipy', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
