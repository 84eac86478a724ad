"""Reads Zeiss Cirrus `.img` files: bytes without a header; their size and eye are in the name that the device gave them."""

import re
from collections.abc import Iterator

import numpy as np

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.grayscale import apply_range
from pipeline.imaging.guard import check_size
from pipeline.imaging.identity import derived_uids
from pipeline.imaging.vendor.volume import volume_frames
from pipeline.settings import DEFAULT_READING, Reading

DEPTH = 1024
_SEPARATORS = re.compile(r"[\s_\-\u2010-\u2015]+")
_SIZE = re.compile(r"(?<!\d)(\d{2,4})(?:[x\u00d7]|_[x\u00d7]_)(\d{1,4})(?!\d|mm)")
_LINES = re.compile(r"(?:(?<![a-z\d])|hd_?)(\d{1,2})_?lines?(?=_|raster)")
"""HD 5 Line Raster, HD 21 Line: the protocol has a number of B-scans."""
_LINE_COLUMNS = (1024, 4096)
"""Columns that a B-scan of such a protocol may have, as the retimat project found them; the number of bytes says which."""
_KIND = re.compile(r"(?<![a-z])(?:cube|lines?)_?(?:z|raw|enhanced)(?:_copy|_?\(\d+\))*\.img$")
_FLOW = "flowcube"
"""The device's name for blood flow, which is not a picture of structure."""
_EYE = re.compile(r"_(od|os)(?=_)")
_EYES = {"od": "R", "os": "L"}
_NOTE = "The file has no header: the size and the eye are those in its name, and the distances of its pixels are not known."


def is_named_img(source: str) -> bool:
    """Return whether the name of a file has the ending of Zeiss."""
    return source.lower().endswith(".img")


def is_named_by_the_device(source: str) -> bool:
    """Return whether the name of a file says how large it is, as a Zeiss Cirrus names it."""
    return bool(_sizes(source))


def read_img(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read an `.img` file, one frame a B-scan, in the order of the file.

    Each is rotated by 180 degrees, since it is stored upside down.

    Raises
    ------
    UnreadableError
        And nothing else, whatever the bytes are.
    """
    sizes = _sizes(source)
    if not sizes:
        raise UnreadableError(
            Reason.NOT_AN_IMAGE,
            "The .img file has no header, and its name does not say how large it is, as a Zeiss Cirrus names it "
            "(...512x128_..._OD_..._cube_z.img). Give it back the name of the device, or leave it out.",
        )
    for columns, scans in sizes:
        check_size(DEPTH, columns, scans, reading.limits)
    columns, scans = next((size for size in sizes if DEPTH * size[0] * size[1] == len(content)), (0, 0))
    if not columns:
        described = " or ".join(f"{scans} B-scans of {DEPTH} x {columns}" for columns, scans in sizes)
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"The .img file has {len(content)} bytes, not those of {described}, as its name says. Copy it again.",
        )
    stored = np.frombuffer(content, np.uint8).reshape(scans, DEPTH, columns)[:, ::-1, ::-1]
    yield from volume_frames(
        ((scan, apply_range(scan, 0, 255), ()) for scan in map(np.ascontiguousarray, stored)),
        uids=derived_uids(content),
        source=source,
        number_of_frames=scans,
        laterality=_laterality(source),
        notes=(_NOTE,),
    )


def _normalised(source: str) -> str:
    """Return the name of a file in small letters, with one underscore for dashes, spaces and underscores."""
    return _SEPARATORS.sub("_", source.rpartition("/")[2].lower())


def _sizes(source: str) -> list[tuple[int, int]]:
    """Return the columns and the B-scans of the protocol in a name; several if it leaves a choice."""
    name = _normalised(source)
    if _FLOW in name:
        return []
    is_kind = bool(_KIND.search(name))
    named = [(int(columns), int(scans)) for columns, scans in _SIZE.findall(name)] if is_kind else []
    lines = [int(scans) for scans in _LINES.findall(name)] if is_kind or _EYE.search(name) else []
    unsized = [scans for scans in lines if all(scans != one for _, one in named)]
    return named + [(columns, scans) for scans in unsized for columns in _LINE_COLUMNS]


def _laterality(source: str) -> str:
    """Return R or L, empty if the name has no eye; a patient's identifier before the protocol may look like one."""
    found = _EYE.findall(_normalised(source))
    return _EYES[found[-1]] if found else ""
