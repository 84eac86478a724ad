"""Reads PNG, JPEG and TIFF: from bytes to `Frame`s; UIDs are derived from the content, and nothing is turned or mirrored."""

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame, InstanceKey
from pipeline.imaging.colour import TOLERANCE, drop_opaque_alpha, to_grey
from pipeline.imaging.dicom.codestream import check_scans, codestream_shape, read_codestream
from pipeline.imaging.grayscale import Rendering, render
from pipeline.imaging.guard import check_size, translated
from pipeline.imaging.identity import derived_uid, little_endian, pixel_sha256, stored_sha256
from pipeline.imaging.picture_count import check_single
from pipeline.imaging.reduced import BLOCK_OFFSET, decode_jpeg, levels, whole_box
from pipeline.imaging.tiff_pages import find_pictures, plane_values
from pipeline.settings import DEFAULT_READING, Limits, Reading

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")

MOST_STRIPS = 2**18
"""Strips or tiles of a page of a TIFF file."""

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
_OF_A_CAMERA = frozenset({ExifTags.Base.ExposureTime, ExifTags.Base.FNumber, ExifTags.Base.FocalLength})
_NO_EXIF = "The EXIF data of the file cannot be read: whether it asks to be turned or mirrored is not known."
_XMP, _XMP_ORIENTATION = 700, re.compile(rb"tiff:Orientation(?:=[\"']|>)([0-9])")
_TIFF_TYPES = ("bool", "uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")


