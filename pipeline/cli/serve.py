"""`octray serve`: a bundle over HTTP."""

from services.api.command import EXAMPLE, HELP, add_arguments, run

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]
