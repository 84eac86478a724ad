"""Checks that the pixel data of a DICOM file are what the header promises, before any of it is decoded (PS3.3 C.7.6.3)."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.bits import Bits, overlay_bits
from pipeline.imaging.dicom.codecs import CODESTREAMS, DECODER_DEPENDENCIES, check_encoded
from pipeline.imaging.dicom.fragments import encoded_frames
from pipeline.imaging.dicom.header import code, number, value
from pipeline.imaging.guard import check_size, translated
from pipeline.settings import Limits

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
GREY = (*MONOCHROME, "PALETTE COLOR")
_UNREAD = ("YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB", "HSV", "ARGB", "CMYK")
"""The other terms of the Standard for Photometric Interpretation (PS3.3 C.7.6.3.1.2), most of them retired."""
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PIXEL_KEYWORDS = {"PixelData": (1, 8, 16, 32), "FloatPixelData": (32,), "DoubleFloatPixelData": (64,)}
"""Elements that hold pixels (PS3.3 C.7.6.3, C.7.6.24, C.7.6.25), with the Bits Allocated (0028,0100) that octray reads."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the pixel data are laid out; checked, so that no half-valid one exists. Pixels in floating point have no `bits`.

    `notes` says in sentences what the header leaves out and was assumed.
    """

    keyword: str
    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits: Bits | None
    photometric_interpretation: str
    transfer_syntax: UID
    notes: tuple[str, ...] = ()

    def encoded_frames(self, dataset: Dataset) -> Iterator[bytes]:
        """Yield the encoded frames of encapsulated pixel data; raises as `fragments.encoded_frames`."""
        table = value(dataset, "ExtendedOffsetTable")
        return encoded_frames(dataset.PixelData, self.frames, table if isinstance(table, bytes) else b"")


def read_layout(dataset: Dataset, syntax: UID, limits: Limits) -> Layout:
    """Check a header and its pixel data against each other.

    Raises
    ------
    UnreadableError
        `NO_PIXELS`, `EMPTY_IMAGE`, `INCONSISTENT`, `TRUNCATED`, `UNSUPPORTED_ENCODING`, `DECODE_FAILED` or `RESOURCE_LIMIT`.
    """
    present = [keyword for keyword in PIXEL_KEYWORDS if keyword in dataset]
    if not present:
        raise UnreadableError(
            Reason.NO_PIXELS, "The DICOM file has no pixel data: it is no image, or it was cut off before them."
        )
    keyword = present[0]
    rows, columns = _required(dataset, "Rows"), _required(dataset, "Columns")
    photometric_interpretation = code(dataset, "PhotometricInterpretation")
    frames, frame_notes = _number_of_frames(dataset)
    samples, sample_notes = _samples(dataset, photometric_interpretation)
    layout = Layout(
        keyword=keyword,
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        bits_allocated=_required(dataset, "BitsAllocated"),
        bits=_bits(dataset) if keyword == "PixelData" else None,
        photometric_interpretation=photometric_interpretation,
        transfer_syntax=syntax,
        notes=frame_notes + sample_notes,
    )
    check_size(layout.rows, layout.columns, max(layout.frames, 1), limits)
    _check_header(dataset, layout)
    data = value(dataset, keyword)
    if not isinstance(data, bytes):
        raise UnreadableError(Reason.NO_PIXELS, "The pixel data of the DICOM file are empty. Export the file again.")
    if syntax.is_encapsulated:
        _check_encapsulated(dataset, layout, limits)
    else:
        _check_native(len(data), layout)
    return layout


def _required(dataset: Dataset, keyword: str) -> int:
    found = number(dataset, keyword)
    if found is None or found != int(found):
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"The DICOM file has no valid {keyword}, without which its image cannot be read. Export it again.",
        )
    return int(found)


def _number_of_frames(dataset: Dataset) -> tuple[int, tuple[str, ...]]:
    if value(dataset, "NumberOfFrames") is None:
        return 1, ()
    frames = _required(dataset, "NumberOfFrames")
    return (frames, ()) if frames else (1, ("Number of Frames is 0: the file was read as one frame.",))


def _samples(dataset: Dataset, photometric_interpretation: str) -> tuple[int, tuple[str, ...]]:
    if value(dataset, "SamplesPerPixel") is not None or photometric_interpretation not in GREY + COLOUR:
        return _required(dataset, "SamplesPerPixel"), ()
    samples = _samples_of(photometric_interpretation)
    return samples, (f"Samples per Pixel is missing: it was taken as {samples}, as {photometric_interpretation} has it.",)


def _samples_of(photometric_interpretation: str) -> int:
    return 3 if photometric_interpretation in COLOUR else 1


def _bits(dataset: Dataset) -> Bits:
    stored, high = _required(dataset, "BitsStored"), number(dataset, "HighBit")
    return Bits(_required(dataset, "BitsAllocated"), stored, stored - 1 if high is None else int(high), overlay_bits(dataset))


def _check_header(dataset: Dataset, layout: Layout) -> None:
    faults = []
    if layout.frames < 1:
        faults.append(f"Number of Frames is {layout.frames}")
    if layout.bits_allocated not in PIXEL_KEYWORDS[layout.keyword]:
        faults.append(f"Bits Allocated is {layout.bits_allocated}")
    if layout.bits is not None:
        faults += _bit_faults(layout.bits, movable=layout.transfer_syntax not in CODESTREAMS)
        if _required(dataset, "PixelRepresentation") not in (0, 1):
            faults.append("Pixel Representation is neither 0 nor 1")
    expected = _samples_of(layout.photometric_interpretation)
    if layout.photometric_interpretation not in GREY + COLOUR:
        kind = layout.photometric_interpretation
        kind = kind if kind in _UNREAD else "missing, or no term of the Standard"
        raise UnreadableError(
            Reason.UNSUPPORTED_ENCODING,
            f"Photometric Interpretation is {kind}; octray reads {', '.join(GREY + COLOUR)}. Export the file in one of these.",
        )
    if layout.bits_allocated == 1 and expected == 3:
        faults.append(f"Bits Allocated is 1 with {layout.photometric_interpretation}")
    if layout.samples != expected:
        faults.append(f"Samples per Pixel is {layout.samples} with {layout.photometric_interpretation}")
    if faults:
        raise UnreadableError(
            Reason.INCONSISTENT, f"The DICOM header contradicts itself: {'; '.join(faults)}. Export it again."
        )


def _bit_faults(bits: Bits, movable: bool) -> list[str]:
    """Say what is wrong with Bits Stored and High Bit; only uncompressed pixels and RLE can have bits under the stored ones."""
    if not 1 <= bits.stored <= bits.allocated:
        return [f"Bits Stored is {bits.stored} of {bits.allocated} allocated"]
    highest = bits.allocated - 1 if movable else bits.stored - 1
    if not bits.stored - 1 <= bits.high <= highest:
        return [f"High Bit is {bits.high} with {bits.stored} bits stored, which should end at {bits.stored - 1}"]
    return []


def _check_native(length: int, layout: Layout) -> None:
    """Compare the length of uncompressed pixel data with Rows x Columns x Frames x Samples x Bits Allocated."""
    bits = layout.rows * layout.columns * layout.samples * layout.bits_allocated
    if layout.photometric_interpretation == "YBR_FULL_422":
        bits = bits // 3 * 2
    expected = (bits * layout.frames + 7) // 8
    if length < expected:
        raise UnreadableError(
            Reason.TRUNCATED,
            f"The pixel data are cut off: {length} of {expected} bytes are there. Copy or export the file again.",
        )
    if (length - expected) * 8 >= max(bits, 16):
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"The pixel data have {length} bytes, but the header describes {expected}. Export the file again.",
        )


def _check_encapsulated(dataset: Dataset, layout: Layout, limits: Limits) -> None:
    """Check that every frame has its fragments, whole, and in them a codestream of the size that the header promises."""
    if layout.transfer_syntax not in DECODER_DEPENDENCIES:
        raise UnreadableError(
            Reason.UNSUPPORTED_ENCODING,
            f"The transfer syntax {layout.transfer_syntax.name} is not one that octray reads. Convert the file to another.",
        )
    shape, signed = (layout.rows, layout.columns, layout.samples), number(dataset, "PixelRepresentation") == 1
    with translated("The compressed pixel data of the DICOM file are damaged."):
        for encoded in layout.encoded_frames(dataset):
            check_encoded(encoded, layout.transfer_syntax, shape, layout.bits_allocated, signed, limits)
