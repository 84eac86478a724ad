"""`octray evaluate`: the figures of a bundle on its test split, or an acceptance report on the studies of another site."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.compare import columns, interval
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.evaluate.comparison import Subgroup

HELP = "evaluate a bundle on one split of an index, or on the studies of another site"
EXAMPLE = "octray evaluate bundle/ --index index/ --split test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that `octray train` wrote")
    parser.add_argument("--index", type=Path, required=True, help="folder that `octray ingest` wrote")
    parser.add_argument(
        "--split",
        choices=("train", "tune", "calibration", "test", "promotion"),
        help="split to evaluate (default test, and all but promotion if the index is not the one of the training)",
    )
    parser.add_argument(
        "--prevalence",
        action="append",
        default=[],
        metavar="LABEL=0.02",
        type=_prevalence,
        help="also give PPV and NPV if the label is so common; may be repeated",
    )
    parser.add_argument(
        "--by", metavar="COLUMN", help="show groups of frames instead, by a column of the index such as view_position"
    )
    parser.add_argument(
        "--table", type=Path, metavar="CSV", help="take COLUMN from this table; it needs a column patient_key or file, too"
    )
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the figures, and say on standard error if they are not fair.

    Raises
    ------
    InputError
        If options contradict each other.
    """
    from pipeline.cli.progress import bar
    from pipeline.frames import TRAINING_SPLITS, Split
    from pipeline.ingest.index import load_index
    from pipeline.model.bundle import load_bundle
    from pipeline.model.card import text_table
    from pipeline.train.assessment import bundle_subgroups, evaluate_bundle
    from pipeline.train.local_calibration import accept_bundle, acceptance_text

    bundle, index = load_bundle(args.bundle), load_index(args.index)
    is_home = index.sha256 == bundle.manifest.provenance.dataset_sha256
    if args.table and not args.by:
        raise InputError("--table needs --by, the name of the column to group frames by.")
    if args.prevalence and args.by:
        raise InputError("--by shows groups, which have no predictive values. Leave --prevalence out, or --by.")
    if args.by:
        groups = bundle_subgroups(bundle, index, args.by, table=args.table, split=args.split or Split.TEST, progress=bar)
        print(json.dumps([asdict(group) for group in groups], indent=2) if args.json else _groups(args.by, groups))
        return 0
    if is_home or args.prevalence:
        split = args.split or Split.TEST
        figures = evaluate_bundle(bundle, index, split=split, prevalence=dict(args.prevalence), progress=bar).to_json()
        if is_home and split != Split.TEST:
            sys.stderr.write(f"octray: the bundle was made with the split {split}: only figures of test are fair.\n")
        print(json.dumps(figures, indent=2) if args.json else text_table(figures))
        return 0
    splits = (Split(args.split),) if args.split else TRAINING_SPLITS
    report = accept_bundle(bundle, index, splits=splits, progress=bar)
    print(json.dumps(report, indent=2) if args.json else f"{text_table(report['figures'])}\n\n\n{acceptance_text(report)}")
    return 0


def _prevalence(text: str) -> tuple[str, float]:
    label, equals, part = text.rpartition("=")
    try:
        return label, float(part) if equals else math.nan
    except ValueError:
        return label or text, math.nan


def _groups(by: str, groups: "Sequence[Subgroup]") -> str:
    from pipeline.predictions import FEW_PATIENTS

    rows: list[tuple[str, ...]] = [(by, "frames", "patients", "label", "figure", "value", "minus all others", "p")]
    for group in groups:
        start: tuple[str, ...] = (group.value or "(not known)", str(group.frames), str(group.patients))
        for label, figures in group.labels.items():
            for name, figure in figures.items():
                chance = group.p_values[label][name]
                few = " few patients" if label in group.few and name == "auroc" else ""
                shown = interval(figure), interval(group.differences[label][name], signed=True)
                rows.append((*start, label + few, name, *shown, "-" if chance is None else f"{chance:.3f}"))
                start = ("", "", "")
    return (
        f"{columns(rows)}\n\nIn brackets: 95 % intervals by patient. p: chance of so large a difference to all other frames, "
        f"corrected for\nall tests here (Holm). Few patients: fewer than {FEW_PATIENTS} with the label, or without it."
    )
