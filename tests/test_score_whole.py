"""Frames that were decoded at a reduced resolution and come out near a threshold are read whole, and judged again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import data_store
import imagecodecs
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from pydicom import uid

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Quarantined
from pipeline.imaging.sources import locate, read_frames_from_bytes
from pipeline.model.bundle import Bundle
from pipeline.predictions import FramePrediction, OperatingPoint
from pipeline.score import predictor as module
from pipeline.score.predictor import Predictor
from pipeline.score.reading import Admitted, read_admitted, read_whole
from pipeline.score.study import Scoring
from pipeline.settings import Check, Limits, Policy, Preprocessing
from services.api.app import create_app
from services.api.options import Settings
from tests.builders import make_bundle, make_dicom, make_encapsulated, make_quality, make_wary_bundle, score_folder
from tests.test_services_api import running

SIZE = 32
REDUCED = Preprocessing(SIZE, exact_decoding=False)
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def picture(seed: int, contrast: float = 1.0) -> NDArray[np.uint16]:
    """Coarse squares of 12 bits with much noise, so that both ways of reading differ."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.random((8, 8)), np.ones((26, 29)))
    grey = 0.5 + contrast * (coarse - 0.5) + rng.normal(0, 0.2, coarse.shape)
    return np.clip(np.rint(grey * 4095), 0, 4095).astype(np.uint16)


def radiograph(pixels: NDArray[np.uint16], encoded: bool = True) -> bytes:
    if not encoded:
        return make_dicom(pixels, BitsStored=12, HighBit=11, **WINDOW)
    codestream = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", bitspersample=12, reversible=True)
    return make_encapsulated(pixels, uid.JPEG2000Lossless, [[codestream]], BitsStored=12, HighBit=11, **WINDOW)


def bundle_at(path: Path, threshold: float, **overrides: Any) -> Bundle:
    """A bundle whose gate asks nothing, and that decides at a threshold."""
    thresholds = {"NORMAL": 1 - threshold, "PNEUMONIA": threshold}
    points = tuple(OperatingPoint(label, chance, "youden", 0.9, 0.8) for label, chance in thresholds.items())
    fields = {
        "preprocessing": REDUCED,
        "operating_points": points,
        "quality": make_quality(dict.fromkeys(Check, Policy.IGNORE)),
    }
    return make_bundle(path, size=SIZE, **(fields | overrides))


def chances(bundle: Bundle, content: bytes) -> tuple[float, float]:
    """The probability of PNEUMONIA of the whole frame, and of the reduced one."""
    predictor = Predictor(bundle)
    found = []
    for reading in (replace(predictor.admission.reading, side=None), predictor.admission.reading):
        (frame,) = read_frames_from_bytes(content, "a.dcm", reading)
        assert (frame.whole_shape is None) == (reading.side is None)
        found.append(predictor.predict([frame])[0].predictions[1].probability)
    return found[0], found[1]


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, bytes, float]:
    """A bundle whose threshold lies between what both ways of reading a file give, the file, and what the whole one gives."""
    root = tmp_path_factory.mktemp("between")
    content = radiograph(picture(1))
    exact, reduced = chances(bundle_at(root / "any", 0.5), content)
    assert exact != reduced
    return bundle_at(root / "between", (exact + reduced) / 2), content, exact


@pytest.mark.parametrize("runs_in_workers", [True, False])
def test_a_folder_gets_the_answer_of_the_whole_frame(
    between: tuple[Bundle, bytes, float], runs_in_workers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "runs_in_workers", runs_in_workers)
    bundle, content, exact = between
    far = radiograph(picture(2, contrast=0.2))
    for name, one in (("a.dcm", content), ("b.dcm", far), ("c.dcm", content)):
        (tmp_path / name).write_bytes(one)
    predictor = Predictor(bundle, threads=1)
    first, second, third = score_folder(tmp_path, predictor)
    for item in (first, third):
        assert isinstance(item, FramePrediction)
        assert (item.facts.decoded_rows, item.facts.rows) == (208, 208)
        assert item.predictions[1].probability == exact
        assert len(item.heatmaps) == 2
    assert isinstance(second, FramePrediction)
    assert second.facts.source == "b.dcm"


