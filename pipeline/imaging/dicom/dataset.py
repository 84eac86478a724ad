"""Parses DICOM files, whole or only as far as they name their study, and derives the UIDs that are missing."""

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pydicom
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pydicom.filereader import _read_command_set_elements, _read_file_meta_info, read_partial, read_preamble
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.elements import value
from pipeline.imaging.files.study_file import StudyFile, read_bytes, read_head
from pipeline.imaging.guard import check_inflated
from pipeline.imaging.identity import derived_uid
from pipeline.settings import DEFAULT_READING, Limits

PREFIX = b"DICM"
PREAMBLE = 128
_VALUE_REPRESENTATIONS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_LAST_PIXEL_TAG = 0x7FE00010
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, _LAST_PIXEL_TAG)
_SOP_CLASS, _MEDIA_SOP_CLASS = 0x00080016, 0x00020002
_UID_CHARACTERS = frozenset("0123456789.")
_HEAD = 2**16
_STUDY_KEYWORD = "StudyInstanceUID"
_UID_KEYWORDS = (_STUDY_KEYWORD, "SeriesInstanceUID", "SOPInstanceUID")
_LAST_UID = Tag("SeriesInstanceUID")
_PATIENT_NAME, _PATIENT_ID, _STUDY = Tag("PatientName"), Tag("PatientID"), Tag(_STUDY_KEYWORD)


