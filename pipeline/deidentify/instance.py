"""De-identifies one DICOM file in memory: from its bytes to bytes that were verified, with what the crosswalk records."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import UID

from pipeline.deidentify.clean import Context, clean, patient_key
from pipeline.deidentify.identity import Identity, as_text
from pipeline.deidentify.mark import mark, set_file_meta
from pipeline.deidentify.numbers import NUMBERS, is_free
from pipeline.deidentify.options import Box, Keep, Options, Refusal, RefusedError
from pipeline.deidentify.pixels import blank, clear_surplus, may_show_identity
from pipeline.deidentify.secret import Secret
from pipeline.deidentify.surplus import clear_tables
from pipeline.deidentify.values import REPLACEABLE, as_list, dummy, is_class
from pipeline.deidentify.verify import left, verify
from pipeline.errors import InputError
from pipeline.imaging.dicom.dataset import instance_uids, is_dicom, parse
from pipeline.imaging.dicom.header import value
from pipeline.imaging.dicom.layout import Layout, read_layout
from pipeline.imaging.files.study_file import StudyFile
from pipeline.imaging.guard import silence_decoders, translated
from pipeline.imaging.sources import read_bytes
from pipeline.settings import Limits, Reading

HEAD = 512
_DAMAGED = "The DICOM file is damaged: its header cannot be read. Copy or export it again."
_UNWRITABLE = "The DICOM file breaks the Standard, so that it cannot be written again. Export it again."
_REFUSED_CLASSES = {
    "1.2.840.10008.1.3.10": "a DICOMDIR, which names every file",
    "1.2.840.10008.5.1.4.1.1.66": "raw data, of which nobody knows what is in them",
    "1.2.840.10008.5.1.4.1.1.9.4.1": "a recording of a voice",
    "1.2.840.10008.5.1.4.1.1.9.4.2": "a recording of sound",
}
_IMAGE_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "Rows", "BitsAllocated")
_IMAGE_KINDS = ("Image Storage", " Map Storage")


@dataclass(frozen=True, slots=True)
class Deidentified:
    """A file without identity, and which identity it had.

    Parameters
    ----------
    content
        The bytes of the new file.
    name
        Where it belongs below the output folder, with forward slashes; made of the pseudonym and of new UIDs.
    patient_id, pseudonym
        Patient ID (0010,0020) before and after.
    uids
        Study, Series and SOP Instance UID before.
    offset_days
        By how many days dates were moved, None where they were replaced.
    names_patient
        Whether the original said who the patient is; otherwise its study stands for the patient.
    allowed
        The attributes that stayed although they repeat an identifier, since somebody looked at this file.
    """

    content: bytes
    name: str
    patient_id: str
    pseudonym: str
    uids: tuple[str, str, str]
    offset_days: int | None
    names_patient: bool = True
    allowed: tuple[str, ...] = ()


def deidentify_file(
    pair: tuple[StudyFile, Path], secret: Secret, options: Options, reading: Reading
) -> Iterator[str | Deidentified | None]:
    """De-identify one file; what a worker process does.

    Parameters
    ----------
    pair
        The file, and where the new one is written.
    secret, options, reading
        As in `deidentify_bytes`; of `reading` the limits count.

    Yields
    ------
    str or Deidentified or None
        The hash of its bytes, then None for each frame that was blanked, so that time is counted by frames, then what was
        made, without its content.

    Raises
    ------
    UnreadableError, RefusedError
        As `deidentify_bytes`; also where the file may not be read or cannot be opened.
    InputError
        Where the new file cannot be written.
    """
    file, path = pair
    silence_decoders()
    content = read_bytes(file, reading)
    yield hashlib.sha256(content).hexdigest()
    for step in _steps(content, secret, options, reading.limits):
        if step is not None:
            _write(path, step.content)
        yield step and replace(step, content=b"")


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"A new file cannot be written: {error.strerror}. Name another folder, or make room.") from None


def deidentify_bytes(content: bytes, secret: Secret, options: Options, limits: Limits) -> Deidentified:
    """De-identify one DICOM file.

    Raises
    ------
    UnreadableError
        Where it is damaged, or its pixels are in a form that octray does not read.
    RefusedError
        Where it is not DICOM, may show identity among its pixels, is of a kind that cannot be cleaned, or fails the verifier.
    """
    (made,) = (step for step in _steps(content, secret, options, limits) if step is not None)
    return made


def _steps(content: bytes, secret: Secret, options: Options, limits: Limits) -> Iterator[Deidentified | None]:
    if not is_dicom(content[:HEAD]):
        raise RefusedError(Refusal.NOT_DICOM, "The file is not DICOM. Only DICOM files can be de-identified.")
    allowed = options.allowed_in(hashlib.sha256(content).hexdigest()) if options.allowed else frozenset()
    with translated(_DAMAGED):
        dataset, syntax, _ = parse(content, limits)
        uids, _ = instance_uids(dataset, content)
        identity = Identity.of(dataset)
    _check_kind(dataset)
    with translated(_DAMAGED):
        layout = read_layout(dataset, syntax, limits) if _is_image(dataset) else None
        patient = patient_key(dataset)
        context = Context(secret, patient or uids[0], options.keep)
        patient_id = str(value(dataset, "PatientID") or "")
    if layout is not None:
        yield from _clean_pixels(dataset, layout, options)
    with translated(_UNWRITABLE):
        _set_uids(dataset, uids)
        clear_tables(dataset)
        clean(dataset, context)
        _replace_left(dataset, identity, options, allowed)
        mark(dataset, options, layout is not None)
        made = _written(dataset)
    verify(made, identity, context.pseudonym, options, allowed)
    offset = context.offset_days if Keep.DATES in options.keep else None
    name = "/".join((context.pseudonym, *(secret.uid(uid) for uid in uids))) + ".dcm"
    names = tuple(sorted(keyword_for_tag(tag) for tag in allowed))
    yield Deidentified(made, name, patient_id, context.pseudonym, uids, offset, bool(patient), names)


def _check_kind(dataset: Dataset) -> None:
    uid = str(value(dataset, "SOPClassUID") or "")
    kind = _REFUSED_CLASSES.get(uid)
    if "EncapsulatedDocument" in dataset:
        kind = "a document in another format"
    elif not is_class(uid):
        kind = "an object of a kind that the Standard does not know"
    if kind:
        raise RefusedError(Refusal.NOT_SUPPORTED, f"The file is {kind}: it cannot be de-identified by rules. Leave it out.")


def _is_image(dataset: Dataset) -> bool:
    """Say whether there are pixels, or the SOP class promises some, as in a file that was cut off before them."""
    name = UID(dataset.SOPClassUID).name
    return any(key in dataset for key in _IMAGE_KEYWORDS) or any(kind in name for kind in _IMAGE_KINDS)


def _clean_pixels(dataset: Dataset, layout: Layout, options: Options) -> Iterator[None]:
    if not options.boxes and not options.clean_pixels and may_show_identity(dataset):
        raise RefusedError(
            Refusal.BURNED_IN,
            "The image may show who the patient is. Blank those regions with --blank, or have text found with --clean-pixels.",
        )
    if options.boxes or options.clean_pixels:
        yield from blank(dataset, layout, partial(_rectangles, options, may_show_identity(dataset)))
    else:
        yield from clear_surplus(dataset, layout)


def _rectangles(options: Options, is_suspect: bool, stored: NDArray[Any]) -> Iterator[Box]:
    yield from options.boxes
    if options.clean_pixels:
        from pipeline.deidentify.text import text_boxes

        yield from text_boxes(stored, is_suspect)


def _set_uids(dataset: Dataset, uids: tuple[str, str, str]) -> None:
    """Give the data set the UIDs that were derived for those that it lacks, so that it says the same as its folders."""
    for keyword, uid in zip(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), uids, strict=True):
        setattr(dataset, keyword, uid)


def _replace_left(dataset: Dataset, identity: Identity, options: Options, allowed: frozenset[int]) -> None:
    """Replace values that the profile keeps, a manufacturer's name for one, if they repeat something that identifies.

    Numbers become 0 if the object stays valid with it; those that the image needs stay, and the verifier refuses the file.
    """
    for element, text in list(left(dataset, identity, options, allowed)):
        if element.VR in REPLACEABLE or (element.VR in NUMBERS and is_free(element.tag)):
            values = [dummy(element.VR) if as_text(one) == text else one for one in as_list(element.value)]
            element.value = values[0] if len(values) == 1 else values


def _written(dataset: Dataset) -> bytes:
    set_file_meta(dataset, UID(dataset.file_meta.TransferSyntaxUID))
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        dataset["PixelData"].VR = "OB"  # PS3.5 A.4, which not every maker keeps
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
