"""Counts the pictures of a PNG or JPEG file, of which decoders show the first: animations, MPO, files that were joined."""

import re
from typing import Any

from PIL import Image

from pipeline.errors import Reason, UnreadableError

_NEXT_PNG = re.compile(rb"IEND\xaeB`\x82\0*(?=\x89PNG\r\n\x1a\n)")
_NEXT_JPEG = re.compile(rb"\0*(?=\xff\xd8\xff)")
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker among entropy-coded data, in which 0xFF is followed by 0, by the number of an interval, or fills (T.81 B.1.1)."""
_GAIN_MAP = re.compile(rb"hdrgm:Version|HDRGainMap")
_HEADER = 2**16
_ENTRIES, _SINGLE, _STANDALONE = 0xB002, 0x01, range(0xD0, 0xD8)
_SCAN, _END = 0xDA, 0xD9


def check_single(content: bytes, image: Image.Image) -> tuple[str, ...]:
    """Refuse a file that holds several pictures, and say in sentences what it holds besides its one picture.

    Parameters
    ----------
    content
        The whole file.
    image
        The same as Pillow opens it.

    Raises
    ------
    UnreadableError
        `UNSUPPORTED_ENCODING` if it is an animated PNG (APNG), a JPEG of several pictures (MPO, CIPA DC-007), or several
        files, one behind the other. Previews and gain maps are copies of the picture and do not count.
    """
    if image.format == "PNG":
        pictures, copies = max(getattr(image, "n_frames", 1), 1 + len(_NEXT_PNG.findall(content))), 0
    else:
        others = _followers(content) | _entries(content, image)
        copies = sum(_is_copy(content, start, kind) for start, kind in others.items())
        pictures = 1 + len(others) - copies
    if pictures > 1:
        kind = "PNG" if image.format == "PNG" else "JPEG"
        raise UnreadableError(
            Reason.UNSUPPORTED_ENCODING,
            f"The {kind} file holds {pictures} pictures, of which octray would read one. Save each as a file of its own.",
        )
    return (f"Smaller copies that the file holds beside its picture were left out: {copies}.",) if copies else ()


def _entries(content: bytes, image: Image.Image) -> dict[int, str]:
    """Return where the further pictures of an MPO begin, as far as they are there, and what its index calls them."""
    base = content.find(b"MPF\0") + 4
    entries: list[dict[str, Any]] = (getattr(image, "mpinfo", None) or {}).get(_ENTRIES, [])
    starts = {base + one["DataOffset"]: str(one["Attribute"]["MPType"]) for one in entries if one["DataOffset"]}
    return {start: kind for start, kind in starts.items() if content.startswith(b"\xff\xd8\xff", start)}


def _followers(content: bytes) -> dict[int, str]:
    """Return where JPEGs begin that follow the first and each other without anything but zeros between them."""
    starts: dict[int, str] = {}
    end = _end_of_jpeg(content, 0)
    while end is not None and (gap := _NEXT_JPEG.match(content, end)):
        starts[gap.end()] = ""
        end = _end_of_jpeg(content, gap.end())
    return starts


def _end_of_jpeg(content: bytes, start: int) -> int | None:
    """Walk through the segments of a JPEG (T.81 B.1.1); return None if it is cut off or damaged."""
    at = start + 2
    while at + 4 <= len(content) or content[at : at + 2] == b"\xff\xd9":
        if content[at] != 0xFF:
            return None
        marker = content[at + 1]
        if marker == _END:
            return at + 2
        if marker == 0xFF:
            at += 1
        elif marker == _SINGLE or marker in _STANDALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
            if marker == _SCAN:
                found = _MARKER.search(content, at)
                at = found.start() if found else len(content)
    return None


def _is_copy(content: bytes, start: int, kind: str) -> bool:
    """Return whether a further picture is a preview, or the map by which brighter displays show the first."""
    return kind.startswith("Large Thumbnail") or _GAIN_MAP.search(content, start, start + _HEADER) is not None
