"""Applies the table to a data set, recursively: every attribute is removed, emptied, replaced, cleaned or kept."""

import re
from dataclasses import dataclass
from typing import Any

from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from pipeline.ingest.deidentify.dates import shift_date, shift_date_time
from pipeline.ingest.deidentify.options import Keep
from pipeline.ingest.deidentify.secret import Secret
from pipeline.ingest.deidentify.table import Action, Rule, find
from pipeline.ingest.deidentify.values import FREE_TEXT, TEMPORAL, TEXT, as_list, dummy, is_safe

_PATIENT_ID = Tag("PatientID")
_PATIENT_NAME = Tag("PatientName")
_FORMS = {"UI": re.compile(r"[0-9.]{0,64}"), "AS": re.compile(r"[0-9]{3}[DWMY]")}
_TIME = re.compile(r"[+-]?[0-9.:]{2,16}")
_STRUCTURED = "clean_structured_content"
_CLASSES = ("ClassUID", "TransferSyntaxUID", "SOPClassesInStudy", "SOPClassesSupported")


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


def clean(dataset: Dataset, context: Context) -> None:
    """De-identify a data set in place, with all that is nested in it (PS3.15 E.1.1 and Table E.1-1)."""
    _clean(dataset, context, words=True)
    for tag in (_PATIENT_ID, _PATIENT_NAME):
        dataset[tag] = DataElement(tag, dictionary_VR(tag), context.pseudonym)


def _clean(dataset: Dataset, context: Context, words: bool) -> None:
    """Apply the table; without `words`, text that the table does not mention is replaced too."""
    for tag in list(dataset.keys()):
        rule, representation = find(tag), _representation(dataset, tag)
        action = rule.action(context.keep) if rule else _unlisted(tag, representation, context.keep)
        if action is Action.KEEP and not _is_valid(dataset, tag, representation):
            action = Action.UID if representation == "UI" else Action.DUMMY
        if representation == "SQ":
            _apply_to_sequence(dataset, tag, action, context, words and (rule is None or _keeps_words(rule, action)))
        elif action is not Action.KEEP:
            _apply(dataset, tag, action, context, representation)
        elif not words and representation in TEXT:
            _apply(dataset, tag, Action.DUMMY, context, representation)


def _is_valid(dataset: Dataset, tag: BaseTag, representation: str) -> bool:
    """Say whether UIDs and ages have the form of such (PS3.5 6.2, 9.1); anything else could be text."""
    form = _FORMS.get(representation)
    return form is None or all(form.fullmatch(str(value).strip()) for value in as_list(dataset[tag].value))


def _keeps_words(rule: Rule, action: Action) -> bool:
    """Say whether text may stay in the items of a sequence: where their structure is the content, they are not all replaced."""
    return action is not Action.DUMMY or _STRUCTURED in rule.options


def _representation(dataset: Dataset, tag: BaseTag) -> str:
    """Return the value representation in the file, or the dictionary's where the file says none (implicit VR, UN)."""
    found = dataset.get_item(tag).VR
    if found not in (None, "UN"):
        return str(found)
    return dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"


def _unlisted(tag: BaseTag, representation: str, keep: frozenset[Keep]) -> Action:
    """Decide on an attribute that the table does not mention: what may hold anything is not kept."""
    if tag.element == 0 or tag.group < 0x0008 or tag.group >> 8 == 0x60:
        return Action.REMOVE
    if representation == "UN" or not dictionary_has_tag(tag):
        return Action.REMOVE
    if representation == "UI":
        return Action.KEEP if Keep.UIDS in keep or keyword_for_tag(tag).endswith(_CLASSES) else Action.UID
    if representation in TEMPORAL:
        return Action.CLEAN if Keep.DATES in keep else Action.DUMMY
    if representation in FREE_TEXT:
        return Action.CLEAN if Keep.DESCRIPTORS in keep else Action.DUMMY
    return Action.KEEP


def _apply_to_sequence(dataset: Dataset, tag: BaseTag, action: Action, context: Context, words: bool) -> None:
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
    if action is Action.DUMMY:
        nested_id = tag == _PATIENT_ID and values
        replaced = [context.secret.pseudonym(str(values[0]).strip())] if nested_id else [dummy(representation)] * bool(values)
    if action is Action.REMOVE:
        del dataset[tag]
    else:
        made = replaced or []
        dataset[tag] = DataElement(tag, representation, made[0] if len(made) == 1 else made or None)


def _uid(uid: str, context: Context) -> str:
    """Return what replaces a UID; those that the Standard registers identify no instance and stay."""
    return uid if not uid or uid in UID_dictionary else context.secret.uid(str(UID(uid.strip())))


def _cleaned(tag: BaseTag, values: list[Any], context: Context, representation: str) -> list[Any] | None:
    """Return the values without what identifies, None where that cannot be told apart."""
    if representation in ("DA", "DT"):
        shift = shift_date if representation == "DA" else shift_date_time
        moved = [shift(str(value), context.offset_days) for value in values]
        return None if None in moved else list(moved)
    if representation == "TM" or tag == Tag("TimezoneOffsetFromUTC"):
        return values if all(_TIME.fullmatch(str(value).strip()) for value in values) else None
    return values if representation in TEXT and is_safe(values) else None


def _without_options(tag: BaseTag) -> Action:
    rule = find(tag)
    return rule.action(()) if rule else Action.DUMMY
