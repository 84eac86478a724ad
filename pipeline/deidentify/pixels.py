"""Cleans the pixels of an image: burned-in text, rectangles that are blanked, and bits that no pixel stores."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from pipeline.deidentify.profile import Rectangle, RefusalReason, RefusedError
from pipeline.deidentify.surplus import extended_offset_tables, without_padding, without_surplus
from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.codecs import LOSSY
from pipeline.imaging.dicom.decoding import frame_decoder, stored_values
from pipeline.imaging.dicom.elements import code, number, texts, value
from pipeline.imaging.dicom.layout import PIXEL_KEYWORDS, Bits, Layout
from pipeline.imaging.quality import ocr
from pipeline.settings import DEFAULT_READING

_MODALITIES = frozenset({"DOC", "ES", "GM", "IVUS", "OT", "SC", "US", "XC"})
_STORAGE = "1.2.840.10008.5.1.4.1.1"
_CLASSES = tuple(f"{_STORAGE}.{number}." for number in ("3", "6", "7", "77.1.1", "77.1.4"))
"""Ultrasound (3, 6), Secondary Capture (7), endoscopic and photographic images, each with the classes below it."""
_SCREENS = frozenset({"DOSEINFO", "LABEL", "OVERVIEW", "SCREENSAVE", "SCREENSHOT", "SCREEN", "SECONDARY"})
"""Values of Image Type (0008,0008), without spaces, for screens, dose pages, and slides with their labels."""
_CAPTURE = (
    "ConversionType",
    "SecondaryCaptureDeviceID",
    "SecondaryCaptureDeviceManufacturer",
    "SecondaryCaptureDeviceManufacturerModelName",
    "SecondaryCaptureDeviceSoftwareVersions",
)
_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
_OUTDATED = ("SmallestImagePixelValue", "LargestImagePixelValue", *_OFFSETS)
_CHUNK = 2**22


def may_show_identity(dataset: Dataset) -> bool:
    """Return whether the pixels of an image may show the patient's identity.

    They may if Recognizable Visual Features (0028,0302) is YES, if Burned In Annotation (0028,0301) is anything but NO, or if
    that is missing and the image is of a kind that often shows it: secondary capture, ultrasound, photographs, screens, labels.
    """
    if code(dataset, "RecognizableVisualFeatures") == "YES":
        return True
    if any(text.strip() for text in texts(dataset, "BurnedInAnnotation")):
        return not says_no_annotation(dataset)
    image_type = {text.upper().replace("_", "").replace(" ", "") for text in texts(dataset, "ImageType")[2:]}
    return (
        code(dataset, "Modality") in _MODALITIES
        or f"{value(dataset, 'SOPClassUID')}.".startswith(_CLASSES)
        or any(value(dataset, keyword) is not None for keyword in _CAPTURE)
        or bool(image_type & _SCREENS)
    )


def says_no_annotation(dataset: Dataset) -> bool:
    """Return whether Burned In Annotation (0028,0301) is NO."""
    return [text.strip().upper() for text in texts(dataset, "BurnedInAnnotation")] == ["NO"]


# Burned-in text, found with the optional extra `ocr`

_MARGIN = 3
_LARGEST_SHARE = 0.25
"""Share of a frame: what looks like text over more of it is more likely the picture itself."""


def find_text_rectangles(stored: NDArray[Any], may_show_identity: bool = True) -> tuple[Rectangle, ...]:
    """Return the rectangles of a frame that contain text, with a margin of a few pixels.

    A single character (a side marker such as R or L) is not identifying and is left. The frame is searched twice: scaled from
    its smallest to its largest value, and with its grey levels equalised, so that faint text is found too.

    Parameters
    ----------
    stored
        Stored values of shape (rows, columns) or (rows, columns, 3).
    may_show_identity
        Whether the header says so. If it does not, two characters over more than a quarter of the frame are the picture itself:
        two lungs look like 11.

    Raises
    ------
    ConfigError
        If the extra is not installed.
    RefusedError
        `BURNED_IN` if more than a quarter of the frame would be blanked.
    """
    largest = _LARGEST_SHARE * stored.shape[0] * stored.shape[1]
    grey = stored.astype(np.float32) if stored.ndim == 2 else stored.max(axis=-1).astype(np.float32)
    rectangles = []
    blanked = np.zeros(stored.shape[:2], bool)
    for found in (*ocr.find_text(_stretched(grey)), *ocr.find_text(_equalised(grey))):
        is_marker = found.characters == 1 and found.columns <= 2 * found.rows
        is_picture = not may_show_identity and found.characters <= 2 and found.rows * found.columns > largest
        if is_marker or is_picture:
            continue
        top, left = max(found.top - _MARGIN, 0), max(found.left - _MARGIN, 0)
        bottom, right = found.top + found.rows + _MARGIN, found.left + found.columns + _MARGIN
        rectangles.append(Rectangle(left, top, right - left, bottom - top))
        blanked[top:bottom, left:right] = True
    if blanked.mean() > _LARGEST_SHARE:
        raise RefusedError(
            RefusalReason.BURNED_IN,
            "What looks like text covers more than a quarter of the picture, which may be the picture itself. Give the "
            "rectangles with --blank, without --clean-pixels.",
        )
    return tuple(rectangles)


def _stretched(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = float(grey.min()), float(grey.max())
    stretched: NDArray[np.float32] = (grey - low) / (high - low) if high > low else np.zeros_like(grey)
    return stretched


def _equalised(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    _, inverse = np.unique(grey, return_inverse=True)
    levels = inverse.reshape(grey.shape)
    return (levels / max(int(levels.max()), 1)).astype(np.float32)


# Blanking


def blank(dataset: Dataset, layout: Layout, rectangles: Callable[[NDArray[Any]], Iterable[Rectangle]]) -> Iterator[None]:
    """Set the pixels inside rectangles of every frame to 0, in place, frame by frame; all others keep their values.

    The pixel data become uncompressed: in Explicit VR Little Endian, unless they are big endian. Colour becomes RGB, colour by
    pixel. Pixels of a single bit stay as they are if there is nothing to blank.

    Parameters
    ----------
    dataset
        As the file has it, with the transfer syntax of the file.
    layout
        What the header says of the pixel data.
    rectangles
        Returns the rectangles of a frame of stored values of shape (rows, columns) or (rows, columns, 3).

    Yields
    ------
    None
        After each frame.

    Raises
    ------
    UnreadableError
        If the pixel data cannot be decoded.
    RefusedError
        If a pixel to be blanked is a single bit, or a rectangle lies outside the frame.
    """
    if layout.bits_allocated < 8:
        for stored in stored_values(dataset, layout, DEFAULT_READING):
            if any(True for _ in rectangles(stored)):
                raise RefusedError(RefusalReason.NOT_SUPPORTED, "Pixels of a single bit cannot be blanked. Leave the file out.")
            yield None
        yield from clear_surplus(dataset, layout)
        return
    is_swapped = layout.transfer_syntax == ExplicitVRBigEndian
    frames, bits = [], layout.bits.stored if layout.bits is not None else 0
    for stored in stored_values(dataset, layout, DEFAULT_READING):
        frame = stored.astype(stored.dtype.newbyteorder(">" if is_swapped else "<"))
        for area in rectangles(stored):
            if area.left >= layout.columns or area.top >= layout.rows:
                raise RefusedError(
                    RefusalReason.OUTSIDE,
                    f"A rectangle to blank lies outside the image of {layout.rows} rows and {layout.columns} columns. Run "
                    "images of one kind on their own.",
                )
            frame[area.top : area.top + area.height, area.left : area.left + area.width] = 0
        frames.append(frame.tobytes())
        if layout.bits is not None:
            bits = max(bits, *(_bits_of(int(end), frame.dtype.kind == "i") for end in (frame.min(), frame.max())))
        yield None
    _set_uncompressed(dataset, layout, b"".join(frames), bits)


def _bits_of(number: int, signed: bool) -> int:
    return (number if number >= 0 else ~number).bit_length() + signed


def _set_uncompressed(dataset: Dataset, layout: Layout, data: bytes, bits: int) -> None:
    """Put uncompressed pixels into a data set; `bits` are stored, since a codestream may hold more than Bits Stored says."""
    representation = {"FloatPixelData": "OF", "DoubleFloatPixelData": "OD"}.get(layout.keyword, "OW")
    if layout.bits_allocated == 8:
        representation = "OB"
    dataset[layout.keyword] = DataElement(tag_for_keyword(layout.keyword) or 0, representation, data + bytes(len(data) % 2))
    if layout.transfer_syntax != ExplicitVRBigEndian:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if layout.transfer_syntax in LOSSY and code(dataset, "LossyImageCompression") not in ("00", "01"):
        dataset.LossyImageCompression = "01"
    if layout.samples > 1:
        dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    if layout.bits is not None:
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
    for keyword in _OUTDATED:
        if keyword in dataset:
            delattr(dataset, keyword)


# Bits and bytes that are no pixels


def clear_surplus(dataset: Dataset, layout: Layout) -> Iterator[None]:
    """Clear everything in and behind the pixel data that is no pixel, in place; all pixels keep their values.

    Bits that are not stored become 0, also those of overlays (PS3.5 8.1.2, retired). Sign bits that extend into them and Pixel
    Padding Value (0028,0120) stay.

    Yields
    ------
    None
        After each compressed frame.

    Raises
    ------
    UnreadableError
        `UNSUPPORTED_ENCODING` if overlays are compressed with the pixels, or a frame has parts of unknown meaning;
        `INCONSISTENT` if High Bit is wrong; everything that decoding raises.
    """
    if layout.transfer_syntax.is_encapsulated:
        if layout.bits is not None and layout.bits.overlays:
            raise UnreadableError(
                Reason.UNSUPPORTED_ENCODING,
                "An overlay is stored in the compressed bits of the pixels. Export the file uncompressed.",
            )
        table, cleaned = value(dataset, "ExtendedOffsetTable"), b""
        decode = frame_decoder(dataset, layout, DEFAULT_READING)
        for cleaned in without_surplus(  # noqa: B007 - the last one is the pixel data
            dataset.PixelData, layout, table if isinstance(table, bytes) else b"", lambda encoded: decode(encoded)[0]
        ):
            yield None
        right = extended_offset_tables(cleaned, layout.frames)
    else:
        cleaned, right = _cleared_native(dataset, layout), (b"", b"")
    if tuple(value(dataset, keyword) for keyword in _OFFSETS) != right:
        for keyword in _OFFSETS:
            dataset.pop(keyword, None)
    if cleaned != dataset[layout.keyword].value:
        dataset[layout.keyword].value = cleaned
    for keyword in PIXEL_KEYWORDS.keys() - {layout.keyword}:
        dataset.pop(keyword, None)


def _cleared_native(dataset: Dataset, layout: Layout) -> bytes:
    bits = layout.rows * layout.columns * layout.samples * layout.bits_allocated
    if layout.photometric_interpretation == "YBR_FULL_422":
        bits = bits // 3 * 2
    length = (bits * layout.frames + 7) // 8
    is_swapped = not dataset.original_encoding[1] and dataset[layout.keyword].VR == "OW"
    data = without_padding(dataset[layout.keyword].value[: length + length % 2], length, is_swapped=is_swapped)
    if layout.bits is not None and layout.bits.allocated >= 8 and (layout.bits.stored < layout.bits.allocated):
        order = "<" if dataset.original_encoding[1] else ">"
        padding = number(dataset, "PixelPaddingValue")
        data = _only_stored(data, np.dtype(f"{order}u{layout.bits_allocated // 8}"), layout.bits, dataset, padding)
    return bytes(data)


def _only_stored(data: bytes, kind: np.dtype[Any], bits: Bits, dataset: Dataset, padding: float | None) -> bytes:
    """Clear the bits that are not stored, piece by piece, so that memory does not hold a second copy of all pixels."""
    words = np.frombuffer(data, kind)
    signed, padding_word = number(dataset, "PixelRepresentation") == 1, int(padding or 0) % 2**bits.allocated
    pieces = (
        _cleared(words[at : at + _CHUNK].astype(kind.newbyteorder("=")), bits, signed, padding_word)
        for at in range(0, words.size, _CHUNK)
    )
    return b"".join(piece.astype(kind).tobytes() for piece in pieces)


def _cleared(words: NDArray[Any], bits: Bits, signed: bool, padding_word: int) -> NDArray[Any]:
    """Return words in which the bits outside of the stored ones are 0 or repeat the sign; `padding_word` stays as it is."""
    kind = words.dtype.type
    words = words & kind(~bits.overlays % 2**bits.allocated)
    stored = ((1 << bits.stored) - 1) << (bits.high + 1 - bits.stored)
    if (words & kind(bits.below)).any():
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"High Bit is {bits.high} with {bits.stored} bits stored, but the bits below hold values too. Export it again.",
        )
    only = words & kind(stored)
    negative = (only & kind(1 << bits.high)) != 0
    above = kind((1 << bits.allocated) - (1 << (bits.high + 1)))
    extended = np.where(negative, only | above, only) if signed else only
    is_right = (words == only) | (words == extended) | (words == kind(padding_word))
    return np.where(is_right, words, extended)
