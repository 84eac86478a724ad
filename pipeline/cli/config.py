"""`octray config`: checks a configuration without training."""

import argparse

HELP = "check a configuration and show every setting"
EXAMPLE = "octray config check xray.yaml train.seed=1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="report every error at once, or print the whole configuration if there is none")
    check.add_argument(
        "config", metavar="CONFIG.yaml", help="a file, or one that comes with octray: xray, oct, xray-best, oct-best, smoke"
    )
    check.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings to change, such as train.seed=1")


def run(args: argparse.Namespace) -> int:
    """Print the configuration with all defaults to standard output, as YAML."""
    import yaml

    from pipeline.config import load_config

    config = load_config(args.config, args.overrides)
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
    return 0
