"""`octray sweep`: searches for the best settings, and trains a bundle with them."""

import argparse
import sys
from pathlib import Path

from pipeline.cli.terminal import printable

HELP = "search for the settings with the best figure on the tune split, and train a bundle with them"
EXAMPLE = "octray sweep xray.yaml --index index/ --search space.yaml --trials 20 --out sweep/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", metavar="CONFIG.yaml", help="what the trials have in common: a file, or xray, oct, smoke")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings to change in all trials")
    parser.add_argument("--index", type=Path, required=True, help="folder that `octray ingest` wrote")
    parser.add_argument(
        "--search",
        type=Path,
        required=True,
        metavar="SPACE.yaml",
        help="settings to search, such as `train.finetune.learning_rate: {log_uniform: [0.0001, 0.01]}`; "
        "also uniform, integers and choices",
    )
    parser.add_argument("--plugin", metavar="MODULE", action="append", default=[], help="module or Python file of a plug-in")
    parser.add_argument("--trials", type=int, required=True, metavar="N", help="how many trials in all")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="train on this machine or on a Ray cluster")
    parser.add_argument("--address", default="auto", help="HOST:PORT of the Ray cluster; auto finds one on this machine")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="trials that run side by side on the cluster (default: 1)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for trials, best settings and bundle; run again, it continues there"
    )


def run(args: argparse.Namespace) -> int:
    """Run the sweep, and print the best settings and where the bundle is."""
    from pipeline.cli.progress import bar
    from pipeline.config import load_config

    config = load_config(args.config, args.overrides)
    config = config.model_copy(update={"plugins": (*config.plugins, *args.plugin)})
    from pipeline.ingest.index import load_index

    index = load_index(args.index)
    from pipeline.train.sweep import BEST, BUNDLE, TABLE, sweep
    from pipeline.train.training_data import select_training_data

    if remark := select_training_data(config, index).rare_label(config.train.folds):
        sys.stderr.write(f"octray: {printable(remark)}\n")
    cluster = args.address if args.engine == "ray" else ""
    asked = {"space": args.search, "trials": args.trials, "cluster": cluster, "processes": args.processes}
    try:
        found = sweep(config, index, args.out, **asked, progress=bar)
    except KeyboardInterrupt:
        sys.stderr.write("octray: Run the same command again to continue with the trials that were stopped.\n")
        raise
    print(f"{found.finished} trials finished, {found.pruned} pruned, {found.failed} failed: {args.out / TABLE}")
    print(f"best: trial {found.best}, {found.value:.6g} ({found.measure}): {args.out / BEST}")
    for key, value in found.settings.items():
        print(f"  {key}: {value}")
    print(f"bundle {found.bundle.manifest.bundle_id} written to {args.out / BUNDLE}")
    return 0
