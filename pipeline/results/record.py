"""What is kept of a scored study: all that tables and report show, as JSON whose bytes depend on the results alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.frames import InstanceKey, Quarantined
from pipeline.predictions import FramePrediction, Prediction, State, known, rounded
from pipeline.results.worklist import Picture, ReportFrame
from pipeline.settings import Check, Flag


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study with everything that was found in it and everything that was not scored.

    Parameters
    ----------
    study_instance_uid
        Study Instance UID (0020,000D), or the derived one; empty where no file of the study could be read.
    frames
        Results in the order of the files and frames; without heatmap values, numbers `rounded`.
    failures
        Files and frames that were not scored, in the same order.
    without_image
        Files that have no image by their kind, such as structured reports; there was nothing to score in them.
    """

    study_instance_uid: str
    frames: tuple[ReportFrame, ...]
    failures: tuple[Quarantined, ...] = ()
    without_image: tuple[Quarantined, ...] = ()

    def sources(self) -> set[str]:
        """Return the files that something is said of."""
        rows = (*self.failures, *self.without_image)
        return {frame.prediction.source for frame in self.frames} | {row.source for row in rows}

    def to_json(self) -> bytes:
        """Return the record as UTF-8 JSON; equal records give equal bytes."""
        values = {
            "study_instance_uid": self.study_instance_uid,
            "frames": [_frame(frame) for frame in self.frames],
            "failures": [_failure(failure) for failure in self.failures],
            "without_image": [_failure(one) for one in self.without_image],
        }
        return json.dumps(values, separators=(",", ":"), ensure_ascii=True).encode()

    @staticmethod
    def from_json(content: bytes) -> "StudyRecord":
        """Return the record that `to_json` wrote."""
        values = json.loads(content)
        return StudyRecord(
            values["study_instance_uid"],
            tuple(_to_frame(frame) for frame in values["frames"]),
            tuple(Quarantined(**failure) for failure in values["failures"]),
            tuple(Quarantined(**one) for one in values["without_image"]),
        )


def _frame(frame: ReportFrame) -> dict[str, Any]:
    result = frame.prediction
    return {
        "series_instance_uid": result.key.series_instance_uid,
        "sop_instance_uid": result.key.sop_instance_uid,
        "study_instance_uid": result.key.study_instance_uid,
        "frame_number": result.key.frame_number,
        "source": result.source,
        "laterality": result.laterality,
        "view_position": result.view_position,
        "distance": known(result.distance),
        "input_sha256": result.input_sha256,
        "bundle_id": result.predictions[0].bundle_id if result.predictions else "",
        "flags": [{"check": flag.check.value, "message": flag.message} for flag in result.flags],
        "predictions": [
            {
                "label": one.label,
                "logit": rounded(one.logit),
                "probability": rounded(one.probability),
                "state": one.state.value,
                "operating_point": known(one.operating_point),
            }
            for one in result.predictions
        ],
        "pictures": [
            {
                "label": one.label,
                "path": one.path.as_posix(),
                "has_positive_evidence": one.has_positive_evidence,
                "rows": one.rows,
                "columns": one.columns,
            }
            for one in frame.pictures
        ],
    }


def _failure(failure: Quarantined) -> dict[str, Any]:
    return {
        "source": failure.source,
        "reason": str(failure.reason),
        "message": failure.message,
        "frame_number": failure.frame_number,
    }


def _to_frame(values: Mapping[str, Any]) -> ReportFrame:
    names = ("study_instance_uid", "series_instance_uid", "sop_instance_uid", "frame_number")
    key = InstanceKey(*(values[name] for name in names))
    predictions = tuple(
        Prediction(**(one | {"key": key, "bundle_id": values["bundle_id"], "state": State(one["state"])}))
        for one in values["predictions"]
    )
    result = FramePrediction(
        key=key,
        source=values["source"],
        predictions=predictions,
        flags=tuple(Flag(Check(flag["check"]), flag["message"]) for flag in values["flags"]),
        laterality=values["laterality"],
        view_position=values["view_position"],
        distance=values["distance"],
        input_sha256=values["input_sha256"],
    )
    pictures = (Picture(**(one | {"path": PurePosixPath(one["path"])})) for one in values["pictures"])
    return ReportFrame(result, tuple(pictures))
