"""Studies, eyes and patients against the truth: units, calibration and the choice of a pooling, by hand and by scikit-learn."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from pipeline.errors import InputError
from pipeline.evaluate.calibration import fit_scale, fit_steps, frame_odds, stored
from pipeline.evaluate.metrics import evaluate, flat_figures
from pipeline.evaluate.units import (
    Units,
    fit_level_rule,
    known_targets,
    level_sample,
    simplest_of_the_best,
    truth,
    tune_losses,
)
from pipeline.frames import ImageRecord, InstanceKey, LabelLevel, Split
from pipeline.levels import LabelSet, Level, Pooling, log_odds
from pipeline.predictions import Calibration, State, Task

LABELS = ("NORMAL", "CNV", "DME")
LABEL_SET = LabelSet(LABELS, Task.MULTICLASS, "NORMAL")
GRADES = LabelSet(("CALM", "MILD", "SEVERE"), Task.ORDINAL, "CALM")
ONE_LABEL = LabelSet(("CNV",), Task.MULTILABEL)
NAN = np.nan


def make_record(patient: str, study: str, laterality: str = "", number: int = 1) -> ImageRecord:
    key = InstanceKey(study, f"{study}.1", f"{study}.1.1", number)
    return ImageRecord(key, 0, "a.dcm", patient, "", {}, Split.TUNE, 8, 8, laterality=laterality)


RECORDS = (
    make_record("p1", "s1", "R", 1),
    make_record("p1", "s1", "L", 2),
    make_record("p1", "s2", "R", 1),
    make_record("p2", "s3", "", 1),
    make_record("p2", "s3", "B", 2),
)


@pytest.mark.parametrize(
    ("level", "names", "sizes"),
    [
        (Level.STUDY, ("s1", "s2", "s3"), (2, 1, 2)),
        (Level.EYE, ("p1 L", "p1 R"), (1, 2)),
        (Level.PATIENT, ("p1", "p2"), (3, 2)),
    ],
)
def test_frames_belong_to_their_study_eye_and_patient(level: Level, names: tuple[str, ...], sizes: tuple[int, ...]) -> None:
    units = Units(level, RECORDS, np.zeros((5, 3)), LABEL_SET, np.zeros((5, 3)))

    assert (units.names, units.sizes) == (names, sizes)


@pytest.mark.parametrize(
    ("frames", "unit"),
    [
        ([(1, 0, 0), (1, 0, 0)], (1, 0, 0)),
        ([(1, 0, 0), (0, 1, 0)], (0, 1, 0)),
        ([(0, 0, 1), (0, 1, 0)], (0, 1, 1)),
        ([(1, 0, 0), (NAN, NAN, NAN)], (NAN, NAN, NAN)),
        ([(0, 1, NAN), (NAN, NAN, NAN)], (0, 1, NAN)),
        ([(NAN, 0, 0), (1, 0, 0)], (NAN, 0, 0)),
    ],
)
def test_a_unit_has_what_any_frame_has_and_no_finding_if_none_has_any(
    frames: list[tuple[float, ...]], unit: tuple[float, ...]
) -> None:
    np.testing.assert_array_equal(truth(np.array(frames, float), LABEL_SET.is_mirrored), unit)


@pytest.mark.parametrize(
    ("given", "level", "known"),
    [
        (LabelLevel.FRAME, None, (0, 1, 0)),
        (None, None, (0, 1, 0)),
        (LabelLevel.INSTANCE, None, (NAN, NAN, 0)),
        (LabelLevel.INSTANCE, Level.STUDY, (0, 1, 0)),
        (LabelLevel.INSTANCE, Level.EYE, (0, 1, 0)),
        (LabelLevel.EYE, Level.EYE, (0, 1, 0)),
        (LabelLevel.EYE, Level.STUDY, (0, 1, 0)),
        (LabelLevel.STUDY, Level.STUDY, (0, 1, 0)),
        (LabelLevel.STUDY, Level.EYE, (NAN, NAN, 0)),
        (LabelLevel.PATIENT, Level.STUDY, (NAN, NAN, 0)),
        (LabelLevel.PATIENT, Level.PATIENT, (0, 1, 0)),
    ],
)
def test_a_finding_of_something_larger_is_not_known_of_its_parts(
    given: LabelLevel | None, level: Level | None, known: tuple[float, ...]
) -> None:
    records = [replace(one, label_level=given) for one in RECORDS[:2]]
    targets = np.array([(0, 1, 0), (1, 0, 0)], float)

    found = known_targets(records, targets, LABEL_SET, level)

    np.testing.assert_array_equal(found[0], known)
    np.testing.assert_array_equal(found[1], (1, 0, 0))  # no finding holds for every part


@pytest.mark.parametrize(
    ("given", "targets", "frame", "patient"),
    [
        (LabelLevel.FRAME, (0, 1, 0), (0, 1, 0), (0, 1, 0)),
        (LabelLevel.PATIENT, (1, 0, 0), (1, 0, 0), (1, 0, 0)),
        (LabelLevel.PATIENT, (0, 1, 0), (NAN, NAN, 0), (0, 1, 0)),
        (LabelLevel.PATIENT, (0, 0, 1), (NAN, NAN, NAN), (0, 0, 1)),
    ],
)
def test_a_part_may_have_a_milder_grade_than_the_whole_and_none_that_is_worse(
    given: LabelLevel, targets: tuple[float, ...], frame: tuple[float, ...], patient: tuple[float, ...]
) -> None:
    records, truths = [replace(RECORDS[0], label_level=given)], np.array([targets], float)

    np.testing.assert_array_equal(known_targets(records, truths, GRADES), [frame])
    np.testing.assert_array_equal(known_targets(records, truths, GRADES, Level.PATIENT), [patient])


@pytest.mark.parametrize(
    ("frames", "unit"),
    [
        ([(1, 0, 0), (0, 1, 0)], (0, 1, 0)),
        ([(0, 1, 0), (0, 0, 1)], (0, 0, 1)),
        ([(0, 0, 1), (NAN, NAN, NAN)], (0, 0, 1)),
        ([(0, 1, 0), (NAN, NAN, NAN)], (0, NAN, NAN)),
        ([(1, 0, 0), (NAN, NAN, 0)], (NAN, NAN, 0)),
    ],
)
def test_the_worst_grade_of_the_frames_is_that_of_the_unit(frames: list[tuple[float, ...]], unit: tuple[float, ...]) -> None:
    units = Units(Level.STUDY, RECORDS[:2], np.array(frames, float), GRADES, np.zeros((2, 2)))

    np.testing.assert_array_equal(units.targets, [unit])


def test_units_know_what_their_labels_were_given_for() -> None:
    records = [replace(one, label_level=LabelLevel.PATIENT) for one in RECORDS]
    targets = np.array([(0, 1, 0)] * 3 + [(1, 0, 0)] * 2, float)

    study, patient = (Units(level, records, targets, LABEL_SET, np.zeros((5, 3))) for level in (Level.STUDY, Level.PATIENT))

    np.testing.assert_array_equal(study.targets, [(NAN, NAN, 0), (NAN, NAN, 0), (1, 0, 0)])
    np.testing.assert_array_equal(patient.targets, [(0, 1, 0), (1, 0, 0)])


def test_refused_frames_are_left_out_but_their_labels_are_true() -> None:
    targets = np.array([(1, 0, 0), (0, 1, 0), (1, 0, 0), (1, 0, 0), (0, 0, 1)], float)
    refused = np.array([False, True, False, True, True])
    odds = np.array([[4, -4, -4], [-9, 9, -9], [1, -1, -1], [2, -2, -2], [0, 0, 0]], float)

    units = Units(Level.STUDY, RECORDS, targets, LABEL_SET, odds, is_refused=refused)

    assert (units.names, units.without_frames, units.patients) == (("s1", "s2"), 1, ("p1", "p1"))
    np.testing.assert_array_equal(units.targets, [(0, 1, 0), (1, 0, 0)])
    np.testing.assert_array_equal(units.pooled(Pooling.MAX), [(4, -4, -4), (1, -1, -1)])
    assert units.counts() == {
        "units": 2,
        "patients": 1,
        "without_frames": 1,
        "labels": {"NORMAL": 1, "CNV": 1, "DME": 0},
    }
    assert units.lacking() == "with DME"


def test_the_scale_is_that_of_a_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(3, 2, 4000)
    targets = (rng.random(4000) < special.expit(0.7 * logits - 2)).astype(float)

    scale, offset = fit_scale(logits, targets)

    free = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], targets)
    assert scale == pytest.approx(float(free.coef_[0, 0]), abs=0.005)  # Platt's targets draw a little towards the middle
    assert offset == pytest.approx(float(free.intercept_[0]), abs=0.02)


def test_the_scale_is_finite_without_an_error_and_keeps_the_ranking_of_what_is_upside_down() -> None:
    scale, offset = fit_scale(np.array([-1.0, -2.0, 3.0, 4.0, NAN, 0.0]), np.array([0, 0, 1, 1, NAN, NAN]))
    chances = special.expit(scale * np.array([-2.0, 4.0]) + offset)
    assert 0.01 < chances[0] < 0.3
    assert 0.7 < chances[1] < 0.99

    assert fit_scale(np.array([3.0, 2.0, -1.0, -2.0]), np.array([0, 0, 1, 1]))[0] > 0
    assert np.isfinite(fit_scale(np.array([2.0, 2.0]), np.array([0, 1]))).all()
    assert np.isfinite(fit_scale(np.array([1e6, 2e6, 3e6]), np.array([0, 0, 1]))).all()
    with pytest.raises(InputError, match="No target is known"):
        fit_scale(np.array([1.0]), np.array([NAN]))


def test_numbers_are_pooled_as_they_are_stored() -> None:
    logits = np.array([[1.23456789, -0.00001], [0.5, 100.0]])

    np.testing.assert_array_equal(stored(logits), [[1.2346, 0.0], [0.5, 100.0]])
    found = frame_odds(logits, LabelSet(("A", "B"), Task.MULTILABEL), Calibration((2.0, 2.0), (0.0, 1.0)))
    np.testing.assert_allclose(found, [[0.6173, 1.0], [0.25, log_odds(1.0)]], rtol=1e-9)
    found = frame_odds(logits, LabelSet(("A", "B"), Task.BINARY), Calibration.of(1.0, 2))
    np.testing.assert_allclose(found, [[1.2346, -1.2346], log_odds(np.array([0.0, 1.0]))], rtol=1e-9)


def make_units(odds: Sequence[np.ndarray], truths: Sequence[float], studies_a_patient: int = 1) -> Units:
    """One label, one study for each array of log odds."""
    records, targets = [], []
    for number, (some, value) in enumerate(zip(odds, truths, strict=True)):
        records += [
            make_record(f"p{number // studies_a_patient}", f"s{number:05d}", number=place) for place in range(len(some))
        ]
        targets += [[value]] + [[0.0]] * (len(some) - 1)
    return Units(Level.STUDY, records, np.array(targets), ONE_LABEL, np.concatenate(odds)[:, None])


def losses(units: Units) -> dict[Pooling, float]:
    found = {pooling: tune_losses(units, units.pooled(pooling)) for pooling in (Pooling.MAX, Pooling.NOISY_OR, Pooling.MEAN)}
    return {pooling: float(one.mean()) for pooling, one in found.items()}


def chosen(units: Units) -> Pooling:
    found = {pooling: tune_losses(units, units.pooled(pooling)) for pooling in (Pooling.MAX, Pooling.NOISY_OR, Pooling.MEAN)}
    return simplest_of_the_best(found, units.patients)


def test_the_loss_is_the_log_loss_of_scikit_learn_after_calibration() -> None:
    rng = np.random.default_rng(0)
    truths = rng.integers(0, 2, 60).astype(float)
    units = make_units([rng.normal(value, 1, 3) for value in truths], truths)
    pooled = units.pooled(Pooling.MEAN)
    scale, offset = fit_scale(pooled[:, 0], units.targets[:, 0])

    found = tune_losses(units, pooled)

    assert found.mean() == pytest.approx(log_loss(truths, special.expit(scale * pooled[:, 0] + offset)))


def test_the_maximum_is_chosen_if_one_lesion_stands_out_of_many_frames() -> None:
    rng = np.random.default_rng(1)
    truths = rng.integers(0, 2, 400).astype(float)
    odds = [rng.normal(-1, 0.4, rng.integers(5, 200)) for _ in truths]
    for some, value in zip(odds, truths, strict=True):
        some[0] += 2.2 * value

    assert chosen(make_units(odds, truths)) is Pooling.MAX


def test_the_noisy_or_is_chosen_if_frames_are_independent() -> None:
    rng = np.random.default_rng(2)
    chances = [rng.beta(0.4, 4, rng.integers(2, 30)) for _ in range(1500)]
    truths = [float((rng.random(len(some)) < some).any()) for some in chances]

    assert chosen(make_units([log_odds(some) for some in chances], truths)) is Pooling.NOISY_OR


def test_the_mean_is_chosen_if_every_frame_says_a_little() -> None:
    rng = np.random.default_rng(3)
    truths = rng.integers(0, 2, 400).astype(float)

    assert chosen(make_units([rng.normal(0.4 * value, 1, 20) for value in truths], truths)) is Pooling.MEAN


def test_the_simplest_is_chosen_if_nothing_tells_them_apart_and_patients_count_not_studies() -> None:
    rng = np.random.default_rng(4)
    base = rng.random(40)
    found = {Pooling.MAX: base + rng.normal(0, 0.1, 40), Pooling.MEAN: base}
    assert simplest_of_the_best(found, [str(number) for number in range(40)]) is Pooling.MAX

    clear = np.tile(np.repeat([0.5, -0.3], 20), 1)
    found = {Pooling.MAX: base + clear, Pooling.MEAN: base}
    assert simplest_of_the_best(found, [str(number) for number in range(40)]) is Pooling.MEAN
    assert simplest_of_the_best(found, ["a"] * 20 + ["b"] * 20) is Pooling.MAX  # two patients who differ are no evidence
    assert simplest_of_the_best({Pooling.MAX: base + 1, Pooling.MEAN: base}, ["a"] * 40) is Pooling.MEAN


@pytest.fixture(scope="module")
def calibrated() -> tuple[Units, Units]:
    """Studies of 100 frames each, for calibration and for the test; the noisy-or of them saturates."""
    rng = np.random.default_rng(5)
    parts = []
    for _ in range(2):
        truths = (np.arange(600) // 3 % 2).astype(float)
        parts.append(make_units([rng.normal(0.2 * value, 0.8, 100) for value in truths], truths, studies_a_patient=2))
    return parts[0], parts[1]


@pytest.mark.parametrize("pooling", [Pooling.MAX, Pooling.NOISY_OR, Pooling.MEAN])
def test_a_level_is_calibrated_even_if_its_noisy_or_saturates(calibrated: tuple[Units, Units], pooling: Pooling) -> None:
    calibration, test = calibrated
    rule = fit_level_rule(Level.STUDY, pooling, calibration, criterion="youden", alpha=0.1, resamples=100, seed=0)

    sample = level_sample(rule, test)
    found = evaluate(sample, resamples=100)

    chances, targets = sample.probabilities[:, 0], test.targets[:, 0]
    assert np.isfinite(sample.logits).all()
    assert found.labels[0].metrics["auroc"].value == pytest.approx(roc_auc_score(targets, chances))
    assert found.labels[0].metrics["ece"].value < 0.08
    assert chances.mean() == pytest.approx(targets.mean(), abs=0.05)
    covered = [
        (sample.states[targets == value, 0] != wrong).mean() for value, wrong in ((1, State.NEGATIVE), (0, State.POSITIVE))
    ]
    assert min(covered) > 0.85
    if pooling is Pooling.NOISY_OR:
        assert special.expit(test.pooled(pooling)).min() == 1.0  # without calibration at the level


def test_figures_of_a_level_say_what_they_are_about(calibrated: tuple[Units, Units]) -> None:
    calibration, test = calibrated
    rule = fit_level_rule(Level.STUDY, Pooling.MEAN, calibration, criterion="youden", alpha=0.1, resamples=100, seed=0)

    figures = evaluate(level_sample(rule, test), resamples=100).to_json()

    assert (figures["studies"], figures["patients"]) == (600, 300)
    assert "frames" not in figures
    flat = flat_figures(figures, "study_test")
    assert {"study_test_auroc", "study_test_CNV_sensitivity", "study_test_uncertain_studies"} <= flat.keys()


def make_graded(count: int, seed: int, falling: bool = False) -> Units:
    """Studies of frames of three grades, from a proportional odds model of a severity that is the worst of the frames."""
    rng = np.random.default_rng(seed)
    labels = LabelSet(GRADES.labels[::-1], Task.ORDINAL, "CALM") if falling else GRADES
    records, targets, odds = [], [], []
    for study in range(count):
        severity = rng.normal(-1.5, 1.5, rng.integers(2, 9))
        grades = np.searchsorted([0.0, 1.5], severity + rng.logistic(0, 0.3, len(severity)))
        records += [make_record(f"p{study}", f"s{study:05d}", number=place) for place in range(len(severity))]
        targets += np.eye(3)[grades].tolist()
        odds += (2.0 * (severity[:, None] - [0.0, 1.5])).tolist()
    truths = np.array(targets)[:, ::-1] if falling else np.array(targets)
    return Units(Level.STUDY, records, truths, labels, np.array(odds))


def test_the_scale_of_steps_is_that_of_one_logistic_regression_over_all_steps() -> None:
    rng = np.random.default_rng(0)
    severity = rng.normal(0, 1.5, 3000)
    grades = np.searchsorted([-0.5, 1.0], 0.8 * severity + rng.logistic(0, 1, 3000))
    steps = (grades[:, None] >= [1, 2]).astype(float)

    scales, offsets = fit_steps(np.repeat(severity[:, None], 2, axis=1), steps)

    rows = np.column_stack([np.tile(severity, 2), np.repeat(np.eye(2), 3000, axis=0)])
    known = LogisticRegression(C=np.inf, tol=1e-10, fit_intercept=False).fit(rows, steps.T.ravel()).coef_[0]
    assert scales[0] == scales[1] == pytest.approx(known[0], rel=0.01)
    np.testing.assert_allclose(offsets, known[1:], atol=0.01)


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        ([[3.0, 1.0], [-1.0, -4.0], [0.5, 0.5]], [[1, 1], [0, 0], [1, 0]]),
        ([[0.0, 0.0], [0.0, 0.0]], [[0, 0], [1, 1]]),
        ([[5.0, 5.0], [4.0, -4.0]], [[0, NAN], [NAN, 1]]),
    ],
)
def test_steps_never_cross_and_stay_finite(logits: list[list[float]], targets: list[list[float]]) -> None:
    scales, offsets = fit_steps(np.array(logits), np.array(targets, float))

    assert scales[0] == scales[1] > 0
    assert offsets[0] >= offsets[1]
    assert np.isfinite(offsets).all()


def test_steps_of_which_nothing_is_known_are_refused() -> None:
    with pytest.raises(InputError, match="No target is known"):
        fit_steps(np.zeros((2, 2)), np.array([[1.0, NAN], [0.0, NAN]]))


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("pooling", [Pooling.MAX, Pooling.NOISY_OR, Pooling.MEAN])
def test_a_unit_has_one_grade_whatever_its_pooling(pooling: Pooling, falling: bool) -> None:
    calibration, test = make_graded(300, 0, falling), make_graded(300, 1, falling)
    rule = fit_level_rule(Level.STUDY, pooling, calibration, criterion="youden", alpha=0.1, resamples=20, seed=0)

    sample = level_sample(rule, test)

    assert rule.fits(test.labels)
    np.testing.assert_allclose(sample.probabilities.sum(axis=1), 1)
    assert ((sample.states == State.POSITIVE).sum(axis=1) <= 1).all()
    found = evaluate(sample, resamples=20)
    assert found.argmax["quadratic_kappa"].value > (0.3 if pooling is Pooling.MEAN else 0.7)
    assert max(label.metrics["ece"].value for label in found.labels) < 0.12
