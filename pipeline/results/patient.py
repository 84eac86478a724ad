"""Patient details for reports with `--identity`: read from the files when the report is written, and stored nowhere else."""

import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import StrEnum

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from pipeline.imaging.dicom import elements
from pipeline.imaging.dicom.dataset import is_dicom, parse, uid_text
from pipeline.imaging.files.names import visible
from pipeline.imaging.files.study_file import StudyFile, read_bytes, read_head
from pipeline.imaging.vendor.heidelberg import VOL
from pipeline.settings import DEFAULT_READING

_HEAD = 2**16
_LONGEST = 200
_KEYWORDS = (
    *("SpecificCharacterSet", "StudyDate", "AccessionNumber", "Manufacturer", "StationName", "ManufacturerModelName"),
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "StudyInstanceUID"),
)
_LAST = Tag("StudyInstanceUID")
_VOL, _VOL_AT = struct.Struct("<21s3xdi24sd"), 140
"""PatientID, DOB, VID, VisitID and VisitDate in the header of a `.vol` file (Exporting Raw Data)."""
_LAST_DAY = 73_050  # in 2099; comparisons with NaN are false, too


class Detail(StrEnum):
    """Details of patient and examination that a report can show."""

    NAME = "name"
    ID = "id"
    BIRTH_DATE = "birth_date"
    ACCESSION_NUMBER = "accession_number"
    STUDY_DATE = "study_date"
    DEVICE = "device"


GONE = "No longer known: the file is gone"
REPLACED = "No longer known: the file was replaced"
NOT_STATED = "The file names no patient"
OTHER_KIND = "Not known: read from DICOM and .vol files only"
NOT_READ = "The file could not be read"


@dataclass(frozen=True, slots=True)
class Patient:
    """Details that the files of a study state about its patient.

    Parameters
    ----------
    details
        Texts of one line; details that the file does not state are missing.
    why_unknown
        A sentence if nothing is known, else empty.
    """

    details: Mapping[Detail, str] = field(default_factory=dict)
    why_unknown: str = ""


def read_patient(file: StudyFile, study_instance_uid: str) -> Iterator[Patient]:
    """Yield the patient of a DICOM or `.vol` file, once. Call it in a worker process, because it parses the file.

    Parameters
    ----------
    file
        One file of the study.
    study_instance_uid
        UID of the scored study, empty if unknown. A file that states another UID is taken to be another patient's.
    """
    try:
        yield _patient(file, study_instance_uid)
    except Exception:  # UnreadableError, and what pydicom raises on a damaged file, which has no common base
        yield Patient(why_unknown=NOT_READ)


def _patient(file: StudyFile, study_instance_uid: str) -> Patient:
    head = read_head(file, _HEAD)
    if head.startswith(VOL) and len(head) >= _VOL_AT + _VOL.size:
        return _of_vol(head)
    if not is_dicom(head):
        return Patient(why_unknown=OTHER_KIND)
    dataset = _at_start(head) or parse(read_bytes(file), DEFAULT_READING.limits)[0]
    stated = uid_text(dataset, "StudyInstanceUID")
    if stated and study_instance_uid and stated != study_instance_uid:
        return Patient(why_unknown=REPLACED)
    texts = {
        Detail.NAME: _name(dataset),
        Detail.ID: _joined(dataset, ("PatientID", "IssuerOfPatientID"), " / "),
        Detail.BIRTH_DATE: _date(dataset, "PatientBirthDate"),
        Detail.ACCESSION_NUMBER: _text(dataset, "AccessionNumber"),
        Detail.STUDY_DATE: _date(dataset, "StudyDate"),
        Detail.DEVICE: _joined(dataset, ("Manufacturer", "ManufacturerModelName", "StationName"), ", "),
    }
    known = {detail: text for detail, text in texts.items() if text}
    return Patient(known, "" if known else NOT_STATED)


def _of_vol(head: bytes) -> Patient:
    """Return the patient of a Heidelberg `.vol` file: it has no name, and its dates are days since 30 December 1899."""
    patient_id, born, _, _, visited = _VOL.unpack_from(head, _VOL_AT)
    texts = {
        Detail.ID: visible(patient_id.partition(b"\0")[0].decode("latin-1")).strip(),
        Detail.BIRTH_DATE: _day(born),
        Detail.STUDY_DATE: _day(visited),
    }
    known = {detail: text for detail, text in texts.items() if text}
    return Patient(known, "" if known else NOT_STATED)


def _day(number: float) -> str:
    return (date(1899, 12, 30) + timedelta(days=int(number))).isoformat() if 1 <= number < _LAST_DAY else ""


def _at_start(head: bytes) -> Dataset | None:
    """Return the start of a data set if `head` contains all the elements that are needed, else None."""
    reached: list[BaseTag] = []

    def is_behind(tag: BaseTag, *_: object) -> bool:
        if tag > _LAST:
            reached.append(tag)
        return bool(reached)

    try:
        found = read_partial(io.BytesIO(head), stop_when=is_behind, force=True, specific_tags=[Tag(name) for name in _KEYWORDS])
    except Exception:  # the same, at the cut end, or if the data set is deflated
        return None
    return found if reached else None


def _text(dataset: Dataset, keyword: str) -> str:
    return visible("\\".join(elements.texts(dataset, keyword))).strip()[:_LONGEST]


def _joined(dataset: Dataset, keywords: tuple[str, ...], between: str) -> str:
    return between.join(text for keyword in keywords if (text := _text(dataset, keyword)))


def _name(dataset: Dataset) -> str:
    """Return Patient's Name (0010,0010): family name first, and in brackets how it is written in another script (PS3.5 6.2)."""
    groups = [[" ".join(part.split()) for part in group.split("^")] for group in _text(dataset, "PatientName").split("=")]
    latin, *others = (between.join(filter(None, group)) for between, group in zip((", ", " "), groups, strict=False))
    other = "".join(others)
    return f"{latin} ({other})" if latin and other else latin or other


def _date(dataset: Dataset, keyword: str) -> str:
    """Return a date as 2026-11-30; text that is not eight digits is returned unchanged."""
    text = _text(dataset, keyword)
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdecimal() else text
