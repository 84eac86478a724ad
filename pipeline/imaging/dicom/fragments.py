"""Splits encapsulated pixel data into the encoded frames (PS3.5 A.4), with an offset table, a wrong one, or none."""

import re
from collections.abc import Iterator

from pipeline.errors import Reason, UnreadableError

_ITEM = b"\xfe\xff\x00\xe0"
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")
"""How JPEG and JPEG-LS (ISO/IEC 10918-1 B.1), JPEG 2000 (ISO/IEC 15444-1 A.4) and a JP2 file (I.5.1) begin."""
_RLE_START = re.compile(rb"[\x01-\x0f]\x00\x00\x00\x40\x00\x00\x00")
"""How RLE begins: the number of segments, and where the first lies, which is behind a header of 64 bytes (PS3.5 G.5)."""
_END_OF_CODESTREAM = b"\xff\xd9"
_MOST_FRAGMENTS = 2**20
_TAIL = 16
"""Bytes at the end of a fragment in which the end of its codestream is looked for; padding may follow it."""


def encoded_frames(data: bytes, frames: int, extended_offsets: bytes = b"") -> Iterator[bytes]:
    """Yield the encoded frames, all fragments of one frame joined.

    Where there are as many fragments as frames, each is one, whatever a table says. Otherwise the fragments are put together
    by the Basic or the Extended Offset Table where that points at fragments, else by the ends of their codestreams.

    Parameters
    ----------
    data
        Pixel Data (7FE0,0010), from the item of the Basic Offset Table on.
    frames
        Number of Frames (0028,0008).
    extended_offsets
        Extended Offset Table (7FE0,0001).

    Raises
    ------
    UnreadableError
        `TRUNCATED` where a fragment is cut off, or there are not enough of them; `INCONSISTENT` where more frames begin in
        them; `RESOURCE_LIMIT` where there are more than a million.
    """
    for group in grouped_fragments(data, frames, extended_offsets)[:frames]:
        yield data[group[0]] if len(group) == 1 else b"".join(data[one] for one in group)


def grouped_fragments(data: bytes, frames: int, extended_offsets: bytes = b"") -> list[list[slice]]:
    """Return where the fragments of each frame lie in the data, and after them those that belong to none.

    Parameters and errors are those of `encoded_frames`.
    """
    table, *fragments = _items(data)
    offsets = _offsets(extended_offsets, 8) or _offsets(data[table], 4)
    _check_excess(data, fragments, frames)
    groups = _grouped(data, fragments, frames, offsets) if fragments else []
    if len(groups) < frames:
        raise UnreadableError(
            Reason.TRUNCATED,
            f"The compressed pixel data hold {len(groups)} of {frames} frames. Copy or export the file again.",
        )
    return groups


def _check_excess(data: bytes, fragments: list[slice], frames: int) -> None:
    """Count the fragments that begin a frame; others continue one, or are padding."""
    begun = 0
    for one in fragments if len(fragments) > frames else ():
        begun += data.startswith(_STARTS, one.start, one.stop) or _RLE_START.match(data, one.start, one.stop) is not None
    if begun > frames:
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"The compressed pixel data hold {begun} frames, but the header says {frames}. Export the file again.",
        )


def _items(data: bytes) -> list[slice]:
    """Find the values of the items; the first is the Basic Offset Table, empty where there is none."""
    found, at = [], 0
    while data[at : at + 4] == _ITEM:
        start = at + 8
        at = start + int.from_bytes(data[at + 4 : start], "little")
        if at > len(data):
            raise UnreadableError(
                Reason.TRUNCATED, "The compressed pixel data are cut off within a frame. Copy or export the file again."
            )
        found.append(slice(start, at))
        if len(found) > _MOST_FRAGMENTS:
            raise UnreadableError(
                Reason.RESOURCE_LIMIT,
                f"The compressed pixel data are in more than {_MOST_FRAGMENTS} fragments. Convert the file, or split it.",
            )
    return found or [slice(0, 0)]


def _offsets(table: bytes, width: int) -> list[int]:
    return [int.from_bytes(table[at : at + width], "little") for at in range(0, len(table) // width * width, width)]


def _grouped(data: bytes, fragments: list[slice], frames: int, offsets: list[int]) -> list[list[slice]]:
    if len(fragments) == frames:
        return [[one] for one in fragments]
    if frames == 1:
        return [fragments]
    first = fragments[0].start
    starts = [one.start - first for one in fragments]
    if len(offsets) == frames and offsets[0] == 0 and offsets == sorted(set(offsets)) and set(offsets) <= set(starts):
        marks = [starts.index(offset) for offset in offsets]
        return [fragments[start:end] for start, end in zip(marks, [*marks[1:], len(fragments)], strict=True)]
    return _by_codestream(data, fragments)


def _by_codestream(data: bytes, fragments: list[slice]) -> list[list[slice]]:
    groups: list[list[slice]] = [[]]
    for one in fragments:
        groups[-1].append(one)
        if _END_OF_CODESTREAM in data[max(one.start, one.stop - _TAIL) : one.stop]:
            groups.append([])
    return [group for group in groups if group]
