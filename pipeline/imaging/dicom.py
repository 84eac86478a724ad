"""Reads DICOM files: from bytes to `Frame`s, one at a time, each with its key, its grey levels and its header."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filereader import _read_command_set_elements, _read_file_meta_info, read_preamble
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging import header
from pipeline.imaging.codecs import DECODER_DEPENDENCIES, LOSSY, PLUGIN, register
from pipeline.imaging.colour import TOLERANCE, to_grey
from pipeline.imaging.grayscale import render
from pipeline.imaging.guard import check_inflated, translated
from pipeline.imaging.identity import derived_uid, pixel_sha256
from pipeline.imaging.layout import Layout, read_layout
from pipeline.records import DEFAULT_READING, Frame, InstanceKey, Limits, Reading

PREFIX = b"DICM"
PREAMBLE = 128
LAST_PIXEL_TAG = 0x7FE00010
_UID_CHARACTERS = frozenset("0123456789.")
_VALUE_REPRESENTATIONS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)


def is_dicom(head: bytes) -> bool:
    """Say whether a file that begins with `head` (at least 132 bytes of it) is DICOM, with or without the preamble.

    Without it (PS3.10 7.1 forbids that, yet such files exist), the first element must be of group 0002 or 0008 and have either
    a value representation that exists or a short length.
    """
    if head[PREAMBLE : PREAMBLE + 4] == PREFIX:
        return True
    if len(head) < 16:
        return False
    little = head[:2] in (b"\x02\x00", b"\x08\x00")
    if head[4:6] in _VALUE_REPRESENTATIONS:
        return little or head[:2] == b"\x00\x08"
    return little and head[3] == 0 and int.from_bytes(head[4:8], "little") <= 1024


def read_dicom(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read the frames of one DICOM file.

    Parameters
    ----------
    content
        The whole file.
    source
        Where it lies below what was given to read.
    reading
        How it is read.

    Yields
    ------
    Frame
        In the order of the file. The whole file is checked before the first one is yielded; a frame that turns out to be
        damaged ends the iteration after those before it.

    Raises
    ------
    UnreadableError
        And nothing else, whatever the bytes are.
    """
    with translated("The DICOM file is damaged: its header cannot be read. Copy or export it again."):
        _check_deflated(content, reading.limits)
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        syntax, notes = _transfer_syntax(dataset)
        _check_whole(dataset)
        layout = read_layout(dataset, syntax, reading.limits)
        uids, uid_notes = _uids(dataset, content)
    for index, stored in enumerate(_decoded(dataset, layout)):
        with translated(f"Frame {index + 1} of the DICOM file could not be brought to grey levels. Export it again."):
            frame = _frame(dataset, layout, InstanceKey(*uids, index + 1), source, stored, notes + uid_notes)
        yield frame


def stored_values(dataset: Dataset, layout: Layout) -> Iterator[NDArray[Any]]:
    """Decode the frames one at a time.

    Yields
    ------
    NDArray
        Shape (rows, columns), or (rows, columns, 3) in RGB, in the byte order of the file.

    Raises
    ------
    UnreadableError
        `DECODE_FAILED`, `TRUNCATED` or `RESOURCE_LIMIT`.
    """
    register()
    plugin = PLUGIN if layout.transfer_syntax in DECODER_DEPENDENCIES else ""
    frames: Iterator[Any] = iter(())
    for number in range(1, layout.frames + 1):
        with translated(f"The pixel data of frame {number} are damaged and cannot be decoded. Copy or export the file again."):
            if number == 1:
                decoder = get_decoder(layout.transfer_syntax)
                frames = decoder.iter_array(dataset, decoding_plugin=plugin, allow_excess_frames=False)
            array, _ = next(frames, (None, None))
        if array is None:
            raise UnreadableError(
                Reason.TRUNCATED, f"The pixel data hold {number - 1} of {layout.frames} frames. Copy or export the file again."
            )
        yield array


def _decoded(dataset: Dataset, layout: Layout) -> Iterator[NDArray[Any]]:
    """Yield the stored values of grey frames, and the grey picture that colour frames hold."""
    colour = layout.photometric_interpretation
    tolerance = TOLERANCE if colour.startswith("YBR") or layout.transfer_syntax in LOSSY else 0
    for stored in stored_values(dataset, layout):
        if colour == "PALETTE COLOR":
            with translated("The colour palette of the DICOM file cannot be applied. Export the file again."):
                stored = _look_up(stored, dataset)
        yield stored if stored.ndim == 2 else to_grey(stored, tolerance)