def test_one_radiograph_in_two_encodings_has_one_answer_near_a_threshold(tmp_path: Path) -> None:
    studies, reduced = tmp_path / "studies", []
    studies.mkdir()
    reading = Predictor(bundle_at(tmp_path / "any", 0.5)).admission.reading
    for name in ("RG1_UNCR.dcm", "RG1_J2KR.dcm"):
        content = (Path(data_store.__file__).parent / "data" / name).read_bytes()
        (studies / name).write_bytes(content)
        (frame,) = read_frames_from_bytes(content, name, reading)
        reduced.append(Predictor(bundle_at(tmp_path / name, 0.5)).predict([frame])[0].predictions[1].probability)
    assert reduced[0] != reduced[1]
    first, second = score_folder(studies, Predictor(bundle_at(tmp_path / "between", sum(reduced) / 2), threads=1))
    assert isinstance(first, FramePrediction)
    assert isinstance(second, FramePrediction)
    assert [one.logit for one in first.predictions] == [one.logit for one in second.predictions]
    assert [one.state for one in first.predictions] == [one.state for one in second.predictions]


def test_http_gets_the_answer_of_the_whole_frame(between: tuple[Bundle, bytes, float]) -> None:
    bundle, content, exact = between
    with running(create_app(bundle, Settings())) as client:
        assert isinstance(client, TestClient)
        (frame,) = client.post("/v1/predict", files=[("files", ("a.dcm", content))]).json()["frames"]
    assert frame["labels"]["PNEUMONIA"]["probability"] == exact
    assert frame["labels"]["PNEUMONIA"]["heatmap"] is not None