def read_picture(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read a PNG or JPEG file; it is one frame, its pixels as stored, an orientation in its EXIF data left alone.

    A file of several pictures is refused.

    Raises
    ------
    UnreadableError
        And nothing else, whatever the bytes are.
    """
    with translated("The image is damaged and cannot be decoded. Copy or export it again."):
        notes: tuple[str, ...] = ()
        # Pillow checks a size of its own when it opens; ours comes first.
        check_size(*_announced_size(content), 1, reading.limits)
        check_scans(content)
        _check_kind_of_jpeg(content)
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        notes += check_single(content, image)
        if content.startswith(PNG) and content[24] == 16 and image.mode not in ("I;16", "I;16B"):
            notes += ("The file has 16 bits in each colour channel; 8 of them were read.",)
        stored = _reduced(content, (image.height, image.width), reading)
        if stored is None:
            stored = _picture_values(_load(image))
        # Only after it was loaded: EXIF data may lie behind the pixels of a PNG file.
        exif_notes, by_camera = _exif_of_picture(image)
        notes += exif_notes
        file = _File("pillow", content, source, 1, (image.height, image.width), reading.hashes)
        grey = _grey(stored, TOLERANCE if content.startswith(JPEG) else 0)
        frame = _frame(file, 1, stored, grey, (0.0, 255.0) if grey.dtype == np.uint8 else None)
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
    """Return what is to be said of the EXIF data of a picture, and whether they are those of a camera."""
    try:
        exif = image.getexif()
        by_camera = not _OF_A_CAMERA.isdisjoint(exif.get_ifd(ExifTags.IFD.Exif))
    except Exception:  # whatever Pillow raises on damaged EXIF data: the picture is as good as without any
        return (_NO_EXIF,), False
    return _orientation_notes("EXIF", exif.get(ExifTags.Base.Orientation)), by_camera


def _orientation_notes(kind: str, orientation: object) -> tuple[str, ...]:
    """Say that a file asks for another orientation than the one that its pixels have (TIFF 6.0 and EXIF, tag 274)."""
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


def _grey(array: NDArray[Any], tolerance: int) -> NDArray[Any]:
    if array.ndim == 3 and array.shape[-1] in (2, 4):
        array = drop_opaque_alpha(array)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return array if array.ndim == 2 else to_grey(array, tolerance)


def read_tiff(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read a TIFF file, one frame a picture, in the order that `find_pictures` gives; none is turned or mirrored.

    Raises
    ------
    UnreadableError
        And nothing else, whatever the bytes are.
    """
    damaged = "The TIFF file is damaged and cannot be decoded. Copy or export it again."
    with translated(damaged):
        tiff = tifffile.TiffFile(io.BytesIO(content))
    with tiff:
        with translated(damaged):
            pictures, notes = find_pictures(tiff, len(content))
            for page in {id(page): page for page, _ in pictures}.values():
                _check_page(page, len(content), len(pictures), reading.limits)
        instance = hashlib.sha256()
        for number, picture in enumerate(pictures, 1):
            page, _ = picture
            with translated(f"Picture {number} of the TIFF file is damaged and cannot be decoded. Copy or export it again."):
                stored = _page_values(page, plane_values(picture, content))
                grey = _grey(stored, TOLERANCE if page.compression.name in ("JPEG", "OJPEG") else 0)
                file = _File("tifffile", content, source, len(pictures), (page.imagelength, page.imagewidth), reading.hashes)
                frame = _frame(file, number, stored, grey, _full_range(page, grey), page.photometric.name == "MINISWHITE")
                orientation_notes, by_camera = _exif_of_page(page)
                frame = replace(frame, by_camera=by_camera, notes=notes + orientation_notes + frame.notes)
                if frame.stored_sha256 and len(pictures) > 1:
                    instance.update(little_endian(stored).data)
            if frame.stored_sha256 and number == len(pictures):
                frame = replace(frame, instance_sha256=frame.stored_sha256 if number == 1 else instance.hexdigest())
            yield frame


def _exif_of_page(page: Any) -> tuple[tuple[str, ...], bool]:
    """Return what is to be said of the orientation of a page, and whether a camera took it, as its tags or EXIF data tell."""
    try:
        packet, exif = page.tags.valueof(_XMP), page.tags.valueof(ExifTags.IFD.Exif)
        in_packet = _XMP_ORIENTATION.search(packet) if isinstance(packet, bytes) else None
        orientation = page.tags.valueof(ExifTags.Base.Orientation, int(in_packet[1]) if in_packet else None)
    except Exception:  # whatever tifffile raises on damaged tags, as above
        return (_NO_EXIF,), False
    named = exif if isinstance(exif, dict) else {}
    by_camera = any(tag.value in page.tags or tag.name in named for tag in _OF_A_CAMERA)
    return _orientation_notes("TIFF", orientation), by_camera


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
    """Return how many samples of a pixel of a grey page are no alpha, which ExtraSamples (338) tells; 1 for other pages."""
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
            Reason.INCONSISTENT, "A page of the TIFF file does not have the size that it says. Export it again."
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
    """Return what a palette, or up to 8 bits, can hold; None for what is shown between percentiles."""
    bits = 8 * grey.itemsize if page.photometric.name == "PALETTE" else page.bitspersample
    known = grey.dtype.kind == "u" and (bits <= 8 or page.photometric.name == "PALETTE")
    return (0.0, 2.0**bits - 1) if known else None


@dataclass(frozen=True, slots=True)
class _File:
    """A file with one picture, or with several of which `shape` is that of the one in question, and what decodes them."""

    decoder: str
    content: bytes
    source: str
    frames: int
    shape: tuple[int, int]
    hashes: bool


def _frame(
    file: _File,
    number: int,
    stored: NDArray[Any],
    grey: NDArray[Any],
    full_range: tuple[float, float] | None,
    inverted: bool = False,
) -> Frame:
    """Make a frame: up to 8 bits and palettes are shown over their whole range, anything wider between percentiles."""
    if grey.dtype == bool:
        grey, full_range = grey.astype(np.uint8) * np.uint8(255), (0.0, 255.0)
    pixels, notes = render(grey, Rendering(inverted=inverted, full_range=full_range))
    uids = [derived_uid(file.content, role) for role in ("study", "series", "instance")]
    frame = Frame(
        pixels=pixels,
        key=InstanceKey(uids[0], uids[1], uids[2], number),
        source=file.source,
        pixel_sha256="",
        number_of_frames=file.frames,
        stored_range=(float(stored.min()), float(stored.max())),
        notes=notes,
        decoder=file.decoder,
    )
    if (decoded := (pixels.shape[0], pixels.shape[1])) != file.shape:
        return replace(frame, whole_shape=file.shape, whole_box=whole_box(file.shape, decoded, BLOCK_OFFSET))
    if not file.hashes:
        return frame
    return replace(frame, pixel_sha256=pixel_sha256(grey), stored_sha256=stored_sha256(stored))
