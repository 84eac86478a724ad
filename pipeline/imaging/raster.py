"""Reads PNG and JPEG files: from bytes to one frame, its UIDs derived from the content; nothing is turned or mirrored."""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame, InstanceKey
from pipeline.imaging.codestream import check_scans, codestream_shape, read_codestream
from pipeline.imaging.grayscale import TOLERANCE, Rendering, drop_opaque_alpha, render, to_grey
from pipeline.imaging.guard import check_size, unreadable
from pipeline.imaging.identity import derived_uids, pixel_sha256, stored_sha256
from pipeline.imaging.reduced import BLOCK_OFFSET, decode_jpeg, levels, whole_box
from pipeline.settings import DEFAULT_READING, Reading

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"


_MODES = {
    "1": "L",
    "LA": "LA",
    "L": "L",
    "P": "RGB",
    "PA": "RGBA",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "I;16": "I;16",
    "I;16B": "I;16",
}
_READ_BY_PILLOW = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
"""Frame headers (ISO/IEC 10918-1 table B.1): baseline, extended and progressive, with Huffman or arithmetic coding."""
_KINDS_OF_JPEG = {0xC3: "without loss", 0xCB: "without loss", 0xF7: "LS"}
OF_A_CAMERA = frozenset({ExifTags.Base.ExposureTime, ExifTags.Base.FNumber, ExifTags.Base.FocalLength})
NO_EXIF = "The EXIF data of the file cannot be read: octray cannot tell whether it should be turned or mirrored."
_NEXT_PNG = re.compile(rb"IEND\xaeB`\x82\0*(?=\x89PNG\r\n\x1a\n)")
_NEXT_JPEG = re.compile(rb"\0*(?=\xff\xd8\xff)")
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker among entropy-coded data, in which 0xFF is followed by 0, by the number of an interval, or fills (T.81 B.1.1)."""
_GAIN_MAP = re.compile(rb"hdrgm:Version|HDRGainMap")
_HEADER = 2**16
_ENTRIES, _SINGLE, _STANDALONE = 0xB002, 0x01, range(0xD0, 0xD8)
_SCAN, _END = 0xDA, 0xD9


def read_picture(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read a PNG or JPEG file; it is one frame, its pixels as stored, an orientation in its EXIF data left alone.

    A file of several pictures is refused.

    Raises
    ------
    UnreadableError
        And nothing else, whatever the bytes are.
    """
    with unreadable("The image is damaged and cannot be decoded. Copy or export it again."):
        notes: tuple[str, ...] = ()
        # Pillow checks a size of its own when it opens; ours comes first.
        check_size(*_announced_size(content), 1, reading.limits)
        check_scans(content)
        _check_kind_of_jpeg(content)
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        notes += _check_single(content, image)
        if content.startswith(PNG) and content[24] == 16 and image.mode not in ("I;16", "I;16B"):
            notes += ("The file has 16 bits in each colour channel; 8 of them were read.",)
        stored = _reduced(content, (image.height, image.width), reading)
        if stored is None:
            stored = _picture_values(_load(image))
        # Only after it was loaded: EXIF data may lie behind the pixels of a PNG file.
        exif_notes, by_camera = _exif_of_picture(image)
        notes += exif_notes
        grey = grey_picture(stored, TOLERANCE if content.startswith(JPEG) else 0)
        frame = picture_frame(
            stored,
            grey,
            uids=derived_uids(content),
            source=source,
            number=1,
            frames=1,
            shape=(image.height, image.width),
            decoder="pillow",
            hashes=reading.hashes,
            full_range=(0.0, 255.0) if grey.dtype == np.uint8 else None,
        )
    yield replace(frame, instance_sha256=frame.stored_sha256, by_camera=by_camera, notes=notes + frame.notes)


def _check_kind_of_jpeg(content: bytes) -> None:
    found = read_codestream(content) if content.startswith(JPEG) else None
    if found is None or (found.precision == 8 and found.marker in _READ_BY_PILLOW):
        return
    kind = _KINDS_OF_JPEG.get(
        found.marker, f"with {found.precision} bits a sample" if found.precision != 8 else "of a rare kind"
    )
    raise UnreadableError(
        Reason.UNSUPPORTED_ENCODING,
        f"The image is a JPEG {kind}, which octray reads in DICOM files only. Export it as PNG or as JPEG of 8 bits.",
    )


def _exif_of_picture(image: Image.Image) -> tuple[tuple[str, ...], bool]:
    """Return notes on the EXIF data of a picture, and whether they show that a camera took it."""
    try:
        exif = image.getexif()
        by_camera = not OF_A_CAMERA.isdisjoint(exif.get_ifd(ExifTags.IFD.Exif))
    except Exception:  # whatever Pillow raises on damaged EXIF data: the picture is as good as without any
        return (NO_EXIF,), False
    return orientation_notes("EXIF", exif.get(ExifTags.Base.Orientation)), by_camera


def orientation_notes(kind: str, orientation: object) -> tuple[str, ...]:
    """Return a note if a file asks for another orientation than its pixels have (TIFF 6.0 and EXIF, tag 274)."""
    if orientation not in range(2, 9):
        return ()
    return (f"The file asks to be turned or mirrored ({kind} orientation {orientation}); the pixels are as stored.",)


