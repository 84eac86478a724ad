"""Conformal bands: coverage of either class for patients with any number of frames, and the interval of the operating point."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from benchmarks.coverage import misses
from pipeline.evaluate.decisions import choose_operating_points, conformal_bands, coverage, thresholds
from pipeline.predictions import ConformalBand, OperatingPoint, Task, patients_needed
from tests.builders import make_sample

RESAMPLES = 50


def point(threshold: float, label: str = "A") -> OperatingPoint:
    return OperatingPoint(label, threshold, "youden", 0.9, 0.9)


def fit(
    positives: list[list[float]], negatives: list[list[float]], alpha: float, threshold: float = 0.5, resamples: int = 0
) -> ConformalBand:
    """The band of one label; each inner list holds the frames of one patient."""
    patients = [*positives, *negatives]
    chances = np.concatenate(patients)[:, None]
    sizes = [len(one) for one in patients]
    truth = np.repeat([1.0] * len(positives) + [0.0] * len(negatives), sizes)[:, None]
    groups = np.repeat([f"p{number}" for number in range(len(patients))], sizes).tolist()
    (band,) = conformal_bands(chances, truth, groups, [point(threshold)], alpha, resamples, 0)
    return band


chance = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
patients = st.lists(st.lists(chance, min_size=1, max_size=5), min_size=12, max_size=24)


@given(patients, st.floats(0.1, 0.6))
@settings(max_examples=40)
def test_leaving_one_patient_out_the_truth_is_missed_at_most_alpha_often(several: list[list[float]], alpha: float) -> None:
    """The law behind the coverage: of n + 1 exchangeable patients at most alpha (n + 1) lie outside the bands of the others."""
    others = [[0.5]] * 30
    above = below = 0.0
    for number, left_out in enumerate(several):
        rest = several[:number] + several[number + 1 :]
        above += np.mean(np.array(left_out) < fit(rest, others, alpha).present_from)
        below += np.mean(np.array(left_out) >= fit(others, rest, alpha).absent_below)
    assert above <= alpha * len(several) + 1e-6
    assert below <= alpha * len(several) + 1e-6


def test_with_one_frame_a_patient_edges_are_order_statistics_moved_to_the_next_value() -> None:
    positives, negatives = [0.2, 0.4, 0.6, *[0.9] * 17], [0.8, 0.7, 0.3, *[0.1] * 17]
    band = fit([[one] for one in positives], [[one] for one in negatives], 0.1)  # floor(0.1 * 21) = 2: the second
    assert band.present_from == pytest.approx(0.35)
    assert band.absent_below == pytest.approx(0.75)
    assert (band.present_patients, band.absent_patients) == (20, 20)


def test_patients_count_and_not_their_frames() -> None:
    """Ten patients, one of whom has a hundred frames: among frames these would be the quantile."""
    positives = [[0.3] * 100, *[[0.8 + 0.01 * number] for number in range(9)]]
    band = fit(positives, [[0.1]] * 10, 0.2)  # floor(0.2 * 11) = 2 patients
    assert 0.3 < band.present_from <= 0.5
    split = fit([[0.3] * 50 + [0.9] * 50, *positives[1:]], [[0.1]] * 10, 0.1, threshold=0.9)
    assert 0.0 < split.present_from < 0.3  # half a patient is not enough for the first one's place


def simulated(rng: np.random.Generator, count: int, shift: float) -> list[list[float]]:
    """Patients who differ, with more frames the more typical they are; `shift` is the middle of their log odds."""
    typical = rng.normal(shift, 1, count)
    sizes = np.where(np.sign(shift) * (typical - shift) < -0.5, 1, rng.integers(9, 20, count))
    return [special.expit(rng.normal(middle, 0.5, size)).tolist() for middle, size in zip(typical, sizes, strict=True)]


def covered(band: ConformalBand, positives: list[list[float]], negatives: list[list[float]]) -> tuple[float, float]:
    return (
        float(np.mean([np.mean(np.array(one) >= band.present_from) for one in positives])),
        float(np.mean([np.mean(np.array(one) < band.absent_below) for one in negatives])),
    )


@pytest.mark.parametrize("count", [9, 12, 40])
def test_coverage_of_either_class_on_new_patients(count: int) -> None:
    """The operating point is out of the way."""
    rng = np.random.default_rng(0)
    found, by_frames = [], []
    for _ in range(400):
        positives, negatives = simulated(rng, count, 0.8), simulated(rng, count, -0.8)
        new = simulated(rng, 40, 0.8), simulated(rng, 40, -0.8)
        found.append(covered(fit(positives, negatives, 0.1), *new))
        alone = [[[one] for patient in side for one in patient] for side in (positives, negatives)]
        by_frames.append(covered(fit(*alone, 0.1), *new))
    middle = np.mean(found, axis=0)
    assert (middle >= 0.895).all(), middle  # the standard error is below 0.003
    assert (middle <= 0.98).all(), middle
    assert (np.mean(by_frames, axis=0) < 0.89).all(), "frames that count one by one must not do, or this shows nothing"


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.MULTILABEL])
def test_the_states_of_all_labels_cover_the_truth_on_new_patients(task: Task) -> None:
    """Everything fitted as in training: operating points, bands, one rule for all labels and NORMAL from the findings."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(60):
        logits, targets, groups = frames_of(rng, 90)
        new_logits, new_targets, new_groups = frames_of(rng, 90)
        chances = special.softmax(logits, 1) if task is Task.MULTICLASS else special.expit(logits)
        points = choose_operating_points(chances, targets, LABELS, "youden")
        bands = conformal_bands(chances, targets, groups, points, 0.1, RESAMPLES, 0)
        sample = make_sample(
            labels=LABELS,
            logits=new_logits,
            targets=new_targets,
            groups=tuple(new_groups),
            task=task,
            temperature=1.0,
            operating_points=points,
            bands=bands,
            normal_label="NORMAL",
        )
        figures = coverage(sample).values()
        names = ("covered_positives", "covered_negatives", "uncertain")
        found.append([tuple(one[name].value for name in names) for one in figures])
    covered_positives, covered_negatives, uncertain = np.mean(found, axis=0).T
    assert (covered_positives >= 0.9).all(), covered_positives
    assert (covered_negatives >= 0.9).all(), covered_negatives
    assert (uncertain > 0.05).all()


