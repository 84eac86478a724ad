"""How the pixel data of a DICOM file are laid out: checked against the header, and split into frames, before decoding."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.codecs import CODESTREAMS, DECODER_DEPENDENCIES, check_encoded
from pipeline.imaging.dicom.elements import code, number, value
from pipeline.imaging.guard import check_size, unreadable
from pipeline.settings import Limits

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
GREY = (*MONOCHROME, "PALETTE COLOR")
_UNREAD = ("YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB", "HSV", "ARGB", "CMYK")
"""The other terms of the Standard for Photometric Interpretation (PS3.3 C.7.6.3.1.2), most of them retired."""
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PIXEL_KEYWORDS = {"PixelData": (1, 8, 16, 32), "FloatPixelData": (32,), "DoubleFloatPixelData": (64,)}
"""Elements that hold pixels (PS3.3 C.7.6.3, C.7.6.24, C.7.6.25), with the Bits Allocated (0028,0100) that octray reads."""
_ITEM = b"\xfe\xff\x00\xe0"
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")
"""How JPEG and JPEG-LS (ISO/IEC 10918-1 B.1), JPEG 2000 (ISO/IEC 15444-1 A.4) and a JP2 file (I.5.1) begin."""
_RLE_START = re.compile(rb"[\x01-\x0f]\x00\x00\x00\x40\x00\x00\x00")
"""How RLE begins: the number of segments, and the offset of the first, behind a header of 64 bytes (PS3.5 G.5)."""
_END_OF_CODESTREAM = b"\xff\xd9"
_MOST_FRAGMENTS = 2**20
_TAIL = 16
"""Bytes at the end of a fragment that are searched for the end of its codestream; padding may follow it."""
_OVERLAY_GROUPS = range(0x6000, 0x6020, 2)
_OVERLAY_BIT_POSITION = 0x0102
_OVERLAY_DATA = 0x3000


@dataclass(frozen=True, slots=True)
class Bits:
    """Which bits of a word are a pixel's.

    Parameters
    ----------
    allocated
        Bits Allocated (0028,0100).
    stored
        Bits Stored (0028,0101).
    high
        High Bit (0028,0102); the highest of the stored bits if it is missing.
    overlays
        Mask of the bits that hold overlays: Overlay Bit Position (60xx,0102) without Overlay Data (60xx,3000), which older
        editions of the Standard allow.
    """

    allocated: int
    stored: int
    high: int
    overlays: int = 0

    @property
    def below(self) -> int:
        """Mask of the bits under the stored ones."""
        return (1 << (self.high + 1 - self.stored)) - 1

    @property
    def notes(self) -> tuple[str, ...]:
        """A note on overlays among the stored bits, if there are any."""
        stored = ((1 << self.stored) - 1) << (self.high + 1 - self.stored)
        return ("Overlays lie in bits that the file gives to the pixels: they were ignored.",) if self.overlays & stored else ()


@dataclass(frozen=True, slots=True)
class Layout:
    """How the pixel data are laid out, already checked. Pixels in floating point have no `bits`.

    `notes` are sentences about what the header does not say and was assumed.
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
    extended_offsets: bytes = b""
    notes: tuple[str, ...] = ()

    def encoded_frames(self, dataset: Dataset) -> Iterator[bytes]:
        """Yield the encoded frames of encapsulated pixel data; raises as `encoded_frames`."""
        return encoded_frames(dataset.PixelData, self.frames, self.extended_offsets)


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
            Reason.NO_PIXELS, "The DICOM file has no pixel data: it is not an image, or it was cut off before them."
        )
    keyword = present[0]
    rows, columns = _required(dataset, "Rows"), _required(dataset, "Columns")
    photometric_interpretation = code(dataset, "PhotometricInterpretation")
    frames, frame_notes = _number_of_frames(dataset)
    samples, sample_notes = _samples(dataset, photometric_interpretation)
    offsets = value(dataset, "ExtendedOffsetTable")
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
        extended_offsets=offsets if isinstance(offsets, bytes) else b"",
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
    return Bits(_required(dataset, "BitsAllocated"), stored, stored - 1 if high is None else int(high), _overlay_bits(dataset))


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
    """Return the faults of Bits Stored and High Bit; only uncompressed pixels and RLE can have bits below the stored ones."""
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
    """Check that every frame has all its fragments, and in them a codestream of the size that the header gives."""
    if layout.transfer_syntax not in DECODER_DEPENDENCIES:
        raise UnreadableError(
            Reason.UNSUPPORTED_ENCODING,
            f"The transfer syntax {layout.transfer_syntax.name} is not one that octray reads. Convert the file to another.",
        )
    shape, signed = (layout.rows, layout.columns, layout.samples), number(dataset, "PixelRepresentation") == 1
    with unreadable("The compressed pixel data of the DICOM file are damaged."):
        for encoded in layout.encoded_frames(dataset):
            check_encoded(encoded, layout.transfer_syntax, shape, layout.bits_allocated, signed, limits)


def encoded_frames(data: bytes, frames: int, extended_offsets: bytes = b"") -> Iterator[bytes]:
    """Yield the encoded frames, all fragments of one frame joined.

    If there are as many fragments as frames, each is a frame, whatever a table says. Otherwise the fragments are joined by the
    Basic or the Extended Offset Table if that points at fragments, else by the ends of their codestreams.

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
        `TRUNCATED` if a fragment is cut off, or there are not enough of them; `INCONSISTENT` if more frames begin in them;
        `RESOURCE_LIMIT` if there are more than a million.
    """
    for group in grouped_fragments(data, frames, extended_offsets)[:frames]:
        yield data[group[0]] if len(group) == 1 else b"".join(data[one] for one in group)


def grouped_fragments(data: bytes, frames: int, extended_offsets: bytes = b"") -> list[list[slice]]:
    """Return the places of the fragments of each frame in the data, and after them those that belong to no frame.

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
    """Find the values of the items; the first is the Basic Offset Table, empty if there is none."""
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


def _overlay_bits(dataset: Dataset) -> int:
    """Return the mask of the bits that hold overlays; never bit 0, since overlays with data of their own say 0, too."""
    mask = 0
    for group in _OVERLAY_GROUPS:
        position = number(dataset, (group << 16) + _OVERLAY_BIT_POSITION)
        if position is not None and 0 < position < 64 and (group << 16) + _OVERLAY_DATA not in dataset:
            mask |= 1 << int(position)
    return mask
