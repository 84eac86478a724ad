"""Limits on the size of an image, and the one place in which a decoder's own exceptions become `UnreadableError`."""

import logging
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import OctrayError, Reason, UnreadableError
from pipeline.settings import Limits

_CHUNK = 2**16

_DECODERS = r"(pydicom|PIL|tifffile)(\.|$)"
_lock = threading.Lock()


def check_size(rows: int, columns: int, frames: int, limits: Limits) -> None:
    """Check the size of the frames of a file before anything is allocated for them.

    Raises
    ------
    UnreadableError
        `EMPTY_IMAGE` if a side is 0, `RESOURCE_LIMIT` if a frame or all of them have more pixels than the limits allow.
    """
    if rows < 1 or columns < 1:
        raise UnreadableError(Reason.EMPTY_IMAGE, f"The image is empty: it has {rows} rows and {columns} columns.")
    if rows * columns > limits.frame_pixels:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT,
            f"The image has {rows} x {columns} pixels by its header; octray reads up to {limits.frame_pixels}. Scale it down.",
        )
    if rows * columns * frames > limits.file_pixels:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT,
            f"The file has {frames} frames of {rows} x {columns} pixels by its header; octray reads up to {limits.file_pixels} "
            "pixels of one file. Split it.",
        )


def check_inflated(deflated: bytes, limits: Limits) -> None:
    """Inflate a raw deflate stream (RFC 1951) piece by piece, without keeping it, to find out its size.

    Raises
    ------
    UnreadableError
        `RESOURCE_LIMIT` if it holds more bytes than the limits allow.
    zlib.error
        If it is not such a stream.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    for start in range(0, len(deflated), _CHUNK):
        size += len(stream.decompress(deflated[start : start + _CHUNK]))
        if size > limits.inflated_bytes:
            raise UnreadableError(
                Reason.RESOURCE_LIMIT,
                f"The deflated DICOM file inflates to more than {limits.inflated_bytes // 2**20} MiB. Convert it to "
                "another transfer syntax, or split it.",
            )


@contextmanager
def unreadable(message: str) -> Iterator[None]:
    """Turn whatever a decoder raises on bad bytes into an `UnreadableError` with this message.

    Bad pixel data were seen to raise AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OverflowError,
    RecursionError, RuntimeError, TypeError, ValueError, zlib.error and the codecs' own classes, so nothing narrower will do.
    """
    try:
        yield
    except OctrayError:
        raise
    except MemoryError:
        raise UnreadableError(Reason.MEMORY_LIMIT, f"{message} Its image needs more memory than is available.") from None
    except Exception:
        raise UnreadableError(Reason.DECODE_FAILED, message) from None


def silence_decoders() -> None:
    """Hide warnings and log messages of the decoding libraries from the user, who gets `Frame.notes` or an error instead.

    `warnings.catch_warnings` is not safe between threads before Python 3.14: two overlapping uses can leave its filters behind
    for good. One filter that names only the decoders' modules, added if it is missing, is safe; nothing else is silenced.
    """
    with _lock:
        if not any(entry[3] is not None and getattr(entry[3], "pattern", "") == _DECODERS for entry in warnings.filters):
            warnings.filterwarnings("ignore", module=_DECODERS)
            for name in ("pydicom", "PIL", "tifffile"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
