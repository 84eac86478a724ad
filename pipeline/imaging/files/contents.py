"""Reads the content of a file, or of a member of an archive, within limits."""

import os

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.files.members import read_member, read_member_head
from pipeline.imaging.files.study_file import StudyFile, not_opened
from pipeline.settings import DEFAULT_READING, Reading


def read_bytes(file: StudyFile, reading: Reading = DEFAULT_READING) -> bytes:
    """Read the whole content of a file or of a member of an archive.

    Raises
    ------
    UnreadableError
        Where it may not be read, cannot be opened, is damaged, or is larger than the limits allow.
    """
    _admit(file)
    if file.inside:
        return read_member(file, reading.limits)
    try:
        with file.path.open("rb") as stream:
            if stream.seek(0, os.SEEK_END) > reading.limits.file_bytes:
                raise UnreadableError(
                    Reason.RESOURCE_LIMIT,
                    f"The file is larger than {reading.limits.file_bytes} bytes. Split it, or leave it out.",
                )
            stream.seek(0)
            return stream.read()
    except OSError as error:
        raise not_opened(error) from None


def _admit(file: StudyFile) -> None:
    if file.refusal is not None:
        raise UnreadableError(file.refusal.reason, file.refusal.message)


def read_head(file: StudyFile, count: int) -> bytes:
    """Read up to `count` bytes from the start of a file or of a member of an archive.

    Raises
    ------
    UnreadableError
        Where it may not be read or cannot be opened.
    """
    _admit(file)
    if file.inside:
        return read_member_head(file, count)
    try:
        with file.path.open("rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise not_opened(error) from None
