"""`octray models`: which networks there are, and what they are made of."""

import argparse
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.model.layer_table import Architecture

HELP = "list the networks that can be trained, or describe one"
EXAMPLE = "octray models describe resnet50 --size 256"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="print a table of well-known networks, and the names of all others by family")
    describe = actions.add_parser("describe", help="print the layers of one network, with sizes, weights and receptive fields")
    describe.add_argument("name", metavar="NAME", help="name from `octray models list`, or any other name of timm")
    describe.add_argument("--size", metavar="PIXELS", type=int, help="side of the input (default: what it was made for)")
    describe.add_argument("--plugin", metavar="MODULE", action="append", default=[], help="module or Python file of a plug-in")


def run(args: argparse.Namespace) -> int:
    """Print to standard output."""
    from pipeline.model.layer_table import describe_architecture, list_networks
    from pipeline.model.networks import list_architectures
    from pipeline.plugins import load_plugins, plugin_names

    if args.action == "describe":
        load_plugins(args.plugin)
        _print_layers(describe_architecture(args.name, args.size))
        return 0
    load_plugins()
    rows = [["name", "network", "year", "weights", "multiply-adds", "pretrained", "heatmaps", "idea"]]
    rows += [
        [
            one.name,
            one.title,
            str(one.year),
            _short(one.parameters),
            _short(one.multiply_adds),
            ", ".join(one.weights) or "-",
            "exact" if one.exact_heatmaps else "gradient",
            one.idea,
        ]
        for one in list_networks()
    ]
    _print_table(rows)
    print("\nmultiply-adds: for one frame of 224 x 224 pixels; heatmaps: exact parts of the logit, or by gradient with torch\n")
    for family, names in list_architectures().items():
        print(f"{family}: {' '.join(names)}")
    if names := plugin_names("network"):
        print(f"plug-ins: {' '.join(names)}")
    return 0


def _print_layers(found: "Architecture") -> None:
    rows = [["layer", "kind", "output", "rows", "weights", "receptive field"]]
    for layer in found.layers:
        field = "whole frame" if math.isinf(layer.receptive_field) else f"{layer.receptive_field:.0f}"
        output = " x ".join(map(str, layer.output))
        rows.append([layer.name, layer.kind, output, layer.formula or "-", f"{layer.parameters:,}", field])
    _print_table(rows)
    listed = sum(layer.parameters for layer in found.layers)
    print(f"\nnormalisation, tokens and others: {found.parameters - listed:,} weights\n")
    print(f"name: {found.name}")
    print(f"family: {found.family}")
    print(f"parameters: {found.parameters:,}")
    print(f"dense layers: {found.dense_parameters:,} ({found.dense_parameters / found.parameters:.0%} of the parameters)")
    print(f"multiply-adds: {found.multiply_adds:,}")
    print(f"input: {found.size} x {found.size} pixels (made for {found.designed_size})")
    print(f"feature maps: {' -> '.join(map(str, found.halvings))}")
    print(f"features: {found.features} on {found.map_rows} x {found.map_rows} cells")
    if found.embedding_width is not None and found.tokens is not None:
        print(f"embedding width: {found.embedding_width}, for each of {found.tokens} tokens")
    print(f"heatmaps: {'exact, from the forward pass' if found.exact_heatmaps else 'by gradient, with torch'}")


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _short(count: int) -> str:
    """Return a count with three digits and a unit: k, M or G."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return str(count)
