"""The command `octray`: finds the subcommand, runs it, and turns errors into one sentence and an exit code."""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline.cli.terminal import printable
from pipeline.errors import ConfigError, OctrayError, is_lack_of_memory, lack_of_memory
from pipeline.workers.cores import CORES

COMMANDS = (
    "phantom",
    "inspect",
    "deidentify",
    "ingest",
    "train",
    "sweep",
    "evaluate",
    "calibrate",
    "compare",
    "score",
    "serve",
    "models",
    "bundle",
    "promote",
    "sync",
    "data",
    "config",
    "ui",
)
AT_WORK = ("inspect", "deidentify", "ingest", "train", "sweep", "evaluate", "calibrate", "compare", "score", "serve")
"""Commands that keep several cores at work."""
DONE, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
_EPILOG = """exit codes: 0 done, 1 some studies failed and are listed, 2 unusable input or configuration, 130 interrupted.
octray is not a medical device: its results are for research and are not to be used for diagnosis."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"octray: {printable(message)}. `{self.prog} --help` explains how to use it.\n")


class _Version(argparse.Action):
    """Print the version; what knows it is imported only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=options.get("help"))

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        print(f"octray {metadata.version('octray')}")
        parser.exit(DONE)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every subcommand; imports no heavy library."""
    parser = _Parser(
        prog="octray",
        description="From chest X-ray and retinal OCT studies to calibrated predictions with heatmaps.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"pipeline.cli.{name}")
        subparser = subparsers.add_parser(
            name,
            help=module.HELP,
            description=f"{module.HELP[0].upper()}{module.HELP[1:]}.",
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        if name in AT_WORK:
            subparser.add_argument(
                "--cores",
                type=_at_least_one,
                metavar="N",
                help=f"processor cores to use (default: {CORES}, else all that this process may use)",
            )
        subparser.set_defaults(run=module.run, parser=subparser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    args = _parse(build_parser(), arguments)
    told = os.environ.get(CORES)
    if cores := getattr(args, "cores", None):
        os.environ[CORES] = str(cores)  # for the worker processes too
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except ConfigError as error:
        for fault in error.faults:
            _say(fault)
        return UNUSABLE
    except OctrayError as error:
        _say(str(error))
        return UNUSABLE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing reads what is still buffered
        return DONE
    except OSError as error:
        what = error.strerror or type(error).__name__
        place = f"{_subject(error)}{what}. Check the place, its permissions and its free space."
        _say(lack_of_memory() if is_lack_of_memory(error) else place)
        return UNUSABLE
    except KeyboardInterrupt as interrupt:
        _say(str(interrupt) or "Interrupted. What was finished is kept.")
        return INTERRUPTED
    except Exception as error:
        if is_lack_of_memory(error):
            _say(lack_of_memory())
            return UNUSABLE
        if sys.flags.dev_mode:
            raise
        again = "`python -X dev -m pipeline.cli.main` with the same arguments shows where it happened"
        _say(f"An unexpected {type(error).__name__}. Please report it as a fault of octray; {again}.")
        return UNUSABLE
    finally:
        if cores:
            os.environ.pop(CORES)
            os.environ.update({CORES: told} if told is not None else {})


def _at_least_one(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more. Got {text!r} instead")
    return int(text)


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse; `section.key=value` may also follow options, which argparse alone does not allow."""
    args, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


class _Interrupt(KeyboardInterrupt):
    """A class of its own: Python remembers a plain `KeyboardInterrupt` that passed an `exec` of text, as `dataclass` does one,
    and ends by the signal in place of the exit code, though it was caught (`run_eval_code_obj` in its pythonrun.c)."""


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise _Interrupt


def _subject(error: OSError) -> str:
    return f"{Path(os.fsdecode(error.filename)).name}: " if isinstance(error.filename, str | bytes) else ""


def _say(message: str) -> None:
    sys.stderr.write(f"octray: {printable(message)}\n")


if __name__ == "__main__":
    sys.exit(main())
