"""De-identifies one DICOM file in memory: from its bytes to verified bytes and an entry for the crosswalk."""

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

from pipeline.deidentify.clean import clean, patient_identity, record_method, replace_file_meta
from pipeline.deidentify.crosswalk import Secret
from pipeline.deidentify.identifiers import Identity, value_text
from pipeline.deidentify.pixels import blank, clear_surplus, find_text_rectangles, may_show_identity
from pipeline.deidentify.profile import Keep, Options, Rectangle, RefusalReason, RefusedError
from pipeline.deidentify.surplus import cut_lookup_tables
from pipeline.deidentify.values import NUMERIC, REPLACEABLE, as_list, as_value, dummy, is_class
from pipeline.deidentify.verify import is_free_number, repeated_identity, verify
from pipeline.errors import InputError
from pipeline.imaging.dicom.dataset import instance_uids, is_dicom, parse
from pipeline.imaging.dicom.elements import value
from pipeline.imaging.dicom.layout import Layout, read_layout
from pipeline.imaging.files.study_file import StudyFile
from pipeline.imaging.guard import silence_decoders, unreadable
from pipeline.imaging.sources import read_bytes
from pipeline.settings import Limits, Reading

_HEAD = 512
_DAMAGED = "The DICOM file is damaged: its header cannot be read. Copy or export it again."
_UNWRITABLE = "The DICOM file violates the Standard and cannot be written again. Export it again."
_REFUSED_CLASSES = {
    "1.2.840.10008.1.3.10": "a DICOMDIR, which names every file",
    "1.2.840.10008.5.1.4.1.1.66": "raw data of unknown content",
    "1.2.840.10008.5.1.4.1.1.9.4.1": "a recording of a voice",
    "1.2.840.10008.5.1.4.1.1.9.4.2": "a recording of sound",
}
_IMAGE_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "Rows", "BitsAllocated")
_IMAGE_KINDS = ("Image Storage", " Map Storage")


@dataclass(frozen=True, slots=True)
class Deidentified:
    """A de-identified file, and what it was before.

    Parameters
    ----------
    content
        The bytes of the new file.
    name
        Its path below the output folder, with forward slashes; made of the pseudonym and of new UIDs.
    patient_id, pseudonym
        Patient ID (0010,0020) before and after.
    uids
        Study, Series and SOP Instance UID before.
    offset_days
        By how many days dates were moved; None if they were replaced.
    has_patient
        Whether the original identifies its patient; if not, the study counts as the patient.
    allowed
        Keywords of the attributes that stayed although they repeat an identifier, since a person has checked this file.
    """

    content: bytes
    name: str
    patient_id: str
    pseudonym: str
    uids: tuple[str, str, str]
    offset_days: int | None
    has_patient: bool = True
    allowed: tuple[str, ...] = ()


def deidentify_file(
    pair: tuple[StudyFile, Path], secret: Secret, options: Options, reading: Reading
) -> Iterator[str | Deidentified | None]:
    """De-identify one file in a worker process.

    Parameters
    ----------
    pair
        The file, and the path to which the new one is written.
    secret, options, reading
        As in `deidentify_bytes`; only the limits of `reading` count.

    Yields
    ------
    str or Deidentified or None
        The hash of its bytes; then None for each frame that was cleaned, so that time is limited by frame; then the result
        without its content.

    Raises
    ------
    UnreadableError, RefusedError
        As `deidentify_bytes`; also if the file may not be read or cannot be opened.
    InputError
        If the new file cannot be written.
    """
    file, path = pair
    silence_decoders()
    content = read_bytes(file, reading)
    yield hashlib.sha256(content).hexdigest()
    for step in _steps(content, secret, options, reading.limits):
        if step is None:
            yield None
            continue
        try:
            path.write_bytes(step.content)
        except OSError as error:
            raise InputError(
                f"A new file cannot be written: {error.strerror}. Name another folder, or free some space."
            ) from None
        yield replace(step, content=b"")


def deidentify_bytes(content: bytes, secret: Secret, options: Options, limits: Limits) -> Deidentified:
    """De-identify one DICOM file.

    Raises
    ------
    UnreadableError
        If it is damaged, or octray cannot read its pixels.
    RefusedError
        If it is not DICOM, may show identity in its pixels, is of a kind that cannot be cleaned, or fails the verifier.
    """
    (result,) = (step for step in _steps(content, secret, options, limits) if step is not None)
    return result


