"""`octray bundle`: checks a bundle without scoring."""

import argparse
from pathlib import Path

HELP = "check that a bundle is whole and unaltered"
EXAMPLE = "octray bundle verify bundle/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    verify = actions.add_parser("verify", help="compare every file with its hash")
    verify.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that `octray train --out` wrote")


def run(args: argparse.Namespace) -> int:
    """Print what the bundle is to standard output."""
    from pipeline.model.bundle import load_bundle

    manifest = load_bundle(args.bundle).manifest
    print(f"bundle_id: {manifest.bundle_id}")
    print(f"config: {manifest.provenance.config_name}")
    print(f"architecture: {manifest.architecture}")
    print(f"labels: {', '.join(manifest.labels)}")
    print(f"created: {manifest.provenance.created}")
    print(f"files: {len(manifest.files)}, all unaltered")
    return 0
