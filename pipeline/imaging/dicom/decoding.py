"""Decodes the stored values of a DICOM file, one frame at a time."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.utils import as_pixel_options

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.codecs import CODESTREAMS, JPEG_2000, OWN_CORRECTIONS, PLUGIN, register
from pipeline.imaging.dicom.elements import little_endian
from pipeline.imaging.dicom.layout import Bits, Layout
from pipeline.imaging.grayscale import Values
from pipeline.imaging.guard import unreadable
from pipeline.imaging.reduced import block_averages
from pipeline.settings import Reading


def stored_values(dataset: Dataset, layout: Layout, reading: Reading) -> Iterator[Values]:
    """Decode the frames one at a time; as `decoded_values`, but only the values."""
    return (values for values, _, _ in decoded_values(dataset, layout, reading))


def decoded_values(dataset: Dataset, layout: Layout, reading: Reading) -> Iterator[tuple[Values, str, tuple[str, ...]]]:
    """Decode the frames one at a time.

    Yields
    ------
    tuple[NDArray, str, tuple[str, ...]]
        Values of shape (rows, columns), or (rows, columns, 3) in RGB, little endian; fewer rows and columns if
        `reading.side` allows it. They may be a view of the pixel data that cannot be written to. Then the name of the decoder,
        as in `Frame`, and what is wrong with the encoded frame, in sentences.

    Raises
    ------
    UnreadableError
        `DECODE_FAILED`, `TRUNCATED` or `RESOURCE_LIMIT`.
    """
    register()
    frames: Iterator[tuple[Values, tuple[str, ...]]] = iter(())
    for number in range(1, layout.frames + 1):
        with unreadable(f"The pixel data of frame {number} are damaged and cannot be decoded. Copy or export the file again."):
            if number == 1:
                encapsulated = layout.transfer_syntax.is_encapsulated
                frames = _encapsulated(dataset, layout, reading) if encapsulated else _native(dataset, layout)
            decoded = next(frames, None)
        if decoded is None:
            raise UnreadableError(
                Reason.TRUNCATED, f"The pixel data hold {number - 1} of {layout.frames} frames. Copy or export the file again."
            )
        array, notes = decoded
        words = np.asarray(array, array.dtype.newbyteorder("<"))
        values = _placed(words, layout)
        if values is not words and layout.bits is not None:
            notes += _notes_on_left_out(words, layout.bits)
        yield values if reading.side is None else _averaged(values, layout, reading.side), _decoder(array, layout), notes


def _decoder(array: Values, layout: Layout) -> str:
    """Return the name of what decoded a frame; at a reduced resolution it is Pillow."""
    if not layout.transfer_syntax.is_encapsulated:
        return "octray" if layout.bits_allocated == 1 else "pydicom"
    return PLUGIN if array.shape[:2] == (layout.rows, layout.columns) else "pillow"


def _averaged(values: Values, layout: Layout, side: int) -> Values:
    """Average blocks of pixels of a grey frame that its codec could not decode at a reduced resolution.

    A frame of JPEG 2000 stays whole, since `whole_box` expects the samples of its wavelets in a reduced one. So do values of a
    few bits, since averages would be rounded to them.
    """
    if layout.bits is None or values.shape != (layout.rows, layout.columns) or layout.transfer_syntax in JPEG_2000:
        return values
    # Values from a codec may exceed the bits of the header, and averages may no longer show it.
    bits = 8 * values.itemsize if layout.transfer_syntax in CODESTREAMS else layout.bits.stored
    if layout.bits.stored == 8 < bits and values.max() >= 2**8:
        return values
    return block_averages(values, side, bits) if layout.bits.stored >= 8 else values


def _options(layout: Layout) -> dict[str, Any]:
    """Return options that switch off corrections of pydicom: the codecs here place bits and signs, and `_placed` grey pixels.

    Photometric Interpretation (0028,0004) is given in capitals, whatever the file has.
    """
    shown = {"photometric_interpretation": layout.photometric_interpretation}
    if layout.transfer_syntax in CODESTREAMS:
        return shown | OWN_CORRECTIONS
    return shown | ({"correct_unused_bits": False} if layout.samples == 1 else {})


def _placed(words: Values, layout: Layout) -> Values:
    """Bring the stored bits to the low end of the words, unless pydicom or the codecs have done it."""
    is_placed = layout.samples > 1 or layout.transfer_syntax in CODESTREAMS
    if layout.bits is None or (is_placed and not layout.bits.overlays):
        return words
    return aligned(words, layout.bits)


def _native(dataset: Dataset, layout: Layout) -> Iterator[tuple[Values, tuple[str, ...]]]:
    if layout.bits_allocated == 1:
        return ((array, ()) for array in _single_bits(np.frombuffer(little_endian(dataset, "PixelData"), np.uint8), layout))
    decoder = get_decoder(layout.transfer_syntax)
    options = _options(layout) | {"samples_per_pixel": layout.samples, "number_of_frames": layout.frames}
    frames = decoder.iter_array(dataset, allow_excess_frames=False, view_only=True, **options)
    return ((array, ()) for array, _ in frames)


def _single_bits(packed: NDArray[np.uint8], layout: Layout) -> Iterator[Values]:
    """Unpack frames of one bit a pixel; they need not end at a byte (PS3.5 8.1.1), which pydicom 3.0.2 does not follow."""
    pixels = layout.rows * layout.columns
    for start in range(0, pixels * layout.frames, pixels):
        bits = np.unpackbits(packed[start // 8 : (start + pixels + 7) // 8], bitorder="little")
        yield bits[start % 8 : start % 8 + pixels].reshape(layout.rows, layout.columns)


def _encapsulated(dataset: Dataset, layout: Layout, reading: Reading) -> Iterator[tuple[Values, tuple[str, ...]]]:
    decode = frame_decoder(dataset, layout, reading)
    for encoded in layout.encoded_frames(dataset):
        yield decode(encoded)


def frame_decoder(dataset: Dataset, layout: Layout, reading: Reading) -> Callable[[bytes], tuple[Values, tuple[str, ...]]]:
    """Return a function that decodes one compressed frame of a data set."""
    register()
    counts = {"samples_per_pixel": layout.samples, "number_of_frames": 1}
    options = as_pixel_options(dataset.group_dataset(0x0028)) | _options(layout) | counts
    return partial(_decode_one, decoder=get_decoder(layout.transfer_syntax), options=options, reading=reading)


def _decode_one(encoded: bytes, decoder: Decoder, options: dict[str, Any], reading: Reading) -> tuple[Values, tuple[str, ...]]:
    """Decode one compressed frame; return also what is wrong with it, in sentences.

    Parameters
    ----------
    encoded
        All fragments of the frame, joined.
    decoder
        That of the transfer syntax.
    options
        The image pixel attributes of the header, by the names that pydicom gives them.
    reading
        Its `side` reaches the plugin as an option of that name; a plugin that decodes at a reduced resolution sets the options
        `rows` and `columns` to the size that it returns. Another option, `notes`, is a list for its sentences.
    """
    one, notes = encapsulate([encoded], has_bot=False), list[str]()
    array, _ = next(decoder.iter_array(one, decoding_plugin=PLUGIN, validate=False, side=reading.side, notes=notes, **options))
    return array, tuple(notes)


def _notes_on_left_out(words: NDArray[Any], bits: Bits) -> tuple[str, ...]:
    """Return a note if unsigned words hold values above High Bit that no overlay explains: Bits Stored may be too small."""
    above = (1 << bits.allocated) - (1 << bits.high + 1) & ~bits.overlays
    if words.dtype.kind != "u" or words.max(initial=0) < 1 << bits.high + 1:
        return ()
    if not (words & np.asarray(above, words.dtype)).any():
        return ()
    return (f"The pixels hold values above bit {bits.high}, the High Bit of the file: only the bits up to it were read.",)


def aligned(words: NDArray[Any], bits: Bits) -> NDArray[Any]:
    """Return the values of the stored bits; the same array if nothing else lies in it.

    Parameters
    ----------
    words
        Integers of any shape, signed if the pixels are; `bits.allocated` bits wide.
    bits
        Which of their bits are the pixels'.

    Raises
    ------
    UnreadableError
        `INCONSISTENT` if bits under the stored ones hold something other than overlays: High Bit is then wrong, or Bits
        Stored is.
    """
    if bits.overlays == 0 and bits.stored == bits.allocated:
        return words
    unsigned = words.view(f"u{words.itemsize}")
    if words.dtype.kind == "u" and bits.high == bits.stored - 1:
        if not bits.overlays and words.max(initial=0) < 1 << bits.stored:
            return words  # the usual case: there is nothing to clear
        cleared: NDArray[Any] = unsigned & np.asarray(~bits.overlays & ((1 << bits.stored) - 1), unsigned.dtype)
        return cleared
    unsigned = unsigned & np.asarray(~bits.overlays % 2**bits.allocated, unsigned.dtype)
    if bits.below and (unsigned & np.asarray(bits.below, unsigned.dtype)).any():
        raise UnreadableError(
            Reason.INCONSISTENT,
            f"High Bit is {bits.high} with {bits.stored} bits stored, but the bits below hold values, too. Export it again.",
        )
    np.left_shift(unsigned, bits.allocated - 1 - bits.high, out=unsigned)
    values: NDArray[Any] = unsigned.view(words.dtype)
    np.right_shift(values, bits.allocated - bits.stored, out=values)
    return values
