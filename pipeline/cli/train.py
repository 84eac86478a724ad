"""`octray train`: from an index to a bundle."""

import argparse
import json
import os
import sys
from pathlib import Path

from pipeline.cli.terminal import printable

HELP = "train a network on an index and write a bundle"
EXAMPLE = "octray train xray.yaml --index index/ --out bundle/ train.finetune.epochs=4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "config", metavar="CONFIG.yaml", help="a file, or one that comes with octray: xray, oct, xray-best, oct-best, smoke"
    )
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings to change, such as train.seed=1")
    parser.add_argument("--index", type=Path, required=True, help="folder that `octray ingest` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the bundle to")
    parser.add_argument("--plugin", metavar="MODULE", action="append", default=[], help="module or Python file of a plug-in")
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="train on this machine or on a Ray cluster")
    parser.add_argument("--address", default="auto", help="HOST:PORT of the Ray cluster; auto finds one on this machine")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes on the cluster that train together (default: 1)"
    )


def run(args: argparse.Namespace) -> int:
    """Train, and say where the bundle lies and what it reached."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0":  # of several processes, the first one speaks
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
    from pipeline.cli.progress import bar
    from pipeline.config import load_config

    config = load_config(args.config, args.overrides)
    config = config.model_copy(update={"plugins": (*config.plugins, *args.plugin)})
    from pipeline.ingest.index import load_index

    index = load_index(args.index)
    from pipeline.model.bundle import METRICS
    from pipeline.train.run import train
    from pipeline.train.training_data import select_training_data

    if remark := select_training_data(config, index).rare_label(config.train.folds):
        sys.stderr.write(f"octray: {printable(remark)}\n")
    try:
        cluster = args.address if args.engine == "ray" else ""
        bundle = train(config, index, args.out, args.resume, bar, cluster=cluster, processes=args.processes)
    except KeyboardInterrupt:
        sys.stderr.write("octray: Run the same command with --resume to continue after the last finished epoch.\n")
        raise
    print(f"bundle {bundle.manifest.bundle_id} written to {args.out}")
    robustness = json.loads(bundle.read(METRICS))["robustness"] or {}
    if worse := robustness.get("remark"):
        sys.stderr.write(f"octray: {printable(worse)}\n")
    print(f"figures and limits: {args.out / 'MODEL_CARD.md'}")
    return 0
