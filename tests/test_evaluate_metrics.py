import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn import metrics as sk

from pipeline.errors import InputError
from pipeline.evaluate.calibration import expected_calibration_error
from pipeline.evaluate.intervals import Estimate
from pipeline.evaluate.metrics import ARGMAX_METRICS, MACRO_METRICS, METRICS, evaluate, flat_figures
from pipeline.predictions import Calibration, ConformalBand, DecisionRule, OperatingPoint, Task
from tests.builders import make_sample

MULTILABEL = {"task": Task.MULTILABEL}


def values(metrics):
    return {name: estimate.value for name, estimate in metrics.items()}


def figures(evaluation):
    """Every point estimate in one array."""
    parts = [*(label.metrics for label in evaluation.labels), evaluation.macro, evaluation.argmax]
    return np.array([value for part in parts for value in values(part).values()])


def test_softmax_figures_are_scikit_learns():
    sample = make_sample()
    found = evaluate(sample, resamples=0)
    true, chosen = sample.targets.argmax(axis=1), sample.logits.argmax(axis=1)
    chances = softmax(sample.logits.astype(np.float64) / 1.2, axis=1)
    assert found.argmax["accuracy"].value == pytest.approx(sk.accuracy_score(true, chosen))
    assert found.argmax["balanced_accuracy"].value == pytest.approx(sk.balanced_accuracy_score(true, chosen))
    assert found.macro["auroc"].value == pytest.approx(sk.roc_auc_score(true, chances, multi_class="ovr"))
    assert found.confusion == tuple(map(tuple, sk.confusion_matrix(true, chosen)))
    assert found.labels[1].metrics["ece"].value == expected_calibration_error(chances[:, 1], sample.targets[:, 1])


def test_sigmoid_decides_label_by_label_at_the_operating_point():
    sample = make_sample(**MULTILABEL)
    found = evaluate(sample, resamples=0)
    positive = expit(sample.logits.astype(np.float64) / 1.2) >= 0.4
    for index, label in enumerate(found.labels):
        expected = sk.recall_score(sample.targets[:, index], positive[:, index])
        assert label.metrics["sensitivity"].value == pytest.approx(expected)
    assert (found.argmax, found.confusion) == ({}, ())


def test_figures_are_those_of_the_states_and_an_uncertain_frame_is_an_error():
    bands = tuple(ConformalBand(label, 0.3, 0.5) for label in ("A", "B", "C"))
    sample = make_sample(bands=bands, normal_label="C")
    found = evaluate(sample, resamples=20)
    rule = DecisionRule(bands, exclusive=True, normal_label="C")
    states = rule.states(softmax(sample.logits.astype(np.float64) / 1.2, axis=1))
    for index, label in enumerate(found.labels):
        present = sample.targets[:, index] == 1
        said = states[:, index]
        assert label.metrics["sensitivity"].value == np.mean(said[present] == "positive")
        assert label.metrics["specificity"].value == np.mean(said[~present] == "negative")
        assert label.metrics["uncertain"].value == pytest.approx(np.mean(said == "uncertain"))
        assert label.metrics["uncertain"].value > 0
    assert found.uncertain.value == pytest.approx(np.mean((states == "uncertain").any(axis=1)))
    assert found.uncertain.low <= found.uncertain.value <= found.uncertain.high
    assert found.to_json()["uncertain"] == asdict(found.uncertain)


def test_operating_points_are_found_by_name():
    points = tuple(
        OperatingPoint(label, threshold, "youden", 1, 1) for label, threshold in (("C", 1.0), ("B", 0.5), ("A", 0.0))
    )
    found = evaluate(make_sample(operating_points=points, **MULTILABEL), resamples=0)
    assert [label.threshold for label in found.labels] == [0.0, 0.5, 1.0]
    assert [label.metrics["sensitivity"].value for label in found.labels][::2] == [1, 0]


def test_what_is_reported():
    found = evaluate(make_sample(), resamples=20, seed=3)
    assert all(set(label.metrics) == set(METRICS) for label in found.labels)
    assert (set(found.macro), set(found.argmax)) == (set(MACRO_METRICS), set(ARGMAX_METRICS))
    assert (found.frames, found.patients, found.resamples, found.seed) == (120, 60, 20, 3)
    assert found.calibration == Calibration.of(1.2, 3)
    assert [(label.n_positive, label.n_negative) for label in found.labels] == [(40, 80)] * 3


