"""`octray calibrate`: a bundle calibrated to the labelled studies of another site."""

import argparse
from pathlib import Path

HELP = "calibrate a bundle to labelled studies of another site"
EXAMPLE = "octray calibrate bundle/ --index local-index/ --out local-bundle/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that `octray train` wrote")
    parser.add_argument(
        "--index",
        type=Path,
        required=True,
        help="labelled studies of the site, from `octray ingest`; its splits test and promotion are not used",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the calibrated bundle to")
    parser.add_argument(
        "--decisions",
        action="store_true",
        help="choose operating points and bands on these studies as well (default: keep them)",
    )


def run(args: argparse.Namespace) -> int:
    """Calibrate, and say what it brought and where the new bundle lies."""
    from pipeline.cli.progress import bar
    from pipeline.ingest.index import load_index
    from pipeline.model.bundle import load_bundle
    from pipeline.train.local_calibration import calibrate_bundle

    made = calibrate_bundle(load_bundle(args.bundle), load_index(args.index), args.out, decisions=args.decisions, progress=bar)
    if local := made.manifest.local:
        print(f"calibrated on {local.frames} frames of {local.patients} patients: {made.manifest.calibration.words}")
        print(local.words)
    print(f"bundle {made.manifest.bundle_id} written to {args.out}")
    return 0
