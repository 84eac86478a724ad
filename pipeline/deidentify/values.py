"""What stands in an attribute in place of what identifies: dummy values, and text of which every word is known to be safe."""

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from pydicom._uid_dict import UID_dictionary
from pydicom.multival import MultiValue

TEXT = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""Value representations that hold words."""
FREE_TEXT = TEXT | {"UR"}
"""Those and addresses of the web: what may hold anything."""
TEMPORAL = frozenset({"DA", "DT", "TM"})
DUMMY_TEXT = "ANONYMIZED"
REPLACEABLE = FREE_TEXT | {"AS", "CS", "TM"}
"""Those in which one value can be replaced where it repeats something that identifies."""

_DUMMIES: dict[str, Any] = {
    **dict.fromkeys((*TEXT, "CS"), DUMMY_TEXT),
    **dict.fromkeys(("FL", "FD", "SL", "SS", "SV", "UL", "US", "UV", "AT"), 0),
    **dict.fromkeys(("DS", "IS"), "0"),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN"), bytes(8)),
    "AS": "000Y",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "UR": "urn:anonymized",
}
_CLASSES = frozenset({"SOP Class", "Meta SOP Class", "Service Class", "Transfer Syntax"})
_NEWER = frozenset(
    {
        *(f"1.2.840.10008.1.2.{number}" for number in ("4.110", "4.111", "4.112", "8.1")),
        *(f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("66.7", "66.8", "9.100.1", "9.100.2", "601.3", "601.4", "601.5")),
    }
)
"""Syntaxes (JPEG XL, deflated frames) and classes (label and height maps, waveforms) that pydicom 3.0 does not know yet."""
_WORDS = re.compile(r"[^\W_]+")


def dummy(value_representation: str) -> Any:
    """Return a value that says nothing and conforms to a value representation (PS3.5 6.2).

    Raises
    ------
    KeyError
        For a sequence, a UID, and what is no value representation.
    """
    return _DUMMIES[value_representation]


def as_list(value: Any) -> list[Any]:
    """Return the values of an element, none where it is empty."""
    if value is None or (isinstance(value, str | bytes) and not value):
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def is_class(uid: str) -> bool:
    """Say whether a UID is a class or a transfer syntax that the Standard registers (PS3.6 Annex A)."""
    return uid in _NEWER or (uid in UID_dictionary and UID_dictionary[uid][1] in _CLASSES)


def is_registered(uid: str) -> bool:
    """Say whether the Standard registers a UID, as a class, a syntax or anything else: it identifies no instance."""
    return uid in _NEWER or uid in UID_dictionary


def is_safe(texts: Iterable[Any]) -> bool:
    """Say whether every word of some texts is one that describes images and never a person."""
    safe = _safe_words()
    return all(word in safe for text in texts for word in _WORDS.findall(str(text).lower()))


@cache
def _safe_words() -> frozenset[str]:
    lines = resources.files(__package__).joinpath("safe_words.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())
