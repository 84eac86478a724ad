"""Pooling of frames into studies, eyes and patients: worked by hand, by scipy and torch, and by draws with a known truth."""

import itertools

import numpy as np
import pytest
from scipy import special, stats

from pipeline.levels import (
    Attention,
    DecidingFrame,
    LabelSet,
    Level,
    LevelRule,
    Pooling,
    level_result,
    log_odds,
    pool,
    sigmoid,
)
from pipeline.predictions import ConformalBand, OperatingPoint, State, Task
from tests.builders import make_attention, make_level, make_prediction

NONE_NORMAL = np.array([False, False])
LABELS = LabelSet(("NORMAL", "CNV", "DME"), Task.MULTICLASS, "NORMAL")
GRADES = LabelSet(("CALM", "MILD", "SEVERE"), Task.ORDINAL, "CALM")
FALLING = LabelSet(("SEVERE", "MILD", "CALM"), Task.ORDINAL, "CALM")


def odds(*rows: tuple[float, ...]) -> np.ndarray:
    return special.logit(np.array(rows))


def test_the_maximum_of_findings_and_the_minimum_of_no_finding_by_hand() -> None:
    pooled, weights = pool(odds((0.2, 0.9), (0.7, 0.4)), Pooling.MAX, np.array([False, True]))

    np.testing.assert_allclose(special.expit(pooled), [0.7, 0.4])
    np.testing.assert_array_equal(weights, [[0, 0], [1, 1]])


def test_a_noisy_or_by_hand() -> None:
    pooled, weights = pool(odds((0.2, 0.9), (0.5, 0.8)), Pooling.NOISY_OR, np.array([False, True]))

    np.testing.assert_allclose(special.expit(pooled), [1 - 0.8 * 0.5, 0.9 * 0.8])
    np.testing.assert_allclose(weights[:, 0], np.log([0.8, 0.5]) / np.log(0.4))
    np.testing.assert_allclose(weights[:, 1], np.log([0.9, 0.8]) / np.log(0.72))


def test_the_mean_of_log_odds_by_hand() -> None:
    pooled, weights = pool(np.array([[1.0, -2.0], [3.0, 0.0]]), Pooling.MEAN, NONE_NORMAL)

    np.testing.assert_allclose(pooled, [2.0, -1.0])
    np.testing.assert_array_equal(weights, np.full((2, 2), 0.5))


def test_an_average_by_attention_by_hand() -> None:
    scores = np.array([[0.0, np.log(3)], [0.0, 0.0]])

    pooled, weights = pool(np.array([[1.0, 4.0], [3.0, 0.0]]), Pooling.ATTENTION, NONE_NORMAL, scores)

    np.testing.assert_allclose(weights, [[0.5, 0.75], [0.5, 0.25]])
    np.testing.assert_allclose(pooled, [2.0, 3.0])


def test_attention_without_scores_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="scores"):
        pool(np.zeros((2, 1)), Pooling.ATTENTION, np.array([False]))


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("certainty", [0.0, 1e-300, 0.5, 1 - 1e-16, 1.0])
def test_nothing_overflows_in_thousands_of_frames(pooling: Pooling, certainty: float) -> None:
    seen = log_odds(np.full((5000, 2), certainty))

    pooled, weights = pool(seen, pooling, np.array([False, True]), 1000.0 * seen)

    assert np.isfinite(pooled).all()
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    assert np.isfinite(sigmoid(pooled * 20.0)).all()


@pytest.mark.parametrize("pooling", list(Pooling))
def test_one_frame_is_its_own_result(pooling: Pooling) -> None:
    seen = np.array([[-3.0, 0.5]])

    pooled, weights = pool(seen, pooling, np.array([False, True]), np.zeros((1, 2)))

    np.testing.assert_allclose(pooled, seen[0], rtol=1e-12)
    np.testing.assert_array_equal(weights, [[1, 1]])


@pytest.mark.parametrize("pooling", [Pooling.MAX, Pooling.NOISY_OR])
def test_the_label_without_a_finding_mirrors_a_finding(pooling: Pooling) -> None:
    seen = np.random.default_rng(0).normal(size=(9, 1))

    found, _ = pool(seen, pooling, np.array([False]))
    normal, _ = pool(-seen, pooling, np.array([True]))

    np.testing.assert_allclose(normal, -found)


