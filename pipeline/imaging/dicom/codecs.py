"""Decoders for RLE and every JPEG family that DICOM knows, as a plugin of pydicom; sizes are checked first."""

import threading
from itertools import pairwise

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.codestream import check_codestream, check_codestream_size, read_codestream
from pipeline.imaging.reduced import decode_jpeg, decode_jpeg_2000
from pipeline.settings import Limits

PLUGIN = "imagecodecs"
_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
LOSSY = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K})
CODESTREAMS = frozenset({*_JPEG, *JPEG_LS, *JPEG_2000})
DECODER_DEPENDENCIES = dict.fromkeys((*CODESTREAMS, uid.RLELossless), (PLUGIN,))
"""Transfer syntaxes of this plugin; pydicom looks for this name."""

OWN_CORRECTIONS = {"correct_unused_bits": False, "apply_jls_sign_correction": False, "apply_j2k_sign_correction": False}
"""Options of pydicom for the transfer syntaxes in `CODESTREAMS`."""
_HEADER = 64
_LARGEST = 15
_SLACK = 256
"""Bytes that a segment may decode to beyond its size: some writers pad segments with a run."""
_CUT_RUN = "The last run of an RLE segment claims more bytes than there are; the frame was complete without them."

_lock = threading.Lock()


def is_available(syntax: str) -> bool:
    """Return whether this plugin decodes a transfer syntax; called by pydicom."""
    return syntax in DECODER_DEPENDENCIES


def register() -> None:
    """Add the plugin to pydicom's decoders if it is missing; safe between threads, unlike pydicom's own method."""
    with _lock:
        for syntax in DECODER_DEPENDENCIES:
            decoder = get_decoder(syntax)
            if PLUGIN not in decoder.available_plugins:
                decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))


def decode_frame(encoded: bytes, runner: DecodeRunner) -> bytearray:
    """Decode one frame into the container that the header promises; called by pydicom.

    The codestream decides how many bits the values have, not Bits Stored (0028,0101) (PS3.5 8.2): no value is cut off or
    wrapped. pydicom's own corrections of bits and signs have to be switched off (`OWN_CORRECTIONS`).

    Raises
    ------
    UnreadableError
        If the codestream contradicts the header; `imagecodecs` raises its own errors.
    """
    if runner.transfer_syntax == uid.RLELossless:
        runner.set_option("planar_configuration", 1)
        pixels = runner.rows * runner.columns
        planes, notes = decode_rle(encoded, pixels, runner.samples_per_pixel, runner.bits_allocated)
        runner.get_option("notes", []).extend(notes)
        return bytearray(planes)
    expected = (runner.rows, runner.columns, runner.samples_per_pixel)
    check_codestream(encoded, expected, runner.bits_allocated, runner.pixel_representation == 1)
    array = _reduced(encoded, runner)
    if array is None:
        array = _decode(encoded, runner)
        if array.shape != (expected if expected[2] > 1 else expected[:2]):
            raise UnreadableError(
                Reason.INCONSISTENT,
                "The compressed image holds another picture than its header describes. Export the file again.",
            )
        if runner.pixel_representation == 1 and array.dtype.kind == "u":
            array = _signed(array, encoded, runner)
    runner.set_option("rows", array.shape[0])
    runner.set_option("columns", array.shape[1])
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
    container = np.dtype(f"<{array.dtype.kind}{runner.bits_allocated // 8}") if runner.bits_allocated >= 8 else np.dtype("u1")
    return bytearray(array.astype(container, copy=False).tobytes())


