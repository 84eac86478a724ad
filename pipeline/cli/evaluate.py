"""`octray evaluate`: the figures of a bundle on its test split, or an acceptance report on the studies of another site."""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.compare import columns, interval
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.evaluate.comparison import Subgroup

HELP = "evaluate a bundle on one split of an index, or on the studies of another site"
EXAMPLE = "octray evaluate bundle/ --index index/ --split test"

_ACCEPTED = ("auroc", "sensitivity", "specificity", "brier", "ece")
"""Figures that an acceptance shows beside those of the model card."""


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
    from pipeline.train.local_calibration import accept_bundle

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
    print(json.dumps(report, indent=2) if args.json else f"{text_table(report['figures'])}\n\n\n{_acceptance(report)}")
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


def _acceptance(report: Mapping[str, Any]) -> str:
    home, here, refusals = report["home"], report["figures"], report["refusals"]
    rows: list[tuple[str, ...]] = [("label", "figure", "at home (95 % interval)", "here (95 % interval)")]
    for label, found in here["labels"].items():
        for name in _ACCEPTED:
            known = home["labels"].get(label, {}).get("metrics", {}).get(name) if home else None
            rows.append((label, name, interval(known) if known else "-", interval(found["metrics"][name])))
    rows.append(("all", "uncertain", interval(home["uncertain"]) if home else "-", interval(here["uncertain"])))
    before = report["home_refusals"]
    away = _share(refusals)
    rows.append(("all", "patients with a refused frame", _share(before) if before else "-", away))
    head = f"Acceptance on {report['index']}: {report['frames']} frames of {report['patients']} patients"
    left = f"; {report['known_patients']} patients of the bundle's own data were left out" if report["known_patients"] else ""
    parts = [f"{head}{left}.", columns(rows)]
    return "\n\n".join([*parts, "\n".join(_sentences(report))])


def _sentences(report: Mapping[str, Any]) -> list[str]:
    from pipeline.train.local_calibration import HALF_WIDTH

    drift, gain, needed = report["drift"], report["calibration"], report["needed"]
    moved = [name for name, one in drift.items() if one["found"]]
    tests = ", ".join(f"{name} D={one['statistic']:.2f} p={one['p_value']:.2g}" for name, one in drift.items())
    said = [
        ("Drift was found in " + ", ".join(moved) if moved else "No drift was found")
        + f" (Kolmogorov-Smirnov test against the calibration split, one frame of each patient: {tests}).",
    ]
    if "not_measured" in gain:
        said.append(f"What local calibration would bring was not measured. {gain['not_measured']}")
    else:
        what = {
            "gain": "Local calibration makes the bundle better here",
            "loss": "Local calibration makes the bundle worse here",
            "unproven": "Whether local calibration makes the bundle better here is unproven",
        }[gain["verdict"]]
        said.append(
            f"{what}: the log loss of a frame changes from {gain['log_loss_before']:.4f} to {gain['log_loss_after']:.4f}, "
            f"a gain of {gain['value']:.4f} ({gain['low']:.4f} to {gain['high']:.4f})."
        )
        if needed["patients_for_calibration"]:
            said.append(f"About {needed['patients_for_calibration']} more patients would decide it.")
    for label, more in needed["patients_for_figures"].items():
        if more["present"] or more["absent"]:
            said.append(
                f"For intervals of +-{HALF_WIDTH:g}, {label} needs {more['present']} more patients with it (sensitivity) and "
                f"{more['absent']} more without it (specificity)."
            )
    return said


def _share(refusals: Mapping[str, Any]) -> str:
    part = refusals["refused_patients"] / refusals["patients"]
    return f"{part:.3f} ({refusals['low']:.3f} to {refusals['high']:.3f})"
