"""Applies the profile to a data set at every depth, and records in it that this was done (PS3.15 E.1.1, PS3.3 C.12.1.1)."""

import re
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from pipeline.deidentify.crosswalk import Secret
from pipeline.deidentify.pixels import says_no_annotation
from pipeline.deidentify.profile import (
    ALLOWED_TEXT,
    CODE_TEXT,
    PIXEL_BYTES,
    REFUSED_BYTES,
    TABLE_BYTES,
    Action,
    Keep,
    Options,
    RefusalReason,
    RefusedError,
    TableRow,
    edition,
    find_row,
    holds_class_uid,
)
from pipeline.deidentify.values import (
    BINARY,
    FREE_TEXT,
    TEMPORAL,
    TEXT,
    as_list,
    as_value,
    clean_coded_entry,
    correct_code_strings,
    correct_representation,
    dummy,
    is_class,
    is_registered,
    is_safe,
    is_time,
    is_utc_offset,
    limit_ages,
    shift_date,
    shift_date_time,
)
from pipeline.imaging.dicom.elements import texts, value

PROFILE = ("113100", "Basic Application Confidentiality Profile")
CLEAN_PIXELS = ("113101", "Clean Pixel Data Option")
_PATIENT_ID = Tag("PatientID")
_PATIENT_NAME = Tag("PatientName")
_UTC_OFFSET = Tag("TimezoneOffsetFromUTC")
_GRAPHIC_DATA = Tag("GraphicData")
_ANNOTATIONS = frozenset(
    map(Tag, ("GraphicAnnotationSequence", "GraphicGroupSequence", "GraphicLayerSequence", "VolumetricAnnotationSequence"))
)
"""Annotations drawn by hand; their modules are conditional or optional in every presentation state (PS3.3 A.33)."""
_VALID_FORMS = {
    "AS": re.compile(r"[0-9]{3}[DWMY]"),
    "UI": re.compile(r"[0-9.]{0,64}"),
}


def patient_identity(dataset: Dataset) -> str:
    """Return what distinguishes the patient from others: Patient ID and its issuer (0010,0021), else name and birth date.

    It is empty if the file has neither Patient ID (0010,0020) nor Patient's Name (0010,0010).
    """
    keywords = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")
    patient_id, issuer, name, birth_date = (str(value(dataset, keyword) or "").strip() for keyword in keywords)
    if patient_id:
        return f"{patient_id}\n{issuer}" if issuer else patient_id
    return f"{name}\n{birth_date}" if name else ""


def clean(dataset: Dataset, secret: Secret, patient: str, keep: frozenset[Keep]) -> None:
    """Apply the profile to a data set, in place, with everything that is nested in it (PS3.15 E.1.1 and Table E.1-1).

    Parameters
    ----------
    dataset
        As the file has it.
    secret
        The key from which replacements are derived.
    patient
        What distinguishes the patient from others, as `patient_identity` returns it.
    keep
        Options of the profile.

    Raises
    ------
    RefusedError
        `NOT_SUPPORTED` if the object is useless without bytes that may hold anything.
    """
    limit_ages(dataset, keep)
    _Cleaner(secret, secret.offset_days(patient), keep).clean(dataset, Action.KEEP, PIXEL_BYTES | TABLE_BYTES)
    for tag in (_PATIENT_ID, _PATIENT_NAME):
        dataset[tag] = DataElement(tag, dictionary_VR(tag), secret.pseudonym(patient))


