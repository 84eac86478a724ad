"""`octray sync`: records in MLflow what runs could not record while they trained."""

import argparse
from pathlib import Path

HELP = "record in MLflow what a training or a sweep could not record while it ran"
EXAMPLE = "octray sync bundle/ --store http://127.0.0.1:5000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("out", type=Path, metavar="OUT", help="what was given to `octray train` or `octray sweep` as --out")
    parser.add_argument("--store", metavar="URI", default="", help="where to record (default: where the runs would have been)")


def run(args: argparse.Namespace) -> int:
    """Print one line for each run."""
    from pipeline.train.tracking import sync_runs

    synced = sync_runs(args.out, args.store)
    for one in synced:
        print(f"{one.name}: recorded as run {one.run_id}" if one.run_id else f"{one.name}: still training")
        for remark in one.remarks:
            print(f"  {remark}")
    if not synced:
        print("Nothing is left to record.")
    return 0