def _steps(content: bytes, secret: Secret, options: Options, limits: Limits) -> Iterator[Deidentified | None]:
    """Yield None after each frame, and the de-identified file at the end."""
    if not is_dicom(content[:_HEAD]):
        raise RefusedError(RefusalReason.NOT_DICOM, "The file is not DICOM. Only DICOM files can be de-identified.")
    allowed = options.allowed_in(hashlib.sha256(content).hexdigest()) if options.allowed else frozenset()
    with unreadable(_DAMAGED):
        dataset, syntax, _ = parse(content, limits)
        uids, _ = instance_uids(dataset, content)
        identity = Identity.of(dataset)
    _check_kind(dataset)
    with unreadable(_DAMAGED):
        layout = read_layout(dataset, syntax, limits) if _is_image(dataset) else None
        named_patient = patient_identity(dataset)
        patient = named_patient or uids[0]
        pseudonym = secret.pseudonym(patient)
        patient_id = str(value(dataset, "PatientID") or "")
    if layout is not None:
        yield from _clean_pixels(dataset, layout, options)
    with unreadable(_UNWRITABLE):
        for keyword, uid in zip(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), uids, strict=True):
            setattr(dataset, keyword, uid)  # one that the file lacks was derived, and is in the new path too
        cut_lookup_tables(dataset)
        clean(dataset, secret, patient, options.keep)
        _replace_repeated_identity(dataset, identity, options, allowed)
        record_method(dataset, options, layout is not None)
        new_content = _written(dataset)
    verify(new_content, identity, pseudonym, options, allowed)
    yield Deidentified(
        content=new_content,
        name="/".join((pseudonym, *(secret.uid(uid) for uid in uids))) + ".dcm",
        patient_id=patient_id,
        pseudonym=pseudonym,
        uids=uids,
        offset_days=secret.offset_days(patient) if Keep.DATES in options.keep else None,
        has_patient=bool(named_patient),
        allowed=tuple(sorted(keyword_for_tag(tag) for tag in allowed)),
    )


def _check_kind(dataset: Dataset) -> None:
    uid = str(value(dataset, "SOPClassUID") or "")
    kind = _REFUSED_CLASSES.get(uid)
    if "EncapsulatedDocument" in dataset:
        kind = "a document in another format"
    elif not is_class(uid):
        kind = "an object of a kind that the Standard does not define"
    if kind:
        raise RefusedError(RefusalReason.NOT_SUPPORTED, f"The file is {kind}: no rules can de-identify it. Leave it out.")


def _is_image(dataset: Dataset) -> bool:
    """Return whether there are pixels, or the SOP class promises some, as in a file that was cut off before them."""
    name = UID(dataset.SOPClassUID).name
    return any(key in dataset for key in _IMAGE_KEYWORDS) or any(kind in name for kind in _IMAGE_KINDS)


def _clean_pixels(dataset: Dataset, layout: Layout, options: Options) -> Iterator[None]:
    is_suspect = may_show_identity(dataset)
    if options.rectangles or options.clean_pixels:
        yield from blank(dataset, layout, partial(_rectangles, options, is_suspect))
    elif is_suspect:
        raise RefusedError(
            RefusalReason.BURNED_IN,
            "The image may identify the patient. Blank those regions with --blank, or let --clean-pixels find the text.",
        )
    else:
        yield from clear_surplus(dataset, layout)


def _rectangles(options: Options, may_show_identity: bool, stored: NDArray[Any]) -> Iterator[Rectangle]:
    yield from options.rectangles
    if options.clean_pixels:
        yield from find_text_rectangles(stored, may_show_identity)


def _replace_repeated_identity(dataset: Dataset, identity: Identity, options: Options, allowed: frozenset[int]) -> None:
    """Replace values that the profile keeps, such as a manufacturer's name, if they repeat something identifying.

    A number becomes 0 if the object stays valid. Numbers that the image needs stay, and the verifier refuses the file.
    """
    for element, text in list(repeated_identity(dataset, identity, options, allowed)):
        if element.VR in REPLACEABLE or (element.VR in NUMERIC and is_free_number(element.tag)):
            element.value = as_value([dummy(element.VR) if value_text(one) == text else one for one in as_list(element.value)])


def _written(dataset: Dataset) -> bytes:
    replace_file_meta(dataset)
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        dataset["PixelData"].VR = "OB"  # PS3.5 A.4, which some manufacturers ignore
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