def test_log_odds_and_sigmoid_are_those_of_scipy() -> None:
    chances, logits = np.array([1e-9, 0.3, 0.999]), np.array([-900.0, -1.5, 0.0, 40.0, 900.0])

    np.testing.assert_allclose(log_odds(chances), special.logit(chances), rtol=1e-12)
    np.testing.assert_allclose(sigmoid(logits), special.expit(logits), rtol=1e-12, atol=0)


def test_attention_scores_are_those_of_the_same_layers_in_torch() -> None:
    torch = pytest.importorskip("torch")
    one, features = make_attention(channels=5), np.random.default_rng(1).normal(size=5).astype(np.float32).astype(float)
    tensors = {name: torch.from_numpy(getattr(one, name)).double() for name in one.__slots__}

    hidden = torch.tanh(torch.nn.functional.linear(torch.from_numpy(features), tensors["tanh_weight"], tensors["tanh_bias"]))
    gate = torch.nn.functional.linear(torch.from_numpy(features), tensors["gate_weight"], tensors["gate_bias"])
    expected = tensors["output"] @ (hidden * torch.sigmoid(gate))

    np.testing.assert_allclose(one.scores(features), expected.numpy(), rtol=1e-12)


def test_attention_is_read_as_it_was_written_and_refused_if_it_does_not_fit() -> None:
    one = make_attention(channels=5)
    tensors = one.tensors(Level.STUDY)

    again = Attention.of(tensors, Level.STUDY, weightings=2)

    np.testing.assert_array_equal(again.scores(np.ones(5)), one.scores(np.ones(5)))
    assert again.channels == 5
    with pytest.raises(ValueError, match=r"patient\.tanh_weight"):
        Attention.of(tensors, Level.PATIENT, weightings=2)
    with pytest.raises(ValueError, match="do not fit"):
        Attention.of(tensors, Level.STUDY, weightings=3)
    with pytest.raises(ValueError, match="do not fit"):
        Attention.of(tensors | {"study.gate_bias": np.zeros(4, np.float32)}, Level.STUDY, weightings=2)


def make_rule(pooling: Pooling = Pooling.MAX, level: Level = Level.STUDY, **overrides: object) -> LevelRule:
    points = tuple(OperatingPoint(label, 0.5, "youden", 0.9, 0.9) for label in ("NORMAL", "CNV", "DME"))
    bands = tuple(ConformalBand(label, 0.4, 0.6) for label in ("NORMAL", "CNV", "DME"))
    fields: dict[str, object] = {
        "level": level,
        "pooling": pooling,
        "scales": (1.0, 1.0, 1.0),
        "offsets": (0.0, 0.0, 0.0),
        "operating_points": points,
        "bands": bands,
    }
    return LevelRule(**fields | overrides)  # type: ignore[arg-type]


def test_a_study_may_have_two_findings_whose_labels_exclude_each_other_in_a_frame() -> None:
    seen = odds((0.05, 0.9, 0.05), (0.05, 0.05, 0.9), (0.98, 0.01, 0.01))

    result = level_result(make_rule(), seen, [("a", 1), ("a", 2), ("b", 1)], LABELS)

    assert [one.state for one in result.predictions] == [State.NEGATIVE, State.POSITIVE, State.POSITIVE]
    np.testing.assert_allclose([one.probability for one in result.predictions], [0.05, 0.9, 0.9])
    assert [one.deciding for one in result.predictions[1:]] == [(DecidingFrame("a", 1, 1.0),), (DecidingFrame("a", 2, 1.0),)]
    assert (result.frames, result.left_out, result.studies) == (3, 0, 1)


def test_scale_and_offset_make_the_probability_and_the_band_the_state() -> None:
    rule = make_rule(scales=(1.0, 2.0, 1.0), offsets=(0.0, -1.0, 5.0))

    result = level_result(rule, np.array([[9.0, 0.55, -9.0]]), [("a", 1)], LABELS)

    np.testing.assert_allclose([one.probability for one in result.predictions], special.expit([9.0, 0.1, -4.0]))
    assert [one.state for one in result.predictions] == [State.UNCERTAIN, State.UNCERTAIN, State.NEGATIVE]


