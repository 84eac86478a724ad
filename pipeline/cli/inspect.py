"""`octray inspect`: says of every frame what octray sees in it, and of every file that it cannot read why."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.cli.terminal import printable
from pipeline.errors import InputError, Reason

HELP = "show what octray sees in each frame of files or folders"
EXAMPLE = "octray inspect studies/ --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `octray inspect`."""
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a DICOM, PNG, JPEG or TIFF file, an archive or a folder of them"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per line, for each frame and each unreadable file"
    )


def run(args: argparse.Namespace) -> int:
    """Print one line for each frame and each unreadable file.

    Returns
    -------
    int
        0 if everything was read that is an image, 1 if something was not.

    Raises
    ------
    InputError
        If a path does not exist, or nothing could be read.
    """
    from pipeline.imaging.describe import describe_files
    from pipeline.imaging.files.names import skipped_line

    frames = unreadable = without_image = 0
    skipped: Counter[str] = Counter()
    try:
        for description in describe_files(args.paths, skipped=skipped):
            sys.stdout.write((json.dumps(description) if args.json else _line(description)) + "\n")
            sys.stdout.flush()
            reason = description.get("reason")
            frames += reason is None
            without_image += reason == Reason.NO_IMAGE
            unreadable += reason not in (None, Reason.NO_IMAGE)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted. The remaining files were not read.") from None
    if line := skipped_line(skipped):
        sys.stderr.write(f"{line}\n")
    if not frames and not (without_image and not unreadable):
        raise InputError(
            f"No frame could be read: {unreadable} unreadable files."
            if unreadable
            else "No files were found. Give a file, or a folder that contains files."
        )
    return 1 if unreadable else 0


def _line(description: dict[str, Any]) -> str:
    """Return a description in columns, with nothing in it that a terminal would obey."""
    if "reason" in description:
        verdict = "NO IMAGE" if description["reason"] == Reason.NO_IMAGE else "UNREADABLE"
        text = f"{description['source']}  {verdict}  {description['reason']}: {description['message']}"
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
            *(f"{flag['check'].upper()}: {flag['message']}" for flag in description["flags"]),
            *description["notes"],
        )
        text = "  ".join(columns)
    return printable(text)
