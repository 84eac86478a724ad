"""What a file looks like without being opened, by which it is seen that it has not changed since it was read."""

import time

from pipeline.errors import UnreadableError
from pipeline.imaging.sources import StudyFile

Look = tuple[int, int, int]
"""As `StudyFile.stat`."""

_FRESH_NS = 2_000_000_000


def appearance(file: StudyFile) -> Look | None:
    """Return what a file looks like; None where it cannot be looked at, or may not be read."""
    try:
        return file.stat() if file.refusal is None else None
    except UnreadableError:
        return None


def settled(look: Look | None) -> Look | None:
    """Return what a file looks like unless it was just written: it may change once more and look the same."""
    return look if look and abs(time.time_ns() - look[1]) > _FRESH_NS else None