def is_dicom(head: bytes) -> bool:
    """Return whether a file that begins with `head` (at least 132 bytes of it) is DICOM, with or without the preamble.

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


def parse(content: bytes, limits: Limits) -> tuple[Dataset, UID, tuple[str, ...]]:
    """Parse a DICOM file.

    Returns
    -------
    tuple[Dataset, UID, tuple[str, ...]]
        The data set, its transfer syntax, and what had to be assumed, in sentences.

    Raises
    ------
    UnreadableError
        `TRUNCATED`, `UNSUPPORTED_ENCODING` or `RESOURCE_LIMIT`; pydicom raises its own errors.
    """
    _check_deflated(content, limits)
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    syntax, notes = _transfer_syntax(dataset)
    _check_whole(dataset)
    return dataset, syntax, notes


def instance_uids(dataset: Dataset, content: bytes) -> tuple[tuple[str, str, str], tuple[str, ...]]:
    """Return Study, Series and SOP Instance UID, and a note if some are missing or invalid and derived from the content."""
    found, derived = [], []
    for keyword, role in zip(_UID_KEYWORDS, ("study", "series", "instance"), strict=True):
        uid = uid_text(dataset, keyword)
        if not uid:
            uid = derived_uid(content, role)
            derived.append(keyword)
        found.append(uid)
    notes = (f"{', '.join(derived)} missing or not valid: derived from the content.",) if derived else ()
    return (found[0], found[1], found[2]), notes


def stated_sop_class(content: bytes) -> str:
    """Return SOP Class UID (0008,0016), else (0002,0002), of a file that may be damaged behind it; empty if it has none.

    A UID that is cut off does not count: its start may be another class.
    """
    try:
        dataset = read_partial(io.BytesIO(content), stop_when=_is_behind_sop_class, force=True)
        if not _is_cut_off(dataset, _SOP_CLASS) and (sop_class := uid_text(dataset, "SOPClassUID")):
            return sop_class
    except Exception:  # noqa: S110 - pydicom has no common base for what it raises at a cut end, or within deflated bytes
        pass
    try:
        stream = io.BytesIO(content)
        read_preamble(stream, force=True)
        meta = _read_file_meta_info(stream)
        return "" if _is_cut_off(meta, _MEDIA_SOP_CLASS) else uid_text(meta, "MediaStorageSOPClassUID")
    except Exception:  # the same
        return ""


def stated_uids(files: Sequence[StudyFile]) -> Iterator[tuple[str, str, str]]:
    """Yield Study, Series and SOP Instance UID as files state them, even if they are damaged behind these; for workers.

    What a file does not state, or not as a valid UID, is empty; so is everything of a file that is not DICOM.
    """
    for file in files:
        try:
            with file.path.open("rb") as stream:
                is_one = is_dicom(stream.read(_HEAD))
                stream.seek(0)
                dataset = read_partial(stream, stop_when=_is_behind_uids, force=True) if is_one else Dataset()
            cut_off = {keyword for keyword in _UID_KEYWORDS if _is_cut_off(dataset, Tag(keyword))}
            study, series, instance = ("" if keyword in cut_off else uid_text(dataset, keyword) for keyword in _UID_KEYWORDS)
            yield study, series, instance
        except Exception:  # pydicom has no common base for what it raises at a cut end
            yield "", "", ""


def _is_behind_uids(tag: BaseTag, *_: object) -> bool:
    return bool(tag > _LAST_UID)


def _is_behind_sop_class(tag: BaseTag, *_: object) -> bool:
    return bool(tag > _SOP_CLASS)


def uid_text(dataset: Dataset, keyword: str) -> str:
    """Return a UID; empty if it is missing, not valid (PS3.5 9.1), or a placeholder: zeros, or a UID of the Standard itself."""
    uid = str(value(dataset, keyword) or "").strip()
    is_valid = 0 < len(uid) <= 64 and _UID_CHARACTERS.issuperset(uid) and uid.strip(".")
    is_placeholder = keyword.endswith("InstanceUID") and (not uid.strip("0.") or "." not in uid or uid in UID_dictionary)
    return uid if is_valid and not is_placeholder else ""


def _check_deflated(content: bytes, limits: Limits) -> None:
    """Check the size of a deflated data set (PS3.5 A.5), found as by `dcmread`, which inflates it whatever its size."""
    stream = io.BytesIO(content)
    read_preamble(stream, force=True)
    syntax = _read_file_meta_info(stream).get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        _read_command_set_elements(stream)
        check_inflated(stream.read(), limits)


def _transfer_syntax(dataset: Dataset) -> tuple[UID, tuple[str, ...]]:
    """Return Transfer Syntax UID (0002,0010), or the uncompressed one that the file turned out to be written in."""
    named = value(dataset.file_meta, "TransferSyntaxUID")
    if named is not None:
        syntax = UID(str(named))
        if not syntax.is_transfer_syntax or syntax.is_private:
            raise UnreadableError(
                Reason.UNSUPPORTED_ENCODING,
                "The file names a transfer syntax that octray does not know. Convert it to another.",
            )
        return syntax, ()
    implicit, little = dataset.original_encoding
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = syntax
    return syntax, (f"The file names no transfer syntax; {syntax.name} was found.",)


def _is_cut_off(dataset: Dataset, tag: int) -> bool:
    """Return whether the bytes ended within an element, so that its value is incomplete; `dcmread` does not tell.

    Call it before the value is read, since the length is lost then.
    """
    element = dataset.get_item(tag)
    declared, there = getattr(element, "length", None), getattr(element, "value", None)
    return isinstance(declared, int) and declared != 0xFFFFFFFF and isinstance(there, bytes) and len(there) < declared


def _check_whole(dataset: Dataset) -> None:
    """Check that the file does not end within an element, and remove such an element if it lies behind whole pixels."""
    if not dataset:
        raise UnreadableError(Reason.TRUNCATED, "The DICOM file is cut off. Copy or export it again.")
    cut = [tag for tag in dataset.keys() if _is_cut_off(dataset, tag)]  # noqa: SIM118 - iterating would parse the elements
    is_image = any(tag in dataset for tag in _PIXEL_TAGS)
    if any(tag in _PIXEL_TAGS or (tag < _LAST_PIXEL_TAG and not is_image) for tag in cut):
        raise UnreadableError(Reason.TRUNCATED, "The DICOM file is cut off. Copy or export it again.")
    for tag in cut:
        del dataset[tag]


class StatedStudy(NamedTuple):
    """The study and the patient that a file names, the patient in the bytes of the file; empty if it does not name them."""

    study_instance_uid: str = ""
    patient_id: bytes = b""
    patient_name: bytes = b""


def may_state_study(file: StudyFile) -> bool:
    """Return whether `stated_study` has to look at a file; it need not if it is clearly not DICOM, or cannot be read."""
    try:
        return bool(file.inside) or is_dicom(read_head(file, PREAMBLE + len(PREFIX)))
    except UnreadableError:
        return False


def stated_study(file: StudyFile) -> Iterator[StatedStudy]:
    """Yield once the study and the patient that a file names; made for worker processes, since it parses.

    Study Instance UID (0020,000D) is empty if the file is not DICOM, names no valid UID, or cannot be read; in the last case
    reading it as a whole gives the reason.
    """
    try:
        head = read_head(file, _HEAD)
        yield (_at_start(head) or _in_whole(file)) if is_dicom(head) else StatedStudy()
    except UnreadableError:
        yield StatedStudy()


def _at_start(head: bytes) -> StatedStudy | None:
    """Return what lies in `head` completely; a UID that is cut off would name another study."""
    try:
        tags: list[BaseTag | int] = [_PATIENT_NAME, _PATIENT_ID, _STUDY]
        found = read_partial(io.BytesIO(head), stop_when=_is_behind, force=True, specific_tags=tags)
        return None if _is_cut_off(found, _STUDY) or not uid_text(found, _STUDY_KEYWORD) else _stated(found)
    except Exception:  # pydicom has no common base for what it raises at a file's cut end, or if it is deflated
        return None


def _in_whole(file: StudyFile) -> StatedStudy:
    try:
        dataset, _, _ = parse(read_bytes(file), DEFAULT_READING.limits)
        return _stated(dataset)
    except UnreadableError:
        raise
    except Exception:  # the same, of a damaged file
        return StatedStudy()


def _stated(dataset: Dataset) -> StatedStudy:
    uid = uid_text(dataset, _STUDY_KEYWORD)
    patient_id, patient_name = (_raw(dataset, tag) for tag in (_PATIENT_ID, _PATIENT_NAME))
    return StatedStudy(uid, patient_id, patient_name)


def _raw(dataset: Dataset, tag: BaseTag) -> bytes:
    """Return the raw bytes of an element, without blanks and in one case."""
    found = dataset.get_item(tag).value if tag in dataset else b""
    return found.strip(b" \0^").upper() if isinstance(found, bytes) else b""


def _is_behind(tag: BaseTag, *_: object) -> bool:
    return bool(tag > _STUDY)
