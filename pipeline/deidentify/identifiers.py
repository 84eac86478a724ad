"""Collects identifying values of a file before it is de-identified, by its own list, not by Table E.1-1."""

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

from pipeline.deidentify.search import PLACEHOLDERS, alphanumeric, days_in, folded, is_common, is_ideographic, name_forms
from pipeline.deidentify.values import is_registered
from pipeline.errors import Reason, UnreadableError

TagPath = tuple[int, ...]
"""The tags and item positions that lead to an element."""
_PATIENT_IDENTIFIERS = frozenset(
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
_SEARCHED_IF_SHORT = frozenset({"AccessionNumber", "OtherPatientIDs", "PatientID"})
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
"""Attributes whose single words identify, as the names of a street and a town do."""
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
"""Attributes whose single words do not identify, but whose digits do."""
_PERSON_NAMES = frozenset({"CameraOwnerName", "TopicAuthor"})
"""Names of persons whose value representation is not PN."""
_IDENTIFYING_CODES = frozenset(
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
"""Sequences whose coded entries are persons and institutions."""
IDENTIFIERS = (
    _PATIENT_IDENTIFIERS
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
"""Attributes whose value, found anywhere in the new file, identifies the patient, the staff, the place or the device."""
_TEXTUAL = frozenset({"AE", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "UC", "UI", "UT"})
_TITLES = frozenset({"DR", "FRAU", "HERR", "MD", "MISS", "MME", "MR", "MRS", "MS", "PHD", "PROF", "SR", "SRA"})
"""Words that are not part of the name, if a name is written without the components of PN."""
_DEEPEST = 64
_NAME_PARTS = re.compile(r"[\s^=,.;:/|&'\\-]+")
_TOKEN_ENDS = re.compile(r"[\s^=,;:/|&~\\]+")
_DAY = re.compile(r"(\d{4})[.:]?(\d{2})[.:]?(\d{2})")
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_DIGITS, _LETTERS = re.compile(r"\d+"), re.compile(r"[^\W\d_]+")
_SHORTEST = 4
_SHORTEST_PART = 5
"""Shortest part of an identifier that counts as one itself, in characters."""
_SHORTEST_BYTES = 6
"""Shortest text that is searched for in the bytes of a file, in characters and in bytes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The identifying values of a file.

    Parameters
    ----------
    names
        Words of persons' names without prefixes and suffixes, family and given name joined, and words of streets, towns and
        institutions; folded.
    identifiers
        Identifiers, addresses, places and devices, and their parts of at least five characters; folded.
    patient_identifiers
        The patient's identifiers among them, and the birth date.
    short_identifiers
        The patient's identifiers that are too short to be searched for inside other text.
    uids
        UIDs that the Standard does not register.
    days
        Every day of a date or a date time in any spelling; both days, if it can be read in two ways.
    dated_elements
        The values of dates and date times, each with the path to its element.
    byte_strings
        Longer names, their words, identifiers and days, in the character set of the file and in Unicode, with ASCII letters in
        capitals.
    """

    names: frozenset[str]
    identifiers: frozenset[str]
    patient_identifiers: frozenset[str]
    short_identifiers: frozenset[str]
    uids: frozenset[str]
    days: frozenset[date]
    dated_elements: frozenset[tuple[TagPath, str]]
    byte_strings: frozenset[bytes]

    @staticmethod
    def of(dataset: Dataset) -> "Identity":
        """Collect it from a data set with everything that is nested in it, private attributes too.

        A value counts if its attribute identifies, whatever its value representation, or if its value representation does.
        """
        collector = _Collector(convert_encodings(dataset.get("SpecificCharacterSet")))
        for path, _, element in walk(dataset):
            for text in texts_of(element, collector.encodings):
                collector.add(path, element, text)
        return Identity(**{name: frozenset(values) for name, values in collector.found.items()})


def walk(dataset: Dataset, path: TagPath = ()) -> Iterator[tuple[TagPath, Dataset, DataElement]]:
    """Yield every element that is no sequence, with the path to it and the item that contains it.

    Raises
    ------
    UnreadableError
        `RESOURCE_LIMIT` if sequences are nested so deeply that not every program can write them again.
    """
    if len(path) > 2 * _DEEPEST:
        raise UnreadableError(
            Reason.RESOURCE_LIMIT, f"Sequences are nested more than {_DEEPEST} deep in the DICOM file. Export it again."
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

    Bytes count if all of them are printable in ASCII or, for attributes that hold text by the dictionary, in an encoding.
    """
    value = element.value
    values = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    own = encodings if isinstance(value, bytes) and _representations(element) & _TEXTUAL else ()
    return [text for one in values if (text := value_text(one, own))]


def value_text(value: Any, encodings: Iterable[str] = ()) -> str:
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
    """Return the value representation of an element, and those that the dictionary gives its attribute."""
    known = dictionary_VR(element.tag).split(" or ") if dictionary_has_tag(element.tag) else ()
    return {str(element.VR), *known}


class _Collector:
    """Collects the fields of an `Identity`; the encodings are those of the file."""

    def __init__(self, encodings: list[str]) -> None:
        self.found: dict[str, set[Any]] = {field.name: set() for field in fields(Identity)}
        self.encodings = encodings

    def add(self, path: TagPath, element: DataElement, text: str) -> None:
        """Add one value of an element, if it identifies."""
        representations, keyword = _representations(element), element.keyword
        is_coded = keyword in ("CodeMeaning", "CodeValue") and any(
            keyword_for_tag(tag) in _IDENTIFYING_CODES for tag in path[:-1] if tag > 0xFFFF
        )
        if "PN" in representations or keyword in _PERSON_NAMES:
            self._add_name(text)
        elif keyword in IDENTIFIERS or "AE" in representations or is_coded:
            self._add_identifier(text, keyword)
            if keyword in _PLACES or keyword in _PATIENT_IDENTIFIERS or (is_coded and keyword == "CodeMeaning"):
                self._add_words(text)
        elif "UI" in representations:
            if _UID.fullmatch(text) and not is_registered(text):
                self.found["uids"].add(text)
        elif representations & {"DA", "DT"}:
            self._add_date(path, text, keyword)

    def _add_name(self, text: str) -> None:
        for group in re.split(r"[=\\]", text):
            parts = [part for part in group.split("^")[:3] if part.strip()]
            words = {word for part in parts for word in _NAME_PARTS.split(part) if len(word) > 1}
            words -= {word for word in words if "^" not in group and folded(word) in _TITLES}
            joined = {alphanumeric("".join(order)) for order in (parts, parts[::-1], parts[:2], parts[1::-1])}
            joined = {one for one in joined if len(one) > 1}
            self.found["names"] |= {form for word in words | joined for form in name_forms(word)}
            for one in (*words, *joined, *parts):
                self._add_bytes(one, 2 if is_ideographic(one) else _SHORTEST_BYTES)

    def _add_words(self, text: str) -> None:
        """Add the words that can be the name of a person or a place."""
        words = {word for word in _LETTERS.findall(text) if len(word) >= _SHORTEST_PART and not is_common(word)}
        self.found["names"] |= {form for word in words for form in name_forms(word)}
        for word in words:
            self._add_bytes(word, _SHORTEST_BYTES)

    def _add_identifier(self, text: str, keyword: str) -> None:
        """Add an identifier with its parts: MRN4471230 contains 4471230, and so does 4471230^^^HOSP."""
        if is_registered(text):
            return
        tokens = () if keyword in _REMARKS else _TOKEN_ENDS.split(text)
        parts = {token for token in tokens if any(map(str.isdigit, token))}
        parts |= {digits for form in (text, *map(alphanumeric, tokens)) for digits in _DIGITS.findall(form)}
        parts |= {part.lstrip("0") for part in parts if part.isdigit()}
        added = {folded(part) for part in parts if len(part) >= _SHORTEST_PART} | {folded(text)}
        for one in (text, *added):
            self._add_bytes(one, _SHORTEST_BYTES)
        added = {one for one in added if len(one) >= _SHORTEST} - PLACEHOLDERS
        self.found["identifiers"] |= added
        if keyword in _PATIENT_IDENTIFIERS:
            self.found["patient_identifiers"] |= added
        if keyword in _SEARCHED_IF_SHORT and len(text) < _SHORTEST:
            self.found["short_identifiers"].add(text.upper())

    def _add_date(self, path: TagPath, text: str, keyword: str) -> None:
        """Add the days of a date, even if DICOM does not allow its form; a text without a day is an identifier."""
        self.found["dated_elements"].add((path, text))
        match = _DAY.match(text)
        days = days_in("".join(match.groups()) if match else text) or days_in(text)
        if match:
            days = {day for day in days if f"{day:%Y%m%d}" == "".join(match.groups())} or days
        self.found["days"] |= days
        written = {f"{day:%Y%m%d}" for day in days}
        if keyword == "PatientBirthDate":
            self.found["patient_identifiers"] |= written
        for one in written - PLACEHOLDERS:
            self._add_bytes(one, _SHORTEST_BYTES)
        if not days and len(text) > _SHORTEST_BYTES and text.strip("0:. ") not in ("", "-"):
            self._add_identifier(text, "")

    def _add_bytes(self, text: str, shortest: int) -> None:
        """Add a text in every encoding, if it is too long to occur in bytes by chance."""
        if len(text) < shortest or _is_smooth(text):
            return
        forms = (text, text.upper(), text.lower())
        encodings = ("utf-8",) if text.isdigit() else ("utf-8", "utf-16-le", "utf-16-be")
        encoded = {form.encode(encoding, "replace").upper() for form in forms for encoding in encodings}
        encoded |= {encode_string(form, self.encodings).upper() for form in forms}
        self.found["byte_strings"] |= {one for one in encoded if len(one) >= _SHORTEST_BYTES}


def _is_smooth(text: str) -> bool:
    """Return whether digits are like the bytes of a smooth picture: 111111, 112233, 123456."""
    return text.isdigit() and all(abs(ord(one) - ord(other)) <= 1 for one, other in pairwise(text))
