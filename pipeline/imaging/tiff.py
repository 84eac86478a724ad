"""Reads TIFF files: every picture on pages, in SubIFDs, and in planes that lie behind a page and have none of their own."""

import hashlib
import io
import json
import math
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.grayscale import TOLERANCE
from pipeline.imaging.guard import check_size, unreadable
from pipeline.imaging.identity import as_little_endian, derived_uids
from pipeline.imaging.raster import NO_EXIF, OF_A_CAMERA, grey_picture, orientation_notes, picture_frame
from pipeline.settings import DEFAULT_READING, Limits, Reading

TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
MOST_STRIPS = 2**18
"""Most strips or tiles of a page of a TIFF file."""
_XMP, _XMP_ORIENTATION = 700, re.compile(rb"tiff:Orientation(?:=[\"']|>)([0-9])")
_TIFF_TYPES = ("bool", "uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")

MOST_PAGES = 2**14
"""Most pages and planes of a TIFF file."""

Picture = tuple[Any, int]
"""A page, as tifffile reads it, and the number of a plane: 0 for the page's own; others follow it without a gap."""

_IMAGEJ = re.compile(r"^images=(\d{1,9})\s*$", re.MULTILINE)
_UIC2 = 33629
"""Tag of MetaMorph with one value for each plane."""


