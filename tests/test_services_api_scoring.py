"""What the service makes of broken volumes, files without a study, many heatmaps, and a graph that cannot run."""

import io
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from fastapi.testclient import TestClient
from onnx import helper, numpy_helper
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from pipeline.imaging.sources import StudyFile
from pipeline.model.bundle import GRAPH, Bundle, write_bundle
from pipeline.predictions import FramePrediction
from pipeline.score import study
from pipeline.score.predictor import Predictor
from pipeline.settings import Check, Policy
from pipeline.workers.pool import _idle_workers
from services.api.app import create_app
from services.api.options import Settings
from services.api.problems import Cause
from tests.builders import make_bundle, make_dataset, make_dicom, make_known_pixels, make_pixels, make_quality, make_wary_bundle
from tests.test_services_api import check_problem, files, make_png, running
from tests.worker_tasks import place_of_waiting, wait_to_be_killed


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> Iterator[TestClient]:
    with running(create_app(bundle, Settings())) as client:
        yield client


def make_volume(damaged: int, **overrides: str) -> bytes:
    """Three frames in JPEG; the one of number `damaged` cannot be decoded."""
    pages = []
    for number in range(1, 4):
        buffer = io.BytesIO()
        Image.fromarray((make_pixels(seed=number) * 255).astype(np.uint8)).save(buffer, "JPEG")
        page = bytearray(buffer.getvalue())
        if number == damaged:
            start = page.index(b"\xff\xc4") + 5  # the Huffman table's counts of codes, which cannot all be 255
            page[start : start + 16] = b"\xff" * 16
        pages.append(bytes(page))
    dataset = make_dataset(np.zeros((3, 48, 40), np.uint8), **overrides)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate(pages)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("damaged", [1, 2, 3])
def test_a_volume_that_breaks_off_counts_for_nothing(client: TestClient, damaged: int) -> None:
    whole, broken = make_dicom(StudyInstanceUID="1.2.826.1"), make_volume(damaged, StudyInstanceUID="1.2.826.2")
    assert client.post("/v1/predict", files=files(make_volume(damaged=0))).status_code == 200
    answer = client.post("/v1/predict?heatmaps=false", files=files(broken, whole)).json()
    alone = client.post("/v1/predict?heatmaps=false", files=[("files", ("file1.dcm", whole))]).json()
    assert [(failure["source"], failure["reason"]) for failure in answer["failures"]] == [("file0.dcm", "decode_failed")]
    assert [frame.pop("index") for frame in (*answer["frames"], *alone["frames"])] == [1, 0]
    assert answer | {"failures": []} == alone


def test_a_volume_that_breaks_off_is_no_answer_of_its_own(client: TestClient) -> None:
    response = client.post("/v1/predict", files=files(make_volume(damaged=2)))
    problem = check_problem(response, 422, "None of the files can be scored", Cause.UNREADABLE_STUDY)
    assert problem.failures is not None
    assert [failure.source for failure in problem.failures] == ["file0.dcm"]


def test_a_study_has_so_much_time(bundle: Bundle) -> None:
    with running(create_app(bundle, Settings(study_seconds=0.0))) as client:
        response = client.post("/v1/predict", files=files(make_dicom(), make_dicom()))
    problem = check_problem(response, 422, "None of the files can be scored", Cause.UNREADABLE_STUDY)
    assert problem.failures is not None
    assert [failure.reason for failure in problem.failures] == ["time_limit"] * 2
    assert problem.failures[0].message.startswith("The study took longer than the 0 seconds that the service gives one. Send")