def test_a_frame_of_a_volume_is_read_again_while_the_next_one_waits(
    between: tuple[Bundle, bytes, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "runs_in_workers", False)  # the number of frames in a call is set in this process
    bundle, _, exact = between
    volume = make_dicom(np.stack([picture(seed) for seed in (1, 2, 1)]), BitsStored=12, HighBit=11, **WINDOW)
    predictor = Predictor(bundle)
    predictor.engine.frames_at_once = 1
    (tmp_path / "a.dcm").write_bytes(volume)
    frames = [item for item in score_folder(tmp_path, predictor) if isinstance(item, FramePrediction)]
    assert [frame.key.frame_number for frame in frames] == [1, 2, 3]
    found = [frame.predictions[1].probability for frame in frames]
    assert found[0] == found[2] == exact != found[1]


def test_what_is_far_from_a_threshold_stays_as_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEAR_LOGIT", 0.02)
    content = radiograph(picture(1))
    _, reduced = chances(bundle_at(tmp_path / "any", 0.5), content)
    for number, (threshold, is_near) in enumerate([(reduced + 0.005, True), (0.999, False), (0.001, False)]):
        predictor = Predictor(bundle_at(tmp_path / f"{number}", threshold))
        (tmp_path / "a.dcm").write_bytes(content)
        (admitted,) = read_admitted(locate(tmp_path, "a.dcm"), predictor.admission)
        assert isinstance(admitted, Admitted)
        assert admitted.is_reduced
        (result,) = predictor.predict_admitted([admitted])
        assert (result is admitted) == is_near
        (again,) = read_whole(admitted, predictor.admission)
        assert isinstance(again, Admitted)
        assert not again.is_reduced
        (result,) = predictor.predict_admitted([again])
        assert result is not again


@pytest.mark.parametrize("part", [0.5, 1.5])
def test_a_frame_near_the_distance_of_refusal_is_judged_whole(
    part: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quality = make_quality(dict.fromkeys(Check, Policy.IGNORE))
    predictor = Predictor(make_wary_bundle(tmp_path / "bundle", size=SIZE, preprocessing=REDUCED, quality=quality))
    reference, found = predictor._reference, []
    assert reference is not None
    content = radiograph(picture(1))
    (tmp_path / "a.dcm").write_bytes(content)
    file = locate(tmp_path, "a.dcm")
    for admission in (
        predictor.admission,
        replace(predictor.admission, reading=replace(predictor.admission.reading, side=None)),
    ):
        (admitted,) = read_admitted(file, admission)
        assert isinstance(admitted, Admitted)
        (features,) = predictor.engine.run(admitted.pixels[None]).features
        found.append(reference.distance(module.pooled(features[0])) * reference.threshold)
    reduced, exact = found
    assert reduced != exact
    edge = min(found) + part * abs(exact - reduced)  # between both, or a little above them
    predictor._reference = replace(reference, threshold=edge)
    (admitted,) = read_admitted(file, predictor.admission)
    assert isinstance(admitted, Admitted)
    assert predictor.predict_admitted([admitted]) == [admitted]
    (again,) = read_whole(admitted, predictor.admission)
    assert isinstance(again, Admitted)
    (result,) = predictor.predict_admitted([again])
    assert isinstance(result, Quarantined) == (exact > edge)


@pytest.mark.parametrize("encoded", [True, False])
def test_the_gate_says_of_a_frame_what_it_says_of_the_whole(encoded: bool, tmp_path: Path) -> None:
    quality = make_quality(dict.fromkeys(Check, Policy.IGNORE) | {Check.SATURATED: Policy.REJECT})
    predictor = Predictor(bundle_at(tmp_path / "bundle", 0.5, quality=quality))
    exact = replace(predictor.admission, reading=replace(predictor.admission.reading, side=None))
    outcomes, naive, lowered = [], [], 0
    for brightness in np.linspace(0.6, 1.4, 41):
        pixels = np.clip(picture(3) * brightness + 1500, 0, 4095).astype(np.uint16)
        (tmp_path / "a.dcm").write_bytes(radiograph(pixels, encoded))
        file = locate(tmp_path, "a.dcm")
        (found,), (expected,) = read_admitted(file, predictor.admission), read_admitted(file, exact)
        outcomes.append(isinstance(found, Quarantined))
        assert isinstance(found, Quarantined) == isinstance(expected, Quarantined)
        lowered += isinstance(found, Admitted) and found.is_reduced
        (frame,) = read_frames_from_bytes((tmp_path / "a.dcm").read_bytes(), "a.dcm", predictor.admission.reading)
        naive.append(refused(predictor, frame))
    assert 0 < sum(outcomes) < len(outcomes)
    assert naive != outcomes
    assert lowered > 5


def refused(predictor: Predictor, frame: object) -> bool:
    try:
        predictor.admission.admit(frame)  # type: ignore[arg-type]
    except UnreadableError:
        return True
    return False


def test_a_window_that_may_hide_a_frame_is_judged_on_the_whole_of_it() -> None:
    content = make_dicom(picture(1) // 4 + 3000, BitsStored=12, HighBit=11, WindowCenter=1000, WindowWidth=2000)
    predictor_reading = module.reading_for(REDUCED, Limits())
    (reduced,) = read_frames_from_bytes(content, "a.dcm", predictor_reading)
    (exact,) = read_frames_from_bytes(content, "a.dcm")
    np.testing.assert_array_equal(reduced.pixels, exact.pixels)
    assert reduced.notes == exact.notes
    assert "would hide it" in exact.notes[0]


def read_nothing(item: Admitted) -> list[Admitted]:
    return []


def read_damaged(item: Admitted) -> list[Admitted]:
    raise UnreadableError(Reason.TRUNCATED, "Cut off.")


def read_another_file(item: Admitted) -> list[Admitted]:
    return [replace(item, facts=replace(item.facts, file_sha256="0" * 64))]


@pytest.mark.parametrize(
    ("read", "reason"),
    [(read_nothing, "decode_failed"), (read_damaged, "truncated"), (read_another_file, "decode_failed")],
)
def test_what_cannot_be_read_again_is_a_failure(read: Callable[..., object], reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(radiograph(picture(1)))
    predictor = Predictor(bundle_at(tmp_path / "bundle", 0.5))
    (admitted,) = read_admitted(locate(tmp_path, "a.dcm"), predictor.admission)
    other = Quarantined("b.dcm", "blank", "")
    scoring = Scoring(predictor, predictor.admission, frozenset())
    first, second = scoring.scored([other, admitted], read)  # type: ignore[arg-type]
    assert first is other
    assert isinstance(second, Quarantined)
    assert (second.source, second.reason, second.frame_number) == ("a.dcm", reason, 1)
