"""Cleans coded entries: a code that a public dictionary knows keeps its meaning, a local one only where every word is safe."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts
from pydicom.sr._snomed_dict import mapping

from pipeline.deidentify.kept import CODE_TEXT
from pipeline.deidentify.values import DUMMY_TEXT, as_list, is_safe

_OTHER_SCHEMES = {"SRT", "SNM3", "99SDM", "ACR", "BI", "C4", "I9", "I10P", "ICDO3", "ISO3166_1", "ISO639_1"}
_SCHEMES = frozenset(concepts) | _OTHER_SCHEMES
"""Coding schemes of PS3.16 Table 8-1; the designator of a local one often names a hospital."""
_NUMBERED = re.compile(r"[A-Z]{0,3}-?[0-9A-F.-]*[0-9][0-9A-F.-]*")
_VERSION = re.compile(r"[0-9._-]{0,16}")
_WORD = re.compile(r"[A-Za-z]{4}")
_SNOMED = ("SRT", "SNM3", "99SDM")


def clean_codes(dataset: Dataset) -> None:
    """Replace the text of a coded entry (PS3.3 8.8), in place, that no dictionary of codes and no list of safe words knows."""
    if not any(keyword in dataset for keyword in CODE_TEXT):
        return
    scheme = _text(dataset, "CodingSchemeDesignator")
    values = [text for keyword in ("CodeValue", "LongCodeValue") if (text := _text(dataset, keyword))]
    known = {one for value in values for one in meanings(scheme, value)}
    _replace(dataset, "CodeMeaning", _safe_meaning(_text(dataset, "CodeMeaning"), known))
    for keyword in ("CodeValue", "LongCodeValue"):
        text = _text(dataset, keyword)
        _replace(dataset, keyword, text if known or _is_code(scheme, text) else DUMMY_TEXT)
    _replace(dataset, "CodingSchemeDesignator", scheme if scheme in _SCHEMES else DUMMY_TEXT)
    version = _text(dataset, "CodingSchemeVersion")
    _replace(dataset, "CodingSchemeVersion", version if _VERSION.fullmatch(version) else DUMMY_TEXT)


def _text(dataset: Dataset, keyword: str) -> str:
    values = as_list(dataset.get(keyword))
    return "\\".join(str(value) for value in values).strip(" \0")


def _replace(dataset: Dataset, keyword: str, text: str) -> None:
    if _text(dataset, keyword) not in ("", text):
        setattr(dataset, keyword, text)


def _safe_meaning(text: str, meanings: set[str]) -> str:
    """Return a meaning as it stands, or the dictionary's, or a dummy."""
    if text.lower() in {one.lower() for one in meanings} or is_safe([text]):
        return text
    return min(meanings, default=DUMMY_TEXT)[:64]


def _is_code(scheme: str, value: str) -> bool:
    """Say whether a code that is in no dictionary can at least be no name: digits in a public scheme, or safe words."""
    if is_safe([value]):
        return True
    if scheme == "UCUM":
        return not _WORD.search(value)
    return scheme in _SCHEMES and bool(_NUMBERED.fullmatch(value))


def meanings(scheme: str, value: str) -> frozenset[str]:
    """Return what a code means by the dictionaries of PS3.16, nothing if they do not have it."""
    if scheme in _SNOMED and value in mapping["SRT"]:
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