def test_a_service_that_cannot_start_workers_is_not_the_callers_fault(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(create_app(bundle, Settings())) as client:
        (tmp_path / "sitecustomize.py").write_text("import os; os._exit(5)")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        for process in _idle_workers.get(os.getpid(), []):
            process.end()
        response = client.post("/v1/predict", files=files(make_dicom()))
    check_problem(response, 503, "ended with exit code 5 while it started", Cause.NO_WORKER)
    assert response.headers["retry-after"] == "5"


def test_a_frame_that_is_refused_leaves_the_others_of_its_file(tmp_path: Path) -> None:
    volume = np.stack([make_pixels(seed=1), np.zeros((48, 40)), make_pixels(seed=2)])
    quality = make_quality({Check.BLANK: Policy.REJECT, Check.TOO_SMALL: Policy.FLAG}, smallest_side=64)
    with running(create_app(make_bundle(tmp_path / "bundle", quality=quality), Settings())) as client:
        answer = client.post("/v1/predict", files=files(make_dicom((volume * 255).astype(np.uint8)))).json()
        blank = client.post("/v1/predict", files=files(make_dicom(np.zeros((48, 40), np.uint8))))
    assert [frame["frame_number"] for frame in answer["frames"]] == [1, 3]
    assert [(failure["frame_number"], failure["reason"]) for failure in answer["failures"]] == [(2, "blank")]
    assert all("its shorter side needs at least 64" in frame["flags"][0] for frame in answer["frames"])
    check_problem(blank, 422, "None of the files can be scored", Cause.UNREADABLE_STUDY)


def test_dicom_files_that_state_no_study_belong_to_what_they_are_sent_with(client: TestClient) -> None:
    first, second = (make_dicom(np.full((30, 30), number, np.uint16), StudyInstanceUID=None) for number in range(2))
    answer = client.post("/v1/predict?heatmaps=false", files=files(first, second)).json()
    assert len(answer["frames"]) == 2
    assert answer["study_instance_uid"].startswith("2.25.")
    stating = make_dicom(StudyInstanceUID="1.2.826.1")
    answer = client.post("/v1/predict?heatmaps=false", files=files(first, stating, second)).json()
    assert len(answer["frames"]) == 3
    assert answer["study_instance_uid"] == "1.2.826.1"


def test_the_label_of_no_finding_has_no_heatmap(client: TestClient) -> None:
    (frame,) = client.post("/v1/predict", files=files(make_dicom())).json()["frames"]
    assert frame["labels"]["NORMAL"]["heatmap"] is None
    assert not any("No heatmap" in flag for flag in frame["flags"])


def test_an_answer_has_no_more_heatmaps_than_allowed_and_says_so(bundle: Bundle) -> None:
    contents = [make_png(seed=number) for number in range(4)]
    with running(create_app(bundle, Settings(max_heatmaps=2))) as client:
        frames = client.post("/v1/predict", files=files(*contents)).json()["frames"]
        without = client.post("/v1/predict?heatmaps=false", files=files(*contents)).json()["frames"]
    assert [frame["labels"]["PNEUMONIA"]["heatmap"] is not None for frame in frames] == [True, True, False, False]
    sentence = "No heatmap: an answer has at most 2. Send fewer frames at a time to see it."
    assert [sentence in frame["flags"] for frame in frames] == [False, False, True, True]
    assert not any(sentence in frame["flags"] for frame in without)


def test_heatmaps_that_an_answer_has_no_room_for_are_not_drawn(bundle: Bundle, tmp_path: Path) -> None:
    """Files that are begun once no more pictures are wanted are scored without any."""
    contents = [StudyFile(tmp_path / f"{number}.png", f"{number}.png") for number in range(40)]
    for number, file in enumerate(contents):
        file.path.write_bytes(make_png(seed=number))
    frames: list[FramePrediction] = []
    items = study.score_study(contents, Predictor(bundle, 1), heatmaps={"png"}, in_workers=True, draws=lambda: len(frames) < 2)
    for item in items:
        if isinstance(item, FramePrediction):
            frames.append(item)
    pictures = [any(heatmap.png for heatmap in frame.heatmaps) for frame in frames]
    assert len(pictures) == 40
    assert pictures[0]
    assert not pictures[-1]


def test_a_graph_that_cannot_run_leaves_it_not_ready(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = make_bundle(tmp_path / "whole")
    model = onnx.load_from_string(whole.read(GRAPH))
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 5], np.int64), "shape"))
    for number, node in enumerate(model.graph.node):
        if node.op_type == "Flatten":  # to a shape that never fits
            reshape = helper.make_node("Reshape", [node.input[0], "shape"], [node.output[0]])
            model.graph.node[number].CopyFrom(reshape)
    model.graph.node[-1].input[1] = "other"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 5), np.float32), "other"))
    contents = {name: whole.read(name) for name in whole.manifest.files}
    fields = whole.manifest.model_dump(exclude={"schema_version", "bundle_id", "files"})
    broken = write_bundle(tmp_path / "broken", {**contents, GRAPH: model.SerializeToString()}, **fields)
    with TestClient(create_app(broken, Settings())) as client:
        for _ in range(500):
            response = client.get("/readyz")
            if "cannot be loaded" in response.text:
                break
            time.sleep(0.01)
        check_problem(response, 503, "The model cannot be loaded: its first run ended in an unexpected", Cause.BROKEN)
        assert client.get("/livez").status_code == 200
    assert "The model cannot be loaded" in caplog.text
    assert "Reshape" not in response.text + caplog.text


def test_a_frame_unlike_the_training_is_a_failure_beside_the_others(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (48, 20))
    known = (make_known_pixels(1) * 255).astype(np.uint8)
    with running(create_app(make_wary_bundle(tmp_path / "bundle"), Settings())) as client:
        answer = client.post("/v1/predict?heatmaps=false", files=files(make_dicom(np.stack([stripes, known])))).json()
        alone = client.post("/v1/predict", files=files(make_dicom(stripes)))
    (frame,), (failure,) = answer["frames"], answer["failures"]
    assert (frame["frame_number"], failure["frame_number"]) == (2, 1)
    assert (failure["reason"], failure["state"]) == ("out_of_distribution", "not_scorable")
    assert 0 <= frame["distance"] <= 1
    assert answer["states"] == {label: said["state"] for label, said in frame["labels"].items()}
    assert {said["operating_point"] for said in frame["labels"].values()} == {0.5}
    problem = check_problem(alone, 422, "None of the files can be scored", Cause.UNREADABLE_STUDY)
    assert problem.failures is not None
    assert [one.reason for one in problem.failures] == ["out_of_distribution"]


def test_a_worker_that_is_killed_from_outside_is_not_blamed_on_the_file(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a machine that has too little memory for a moment: what it read is read again, in another worker."""
    content = [make_volume(damaged=0), make_png()]
    expected = client.post("/v1/predict", files=files(*content)).json()
    monkeypatch.setattr(study, "score_files", wait_to_be_killed)
    monkeypatch.setattr(study, "score_singly", wait_to_be_killed)
    place = place_of_waiting(os.getpid())
    with ThreadPoolExecutor(1) as pool:
        try:
            answer = pool.submit(client.post, "/v1/predict", files=files(*content))
            while not place.exists():
                time.sleep(0.01)
            os.kill(int(place.read_text()), signal.SIGKILL)
            assert answer.result().json() == expected
        finally:
            place.unlink(missing_ok=True)
    assert (len(expected["frames"]), expected["failures"]) == (4, [])