class _Cleaner:
    """Applies the table to the data sets of one file; the patient's dates are moved by `offset_days`."""

    def __init__(self, secret: Secret, offset_days: int, keep: frozenset[Keep]) -> None:
        self._secret, self._offset_days, self._keep = secret, offset_days, keep

    def clean(self, dataset: Dataset, text_action: Action, allowed_bytes: frozenset[str]) -> None:
        """Clean a data set or an item: `text_action` is applied to text that would be kept, `allowed_bytes` are kept."""
        if text_action is not Action.DUMMY:
            clean_coded_entry(dataset)
        for tag in sorted(dataset.keys()):
            row = find_row(tag)
            action = row.action(self._keep) if row else self._action_outside_table(tag, allowed_bytes)
            action = Action.REMOVE if tag in _ANNOTATIONS else action
            representation = "" if action is Action.REMOVE else correct_representation(dataset, tag)
            if not representation:
                dataset.pop(tag, None)
            elif representation == "SQ" and action is Action.EMPTY:
                dataset[tag] = DataElement(tag, "SQ", [])
            elif representation == "SQ":
                for item in dataset[tag].value or ():
                    self.clean(item, _text_action_inside(text_action, row, action), TABLE_BYTES)
            elif action is Action.KEEP:
                self._keep_if_valid(dataset, tag, text_action, representation)
            else:
                self._apply(dataset, tag, action, representation)

    def _action_outside_table(self, tag: BaseTag, allowed_bytes: frozenset[str]) -> Action:
        """Return the action for an attribute that the table does not list; what may hold anything is not kept."""
        if tag.element == 0 or tag.group < 0x0008 or not dictionary_has_tag(tag):
            return Action.REMOVE
        keyword, representations = keyword_for_tag(tag), frozenset(dictionary_VR(tag).split(" or "))
        if keyword in REFUSED_BYTES:
            raise RefusedError(
                RefusalReason.NOT_SUPPORTED,
                "The file contains signals or surfaces as bytes, which no rule can clean. Leave it out.",
            )
        if representations & BINARY:
            return Action.KEEP if keyword in allowed_bytes else Action.REMOVE
        if representations == {"UI"}:
            return Action.KEEP if Keep.UIDS in self._keep or holds_class_uid(tag) else Action.UID
        if representations <= TEMPORAL:
            return Action.CLEAN if Keep.DATES in self._keep else Action.DUMMY
        if representations <= FREE_TEXT and keyword not in ALLOWED_TEXT:
            return Action.CLEAN if Keep.DESCRIPTORS in self._keep else Action.DUMMY
        return Action.KEEP

    def _keep_if_valid(self, dataset: Dataset, tag: BaseTag, text_action: Action, representation: str) -> None:
        """Keep a value if it has the form of its value representation and, for text, if text may stay here.

        Graphic Data (0070,0022) outside of annotations, as in reports and fiducials, keeps its number of points, which its type
        depends on; every point becomes 0, since graphics can be writing (PS3.15 E.3.3).
        """
        if representation == "CS":
            correct_code_strings(dataset[tag])
        elif tag == _GRAPHIC_DATA:
            dataset[tag].value = [0.0] * len(as_list(dataset[tag].value)) or None
        elif not _is_valid(dataset, tag, representation):
            self._apply(dataset, tag, Action.UID if representation == "UI" else Action.DUMMY, representation)
        elif representation in TEXT and (
            text_action is Action.DUMMY or (text_action is Action.CLEAN and keyword_for_tag(tag) not in CODE_TEXT)
        ):
            self._apply(dataset, tag, text_action, representation)

    def _apply(self, dataset: Dataset, tag: BaseTag, action: Action, representation: str) -> None:
        """Remove, empty, clean or replace a value."""
        values = as_list(dataset[tag].value)
        replaced: list[Any] | None = None
        if action is Action.UID:
            replaced = [self._new_uid(str(one)) for one in values]
        elif action is Action.CLEAN:
            replaced = self._cleaned(tag, values, representation)
            if replaced is None:
                row = find_row(tag)
                action = row.action(()) if row else Action.DUMMY
        if action is Action.REMOVE:
            del dataset[tag]
            return
        if action is Action.DUMMY and values:
            is_patient_id = tag == _PATIENT_ID  # of another patient, who is named in an item
            replaced = [self._secret.pseudonym(patient_identity(dataset)) if is_patient_id else dummy(representation)]
        dataset[tag] = DataElement(tag, representation, as_value(replaced or []))

    def _new_uid(self, uid: str) -> str:
        """Return the UID that replaces another; registered ones identify no instance and stay."""
        return uid if not uid or is_registered(uid) else self._secret.uid(str(UID(uid.strip())))

    def _cleaned(self, tag: BaseTag, values: list[Any], representation: str) -> list[Any] | None:
        """Return the values without identifying parts; None if these cannot be separated."""
        if representation in ("DA", "DT"):
            shift = shift_date if representation == "DA" else shift_date_time
            moved = [shift(str(one), self._offset_days) for one in values]
            return None if None in moved else list(moved)
        if representation == "TM" or tag == _UTC_OFFSET:
            has_form = is_time if representation == "TM" else is_utc_offset
            return values if all(has_form(str(one)) for one in values) else None
        return values if representation in TEXT and is_safe(values) else None


def _is_valid(dataset: Dataset, tag: BaseTag, representation: str) -> bool:
    """Return whether UIDs and ages have their form (PS3.5 6.2, 9.1), and classes and syntaxes are registered (PS3.6 A)."""
    values = [str(one).strip(" \0") for one in as_list(dataset[tag].value)]
    if holds_class_uid(tag):
        return all(one == "" or is_class(one) for one in values)
    form = _VALID_FORMS.get(representation)
    return form is None or all(form.fullmatch(one) for one in values)


def _text_action_inside(text_action: Action, row: TableRow | None, action: Action) -> Action:
    """Return the action for text in the items of a sequence; the content of a report is not replaced as a whole."""
    if text_action is Action.DUMMY or (row and action is Action.DUMMY and not row.is_structured_content):
        return Action.DUMMY
    return Action.CLEAN if action is Action.CLEAN else text_action


def record_method(dataset: Dataset, options: Options, is_image: bool) -> None:
    """Record in a data set how it was de-identified, as PS3.15 E.1.1 and PS3.3 C.12.1.1, C.7.6.1 require.

    This sets Patient Identity Removed (0012,0062), De-identification Method (0012,0063) and its Code Sequence (0012,0064, CID
    7050), Burned In Annotation (0028,0301) and Longitudinal Temporal Information Modified (0028,0303).
    """
    are_pixels_cleaned = is_image and bool(options.rectangles or options.clean_pixels)
    codes = [PROFILE]
    codes += [CLEAN_PIXELS] if are_pixels_cleaned else []
    codes += [(option.code, option.meaning) for option in Keep if option in options.keep]
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = [f"octray: {edition()}", *(meaning[:64] for _, meaning in codes)]
    dataset.DeidentificationMethodCodeSequence = [_coded_entry(code, meaning) for code, meaning in codes]
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if Keep.DATES in options.keep else "REMOVED"
    if is_image:
        image_type = [text.strip().upper() for text in texts(dataset, "ImageType")[:2]]
        if are_pixels_cleaned or says_no_annotation(dataset) or image_type == ["ORIGINAL", "PRIMARY"]:
            dataset.BurnedInAnnotation = "NO"
        else:
            dataset.pop("BurnedInAnnotation", None)


def replace_file_meta(dataset: Dataset) -> None:
    """Replace the preamble and the file meta information (PS3.10 7.1); only the transfer syntax is kept."""
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    dataset.preamble = bytes(128)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def _coded_entry(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
