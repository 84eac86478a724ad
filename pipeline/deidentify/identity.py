"""Collects what identifies somebody in a file before it is de-identified, by a list of its own, not by the Standard's table."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import date
from itertools import pairwise
from typing import Any

from pydicom.charset import convert_encodings, encode_string
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from pipeline.deidentify.search import PLACEHOLDERS, is_common, is_ideographic, name_forms, squeezed
from pipeline.deidentify.spellings import days_in, folded
from pipeline.deidentify.values import is_registered
from pipeline.errors import Reason, UnreadableError

Path = tuple[int, ...]
_OF_PATIENT = frozenset(
    {
        "AccessionNumber",
        "AdmissionID",
        "ClinicalTrialSubjectID",
        "ClinicalTrialSubjectReadingID",
        "InsurancePlanIdentification",
        "MedicalRecordLocator",
        "OtherPatientIDs",
        "PatientID",
        "PatientTelephoneNumbers",
        "ServiceEpisodeID",
        "StudyID",
    }
)
_SHORT_TOO = frozenset({"AccessionNumber", "OtherPatientIDs", "PatientID"})
_PLACES = frozenset(
    {
        "AddressTrial",
        "AssignedLocation",
        "ClinicalTrialCoordinatingCenterName",
        "ClinicalTrialProtocolEthicsCommitteeName",
        "ClinicalTrialSiteName",
        "CountryOfResidence",
        "CurrentPatientLocation",
        "DistributionAddress",
        "HumanPerformerOrganization",
        "InstitutionAddress",
        "InstitutionName",
        "InstitutionalDepartmentName",
        "IssuerOfAdmissionID",
        "IssuerOfPatientID",
        "IssuerOfServiceEpisodeID",
        "OrderEntererLocation",
        "PatientAddress",
        "PatientInstitutionResidence",
        "PerformedLocation",
        "PersonAddress",
        "ReferringPhysicianAddress",
        "RegionOfResidence",
        "RequestedProcedureLocation",
        "RequestingService",
        "ResponsibleOrganization",
        "ScheduledPatientInstitutionResidence",
        "ScheduledProcedureStepLocation",
        "ScheduledStudyLocation",
        "StudyIDIssuer",
        "VerifyingOrganization",
    }
)
"""Attributes of which single words say something, as the names of a street and a town do."""
_REMARKS = frozenset(
    {
        "AdditionalPatientHistory",
        "MilitaryRank",
        "Occupation",
        "PatientComments",
        "PatientReligiousPreference",
        "PatientTransportArrangements",
        "VisitComments",
    }
)
"""Attributes of which single words say nothing, and digits do."""
_NAMES = frozenset({"CameraOwnerName", "TopicAuthor"})
"""Names of persons that the dictionary keeps as other text."""
_CODED = frozenset(
    {
        "ContentCreatorIdentificationCodeSequence",
        "HangingProtocolUserIdentificationCodeSequence",
        "InstitutionCodeSequence",
        "InstitutionalDepartmentTypeCodeSequence",
        "PatientInsurancePlanCodeSequence",
        "PersonIdentificationCodeSequence",
        "VerifyingObserverIdentificationCodeSequence",
    }
)
"""Sequences of which the codes are persons and institutions."""
IDENTIFIERS = (
    _OF_PATIENT
    | _PLACES
    | _REMARKS
    | {
        "BarcodeValue",
        "CassetteID",
        "ClinicalTrialProtocolEthicsCommitteeApprovalNumber",
        "ClinicalTrialSiteID",
        "ContainerComponentID",
        "ContainerIdentifier",
        "DetectorID",
        "DeviceAlternateIdentifier",
        "DeviceSerialNumber",
        "DigitalSignatureUID",
        "FillerOrderNumberImagingServiceRequest",
        "FillerOrderNumberProcedure",
        "GantryID",
        "GeneratorID",
        "HardcopyCreationDeviceID",
        "InterpretationID",
        "LensSerialNumber",
        "ManufacturerDeviceIdentifier",
        "ModifyingDeviceID",
        "NetworkID",
        "OrderCallbackPhoneNumber",
        "OrderCallbackTelecomInformation",
        "PatientBirthName",
        "PatientMotherBirthName",
        "PatientTelecomInformation",
        "PerformedProcedureStepID",
        "PerformedStationName",
        "PersonTelecomInformation",
        "PersonTelephoneNumbers",
        "PlacerOrderNumberImagingServiceRequest",
        "PlacerOrderNumberProcedure",
        "PlateID",
        "ReferringPhysicianTelephoneNumbers",
        "RequestedProcedureID",
        "ResultsID",
        "ScheduledProcedureStepID",
        "ScheduledStationName",
        "SecondaryCaptureDeviceID",
        "SlideIdentifier",
        "SourceSerialNumber",
        "SpecimenAccessionNumber",
        "SpecimenIdentifier",
        "StationName",
        "TelephoneNumberTrial",
        "TreatmentMachineName",
        "UniqueDeviceIdentifier",
        "XRayDetectorID",
        "XRayDetectorLabel",
        "XRaySourceID",
    }
)
"""Attributes whose value, found anywhere in the new file, says who the patient, the staff, the place or the device was."""
_TEXTUAL = frozenset({"AE", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "UC", "UI", "UT"})
_TITLES = frozenset({"DR", "FRAU", "HERR", "MD", "MISS", "MME", "MR", "MRS", "MS", "PHD", "PROF", "SR", "SRA"})
"""Words that are no name in names without the parts that DICOM gives them."""
_MOST_NESTED = 64
_NAME_PARTS = re.compile(r"[\s^=,.;:/|&'\\-]+")
_TOKEN_ENDS = re.compile(r"[\s^=,;:/|&~\\]+")
_DAY = re.compile(r"(\d{4})[.:]?(\d{2})[.:]?(\d{2})")
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_DIGITS, _LETTERS = re.compile(r"\d+"), re.compile(r"[^\W\d_]+")
_SHORTEST = 4
_PART = 5
"""Characters from which on a part of an identifier counts."""
_LONG = 6
"""Characters, and bytes, of what is searched for in the bytes of a file."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What identified somebody in a file.

    Parameters
    ----------
    names
        The words of persons' names, without prefixes and suffixes, family and given name joined, and the words of streets,
        towns and institutions; folded.
    identifiers
        Identifiers, addresses, places and devices, and their parts of at least five characters; folded.
    of_patient
        Those of them that are the patient's, with the birth date.
    short_identifiers
        Those of the patient that are too short to be searched for within other text.
    uids
        UIDs that the Standard does not register.
    days
        Every day of a date or a date time, however it is written; both days if it can be read in two ways.
    placed_dates
        The values of dates and date times, by where they stand.
    raw
        Longer names, their words, identifiers and days, in the character set of the file and in Unicode, ASCII letters in
        capitals.
    """

    names: frozenset[str]
    identifiers: frozenset[str]
    of_patient: frozenset[str]
    short_identifiers: frozenset[str]
    uids: frozenset[str]
    days: frozenset[date]
    placed_dates: frozenset[tuple[Path, str]]
    raw: frozenset[bytes]

    @staticmethod
    def of(dataset: Dataset) -> "Identity":
        """Collect it from a data set with all that is nested in it, private attributes too.

        The attribute decides what a value is, whatever value representation it carries; so does the value representation.
        """
        finder = _Finder(convert_encodings(dataset.get("SpecificCharacterSet")))
        for path, _, element in walk(dataset):
            for text in texts_of(element, finder.encodings):
                finder.look_at(path, element, text)
        return Identity(**{name: frozenset(values) for name, values in finder.found.items()})


def walk(dataset: Dataset, path: Path = ()) -> Iterator[tuple[Path, Dataset, DataElement]]:
    """Yield every element that is no sequence, with the tags and positions that lead to it, and the item in which it stands.

    Raises
    ------
    UnreadableError
        `RESOURCE_LIMIT` where sequences are nested so deeply that no program is sure to write them again.
    """
    if len(path) > 2 * _MOST_NESTED:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT, f"Sequences are nested more than {_MOST_NESTED} deep in the DICOM file. Export it again."
        )
    for tag in sorted(dataset.keys()):
        element = dataset[tag]
        if element.VR == "SQ":
            for position, item in enumerate(element.value or ()):
                yield from walk(item, (*path, int(tag), position))
        else:
            yield (*path, int(tag)), dataset, element


def texts_of(element: DataElement, encodings: Iterable[str] = ()) -> list[str]:
    """Return the values of an element as stripped texts, in order, without empty ones.

    Bytes count if all of them are printable, in ASCII or, for attributes of the dictionary that hold text, in an encoding.
    """
    value = element.value
    values = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    own = encodings if isinstance(value, bytes) and _representations(element) & _TEXTUAL else ()
    return [text for one in values if (text := as_text(one, own))]


def as_text(value: Any, encodings: Iterable[str] = ()) -> str:
    """Return one value as a stripped text; a tag is a number."""
    if isinstance(value, bytes):
        short = value[:4096].rstrip(b"\0 ")
        for encoding in ("ascii", *encodings, "utf-8") if encodings else ("ascii",):
            try:
                text = short.decode(encoding)
            except (UnicodeDecodeError, LookupError):
                continue
            return text.strip() if text.isprintable() else ""
        return ""
    if isinstance(value, BaseTag):
        return str(int(value))
    return "" if value is None else str(value).strip(" \0")


def _representations(element: DataElement) -> set[str]:
    """Return the value representation that an element has, with those that the dictionary gives its attribute."""
    known = dictionary_VR(element.tag).split(" or ") if dictionary_has_tag(element.tag) else ()
    return {str(element.VR), *known}


class _Finder:
    """Holds what was found so far; the encodings are those of the file."""

    def __init__(self, encodings: list[str]) -> None:
        self.found: dict[str, set[Any]] = {field.name: set() for field in fields(Identity)}
        self.encodings = encodings

    def look_at(self, path: Path, element: DataElement, text: str) -> None:
        """Sort one value of an element."""
        kinds, keyword = _representations(element), element.keyword
        of_coded = keyword in ("CodeMeaning", "CodeValue") and _is_coded(path)
        if "PN" in kinds or keyword in _NAMES:
            self._add_name(text)
        elif keyword in IDENTIFIERS or "AE" in kinds or of_coded:
            self._add_identifier(text, keyword)
            if keyword in _PLACES or keyword in _OF_PATIENT or (of_coded and keyword == "CodeMeaning"):
                self._add_places(text)
        elif "UI" in kinds:
            if _UID.fullmatch(text) and not is_registered(text):
                self.found["uids"].add(text)
        elif kinds & {"DA", "DT"}:
            self._add_date(path, text, keyword)

    def _add_name(self, text: str) -> None:
        for group in re.split(r"[=\\]", text):
            parts = [part for part in group.split("^")[:3] if part.strip()]
            words = {word for part in parts for word in _NAME_PARTS.split(part) if len(word) > 1}
            words -= {word for word in words if "^" not in group and folded(word) in _TITLES}
            whole = {squeezed("".join(order)) for order in (parts, parts[::-1], parts[:2], parts[1::-1])}
            whole = {one for one in whole if len(one) > 1}
            self.found["names"] |= {form for word in words | whole for form in name_forms(word)}
            for one in (*words, *whole, *parts):
                self._add_raw(one, 2 if is_ideographic(one) else _LONG)

    def _add_places(self, text: str) -> None:
        """Add the words that can be the name of somebody or of some place."""
        words = {word for word in _LETTERS.findall(text) if len(word) >= _PART and not is_common(word)}
        self.found["names"] |= {form for word in words for form in name_forms(word)}
        for word in words:
            self._add_raw(word, _LONG)

    def _add_identifier(self, text: str, keyword: str) -> None:
        """Add an identifier with its parts: MRN4471230 has 4471230, and so has 4471230^^^HOSP."""
        if is_registered(text):
            return
        tokens = () if keyword in _REMARKS else _TOKEN_ENDS.split(text)
        parts = {token for token in tokens if any(map(str.isdigit, token))}
        parts |= {run for form in (text, *map(squeezed, tokens)) for run in _DIGITS.findall(form)}
        parts |= {run.lstrip("0") for run in parts if run.isdigit()}
        added = {folded(part) for part in parts if len(part) >= _PART} | {folded(text)}
        for one in (text, *added):
            self._add_raw(one, _LONG)
        added = {one for one in added if len(one) >= _SHORTEST} - PLACEHOLDERS
        self.found["identifiers"] |= added
        if keyword in _OF_PATIENT:
            self.found["of_patient"] |= added
        if keyword in _SHORT_TOO and len(text) < _SHORTEST:
            self.found["short_identifiers"].add(text.upper())

    def _add_date(self, path: Path, text: str, keyword: str) -> None:
        """Add the days of a date, also of one that is no date in DICOM; what is no day at all is an identifier."""
        self.found["placed_dates"].add((path, text))
        match = _DAY.match(text)
        days = days_in("".join(match.groups()) if match else text) or days_in(text)
        if match:
            days = {day for day in days if f"{day:%Y%m%d}" == "".join(match.groups())} or days
        self.found["days"] |= days
        written = {f"{day:%Y%m%d}" for day in days}
        if keyword == "PatientBirthDate":
            self.found["of_patient"] |= written
        for one in written - PLACEHOLDERS:
            self._add_raw(one, _LONG)
        if not days and len(text) > _LONG and text.strip("0:. ") not in ("", "-"):
            self._add_identifier(text, "")

    def _add_raw(self, text: str, shortest: int) -> None:
        """Note a text that is long enough for its bytes not to stand anywhere by chance, as it may be written."""
        if len(text) < shortest or _is_smooth(text):
            return
        forms = (text, text.upper(), text.lower())
        encodings = ("utf-8",) if text.isdigit() else ("utf-8", "utf-16-le", "utf-16-be")
        raw = {form.encode(encoding, "replace").upper() for form in forms for encoding in encodings}
        raw |= {encode_string(form, self.encodings).upper() for form in forms}
        self.found["raw"] |= {one for one in raw if len(one) >= _LONG}


def _is_smooth(text: str) -> bool:
    """Say whether digits are such as the bytes of a smooth picture have them: 111111, 112233, 123456."""
    return text.isdigit() and all(abs(ord(one) - ord(other)) <= 1 for one, other in pairwise(text))


def _is_coded(path: Path) -> bool:
    """Say whether a coded entry names a person or an institution."""
    return any(keyword_for_tag(tag) in _CODED for tag in path[:-1] if tag > 0xFFFF)
