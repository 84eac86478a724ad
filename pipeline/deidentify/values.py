"""Cleaning of single values: dummies, safe words, moved dates, limited ages, coded entries, and value representations."""

import re
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from functools import cache
from importlib import resources
from typing import Any, cast

from pydicom._uid_dict import UID_dictionary
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr._concepts_dict import concepts
from pydicom.sr._snomed_dict import mapping
from pydicom.tag import BaseTag, Tag

from pipeline.deidentify.profile import CODE_TEXT, Keep

# Value representations (PS3.5 6.2)

TEXT = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""Value representations that hold words."""
FREE_TEXT = TEXT | {"UR"}
"""Value representations that may hold anything: words and web addresses."""
TEMPORAL = frozenset({"DA", "DT", "TM"})
REPLACEABLE = FREE_TEXT | {"AS", "CS", "TM"}
"""Value representations in which a single value may be replaced if it repeats something identifying."""
NUMERIC = frozenset({"AT", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW"})
_BINARY_NUMBERS = NUMERIC - {"DS", "IS"}
_STRINGS = frozenset({"AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"}) | FREE_TEXT
_KINDS = {**dict.fromkeys(BINARY, "bytes"), **dict.fromkeys(_BINARY_NUMBERS, "number"), **dict.fromkeys(_STRINGS, "text")}
_CODE_STRING = re.compile(r"[A-Z0-9 _]{0,16}")
_CHARACTER_SET = Tag("SpecificCharacterSet")
_UNICODE = "ISO_IR 192"


def as_list(value: Any) -> list[Any]:
    """Return the values of an element as a list; it is empty if the element is."""
    if value is None or (isinstance(value, str | bytes) and not value):
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def as_value(values: list[Any]) -> Any:
    """Return a list as the value of an element: None if it is empty, and a single value without the list."""
    return values[0] if len(values) == 1 else values or None


def correct_representation(dataset: Dataset, tag: BaseTag) -> str:
    """Correct the value representation of an element by the data dictionary (PS3.6), in place, and return it.

    What a file writes in another kind of value could be anything. Numbers of any width count as one kind, and so do bytes; text
    gets exactly the value representation of the dictionary. An element of another kind is removed, and so is text that does
    not fit.

    Returns
    -------
    str
        Empty if the element was removed. If the dictionary does not know the attribute, the representation of the file.
    """
    element = dataset[tag]
    found = str(element.VR)
    expected = dictionary_VR(tag) if dictionary_has_tag(tag) else found
    kind, kinds = _KINDS.get(found), {_KINDS.get(one) for one in expected.split(" or ")}
    if found != "UN" and (found == expected or (kind in kinds and kind in ("bytes", "number"))):
        return found
    if kind in kinds and kind == "text":
        try:
            dataset[tag] = DataElement(tag, expected, as_value([str(one) for one in as_list(element.value)]))
        except (ValueError, ArithmeticError):
            pass
        else:
            return expected
    del dataset[tag]
    return ""


def correct_code_strings(element: DataElement) -> None:
    """Replace values that are no code strings (CS, PS3.5 6.2), in place; small letters become capitals.

    A character set that the Standard does not define becomes Unicode, which can write any text.
    """
    values = [str(one).strip(" \0").upper() for one in as_list(element.value)]
    if element.tag == _CHARACTER_SET:
        element.value = as_value(values if set(values) <= python_encoding.keys() else [_UNICODE])
    else:
        element.value = as_value([one if _CODE_STRING.fullmatch(one) else DUMMY_TEXT for one in values])


# Dummy values and safe words

DUMMY_TEXT = "ANONYMIZED"
_DUMMIES: dict[str, Any] = {
    **dict.fromkeys((*TEXT, "CS"), DUMMY_TEXT),
    **dict.fromkeys(_BINARY_NUMBERS, 0),
    **dict.fromkeys(("DS", "IS"), "0"),
    **dict.fromkeys((*BINARY, "UN"), bytes(8)),
    "AS": "000Y",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "UR": "urn:anonymized",
}
_WORD = re.compile(r"[^\W_]+")


def dummy(value_representation: str) -> Any:
    """Return the dummy value of a value representation (PS3.5 6.2).

    Raises
    ------
    KeyError
        If it is SQ, UI or unknown.
    """
    return _DUMMIES[value_representation]


def is_safe(texts: Iterable[Any]) -> bool:
    """Return whether every word of some texts describes images and never a person."""
    safe = word_list("safe_words.txt")
    return all(word in safe for text in texts for word in _WORD.findall(str(text).lower()))


@cache
def word_list(name: str) -> frozenset[str]:
    """Return the words of a list that lies beside this module."""
    lines = resources.files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


# UIDs that the Standard registers (PS3.6 Annex A)

_CLASS_KINDS = frozenset({"SOP Class", "Meta SOP Class", "Service Class", "Transfer Syntax"})
_NOT_IN_PYDICOM = frozenset(
    {
        *(f"1.2.840.10008.1.2.{number}" for number in ("4.110", "4.111", "4.112", "8.1")),
        *(f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("66.7", "66.8", "9.100.1", "9.100.2", "601.3", "601.4", "601.5")),
    }
)
"""Transfer syntaxes (JPEG XL, deflated frames) and SOP classes (label and height maps, waveforms) missing in pydicom 3.0."""


def is_class(uid: str) -> bool:
    """Return whether the Standard registers a UID as a SOP class or a transfer syntax."""
    return uid in _NOT_IN_PYDICOM or (uid in UID_dictionary and UID_dictionary[uid][1] in _CLASS_KINDS)


def is_registered(uid: str) -> bool:
    """Return whether the Standard registers a UID for any purpose: it identifies no instance."""
    return uid in _NOT_IN_PYDICOM or uid in UID_dictionary


# Dates and times (PS3.5 6.2, DA, DT and TM)

_DATE = re.compile(r"(\d{4})(\.?)(\d{2})\2(\d{2})")
_DATE_TIME = re.compile(r"(\d{4})(\d{2})?(\d{2})?(.*)", re.DOTALL)
_TIME = re.compile(r"([01]\d|2[0-3])(?:(:?)[0-5]\d(?:\2(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?")
_ZONE = re.compile(r"[+-](0\d|1[0-4])[0-5]\d")
_TIME_OF_DAY = re.compile(r"(\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?)?([+-]\d{4})?")


def shift_date(text: str, days: int) -> str | None:
    """Move a Date (DA) by days, also one with the points of ACR-NEMA 300; return None if the text is no date."""
    match = _DATE.fullmatch(text.strip())
    moved = _moved(match[1], match[3], match[4], days) if match else None
    return f"{moved:%Y%m%d}" if moved else None


def shift_date_time(text: str, days: int) -> str | None:
    """Move a Date Time (DT) by days and keep its precision, time of day and UTC offset; return None if it is none.

    If the day is missing, the first day of the month or year is moved, and the result is its month or year.
    """
    match = _DATE_TIME.fullmatch(text.strip())
    if match is None:
        return None
    year, month, day, rest = match.groups()
    moved = _moved(year, month or "01", day or "01", days)
    if moved is None or not _TIME_OF_DAY.fullmatch(rest) or (not day and rest[:1].isdigit()):
        return None
    return f"{moved:%Y%m%d}"[: 4 + len(month or "") + len(day or "")] + rest


def is_time(text: str) -> bool:
    """Return whether a text is a Time (TM), also one with the colons of ACR-NEMA 300."""
    return _TIME.fullmatch(text.strip()) is not None


def is_utc_offset(text: str) -> bool:
    """Return whether a text is an offset from UTC, as in Timezone Offset From UTC (0008,0201)."""
    return _ZONE.fullmatch(text.strip()) is not None


def _moved(year: str, month: str, day: str, days: int) -> date | None:
    try:
        moved = date(int(year), int(month), int(day)) + timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return moved if moved.year >= 1000 else None


# Ages

_OLDEST = 89
_YEARS = "a"
_AGE_CODES = frozenset({"121033", "397669002", "424144002", "445518008", "30525-0"})
"""Subject Age (DCM), age of a person (SNOMED CT), age (LOINC)."""
_PER_YEAR = {_YEARS: 1.0, "mo": 12.0, "wk": 52.18, "d": 365.25, "h": 8766.0}
_MEASURED = ("NumericValue", "FloatingPointValue", "RationalNumeratorValue")


def limit_ages(dataset: Dataset, keep: frozenset[Keep]) -> None:
    """Set ages above 89 years to 90, in place, in every Age String (AS) and every measured value.

    A measured value is an age if its unit is the year or its concept is an age (PS3.3 C.17.3, C.18.1). Without `Keep.PATIENT`
    it becomes 0.
    """
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value or ():
                limit_ages(item, keep)
        elif element.VR == "AS" and any(is_high_age(str(one)) for one in as_list(element.value)):
            element.value = f"{_OLDEST + 1:03d}Y"
    is_age = bool(_codes(dataset, "ConceptNameCodeSequence") & _AGE_CODES)
    _limit_measured(dataset, is_age, keep)
    for measured in dataset.get("MeasuredValueSequence") or ():
        _limit_measured(measured, is_age or _unit(measured) == _YEARS, keep)


def is_high_age(text: str) -> bool:
    """Return whether an Age String (AS) is above 90 years, which no de-identified file contains."""
    text = text.strip()
    return text.endswith("Y") and text[:-1].isdecimal() and int(text[:-1]) > _OLDEST + 1


def _limit_measured(dataset: Dataset, is_age: bool, keep: frozenset[Keep]) -> None:
    if not is_age and _unit(dataset) != _YEARS:
        return
    highest = (_OLDEST + 1) * _PER_YEAR.get(_unit(dataset), 1.0) if Keep.PATIENT in keep else 0.0
    for keyword in _MEASURED:
        values = [min(float(one), highest) for one in as_list(dataset.get(keyword))]
        if keyword in dataset and values != [float(one) for one in as_list(dataset.get(keyword))]:
            dataset[keyword].value = [f"{one:g}" for one in values] if dataset[keyword].VR == "DS" else values


def _unit(dataset: Dataset) -> str:
    return next(iter(_codes(dataset, "MeasurementUnitsCodeSequence")), "")


def _codes(dataset: Dataset, keyword: str) -> set[str]:
    return {str(code.get("CodeValue") or "").strip() for code in dataset.get(keyword) or ()}


# Coded entries (PS3.3 8.8): a code that a dictionary has keeps its meaning, a local code stays only if every word is safe

_OTHER_SCHEMES = {"SRT", "SNM3", "99SDM", "ACR", "BI", "C4", "I9", "I10P", "ICDO3", "ISO3166_1", "ISO639_1"}
_SCHEMES = frozenset(concepts) | _OTHER_SCHEMES
"""Coding schemes of PS3.16 Table 8-1; the designator of a local scheme often names a hospital."""
_NUMBERED_CODE = re.compile(r"[A-Z]{0,3}-?[0-9A-F.-]*[0-9][0-9A-F.-]*")
_VERSION = re.compile(r"[0-9._-]{0,16}")
_FOUR_LETTERS = re.compile(r"[A-Za-z]{4}")
_OLD_SNOMED = ("SRT", "SNM3", "99SDM")


def clean_coded_entry(dataset: Dataset) -> None:
    """Replace the text of a coded entry, in place, if neither a dictionary of codes nor the list of safe words has it."""
    if not any(keyword in dataset for keyword in CODE_TEXT):
        return
    scheme = _joined(dataset, "CodingSchemeDesignator")
    values = [text for keyword in ("CodeValue", "LongCodeValue") if (text := _joined(dataset, keyword))]
    meanings = {meaning for value in values for meaning in code_meanings(scheme, value)}
    meaning = _joined(dataset, "CodeMeaning")
    if meaning.lower() not in {one.lower() for one in meanings} and not is_safe([meaning]):
        _replace(dataset, "CodeMeaning", min(meanings, default=DUMMY_TEXT)[:64])
    for keyword in ("CodeValue", "LongCodeValue"):
        if not (meanings or _is_harmless_code(scheme, _joined(dataset, keyword))):
            _replace(dataset, keyword, DUMMY_TEXT)
    if scheme not in _SCHEMES:
        _replace(dataset, "CodingSchemeDesignator", DUMMY_TEXT)
    if not _VERSION.fullmatch(_joined(dataset, "CodingSchemeVersion")):
        _replace(dataset, "CodingSchemeVersion", DUMMY_TEXT)


def code_meanings(scheme: str, value: str) -> frozenset[str]:
    """Return what a code means by the dictionaries of PS3.16; empty if they do not have it."""
    if scheme in _OLD_SNOMED and value in mapping["SRT"]:
        scheme, value = "SCT", mapping["SRT"][value]
    return _dictionary().get((scheme, value), frozenset())


@cache
def _dictionary() -> dict[tuple[str, str], frozenset[str]]:
    """Return the meanings of codes by scheme and value, as pydicom has them from PS3.16."""
    found: dict[tuple[str, str], set[str]] = {}
    for scheme, keywords in cast(Mapping[str, Mapping[str, Mapping[str, tuple[Any, ...]]]], concepts).items():
        for codes in keywords.values():
            for value, (meaning, *_) in codes.items():
                found.setdefault((scheme, value), set()).add(meaning)
    return {key: frozenset(meanings) for key, meanings in found.items()}


def _is_harmless_code(scheme: str, value: str) -> bool:
    """Return whether a code that is in no dictionary cannot be a name: digits in a public scheme, or safe words."""
    if is_safe([value]):
        return True
    if scheme == "UCUM":
        return not _FOUR_LETTERS.search(value)
    return scheme in _SCHEMES and bool(_NUMBERED_CODE.fullmatch(value))


def _joined(dataset: Dataset, keyword: str) -> str:
    return "\\".join(str(value) for value in as_list(dataset.get(keyword))).strip(" \0")


def _replace(dataset: Dataset, keyword: str, text: str) -> None:
    if _joined(dataset, keyword):
        setattr(dataset, keyword, text)