@settings(max_examples=20)
@given(seed=st.integers(0, 100), task=st.sampled_from(Task))
def test_macro_is_the_mean_of_the_labels(seed, task):
    found = evaluate(make_sample(seed=seed, task=task), resamples=0)
    for name in MACRO_METRICS:
        mean = np.mean([label.metrics[name].value for label in found.labels])
        np.testing.assert_allclose(found.macro[name].value, mean, err_msg=name)


@settings(max_examples=20)
@given(seed=st.integers(0, 100), task=st.sampled_from(Task))
def test_the_order_of_the_frames_changes_no_figure_and_no_interval(seed, task):
    sample = make_sample(seed=seed, task=task)
    order = np.random.default_rng(seed).permutation(120)
    groups = tuple(np.array(sample.groups)[order])
    shuffled = make_sample(logits=sample.logits[order], targets=sample.targets[order], groups=groups, task=task)
    one, other = evaluate(sample, 30), evaluate(shuffled, 30)
    np.testing.assert_allclose(figures(one), figures(other))
    for name, estimate in one.macro.items():
        limits = [[found.low, found.high] for found in (estimate, other.macro[name])]
        np.testing.assert_allclose(*np.array(limits, float), err_msg=name)


@settings(max_examples=20)
@given(seed=st.integers(0, 100), seed_of_names=st.integers(0, 100))
def test_who_the_patients_are_changes_no_point_estimate(seed, seed_of_names):
    sample = make_sample(seed=seed)
    groups = tuple(np.random.default_rng(seed_of_names).permutation(sample.groups))
    np.testing.assert_array_equal(figures(evaluate(sample, 0)), figures(evaluate(make_sample(seed=seed, groups=groups), 0)))


def test_temperature_changes_neither_ranking_nor_argmax():
    one, other = (evaluate(make_sample(temperature=temperature), 0) for temperature in (0.5, 3.0))
    assert values(one.argmax) == values(other.argmax)
    sigmoid = [evaluate(make_sample(temperature=temperature, **MULTILABEL), 0) for temperature in (0.5, 3.0)]
    assert sigmoid[0].macro["auroc"] == sigmoid[1].macro["auroc"]


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.MULTILABEL])
def test_unknown_targets_are_left_out_label_by_label(task):
    sample = make_sample(task=task)
    hidden = sample.targets.copy()
    hidden[:30, 0] = np.nan
    found = evaluate(make_sample(task=task, targets=hidden), 0)
    rest = make_sample(logits=sample.logits[30:], targets=sample.targets[30:], groups=sample.groups[30:], task=task)
    expected = evaluate(rest, 0)
    assert values(found.labels[0].metrics) == values(expected.labels[0].metrics)
    assert values(found.labels[1].metrics) == values(evaluate(sample, 0).labels[1].metrics)


def test_softmax_frames_without_a_known_label_are_not_counted_as_wrong():
    sample = make_sample()
    hidden = sample.targets.copy()
    hidden[:30] = np.nan
    hidden[30:40][hidden[30:40] == 1] = np.nan
    found = evaluate(make_sample(targets=hidden), 0)
    expected = sk.accuracy_score(sample.targets[40:].argmax(axis=1), sample.logits[40:].argmax(axis=1))
    assert found.argmax["accuracy"].value == pytest.approx(expected)
    assert sum(map(sum, found.confusion)) == 80


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.MULTILABEL])
def test_a_label_without_positives_leaves_figures_undefined_and_json_null(task):
    targets = make_sample().targets.copy()
    targets[targets[:, 2] == 1] = [1, 0, 0]
    found = evaluate(make_sample(targets=targets, task=task), 20)
    text = json.dumps(found.to_json(), allow_nan=False)
    figures = json.loads(text)["labels"]["C"]
    assert figures["n_positive"] == 0
    assert figures["metrics"]["auroc"] == {"value": None, "low": None, "high": None, "left_out": 0}
    assert figures["metrics"]["average_precision"]["left_out"] == 20
    assert figures["metrics"]["specificity"]["low"] > 0
    assert found.to_json()["macro"]["auroc"]["value"] is None
    if task is Task.MULTICLASS:
        assert found.to_json()["argmax"]["balanced_accuracy"]["value"] is None
        assert found.to_json()["argmax"]["accuracy"]["value"] > 0


