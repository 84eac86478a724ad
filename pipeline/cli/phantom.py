"""`octray phantom`: write synthetic studies with known lesions."""

import argparse
import sys
from pathlib import Path

HELP = "write synthetic studies with known lesions, and their labels"
EXAMPLE = "octray phantom phantoms/ --modality xray --studies 120 --seed 7"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder for studies/, labels.csv and truth.json")
    parser.add_argument(
        "--modality",
        choices=("xray", "oct"),
        default="xray",
        help="chest radiographs (xray, the default) or retinal OCT volumes (oct)",
    )
    parser.add_argument("--studies", type=int, default=120, metavar="N", help="how many studies (default 120)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed writes the same studies (default 0)")


def run(args: argparse.Namespace) -> int:
    """Write the studies; return 0."""
    from pipeline.cli.progress import bar
    from pipeline.phantoms.studies import write_phantom

    write_phantom(args.out, args.modality, args.studies, args.seed, bar)
    message = (
        f"Wrote {args.studies} synthetic studies. Next: octray ingest {args.out / 'studies'} --labels {args.out / 'labels.csv'}"
    )
    print(f"{message} --out INDEX", file=sys.stderr)
    return 0
