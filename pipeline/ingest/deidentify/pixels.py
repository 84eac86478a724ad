"""Finds images that may show who the patient is, and blanks rectangles of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.decoding import stored_values
from pipeline.imaging.dicom.header import code, texts, value
from pipeline.imaging.dicom.layout import Layout
from pipeline.ingest.deidentify.options import Box, Refusal, RefusedError
from pipeline.records import DEFAULT_READING

_MODALITIES = frozenset({"DOC", "ES", "GM", "IVUS", "OT", "SC", "US", "XC"})
_STORAGE = "1.2.840.10008.5.1.4.1.1"
_CLASSES = tuple(f"{_STORAGE}.{number}." for number in ("3", "6", "7", "77.1.1", "77.1.4"))
"""Ultrasound (3, 6), Secondary Capture (7), endoscopic and photographic images, each with the classes below it."""
_SCREENS = frozenset({"SCREEN SAVE", "SCREENSHOT", "SCREEN", "SECONDARY"})
_STALE = ("SmallestImagePixelValue", "LargestImagePixelValue", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")


def may_show_identity(dataset: Dataset) -> bool:
    """Say whether an image may have the patient's identity among its pixels.

    It may where Burned In Annotation (0028,0301) or Recognizable Visual Features (0028,0302) says YES, and where the first is
    missing in a kind of image that often has it: secondary capture, ultrasound, photographs, screens.
    """
    if "YES" in (code(dataset, "BurnedInAnnotation"), code(dataset, "RecognizableVisualFeatures")):
        return True
    if code(dataset, "BurnedInAnnotation") == "NO":
        return False
    image_type = {text.strip().upper() for text in texts(dataset, "ImageType")[2:]}
    return (
        code(dataset, "Modality") in _MODALITIES
        or f"{value(dataset, 'SOPClassUID')}.".startswith(_CLASSES)
        or value(dataset, "ConversionType") is not None
        or bool(image_type & _SCREENS)
    )


def blank(dataset: Dataset, layout: Layout, boxes: Callable[[NDArray[Any]], Iterable[Box]]) -> Iterator[None]:
    """Set the pixels inside some rectangles of every frame to 0, in place, while it is iterated; all others keep their values.

    The pixel data become uncompressed, in Explicit VR Little Endian; colour becomes RGB, colour by pixel.

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
        Where a pixel is a single bit.
    """
    if layout.bits_allocated < 8:
        raise RefusedError(Refusal.NOT_SUPPORTED, "Pixels of a single bit cannot be blanked. Leave the file out.")
    frames = []
    for stored in stored_values(dataset, layout, DEFAULT_READING):
        frame = np.array(stored)
        for box in boxes(stored):
            frame[box.top : box.top + box.height, box.left : box.left + box.width] = 0
        frames.append(frame.tobytes())
        yield None
    _set_uncompressed(dataset, layout, b"".join(frames))


def _set_uncompressed(dataset: Dataset, layout: Layout, data: bytes) -> None:
    representation = {"FloatPixelData": "OF", "DoubleFloatPixelData": "OD"}.get(layout.keyword, "OW")
    if layout.bits_allocated == 8:
        representation = "OB"
    dataset[layout.keyword] = DataElement(tag_for_keyword(layout.keyword) or 0, representation, data + bytes(len(data) % 2))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if layout.samples > 1:
        dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    if layout.bits is not None:
        dataset.HighBit = layout.bits.stored - 1
    for keyword in _STALE:
        if keyword in dataset:
            delattr(dataset, keyword)


def clear_embedded_overlays(dataset: Dataset, layout: Layout) -> None:
    """Set the bits of the pixels' words to 0 in which overlays lie (PS3.5 8.1.2, retired), in place.

    Raises
    ------
    UnreadableError
        `UNSUPPORTED_ENCODING` where they are compressed with the pixels.
    """
    if layout.bits is None or not layout.bits.overlays:
        return
    if layout.transfer_syntax.is_encapsulated:
        raise UnreadableError(
            Reason.UNSUPPORTED_ENCODING,
            "An overlay lies among the compressed bits of the pixels. Export the file uncompressed.",
        )
    order = "<" if dataset.original_encoding[1] else ">"
    words = np.frombuffer(dataset.PixelData, f"{order}u{layout.bits_allocated // 8}")
    dataset.PixelData = (
        (words & words.dtype.type(~layout.bits.overlays % 2**layout.bits_allocated)).astype(words.dtype).tobytes()
    )
