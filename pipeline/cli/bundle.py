"""`octray bundle`: checks a bundle without scoring, and records it in MLflow."""

import argparse
from pathlib import Path

HELP = "check that a bundle is complete and unaltered, or register it in MLflow"
EXAMPLE = "octray bundle verify bundle/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    verify = actions.add_parser("verify", help="check every file against its hash")
    register = actions.add_parser("register", help="register a bundle in MLflow if that failed during training")
    for action in (verify, register):
        action.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that `octray train --out` wrote")
    register.add_argument(
        "settings",
        nargs="*",
        metavar="tracking.key=value",
        help="settings to change, such as tracking.uri=http://127.0.0.1:5000",
    )


def run(args: argparse.Namespace) -> int:
    """Print what the bundle is, or as which version of a model it was registered, to standard output."""
    return _register(args.bundle, args.settings) if args.action == "register" else _verify(args.bundle)


def _verify(path: Path) -> int:
    from pipeline.model.bundle import load_bundle

    manifest = load_bundle(path).manifest
    print(f"bundle_id: {manifest.bundle_id}")
    print(f"config: {manifest.provenance.config_name}")
    print(f"architecture: {manifest.architecture}")
    print(f"labels: {', '.join(manifest.labels)}")
    print(f"created: {manifest.provenance.created}")
    print(f"files: {len(manifest.files)}, all unaltered")
    return 0


def _register(path: Path, overrides: list[str]) -> int:
    from pipeline.model.bundle import load_bundle
    from pipeline.train.tracking import register_bundle

    name, version, alias = register_bundle(load_bundle(path), overrides)
    print(f"registered as version {version} of {name}, alias {alias}")
    return 0
