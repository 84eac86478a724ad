"""Applies the table to a data set, recursively: every attribute is removed, emptied, replaced, cleaned or kept."""

import re
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from pipeline.deidentify.ages import limit_ages
from pipeline.deidentify.codes import clean_codes
from pipeline.deidentify.dates import is_time, is_zone, shift_date, shift_date_time
from pipeline.deidentify.kept import CODE_TEXT, ESSENTIAL, PIXELS, TABLES, TEXT_OF_IMAGES
from pipeline.deidentify.options import Keep, Refusal, RefusedError
from pipeline.deidentify.representation import BINARY, settle_codes, settled
from pipeline.deidentify.secret import Secret
from pipeline.deidentify.table import Action, Rule, find
from pipeline.deidentify.values import FREE_TEXT, TEMPORAL, TEXT, as_list, dummy, is_class, is_registered, is_safe
from pipeline.imaging.dicom.header import value

_PATIENT_ID = Tag("PatientID")
_PATIENT_NAME = Tag("PatientName")
_FORMS = {
    "AS": re.compile(r"[0-9]{3}[DWMY]"),
    "UI": re.compile(r"[0-9.]{0,64}"),
}
_ZONE = Tag("TimezoneOffsetFromUTC")
_STRUCTURED = "clean_structured_content"
_CLASSES = (
    *(f"{name}UID{where}" for name in ("SOPClass", "TransferSyntax") for where in ("", "InFile")),
    *("SOPClassesInSeries", "SOPClassesInStudy", "SOPClassesSupported"),
)
_GRAPHICS = frozenset(
    map(Tag, ("GraphicAnnotationSequence", "GraphicGroupSequence", "GraphicLayerSequence", "VolumetricAnnotationSequence"))
)
"""Annotations drawn by hand; their modules are conditional or optional in every presentation state (PS3.3 A.33)."""
_STROKES = Tag("GraphicData")


@dataclass(frozen=True, slots=True)
class Context:
    """What replaces identity throughout one file.

    Parameters
    ----------
    secret
        The key.
    patient
        What tells the patient from others, as it stands in the file; everything of a patient is derived from it.
    keep
        The options that keep more than the Basic Profile.
    """

    secret: Secret
    patient: str
    keep: frozenset[Keep]

    @property
    def pseudonym(self) -> str:
        """What replaces the patient's name and identifier."""
        return self.secret.pseudonym(self.patient)

    @property
    def offset_days(self) -> int:
        """By how many days the patient's dates are moved."""
        return self.secret.offset_days(self.patient)


def patient_key(dataset: Dataset) -> str:
    """Return what tells the patient from others: Patient ID (0010,0020) and its issuer (0010,0021), else name and birth date.

    Empty where there is neither.
    """
    keywords = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")
    identifier, issuer, name, born = (str(value(dataset, keyword) or "").strip() for keyword in keywords)
    if identifier:
        return f"{identifier}\n{issuer}" if issuer else identifier
    return f"{name}\n{born}" if name else ""


def clean(dataset: Dataset, context: Context) -> None:
    """De-identify a data set in place, with all that is nested in it (PS3.15 E.1.1 and Table E.1-1).

    Raises
    ------
    RefusedError
        `NOT_SUPPORTED` where the object says nothing without bytes that may hold anything.
    """
    limit_ages(dataset, context.keep)
    _clean(dataset, context, Action.KEEP, PIXELS | TABLES)
    for tag in (_PATIENT_ID, _PATIENT_NAME):
        dataset[tag] = DataElement(tag, dictionary_VR(tag), context.pseudonym)


def _clean(dataset: Dataset, context: Context, words: Action, data: frozenset[str] = TABLES) -> None:
    """Apply the table; `words` is what becomes of text that would stay, `data` which bytes do."""
    if words is not Action.DUMMY:
        clean_codes(dataset)
    for tag in sorted(dataset.keys()):
        rule = find(tag)
        action = rule.action(context.keep) if rule else _unlisted(tag, context.keep, data)
        action = Action.REMOVE if tag in _GRAPHICS else action
        representation = "" if action is Action.REMOVE else settled(dataset, tag)
        if not representation:
            dataset.pop(tag, None)
        elif representation == "SQ":
            _apply_to_sequence(dataset, tag, action, context, _inner(words, rule, action))
        elif action is Action.KEEP:
            _keep(dataset, tag, words, context, representation)
        else:
            _apply(dataset, tag, action, context, representation)


def _keep(dataset: Dataset, tag: BaseTag, words: Action, context: Context, representation: str) -> None:
    """Keep a value that has the form of its kind, and no text that may not stay where this stands.

    Strokes outside of annotations, in reports and fiducials, keep their number of points, which their type depends on; all of
    the points become 0 (PS3.15 E.3.3: graphics can be writing).
    """
    if representation == "CS":
        settle_codes(dataset[tag])
    elif tag == _STROKES:
        dataset[tag].value = [0.0] * len(as_list(dataset[tag].value)) or None
    elif not _is_valid(dataset, tag, representation):
        _apply(dataset, tag, Action.UID if representation == "UI" else Action.DUMMY, context, representation)
    elif representation in TEXT and (words is Action.DUMMY or (words is Action.CLEAN and not _is_code(tag))):
        _apply(dataset, tag, words, context, representation)


