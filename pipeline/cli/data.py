"""`octray data`: the catalogue of data sets, and their download."""

import argparse
import sys
from pathlib import Path

HELP = "list the data sets that octray knows, or fetch one"
EXAMPLE = "octray data pull pneumoniamnist --to data/pneumoniamnist"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="one line for each: name, how to get it, licence, title")
    fetch = actions.add_parser("pull", help="download with a pinned checksum and unpack")
    fetch.add_argument("name", metavar="NAME", help="a name from the list")
    fetch.add_argument("--to", type=Path, metavar="FOLDER", help="where to put it (default: data/NAME)")


def run(args: argparse.Namespace) -> int:
    """Print the list, or the folder that `octray ingest` takes, to standard output."""
    from pipeline.catalog import catalog
    from pipeline.cli.progress import bar

    if args.action == "list":
        cards = catalog.load_cards()
        name, licence = (max(map(len, texts)) for texts in zip(*((card.name, card.licence) for card in cards), strict=True))
        for card in cards:
            print(f"{card.name:<{name}}  {'pull' if card.pull else 'by hand':<8} {card.licence:<{licence}}  {card.title}")
        return 0
    card = catalog.find_card(args.name)
    folder = catalog.pull(card, args.to or Path("data") / card.name, bar)
    sys.stderr.write(f"octray: {card.title}, {card.licence}. Please cite: {card.citation}\n")
    sys.stderr.write(f"octray: next: octray ingest {folder} --labels {folder / 'labels.csv'} --out index-{card.name}\n")
    print(folder)
    return 0
