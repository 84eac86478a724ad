"""Comparison of two bundles: paired by frame, drawn by patient, and honest when nothing differs."""

import numpy as np
import pytest
from sklearn import metrics as sk

from pipeline.errors import InputError
from pipeline.evaluate.calibration import log_losses
from pipeline.evaluate.comparison import COMPARED, _corrected, compare, subgroups
from pipeline.evaluate.metrics import evaluate
from pipeline.predictions import Activation, Calibration, Task
from tests.builders import make_sample


def pair(noise=1.0, n=240, **overrides):
    """Two samples of the same frames; the second one has less to say of them by `noise`."""
    first = make_sample(n=n, **overrides)
    logits = first.logits + noise * np.random.default_rng(9).normal(size=first.logits.shape)
    return first, make_sample(n=n, **overrides, logits=logits)


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.MULTILABEL])
def test_differences_are_those_of_scikit_learns_figures(task):
    first, second = pair(task=task)
    found = compare(first, second, 50)
    for column, label in enumerate(first.labels):
        truth = first.targets[:, column]
        for name, metric in (("auroc", sk.roc_auc_score), ("log_loss", sk.log_loss), ("brier", sk.brier_score_loss)):
            one, other = (metric(truth, sample.probabilities[:, column]) for sample in (first, second))
            difference = found.labels[label][name]
            assert (difference.first, difference.second) == pytest.approx((one, other))
            assert difference.value == pytest.approx(other - one)
            assert difference.low < difference.value < difference.high
    macro = [found.labels[label]["sensitivity"].value for label in first.labels]
    assert found.macro["sensitivity"].value == pytest.approx(np.mean(macro))
    assert set(found.macro) == {*COMPARED, "accuracy"} if task is Task.MULTICLASS else set(COMPARED)


def test_log_loss_of_whole_frames_is_that_of_scikit_learn():
    first, second = pair()
    found = compare(first, second, 50).macro["log_loss"]
    expected = [sk.log_loss(first.targets.argmax(axis=1), sample.probabilities) for sample in (first, second)]
    assert (found.first, found.second) == pytest.approx(expected)
    logits, targets = np.array([[2.0, -1.0], [0.5, 0.0]]), np.array([[1.0, np.nan], [np.nan, np.nan]])
    losses = log_losses(logits, targets, Activation.SIGMOID, Calibration.of(1.0, 2))
    assert losses[0] == pytest.approx(np.log1p(np.exp(-2)))
    assert np.isnan(losses[1])


def test_pairs_make_the_interval_narrower_than_two_single_intervals():
    """The variance of a difference is smaller by twice the covariance, which is large here."""
    first, second = pair(noise=0.3)
    both = compare(first, second, 400).labels["A"]["auroc"]
    singles = [evaluate(sample, 0).labels[0].metrics["auroc"] for sample in (first, second)]
    assert both.high - both.low < 0.5 * np.hypot(*(one.high - one.low for one in singles))


def fields(sample):
    return {name: getattr(sample, name) for name in sample.__dataclass_fields__}


def test_patients_are_drawn_and_not_frames():
    first, second = pair(n=120)
    groups = tuple(f"p{number // 12}" for number in range(120))
    by_patient = compare(*(type(one)(**{**fields(one), "groups": groups}) for one in (first, second)), 300)
    assert by_patient.patients == 10
    rows = np.arange(120) // 12
    losses = [log_losses(one.logits, one.targets, Activation.SOFTMAX, one.calibration) for one in (first, second)]
    away = np.bincount(rows, losses[1] - losses[0]) / 12
    found = by_patient.macro["log_loss"]
    reach = 2.262 * away.std(ddof=1) / np.sqrt(10)  # Student's t with nine degrees of freedom, from a table
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach), abs=0.35 * reach)


def test_swapping_the_bundles_turns_the_sign():
    first, second = pair()
    one, other = compare(first, second, 100), compare(second, first, 100)
    for name in COMPARED:
        found, mirrored = one.labels["B"][name], other.labels["B"][name]
        assert (found.value, found.low, found.high) == pytest.approx((-mirrored.value, -mirrored.high, -mirrored.low))


