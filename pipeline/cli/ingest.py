"""`octray ingest`: read studies and labels into an index."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.deidentify import add_options, read_plan
from pipeline.cli.terminal import printable
from pipeline.errors import InputError, Reason

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.deidentify.deidentifier import Plan
    from pipeline.ingest.index import Index

HELP = "read studies and labels into an index, with patients divided into splits"
EXAMPLE = "octray ingest studies/ --labels labels.csv --out index/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="file or folder of studies")
    parser.add_argument("--out", type=Path, required=True, metavar="INDEX", help="folder to write the index to")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument(
        "--labels",
        type=Path,
        action="append",
        metavar="CSV",
        help="table with the columns file and label, and optionally patient_key and split; --columns names others. Given "
        "again, it is joined with the others by the columns that they share",
    )
    labels.add_argument(
        "--label-from",
        default="",
        metavar="folder|folder:N|REGEX",
        help="the label is the name of a folder below SOURCE: the only one (folder), the N-th (folder:1; folder:-1 is "
        "the innermost), or what a regular expression with one group finds in the path below SOURCE",
    )
    parser.add_argument(
        "--columns",
        action="append",
        default=[],
        metavar="WHAT=COLUMN,...",
        help="which column of the table says what, such as 'file=Image Index,label=Finding Labels,patient_key=Patient ID'. "
        "WHAT is file, label (a column that holds labels), labels (columns of 0 and 1: A+B, A..D, or *), patient_key, split; "
        "or, instead of file, study_instance_uid, series_instance_uid, sop_instance_uid, laterality",
    )
    parser.add_argument(
        "--uncertain",
        choices=("ignore", "zeros", "ones"),
        default="ignore",
        help="what -1 means in a column of 0 and 1: unknown, so that training leaves it out (ignore), absent (zeros), or "
        "present (ones); default ignore",
    )
    parser.add_argument(
        "--empty",
        choices=("unknown", "absent"),
        help="what an empty cell means: unknown, or that no label applies (default: unknown in columns of 0 and 1, else an "
        "error)",
    )
    parser.add_argument(
        "--several-rows",
        choices=("refuse", "unknown", "any", "majority"),
        default="refuse",
        help="what holds if rows for one file contradict each other, such as those of several readers (default refuse)",
    )
    parser.add_argument(
        "--leave-out",
        action="append",
        default=[],
        metavar="LABEL",
        help="do not use this label, for example since too few patients have it; can be given several times",
    )
    parser.add_argument(
        "--merge-spellings",
        action="store_true",
        help="take labels that differ only in case, blanks or invisible characters for one, in the spelling most files have",
    )
    parser.add_argument(
        "--patient-from",
        default="",
        metavar="folder:N|REGEX",
        help="the patient is the name of the N-th folder below SOURCE, or what a regular expression with one group finds in "
        "the path below SOURCE (default: the column patient_key, else the DICOM patient, else the study)",
    )
    parser.add_argument(
        "--split",
        default="70/10/10/10",
        help="percentages of patients for train/tune/calibration/test, or a fifth for promotion (default 70/10/10/10)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the random split (default 0)")
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        help="configuration whose sections limits, quality and data say which files and frames are used "
        "(default: all but mammograms)",
    )
    deidentification = parser.add_argument_group("de-identification")
    deidentification.add_argument(
        "--deidentify",
        type=Path,
        metavar="DIR",
        help="write de-identified copies of the studies to this folder first and index those; "
        "the options below are those of `octray deidentify`",
    )
    add_options(deidentification)


def run(args: argparse.Namespace) -> int:
    """Write the index; return 1 if an image could not be read, otherwise 0."""
    from rich.console import Console

    from pipeline.cli.progress import bar
    from pipeline.config import load_config
    from pipeline.imaging.files.names import skipped_line
    from pipeline.ingest.build import build_index
    from pipeline.ingest.file_reader import NO_LABEL
    from pipeline.ingest.splits import parse_percent

    plan = _deidentify(args)
    console = Console(stderr=True)
    skipped: Counter[str] = Counter()
    config = load_config(args.config) if args.config else None
    try:
        index, notes = build_index(
            args.sources,
            args.out,
            labels=args.labels,
            label_from=args.label_from,
            columns=args.columns,
            uncertain=args.uncertain,
            empty=args.empty,
            several_rows=args.several_rows,
            leave_out=args.leave_out,
            merge_spellings=args.merge_spellings,
            patient_from=args.patient_from,
            percent=parse_percent(args.split),
            seed=args.seed,
            deidentify=plan,
            config=config,
            progress=bar,
            skipped=skipped,
        )
    except KeyboardInterrupt:
        console.print("What was read so far is kept: run the same command to continue.", markup=False, highlight=False)
        raise
    _show_counts(console, index)
    _show_notes(console, index, [*notes, skipped_line(skipped), _where_names_are(plan)])
    return int(any(row.reason not in (NO_LABEL, Reason.NO_IMAGE) for row in index.quarantine))


def _deidentify(args: argparse.Namespace) -> "Plan | None":
    if args.deidentify:
        return read_plan(args, args.deidentify)
    if args.key or args.keep or args.blank or args.clean_pixels or args.allow:
        raise InputError("--keep, --blank, --clean-pixels, --allow and --key belong to --deidentify DIR, which was not given.")
    return None


def _where_names_are(plan: "Plan | None") -> str:
    if plan is None:
        return ""
    return (
        f"All names are new. Which file was which: octray deidentify --show-crosswalk. The key {plan.key.name} opens it; "
        "keep it to yourself."
    )


def _show_counts(console: "Console", index: "Index") -> None:
    from rich.table import Table
    from rich.text import Text

    from pipeline.ingest.index import LABEL

    table = Table(title=Text(printable(f"index {index.name}: {len(index.records)} frames")))
    table.add_column("split")
    for name in ("patients", "frames", *index.labels):
        table.add_column(Text(printable(name)), justify="right")
    for split, counts in index.counts().items():
        columns = ("patients", "frames", *(LABEL + label for label in index.labels))
        table.add_row(split, *(str(counts[column]) for column in columns))
    console.print(table)


def _show_notes(console: "Console", index: "Index", notes: list[str]) -> None:
    from collections import Counter

    lines = [note for note in notes if note]
    if not index.labels:
        lines.append("The index has no labels. To train on it, ingest again with --labels or --label-from.")
    if duplicates := index.duplicates():
        lines.append(f"{duplicates} frames have the same pixels as another; equal images are in the same split.")
    if contradictions := index.contradictions():
        lines.append(f"{contradictions} images occur with different labels; check them.")
    if several := sum(sum(map(bool, record.labels.values())) > 1 for record in index.records):
        lines.append(
            f"{several} frames have more than one label. If that is right, train with task=multilabel; otherwise correct "
            "the labels."
        )
    if unknown := index.unknown_patients():
        lines.append(
            f"{unknown} frames name no patient: each of their studies counts as one patient, so a patient with several studies "
            "may be in several splits. Give --patient-from, or a column patient_key."
        )
    for flag, count in sorted(Counter(flag for record in index.records for flag in record.flags).items()):
        lines.append(f"{count} frames flagged: {flag}")
    for reason, count in sorted(Counter(row.reason for row in index.quarantine).items()):
        what = "without an image by their kind" if reason == Reason.NO_IMAGE else f"quarantined: {reason}"
        lines.append(f"{count} {what} (listed in quarantine.csv)")
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
