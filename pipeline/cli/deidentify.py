"""`octray deidentify`: write de-identified copies of DICOM files, and show the crosswalk to whoever has the key."""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.deidentify.deidentifier import FolderResult, Plan

HELP = "write copies of DICOM files without identifying data"
EXAMPLE = "octray deidentify studies/ --out shared/ --keep dates"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `octray deidentify`."""
    parser.add_argument("sources", type=Path, nargs="*", metavar="SOURCE", help="DICOM file, or folder of DICOM files")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the new files; must not lie inside SOURCE")
    add_options(parser)
    parser.add_argument(
        "--show-crosswalk",
        action="store_true",
        help="print which new file came from which old one, one JSON object per line, and exit",
    )


def add_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options of de-identification, for every command that de-identifies."""
    parser.add_argument(
        "--profile", choices=("basic",), default="basic", help="profile of DICOM PS3.15 Annex E (default basic)"
    )
    parser.add_argument(
        "--keep",
        action="append",
        choices=("dates", "uids", "patient", "descriptors"),
        default=[],
        help="keep more: dates (all dates of a patient shifted by the same number of days), uids, patient (sex, age, size and "
        "weight), descriptors (descriptions made of words known to be safe); may be given several times",
    )
    parser.add_argument(
        "--blank",
        action="append",
        default=[],
        metavar="LEFT,TOP,WIDTH,HEIGHT",
        help="rectangle in pixels to blank in every frame of every image; may be given several times",
    )
    parser.add_argument(
        "--clean-pixels",
        action="store_true",
        help="find text in every image and blank it; can miss text; needs pip install 'octray[ocr]'",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="SHA256:ATTRIBUTE",
        help="keep a value that was refused because it equals an identifier, after you have looked at the file: only in the "
        "file with this hash and in this attribute (a keyword or gggg,eeee); may be given several times",
    )
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="secret key, created if missing; the crosswalk is kept beside it (default ~/.config/octray/deidentify.key)",
    )


def run(args: argparse.Namespace) -> int:
    """De-identify, or show the crosswalk; return 1 if a file was refused, otherwise 0.

    Raises
    ------
    InputError
        If there is nothing to do, or the paths or the key cannot be used.
    """
    from pipeline.cli.progress import bar
    from pipeline.deidentify.crosswalk import show_crosswalk
    from pipeline.deidentify.deidentifier import deidentify_folder
    from pipeline.imaging.files.names import skipped_line

    if args.show_crosswalk:
        for entry in show_crosswalk(args.key):
            sys.stdout.write(json.dumps(entry) + "\n")
        return 0
    if not args.sources or args.out is None:
        raise InputError("Name the files or folders to de-identify, and the folder for the new ones with --out.")
    skipped: Counter[str] = Counter()
    plan = read_plan(args, args.out)
    result = deidentify_folder(args.sources, plan, bar, skipped=skipped)
    _report(result, plan.key, skipped_line(skipped))
    if not result.names:
        raise InputError("No file was de-identified.")
    return int(bool(result.refused))


def read_plan(args: argparse.Namespace, out: Path) -> "Plan":
    """Return what the options ask for, with the folder for the new files.

    Raises
    ------
    InputError
        If a rectangle or a value of --allow is malformed.
    """
    from pipeline.deidentify.deidentifier import plan_deidentification

    return plan_deidentification(
        out,
        key=args.key,
        keep=args.keep,
        blank=map(_rectangle, args.blank),
        clean_pixels=args.clean_pixels,
        allow=(text.partition(":")[::2] for text in args.allow),
    )


def _rectangle(text: str) -> tuple[int, int, int, int]:
    match = re.fullmatch(r"(\d+),(\d+),(\d+),(\d+)", text, re.ASCII)
    if not match:
        raise InputError(f"The rectangle {text} must be LEFT,TOP,WIDTH,HEIGHT in pixels, for example 0,0,640,40.")
    left, top, width, height = map(int, match.groups())
    return left, top, width, height


def _report(result: "FolderResult", key: Path, skipped: str) -> None:
    """Say how many files were written and, without naming them, why others were not."""
    from rich.console import Console

    files, patients = len(result.names), result.patients
    lines = [f"De-identified and verified: {files} file{'s' * (files != 1)} of {patients} patient{'s' * (patients != 1)}."]
    counts = Counter((file.reason, file.message) for file in result.refused)
    lines += [f"{count} refused: {reason}: {message}" for (reason, message), count in sorted(counts.items())]
    if counts:
        lines.append(
            f"To see which files: octray deidentify --show-crosswalk --key {key}. It names patients; keep it to yourself."
        )
    lines.append(
        f"The key {key.name} opens the crosswalk and links new files with these: keep it safe, and never beside the files."
    )
    console = Console(stderr=True)
    for line in filter(None, (*lines, skipped)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
