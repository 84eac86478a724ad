"""Finds images that may show who the patient is, and blanks rectangles of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from pipeline.deidentify.options import Box, Refusal, RefusedError
from pipeline.deidentify.surplus import extended_offset_tables, without_padding, without_surplus
from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.codecs import LOSSY
from pipeline.imaging.dicom.decoding import frame_decoder, stored_values
from pipeline.imaging.dicom.header import code, number, texts, value
from pipeline.imaging.dicom.layout import PIXEL_KEYWORDS, Bits, Layout
from pipeline.settings import DEFAULT_READING

_MODALITIES = frozenset({"DOC", "ES", "GM", "IVUS", "OT", "SC", "US", "XC"})
_STORAGE = "1.2.840.10008.5.1.4.1.1"
_CLASSES = tuple(f"{_STORAGE}.{number}." for number in ("3", "6", "7", "77.1.1", "77.1.4"))
"""Ultrasound (3, 6), Secondary Capture (7), endoscopic and photographic images, each with the classes below it."""
_SCREENS = frozenset({"DOSEINFO", "LABEL", "OVERVIEW", "SCREENSAVE", "SCREENSHOT", "SCREEN", "SECONDARY"})
"""Screens, pages of doses, and slides with their labels, as Image Type (0008,0008) names them, without spaces."""
_CAPTURE = (
    "ConversionType",
    "SecondaryCaptureDeviceID",
    "SecondaryCaptureDeviceManufacturer",
    "SecondaryCaptureDeviceManufacturerModelName",
    "SecondaryCaptureDeviceSoftwareVersions",
)
_OUTSIDE = (
    "A rectangle to blank lies outside the image of {} rows and {} columns. Give the images of one kind a run of their own."
)
_CHUNK = 2**22
_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
_STALE = ("SmallestImagePixelValue", "LargestImagePixelValue", *_OFFSETS)


def may_show_identity(dataset: Dataset) -> bool:
    """Say whether an image may have the patient's identity among its pixels.

    It may where Recognizable Visual Features (0028,0302) says YES, where Burned In Annotation (0028,0301) says anything but NO,
    and where that is missing in a kind of image that often has it: secondary capture, ultrasound, photographs, screens, labels.
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
    """Say whether Burned In Annotation (0028,0301) is NO."""
    return [text.strip().upper() for text in texts(dataset, "BurnedInAnnotation")] == ["NO"]


def blank(dataset: Dataset, layout: Layout, boxes: Callable[[NDArray[Any]], Iterable[Box]]) -> Iterator[None]:
    """Set the pixels inside some rectangles of every frame to 0, in place, while it is iterated; all others keep their values.

    The pixel data become uncompressed, in Explicit VR Little Endian unless they are big endian; colour becomes RGB, colour by
    pixel. Pixels of a single bit stay as they are if there is nothing to blank.

    Parameters
    ----------
    dataset
        As it stands in the file, with the transfer syntax of the file.
    layout
        What its header says of the pixel data.
    boxes
        Gives the rectangles of a frame of stored values of shape (rows, columns) or (rows, columns, 3).

    Yields
    ------
    None
        After each frame.

    Raises
    ------
    UnreadableError
        Where the pixel data cannot be decoded.
    RefusedError
        If a pixel to be blanked is a single bit, or a rectangle lies outside of the frame.
    """
    if layout.bits_allocated < 8:
        for stored in stored_values(dataset, layout, DEFAULT_READING):
            if any(True for _ in boxes(stored)):
                raise RefusedError(Refusal.NOT_SUPPORTED, "Pixels of a single bit cannot be blanked. Leave the file out.")
            yield None
        yield from clear_surplus(dataset, layout)
        return
    is_swapped = layout.transfer_syntax == ExplicitVRBigEndian
    frames, bits = [], layout.bits.stored if layout.bits is not None else 0
    for stored in stored_values(dataset, layout, DEFAULT_READING):
        frame = stored.astype(stored.dtype.newbyteorder(">" if is_swapped else "<"))
        for box in boxes(stored):
            if box.left >= layout.columns or box.top >= layout.rows:
                raise RefusedError(Refusal.OUTSIDE, _OUTSIDE.format(layout.rows, layout.columns))
            frame[box.top : box.top + box.height, box.left : box.left + box.width] = 0
        frames.append(frame.tobytes())
        if layout.bits is not None:
            bits = max(bits, *(_bits_of(int(end), frame.dtype.kind == "i") for end in (frame.min(), frame.max())))
        yield None
    _set_uncompressed(dataset, layout, b"".join(frames), bits)


