"""Tells faults of the network from those of the files that it is run on."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import OctrayError, ScoringError


@contextmanager
def of_the_network() -> Iterator[None]:
    """Turn whatever the block raises, but for errors of octray, into what is not taken for a fault of the files.

    Raises
    ------
    ScoringError
        Where the block ends in any other exception, such as one of ONNX Runtime.
    """
    try:
        yield
    except OctrayError:
        raise
    except Exception as error:
        raise ScoringError(
            f"The network ended in an unexpected {type(error).__name__}. Start again with more memory free; if that does not "
            "help, please report it as a fault of octray."
        ) from None
