"""Finds every picture of a TIFF file: on pages, in SubIFDs, and in planes that lie behind a page and have none of their own."""

import json
import math
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from pipeline.errors import Reason, UnreadableError

MOST_PAGES = 2**14
"""Pages and planes of a TIFF file."""

Picture = tuple[Any, int]
"""A page, as tifffile reads it, and the number of a plane: 0 for the page's own, others follow it without a gap."""

_IMAGEJ = re.compile(r"^images=(\d{1,9})\s*$", re.MULTILINE)
_UIC2 = 33629
"""Tag of MetaMorph, which has one value for each plane."""


def find_pictures(tiff: tifffile.TiffFile, length: int) -> tuple[list[Picture], tuple[str, ...]]:
    """Find the pictures of a TIFF file of `length` bytes; also what has to be said of them, in sentences.

    Left out are pages that are marked as reduced copies (NewSubfileType or SubfileType), if the file holds a larger picture.
    ImageJ (for more than 4 GB), tifffile and MetaMorph write stacks with one page only, and say how many planes lie behind it.

    Raises
    ------
    UnreadableError
        `NO_PIXELS` if there is none, `TRUNCATED` or `INCONSISTENT` if there are fewer than the file says, `RESOURCE_LIMIT`.
    """
    pages = list(_every_page(tiff))
    full = [page for page in pages if not page.is_reduced]
    if not full:
        raise UnreadableError(
            Reason.NO_PIXELS,
            f"The TIFF file has no page with an image; {len(pages)} are marked as copies of one. Export it again.",
        )
    kept = [page for page in pages if not (page.is_reduced and any(_is_larger(one, page) for one in full))]
    stated = [(page, *_stated_pictures(page)) for page in kept]
    pictures: list[Picture] = []
    for page, count, has_no_pages in stated:
        alone = count if (has_no_pages or len(kept) == 1) and _holds(page, count, length) else 1
        if len(pictures) + alone > MOST_PAGES:
            raise UnreadableError(Reason.RESOURCE_LIMIT, f"The TIFF file has more than {MOST_PAGES} pages. Split it.")
        pictures += [(page, plane) for plane in range(alone)]
    notes = _missing_notes(pages, len(pictures), max(count for _, count, _ in stated), length)
    if len(pictures) > len(kept):
        notes += (f"The TIFF file has {len(pictures)} pictures on {len(kept)} of its pages: all of them were read.",)
    if left_out := len(pages) - len(kept):
        notes += (f"Reduced copies that the TIFF file holds beside its pictures were left out: {left_out}.",)
    return pictures, notes


def plane_values(picture: Picture, content: bytes) -> NDArray[Any]:
    """Return the values of a picture, in the shape that its page has."""
    page, plane = picture
    if plane == 0:
        values: NDArray[Any] = page.asarray()
        return values
    stored = page.dtype.newbyteorder(page.parent.byteorder)
    start = page.dataoffsets[0] + plane * page.nbytes
    values = np.frombuffer(content, stored, math.prod(page.shape), start).reshape(page.shape)
    return values.astype(page.dtype)


def _every_page(tiff: tifffile.TiffFile) -> Iterator[Any]:
    """Yield each page, which names the next, and after it its SubIFDs (330); tifffile does not see every circle of pages."""
    seen: set[int] = set()
    chained = 0
    while (page := _page_or_none(tiff, chained)) is not None:
        chained += 1
        yield _unseen(page, seen)
        offsets = deque(page.subifds or ())
        while offsets:
            if offset := offsets.popleft():
                tiff.filehandle.seek(offset)
                sub_page = tifffile.TiffPage(tiff, index=(page.index, 0))
                yield _unseen(sub_page, seen)
                offsets += sub_page.subifds or ()


def _unseen(page: Any, seen: set[int]) -> Any:
    if page.offset in seen:
        raise UnreadableError(
            Reason.INCONSISTENT, "The pages of the TIFF file come round to one that was there already. Export it again."
        )
    seen.add(page.offset)
    if len(seen) > MOST_PAGES:
        raise UnreadableError(Reason.RESOURCE_LIMIT, f"The TIFF file has more than {MOST_PAGES} pages. Split it.")
    return page


def _page_or_none(tiff: tifffile.TiffFile, index: int) -> Any:
    try:
        return tiff.pages.get(index)
    except IndexError:
        return None


def _is_larger(page: Any, other: Any) -> bool:
    more_rows, more_columns = int(page.imagelength - other.imagelength), int(page.imagewidth - other.imagewidth)
    return min(more_rows, more_columns) >= 0 and max(more_rows, more_columns) > 0


def _stated_pictures(page: Any) -> tuple[int, bool]:
    """Return how many pictures begin at a page, as its writer says, 1 if it says nothing, and if the others have no page."""
    if page.is_imagej and (found := _IMAGEJ.search(page.imagej_description or "")):
        return max(1, int(found[1])), False
    if page.is_shaped:
        return _shaped_pictures(page)
    if (tag := page.tags.get(_UIC2)) is not None:
        return max(1, tag.count), True
    return 1, False


def _shaped_pictures(page: Any) -> tuple[int, bool]:
    """Read the description of tifffile, the shape of all pictures that begin at a page."""
    try:
        described = json.loads(page.shaped_description)
        count, rest = divmod(math.prod(described["shape"]), math.prod(page.shape))
        return (1, False) if rest or count < 1 else (count, described.get("truncated") is True)
    except (ValueError, TypeError, KeyError):
        return 1, False


def _holds(page: Any, count: int, length: int) -> bool:
    """Return whether `count` planes lie in the file, one behind the other; those of compressed pages cannot."""
    return count == 1 or (bool(page.is_final) and int(page.dataoffsets[0] + count * page.nbytes) <= length)


def _missing_notes(pages: list[Any], found: int, stated: int, length: int) -> tuple[str, ...]:
    """Compare the pictures that were found with those that are stated; a description may have outlived the others."""
    if found >= stated:
        return ()
    if _end(pages) >= length:
        return (f"The description of the TIFF file speaks of {stated} pictures, but there is no room for more than {found}.",)
    page = pages[0]
    if len(pages) == 1 and page.is_final:
        raise UnreadableError(
            Reason.TRUNCATED,
            f"The TIFF file is cut off: it holds {(length - page.dataoffsets[0]) // page.nbytes} of {stated} pictures. Copy or "
            "export it again.",
        )
    raise UnreadableError(
        Reason.INCONSISTENT,
        f"The TIFF file is said to hold {stated} pictures, but {found} were found. Export each as a page or a file of its own.",
    )


def _end(pages: list[Any]) -> int:
    """Return where the last byte lies that a page names: its pixels, its tags, or their values."""
    ends = [0]
    for page in pages:
        ends += [at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        ends += [tag.valueoffset + tag.valuebytecount for tag in page.tags]
        layout = page.parent.tiff
        ends.append(page.offset + layout.tagnosize + len(page.tags) * layout.tagsize + layout.offsetsize)
    return max(ends)
