"""`octray evaluate`: the figures of a bundle on its test split, or an acceptance report on the studies of another site."""

import argparse
import json
import sys
from pathlib import Path

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
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the figures; on standard error, say if they are not fair."""
    from pipeline.cli.progress import bar
    from pipeline.frames import TRAINING_SPLITS, Split
    from pipeline.ingest.index import load_index
    from pipeline.model.bundle import load_bundle
    from pipeline.model.card import text_table
    from pipeline.train.assessment import evaluate_bundle
    from pipeline.train.local_calibration import accept_bundle, acceptance_text

    bundle, index = load_bundle(args.bundle), load_index(args.index)
    if index.sha256 == bundle.manifest.provenance.dataset_sha256:
        split = args.split or Split.TEST
        figures = evaluate_bundle(bundle, index, split=split, progress=bar).to_json()
        if split != Split.TEST:
            sys.stderr.write(f"octray: the bundle was made with the split {split}: only figures of test are fair.\n")
        print(json.dumps(figures, indent=2) if args.json else text_table(figures))
        return 0
    splits = (Split(args.split),) if args.split else TRAINING_SPLITS
    report = accept_bundle(bundle, index, splits=splits, progress=bar)
    print(json.dumps(report, indent=2) if args.json else f"{text_table(report['figures'])}\n\n\n{acceptance_text(report)}")
    return 0
