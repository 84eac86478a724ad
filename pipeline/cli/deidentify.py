"""`octray deidentify`: write DICOM files anew without identity, and show the crosswalk to whoever has the key."""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.deidentify.job import Job
    from pipeline.deidentify.options import Box
    from pipeline.deidentify.tree import Summary

HELP = "write copies of DICOM files without anything that says who the patient is"
EXAMPLE = "octray deidentify studies/ --out shared/ --keep dates"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `octray deidentify`."""
    parser.add_argument("sources", type=Path, nargs="*", metavar="SOURCE", help="DICOM file or folder of them")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the new files; must not lie inside SOURCE")
    add_options(parser)
    parser.add_argument(
        "--show-crosswalk", action="store_true", help="print which file became which, as one JSON object a line, and end"
    )


def add_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add what says how studies are de-identified, for every command that does it."""
    parser.add_argument(
        "--profile", choices=("basic",), default="basic", help="profile of DICOM PS3.15 Annex E (default basic)"
    )
    parser.add_argument(
        "--keep",
        action="append",
        choices=("dates", "uids", "patient", "descriptors"),
        default=[],
        help="keep more: dates moved by one offset a patient, UIDs, the patient's sex, age, size and weight, descriptions of "
        "which every word is known to be safe; may be given several times",
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
        help="find text in every image and blank it; needs the extra ocr, and can miss some",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="SHA256:ATTRIBUTE",
        help="keep a value that was refused because it equals an identifier, after you have looked at it: in the one file with "
        "this hash, in this one attribute (a keyword or gggg,eeee); may be given several times",
    )
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="secret key, made where there is none; the crosswalk lies beside it (default ~/.config/octray/deidentify.key)",
    )


def run(args: argparse.Namespace) -> int:
    """De-identify, or show the crosswalk; return 1 where a file was refused, otherwise 0.

    Raises
    ------
    InputError
        Where there is nothing to do, or something stands where it must not.
    """
    key = _key(args)
    if args.show_crosswalk:
        return _show_crosswalk(key)
    if not args.sources or args.out is None:
        raise InputError("Name the files or folders to de-identify, and the folder for the new ones with --out.")
    from pipeline.cli.progress import bar
    from pipeline.deidentify.tree import deidentify_tree
    from pipeline.imaging.files.names import skipped_line

    skipped: Counter[str] = Counter()
    summary = deidentify_tree(args.sources, job(args, args.out), bar, skipped=skipped)
    _report(summary, key, skipped_line(skipped))
    if not summary.names:
        raise InputError("No file was de-identified.")
    return int(bool(summary.refused))


def job(args: argparse.Namespace, out: Path) -> "Job":
    """Return what the options ask, with the folder for the new files.

    Raises
    ------
    InputError
        If a rectangle is none, or what is to be allowed is no hash and attribute.
    """
    from pipeline.deidentify.job import Job
    from pipeline.deidentify.options import Keep, Options

    keep = frozenset(Keep[name.upper()] for name in args.keep)
    allowed = frozenset(_allowed(text) for text in args.allow)
    return Job(out, _key(args), Options(keep, tuple(_box(text) for text in args.blank), args.clean_pixels, allowed))


def _key(args: argparse.Namespace) -> Path:
    from pipeline.deidentify.secret import default_key_path

    return args.key or default_key_path()


def _box(text: str) -> "Box":
    from pipeline.deidentify.options import Box

    numbers = text.split(",")
    if (
        len(numbers) != 4
        or not all(number.isdecimal() for number in numbers)
        or "0" in (n.lstrip("0") or "0" for n in numbers[2:])
    ):
        raise InputError(f"The rectangle {text} must be LEFT,TOP,WIDTH,HEIGHT in pixels, for example 0,0,640,40.")
    left, top, width, height = (int(number) for number in numbers)
    return Box(left, top, width, height)


def _allowed(text: str) -> tuple[str, int]:
    """Return the hash of a file and the tag of an attribute; a folder or a whole file cannot be named."""
    from pydicom.datadict import dictionary_has_tag, tag_for_keyword

    sha256, _, attribute = text.partition(":")
    number = re.fullmatch(r"\(?([0-9a-fA-F]{4}),([0-9a-fA-F]{4})\)?", attribute)
    tag = int("".join(number.groups()), 16) if number else tag_for_keyword(attribute or "none")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256) or tag is None or not dictionary_has_tag(tag):
        raise InputError(
            f"--allow {text} must be SHA256:ATTRIBUTE: the hash of one file as the crosswalk has it, and a keyword of DICOM "
            "or its number, for example WindowCenter or 0028,1050."
        )
    return sha256.lower(), tag


def _show_crosswalk(key: Path) -> int:
    from pipeline.deidentify import crosswalk, secret

    for entry in crosswalk.read(crosswalk.crosswalk_path(key), secret.read(key)):
        sys.stdout.write(json.dumps(entry) + "\n")
    return 0


def _report(summary: "Summary", key: Path, skipped: str) -> None:
    """Say how many files were written and, without their names, why others were not."""
    from rich.console import Console

    lines = [f"{len(summary.names)} files of {summary.patients} patients were de-identified and verified."]
    counts = Counter((refused.reason, refused.message) for refused in summary.refused)
    lines += [f"{count} refused: {reason}: {message}" for (reason, message), count in sorted(counts.items())]
    if counts:
        lines.append(
            f"Which files they are: octray deidentify --show-crosswalk --key {key}. It names patients; keep it to yourself."
        )
    lines.append(
        f"The key {key.name} opens the crosswalk and links new files with these: keep it safe, never beside the files."
    )
    console = Console(stderr=True)
    for line in filter(None, (*lines, skipped)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
