"""The columns of a table of predictions, of which every row is one label of one frame."""

from collections.abc import Callable, Mapping

from pipeline.predictions import FramePrediction, Prediction
from pipeline.results.rounding import known, rounded

Value = str | int | float | bool | None
Column = tuple[type[str | int | float | bool], Callable[[FramePrediction, Prediction], Value]]
"""The type of its values, and what gives one; None is what is not known."""

COLUMNS: Mapping[str, Column] = {
    "source": (str, lambda frame, _: frame.source),
    "study_instance_uid": (str, lambda frame, _: frame.key.study_instance_uid),
    "series_instance_uid": (str, lambda frame, _: frame.key.series_instance_uid),
    "sop_instance_uid": (str, lambda frame, _: frame.key.sop_instance_uid),
    "frame_number": (int, lambda frame, _: frame.key.frame_number),
    "laterality": (str, lambda frame, _: frame.laterality),
    "view_position": (str, lambda frame, _: frame.view_position),
    "label": (str, lambda _, prediction: prediction.label),
    "logit": (float, lambda _, prediction: rounded(prediction.logit)),
    "probability": (float, lambda _, prediction: rounded(prediction.probability)),
    "positive": (bool, lambda _, prediction: prediction.positive),
    "state": (str, lambda _, prediction: prediction.state.value),
    "operating_point": (float, lambda _, prediction: known(prediction.operating_point)),
    "conformal_set": (str, lambda _, prediction: ";".join(prediction.conformal_set)),
    "distance": (float, lambda frame, _: known(frame.distance)),
    "flags": (str, lambda frame, _: ";".join(flag.check for flag in frame.flags)),
    "bundle_id": (str, lambda _, prediction: prediction.bundle_id),
    "input_sha256": (str, lambda frame, _: frame.input_sha256),
}


def rows_of(frame: FramePrediction) -> list[dict[str, Value]]:
    """Return the rows of a frame, one for each label, numbers rounded."""
    return [{name: value(frame, prediction) for name, (_, value) in COLUMNS.items()} for prediction in frame.predictions]
