"""Reads Zeiss Cirrus `.img` files: bytes without any header, whose size and eye stand in the name that the device gave them."""

import re
from collections.abc import Iterator

import numpy as np

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.grayscale import apply_range
from pipeline.imaging.guard import check_size
from pipeline.imaging.vendor.volume import Volume, to_frame, volume_uids
from pipeline.intake import DEFAULT_READING, Reading
from pipeline.records import Frame

DEPTH = 1024
_NAME = re.compile(r"(\d{2,4})x(\d{1,4})_.*?_(OD|OS)_.*cube_(z|raw)\.img", re.IGNORECASE)
_EYES = {"OD": "R", "OS": "L"}
_NOTE = "The file has no header: the size and the eye are those in its name, and the distances of its pixels are not known."


def is_named_img(source: str) -> bool:
    """Say whether a file bears the ending of Zeiss."""
    return source.lower().endswith(".img")


def read_img(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read an `.img` file, one frame a B-scan, in the order of the file.

    Each is turned by half a turn, as it lies upside down in the file.

    Raises
    ------
    UnreadableError
        And nothing else, whatever the bytes are.
    """
    named = _NAME.search(source.rpartition("/")[2])
    if named is None:
        raise UnreadableError(
            Reason.NOT_AN_IMAGE,
            "The .img file has no header, and its name does not say how large it is, as a Zeiss Cirrus names it "
            "(...512x128_..._OD_..._cube_z.img). Give it back the name of the device, or leave it out.",
        )
    columns, scans = int(named[1]), int(named[2])
    check_size(DEPTH, columns, scans, reading.limits)
    if len(content) != DEPTH * columns * scans:
        raise UnreadableError(
            Reason.INCONSISTENT, f"The .img file does not hold {scans} B-scans of {DEPTH} x {columns} bytes, as its name says."
        )
    stored = np.frombuffer(content, np.uint8).reshape(scans, DEPTH, columns)[:, ::-1, ::-1]
    volume = Volume(volume_uids(content), source, scans, laterality=_EYES[named[3].upper()], notes=(_NOTE,))
    for number in range(1, scans + 1):
        scan = np.ascontiguousarray(stored[number - 1])
        yield to_frame(volume, number, scan, apply_range(scan, 0, 255))
