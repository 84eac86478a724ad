"""Limits on what a file may demand, and the one place where a decoder's own exceptions become `UnreadableError`."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import Reason, UnreadableError

MAX_PIXELS = 2**26
"""Rows x Columns of one frame; the largest radiographs have half as many."""
MAX_BYTES = 2**32
"""Size of one file."""

_DECODERS = r"(pydicom|PIL|tifffile)(\.|$)"
_lock = threading.Lock()


def check_size(rows: int, columns: int) -> None:
    """Check the size of a frame before anything is allocated for it.

    Raises
    ------
    UnreadableError
        `EMPTY_IMAGE` where a side is 0, `RESOURCE_LIMIT` where there are more than `MAX_PIXELS` pixels.
    """
    if rows < 1 or columns < 1:
        raise UnreadableError(Reason.EMPTY_IMAGE, f"The image is empty: it has {rows} rows and {columns} columns.")
    if rows * columns > MAX_PIXELS:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT,
            f"The image is said to have {rows} x {columns} pixels; octray reads up to {MAX_PIXELS}. Scale it down.",
        )


@contextmanager
def translated(message: str) -> Iterator[None]:
    """Turn whatever a decoder raises on bad bytes into an `UnreadableError` with this message.

    Bad pixel data were seen to raise AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OverflowError,
    RecursionError, RuntimeError, TypeError, ValueError, zlib.error and the codecs' own classes, so nothing narrower will do.
    """
    try:
        yield
    except UnreadableError:
        raise
    except MemoryError:
        raise UnreadableError(Reason.RESOURCE_LIMIT, f"{message} Its image needs more memory than there is.") from None
    except Exception:
        raise UnreadableError(Reason.DECODE_FAILED, message) from None


def silence_decoders() -> None:
    """Keep warnings and log messages of the decoding libraries from the user, who gets `Frame.notes` or an error instead.

    `warnings.catch_warnings` is not safe between threads before Python 3.14: two overlapping uses can leave its filters behind
    for good. One filter that names only the decoders' modules, added where it is missing, is; nothing else is silenced.
    """
    with _lock:
        if not any(entry[3] is not None and getattr(entry[3], "pattern", "") == _DECODERS for entry in warnings.filters):
            warnings.filterwarnings("ignore", module=_DECODERS)
            for name in ("pydicom", "PIL", "tifffile"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