def _look_up(stored: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Apply the palette; pydicom 3.0.2 takes the words of its tables for little endian in files in big endian, too."""
    looked_up = apply_color_lut(stored, dataset)
    swapped = dataset.original_encoding[1] is False and "RedPaletteColorLookupTableData" in dataset
    return looked_up.byteswap() if swapped else looked_up


def _frame(
    dataset: Dataset, layout: Layout, key: InstanceKey, source: str, stored: NDArray[Any], notes: tuple[str, ...]
) -> Frame:
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise UnreadableError(Reason.INCONSISTENT, f"Frame {key.frame_number} holds values that are not numbers.")
    scope = header.Scope.of(dataset, key.frame_number - 1)
    palette = layout.photometric_interpretation == "PALETTE COLOR"
    rendering, header_notes = (header.palette_rendering(dataset, stored), ()) if palette else header.rendering(scope)
    pixels, grey_notes = render(stored, rendering)
    return Frame(
        pixels=pixels,
        key=key,
        source=source,
        pixel_sha256=pixel_sha256(stored),
        modality=header.code(dataset, "Modality"),
        view_position=header.code(dataset, "ViewPosition"),
        laterality=header.laterality(scope),
        pixel_spacing_mm=header.pixel_spacing(scope),
        photometric_interpretation=layout.photometric_interpretation,
        transfer_syntax_uid=str(layout.transfer_syntax),
        notes=notes + header_notes + grey_notes,
    )


def _check_deflated(content: bytes, limits: Limits) -> None:
    """Find the deflated data set with the steps of `dcmread`, which inflates it whatever its size (PS3.5 A.5)."""
    stream = io.BytesIO(content)
    read_preamble(stream, force=True)
    syntax = _read_file_meta_info(stream).get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        _read_command_set_elements(stream)
        check_inflated(stream.read(), limits)


def _transfer_syntax(dataset: Dataset) -> tuple[UID, tuple[str, ...]]:
    """Return Transfer Syntax UID (0002,0010), or the uncompressed one that the file was seen to be written in."""
    named = header.value(dataset.file_meta, "TransferSyntaxUID")
    if named is not None:
        syntax = UID(str(named))
        if not syntax.is_transfer_syntax or syntax.is_private:
            raise UnreadableError(
                Reason.UNSUPPORTED_ENCODING, "The file names a transfer syntax that DICOM does not know. Convert it to another."
            )
        return syntax, ()
    implicit, little = dataset.original_encoding
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = syntax
    return syntax, (f"The file names no transfer syntax; {syntax.name} was found.",)


def _check_whole(dataset: Dataset) -> None:
    """Find out whether the file ends within an element; `dcmread` does not tell."""
    last = dataset.get_item(max(dataset.keys())) if dataset else None
    declared, there = getattr(last, "length", None), getattr(last, "value", None)
    cut = isinstance(declared, int) and declared != 0xFFFFFFFF and isinstance(there, bytes) and len(there) < declared
    if last is None or (cut and last.tag <= LAST_PIXEL_TAG):
        raise UnreadableError(Reason.TRUNCATED, "The DICOM file is cut off. Copy or export it again.")


def _uids(dataset: Dataset, content: bytes) -> tuple[tuple[str, str, str], tuple[str, ...]]:
    """Return Study, Series and SOP Instance UID; those that are missing or no UID are derived from the content."""
    found, derived = [], []
    for keyword, role in (("StudyInstanceUID", "study"), ("SeriesInstanceUID", "series"), ("SOPInstanceUID", "instance")):
        uid = str(header.value(dataset, keyword) or "")
        if not (0 < len(uid) <= 64 and _UID_CHARACTERS.issuperset(uid) and uid.strip(".")):
            uid = derived_uid(content, role)
            derived.append(keyword)
        found.append(uid)
    notes = (f"{', '.join(derived)} missing or not valid: derived from the content.",) if derived else ()
    return (found[0], found[1], found[2]), notes
