"""Takes ages out of measurements, and great ages out of everything, since they tell who somebody is."""

from pydicom.dataset import Dataset

from pipeline.deidentify.options import Keep
from pipeline.deidentify.values import as_list

_OLDEST = 89
_YEARS = "a"
_AGES = frozenset({"121033", "397669002", "424144002", "445518008", "30525-0"})
"""Subject Age (DCM), age of a person (SNOMED CT), age (LOINC)."""
_PER_YEAR = {_YEARS: 1.0, "mo": 12.0, "wk": 52.18, "d": 365.25, "h": 8766.0}
_NUMERIC = ("NumericValue", "FloatingPointValue", "RationalNumeratorValue")


def limit_ages(dataset: Dataset, keep: frozenset[Keep]) -> None:
    """Set ages above 89 years to 90, in place, in every attribute of the type Age String (AS) and every measured value.

    A measured value counts as an age where its unit is the year, or its concept is an age (PS3.3 C.17.3, C.18.1). Without
    `Keep.PATIENT` none is kept: it becomes 0.
    """
    is_kept = Keep.PATIENT in keep
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value or ():
                limit_ages(item, keep)
        elif element.VR == "AS" and any(is_great_age(str(one)) for one in as_list(element.value)):
            element.value = f"{_OLDEST + 1:03d}Y"
    _limit_measured(dataset, _has_age(dataset), is_kept)
    for measured in dataset.get("MeasuredValueSequence") or ():
        _limit_measured(measured, _has_age(dataset) or _unit(measured) == _YEARS, is_kept)


def is_great_age(text: str) -> bool:
    """Say whether an Age String (AS) is one of more than 90 years, which stands in no de-identified file."""
    text = text.strip()
    return text.endswith("Y") and text[:-1].isdecimal() and int(text[:-1]) > _OLDEST + 1


def _limit_measured(dataset: Dataset, is_age: bool, is_kept: bool) -> None:
    if not is_age and _unit(dataset) != _YEARS:
        return
    most = (_OLDEST + 1) * _PER_YEAR.get(_unit(dataset), 1.0) if is_kept else 0.0
    for keyword in _NUMERIC:
        values = [min(float(one), most) for one in as_list(dataset.get(keyword))]
        if keyword in dataset and values != [float(one) for one in as_list(dataset.get(keyword))]:
            dataset[keyword].value = [f"{one:g}" for one in values] if dataset[keyword].VR == "DS" else values


def _has_age(dataset: Dataset) -> bool:
    return bool(_codes(dataset, "ConceptNameCodeSequence") & _AGES)


def _unit(dataset: Dataset) -> str:
    return next(iter(_codes(dataset, "MeasurementUnitsCodeSequence")), "")


def _codes(dataset: Dataset, keyword: str) -> set[str]:
    return {str(code.get("CodeValue") or "").strip() for code in dataset.get(keyword) or ()}