def _is_code(tag: BaseTag) -> bool:
    """Say whether this is text of a coded entry, which was cleaned before by rules of its own."""
    return keyword_for_tag(tag) in CODE_TEXT


def _is_valid(dataset: Dataset, tag: BaseTag, representation: str) -> bool:
    """Say whether UIDs and ages have the form of such (PS3.5 6.2, 9.1), and classes and syntaxes are registered (PS3.6 A)."""
    values = [str(value).strip(" \0") for value in as_list(dataset[tag].value)]
    if keyword_for_tag(tag).endswith(_CLASSES):
        return all(value == "" or is_class(value) for value in values)
    form = _FORMS.get(representation)
    return form is None or all(form.fullmatch(value) for value in values)


def _inner(words: Action, rule: Rule | None, action: Action) -> Action:
    """Say what becomes of text in the items of a sequence; where their structure is the content, it is not all replaced."""
    if words is Action.DUMMY or (rule and action is Action.DUMMY and _STRUCTURED not in rule.options):
        return Action.DUMMY
    return Action.CLEAN if action is Action.CLEAN else words


def _unlisted(tag: BaseTag, keep: frozenset[Keep], data: frozenset[str]) -> Action:
    """Decide on an attribute that the table does not mention: what may hold anything is not kept."""
    if tag.element == 0 or tag.group < 0x0008 or not dictionary_has_tag(tag):
        return Action.REMOVE
    keyword, representations = keyword_for_tag(tag), frozenset(dictionary_VR(tag).split(" or "))
    if keyword in ESSENTIAL:
        raise RefusedError(
            Refusal.NOT_SUPPORTED, "The file is signals or surfaces in bytes that no rule can clean. Leave it out."
        )
    if representations & BINARY:
        return Action.KEEP if keyword in data else Action.REMOVE
    if representations == {"UI"}:
        return Action.KEEP if Keep.UIDS in keep or keyword.endswith(_CLASSES) else Action.UID
    if representations <= TEMPORAL:
        return Action.CLEAN if Keep.DATES in keep else Action.DUMMY
    if representations <= FREE_TEXT and keyword not in TEXT_OF_IMAGES:
        return Action.CLEAN if Keep.DESCRIPTORS in keep else Action.DUMMY
    return Action.KEEP


def _apply_to_sequence(dataset: Dataset, tag: BaseTag, action: Action, context: Context, words: Action) -> None:
    if action is Action.REMOVE:
        del dataset[tag]
    elif action is Action.EMPTY:
        dataset[tag] = DataElement(tag, "SQ", [])
    else:
        for item in dataset[tag].value or ():
            _clean(item, context, words)


def _apply(dataset: Dataset, tag: BaseTag, action: Action, context: Context, representation: str) -> None:
    values = [] if action is Action.REMOVE else as_list(dataset[tag].value)
    replaced: list[Any] | None = None
    if action is Action.UID:
        replaced = [_uid(str(value), context) for value in values]
    elif action is Action.CLEAN:
        replaced = _cleaned(tag, values, context, representation)
        action = action if replaced is not None else _without_options(tag)
    if action is Action.DUMMY and values:
        replaced = [_pseudonym(dataset, context) if tag == _PATIENT_ID else dummy(representation)]
    if action is Action.REMOVE:
        del dataset[tag]
    else:
        made = replaced or []
        dataset[tag] = DataElement(tag, representation, made[0] if len(made) == 1 else made or None)


def _pseudonym(dataset: Dataset, context: Context) -> str:
    """Return what replaces the identifier of a patient who is named in an item."""
    return context.secret.pseudonym(patient_key(dataset))


def _uid(uid: str, context: Context) -> str:
    """Return what replaces a UID; those that the Standard registers identify no instance and stay."""
    return uid if not uid or is_registered(uid) else context.secret.uid(str(UID(uid.strip())))


def _cleaned(tag: BaseTag, values: list[Any], context: Context, representation: str) -> list[Any] | None:
    """Return the values without what identifies, None where that cannot be told apart."""
    if representation in ("DA", "DT"):
        shift = shift_date if representation == "DA" else shift_date_time
        moved = [shift(str(value), context.offset_days) for value in values]
        return None if None in moved else list(moved)
    if representation == "TM" or tag == _ZONE:
        is_form = is_time if representation == "TM" else is_zone
        return values if all(is_form(str(value)) for value in values) else None
    return values if representation in TEXT and is_safe(values) else None


def _without_options(tag: BaseTag) -> Action:
    rule = find(tag)
    return rule.action(()) if rule else Action.DUMMY
