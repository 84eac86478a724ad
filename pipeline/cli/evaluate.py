"""`octray evaluate`: the figures of a bundle on one split of an index."""

import argparse
import json
import sys
from pathlib import Path

HELP = "evaluate a bundle on one split of an index"
EXAMPLE = "octray evaluate bundle/ --index index/ --split test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that `octray train` wrote")
    parser.add_argument("--index", type=Path, required=True, help="folder that `octray ingest` wrote")
    parser.add_argument(
        "--split",
        choices=("train", "tune", "calibration", "test", "promotion"),
        default="test",
        help="split to evaluate (default test)",
    )
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the figures, and say on standard error if they are not fair."""
    from pipeline.cli.progress import bar
    from pipeline.ingest.index import load_index
    from pipeline.model.bundle import load_bundle
    from pipeline.model.card import text_table
    from pipeline.train.assessment import evaluate_bundle

    bundle, index = load_bundle(args.bundle), load_index(args.index)
    figures = evaluate_bundle(bundle, index, split=args.split, progress=bar).to_json()
    if index.sha256 != bundle.manifest.provenance.dataset_sha256:
        sys.stderr.write(
            "octray: this is not the index that the bundle was trained on; if they share patients, the figures are too good.\n"
        )
    elif args.split != "test":
        sys.stderr.write(f"octray: the bundle was made with the split {args.split}: only figures of test are fair.\n")
    print(json.dumps(figures, indent=2) if args.json else text_table(figures))
    return 0
