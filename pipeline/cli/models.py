"""`octray models`: which networks there are."""

import argparse

HELP = "list the networks that can be trained, or describe one"
EXAMPLE = "octray models describe tf_efficientnet_lite0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="list the names of the networks, by family")
    describe = actions.add_parser("describe", help="print size, input and heatmaps of one network")
    describe.add_argument("name", metavar="NAME", help="name from `octray models list`")


def run(args: argparse.Namespace) -> int:
    """Print to standard output."""
    from pipeline.model import networks

    if args.action == "list":
        for family, names in networks.list_architectures().items():
            print(f"{family}: {' '.join(names)}")
        return 0
    found = networks.describe_architecture(args.name)
    heatmaps = "exact, from the forward pass" if found.exact_heatmaps else "by gradient, with torch"
    print(f"name: {found.name}")
    print(f"family: {found.family}")
    print(f"parameters: {found.parameters:,}")
    print(f"input: {found.size} x {found.size} pixels")
    print(f"features: {found.features}")
    print(f"heatmaps: {heatmaps}")
    return 0