def read_tiff(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read a TIFF file, one frame a picture, in the order that `_find_pictures` gives; none is turned or mirrored.

    Raises
    ------
    UnreadableError
        And nothing else, whatever the bytes are.
    """
    damaged = "The TIFF file is damaged and cannot be decoded. Copy or export it again."
    with unreadable(damaged):
        tiff = tifffile.TiffFile(io.BytesIO(content))
    with tiff:
        with unreadable(damaged):
            pictures, notes = _find_pictures(tiff, len(content))
            for page in {id(page): page for page, _ in pictures}.values():
                _check_page(page, len(content), len(pictures), reading.limits)
        uids, instance = derived_uids(content), hashlib.sha256()
        for number, picture in enumerate(pictures, 1):
            page, _ = picture
            with unreadable(f"Picture {number} of the TIFF file is damaged and cannot be decoded. Copy or export it again."):
                stored = _page_values(page, _plane_values(picture, content))
                grey = grey_picture(stored, TOLERANCE if page.compression.name in ("JPEG", "OJPEG") else 0)
                frame = picture_frame(
                    stored,
                    grey,
                    uids=uids,
                    source=source,
                    number=number,
                    frames=len(pictures),
                    shape=(page.imagelength, page.imagewidth),
                    decoder="tifffile",
                    hashes=reading.hashes,
                    full_range=_full_range(page, grey),
                    inverted=page.photometric.name == "MINISWHITE",
                )
                exif_notes, by_camera = _exif_of_page(page)
                frame = replace(frame, by_camera=by_camera, notes=notes + exif_notes + frame.notes)
                if frame.stored_sha256 and len(pictures) > 1:
                    instance.update(as_little_endian(stored).data)
            if frame.stored_sha256 and number == len(pictures):
                frame = replace(frame, instance_sha256=frame.stored_sha256 if number == 1 else instance.hexdigest())
            yield frame


def _exif_of_page(page: Any) -> tuple[tuple[str, ...], bool]:
    """Return notes on the orientation of a page, and whether a camera took it, by its tags or EXIF data."""
    try:
        packet, exif = page.tags.valueof(_XMP), page.tags.valueof(ExifTags.IFD.Exif)
        in_packet = _XMP_ORIENTATION.search(packet) if isinstance(packet, bytes) else None
        orientation = page.tags.valueof(ExifTags.Base.Orientation, int(in_packet[1]) if in_packet else None)
    except Exception:  # whatever tifffile raises on damaged tags, as above
        return (NO_EXIF,), False
    named = exif if isinstance(exif, dict) else {}
    by_camera = any(tag.value in page.tags or tag.name in named for tag in OF_A_CAMERA)
    return orientation_notes("TIFF", orientation), by_camera


def _check_page(page: Any, length: int, pages: int, limits: Limits) -> None:
    check_size(page.imagelength, page.imagewidth, pages, limits)
    kind = f"{page.dtype}, {getattr(page.photometric, 'name', page.photometric)}"
    known = getattr(page.photometric, "name", "") in ("MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "YCBCR")
    if page.compression not in tifffile.TIFF.DECOMPRESSORS:
        raise UnreadableError(
            Reason.UNSUPPORTED_ENCODING,
            f"The compression of the TIFF file ({int(page.compression)}) is not one that octray reads. Export it uncompressed.",
        )
    if page.imagedepth > 1 or (known and page.samplesperpixel > 4):
        raise _several_on_a_page(max(page.imagedepth, 1) * _grey_samples(page))
    if not known or str(page.dtype) not in _TIFF_TYPES or page.imagedepth != 1 or page.samplesperpixel > 4:
        raise UnreadableError(
            Reason.UNSUPPORTED_ENCODING, f"The TIFF file is stored as {kind}, which octray does not read. Export it as grey."
        )
    if len(page.dataoffsets) > MOST_STRIPS:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT, f"A page of the TIFF file is cut into more than {MOST_STRIPS} pieces. Export it again."
        )
    if any(at + count > length for at, count in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise UnreadableError(Reason.TRUNCATED, "The TIFF file is cut off. Copy or export it again.")


def _grey_samples(page: Any) -> int:
    """Return how many samples of a pixel of a grey page are not alpha, by ExtraSamples (338); 1 for other pages."""
    if page.photometric.name not in ("MINISBLACK", "MINISWHITE"):
        return 1
    return int(page.samplesperpixel) - sum(int(kind) in (1, 2) for kind in page.extrasamples)


def _several_on_a_page(pictures: int) -> UnreadableError:
    return UnreadableError(
        Reason.UNSUPPORTED_ENCODING,
        f"A page of the TIFF file holds {pictures} pictures, which octray does not read. Export each as a page of its own.",
    )


def _page_values(page: Any, array: NDArray[Any]) -> NDArray[Any]:
    """Return values of shape (rows, columns) or (rows, columns, samples), palettes looked up."""
    if page.photometric.name == "PALETTE":
        array = np.moveaxis(_colour_map(page)[:, array.astype(np.uint8) if array.dtype == bool else array], 0, -1)
    elif page.samplesperpixel > 1 and page.planarconfig.name == "SEPARATE":
        array = np.moveaxis(array, 0, -1)
    if array.shape[:2] != (page.imagelength, page.imagewidth):
        raise UnreadableError(
            Reason.INCONSISTENT, "A page of the TIFF file does not have the size in its header. Export it again."
        )
    if (several := _grey_samples(page)) > 1 and (array[..., 1:several] != array[..., :1]).any():
        raise _several_on_a_page(several)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UnreadableError(
            Reason.INCONSISTENT, "A page of the TIFF file holds values that are not numbers. Export it again."
        )
    return array


def _colour_map(page: Any) -> NDArray[Any]:
    """Return the palette of a page, shape (3, entries): as bytes if its words were made of bytes, as in nearly all files.

    Writers repeat a byte in both halves of a word (TIFF 6.0, page 23), leave the lower half 0, or the upper one.
    """
    words: NDArray[np.uint16] = page.colormap
    for factor in (257, 256, 1):
        if not (words % factor).any() and words.max() // factor < 2**8:
            return (words // factor).astype(np.uint8)
    return words


def _full_range(page: Any, grey: NDArray[Any]) -> tuple[float, float] | None:
    """Return the range that a palette, or up to 8 bits, can hold; None if the page is shown between percentiles."""
    bits = 8 * grey.itemsize if page.photometric.name == "PALETTE" else page.bitspersample
    known = grey.dtype.kind == "u" and (bits <= 8 or page.photometric.name == "PALETTE")
    return (0.0, 2.0**bits - 1) if known else None


def _find_pictures(tiff: tifffile.TiffFile, length: int) -> tuple[list[Picture], tuple[str, ...]]:
    """Find the pictures of a TIFF file of `length` bytes, and return notes on them.

    Pages that are marked as reduced copies (NewSubfileType or SubfileType) are ignored, if the file holds a larger picture.
    ImageJ (for more than 4 GB), tifffile and MetaMorph write stacks with only one page, and state the number of planes behind
    it.

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
        notes += (f"Reduced copies that the TIFF file holds beside its pictures were ignored: {left_out}.",)
    return pictures, notes


def _plane_values(picture: Picture, content: bytes) -> NDArray[Any]:
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
    """Yield each page, which names the next, and after it its SubIFDs (330); tifffile does not detect every circle of pages."""
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
        raise UnreadableError(Reason.INCONSISTENT, "The pages of the TIFF file form a circle. Export it again.")
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
    """Return how many pictures begin at a page by its description, 1 if it has none, and whether the others have no page."""
    if page.is_imagej and (found := _IMAGEJ.search(page.imagej_description or "")):
        return max(1, int(found[1])), False
    if page.is_shaped:
        return _shaped_pictures(page)
    if (tag := page.tags.get(_UIC2)) is not None:
        return max(1, tag.count), True
    return 1, False


def _shaped_pictures(page: Any) -> tuple[int, bool]:
    """Return the same by the description of tifffile, the shape of all pictures that begin at a page."""
    try:
        described = json.loads(page.shaped_description)
        count, rest = divmod(math.prod(described["shape"]), math.prod(page.shape))
        return (1, False) if rest or count < 1 else (count, described.get("truncated") is True)
    except (ValueError, TypeError, KeyError):
        return 1, False


def _holds(page: Any, count: int, length: int) -> bool:
    """Return whether `count` planes lie in the file, one behind the other, which those of compressed pages cannot."""
    return count == 1 or (bool(page.is_final) and int(page.dataoffsets[0] + count * page.nbytes) <= length)


def _missing_notes(pages: list[Any], found: int, stated: int, length: int) -> tuple[str, ...]:
    """Compare the pictures that were found with the stated number; a description may have outlived other pictures."""
    if found >= stated:
        return ()
    if _end(pages) >= length:
        return (f"The description of the TIFF file says {stated} pictures, but there is no room for more than {found}.",)
    page = pages[0]
    if len(pages) == 1 and page.is_final:
        raise UnreadableError(
            Reason.TRUNCATED,
            f"The TIFF file is cut off: it holds {(length - page.dataoffsets[0]) // page.nbytes} of {stated} pictures. Copy or "
            "export it again.",
        )
    raise UnreadableError(
        Reason.INCONSISTENT,
        f"The TIFF file should hold {stated} pictures, but {found} were found. Export each as a page or a file of its own.",
    )


def _end(pages: list[Any]) -> int:
    """Return the end of all bytes that pages refer to: their pixels, their tags, or the values of these."""
    ends = [0]
    for page in pages:
        ends += [at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        ends += [tag.valueoffset + tag.valuebytecount for tag in page.tags]
        layout = page.parent.tiff
        ends.append(page.offset + layout.tagnosize + len(page.tags) * layout.tagsize + layout.offsetsize)
    return max(ends)
