"""`octray inspect`: says of every frame what octray sees in it, and of every file that it cannot read why."""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, UnreadableError

if TYPE_CHECKING:
    from pipeline.imaging.sources import StudyFile
    from pipeline.records import Frame

HELP = "say what octray sees in each frame of files or folders"
EXAMPLE = "octray inspect studies/ --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `octray inspect`."""
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a DICOM, PNG, JPEG or TIFF file, or a folder of them"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line: one for each frame, one for each unreadable file"
    )


def run(args: argparse.Namespace) -> int:
    """Print one line for each frame and each unreadable file.

    Returns
    -------
    int
        0 where everything was read, 1 where something was not.

    Raises
    ------
    InputError
        Where a path is missing, or nothing could be read.
    """
    from pipeline.imaging.sources import discover

    frames = unreadable = 0
    for file in chain.from_iterable([discover(path) for path in args.paths]):
        for description in _describe_file(file):
            sys.stdout.write((json.dumps(description) if args.json else _line(description)) + "\n")
            failed = "reason" in description
            unreadable, frames = unreadable + failed, frames + (not failed)
    if not frames:
        raise InputError(
            f"No frame could be read: {unreadable} unreadable files." if unreadable else "There is no file in what was given."
        )
    return 1 if unreadable else 0


def _describe_file(file: "StudyFile") -> Iterator[dict[str, Any]]:
    from pipeline.imaging.sources import read_frames

    try:
        for frame in read_frames(file):
            yield _describe(frame)
    except UnreadableError as error:
        yield {"source": file.source, "reason": error.reason.value, "message": str(error)}


def _describe(frame: "Frame") -> dict[str, Any]:
    return {
        "source": frame.source,
        "study_instance_uid": frame.key.study_instance_uid,
        "series_instance_uid": frame.key.series_instance_uid,
        "sop_instance_uid": frame.key.sop_instance_uid,
        "frame_number": frame.key.frame_number,
        "modality": frame.modality,
        "view_position": frame.view_position,
        "laterality": frame.laterality,
        "rows": frame.pixels.shape[0],
        "columns": frame.pixels.shape[1],
        "photometric_interpretation": frame.photometric_interpretation,
        "transfer_syntax_uid": frame.transfer_syntax_uid,
        "pixel_sha256": frame.pixel_sha256,
        "pixel_spacing_mm": frame.pixel_spacing_mm,
        "min": round(float(frame.pixels.min()), 6),
        "max": round(float(frame.pixels.max()), 6),
        "notes": frame.notes,
    }


def _line(description: dict[str, Any]) -> str:
    """Return a description in columns, with nothing in it that a terminal would obey."""
    if "reason" in description:
        text = f"{description['source']}  UNREADABLE  {description['reason']}: {description['message']}"
    else:
        spacing = description["pixel_spacing_mm"]
        kind = (description[key] for key in ("modality", "view_position", "laterality", "photometric_interpretation"))
        columns = (
            f"{description['source']}  frame {description['frame_number']}",
            " ".join(part for part in kind if part) or "-",
            f"{description['rows']} x {description['columns']}",
            f"{spacing[0]:g} x {spacing[1]:g} mm" if spacing else "spacing unknown",
            f"grey {description['min']:.3f} to {description['max']:.3f}",
            f"sha256 {description['pixel_sha256'][:12]}",
            *description["notes"],
        )
        text = "  ".join(columns)
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)
