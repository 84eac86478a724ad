"""Distances against scikit-learn's; their bits do not depend on other frames; the threshold and its file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import normalize

from pipeline.evaluate.outliers import (
    MOST_FRAMES,
    RANKED_PATIENTS,
    Reference,
    fit_reference,
    load_reference,
    pooled,
    reference_rows,
    refusal_threshold,
)


def features(n: int, channels: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, size=(n, channels))


def patients(n: int, frames: int = 1) -> list[str]:
    """The patients of n frames, each with so many."""
    return [f"p{number // frames}" for number in range(n)]


@pytest.mark.parametrize("frames", [12, 200])  # fewer than there are channels, and more
def test_the_distance_is_that_of_mahalanobis(frames: int) -> None:
    train, calibration, new = features(frames), features(300, seed=1), features(50, seed=2)
    reference = fit_reference(train, calibration, patients(300))
    oracle = LedoitWolf().fit(normalize(train))
    threshold = np.sort(np.sqrt(oracle.mahalanobis(normalize(calibration))))[298 - 1]  # ceil(0.99 * 301)
    assert reference.threshold == pytest.approx(threshold, rel=1e-5)
    assert sum(reference.distance(one) > 1 for one in calibration) == 2
    far = np.sqrt(oracle.mahalanobis(normalize(new)))
    np.testing.assert_allclose([reference.distance(one) * reference.threshold for one in new], far, rtol=1e-5)


def test_a_direction_in_which_no_training_frame_lies_counts_more() -> None:
    """Both lie as near to the nearest training frame; only one differs from it as training frames differ from each other."""
    rng = np.random.default_rng(0)
    frames = np.ones((400, 24)) + np.pad(rng.normal(0, 0.5, (400, 4)), ((0, 0), (0, 20)))
    reference = fit_reference(frames[:300], frames[300:], patients(100))
    usual, unusual = np.ones(24), np.ones(24)
    usual[:4] += 0.4
    unusual[20:] += 0.4
    assert reference.distance(usual) < 0.7
    assert reference.distance(unusual) > 1.5


@given(st.integers(0, 99), st.integers(1, 7))
def test_a_distance_has_the_same_bits_alone_and_in_a_batch(seed: int, cells: int) -> None:
    maps = np.random.default_rng(seed).random((9, 12, cells, cells), dtype=np.float32)
    reference = fit_reference(features(30, 12), features(20, 12, seed=1), patients(20))
    together = [reference.distance(pooled(one)) for one in maps]
    assert [reference.distance(pooled(one)) for one in maps[::-1]] == together[::-1]
    assert [reference.distance(pooled(maps[number].copy())) for number in range(9)] == together


def test_pooled_is_the_mean_over_cells() -> None:
    values = np.random.default_rng(0).random((5, 3, 2), dtype=np.float32)
    np.testing.assert_allclose(pooled(values), values.astype(np.float64).mean((1, 2)), rtol=1e-12)
    assert pooled(values).dtype == np.float64


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_few_calibration_patients_give_the_limit_of_a_prediction_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logs = rng.normal(-1, 0.2, (400, 7))
    limits = np.array([refusal_threshold(np.exp(some[:6]).tolist(), patients(6)) for some in logs])
    alarms = np.mean(np.exp(logs[:, 6]) > limits)
    assert alarms <= 0.04  # 0.01 is meant; of 400 more than 16 have a chance of less than one in a million


@pytest.mark.parametrize("count", [20, RANKED_PATIENTS - 1, RANKED_PATIENTS, 150, 300])
def test_of_further_patients_one_in_a_hundred_has_a_frame_refused(count: int) -> None:
    """Patients differ, and have one to thirty frames: frames that count one by one would refuse three times as many."""
    rng = np.random.default_rng(count)
    alarms, by_frames = [], []
    for _ in range(300):
        sizes = rng.integers(1, 30, count + 50)
        owner = np.repeat(np.arange(count + 50), sizes)
        distances = np.exp(np.repeat(rng.normal(-1, 0.2, count + 50), sizes) + rng.normal(0, 0.1, len(owner)))
        known = owner < count
        threshold = refusal_threshold(distances[known].tolist(), owner[known].astype(str).tolist())
        frames = np.quantile(distances[known], 0.99, method="higher")
        for limit, found in ((threshold, alarms), (frames, by_frames)):
            found.append(len(set(owner[~known][distances[~known] > limit])) / 50)
    assert np.mean(alarms) <= 0.0135  # 0.01 is meant, of 15,000 patients
    assert count < RANKED_PATIENTS or np.mean(by_frames) > 0.0135


def test_the_rank_is_that_of_one_more_patient() -> None:
    distances = np.arange(1, 2 * 99 + 1) / 100
    assert refusal_threshold(distances.tolist(), patients(198, 2)) == 1.98  # ceil(0.99 * 100): the largest of 99
    distances = np.arange(1, 2 * 199 + 1) / 100
    assert refusal_threshold(distances.tolist(), patients(398, 2)) == 3.96  # ceil(0.99 * 200): the largest but one


def test_below_99_patients_no_calibration_frame_is_refused() -> None:
    distances = [0.1] * 97 + [0.9]  # far from normal, so that the limit lies below the largest
    assert refusal_threshold(distances, patients(98)) == 0.9


def test_one_calibration_patient_refuses_nothing() -> None:
    reference = fit_reference(features(20), features(9, seed=1), patients(9, 9))
    directions = np.linalg.svd(reference.whitening)[2]
    assert np.isfinite(reference.threshold)
    assert max(reference.distance(sign * one) for one in directions for sign in (-1, 1)) <= 1.0


def test_few_frames_are_enough_and_no_calibration_frame_is_refused() -> None:
    reference = fit_reference(features(2), features(20, seed=1), patients(20, 2))
    assert (reference.calibration_frames, reference.calibration_patients) == (20, 10)
    assert max(reference.distance(one) for one in features(20, seed=1)) <= 1.0


def test_features_of_zeros_are_far_and_equal_ones_near() -> None:
    train = np.repeat(features(1), 9, axis=0)
    reference = fit_reference(train, train, patients(9))
    assert reference.distance(np.zeros(24)) > 1
    assert reference.distance(np.full(24, np.nan)) != reference.distance(np.full(24, np.nan))  # not a number, and never near


def test_the_frames_of_the_reference_are_spread_over_the_training_frames() -> None:
    assert reference_rows(np.arange(10)).tolist() == list(range(10))
    chosen = reference_rows(np.arange(5, 5 + 3217))
    assert (len(set(chosen.tolist())), chosen[0], chosen[-1]) == (MOST_FRAMES, 5, 3221)
    assert set(np.diff(chosen).tolist()) == {3, 4}


def test_it_is_read_back_with_the_same_bits() -> None:
    written = fit_reference(features(50), features(50, seed=1), patients(50))
    read = load_reference(written.to_bytes(), written.threshold)
    assert [read.distance(one) for one in features(9, seed=2)] == [written.distance(one) for one in features(9, seed=2)]


WHOLE = {"mean": np.zeros(2, np.float32), "whitening": np.eye(2, dtype=np.float32)}


@pytest.mark.parametrize(
    ("content", "threshold"),
    [
        (b"not safetensors", 1.0),
        (save({"bank": np.zeros((2, 2), np.float32)}), 1.0),
        (save(WHOLE | {"mean": np.zeros((1, 2), np.float32)}), 1.0),
        (save(WHOLE | {"whitening": np.eye(3, dtype=np.float32)}), 1.0),
        (save(WHOLE), float("nan")),
    ],
)
def test_what_is_no_reference_is_said(content: bytes, threshold: float) -> None:
    with pytest.raises(ValueError, match="mean"):
        load_reference(content, threshold)


def test_only_the_direction_of_features_counts() -> None:
    reference = Reference(np.eye(3)[0], np.diag([1.0, 2.0, 4.0]), 0.5)
    assert reference.distance(np.array([7.0, 0, 0])) == 0.0
    assert reference.distance(np.array([-7.0, 0, 0])) == 4.0
    assert reference.distance(np.array([0, 0, 3.0])) == pytest.approx(2 * np.sqrt(17))


def test_no_feature_of_a_single_training_frame_is_kept() -> None:
    tensors = load(fit_reference(features(30), features(9, seed=1), patients(9)).to_bytes())
    assert {name: one.shape for name, one in tensors.items()} == {"mean": (24,), "whitening": (24, 24)}
