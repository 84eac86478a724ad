"""Says of a frame what octray sees in it, in plain values that JSON can hold."""

from collections.abc import Iterator
from typing import Any

from pipeline.frames import Frame
from pipeline.imaging.quality.gate import assess
from pipeline.imaging.sources import StudyFile, read_frames
from pipeline.settings import Gate


def describe_file(file: StudyFile) -> Iterator[dict[str, Any]]:
    """Describe the frames of a file in their order; what a worker process does.

    Raises
    ------
    UnreadableError
        As `read_frames`.
    """
    return (describe(frame) for frame in read_frames(file))


def describe(frame: Frame) -> dict[str, Any]:
    """Describe one frame; the names are stable, and docs/integrators.md says what they mean."""
    rows, columns = frame.shape
    return {
        "source": frame.source,
        "study_instance_uid": frame.key.study_instance_uid,
        "series_instance_uid": frame.key.series_instance_uid,
        "sop_instance_uid": frame.key.sop_instance_uid,
        "frame_number": frame.key.frame_number,
        "frames": frame.number_of_frames,
        "sop_class_uid": frame.sop_class_uid,
        "modality": frame.modality,
        "view_position": frame.view_position,
        "laterality": frame.laterality,
        "body_part": frame.body_part,
        "instance_number": frame.instance_number,
        "rows": rows,
        "columns": columns,
        "photometric_interpretation": frame.photometric_interpretation,
        "transfer_syntax_uid": frame.transfer_syntax_uid,
        "pixel_sha256": frame.pixel_sha256,
        "stored_sha256": frame.stored_sha256,
        "instance_sha256": frame.instance_sha256 or None,
        "stored_min": _number(frame.stored_range[0]),
        "stored_max": _number(frame.stored_range[1]),
        "pixel_spacing_mm": frame.pixel_spacing_mm,
        "slice_position_mm": frame.slice_position_mm,
        "min": round(float(frame.pixels.min()), 6),
        "max": round(float(frame.pixels.max()), 6),
        "flags": [{"check": flag.check.value, "message": flag.message} for flag in assess(frame, Gate())],
        "notes": frame.notes,
    }


def _number(stored: float) -> int | float:
    return int(stored) if stored.is_integer() else stored