def test_equal_bundles_differ_by_nothing_and_equal_decisions_by_what_was_not_seen():
    first, _ = pair()
    same = compare(first, first, 50).labels["A"]["sensitivity"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    nudged = make_sample(n=240, logits=first.logits * (1 + 1e-6))
    found = compare(first, nudged, 50).labels["A"]["sensitivity"]
    patients = len(set(np.array(first.groups)[first.targets[:, 0] == 1]))
    assert found.value == 0
    assert (found.low, found.high) == pytest.approx((-(1 - 0.025 ** (1 / patients)), 1 - 0.025 ** (1 / patients)))


def test_areas_that_never_differ_are_equal_only_if_frames_are_ranked_alike():
    first, _ = pair(labels=("A", "B"))
    again = make_sample(n=240, labels=("A", "B"), logits=first.logits, calibration=Calibration((1.7, 1.7), (0.4, -0.4)))
    calibrated = compare(first, again, 50)
    for found in (calibrated.labels["A"]["auroc"], calibrated.macro["auroc"]):
        assert (found.value, found.low, found.high) == (0, 0, 0)
    assert calibrated.macro["log_loss"].low is not None
    noise = np.random.default_rng(3).random((2, *first.targets.shape))
    perfect = [make_sample(n=240, labels=("A", "B"), logits=9 * first.targets + one) for one in noise]
    found = compare(*perfect, 50).macro["auroc"]
    rarer = min(len(set(np.array(first.groups)[first.targets[:, 0] == value])) for value in (0, 1))
    assert (found.first, found.second, found.value) == (1, 1, 0)
    assert (found.low, found.high) == pytest.approx((-(1 - 0.025 ** (1 / rarer)), 1 - 0.025 ** (1 / rarer)))


def test_a_difference_that_is_the_same_in_all_resamples_has_no_p_value():
    """Two patients of a group whose findings are all found, and two others whose findings are all missed."""
    targets = np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
    logits = np.array([[5.0, 0.0]] * 2 + [[0.0, 5.0]] * 6)
    sample = make_sample(n=8, labels=("A", "B"), targets=targets, logits=logits, groups=tuple("abcdefgh"))
    one, _ = subgroups(sample, list("xxyyxxyy"), 100)
    difference = one.differences["A"]["sensitivity"]
    assert (abs(difference.value), difference.low) == (1, None)
    assert one.p_values["A"]["sensitivity"] is None
    assert one.p_values["A"]["specificity"] == 1, "which is the same in both groups"


def test_a_single_patient_of_a_kind_gives_no_interval_of_the_area():
    targets = np.zeros((240, 2))
    targets[:2, 0] = 1
    targets[:, 1] = 1 - targets[:, 0]
    first, second = pair(labels=("RARE", "NORMAL"), targets=targets)
    found = compare(first, second, 50).labels["RARE"]
    assert (found["auroc"].low, found["auroc"].high) == (None, None)
    assert found["brier"].low is not None


def test_what_cannot_be_compared_is_said():
    first, _ = pair()
    with pytest.raises(InputError, match="not of the same frames"):
        compare(first, make_sample(n=120))
    with pytest.raises(InputError, match="multiclass of A, B, C, and multilabel of A, B, C"):
        compare(first, make_sample(n=240, task=Task.MULTILABEL))


def grouped(effect, n=480, seed=0):
    """A sample whose frames of the group `b` know less of the truth by `effect`, and the groups."""
    sample = make_sample(n=n, labels=("A", "B"), seed=seed)
    values = ["b" if number // 2 % 2 else "a" for number in range(n)]
    logits = sample.logits - effect * 2 * sample.targets * (np.array(values) == "b")[:, None]
    return make_sample(n=n, labels=("A", "B"), seed=seed, logits=logits), values


def test_a_group_that_is_worse_is_found_and_its_figures_are_those_of_its_frames():
    sample, values = grouped(0.9)
    first, second = subgroups(sample, values, 400)
    assert (first.value, first.frames, first.patients, second.value) == ("a", 240, 120, "b")
    rows = np.flatnonzero(np.array(values) == "b")
    truth, chances = sample.targets[rows, 0], sample.probabilities[rows, 0]
    found = second.labels["A"]["auroc"]
    assert found.value == pytest.approx(sk.roc_auc_score(truth, chances))
    assert found.low < found.value < found.high
    difference = second.differences["A"]["auroc"]
    assert difference.value == pytest.approx(found.value - first.labels["A"]["auroc"].value)
    assert difference.high < 0
    assert second.p_values["A"]["auroc"] < 0.05
    assert second.few == ()


def test_groups_that_are_alike_are_rarely_called_different():
    """Of 16 samples without any effect more than 3 would have one of their twelve tests below 0.05 once in 150 times."""
    found = []
    for seed in range(16):
        sample, values = grouped(0, n=160, seed=seed)
        groups = subgroups(sample, values, 100)
        found.append(min(chance for group in groups for one in group.p_values.values() for chance in one.values()))
    assert (np.array(found) < 0.05).sum() <= 3


def test_p_values_are_corrected_as_holm_does_it():
    values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": None}
    assert _corrected(values) == {"a": pytest.approx(0.03), "b": pytest.approx(0.06), "c": pytest.approx(0.06), "d": None}


def test_small_groups_are_said_and_too_many_groups_refused():
    sample, _ = grouped(0, n=120)
    values = ["few" if number < 20 else "" for number in range(120)]
    several = {group.value: group for group in subgroups(sample, values, 50)}
    assert several["few"].few == ("A", "B")
    assert several[""].few == ()
    with pytest.raises(InputError, match="The column has 1 different value in these frames"):
        subgroups(sample, ["same"] * 120)
    with pytest.raises(InputError, match="The column has 120 different values"):
        subgroups(sample, [*map(str, range(120))])