def _reduced(content: bytes, shape: tuple[int, int], reading: Reading) -> NDArray[Any] | None:
    if reading.side is None or not content.startswith(JPEG) or not levels(shape, reading.side):
        return None
    return decode_jpeg(content, reading.side)


def _announced_size(content: bytes) -> tuple[int, int]:
    """Return rows and columns as the header of a PNG or JPEG file gives them."""
    if content.startswith(PNG):
        return int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")
    rows, columns, _ = codestream_shape(content) or (1, 1, 1)
    return rows, columns


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except OSError as error:
        if "truncated" in str(error):
            raise UnreadableError(Reason.TRUNCATED, "The image is cut off. Copy or export it again.") from None
        raise
    return image


def _picture_values(image: Image.Image) -> NDArray[Any]:
    mode = _MODES.get(image.mode)
    if mode is None:
        raise UnreadableError(
            Reason.UNSUPPORTED_ENCODING, f"The image is stored as {image.mode}, which octray does not read. Export it as grey."
        )
    if image.has_transparency_data:
        mode = "LA" if mode == "L" else "RGBA" if mode == "RGB" else mode
    return np.asarray(image if image.mode == mode else image.convert(mode))


def grey_picture(array: NDArray[Any], tolerance: int) -> NDArray[Any]:
    """Return the grey picture in an array of shape (rows, columns) or (rows, columns, samples), as `to_grey` finds it."""
    if array.ndim == 3 and array.shape[-1] in (2, 4):
        array = drop_opaque_alpha(array)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return array if array.ndim == 2 else to_grey(array, tolerance)


def picture_frame(
    stored: NDArray[Any],
    grey: NDArray[Any],
    *,
    uids: tuple[str, str, str],
    source: str,
    number: int,
    frames: int,
    shape: tuple[int, int],
    decoder: str,
    hashes: bool,
    full_range: tuple[float, float] | None,
    inverted: bool = False,
) -> Frame:
    """Make a frame: up to 8 bits and palettes are shown over their whole range, anything wider between percentiles.

    Parameters
    ----------
    stored
        Array of shape (rows, columns) or (rows, columns, samples), as it was decoded.
    grey
        The same as one picture, shape (rows, columns).
    uids
        Study, Series and SOP Instance UID.
    source, number, frames, decoder
        As in `Frame`: its file, its number from 1 on, how many the file has, and what decoded them.
    shape
        Rows and columns of the picture in its file.
    hashes
        Whether the stored values are hashed, if they were decoded whole.
    full_range
        Smallest and largest value that up to 8 bits or a palette can hold; None for anything wider.
    inverted
        Whether low values are shown white.
    """
    if grey.dtype == bool:
        grey, full_range = grey.astype(np.uint8) * np.uint8(255), (0.0, 255.0)
    pixels, notes = render(grey, Rendering(inverted=inverted, full_range=full_range))
    decoded = (pixels.shape[0], pixels.shape[1])
    is_whole = decoded == shape
    return Frame(
        pixels=pixels,
        key=InstanceKey(*uids, number),
        source=source,
        pixel_sha256=pixel_sha256(grey) if hashes and is_whole else "",
        number_of_frames=frames,
        stored_sha256=stored_sha256(stored) if hashes and is_whole else "",
        stored_range=(float(stored.min()), float(stored.max())),
        whole_shape=None if is_whole else shape,
        whole_box=None if is_whole else whole_box(shape, decoded, BLOCK_OFFSET),
        notes=notes,
        decoder=decoder,
    )


def _check_single(content: bytes, image: Image.Image) -> tuple[str, ...]:
    """Refuse a file that holds several pictures; return notes on what it holds besides its one picture.

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
    return (f"Smaller copies that the file holds beside its picture were ignored: {copies}.",) if copies else ()


def _entries(content: bytes, image: Image.Image) -> dict[int, str]:
    """Return the positions of the further pictures of an MPO, as far as they are there, with their types in its index."""
    base = content.find(b"MPF\0") + 4
    entries: list[dict[str, Any]] = (getattr(image, "mpinfo", None) or {}).get(_ENTRIES, [])
    starts = {base + one["DataOffset"]: str(one["Attribute"]["MPType"]) for one in entries if one["DataOffset"]}
    return {start: kind for start, kind in starts.items() if content.startswith(b"\xff\xd8\xff", start)}


def _followers(content: bytes) -> dict[int, str]:
    """Return the positions of JPEGs that follow the first one and each other with nothing but zeros between them."""
    starts: dict[int, str] = {}
    end = _end_of_jpeg(content, 0)
    while end is not None and (gap := _NEXT_JPEG.match(content, end)):
        starts[gap.end()] = ""
        end = _end_of_jpeg(content, gap.end())
    return starts


def _end_of_jpeg(content: bytes, start: int) -> int | None:
    """Return the end of a JPEG, by walking through its segments (T.81 B.1.1); None if it is cut off or damaged."""
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
    """Return whether a further picture is a preview, or a gain map by which brighter displays show the first."""
    return kind.startswith("Large Thumbnail") or _GAIN_MAP.search(content, start, start + _HEADER) is not None
