"""The Standard's table as it was checked in: whole, equal to an independent transcription, and found for every kind of tag."""

import hashlib
from collections import Counter

import pytest
from pydicom.datadict import dictionary_description, dictionary_has_tag
from pydicom.sr._concepts_dict import concepts

from pipeline.deidentify import profile
from pipeline.deidentify.clean import CLEAN_PIXELS, PROFILE
from pipeline.deidentify.profile import Action, Keep

# SHA-256 over the lines "TAG ACTION", sorted, of the 652 single tags that dicom-anonymizer 2.1.0 lists for edition 2026c.
OTHER_TRANSCRIPTION = "d22962105a589e72751614d20d0d9816122bc33f3eca60671d6c52023495bd71"
NEW_IN_2026D = {"3004007F"}


def test_the_edition_is_named() -> None:
    assert profile.edition() == "DICOM PS3.15 2026d"


def test_the_basic_profile_is_that_of_another_transcription() -> None:
    single = {tag: rule.basic for tag, rule in profile.table().items() if "x" not in tag and tag != "private"}
    assert single.keys() >= NEW_IN_2026D
    lines = "".join(f"{tag} {action}\n" for tag, action in sorted(single.items()) if tag not in NEW_IN_2026D)
    assert hashlib.sha256(lines.encode()).hexdigest() == OTHER_TRANSCRIPTION


def test_every_row_is_there() -> None:
    actions = Counter(rule.basic for rule in profile.table().values())
    assert actions == {
        "X": 417, "D": 93, "U": 55, "Z": 42, "X/D": 23, "X/Z": 11, "X/Z/D": 8, "Z/D": 6, "X/Z/U*": 2,
    }  # fmt: skip
    columns = Counter(name for rule in profile.table().values() for name in rule.options)
    assert {one: columns[one.column] for one in Keep} == {
        Keep.DATES: 169, Keep.UIDS: 60, Keep.PATIENT: 19, Keep.DESCRIPTORS: 141,
    }  # fmt: skip


def test_the_names_are_those_of_the_dictionary() -> None:
    known = {tag: rule for tag, rule in profile.table().items() if tag.isalnum() and "x" not in tag and tag != "private"}
    tags = {tag: int(tag, 16) for tag in known if dictionary_has_tag(int(tag, 16))}
    differing = [tag for tag, number in tags.items() if dictionary_description(number) != known[tag].name]
    assert len(tags) > 600
    assert differing == [tag for tag in differing if "GenerationMode" in dictionary_description(tags[tag])]


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        (0x00100010, "Patient's Name"),
        (0x00091001, "Private Attributes"),
        (0x50000010, "Curve Data"),
        (0x50120005, "Curve Data"),
        (0x60023000, "Overlay Data"),
        (0x60104000, "Overlay Comments"),
        (0xFFFCFFFC, "Data Set Trailing Padding"),
    ],
)
def test_a_tag_finds_its_row(tag: int, name: str) -> None:
    rule = profile.find_row(tag)
    assert rule is not None
    assert rule.name == name


@pytest.mark.parametrize("tag", [0x00280010, 0x60000010, 0x7FE00010])
def test_what_the_table_does_not_list_has_no_row(tag: int) -> None:
    assert profile.find_row(tag) is None


@pytest.mark.parametrize(
    ("tag", "keep", "action"),
    [
        ("00100010", [], Action.EMPTY),
        ("00100020", [], Action.DUMMY),
        ("00080022", [], Action.EMPTY),
        ("00080022", [Keep.DATES], Action.CLEAN),
        ("0008002A", [], Action.DUMMY),
        ("00081140", [], Action.UID),
        ("00081140", [Keep.UIDS], Action.KEEP),
        ("00102110", [Keep.PATIENT], Action.CLEAN),
        ("00101010", [Keep.PATIENT, Keep.DATES], Action.KEEP),
        ("00081030", [Keep.DESCRIPTORS], Action.CLEAN),
        ("00100030", [Keep.DATES], Action.EMPTY),
        ("private", list(Keep), Action.REMOVE),
    ],
)
def test_options_change_actions_and_types_never_break(tag: str, keep: list[Keep], action: Action) -> None:
    assert profile.table()[tag].action(keep) is action


def test_codes_and_meanings_are_those_of_part_16() -> None:
    standard = {code: meaning for codes in concepts["DCM"].values() for code, (meaning, *_) in codes.items()}
    own = [PROFILE, CLEAN_PIXELS, *((one.code, one.meaning) for one in Keep)]
    assert {code: standard[code] for code, _ in own} == dict(own)
