"""Reads from the source instance what objects in its study need: whose it is, when, its frames; broken elements are unknown."""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import SecondaryCaptureImageStorage

from pipeline.imaging import guard
from pipeline.imaging.dicom import header
from pipeline.imaging.dicom.codecs import LOSSY
from pipeline.imaging.dicom.dataset import instance_uids, parse, uid_text
from pipeline.imaging.dicom.layout import read_layout
from pipeline.imaging.dicom.terms import modality
from pipeline.settings import Limits

_ALWAYS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName", "StudyID"),
)
"""Type 2 in the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): empty where the source has none."""
_WHERE_KNOWN = (
    *("IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod", "StudyDescription", "PatientAge"),
    *("LongitudinalTemporalInformationModified", "TimezoneOffsetFromUTC"),
)
_IDENTIFIERS = frozenset({"AccessionNumber", "StudyID", "IssuerOfPatientID"})
"""A part of one names something else, so that one that is too long is left out."""
_LONGEST = {"SH": 16, "LO": 64, "PN": 64}
"""Characters of a value, or of a component group of a name (PS3.5 6.2)."""
_TERMS: Mapping[str, frozenset[str]] = {
    "PatientSex": frozenset("MFO"),
    "PatientIdentityRemoved": frozenset({"YES", "NO"}),
    "LongitudinalTemporalInformationModified": frozenset({"UNMODIFIED", "MODIFIED", "REMOVED"}),
}
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_AGE = re.compile(r"\d{3}[DWMY]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_OFFSET = re.compile(r"([+-])(\d\d)([0-5]\d)")
_SMALLEST_OFFSET, _LARGEST_OFFSET = -12 * 60, 14 * 60
_MOST = 100_000


@dataclass(frozen=True, slots=True)
class Source:
    """An instance whose header was read and checked.

    Parameters
    ----------
    dataset
        As it was parsed.
    uids
        Study, Series and SOP Instance UID, derived where they are missing, as in the `InstanceKey` of its frames.
    sop_class_uid
        SOP Class UID (0008,0016); Secondary Capture where it is missing.
    modality
        As in `Frame`.
    laterality
        R or L; empty where neither is known.
    is_lossy
        Whether the pixels were compressed with loss, now or before: Lossy Image Compression (0028,2110), or their encoding.
    rows, columns, frames
        As the pixel data have them.
    instance_number
        Instance Number (0020,0013); 1 where it is missing or of no use.
    identity
        Patient and study, as they stand in the source, and Timezone Offset From UTC (0008,0201), by which their times are read.
        Values that are longer than the Standard allows are cut or left out. Patient ID (0010,0020) is kept: by another one an
        archive would file the objects under another patient.
    """

    dataset: Dataset
    uids: tuple[str, str, str]
    sop_class_uid: str
    modality: str
    laterality: str
    is_lossy: bool
    rows: int
    columns: int
    frames: int
    instance_number: int
    identity: tuple[DataElement, ...]

    def local(self, time: datetime.datetime) -> datetime.datetime:
        """Return a time as the source's times are to be read: with its offset, or without one by the clock of this computer."""
        offset = _offset(_text(self.dataset, "TimezoneOffsetFromUTC"))
        return time.astimezone(None if offset is None else datetime.timezone(datetime.timedelta(minutes=offset)))


def read_source(content: bytes, limits: Limits) -> Source:
    """Read the header of a DICOM file.

    Raises
    ------
    UnreadableError
        Where the file cannot be read as an image.
    """
    with guard.translated("The DICOM file is damaged: its header cannot be read. Copy or export it again."):
        dataset, syntax, _ = parse(content, limits)
        layout = read_layout(dataset, syntax, limits)
        uids, _ = instance_uids(dataset, content)
        sop_class = uid_text(dataset, "SOPClassUID")
        number = header.whole_number(dataset, "InstanceNumber") or 1
        scope = header.Scope.of(dataset, 0)
        return Source(
            dataset=dataset,
            uids=uids,
            sop_class_uid=sop_class or str(SecondaryCaptureImageStorage),
            modality=modality(scope, sop_class),
            laterality=side if (side := header.laterality(scope)) in ("R", "L") else "",
            is_lossy=syntax in LOSSY or header.code(dataset, "LossyImageCompression") == "01",
            rows=layout.rows,
            columns=layout.columns,
            frames=layout.frames,
            instance_number=number if 0 < number <= _MOST else 1,
            identity=_identity(dataset),
        )


def element(keyword: str, text: str) -> DataElement:
    """Return an element that is written as it stands, valid or not."""
    return DataElement(Tag(keyword), dictionary_VR(keyword), text, validation_mode=IGNORE)


def _identity(dataset: Dataset) -> tuple[DataElement, ...]:
    found = {keyword: _text(dataset, keyword) for keyword in (*_ALWAYS, *_WHERE_KNOWN)}
    if found["PatientIdentityRemoved"] == "YES" and not found["DeidentificationMethod"]:
        found["DeidentificationMethod"] = "See the source image"
    return tuple(element(keyword, text) for keyword, text in found.items() if text or keyword in _ALWAYS)


def _text(dataset: Dataset, keyword: str) -> str:
    """Return an element's value as text; empty where it has none, or none that its value representation allows."""
    found = header.value(dataset, keyword)
    parts = found if isinstance(found, MultiValue | list) else [] if found is None else [found]
    text = _CONTROL.sub("", "\\".join(str(part) for part in parts)).strip()
    kind = dictionary_VR(keyword)
    if kind == "DA":
        return _date(text)
    if kind == "TM":
        text = text.replace(":", "")
        return text if _TIME.fullmatch(text) else ""
    if kind == "AS":
        return text if _AGE.fullmatch(text) else ""
    if keyword == "TimezoneOffsetFromUTC":
        return text if _offset(text) is not None else ""
    if text not in _TERMS.get(keyword, {text}):
        return ""
    return text if keyword == "PatientID" else _shortened(text, keyword, kind)


def _shortened(text: str, keyword: str, kind: str) -> str:
    """Return a text that is as long as the Standard allows: cut, or empty if it is an identifier."""
    longest, between = _LONGEST.get(kind, len(text)), "=" if kind == "PN" else "\\"
    parts = text.split(between)
    if max(map(len, parts)) <= longest:
        return text
    return "" if keyword in _IDENTIFIERS else between.join(part[:longest].rstrip() for part in parts)


def _offset(text: str) -> int | None:
    """Return Timezone Offset From UTC in minutes; None if the text is none (PS3.3 C.12.1.1.8)."""
    found = _OFFSET.fullmatch(text)
    if found is None:
        return None
    minutes = int(f"{found[1]}1") * (60 * int(found[2]) + int(found[3]))
    return minutes if text != "-0000" and _SMALLEST_OFFSET <= minutes <= _LARGEST_OFFSET else None


def _date(text: str) -> str:
    text = text.replace(".", "")  # as ACR-NEMA wrote dates (PS3.5 6.2)
    try:
        datetime.datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return ""
    return text if len(text) == 8 else ""
