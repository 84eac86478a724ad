"""What a bundle says of frames and studies, and by which rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.predictions import Activation, ConformalBand, DecisionRule, OperatingPoint, State

LABELS = ("CNV", "DME", "DRUSEN", "NORMAL")
chance = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@st.composite
def rules(draw: st.DrawFn, exclusive: bool | None = None, normal: str | bool | None = True) -> DecisionRule:
    edges = [sorted((draw(chance), draw(chance))) for _ in LABELS]
    bands = tuple(ConformalBand(label, *pair) for label, pair in zip(LABELS, edges, strict=True))
    named = draw(st.sampled_from(["NORMAL", None])) if normal is True else normal
    return DecisionRule(bands, draw(st.booleans()) if exclusive is None else exclusive, named)  # type: ignore[arg-type]


@st.composite
def rows(draw: st.DrawFn, is_exclusive: bool) -> np.ndarray:
    values = np.array(draw(st.lists(st.lists(chance, min_size=4, max_size=4), min_size=1, max_size=8)))
    if is_exclusive:
        values = (values + 1e-3) / (values + 1e-3).sum(axis=1, keepdims=True)
    return values


@given(st.data())
def test_states_never_contradict_each_other(data: st.DataObject) -> None:
    rule = data.draw(rules())
    states = rule.states(data.draw(rows(rule.exclusive)))
    for found in states:
        positive = (found == State.POSITIVE).sum()
        assert all(isinstance(one, State) for one in found)
        if rule.exclusive:
            assert positive <= 1
            assert positive == 0 or (found == State.NEGATIVE).sum() == 3
            assert (found == State.NEGATIVE).sum() < 4
        if rule.normal_label:
            *findings, normal = found
            assert (normal == State.POSITIVE) == all(one == State.NEGATIVE for one in findings)
            assert normal == State.NEGATIVE or State.POSITIVE not in findings


@given(st.data())
def test_a_finding_is_decided_only_as_its_band_decides_it(data: st.DataObject) -> None:
    rule = data.draw(rules())
    chances = data.draw(rows(rule.exclusive))
    for found, values in zip(rule.states(chances), chances, strict=True):
        for state, value, band in zip(found, values, rule.bands, strict=True):
            if state == State.NEGATIVE:
                assert value < band.present_from
            if state == State.POSITIVE and band.label != rule.normal_label:
                assert value >= band.absent_below


@given(st.data())
def test_each_frame_is_decided_by_itself(data: st.DataObject) -> None:
    rule = data.draw(rules())
    chances = data.draw(rows(rule.exclusive))
    together = rule.states(chances).tolist()
    assert [rule.states(one[None])[0].tolist() for one in chances] == together


@given(st.data())
def test_independent_labels_without_a_normal_one_follow_their_bands_alone(data: st.DataObject) -> None:
    rule = data.draw(rules(exclusive=False, normal=None))
    chances = data.draw(rows(is_exclusive=False))
    for found, values in zip(rule.states(chances), chances, strict=True):
        for state, value, band in zip(found, values, rule.bands, strict=True):
            inside = band.present_from <= value < band.absent_below
            assert state == ("uncertain" if inside else "positive" if value >= band.absent_below else "negative")


@given(st.data())
def test_the_most_probable_label_is_never_a_negative_finding(data: st.DataObject) -> None:
    rule = data.draw(rules(exclusive=True))
    chances = data.draw(rows(is_exclusive=True))
    for found, values in zip(rule.states(chances), chances, strict=True):
        if (top := int(values.argmax())) < 3:
            assert found[top] != State.NEGATIVE


def states_of(chances: list[float], labels: tuple[str, ...], edges: list[tuple[float, float]], exclusive: bool = True) -> list:
    bands = tuple(ConformalBand(label, *pair) for label, pair in zip(labels, edges, strict=True))
    return [str(one) for one in DecisionRule(bands, exclusive, "NORMAL").states([chances])[0]]


@pytest.mark.parametrize(
    ("pneumonia", "expected"),
    [
        (0.75, ["uncertain", "uncertain"]),
        (0.60, ["uncertain", "uncertain"]),
        (0.30, ["positive", "negative"]),
        (0.90, ["negative", "positive"]),
    ],
)
def test_a_probable_finding_below_a_high_operating_point_is_uncertain(pneumonia: float, expected: list[str]) -> None:
    bands = [(0.19, 0.34), (0.66, 0.81)]
    assert states_of([1 - pneumonia, pneumonia], ("NORMAL", "PNEUMONIA"), bands) == expected


def test_two_findings_that_exclude_each_other_are_both_uncertain_and_normal_is_ruled_out() -> None:
    bands = [(0.2, 0.3), (0.1, 0.2), (0.4, 0.5), (0.4, 0.5)]
    assert states_of([0.6, 0.38, 0.01, 0.01], LABELS, bands) == ["uncertain", "uncertain", "negative", "negative"]
    assert states_of([0.9, 0.08, 0.01, 0.01], LABELS, bands) == ["positive", "negative", "negative", "negative"]
    assert states_of([0.9, 0.6, 0.01, 0.01], LABELS, bands, False) == ["positive", "positive", "negative", "negative"]
    assert states_of([0.9, 0.6, 0.01, 0.7], LABELS, bands, False) == ["uncertain", "uncertain", "negative", "uncertain"]


def test_if_nothing_is_left_the_most_probable_finding_stays_open() -> None:
    bands = [(0.8, 0.9)] * 4
    assert states_of([0.1, 0.2, 0.1, 0.6], LABELS, bands) == ["negative", "uncertain", "negative", "negative"]
    assert states_of([0.1, 0.2, 0.1, 0.6], LABELS, bands, False) == ["negative", "uncertain", "negative", "negative"]


def test_a_label_without_a_band_is_decided_at_its_operating_point() -> None:
    points = [OperatingPoint(label, 0.4, "youden", 1, 1) for label in ("A", "B")]
    rule = DecisionRule.of(("A", "B"), points, [ConformalBand("B", 0.3, 0.6)], Activation.SIGMOID, None)
    assert rule.states([[0.4, 0.4], [0.39, 0.29]]).tolist() == [["positive", "uncertain"], ["negative", "negative"]]
