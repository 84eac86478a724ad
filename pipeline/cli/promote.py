"""`octray promote`: makes a registered bundle the champion of its model, if it passes the gate."""

import argparse
import json
import sys
from pathlib import Path

from pipeline.cli.terminal import printable

HELP = "make a registered bundle the champion of its model, if it passes the gate on the split for promotion"
EXAMPLE = "octray promote bundle/ --index index/ --policy promotion.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that `octray train --out` wrote; it is registered")
    parser.add_argument(
        "settings",
        metavar="tracking.key=value",
        nargs="*",
        help="where the bundle is registered, if not where its configuration says",
    )
    parser.add_argument("--index", type=Path, required=True, help="folder that `octray ingest` wrote, with a split promotion")
    parser.add_argument("--policy", type=Path, metavar="FILE.yaml", help="what is asked (default: that of octray)")
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the decision; say on standard error why a bundle was refused, with exit code 1."""
    from pipeline.cli.progress import bar
    from pipeline.ingest.index import load_index
    from pipeline.model.bundle import load_bundle
    from pipeline.train.promotion import load_requirements, promote

    found = promote(load_bundle(args.bundle), load_index(args.index), load_requirements(args.policy), args.settings, bar)
    if args.json:
        print(json.dumps(found._asdict(), indent=2))
    elif not found.reasons:
        before = f", in place of version {found.champion}" if found.champion not in ("", found.version) else ""
        print(f"version {found.version} of {found.name} is the champion{before}")
    if found.reasons:
        others = f" (and {len(found.reasons) - 1} more reasons, see --json)" if len(found.reasons) > 1 else ""
        sys.stderr.write(f"octray: Version {found.version} was refused: {printable(found.reasons[0])}{others}\n")
    return 1 if found.reasons else 0
