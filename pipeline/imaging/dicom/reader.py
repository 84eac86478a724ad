"""Reads DICOM files: from bytes to `Frame`s, one at a time, each with its key, its grey levels and its header."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame, InstanceKey
from pipeline.imaging.dicom import header
from pipeline.imaging.dicom.codecs import CODESTREAMS, JPEG_2000, LOSSY
from pipeline.imaging.dicom.dataset import instance_uids, parse, stated_sop_class, uid_text
from pipeline.imaging.dicom.decoding import decoded_values
from pipeline.imaging.dicom.display import (
    check_supplemental,
    is_reducible,
    look_up,
    palette_rendering,
    rendering,
    stored_limits,
)
from pipeline.imaging.dicom.header import pixel_spacing, slice_position
from pipeline.imaging.dicom.layout import MONOCHROME, Layout, read_layout
from pipeline.imaging.dicom.terms import body_part, intent_notes, is_without_pixels, modality, view_position
from pipeline.imaging.grayscale import TOLERANCE, Rendering, is_padding, may_be_hidden, render, to_grey
from pipeline.imaging.guard import translated
from pipeline.imaging.identity import pixel_sha256, stored_sha256
from pipeline.imaging.reduced import BLOCK_OFFSET, JPEG_2000_OFFSET, whole_box
from pipeline.settings import DEFAULT_READING, Reading


@dataclass(frozen=True, slots=True)
class _File:
    """A DICOM file whose header was read and checked."""

    dataset: Dataset
    layout: Layout
    uids: tuple[str, str, str]
    sop_class: str
    source: str
    notes: tuple[str, ...]


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
    try:
        with translated("The DICOM file is damaged: its header cannot be read. Copy or export it again."):
            dataset, syntax, notes = parse(content, reading.limits)
            file = _file(dataset, content, source, read_layout(dataset, syntax, reading.limits), notes)
    except UnreadableError:
        sop_class = stated_sop_class(content)
        if not is_without_pixels(sop_class):
            raise
        kind = UID(sop_class).name
        message = f"The file is no image but an object without pixels ({kind}): there is nothing to do with it."
        raise UnreadableError(Reason.NO_IMAGE, message) from None
    instance = hashlib.sha256()
    with translated("The DICOM file says nothing usable of its grey levels. Export it again."):
        reading = _as_possible(reading, file)
    for number, (stored, decoder, damage) in enumerate(decoded_values(dataset, file.layout, reading), 1):
        with translated(f"Frame {number} of the DICOM file could not be brought to grey levels. Export it again."):
            frame = _frame(file, number, stored, decoder, reading)
            frame = replace(frame, notes=frame.notes + damage) if damage else frame
            if frame.stored_sha256 and file.layout.frames > 1:
                instance.update(np.ascontiguousarray(stored).data)
        if frame.stored_sha256 and number == file.layout.frames:
            frame = replace(frame, instance_sha256=frame.stored_sha256 if number == 1 else instance.hexdigest())
        yield frame


def _file(dataset: Dataset, content: bytes, source: str, layout: Layout, notes: tuple[str, ...]) -> _File:
    uids, uid_notes = instance_uids(dataset, content)
    sop_class = uid_text(dataset, "SOPClassUID")
    layout_notes = layout.notes + (layout.bits.notes if layout.bits is not None else ())
    return _File(dataset, layout, uids, sop_class, source, notes + uid_notes + layout_notes + intent_notes(dataset, sop_class))


def _as_possible(reading: Reading, file: _File) -> Reading:
    """Read whole what cannot be decoded at a reduced resolution without being another picture."""
    overlaid = file.layout.bits is not None and file.layout.bits.overlays > 0
    if reading.side is None or (not overlaid and is_reducible(file.dataset, reading.voi_explanation)):
        return reading
    return replace(reading, side=None)


def _frame(file: _File, number: int, stored: NDArray[Any], decoder: str, reading: Reading) -> Frame:
    scope = header.Scope.of(file.dataset, number - 1)
    grey = _grey(stored, file)
    way, notes = _rendering(file, scope, grey, reading.voi_explanation)
    if stored.shape[:2] != (file.layout.rows, file.layout.columns) and may_be_hidden(grey, way):
        exact = replace(reading, side=None)
        stored, decoder, _ = next(islice(decoded_values(file.dataset, file.layout, exact), number - 1, None))
        return _frame(file, number, stored, decoder, exact)
    stored_range = _stored_range(stored, way.padding, number)
    if note := _beyond_the_bits(file, stored_range):
        way, notes = replace(way, full_range=None), (*notes, note)
    with np.errstate(over="raise", invalid="raise"):
        pixels, grey_notes = render(grey, way)
    whole, decoded = (file.layout.rows, file.layout.columns), (pixels.shape[0], pixels.shape[1])
    hashed = reading.hashes and whole == decoded
    return Frame(
        pixels=pixels,
        key=InstanceKey(*file.uids, number),
        source=file.source,
        pixel_sha256=pixel_sha256(grey) if hashed else "",
        modality=modality(scope, file.sop_class),
        laterality=header.laterality(scope),
        body_part=body_part(scope),
        pixel_spacing_mm=pixel_spacing(scope),
        slice_position_mm=slice_position(scope),
        stored_sha256=stored_sha256(stored) if hashed else "",
        stored_range=stored_range,
        decoder=decoder,
        whole_shape=None if whole == decoded else whole,
        whole_box=None if whole == decoded else _whole_box(file.layout, decoded),
        notes=file.notes + notes + grey_notes,
        **_of_instance(file),
    )


def _stored_range(stored: NDArray[Any], padding: tuple[float, float] | None, number: int) -> tuple[float, float]:
    """Return the smallest and the largest number that is stored; what is none, or infinite, must be padding."""
    if stored.dtype.kind == "f" and not (finite := np.isfinite(stored)).all():
        padded = False if padding is None else is_padding(stored, padding)
        if not finite.any() or not (finite | padded).all():
            raise UnreadableError(Reason.INCONSISTENT, f"Frame {number} holds values that are not numbers.")
        stored = stored[finite]
    return float(stored.min()), float(stored.max())


def _beyond_the_bits(file: _File, stored_range: tuple[float, float]) -> str:
    """Say so if a codestream holds values that Bits Stored (0028,0101) has no room for: they count (PS3.5 8.2)."""
    if file.layout.bits is None or file.layout.transfer_syntax not in CODESTREAMS:
        return ""
    low, high = stored_limits(file.dataset)
    if low <= stored_range[0] and stored_range[1] <= high:
        return ""
    return "The compressed image holds values beyond those of Bits Stored: they are read as they are."


def _whole_box(layout: Layout, decoded: tuple[int, int]) -> tuple[float, float, float, float]:
    offset = JPEG_2000_OFFSET if layout.transfer_syntax in JPEG_2000 else BLOCK_OFFSET
    return whole_box((layout.rows, layout.columns), decoded, offset)


def _of_instance(file: _File) -> dict[str, Any]:
    """Return the fields that all frames of a file have in common."""
    return {
        "view_position": view_position(file.dataset),
        "patient_age": header.patient_age(file.dataset),
        "burned_in_annotation": header.code(file.dataset, "BurnedInAnnotation"),
        "sop_class_uid": file.sop_class,
        "instance_number": header.whole_number(file.dataset, "InstanceNumber"),
        "number_of_frames": file.layout.frames,
        "photometric_interpretation": file.layout.photometric_interpretation,
        "transfer_syntax_uid": str(file.layout.transfer_syntax),
    }


def _rendering(file: _File, scope: header.Scope, grey: NDArray[Any], explanation: str) -> tuple[Rendering, tuple[str, ...]]:
    if file.layout.photometric_interpretation == "PALETTE COLOR":
        return palette_rendering(file.dataset, grey), ()
    return rendering(scope, explanation)


def _grey(stored: NDArray[Any], file: _File) -> NDArray[Any]:
    """Return the stored values of a grey frame, and the grey picture that a colour frame holds."""
    colour = file.layout.photometric_interpretation
    if colour == "PALETTE COLOR":
        with translated("The colour palette of the DICOM file cannot be applied. Export the file again."):
            stored = look_up(stored, file.dataset)
    elif colour in MONOCHROME:
        check_supplemental(stored, file.dataset)
    tolerance = TOLERANCE if colour.startswith("YBR") or file.layout.transfer_syntax in LOSSY else 0
    return stored if stored.ndim == 2 else to_grey(stored, tolerance)
