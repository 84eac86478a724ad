"""Collects what identifies somebody in a file before it is de-identified, by a list of its own, not by the Standard's table."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from pydicom._uid_dict import UID_dictionary
from pydicom.charset import convert_encodings, encode_string
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

Path = tuple[int, ...]
IDENTIFIERS = frozenset(
    {
        "AccessionNumber",
        "AdditionalPatientHistory",
        "AdmissionID",
        "AssignedLocation",
        "BarcodeValue",
        "CassetteID",
        "CountryOfResidence",
        "CurrentPatientLocation",
        "DetectorID",
        "DeviceSerialNumber",
        "DigitalSignatureUID",
        "DistributionAddress",
        "FillerOrderNumberImagingServiceRequest",
        "FillerOrderNumberProcedure",
        "GantryID",
        "GeneratorID",
        "InstitutionAddress",
        "InstitutionName",
        "InstitutionalDepartmentName",
        "InsurancePlanIdentification",
        "IssuerOfAdmissionID",
        "IssuerOfPatientID",
        "LensSerialNumber",
        "MedicalRecordLocator",
        "MilitaryRank",
        "Occupation",
        "OtherPatientIDs",
        "PatientAddress",
        "PatientBirthName",
        "PatientComments",
        "PatientID",
        "PatientInstitutionResidence",
        "PatientInsurancePlanCodeSequence",
        "PatientMotherBirthName",
        "PatientReligiousPreference",
        "PatientTelecomInformation",
        "PatientTelephoneNumbers",
        "PerformedLocation",
        "PerformedProcedureStepID",
        "PerformedStationName",
        "PersonAddress",
        "PersonTelecomInformation",
        "PersonTelephoneNumbers",
        "PlacerOrderNumberImagingServiceRequest",
        "PlacerOrderNumberProcedure",
        "PlateID",
        "ReferringPhysicianAddress",
        "ReferringPhysicianTelephoneNumbers",
        "RegionOfResidence",
        "RequestedProcedureID",
        "RequestingService",
        "ResponsibleOrganization",
        "ScheduledProcedureStepID",
        "ServiceEpisodeID",
        "SpecimenIdentifier",
        "StationName",
        "UniqueDeviceIdentifier",
        "VisitComments",
    }
)
"""Attributes whose value, found anywhere in the new file, says who the patient, the staff, the place or the device was."""
_NAME_PARTS = re.compile(r"[\s^=,.'-]+")
_DATE = re.compile(r"^(\d{4})(\d{2})(\d{2})")
_OF_PATIENT = frozenset({"PatientID", "OtherPatientIDs", "AccessionNumber"})
_SHORTEST = 4


@dataclass(frozen=True, slots=True)
class Identity:
    """What identified somebody in a file.

    Parameters
    ----------
    names
        The words of persons' names, without prefixes and suffixes, in capitals.
    identifiers
        Identifiers, addresses, places and devices, in capitals.
    short_identifiers
        Those of the patient that are too short to be searched for within other text.
    uids
        UIDs that the Standard does not register.
    dates
        Days as eight digits, and as they are written in several countries.
    placed_dates
        The values of dates and date times, by where they stand.
    raw
        Names, their words and identifiers as they stand in the file, in its character set.
    """

    names: frozenset[str]
    identifiers: frozenset[str]
    short_identifiers: frozenset[str]
    uids: frozenset[str]
    dates: frozenset[str]
    placed_dates: frozenset[tuple[Path, str]]
    raw: frozenset[bytes]

    @staticmethod
    def of(dataset: Dataset) -> "Identity":
        """Collect it from a data set with all that is nested in it, private attributes too."""
        finder = _Finder(convert_encodings(dataset.get("SpecificCharacterSet")))
        for path, element in walk(dataset):
            for text in texts_of(element):
                finder.look_at(path, element, text)
        return Identity(**{name: frozenset(values) for name, values in finder.found.items()})


def walk(dataset: Dataset, path: Path = ()) -> Iterator[tuple[Path, DataElement]]:
    """Yield every element that is no sequence, with the tags and positions that lead to it."""
    for tag in sorted(dataset.keys()):
        element = dataset[tag]
        if element.VR == "SQ":
            for position, item in enumerate(element.value or ()):
                yield from walk(item, (*path, int(tag), position))
        else:
            yield (*path, int(tag)), element


def texts_of(element: DataElement) -> list[str]:
    """Return the values of an element as stripped texts; bytes count where all of them are printable."""
    value = element.value
    values = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    return [text for one in values if (text := _text(one))]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        short = value[:4096].rstrip(b"\0 ")
        value = short.decode("ascii", "replace") if short.isascii() else ""
        return value.strip() if value.isprintable() else ""
    return "" if value is None else str(value).strip(" \0")


class _Finder:
    """Holds what was found so far; the encodings are those of the file."""

    def __init__(self, encodings: list[str]) -> None:
        self.found: dict[str, set[Any]] = {field.name: set() for field in fields(Identity)}
        self._encodings = encodings

    def look_at(self, path: Path, element: DataElement, text: str) -> None:
        """Sort one value of an element."""
        if element.VR == "PN":
            self._add_name(text)
        elif element.keyword in IDENTIFIERS or element.VR == "AE":
            self._add_identifier(text, element.keyword in _OF_PATIENT)
        elif element.VR == "UI" and text not in UID_dictionary and not element.keyword.endswith("ClassUID"):
            self.found["uids"].add(text)
        elif element.VR in ("DA", "DT"):
            self.found["placed_dates"].add((path, text))
            self.found["dates"] |= {form for day in _DATE.findall(text.replace(".", "")) for form in _forms(*day)}

    def _add_name(self, text: str) -> None:
        parts = [part for group in text.split("=") for part in group.split("^")[:3]]
        words = {word for part in parts for word in _NAME_PARTS.split(part) if len(word) > 1}
        self.found["names"] |= {word.upper() for word in words}
        self.found["raw"] |= {self._encoded(word) for word in (*words, *parts)}

    def _add_identifier(self, text: str, of_patient: bool) -> None:
        self.found["raw"].add(self._encoded(text))
        if len(text) >= _SHORTEST:
            self.found["identifiers"].add(text.upper())
        elif of_patient:
            self.found["short_identifiers"].add(text.upper())

    def _encoded(self, text: str) -> bytes:
        return encode_string(text, self._encodings)


def _forms(year: str, month: str, day: str) -> tuple[str, ...]:
    return (
        f"{year}{month}{day}",
        f"{year}-{month}-{day}",
        f"{day}.{month}.{year}",
        f"{day}/{month}/{year}",
        f"{month}/{day}/{year}",
    )