def test_the_frames_that_decide_are_named_with_their_weights() -> None:
    scores = np.log([[1.0] * 3, [1.0] * 3, [6.0] * 3, [2.0] * 3])

    result = level_result(
        make_rule(Pooling.ATTENTION), np.zeros((4, 3)), [("a", 1), ("a", 2), ("b", 1), ("b", 2)], LABELS, scores
    )

    decisive = result.predictions[1].deciding
    assert [(one.source, one.frame_number) for one in decisive] == [("b", 1), ("b", 2), ("a", 1)]
    np.testing.assert_allclose([one.weight for one in decisive], [0.6, 0.2, 0.1])


def test_frames_of_equal_weight_are_named_by_what_they_say() -> None:
    seen = np.array([[-1.0, 1.0, 0.0], [-3.0, 3.0, 0.0], [2.0, -2.0, 0.0]])

    normal, cnv, _ = level_result(make_rule(Pooling.MEAN), seen, [("a", 1), ("a", 2), ("a", 3)], LABELS).predictions

    assert [one.frame_number for one in cnv.deciding] == [2, 1, 3]
    assert [one.frame_number for one in normal.deciding] == [2, 1, 3]  # they speak most against it


def test_without_a_scored_frame_there_is_no_state_and_a_reason() -> None:
    result = level_result(make_rule(), np.zeros((0, 3)), [], LABELS, left_out=4)

    assert result.predictions == ()
    assert result.why_unknown == "None of the images of this study could be scored."
    assert (result.frames, result.left_out) == (0, 4)


@pytest.mark.parametrize("pooling", [Pooling.MAX, Pooling.NOISY_OR])
def test_more_evidence_never_lowers_a_finding(pooling: Pooling) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        seen = rng.normal(0, 5, (rng.integers(1, 30), 1))
        before, _ = pool(seen, pooling, np.array([False]))
        after, _ = pool(np.append(seen, rng.normal(0, 5, (1, 1)), axis=0), pooling, np.array([False]))
        assert after[0] >= before[0] - 1e-9


def test_a_noisy_or_is_the_chance_of_any_frame_if_frames_are_independent() -> None:
    chances = np.array([0.1, 0.02, 0.3])

    pooled, _ = pool(log_odds(chances)[:, None], Pooling.NOISY_OR, np.array([False]))

    drawn = stats.bernoulli.rvs(chances, size=(200_000, 3), random_state=0).any(axis=1).mean()
    assert float(special.expit(pooled[0])) == pytest.approx(drawn, abs=0.003)


MIXED = np.array([(0.05, 0.9, 0.05), (0.02, 0.03, 0.95), (0.98, 0.01, 0.01)])
"""Frames of which the first is mild and the second severe."""


@pytest.mark.parametrize("labels", [GRADES, FALLING], ids=["rising", "falling"])
@pytest.mark.parametrize("pooling", list(Pooling))
def test_a_unit_has_one_grade_and_the_worst_wins_by_the_maximum(labels: LabelSet, pooling: Pooling) -> None:
    chances = MIXED if labels is GRADES else MIXED[:, ::-1]
    rule = make_level(pooling=pooling, labels=labels.labels, scales=(1.0, 1.0), offsets=(0.0, 0.0))
    frames = [("a", 1), ("a", 2), ("b", 1)]

    result = level_result(rule, labels.odds(chances), frames, labels, np.zeros((3, 1)))

    assert rule.fits(labels)
    found = {one.label: one for one in result.predictions}
    assert sum(one.probability for one in found.values()) == pytest.approx(1)
    assert [one.state for one in found.values()].count(State.POSITIVE) <= 1
    if pooling is Pooling.MAX:
        assert {label: one.probability for label, one in found.items()} == pytest.approx(
            {"CALM": 0.02, "MILD": 0.03, "SEVERE": 0.95}
        )
        assert found["SEVERE"].state is State.POSITIVE
        assert [found[label].deciding for label in labels.labels] == [(DecidingFrame("a", 2, 1.0),)] * 3


def test_a_noisy_or_of_grades_by_hand() -> None:
    rule = make_level(pooling=Pooling.NOISY_OR, labels=GRADES.labels, scales=(1.0, 1.0), offsets=(0.0, 0.0))

    result = level_result(rule, GRADES.odds([(0.5, 0.3, 0.2), (0.8, 0.1, 0.1)]), [("a", 1), ("a", 2)], GRADES)

    expected = [0.5 * 0.8, 1 - 0.5 * 0.8 - (1 - 0.8 * 0.9), 1 - 0.8 * 0.9]
    np.testing.assert_allclose([one.probability for one in result.predictions], expected)


