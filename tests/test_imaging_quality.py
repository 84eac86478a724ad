"""The quality gate: what it finds in frames that are made wrong, what it lets pass, and what happens then."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import FloatArray, Frame
from pipeline.imaging.preprocess import mask_white_borders
from pipeline.imaging.quality.gate import admit, assess
from pipeline.imaging.quality.position import UPRIGHT_CHEST
from pipeline.imaging.sources import discover, read_frames, read_frames_from_bytes
from pipeline.settings import Check, Gate, Policy
from tests.builders import make_dicom, make_frame, make_gate, make_pixels


def found(frame: Frame, **gate: Any) -> set[Check]:
    return {flag.check for flag in assess(frame, make_gate(**({"smallest_side": 32} | gate)))}


def test_every_check_is_a_reason() -> None:
    assert {check.value for check in Check} <= {reason.value for reason in Reason}


def test_a_plain_frame_passes_unmarked() -> None:
    assert admit(make_frame(pixels=make_pixels(200, 180)), Gate()) == ()


# What the header says


@pytest.mark.parametrize(
    ("frame", "gate", "check"),
    [
        ({"modality": "CT"}, {"modalities": ("CR", "DX")}, Check.WRONG_MODALITY),
        ({"modality": "OP"}, {"modalities": ("OPT",)}, Check.WRONG_MODALITY),
        ({"modality": "MG"}, {}, Check.WRONG_MODALITY),
        ({"body_part": "HAND"}, {"body_parts": ("CHEST",)}, Check.WRONG_BODY_PART),
        ({"view_position": "LL"}, {"view_positions": ("PA", "AP")}, Check.NOT_FRONTAL),
        ({"patient_age": 18}, {"ages": (0, 17)}, Check.WRONG_AGE),
        ({"patient_age": 17}, {"ages": (18, 90)}, Check.WRONG_AGE),
        ({"patient_age": None}, {"ages": (0, 17)}, Check.UNKNOWN_AGE),
        ({"whole_shape": (500, 63)}, {"smallest_side": 64}, Check.TOO_SMALL),
        ({"by_camera": True}, {}, Check.PHOTOGRAPHED_FILM),
        ({"burned_in_annotation": "YES"}, {"policies": {Check.BURNED_IN_TEXT: Policy.FLAG}}, Check.BURNED_IN_TEXT),
    ],
)
def test_what_is_not_expected_is_found(frame: dict[str, Any], gate: dict[str, Any], check: Check) -> None:
    assert found(make_frame(**frame), **gate) == {check}


@pytest.mark.parametrize(
    ("frame", "gate"),
    [
        ({"modality": "CR"}, {"modalities": ("CR", "DX")}),
        ({"modality": ""}, {"modalities": ("CR", "DX"), "view_positions": ("PA",), "body_parts": ("CHEST",)}),
        ({"modality": "CT"}, {}),
        ({"burned_in_annotation": "YES"}, {}),
        ({"modality": "MG"}, {"modalities": ("MG",)}),
        ({"body_part": "CHEST"}, {"body_parts": ("THORAX",)}),
        ({"modality": "RG", "view_position": "FRONTAL"}, {"modalities": ("CR", "DX"), "view_positions": ("PA",)}),
        ({"view_position": "PA"}, {"view_positions": ("PA", "AP")}),
        ({"patient_age": 0}, {"ages": (0, 17)}),
        ({"patient_age": 17}, {"ages": (0, 17)}),
        ({"patient_age": 99}, {}),
        ({"whole_shape": (64, 500)}, {"smallest_side": 64}),
    ],
)
def test_what_is_expected_or_not_known_passes(frame: dict[str, Any], gate: dict[str, Any]) -> None:
    assert found(make_frame(**frame), **gate) == set()


# What happens then


@pytest.mark.parametrize("policy", Policy)
def test_the_policy_decides(policy: Policy) -> None:
    frame, gate = make_frame(modality="MG"), make_gate({Check.WRONG_MODALITY: policy}, 32)
    if policy is Policy.REJECT:
        with pytest.raises(UnreadableError, match="is a mammogram") as caught:
            admit(frame, gate)
        assert caught.value.reason is Reason.WRONG_MODALITY
    else:
        flags = admit(frame, gate)
        assert [flag.check for flag in flags] == [Check.WRONG_MODALITY] * (policy is Policy.FLAG)
        assert flags == assess(frame, gate)


def test_assessing_never_refuses() -> None:
    frame = make_frame(pixels=np.zeros((50, 50), np.float32))
    gate = make_gate(dict.fromkeys(Check, Policy.REJECT) | {Check.BURNED_IN_TEXT: Policy.IGNORE})
    assert {flag.check for flag in assess(frame, gate)} >= {Check.TOO_SMALL, Check.BLANK}


# What the pixels say


def test_a_frame_without_a_picture_is_blank() -> None:
    rng = np.random.default_rng(0)
    noise = np.clip(rng.normal(0.5, 0.1, (800, 800)), 0, 1).astype(np.float32)
    for pixels in (np.zeros((100, 100)), np.full((100, 100), 0.7), noise):
        assert found(make_frame(pixels=pixels.astype(np.float32))) == {Check.BLANK}


def test_a_thin_bright_band_in_the_dark_is_not_blank() -> None:
    pixels = np.zeros((496, 512), np.float32)
    pixels[200:230] = 0.4
    assert found(make_frame(pixels=pixels, modality="OPT")) == set()


def test_an_overexposed_frame_is_saturated() -> None:
    pixels = np.clip(make_pixels(200, 200) * 4, 0, 1)
    pixels[[0, -1]] = pixels[:, [0, -1]] = 0
    assert found(make_frame(pixels=pixels)) == {Check.SATURATED}


def test_a_black_middle_is_wrong_in_a_radiograph_only() -> None:
    pixels = np.full((200, 200), 0.5, np.float32)
    pixels[60:140, 60:140] = 0
    assert found(make_frame(pixels=pixels, body_part="CHEST")) == {Check.SATURATED}
    assert found(make_frame(pixels=pixels, modality="CR", body_part="HAND")) == set()


def test_white_wedges_are_found() -> None:
    pixels = make_pixels(200, 200) * np.float32(0.7)
    rows, columns = np.indices(pixels.shape)
    pixels[rows + columns < 60] = 1
    assert found(make_frame(pixels=pixels)) == {Check.WHITE_BORDERS}


# How the frame lies


CHEST = {"modality": "DX", "body_part": "CHEST"}


def real(shared_data: Path, folder: str, count: int) -> list[Frame]:
    """Frames from all over a set of real pictures."""
    files = [file for file in discover(shared_data / folder) if file.source.endswith((".jpeg", ".jpg", ".png"))]
    return [frame for file in files[:: len(files) // count][:count] for frame in read_frames(file)]


@pytest.mark.parametrize(
    ("folder", "header"),
    [("cxr-pediatric", CHEST), ("oct-kermany", {"modality": "OPT"}), ("oct-octdl-crops", {"modality": "OPT"})],
)
@pytest.mark.parametrize("turns", range(4))
def test_real_frames_are_rotated_only_where_they_were_turned(
    folder: str, header: dict[str, str], turns: int, shared_data: Path
) -> None:
    frames = [replace(frame, **header) for frame in real(shared_data, folder, 40)]
    turned = [replace(frame, pixels=np.ascontiguousarray(np.rot90(frame.pixels, turns))) for frame in frames]
    marked = sum(Check.ROTATED in found(frame) for frame in turned)
    assert marked == 0 if turns == 0 else marked >= 36


@pytest.mark.parametrize(
    ("folder", "header"),
    [("cxr-pediatric", CHEST), ("oct-kermany", {"modality": "OPT"}), ("oct-octdl-crops", {"modality": "OPT"})],
)
def test_real_frames_are_inverted_only_if_they_are_negatives(folder: str, header: dict[str, str], shared_data: Path) -> None:
    frames = [replace(frame, **header) for frame in real(shared_data, folder, 40)]
    assert not any(Check.INVERTED in found(frame) for frame in frames)
    for turns in range(4):
        negatives = [replace(frame, pixels=np.ascontiguousarray(np.rot90(1 - frame.pixels, turns))) for frame in frames]
        marked = [found(frame) for frame in negatives]
        assert sum(Check.INVERTED in checks for checks in marked) >= 38
        assert not any(Check.INVERTED in checks and Check.ROTATED in checks for checks in marked)


def test_real_chests_are_halves_only_if_they_were_cut(shared_data: Path) -> None:
    frames = [replace(frame, **CHEST) for frame in real(shared_data, "cxr-pediatric", 40)]
    assert not any(Check.HALF_FRAME in found(frame) for frame in frames)
    middle = frames[0].pixels.shape[1] // 2
    for part in (np.s_[:, :middle], np.s_[:, middle:]):
        assert sum(Check.HALF_FRAME in found(replace(frame, pixels=frame.pixels[part])) for frame in frames) >= 38
    for part, grey in ((np.s_[middle:], 0.5), (np.s_[:, :middle], 0.0), (np.s_[:middle], 1.0)):
        cut = [replace(frame, pixels=frame.pixels.copy()) for frame in frames]
        for frame in cut:
            frame.pixels[part] = grey
        assert all(Check.HALF_FRAME in found(frame) for frame in cut)


def test_negatives_and_halves_without_real_pictures() -> None:
    chest = np.kron(UPRIGHT_CHEST, np.ones((20, 20), np.float32))
    assert found(make_frame(pixels=chest, **CHEST)) == set()
    assert found(make_frame(pixels=1 - chest, **CHEST)) == {Check.INVERTED}
    assert found(make_frame(pixels=chest[:, :80], **CHEST)) == {Check.HALF_FRAME}
    assert found(make_frame(pixels=chest[:, :80], modality="CR", body_part="HAND")) == set()
    b_scan = make_b_scan()
    assert found(make_frame(pixels=1 - b_scan, modality="OPT")) == {Check.INVERTED}
    assert found(make_frame(pixels=np.vstack([np.zeros((400, 280), np.float32), b_scan]), modality="OPT")) == set()


def make_b_scan() -> FloatArray:
    """Dark above, two sharp bright layers, and a choroid that fades, with speckle over it all."""
    depth = np.arange(300, dtype=np.float32)
    profile = 0.05 + 0.5 * np.exp(-np.maximum(depth - 130, 0) / 40) * (depth >= 130)
    profile += 0.3 * ((depth >= 100) & (depth < 130)) + 0.4 * ((depth >= 125) & (depth < 132))
    speckle = np.random.default_rng(0).gamma(4, 0.25, (300, 280))
    return np.clip(profile[:, None] * speckle, 0, 1).astype(np.float32)


def test_a_retina_that_is_cut_off_is_found() -> None:
    pixels = make_b_scan()
    assert found(make_frame(pixels=pixels, modality="OPT")) == set()
    for cut in (pixels[118:], pixels[:140]):
        assert found(make_frame(pixels=cut, modality="OPT")) == {Check.CROPPED}


@pytest.mark.parametrize("folder", ["oct-kermany", "oct-octdl-crops"])
def test_real_retinas_are_cut_off_only_where_they_were_cut(folder: str, shared_data: Path) -> None:
    frames = [replace(frame, modality="OPT") for frame in real(shared_data, folder, 40)]
    assert not any(Check.CROPPED in found(frame) for frame in frames)
    halves = [replace(frame, pixels=mask_white_borders(frame.pixels)[half(frame) :]) for frame in frames]
    assert sum(Check.CROPPED in found(frame) for frame in halves) >= 20


def half(frame: Frame) -> int:
    """The row that has as much light above it as below, once the wedges are black; light counts by its cube."""
    light = np.cumsum(mask_white_borders(frame.pixels).mean(axis=1) ** 3)
    return int(np.searchsorted(light, light[-1] / 2))


@pytest.mark.parametrize("scale", [0.5, 2])
def test_the_size_of_a_frame_does_not_matter(scale: float, shared_data: Path) -> None:
    for frame in real(shared_data, "oct-kermany", 10):
        rows, columns = frame.pixels.shape
        image = Image.fromarray(frame.pixels).resize((int(columns * scale), int(rows * scale)), Image.Resampling.BOX)
        other = replace(frame, modality="OPT", pixels=np.asarray(image), whole_shape=(rows, columns))
        assert found(other) - {Check.WHITE_BORDERS} == found(replace(frame, modality="OPT")) - {Check.WHITE_BORDERS} == set()


@pytest.mark.parametrize("header", [{"modality": "CR"}, {"modality": "CR", "body_part": "HAND"}, {"modality": "MR"}])
def test_other_frames_are_not_judged(header: dict[str, str]) -> None:
    upside_down = np.kron(UPRIGHT_CHEST[::-1], np.ones((20, 20), np.float32))
    assert found(make_frame(pixels=upside_down, **CHEST)) == {Check.ROTATED}
    assert found(make_frame(pixels=upside_down, **header)) == set()


def test_what_a_gate_expects_stands_in_for_a_header_that_is_silent() -> None:
    upside_down = np.kron(UPRIGHT_CHEST[::-1], np.ones((20, 20), np.float32))
    frame = make_frame(pixels=upside_down, modality="")
    assert found(frame, modalities=("CR", "DX"), body_parts=("CHEST",)) == {Check.ROTATED}
    assert found(frame, modalities=("CR", "DX")) == set()


@pytest.mark.parametrize(
    ("header", "age"),
    [
        ({"PatientAge": "012Y"}, 12),
        ({"PatientAge": "018M"}, 1),
        ({"PatientAge": "024M"}, 2),
        ({"PatientAge": "104W"}, 1),
        ({"PatientAge": "030D"}, 0),
        ({"PatientAge": "45y"}, 45),
        ({"PatientAge": "012Y", "PatientBirthDate": "19500101", "StudyDate": "20200101"}, 12),
        ({"PatientBirthDate": "20000229", "StudyDate": "20180228"}, 17),
        ({"PatientBirthDate": "20000229", "StudyDate": "20180301"}, 18),
        ({"PatientBirthDate": "2000.02.29", "StudyDate": "20180301"}, 18),
        ({"PatientAge": "45", "PatientBirthDate": "20000101", "StudyDate": "20180301"}, 18),
        ({"PatientAge": "999Y"}, None),
        ({"PatientAge": "999Y", "PatientBirthDate": "20000101", "StudyDate": "20180301"}, 18),
        ({"PatientAge": "000Y"}, None),
        ({"PatientAge": "000Y", "PatientBirthDate": "20000101", "StudyDate": "20180301"}, 18),
        ({"PatientAge": "000D"}, 0),
        ({"PatientBirthDate": "19000101", "StudyDate": "20180301"}, None),
        ({"PatientBirthDate": "19000101", "StudyDate": "19000101"}, None),
        ({"PatientAge": "", "PatientBirthDate": "18000101", "StudyDate": "20180301"}, None),
        ({"PatientBirthDate": "20190101", "StudyDate": "20180301"}, None),
        ({"PatientBirthDate": "20001301", "StudyDate": "20180301"}, None),
        ({"PatientBirthDate": "20000101"}, None),
        ({}, None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_ages_in_completed_years(header: dict[str, str], age: int | None) -> None:
    (frame,) = read_frames_from_bytes(make_dicom(**header), "a.dcm")
    assert frame.patient_age == age
    if age is not None and age > 5:
        (flag,) = assess(frame, make_gate(smallest_side=16, ages=(0, 5)))
        assert flag.check is Check.WRONG_AGE
        assert str(age) not in flag.message


def test_what_a_file_says_of_itself_reaches_the_gate() -> None:
    content = make_dicom(BodyPartExamined="HAND", ViewPosition="LL", BurnedInAnnotation="YES", Modality="MG")
    (frame,) = read_frames_from_bytes(content, "a.dcm")
    gate = make_gate({Check.BURNED_IN_TEXT: Policy.FLAG}, 16, view_positions=("PA",), body_parts=("CHEST",))
    flags = assess(frame, gate)
    expected = {Check.WRONG_MODALITY, Check.WRONG_BODY_PART, Check.NOT_FRONTAL, Check.BURNED_IN_TEXT}
    assert {flag.check for flag in flags} == expected
    assert not any("HAND" in flag.message or "LL" in flag.message for flag in flags)