def check_encoded(
    encoded: bytes, syntax: str, shape: tuple[int, int, int], bits_allocated: int, signed: bool, limits: Limits
) -> None:
    """Check one encoded frame against the limits and the header, without decoding it.

    Parameters
    ----------
    encoded
        All fragments of the frame, joined.
    syntax
        A transfer syntax of this plugin.
    shape
        Rows, Columns and Samples per Pixel.
    bits_allocated
        Bits Allocated (0028,0100).
    signed
        Whether Pixel Representation (0028,0103) is 1.
    limits
        Checked first: an enormous picture is refused as such, whatever the header says.

    Raises
    ------
    UnreadableError
        As `check_codestream_size`, `check_codestream` and `_rle_segments`.
    """
    if syntax == uid.RLELossless:
        _rle_segments(encoded, shape[2] * max(1, bits_allocated // 8))
    else:
        check_codestream_size(encoded, limits)
        check_codestream(encoded, shape, bits_allocated, signed)


def _reduced(encoded: bytes, runner: DecodeRunner) -> NDArray[np.generic] | None:
    """Decode at a reduced resolution, if that is asked for and possible."""
    side, bits, signed = runner.get_option("side"), runner.bits_stored, runner.pixel_representation == 1
    if side is None or runner.photometric_interpretation not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    if runner.transfer_syntax in JPEG_2000:
        return decode_jpeg_2000(encoded, side, bits, signed)
    if runner.transfer_syntax in _JPEG and (bits, signed) == (8, False):
        return decode_jpeg(encoded, side)
    return None


def _signed(words: NDArray[np.generic], encoded: bytes, runner: DecodeRunner) -> NDArray[np.generic]:
    """Give words their sign, which JPEG and JPEG-LS do not know, and JPEG 2000 only if its writer set it.

    The sign is the highest bit of the codestream's precision. If that is more than Bits Stored (0028,0101), writers either
    repeat the sign up to it, or leave 0 above the stored bits: then no word is larger than these.
    """
    found = read_codestream(encoded)
    precision, stored = found.precision if found else runner.bits_stored, runner.bits_stored
    bits = stored if stored < precision and int(words.max()) < 2**stored else precision
    wide = words.astype(f"u{max(1, runner.bits_allocated // 8)}")
    shift = np.asarray(8 * wide.itemsize - bits, wide.dtype)
    signed: NDArray[np.generic] = (wide << shift).view(f"i{wide.itemsize}") >> shift.astype(f"i{wide.itemsize}")
    return signed


def _decode(encoded: bytes, runner: DecodeRunner) -> NDArray[np.generic]:
    syntax, colour = runner.transfer_syntax, runner.samples_per_pixel > 1
    array: NDArray[np.generic]
    if syntax in JPEG_LS:
        array = imagecodecs.jpegls_decode(encoded)
    elif syntax in JPEG_2000:
        array = imagecodecs.jpeg2k_decode(encoded)
        if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
            runner.set_option("photometric_interpretation", PhotometricInterpretation.RGB)
    elif colour:
        # The same space on both sides: libjpeg leaves the components alone, and pydicom converts them by the header.
        array = imagecodecs.jpeg8_decode(encoded, colorspace="YCBCR", outcolorspace="YCBCR")
    else:
        array = imagecodecs.jpeg8_decode(encoded)
    return array


def _rle_segments(encoded: bytes, expected: int) -> list[bytes]:
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
        `DECODE_FAILED` if the header contradicts itself or the frame, `INCONSISTENT` if there are more or fewer segments.
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
        is wrong with a frame that is complete nevertheless, in sentences.

    Raises
    ------
    UnreadableError
        As `_rle_segments`; `DECODE_FAILED` if a segment holds too little or too much.
    """
    width = max(1, bits_allocated // 8)
    size = (pixels + 7) // 8 if bits_allocated == 1 else pixels
    segments = _rle_segments(encoded, samples * width)
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
    except RuntimeError:  # the base of the error of imagecodecs
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
    """Shorten the last run (PS3.5 G.3.2) to the bytes that are there, or remove it if there are none."""
    start = at = 0
    while at < len(segment):
        start, code = at, segment[at]
        at += code + 2 if code < 0x80 else 1 if code == 0x80 else 2
    if at <= len(segment):
        return segment
    literal = segment[start + 1 :]
    return segment[:start] + (bytes([len(literal) - 1]) + literal if literal else b"")
