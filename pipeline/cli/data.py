"""`octray data`: the catalogue of data sets, and their download."""

import argparse
import sys
from pathlib import Path

HELP = "list the data sets in the catalogue, or download one"
EXAMPLE = "octray data pull pneumoniamnist --to data/pneumoniamnist"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="list the data sets: name, how to get it, licence, title")
    fetch = actions.add_parser("pull", help="download a data set, check its checksum, and unpack it")
    fetch.add_argument("name", metavar="NAME", help="name from `octray data list`")
    fetch.add_argument("--to", type=Path, metavar="FOLDER", help="folder to download to (default: data/NAME)")


def run(args: argparse.Namespace) -> int:
    """Print the list, or the folder that `octray ingest` takes, to standard output."""
    from pipeline import catalog
    from pipeline.cli.progress import bar

    if args.action == "list":
        cards = catalog.list_datasets()
        name, licence = (max(map(len, texts)) for texts in zip(*((card.name, card.licence) for card in cards), strict=True))
        for card in cards:
            print(f"{card.name:<{name}}  {'pull' if card.pull else 'by hand':<8} {card.licence:<{licence}}  {card.title}")
        return 0
    card = catalog.find_card(args.name)
    folder = catalog.pull_dataset(card, args.to, progress=bar)
    sys.stderr.write(f"octray: {card.title}, {card.licence}. Please cite: {card.citation}\n")
    sys.stderr.write(f"octray: next: octray ingest {folder} --labels {folder / 'labels.csv'} --out index-{card.name}\n")
    print(folder)
    return 0
