"""Hashes of stored values, and UIDs for files that have none."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pixel_sha256(stored: NDArray[Any]) -> str:
    """Hash the stored values of a frame.

    Parameters
    ----------
    stored
        Array of shape (rows, columns), any type.

    Returns
    -------
    str
        Hex digest over the type, the shape and the values (C order, little endian); equal pixels, equal hash.
    """
    little = as_little_endian(stored)
    digest = hashlib.sha256(f"{little.dtype.kind}{little.dtype.itemsize} {little.shape}\n".encode())
    digest.update(little.data)
    return digest.hexdigest()


def stored_sha256(stored: NDArray[Any]) -> str:
    """Hash the values alone (C order, little endian), without their type and shape; returns a hex digest."""
    return hashlib.sha256(as_little_endian(stored).data).hexdigest()


def as_little_endian(stored: NDArray[Any]) -> NDArray[Any]:
    """Return stored values in C order and little endian, as all hashes take them."""
    return np.ascontiguousarray(stored, stored.dtype.newbyteorder("<"))


def derived_uid(content: bytes, role: str) -> str:
    """Make a UID out of the content of a file, in the arc for UUIDs (PS3.5 B.2).

    Parameters
    ----------
    content
        The whole file.
    role
        "study", "series" or "instance"; each gives another UID.
    """
    return uid_of_digest(hashlib.sha256(content).digest(), role)


def derived_uids(content: bytes, series: str = "") -> tuple[str, str, str]:
    """Make Study, Series and SOP Instance UID out of the content of a file; `series` tells the series of one file apart."""
    digest = hashlib.sha256(content).digest()
    return uid_of_digest(digest, "study"), uid_of_digest(digest, f"series{series}"), uid_of_digest(digest, f"instance{series}")


def uid_of_digest(digest: bytes, role: str) -> str:
    """Return what `derived_uid` does for content with this SHA-256."""
    number = hashlib.sha256(digest + role.encode()).digest()[:16]
    return f"2.25.{int.from_bytes(number, 'big')}"