@pytest.mark.parametrize("labels", [GRADES, FALLING], ids=["rising", "falling"])
def test_the_truth_of_grades_survives_the_way_to_steps_and_back(labels: LabelSet) -> None:
    nan = np.nan
    known = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (nan, nan, 0), (0, nan, nan), (nan, nan, nan)], float)
    targets = known if labels is GRADES else known[:, ::-1]

    steps = labels.pooled_targets(targets)

    np.testing.assert_array_equal(steps, [(0, 0), (1, 0), (1, 1), (nan, 0), (1, nan), (nan, nan)])
    np.testing.assert_array_equal(labels.label_targets(steps), targets)


def test_a_rule_that_lets_steps_cross_does_not_fit_grades() -> None:
    assert make_level(labels=LABELS.labels).fits(LABELS)
    assert not make_level(labels=GRADES.labels).fits(GRADES)
    assert not make_level(labels=GRADES.labels, scales=(1.0, 2.0), offsets=(0.0, 0.0)).fits(GRADES)
    assert not make_level(labels=GRADES.labels, scales=(1.0, 1.0), offsets=(0.0, 1.0)).fits(GRADES)


SCORED = (State.POSITIVE, State.UNCERTAIN, State.NEGATIVE)


@pytest.mark.parametrize("states", list(itertools.product(SCORED, repeat=3)))
def test_any_positive_frame_decides_for_a_finding_and_any_negative_one_against_normal(states: tuple[State, ...]) -> None:
    labels = LabelSet(("NORMAL", "CNV"), Task.MULTILABEL, "NORMAL")
    found = labels.states([[make_prediction(label, state=state) for label in labels.labels] for state in states])
    positives, negatives = states.count(State.POSITIVE), states.count(State.NEGATIVE)
    assert list(found) == ["NORMAL", "CNV"]
    assert (found["CNV"] == "positive") == (positives > 0)
    assert (found["CNV"] == "negative") == (negatives == 3)
    assert (found["NORMAL"] == "positive") == (positives == 3)
    assert (found["NORMAL"] == "negative") == (negatives > 0)


@pytest.mark.parametrize("labels", [LABELS, GRADES])
def test_nothing_is_said_of_a_study_without_scored_frames(labels: LabelSet) -> None:
    assert labels.states([]) == {}


def test_without_a_normal_label_every_label_is_a_finding() -> None:
    frames = [[make_prediction("A", state=State.POSITIVE)], [make_prediction("A", state=State.NEGATIVE)]]
    assert LabelSet(("A",), Task.MULTILABEL).states(frames) == {"A": State.POSITIVE}


POSSIBLE = [set(some) for size in (1, 2, 3) for some in itertools.combinations(GRADES.labels, size)]


@pytest.mark.parametrize("labels", [GRADES, FALLING], ids=["rising", "falling"])
def test_the_worst_grade_that_is_possible_decides_for_the_frames_together(labels: LabelSet) -> None:
    for frames in itertools.product(POSSIBLE, repeat=2):
        worst = {max(some, key=GRADES.labels.index) for some in itertools.product(*frames)}
        kept = State.POSITIVE if len(worst) == 1 else State.UNCERTAIN
        said = [
            [
                make_prediction(
                    label,
                    state=State.NEGATIVE if label not in some else State.POSITIVE if len(some) == 1 else State.UNCERTAIN,
                )
                for label in labels.labels
            ]
            for some in frames
        ]
        assert labels.states(said) == {label: kept if label in worst else State.NEGATIVE for label in labels.labels}


def test_probabilities_of_frames_together_are_those_of_the_frames_that_say_most() -> None:
    np.testing.assert_allclose(LABELS.pooled_probabilities(MIXED), [0.02, 0.9, 0.95])
    np.testing.assert_allclose(GRADES.pooled_probabilities(MIXED), [0.02, 0.03, 0.95])
    np.testing.assert_allclose(FALLING.pooled_probabilities(MIXED[:, ::-1]), [0.95, 0.03, 0.02])
