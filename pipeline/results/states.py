"""What a study says of each label, from what its frames say; pure."""

from collections.abc import Iterable, Sequence

from pipeline.predictions import Prediction, State


def study_states(frames: Iterable[Sequence[Prediction]], normal_label: str | None) -> dict[str, State]:
    """Return one state for each label of a study, or of the frames of one eye.

    A finding is positive where it is in any frame; else uncertain where any frame is uncertain; else negative. The label that
    means no finding must hold for all frames: it is negative where it is in any; else uncertain where any is; else positive.

    Parameters
    ----------
    frames
        The predictions of each scored frame.
    normal_label
        The label that means no finding; None where there is none.

    Returns
    -------
    dict
        By label, in the order of the first frame; empty without frames, since nothing can be said then.
    """
    found: dict[str, set[State]] = {}
    for predictions in frames:
        for prediction in predictions:
            found.setdefault(prediction.label, set()).add(prediction.state)
    return {label: _decided(states, label == normal_label) for label, states in found.items()}


def _decided(states: set[State], must_hold_for_all: bool) -> State:
    order = (State.POSITIVE, State.UNCERTAIN, State.NEGATIVE)
    return next(state for state in (order[::-1] if must_hold_for_all else order) if state in states)
