"""Decodes RLE Lossless (PS3.5 Annex G) by `imagecodecs`' PackBits, with every offset and size checked before and after."""

from itertools import pairwise

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Reason, UnreadableError

_HEADER = 64
_LARGEST = 15
_SLACK = 256
"""Bytes that a segment may decode to beyond its size: some writers pad segments with a run."""
_CUT_RUN = "The last run of an RLE segment claims more bytes than there are; the frame was complete without them."


def rle_segments(encoded: bytes, expected: int) -> list[bytes]:
    """Split one frame into its segments.

    Parameters
    ----------
    encoded
        The frame, from the RLE header on.
    expected
        How many segments there have to be: one for each byte of each sample.

    Raises
    ------
    UnreadableError
        `DECODE_FAILED` where the header contradicts itself or the frame, `INCONSISTENT` where there are more or fewer segments.
    """
    words = np.frombuffer(encoded[:_HEADER].ljust(_HEADER, b"\0"), "<u4").tolist()
    offsets = [*words[1 : words[0] + 1], len(encoded)]
    if not 1 <= words[0] <= _LARGEST or offsets[0] != _HEADER or offsets != sorted(offsets):
        raise UnreadableError(Reason.DECODE_FAILED, "The RLE header of a frame is damaged. Copy or export the file again.")
    if words[0] != expected:
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"A frame has {words[0]} RLE segments, but the DICOM header describes {expected}. Export the file again.",
        )
    return [encoded[start:end] for start, end in pairwise(offsets)]


def decode_rle(encoded: bytes, pixels: int, samples: int, bits_allocated: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Decode one frame.

    Parameters
    ----------
    encoded
        The frame, from the RLE header on.
    pixels
        Rows x Columns.
    samples
        Samples per Pixel (0028,0002).
    bits_allocated
        Bits Allocated (0028,0100): 1 or a multiple of 8.

    Returns
    -------
    tuple[NDArray[np.uint8], tuple[str, ...]]
        Shape (samples, pixels, bytes): one plane after the other, each value in little endian; single bits one a byte. And what
        was wrong with a frame that is complete all the same, in sentences.

    Raises
    ------
    UnreadableError
        As `rle_segments`; `DECODE_FAILED` if a segment holds too little or too much.
    """
    width = max(1, bits_allocated // 8)
    size = (pixels + 7) // 8 if bits_allocated == 1 else pixels
    segments = rle_segments(encoded, samples * width)
    unpacked = [_unpacked(segment, size) for segment in segments]
    planes = np.stack([plane for plane, _ in unpacked]).reshape(samples, width, size)
    if bits_allocated == 1:
        planes = np.unpackbits(planes, axis=-1, count=pixels, bitorder="little")
    little: NDArray[np.uint8] = np.ascontiguousarray(planes[:, ::-1].transpose(0, 2, 1))
    return little, (_CUT_RUN,) if any(was_cut for _, was_cut in unpacked) else ()


def _unpacked(segment: bytes, size: int) -> tuple[NDArray[np.uint8], bool]:
    """Decode a segment; return also whether its last run claimed more than there is."""
    there = segment
    try:
        decoded = _packbits(segment, size)
    except RuntimeError:  # of which the error of imagecodecs is one
        there = _ending_in_a_whole_run(segment)
        if there == segment:
            raise
        decoded = _packbits(there, size)
    if decoded.size < size:
        raise UnreadableError(Reason.DECODE_FAILED, "An RLE segment ends too early. Copy or export the file again.")
    return decoded[:size], there != segment


def _packbits(segment: bytes, size: int) -> NDArray[np.uint8]:
    return np.frombuffer(imagecodecs.packbits_decode(segment, out=bytearray(size + _SLACK)), np.uint8)


def _ending_in_a_whole_run(segment: bytes) -> bytes:
    """Shorten the last run (PS3.5 G.3.2) to the bytes that are there, or leave it out if there are none."""
    start = at = 0
    while at < len(segment):
        start, code = at, segment[at]
        at += code + 2 if code < 0x80 else 1 if code == 0x80 else 2
    if at <= len(segment):
        return segment
    literal = segment[start + 1 :]
    return segment[:start] + (bytes([len(literal) - 1]) + literal if literal else b"")