def test_equal_seeds_give_equal_intervals():
    one, same, other = (evaluate(make_sample(), 50, seed) for seed in (1, 1, 2))
    assert one == same
    assert one.macro["auroc"].low != other.macro["auroc"].low


def test_perfect_answers_have_no_interval_without_width():
    """Of 3 positive patients all are found: 0.29 is the lower limit, not 1."""
    targets = np.zeros((120, 2))
    targets[:6, 0] = 1
    targets[:, 1] = 1 - targets[:, 0]
    found = evaluate(make_sample(labels=("RARE", "NORMAL"), targets=targets, logits=9 * targets), 100)
    metrics = found.labels[0].metrics
    assert (found.labels[0].positive_patients, found.labels[0].negative_patients) == (3, 57)
    for name in ("sensitivity", "auroc"):
        assert (metrics[name].value, metrics[name].low, metrics[name].high) == pytest.approx((1, 0.025 ** (1 / 3), 1))
    for name in ("balanced_accuracy", "f1", "mcc", "average_precision"):
        assert (metrics[name].value, metrics[name].low, metrics[name].high) == (1, None, None)
    every = [*metrics.values(), *found.macro.values(), *found.argmax.values()]
    assert not [one for one in every if one.low is not None and one.low == one.high]


def test_the_calibration_error_has_no_interval():
    estimate = evaluate(make_sample(), 20).macro["ece"]
    assert estimate.value > 0
    assert (estimate.low, estimate.high) == (None, None)


