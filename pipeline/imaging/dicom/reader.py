"""Reads DICOM files: from bytes to frames, one at a time, each with its key, its grey levels and the facts of its header."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame, InstanceKey
from pipeline.imaging.dicom.codecs import CODESTREAMS, JPEG_2000, LOSSY
from pipeline.imaging.dicom.dataset import parse, stated_sop_class
from pipeline.imaging.dicom.decoding import decoded_values
from pipeline.imaging.dicom.header import Header, read_header
from pipeline.imaging.dicom.layout import MONOCHROME, read_layout
from pipeline.imaging.dicom.terms import is_without_pixels
from pipeline.imaging.grayscale import TOLERANCE, is_padding, may_be_hidden, render, to_grey
from pipeline.imaging.guard import unreadable
from pipeline.imaging.identity import pixel_sha256, stored_sha256
from pipeline.imaging.reduced import BLOCK_OFFSET, JPEG_2000_OFFSET, whole_box
from pipeline.settings import DEFAULT_READING, Reading


def read_dicom(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read the frames of one DICOM file.

    Parameters
    ----------
    content
        The whole file.
    source
        Path of the file below what was given to read.
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
    try:
        with unreadable("The DICOM file is damaged: its header cannot be read. Copy or export it again."):
            dataset, syntax, notes = parse(content, reading.limits)
            layout = read_layout(dataset, syntax, reading.limits)
    except UnreadableError:
        sop_class = stated_sop_class(content)
        if not is_without_pixels(sop_class):
            raise
        kind = UID(sop_class).name
        message = f"The file is not an image but an object without pixels ({kind}): there is nothing to do with it."
        raise UnreadableError(Reason.NO_IMAGE, message) from None
    with unreadable("The DICOM header does not tell how its values become grey levels. Export the file again."):
        header = read_header(dataset, layout, content, reading.voi_explanation, notes)
    if reading.side is not None and not header.is_reducible:
        reading = replace(reading, side=None)
    instance = hashlib.sha256()
    for number, (stored, decoder, damage) in enumerate(decoded_values(dataset, layout, reading), 1):
        with unreadable(f"Frame {number} of the DICOM file could not be converted to grey levels. Export it again."):
            frame = _frame(header, source, number, stored, decoder, reading)
            frame = replace(frame, notes=frame.notes + damage) if damage else frame
            if frame.stored_sha256 and layout.frames > 1:
                instance.update(np.ascontiguousarray(stored).data)
        if frame.stored_sha256 and number == layout.frames:
            frame = replace(frame, instance_sha256=frame.stored_sha256 if number == 1 else instance.hexdigest())
        yield frame


def _frame(header: Header, source: str, number: int, stored: NDArray[Any], decoder: str, reading: Reading) -> Frame:
    layout, facts = header.layout, header.frame(number)
    grey = _grey(stored, header)
    way = facts.rendering if header.palette is None else header.palette.rendering(grey)
    whole = (layout.rows, layout.columns)
    if stored.shape[:2] != whole and may_be_hidden(grey, way):
        exact = replace(reading, side=None)
        stored, decoder, _ = next(islice(decoded_values(header.dataset, layout, exact), number - 1, None))
        return _frame(header, source, number, stored, decoder, exact)
    notes = header.notes + facts.notes
    stored_range = _stored_range(stored, way.padding, number)
    if _is_beyond_bits(header, stored_range):
        way = replace(way, full_range=None)
        notes += ("The compressed image holds values beyond those of Bits Stored: they are read as they are.",)
    with np.errstate(over="raise", invalid="raise"):
        pixels, grey_notes = render(grey, way)
    decoded = (pixels.shape[0], pixels.shape[1])
    is_whole = decoded == whole
    offset = JPEG_2000_OFFSET if layout.transfer_syntax in JPEG_2000 else BLOCK_OFFSET
    return Frame(
        pixels=pixels,
        key=InstanceKey(*header.uids, number),
        source=source,
        pixel_sha256=pixel_sha256(grey) if reading.hashes and is_whole else "",
        modality=facts.modality,
        view_position=header.view_position,
        laterality=facts.laterality,
        pixel_spacing_mm=facts.pixel_spacing_mm,
        photometric_interpretation=layout.photometric_interpretation,
        transfer_syntax_uid=str(layout.transfer_syntax),
        sop_class_uid=header.sop_class_uid,
        body_part=facts.body_part,
        patient_age=header.patient_age,
        burned_in_annotation=header.burned_in_annotation,
        instance_number=header.instance_number,
        number_of_frames=layout.frames,
        slice_position_mm=facts.slice_position_mm,
        stored_sha256=stored_sha256(stored) if reading.hashes and is_whole else "",
        stored_range=stored_range,
        whole_shape=None if is_whole else whole,
        whole_box=None if is_whole else whole_box(whole, decoded, offset),
        notes=notes + grey_notes,
        decoder=decoder,
    )


def _stored_range(stored: NDArray[Any], padding: tuple[float, float] | None, number: int) -> tuple[float, float]:
    """Return the smallest and the largest stored value; NaN and infinite values must be padding."""
    if stored.dtype.kind == "f" and not (finite := np.isfinite(stored)).all():
        padded = False if padding is None else is_padding(stored, padding)
        if not finite.any() or not (finite | padded).all():
            raise UnreadableError(Reason.INCONSISTENT, f"Frame {number} holds values that are not numbers. Export it again.")
        stored = stored[finite]
    return float(stored.min()), float(stored.max())


def _is_beyond_bits(header: Header, stored_range: tuple[float, float]) -> bool:
    """Return whether a codestream holds values that Bits Stored (0028,0101) has no room for; they count (PS3.5 8.2)."""
    if header.layout.bits is None or header.layout.transfer_syntax not in CODESTREAMS:
        return False
    low, high = header.stored_limits
    return not (low <= stored_range[0] and stored_range[1] <= high)


def _grey(stored: NDArray[Any], header: Header) -> NDArray[Any]:
    """Return the stored values of a grey frame, or the grey picture that a colour frame holds.

    Raises
    ------
    UnreadableError
        `COLOURED` if it is coloured, by itself or by a supplemental palette (PS3.3 C.8.16.2.1.1.1).
    """
    colour = header.layout.photometric_interpretation
    if header.palette is not None:
        stored = header.palette.look_up(stored)
    elif colour in MONOCHROME and header.coloured_from is not None and stored.max() >= header.coloured_from:
        raise UnreadableError(
            Reason.COLOURED,
            "A supplemental palette colours parts of the image. Export it as a grey image, without the colours.",
        )
    tolerance = TOLERANCE if colour.startswith("YBR") or header.layout.transfer_syntax in LOSSY else 0
    return stored if stored.ndim == 2 else to_grey(stored, tolerance)
