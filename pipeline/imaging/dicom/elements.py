"""Reads single elements of a DICOM data set; a broken optional element is unknown, and no element can take all memory."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

LONGEST = 2**16
"""Most bytes of an element with one object for each of its values; an explicit length cannot be larger (PS3.5 7.1.2)."""
_BLOCKS = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UT", "LT", "ST", "UR", "UN")
_CODE = re.compile(r"[A-Z0-9][A-Z0-9 _]{0,31}")


@dataclass(frozen=True, slots=True)
class Scope:
    """The places that describe one frame, first to last: its own functional group, the shared one, the instance."""

    dataset: Dataset
    groups: tuple[Dataset, ...]

    @staticmethod
    def of(dataset: Dataset, index: int) -> "Scope":
        """Return the scope of the frame at `index`, which starts at 0."""
        groups = (item(dataset, "PerFrameFunctionalGroupsSequence", index), item(dataset, "SharedFunctionalGroupsSequence"))
        return Scope(dataset, tuple(group for group in groups if group is not None))

    def holder(self, macro: str, *keywords: str) -> Dataset | None:
        """Return the first of the macro's items, and then the instance, that has a value for one of the keywords."""
        candidates = self.candidates(macro)
        return next((one for one in candidates if any(value(one, key) is not None for key in keywords)), None)

    def candidates(self, macro: str) -> list[Dataset]:
        """Return the macro's items, that of the frame first, and the instance."""
        return [*(one for group in self.groups if (one := item(group, macro))), self.dataset]


def value(dataset: Dataset, keyword: str | int) -> Any:
    """Return an element's value, by its keyword or its tag; None if it is missing, empty, broken or endless."""
    try:
        tag = _tag(keyword)
        if tag not in dataset or _is_endless(dataset.get_item(tag)):
            return None
        found = dataset[tag].value
    except Exception:
        return None
    return None if found is None or (isinstance(found, str | bytes | MultiValue) and len(found) == 0) else found


@cache
def _tag(keyword: str | int) -> BaseTag:
    """Return a tag; pydicom would look it up and check it again each time."""
    return Tag(keyword)


def little_endian(dataset: Dataset, keyword: str) -> bytes:
    """Return an element's bytes as a little-endian file has them; empty if it has none.

    In a big-endian file OW is swapped as words, whatever is packed into them (PS3.5 7.3, 8.1.1); OB is not.
    """
    data = value(dataset, keyword)
    if not isinstance(data, bytes):
        return b""
    if dataset.original_encoding[1] is not False or dataset[keyword].VR == "OB":
        return data
    return np.frombuffer(data[: len(data) // 2 * 2], np.uint16).byteswap().tobytes()


def is_no_number(dataset: Dataset, keyword: str) -> bool:
    """Return whether an element has a value that is not a number, or is too long to be one."""
    if keyword not in dataset or number(dataset, keyword) is not None:
        return False
    raw = dataset.get_item(keyword).value
    return bool(raw.strip() if isinstance(raw, str | bytes) else raw)


def _is_endless(raw: object) -> bool:
    """Return whether pydicom would turn an element that is not yet parsed into millions of objects."""
    if not isinstance(raw, RawDataElement) or raw.value is None or len(raw.value) <= LONGEST:
        return False
    return (dictionary_VR(raw.tag) if raw.VR in (None, "UN") else raw.VR)[-2:] not in _BLOCKS


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none if it is missing or broken."""
    sequence = value(dataset, keyword)
    return [one for one in sequence if isinstance(one, Dataset)] if isinstance(sequence, Sequence) else []


def item(dataset: Dataset, keyword: str, index: int = 0) -> Dataset | None:
    """Return one item of a sequence; None if there is none."""
    sequence = value(dataset, keyword)
    present = isinstance(sequence, Sequence) and len(sequence) > index and isinstance(sequence[index], Dataset)
    return sequence[index] if present else None


def numbers(dataset: Dataset, keyword: str | int) -> tuple[float, ...]:
    """Return an element's numbers; none if one of them is not a finite number."""
    found = value(dataset, keyword)
    several = found if isinstance(found, MultiValue | list | tuple) else () if found is None else (found,)
    try:
        converted = tuple(float(one) for one in several)
    except (TypeError, ValueError):
        return ()
    return converted if np.isfinite(converted).all() else ()


def number(dataset: Dataset, keyword: str | int) -> float | None:
    """Return an element's first number."""
    return next(iter(numbers(dataset, keyword)), None)


def whole_number(dataset: Dataset, keyword: str) -> int | None:
    """Return an element's first number; None if it is not a whole one."""
    found = number(dataset, keyword)
    return int(found) if found is not None and found == int(found) else None


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return an element's texts as they are in the file, unchecked: for comparison only."""
    found = value(dataset, keyword)
    several = found if isinstance(found, MultiValue | list | tuple) else () if found is None else (found,)
    return tuple(str(one) for one in several)


def code(dataset: Dataset, keyword: str) -> str:
    """Return the first value of a Code String in capitals; empty if it is not valid (PS3.5 6.2)."""
    found = value(dataset, keyword)
    text = str(found[0] if isinstance(found, MultiValue) else found or "").strip().upper()
    return text if _CODE.fullmatch(text) else ""


def as_signed(word: float, signed: bool) -> float:
    """Return a value that may be negative, such as the first input of a table: some files write it as unsigned."""
    return word - 2**16 if signed and word >= 2**15 else word


def as_stored(word: float, signed: bool) -> float:
    """Return a padding value as the pixels have it: some files write it unsigned for signed pixels, or the other way round."""
    return word + 2**16 if not signed and word < 0 else as_signed(word, signed)