BROKEN_LOGITS = make_sample().logits.copy()
BROKEN_LOGITS[[3, 5]] = np.nan


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"logits": np.zeros((0, 3)), "targets": np.zeros((0, 3)), "groups": ()},
            "There is nothing to evaluate: the split has no labelled frame. Choose another split, or label more studies.",
        ),
        (
            {"targets": np.zeros((120, 2))},
            "Logits and targets must both have the shape (frames, labels) = (120, 3). Got (120, 3) and (120, 2) instead.",
        ),
        (
            {"logits": BROKEN_LOGITS},
            "The network's output is not a finite number in 2 of 120 frames. Train the bundle again.",
        ),
        ({"targets": np.full((120, 3), 0.5)}, "Targets must be 1, 0 or nan (not known)."),
        (
            {"targets": np.ones((120, 3))},
            "120 of 120 frames have more than one label, but in a multiclass task exactly one label holds. "
            "Use task=multilabel for labels that may hold together.",
        ),
        ({"operating_points": ()}, "There is no operating point for A, B, C. Train the bundle again."),
    ],
)
def test_unusable_samples(overrides, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make_sample(**overrides)


def test_grades_have_scikit_learns_quadratic_kappa_and_mean_error_with_intervals():
    sample = make_sample(task=Task.ORDINAL)
    found = evaluate(sample, resamples=200)
    true, chosen = sample.targets.argmax(axis=1), sample.logits.argmax(axis=1)
    kappa, error = found.argmax["quadratic_kappa"], found.argmax["grade_error"]
    assert kappa.value == pytest.approx(sk.cohen_kappa_score(true, chosen, weights="quadratic"))
    assert error.value == pytest.approx(sk.mean_absolute_error(true, chosen))
    assert kappa.low < kappa.value < kappa.high
    assert error.low < error.value < error.high
    assert set(evaluate(make_sample(), 0).argmax) == {"accuracy", "balanced_accuracy"}


def test_the_bootstrap_of_grades_counts_frames_as_scikit_learn_weighs_them():
    sample = make_sample(task=Task.ORDINAL)
    weights = np.random.default_rng(0).integers(0, 4, (3, 120)).astype(float)
    found = sample.choice.measure(weights)
    true, chosen = sample.targets.argmax(axis=1), sample.logits.argmax(axis=1)
    for row, weight in enumerate(weights):
        expected = sk.cohen_kappa_score(true, chosen, weights="quadratic", sample_weight=weight)
        assert found["quadratic_kappa"][row] == pytest.approx(expected)
        assert found["grade_error"][row] == pytest.approx(sk.mean_absolute_error(true, chosen, sample_weight=weight))


def test_kappa_is_not_defined_if_all_frames_are_of_one_grade():
    targets = np.zeros((120, 3))
    targets[:, 1] = 1
    logits = np.tile(np.float32([0, 1, 0]), (120, 1))
    found = evaluate(make_sample(task=Task.ORDINAL, logits=logits, targets=targets), 20).to_json()["argmax"]
    assert found["quadratic_kappa"]["value"] is None
    assert found["grade_error"]["value"] == 0


def test_folds_have_figures_of_their_own_with_mean_and_spread():
    whole, first, second = (evaluate(make_sample(seed=seed), resamples=0) for seed in (1, 2, 3))

    found = replace(whole, folds=(first, second)).to_json()

    areas = [one.macro["auroc"].value for one in (first, second)]
    assert found["folds"] == [first.to_json(), second.to_json()]
    assert found["spread"]["macro"]["auroc"] == pytest.approx({"mean": np.mean(areas), "sd": np.std(areas, ddof=1), "folds": 2})
    flat = flat_figures(found, "out_of_fold")
    assert flat["out_of_fold_auroc"] == whole.macro["auroc"].value
    assert (flat["fold_1_auroc"], flat["fold_2_auroc"]) == tuple(areas)
    assert flat["folds_mean_auroc"] == pytest.approx(np.mean(areas))
    assert flat["folds_sd_argmax_accuracy"] == pytest.approx(
        np.std([one.argmax["accuracy"].value for one in (first, second)], ddof=1)
    )
    assert "folds" not in whole.to_json()


def test_a_figure_that_is_defined_in_one_fold_has_no_spread():
    whole = evaluate(make_sample(**MULTILABEL), resamples=0)
    undefined = replace(whole, macro=whole.macro | {"auroc": Estimate(None, None, None, 0)})

    spread = replace(whole, folds=(whole, undefined)).to_json()["spread"]["macro"]["auroc"]

    assert spread == {"mean": whole.macro["auroc"].value, "sd": None, "folds": 1}


def test_predictive_values_at_the_prevalence_of_the_split_are_those_of_the_split():
    sample = make_sample(n=600)
    common = {"A": 1 / 3}
    label = evaluate(sample, 0, prevalence=common).labels[0]
    for name in ("ppv", "npv"):
        found, measured = label.at_prevalence[name], label.metrics[name]
        assert found.value == pytest.approx(measured.value)
        assert found.low < found.value < found.high
        assert found.high - found.low < 3 * (measured.high - measured.low)
    assert evaluate(sample, 0).labels[0].at_prevalence == {}


def test_predictive_values_follow_bayes_and_have_an_interval_without_a_single_error():
    targets = np.repeat(np.eye(2), 30, axis=0)
    sample = make_sample(n=60, labels=("A", "B"), targets=targets, logits=9 * targets, groups=tuple(map(str, range(60))))
    found = evaluate(sample, 0, prevalence={"A": 0.02}).to_json()["labels"]["A"]["at_prevalence"]
    assert found["prevalence"] == 0.02
    assert found["ppv"]["value"] == 1
    least, most = 0.0125 ** (1 / 30), 1 - 0.0125 ** (1 / 30)  # the exact limits of 30 of 30 and of 0 of 30
    assert found["ppv"]["low"] == pytest.approx(0.02 * least / (0.02 * least + 0.98 * most))
    assert found["ppv"]["high"] == 1


@pytest.mark.parametrize("prevalence", [{"D": 0.1}, {"A": 0.0}, {"A": float("nan")}])
def test_an_impossible_prevalence_is_refused(prevalence):
    with pytest.raises(InputError, match="cannot be used: give it as LABEL=0.02"):
        evaluate(make_sample(), 0, prevalence=prevalence)


def test_calibration_errors_before_and_after_are_in_bins_of_as_many_frames():
    sample = make_sample(n=300)
    found = evaluate(sample, 0).labels[0].metrics
    for name, chances in (
        ("adaptive_ece", sample.probabilities[:, 0]),
        ("adaptive_ece_uncalibrated", softmax(sample.logits.astype(np.float64), axis=1)[:, 0]),
    ):
        order = np.argsort(chances, kind="stable").reshape(15, 20)
        expected = np.mean(np.abs(chances[order].mean(axis=1) - sample.targets[:, 0][order].mean(axis=1)))
        assert found[name].value == pytest.approx(expected)
