"""Holds value representations in a file against the data dictionary: what stands in another kind of value could be anything."""

import re

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from pipeline.deidentify.values import DUMMY_TEXT, FREE_TEXT, as_list

BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW"})
_NUMBERS = frozenset({"AT", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"})
_STRINGS = frozenset({"AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"}) | FREE_TEXT
_KINDS = {**dict.fromkeys(BINARY, "bytes"), **dict.fromkeys(_NUMBERS, "number"), **dict.fromkeys(_STRINGS, "text")}
_CODE_STRING = re.compile(r"[A-Z0-9 _]{0,16}")
_CHARACTER_SET = Tag("SpecificCharacterSet")
_UNICODE = "ISO_IR 192"


def settled(dataset: Dataset, tag: BaseTag) -> str:
    """Make an element have the value representation of the dictionary, or one of the same kind, and return it.

    Numbers of any width count as one kind, and so do bytes; text takes the very value representation that the dictionary gives
    (PS3.6). An element of another kind is removed, as is text that does not fit.

    Returns
    -------
    str
        Empty where the element was removed. For an attribute that the dictionary does not know, what the file says.
    """
    element = dataset[tag]
    found = str(element.VR)
    expected = dictionary_VR(tag) if dictionary_has_tag(tag) else found
    kind, kinds = _KINDS.get(found), {_KINDS.get(one) for one in expected.split(" or ")}
    if found != "UN" and (found == expected or (kind in kinds and kind in ("bytes", "number"))):
        return found
    if kind in kinds and kind == "text" and _rewritten(dataset, element, expected):
        return expected
    del dataset[tag]
    return ""


def _rewritten(dataset: Dataset, element: DataElement, representation: str) -> bool:
    try:
        values = [str(one) for one in as_list(element.value)]
        dataset[element.tag] = DataElement(element.tag, representation, values[0] if len(values) == 1 else values or None)
    except (ValueError, ArithmeticError):
        return False
    return True


def settle_codes(element: DataElement) -> None:
    """Replace code strings (CS) that are none (PS3.5 6.2); small letters become capitals, as the Standard asks.

    A character set that the Standard does not define gives way to Unicode, in which all text can be written.
    """
    values = [str(one).strip(" \0").upper() for one in as_list(element.value)]
    if element.tag == _CHARACTER_SET:
        made = values if set(values) <= python_encoding.keys() else [_UNICODE]
    else:
        made = [one if _CODE_STRING.fullmatch(one) else DUMMY_TEXT for one in values]
    element.value = made[0] if len(made) == 1 else made or None
