"""`octray compare`: two bundles on the same frames of an index."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.predictions import Interval

HELP = "compare two bundles on one split of an index"
EXAMPLE = "octray compare bundle/ other-bundle/ --index index/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("first", metavar="A", type=Path, help="bundle to compare with")
    parser.add_argument("second", metavar="B", type=Path, help="bundle whose figures minus those of A are shown")
    parser.add_argument("--index", type=Path, required=True, help="folder that `octray ingest` wrote")
    parser.add_argument(
        "--split",
        choices=("train", "tune", "calibration", "test", "promotion"),
        default="test",
        help="split to compare on (default test)",
    )
    parser.add_argument("--resamples", type=int, default=2000, metavar="N", help="resamples of patients (default 2000)")
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the differences with their intervals."""
    from pipeline.cli.progress import bar
    from pipeline.ingest.index import load_index
    from pipeline.model.bundle import load_bundle
    from pipeline.train.assessment import compare_bundles

    index = load_index(args.index)
    first, second = load_bundle(args.first), load_bundle(args.second)
    found = compare_bundles(first, second, index, split=args.split, resamples=args.resamples, progress=bar)
    is_theirs = all(index.sha256 == one.manifest.provenance.dataset_sha256 for one in (first, second))
    if args.split not in ("test", "promotion") or not is_theirs:
        sys.stderr.write("octray: only a comparison on patients whom neither bundle was made with is fair.\n")
    print(json.dumps(found.to_json(), indent=2) if args.json else _table(found.to_json()))
    return 0


def _table(found: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [("", "figure", "A", "B", "B - A")]
    for label, figures in {**found["labels"], "all labels": found["macro"]}.items():
        for name, one in figures.items():
            numbers = (_number(one["first"]), _number(one["second"]), interval(one, signed=True))
            rows.append((label if name == next(iter(figures)) else "", name.replace("_", " "), *numbers))
    return (
        f"{columns(rows)}\n\n{found['frames']} frames of {found['patients']} patients. In brackets: 95 % intervals from "
        f"{found['resamples']} resamples of patients, the\nsame for both bundles. Of log loss and Brier score less is better."
    )


def columns(rows: list[tuple[str, ...]]) -> str:
    """Return rows of cells as aligned lines, the first one underlined."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def interval(figure: "Mapping[str, Any] | Interval", signed: bool = False) -> str:
    """Return a figure with its interval, with a sign if it is a difference; a dash if it is not defined."""
    values = figure if isinstance(figure, Mapping) else {name: getattr(figure, name) for name in ("value", "low", "high")}
    form = "{:+.3f}" if signed else "{:.3f}"
    if values["value"] is None:
        return "-"
    limits = "" if values["low"] is None else f" ({form.format(values['low'])} to {form.format(values['high'])})"
    return form.format(values["value"]) + limits


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
