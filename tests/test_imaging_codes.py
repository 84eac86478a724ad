import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.records import Frame
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
        (VIEWS.Tangential, ""),
        (Code("R-10206", "SRT", "antero-posterior"), "AP"),
        (Code("R-10214", "SNM3", "postero-anterior"), "PA"),
        (Code("399348003", "99LOCAL", "something else"), ""),
    ],
)
def test_views_in_codes(code: Code, expected: str) -> None:
    assert read(ViewCodeSequence=make_code(code)).view_position == expected
    assert read(ViewCodeSequence=make_code(code), ViewPosition="LLO").view_position == "LLO"


@pytest.mark.parametrize("name", ["Chest", "Abdomen", "Pelvis", "Breast", "Hand", "Foot", "Knee", "Skull", "Shoulder", "Eye"])
def test_parts_of_the_body_in_codes(name: str) -> None:
    region = make_code(getattr(PARTS, name))
    assert read(AnatomicRegionSequence=region).body_part == name.upper()
    assert read(AnatomicRegionSequence=region, BodyPartExamined="HIP").body_part == "HIP"


def test_the_part_of_the_body_of_a_functional_group() -> None:
    anatomy, group = Dataset(), Dataset()
    anatomy.AnatomicRegionSequence = make_code(Code("T-AA000", "SRT", "Eye"))
    group.FrameAnatomySequence = Sequence([anatomy])
    assert read(SharedFunctionalGroupsSequence=Sequence([group])).body_part == "EYE"


def test_empty_codes_are_unknown() -> None:
    frame = read(ViewCodeSequence=Sequence([Dataset()]), AnatomicRegionSequence=Sequence([]))
    assert (frame.view_position, frame.body_part) == ("", "")
