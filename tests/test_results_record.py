"""A study's record: what comes back from JSON is what went in, rounded."""

from pathlib import PurePosixPath

from pipeline.errors import Reason
from pipeline.frames import Quarantined
from pipeline.predictions import FramePrediction, State
from pipeline.results.record import StudyRecord
from pipeline.results.worklist import Picture, ReportFrame
from pipeline.settings import Check, Flag
from tests.builders import make_key, make_prediction


def make_record() -> StudyRecord:
    prediction = make_prediction(logit=1.23456789, probability=0.98765432, state=State.UNCERTAIN)
    result = FramePrediction(
        key=make_key(2),
        source="a/b.dcm",
        predictions=(prediction,),
        flags=(Flag(Check.ROTATED, "The frame may be turned."),),
        laterality="R",
        view_position="PA",
        distance=0.123456,
        input_sha256="a" * 64,
    )
    picture = Picture("PNEUMONIA", PurePosixPath("heatmaps/x.png"), has_positive_evidence=True)
    failure = Quarantined("a/c.dcm", Reason.NOT_AN_IMAGE, "No image.", frame_number=3)
    return StudyRecord("1.2.3.1", (ReportFrame(result, (picture,)),), (failure,))


def test_a_record_survives_json_and_its_numbers_are_rounded_once() -> None:
    content = make_record().to_json()
    record = StudyRecord.from_json(content)
    (frame,) = record.frames
    assert frame.prediction.predictions[0].probability == 0.9877
    assert frame.prediction.predictions[0].logit == 1.2346
    assert frame.prediction.distance == 0.1235
    assert frame.prediction.predictions[0].state == "uncertain"
    assert (frame.prediction.key, frame.prediction.laterality, frame.prediction.view_position) == (make_key(2), "R", "PA")
    assert frame.prediction.flags == make_record().frames[0].prediction.flags
    assert frame.pictures == make_record().frames[0].pictures
    assert record.failures == make_record().failures
    assert record.to_json() == content
