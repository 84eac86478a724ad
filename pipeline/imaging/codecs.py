"""Makes `imagecodecs` a decoder plugin of pydicom, for every JPEG family that DICOM knows; checks sizes before it decodes."""

import threading

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

from pipeline.errors import Reason, UnreadableError

PLUGIN = "imagecodecs"
JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
LOSSY = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K})
DECODER_DEPENDENCIES = dict.fromkeys((*JPEG, *JPEG_LS, *JPEG_2000), (PLUGIN,))
"""Transfer syntaxes of this plugin; pydicom looks for this name."""

_lock = threading.Lock()
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def is_available(syntax: str) -> bool:
    """Say whether this plugin decodes a transfer syntax; called by pydicom."""
    return syntax in DECODER_DEPENDENCIES


def register() -> None:
    """Add the plugin to pydicom's decoders where it is missing; safe between threads, which pydicom's own method is not."""
    with _lock:
        for syntax in DECODER_DEPENDENCIES:
            decoder = get_decoder(syntax)
            if PLUGIN not in decoder.available_plugins:
                decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))


def decode_frame(encoded: bytes, runner: DecodeRunner) -> bytearray:
    """Decode one frame into the container that the header promises; called by pydicom.

    Raises
    ------
    UnreadableError
        Where the codestream's own size contradicts the header; `imagecodecs` raises its own errors.
    """
    check_codestream(encoded, runner.rows, runner.columns, runner.samples_per_pixel)
    array = _decode(encoded, runner)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
    container = np.dtype(f"<{array.dtype.kind}{runner.bits_allocated // 8}") if runner.bits_allocated >= 8 else np.dtype("u1")
    return bytearray(array.astype(container, copy=False).tobytes())


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


def check_codestream(encoded: bytes, rows: int, columns: int, samples: int) -> None:
    """Compare the size that a JPEG, JPEG-LS or JPEG 2000 codestream gives itself with the header's, without decoding it.

    Raises
    ------
    UnreadableError
        `INCONSISTENT` where they differ, `DECODE_FAILED` where it is no such codestream, `TRUNCATED` where its end is missing.
    """
    found = codestream_shape(encoded)
    if found is None:
        raise UnreadableError(Reason.DECODE_FAILED, "The compressed pixel data are damaged: they have no valid JPEG header.")
    if found != (rows, columns, samples):
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"The compressed image is {found[0]} x {found[1]} with {found[2]} samples per pixel, but the header says "
            f"{rows} x {columns} with {samples}. Export the file again.",
        )
    if b"\xff\xd9" not in encoded[-64:]:
        raise UnreadableError(Reason.TRUNCATED, "The compressed pixel data are cut off. Copy or export the file again.")


def codestream_shape(encoded: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and samples per pixel as a codestream's own header gives them; None where there is no such header.

    Sources: ISO/IEC 10918-1 B.2.2 (frame header; JPEG-LS uses the same), ISO/IEC 15444-1 A.5.1 (SIZ).
    """
    if encoded[:2] == b"\xff\xd8":
        return _jpeg_shape(encoded)
    start = _jpeg_2000_start(encoded)
    siz = encoded[start + 4 : start + 42]
    if encoded[start : start + 4] != b"\xff\x4f\xff\x51" or len(siz) < 38:
        return None
    right, bottom, left, top = (int.from_bytes(siz[at : at + 4], "big") for at in (4, 8, 12, 16))
    return bottom - top, right - left, int.from_bytes(siz[36:38], "big")


def _jpeg_2000_start(encoded: bytes) -> int:
    """Return where the codestream starts, past the boxes of a JP2 file; the end where they do not lead to one.

    pydicom 3.0.2 walks the same boxes and never ends at one of length 0, which therefore has to be found before.
    """
    at = 12 if encoded.startswith(b"\x00\x00\x00\x0cjP  ") else 0
    while at and encoded[at + 4 : at + 8] != b"jp2c":
        length = int.from_bytes(encoded[at : at + 4], "big")
        if length < 8:
            return len(encoded)
        at += length
    return at + 8 if at else 0


def _jpeg_shape(encoded: bytes) -> tuple[int, int, int] | None:
    at = 2
    while at + 10 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker in _FRAME_HEADERS:
            rows, columns = (int.from_bytes(encoded[at + offset : at + offset + 2], "big") for offset in (5, 7))
            return rows, columns, encoded[at + 9]
        if marker == 0xFF:
            at += 1
        elif marker in _STANDALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None
