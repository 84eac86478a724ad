"""What octray sees in each frame of files, as `octray inspect` shows it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.quality.gate import assess
from pipeline.imaging.sources import StudyFile, discover, read_frames
from pipeline.settings import Gate


def describe_files(
    paths: Sequence[Path | str], *, workers: int = 0, skipped: Counter[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Describe every frame of files and folders, in order; the files are read in worker processes under limits.

    Parameters
    ----------
    paths
        Files, archives or folders.
    workers
        How many files are read at the same time; 0 takes one for each core.
    skipped
        As in `discover`.

    Yields
    ------
    dict
        For each frame what `describe_frame` returns, as soon as it is known. For each file that cannot be read, or not to its
        end, `source`, `reason` (a code of `Reason`) and `message`.

    Raises
    ------
    InputError
        If a path does not exist, or may not be opened.
    """
    files = [file for path in paths for file in discover(path, skipped=skipped)]
    with file_workers(workers) as pool:
        for file, descriptions in pool.map(_describe_file, zip(files, files, strict=True)):
            try:
                yield from descriptions
            except UnreadableError as error:
                yield {"source": file.source, "reason": error.reason.value, "message": str(error)}


def _describe_file(file: StudyFile) -> Iterator[dict[str, Any]]:
    """Describe the frames of a file; made for worker processes."""
    return (describe_frame(frame) for frame in read_frames(file))


def describe_frame(frame: Frame) -> dict[str, Any]:
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
