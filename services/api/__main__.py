"""`python -m services.api`: the same as `octray serve`."""

import argparse
import sys

from pipeline.errors import OctrayError
from services.api.command import EXAMPLE, HELP, add_arguments, run


def main() -> int:
    """Serve, and return the exit code: 2 if the bundle or an option cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m services.api", description=HELP, epilog=f"example: {EXAMPLE}")
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except OctrayError as error:
        sys.stderr.write(f"octray: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
