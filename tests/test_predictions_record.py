"""A study's record: what comes back from JSON is what went in, rounded."""

from dataclasses import replace

import numpy as np

from pipeline.errors import Reason
from pipeline.frames import Quarantined
from pipeline.predictions import Heatmap, State, StudyRecord
from pipeline.settings import Check, Flag
from tests.builders import make_key, make_prediction, make_result


def make_record() -> StudyRecord:
    prediction = make_prediction(logit=1.23456789, probability=0.98765432, state=State.UNCERTAIN)
    facts = {"laterality": "R", "view_position": "PA", "file_sha256": "a" * 64, "notes": ("a", "b")}
    result = make_result(prediction, key=make_key(2), **facts)
    drawn = Heatmap("PNEUMONIA", True, "heatmaps/x.jpg", 3, 4, np.ones((2, 2), np.float32), b"jpeg", b"png")
    flags = (Flag(Check.ROTATED, "The frame may be turned."),)
    frame = replace(result, flags=flags, distance=0.123456, heatmaps=(drawn,))
    failure = Quarantined("a/c.dcm", Reason.NOT_AN_IMAGE, "No image.", frame_number=3)
    letter = Quarantined("a/d.dcm", Reason.NO_IMAGE, "A report.")
    return StudyRecord("1.2.3.1", (frame,), (letter, failure), "2026-11-30T08:00:00Z", "2026-11-30T08:00:01Z")


def test_a_record_survives_json_and_its_numbers_are_rounded_once() -> None:
    content = make_record().to_json()
    record = StudyRecord.from_json(content)
    (frame,) = record.frames
    assert frame.predictions[0] == make_prediction(logit=1.2346, probability=0.9877, state=State.UNCERTAIN)
    assert frame.distance == 0.1235
    assert frame.facts == make_record().frames[0].facts
    assert frame.flags == make_record().frames[0].flags
    assert record.not_used == make_record().not_used
    assert record.to_json() == content


def test_neither_the_content_of_heatmaps_nor_times_are_in_the_json() -> None:
    record = make_record()
    back = StudyRecord.from_json(record.to_json())
    assert back.frames[0].heatmaps == record.frames[0].without_content().heatmaps
    assert back.frames[0].heatmaps[0].values is None
    assert back.begun_at == ""
    assert replace(record, begun_at="earlier").to_json() == record.to_json()


def test_files_without_an_image_are_told_from_failures() -> None:
    record = make_record()
    assert [row.source for row in record.failures] == ["a/c.dcm"]
    assert [row.source for row in record.without_image] == ["a/d.dcm"]
    assert record.sources() == {"a/b.dcm", "a/c.dcm", "a/d.dcm"}
