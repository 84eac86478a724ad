import csv
from importlib import resources

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pipeline.frames import Frame
from pipeline.imaging.dicom import terms
from pipeline.imaging.dicom.terms import is_expected_body_part, is_expected_modality, is_expected_view, read_text
from pipeline.imaging.sources import read_frames_from_bytes
from tests.builders import make_dicom


def read(**overrides: object) -> Frame:
    (frame,) = read_frames_from_bytes(make_dicom(np.zeros((8, 8), np.uint8), **overrides), "a.dcm")
    return frame


def make_code(code: Code) -> Sequence:
    entry = Dataset()
    entry.CodeValue, entry.CodingSchemeDesignator, entry.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return Sequence([entry])


VIEWS = codes.cid4010
PARTS = codes.cid4031


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (VIEWS.AnteroPosterior, "AP"),
        (VIEWS.PosteroAnterior, "PA"),
        (VIEWS.LeftLateral, "LL"),
        (VIEWS.RightLateral, "RL"),
        (VIEWS.Frontal, "FRONTAL"),
        (Code("399067008", "SCT", "lateral"), "LATERAL"),
        (VIEWS.Tangential, "TANGENTIAL"),
        (Code("R-10206", "SRT", "antero-posterior"), "AP"),
        (Code("R-10214", "SNM3", "postero-anterior"), "PA"),
    ],
)
def test_views_in_codes_decide_before_words(code: Code, expected: str) -> None:
    assert read(ViewCodeSequence=make_code(code)).view_position == expected
    assert read(ViewCodeSequence=make_code(code), ViewPosition="LLO").view_position == expected


def test_words_decide_if_the_code_is_a_local_one() -> None:
    local = make_code(Code("399348003", "99LOCAL", "something else"))
    assert read(ViewCodeSequence=local).view_position == ""
    assert read(ViewCodeSequence=local, ViewPosition="PA").view_position == "PA"
    assert read(AnatomicRegionSequence=local, BodyPartExamined="PORTABLE CHEST").body_part == "CHEST"


def test_a_modified_view_is_another_view() -> None:
    view = make_code(VIEWS.AnteroPosterior)
    view[0].ViewModifierCodeSequence = make_code(codes.cid4011.Cephalad)
    assert not is_expected_view(read(ViewCodeSequence=view).view_position, ["AP"])


@pytest.mark.parametrize("code", VIEWS.concepts.values(), ids=str)
def test_only_plain_views_from_the_front_are_frontal(code: Code) -> None:
    frontal = code in (VIEWS.AnteroPosterior, VIEWS.PosteroAnterior, VIEWS.Frontal)
    assert is_expected_view(read(ViewCodeSequence=make_code(code)).view_position, ["PA", "AP"]) == frontal


@pytest.mark.parametrize("name", ["Chest", "Abdomen", "Pelvis", "Breast", "Hand", "Foot", "Knee", "Skull", "Shoulder", "Eye"])
def test_parts_of_the_body_in_codes(name: str) -> None:
    region = make_code(getattr(PARTS, name))
    assert read(AnatomicRegionSequence=region).body_part == name.upper()
    assert read(AnatomicRegionSequence=region, BodyPartExamined="HIP").body_part == name.upper()


def test_no_other_region_of_the_standard_is_a_chest() -> None:
    parts = {code: read(AnatomicRegionSequence=make_code(code)).body_part for code in PARTS.concepts.values()}
    assert [code for code, part in parts.items() if part == "CHEST"] == [PARTS.Chest]


CHESTS = ["CHEST", "NON GRID CHEST", "PORTABLE CHEST", "CHEST PA", "LUNG", "TORAX", "tórax", "Chest_AP", "THORAX"]
CHESTS += ["CHEST 2 VIEWS", "CHEST PA & LAT"]
CHESTS += ["CHEST LATERAL", "CHEST, PORTABLE", "  chest  ", "T\u00f3rax PA", "POITRINE FACE", "CHEST\\CHEST"]
FRONTAL = ["PA", "AP SUPINE", "PA ERECT", "FRONTAL", "A.P.", "postero-anterior", "AP/PA", "PA CHEST"]
OTHERS = ["ABDOMEN", "CHEST ABDOMEN", "CHESTABDOMEN", "CHEST LORDOTIC", "T-SPINE", "RIB", "CSPINE", "CHEST\\ABDOMEN", "HAND PA"]


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS", "ignore:.*encode value.*")
@pytest.mark.parametrize("text", CHESTS + OTHERS)
def test_words_for_a_chest(text: str) -> None:
    part = read(BodyPartExamined=text, SpecificCharacterSet="ISO_IR 192").body_part
    assert part
    assert is_expected_body_part(part, ["CHEST"]) == (text in CHESTS)
    assert is_expected_body_part(part, ["Thorax"]) == (text in CHESTS)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, True) for text in FRONTAL),
        *((text, False) for text in ("LL", "LAT", "LATERAL", "L-LAT", "LLD", "LAO", "AP OBLIQUE", "AP DECUB", "LEFT LATERAL")),
    ],
)
def test_words_for_views(text: str, expected: bool) -> None:
    view = read(ViewPosition=text).view_position
    assert view
    assert is_expected_view(view, ["PA", "AP"]) == expected


@pytest.mark.parametrize("text", ["UNKNOWN", "UNK", "unknown", "N/A", "NONE", "", "PORTABLE"])
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_what_says_nothing_is_not_known(text: str) -> None:
    frame = read(ViewPosition=text, BodyPartExamined=text)
    assert (frame.view_position, frame.body_part) == ("", "")


def test_the_text_for_the_part_names_the_view_if_nothing_else_does() -> None:
    assert read(BodyPartExamined="CHEST LATERAL").view_position == "LATERAL"
    assert read(BodyPartExamined="CHEST LATERAL", ViewPosition="PA").view_position == "PA"
    assert read(BodyPartExamined="CHEST PA LAT").view_position == ""


def test_radiographs_go_by_several_names() -> None:
    assert all(is_expected_modality(one, ["DX"]) for one in ("DX", "RG", "DR"))
    assert not any(is_expected_modality(one, ["DX"]) for one in ("CR", "CT", "OPT"))
    assert not is_expected_modality("RG", ["OPT"])


def test_the_part_of_the_body_of_a_functional_group() -> None:
    anatomy, group = Dataset(), Dataset()
    anatomy.AnatomicRegionSequence = make_code(Code("T-AA000", "SRT", "Eye"))
    group.FrameAnatomySequence = Sequence([anatomy])
    assert read(SharedFunctionalGroupsSequence=Sequence([group])).body_part == "EYE"


def test_empty_codes_are_unknown() -> None:
    frame = read(ViewCodeSequence=Sequence([Dataset()]), AnatomicRegionSequence=Sequence([]))
    assert (frame.view_position, frame.body_part) == ("", "")


def test_every_term_of_the_table_is_found_as_it_stands() -> None:
    with resources.files(terms.__package__ or "").joinpath("terms.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        found = read_text(row["term"].lower())
        known = {"body_part": found.body_parts, "view_position": found.view_positions}
        assert (known.get(row["kind"], {row["means"]}), found.other) == ({row["means"]}, "")