LABELS = ("NORMAL", "CNV", "DME")


def frames_of(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits, targets and patients; each patient has one of three classes, and one to four frames."""
    sizes = rng.integers(1, 5, count)
    classes = np.repeat(rng.permutation(np.arange(count) % 3), sizes)
    middle = np.repeat(rng.normal(0, 1, (count, 3)), sizes, axis=0)
    targets = np.eye(3)[classes]
    logits = middle + 2.0 * targets - 0.5 + rng.normal(0, 0.5, targets.shape)
    return logits, targets, np.repeat([f"p{number}" for number in range(count)], sizes).tolist()


def test_the_band_reaches_over_the_interval_of_the_operating_point() -> None:
    """Perfectly divided, so that no quantile widens it; the interval is that of drawing whole patients by hand."""
    rng = np.random.default_rng(3)
    positives = [rng.uniform(0.6, 0.9, 3).tolist() for _ in range(20)]
    negatives = [rng.uniform(0.1, 0.5, 3).tolist() for _ in range(20)]
    chances = np.concatenate([*positives, *negatives])
    truth = np.repeat([1.0, 0.0], 60)
    chosen = choose_operating_points(chances[:, None], truth[:, None], ["A"], "youden")[0].threshold
    band = fit(positives, negatives, 0.1, chosen, 400)
    drawn = []
    for _ in range(400):
        several = rng.integers(0, 40, 40)
        rows = np.concatenate([np.arange(3) + 3 * one for one in several])
        drawn.append(choose_operating_points(chances[rows][:, None], truth[rows][:, None], ["A"], "youden")[0].threshold)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert band.present_from < chosen < band.absent_below
    assert band.present_from == pytest.approx(low, abs=0.01)
    assert band.absent_below == pytest.approx(high, abs=0.01)


@given(st.lists(chance, min_size=6, max_size=30), st.data(), st.sampled_from(["youden", "sensitivity>=0.8"]))
def test_a_threshold_by_weights_is_that_of_repeated_frames(chances: list[float], data: st.DataObject, criterion: str) -> None:
    values = np.array(chances)
    truth = np.array([0.0, 1.0, *data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4))] * 5)[: len(values)]
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values))))
    weights[:2] += 1
    (found,) = thresholds(values, truth, weights[None].astype(float), criterion)
    repeated = np.repeat(values, weights)[:, None], np.repeat(truth, weights)[:, None]
    assert found == choose_operating_points(*repeated, ["A"], criterion)[0].threshold
    assert np.isnan(thresholds(values, truth, (weights * truth)[None], criterion)).all()


@pytest.mark.parametrize("kinds", [(8, 40), (40, 8), (2, 2)])
def test_with_fewer_patients_than_alpha_needs_only_the_operating_point_is_covered(kinds: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    positives, negatives = (simulated(rng, count, shift) for count, shift in zip(kinds, (0.3, -0.3), strict=True))
    band = fit(positives, negatives, 0.1, threshold=0.5)
    assert (band.present_from, band.absent_below) == (0.5, 0.5)
    assert (band.present_patients, band.absent_patients) == kinds
    resampled = fit(positives, negatives, 0.1, threshold=0.5, resamples=RESAMPLES)
    assert 0 < resampled.absent_below - resampled.present_from < 1
    enough = fit(simulated(rng, 9, 0.3), simulated(rng, 9, -0.3), 0.1, threshold=0.5)
    assert enough.present_from < 0.5 < enough.absent_below


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2, 0.34])
def test_so_many_patients_are_needed(alpha: float) -> None:
    """The edge of conformal prediction is the floor(alpha (n + 1))-th smallest of n, which must be at least the first."""
    needed = patients_needed(alpha)
    assert alpha * (needed + 1) >= 1 - 1e-9 > alpha * needed


@pytest.mark.parametrize("most", [1, 30])
@pytest.mark.parametrize("count", [9, 40])
def test_the_simulated_miss_rate_by_patient_is_at_most_alpha(count: int, most: int) -> None:
    """As in `benchmarks/coverage.py`, with a temperature and an operating point from the same patients."""
    missed = misses(count, most, 0.5 if most > 1 else 0.0, 200)
    assert max(missed.frames) <= 0.115, missed  # the standard error is below 0.006
    assert misses(8, most, 0.5, 5).promised == 0


def test_unknown_labels_are_left_out() -> None:
    chances = np.concatenate([np.full(20, 0.9), np.full(20, 0.1), np.full(9, 0.02)])[:, None]
    truth = np.concatenate([np.ones(20), np.zeros(20), np.full(9, np.nan)])[:, None]
    groups = [f"p{number}" for number in range(49)]
    known = conformal_bands(chances[:40], truth[:40], groups[:40], [point(0.5)], 0.1, RESAMPLES, 0)
    assert conformal_bands(chances, truth, groups, [point(0.5)], 0.1, RESAMPLES, 0) == known


def test_coverage_counts_patients_by_hand() -> None:
    logits = special.logit(np.array([[0.9], [0.5], [0.1], [0.2], [0.55], [0.5]]))
    truth = np.array([[1.0], [1.0], [1.0], [0.0], [0.0], [np.nan]])
    sample = make_sample(
        labels=("A",),
        logits=logits,
        targets=truth,
        groups=("p", "q", "q", "r", "s", "s"),
        task=Task.MULTILABEL,
        temperature=1.0,
        operating_points=(point(0.5),),
        bands=(ConformalBand("A", 0.4, 0.6, 3, 3),),
    )
    found = coverage(sample)["A"]
    assert found["covered_positives"].value == 0.75  # all of p, half of q
    assert found["covered_negatives"].value == 1.0
    assert found["uncertain"].value == pytest.approx(0.4)
    nothing = coverage(make_sample(bands=(), normal_label=None, targets=np.zeros((120, 3))))
    assert nothing["A"]["covered_positives"].value is None
