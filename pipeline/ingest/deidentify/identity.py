"""Collects what identifies somebody in a file before it is de-identified, by a list of its own, not by the Standard's table."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from pydicom._uid_dict import UID_dictionary
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
SHORTEST = 4


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
        Longer texts as they stood in the file, in its character set.
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
        found: dict[str, set[Any]] = {field.name: set() for field in fields(Identity)}
        for path, element in walk(dataset):
            for text in texts_of(element):
                _sort(path, element, text, found)
        return Identity(**{name: frozenset(values) for name, values in found.items()})


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


def _sort(path: Path, element: DataElement, text: str, found: dict[str, set[Any]]) -> None:
    if element.VR == "PN":
        for group in text.split("="):
            words = (word.upper() for part in group.split("^")[:3] for word in _NAME_PARTS.split(part))
            found["names"] |= {word for word in words if len(word) > 1}
        original = getattr(element.value, "original_string", None)
        found["raw"] |= {original} if isinstance(original, bytes) else {text.encode("utf-8", "replace")}
    elif element.keyword in IDENTIFIERS or element.VR == "AE":
        kind = "identifiers" if len(text) >= SHORTEST else "short_identifiers" if element.keyword in _OF_PATIENT else ""
        found.get(kind, set()).add(text.upper())
        found["raw"].add(text.encode("utf-8", "replace"))
    elif element.VR == "UI" and text not in UID_dictionary and not element.keyword.endswith("ClassUID"):
        found["uids"].add(text)
    elif element.VR in ("DA", "DT"):
        found["placed_dates"].add((path, text))
        found["dates"] |= {form for day in _DATE.findall(text.replace(".", "")) for form in _forms(*day)}


def _forms(year: str, month: str, day: str) -> tuple[str, ...]:
    return (
        f"{year}{month}{day}",
        f"{year}-{month}-{day}",
        f"{day}.{month}.{year}",
        f"{day}/{month}/{year}",
        f"{month}/{day}/{year}",
    )