def _bits_of(number: int, signed: bool) -> int:
    return (number if number >= 0 else ~number).bit_length() + signed


def _set_uncompressed(dataset: Dataset, layout: Layout, data: bytes, bits: int) -> None:
    """Put uncompressed pixels of so many bits into a data set; a codestream may hold more of them than Bits Stored says."""
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
    for keyword in _STALE:
        if keyword in dataset:
            delattr(dataset, keyword)


def clear_surplus(dataset: Dataset, layout: Layout) -> Iterator[None]:
    """Remove, in place, what lies in and behind the pixel data and is no pixel; all pixels keep their values.

    Bits that are not stored are cleared, overlays among them (PS3.5 8.1.2, retired); signs that reach into them and Pixel
    Padding Value (0028,0120) stay.

    Yields
    ------
    None
        After each compressed frame.

    Raises
    ------
    UnreadableError
        `UNSUPPORTED_ENCODING` if overlays are compressed with the pixels, or a frame has parts of unknown meaning;
        `INCONSISTENT` if High Bit is wrong; what decoding raises.
    """
    if layout.transfer_syntax.is_encapsulated:
        if layout.bits is not None and layout.bits.overlays:
            raise UnreadableError(
                Reason.UNSUPPORTED_ENCODING,
                "An overlay lies among the compressed bits of the pixels. Export the file uncompressed.",
            )
        table, made = value(dataset, "ExtendedOffsetTable"), b""
        decode = frame_decoder(dataset, layout, DEFAULT_READING)
        for made in without_surplus(  # noqa: B007 - the last one is the pixel data
            dataset.PixelData, layout, table if isinstance(table, bytes) else b"", lambda encoded: decode(encoded)[0]
        ):
            yield None
        right = extended_offset_tables(made, layout.frames)
    else:
        made, right = _native(dataset, layout), (b"", b"")
    if tuple(value(dataset, keyword) for keyword in _OFFSETS) != right:
        for keyword in _OFFSETS:
            dataset.pop(keyword, None)
    if made != dataset[layout.keyword].value:
        dataset[layout.keyword].value = made
    for keyword in PIXEL_KEYWORDS.keys() - {layout.keyword}:
        dataset.pop(keyword, None)


def _native(dataset: Dataset, layout: Layout) -> bytes:
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
    """Clear the bits that are not stored, a piece at a time, so that no second copy of all pixels is held."""
    words = np.frombuffer(data, kind)
    signed, kept = number(dataset, "PixelRepresentation") == 1, int(padding or 0) % 2**bits.allocated
    pieces = (
        _cleared(words[at : at + _CHUNK].astype(kind.newbyteorder("=")), bits, signed, kept)
        for at in range(0, words.size, _CHUNK)
    )
    return b"".join(piece.astype(kind).tobytes() for piece in pieces)


def _cleared(words: NDArray[Any], bits: Bits, signed: bool, kept: int) -> NDArray[Any]:
    """Return words in which the bits outside of the stored ones are 0, or repeat the sign; `kept` is left as it is."""
    kind = words.dtype.type
    words = words & kind(~bits.overlays % 2**bits.allocated)
    stored = ((1 << bits.stored) - 1) << (bits.high + 1 - bits.stored)
    if (words & kind(bits.below)).any():
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"High Bit is {bits.high} with {bits.stored} bits stored, but the bits below hold values, too. Export it again.",
        )
    only = words & kind(stored)
    negative = (only & kind(1 << bits.high)) != 0
    above = kind((1 << bits.allocated) - (1 << (bits.high + 1)))
    extended = np.where(negative, only | above, only) if signed else only
    is_right = (words == only) | (words == extended) | (words == kind(kept))
    return np.where(is_right, words, extended)
