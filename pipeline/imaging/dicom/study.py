"""Says which study a DICOM file belongs to, and which patient, from the start of the file alone."""

import io
from collections.abc import Iterator
from typing import NamedTuple

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from pipeline.errors import UnreadableError
from pipeline.imaging.dicom.dataset import is_cut_off, parse, uid_text
from pipeline.imaging.dicom.reader import PREAMBLE, PREFIX, is_dicom
from pipeline.imaging.files.contents import read_bytes, read_head
from pipeline.imaging.files.study_file import StudyFile
from pipeline.settings import DEFAULT_READING

_HEAD = 2**16
_STUDY_KEYWORD = "StudyInstanceUID"
_PATIENT_NAME, _PATIENT_ID, _STUDY = Tag("PatientName"), Tag("PatientID"), Tag(_STUDY_KEYWORD)


class Stated(NamedTuple):
    """What a file states of its study and its patient, the patient's in the bytes of the file; empty if it does not."""

    study_instance_uid: str = ""
    patient_id: bytes = b""
    patient_name: bytes = b""


def may_state_study(file: StudyFile) -> bool:
    """Say whether `stated_study` has to look at a file: not where it plainly is no DICOM file, or cannot be read."""
    try:
        return bool(file.inside) or is_dicom(read_head(file, PREAMBLE + len(PREFIX)))
    except UnreadableError:
        return False


def stated_study(file: StudyFile) -> Iterator[Stated]:
    """Yield what a file states, once; made for worker processes, since it parses.

    The Study Instance UID (0020,000D) is empty for what is no DICOM file, for one that states no valid UID, and for one that
    cannot be read, which reading it as a whole will say.
    """
    try:
        head = read_head(file, _HEAD)
        yield (_at_start(head) or _in_whole(file)) if is_dicom(head) else Stated()
    except UnreadableError:
        yield Stated()


def _at_start(head: bytes) -> Stated | None:
    """Return what lies in `head` as a whole; the part of a longer UID would be that of another study."""
    try:
        tags: list[BaseTag | int] = [_PATIENT_NAME, _PATIENT_ID, _STUDY]
        found = read_partial(io.BytesIO(head), stop_when=_is_behind, force=True, specific_tags=tags)
        return None if is_cut_off(found, _STUDY) or not uid_text(found, _STUDY_KEYWORD) else _stated(found)
    except Exception:  # pydicom has no common base for what it raises at a file's cut end, or where it is deflated
        return None


def _in_whole(file: StudyFile) -> Stated:
    try:
        dataset, _, _ = parse(read_bytes(file), DEFAULT_READING.limits)
        return _stated(dataset)
    except UnreadableError:
        raise
    except Exception:  # the same, of a damaged file
        return Stated()


def _stated(dataset: Dataset) -> Stated:
    uid = uid_text(dataset, _STUDY_KEYWORD)
    patient_id, patient_name = (_raw(dataset, tag) for tag in (_PATIENT_ID, _PATIENT_NAME))
    return Stated(uid, patient_id, patient_name)


def _raw(dataset: Dataset, tag: BaseTag) -> bytes:
    """Return the bytes of an element that was not decoded, without blanks and case."""
    found = dataset.get_item(tag).value if tag in dataset else b""
    return found.strip(b" \0^").upper() if isinstance(found, bytes) else b""


def _is_behind(tag: BaseTag, *_: object) -> bool:
    return bool(tag > _STUDY)
