"""The states of a study, against counting by hand."""

import itertools

import pytest

from pipeline.predictions import Prediction, State
from pipeline.results.states import study_states
from tests.builders import make_prediction


def prediction(label: str, state: State) -> Prediction:
    return make_prediction(label, state=state)


SCORED = (State.POSITIVE, State.UNCERTAIN, State.NEGATIVE)


@pytest.mark.parametrize("states", list(itertools.product(SCORED, repeat=3)))
def test_any_positive_frame_decides_for_a_finding_and_any_negative_one_against_normal(states: tuple[State, ...]) -> None:
    found = study_states([[prediction("NORMAL", state), prediction("CNV", state)] for state in states], "NORMAL")
    positives, negatives = states.count(State.POSITIVE), states.count(State.NEGATIVE)
    assert list(found) == ["NORMAL", "CNV"]
    assert (found["CNV"] == "positive") == (positives > 0)
    assert (found["CNV"] == "negative") == (negatives == 3)
    assert (found["NORMAL"] == "positive") == (positives == 3)
    assert (found["NORMAL"] == "negative") == (negatives > 0)


def test_nothing_is_said_of_a_study_without_scored_frames() -> None:
    assert study_states([], "NORMAL") == {}


def test_without_a_normal_label_every_label_is_a_finding() -> None:
    assert study_states([[prediction("A", State.POSITIVE)], [prediction("A", State.NEGATIVE)]], None) == {"A": State.POSITIVE}
