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

from pipeline.errors import Reason, UnreadableError
from pipeline.ingest.deidentify.search import folded, is_ideographic, name_forms, squeezed

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
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC", "JAN")
_MOST_NESTED = 64
_NAME_PARTS = re.compile(r"[\s^=,.'-]+")
_DATE = re.compile(r"^(\d{4})(\d{2})(\d{2})")
_OF_PATIENT = frozenset({"PatientID", "OtherPatientIDs", "AccessionNumber"})
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_SHORTEST = 4
_LONG = 6
"""Characters, and bytes, of what is searched for in the bytes of a file."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What identified somebody in a file.

    Parameters
    ----------
    names
        The words of persons' names, without prefixes and suffixes, and family and given name joined; folded.
    identifiers
        Identifiers, addresses, places and devices, folded.
    short_identifiers
        Those of the patient that are too short to be searched for within other text.
    uids
        UIDs that the Standard does not register.
    dates
        Days as eight digits, and as they are written in several countries.
    placed_dates
        The values of dates and date times, by where they stand.
    raw
        Longer names, their words and identifiers in the character set of the file and in Unicode, ASCII letters in capitals.
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
    """Yield every element that is no sequence, with the tags and positions that lead to it.

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
        elif element.VR == "UI":
            self._add_uid(element, text)
        elif element.VR in ("DA", "DT"):
            self.found["placed_dates"].add((path, text))
            self.found["dates"] |= {form for day in _DATE.findall(text.replace(".", "")) for form in _forms(*day)}

    def _add_uid(self, element: DataElement, text: str) -> None:
        if _UID.fullmatch(text) and text not in UID_dictionary and not element.keyword.endswith("ClassUID"):
            self.found["uids"].add(text)

    def _add_name(self, text: str) -> None:
        for group in text.split("="):
            parts = [part for part in group.split("^")[:3] if part.strip()]
            words = {word for part in parts for word in _NAME_PARTS.split(part) if len(word) > 1}
            whole = {squeezed("".join(order)) for order in (parts, parts[::-1], parts[:2], parts[1::-1])}
            whole = {one for one in whole if len(one) > 1}
            self.found["names"] |= {form for word in words | whole for form in name_forms(word)}
            for one in (*words, *whole, *parts):
                self._add_raw(one, 2 if is_ideographic(one) else _LONG)

    def _add_identifier(self, text: str, of_patient: bool) -> None:
        if text in UID_dictionary:
            return
        self._add_raw(text, _LONG)
        if len(text) >= _SHORTEST:
            self.found["identifiers"].add(folded(text))
        elif of_patient:
            self.found["short_identifiers"].add(text.upper())

    def _add_raw(self, text: str, shortest: int) -> None:
        """Note a text that is long enough for its bytes not to stand anywhere by chance, as it may be written."""
        forms = (text, text.upper(), text.lower()) if len(text) >= shortest else ()
        raw = {encoded.upper() for form in forms for encoded in (encode_string(form, self._encodings), form.encode())}
        self.found["raw"] |= {one for one in raw if len(one) >= _LONG}


def _forms(year: str, month: str, day: str) -> tuple[str, ...]:
    name, plain_day, plain_month = _MONTHS[int(month) % 13 - 1], str(int(day)), str(int(month))
    return (
        f"{year}{month}{day}",
        *(sign.join((year, month, day)) for sign in "-:./"),
        *(sign.join((day, month, year)) for sign in "-./"),
        *(sign.join((month, day, year)) for sign in "-./"),
        *(sign.join((plain_day, plain_month, year)) for sign in "-./"),
        *(sign.join((one, name, year)) for sign in "- " for one in (day, plain_day)),
        *(f"{name} {one}, {year}" for one in (day, plain_day)),
    )
