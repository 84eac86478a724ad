"""The service over HTTP: answers equal to the predictor's, and every problem provoked."""

import base64
import io
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.openapi.models import OpenAPI
from fastapi.testclient import TestClient
from PIL import Image
from pydicom.uid import BasicTextSRStorage

from pipeline.errors import TrainingError
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.model.bundle import GRAPH, Bundle, write_bundle
from pipeline.score.predictor import Predictor
from pipeline.settings import Preprocessing
from services.api.app import EVERYWHERE, PREDICT, create_app
from services.api.options import Settings
from services.api.problems import MEDIA_TYPE, Cause, Problem
from services.api.schemas import StudyAnswer
from tests.builders import make_bundle, make_dicom, make_pixels, make_quality, make_support


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> Iterator[TestClient]:
    with running(create_app(bundle, Settings())) as client:
        yield client


def running(app: FastAPI) -> TestClient:
    return ReadyClient(app, raise_server_exceptions=False)


class ReadyClient(TestClient):
    """A client that begins when the model is loaded."""

    def __enter__(self) -> "ReadyClient":
        super().__enter__()
        for _ in range(1000):
            if self.get("/readyz").status_code == 200:
                return self
            time.sleep(0.01)
        raise AssertionError(self.get("/readyz").text)


def make_png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((make_pixels(seed=seed) * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def files(*contents: bytes, name: str = "file{}.dcm") -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (name.format(number), content)) for number, content in enumerate(contents)]


def check_problem(response: Any, status: int, detail: str, cause: Cause) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    problem = Problem.model_validate_json(response.content)
    assert problem.status == status
    assert (problem.type, problem.title, cause.status) == (cause.type, cause.title, status)
    assert detail in problem.detail
    assert "Traceback" not in response.text
    return problem


# What is answered


@pytest.mark.parametrize("content", [make_dicom(), make_png()], ids=["dicom", "png"])
def test_the_answer_is_the_predictors(client: TestClient, bundle: Bundle, content: bytes) -> None:
    response = client.post("/v1/predict", files=files(content))
    assert response.status_code == 200, response.text
    frames = list(read_frames_from_bytes(content, "file0.dcm"))
    expected = Predictor(bundle).predict(frames)
    answer = StudyAnswer.model_validate_json(response.content)
    assert answer.study_instance_uid == frames[0].key.study_instance_uid
    assert (answer.bundle_id, answer.model) == (bundle.manifest.bundle_id, "tiny")
    for frame, got, wanted in zip(frames, answer.frames, expected, strict=True):
        assert got.source == "file0.dcm"
        assert got.sop_instance_uid == frame.key.sop_instance_uid
        assert got.series_instance_uid == frame.key.series_instance_uid
        assert got.flags == frame.notes
        assert [*got.labels] == [*bundle.manifest.labels]
        for prediction in wanted.predictions:
            label = got.labels[prediction.label]
            assert (label.logit, label.probability) == (prediction.logit, prediction.probability)
            assert label.positive is prediction.positive
            assert label.state == ("positive" if prediction.positive else "negative")


def test_each_finding_has_a_heatmap_as_png(client: TestClient) -> None:
    (frame,) = client.post("/v1/predict", files=files(make_dicom())).json()["frames"]
    heatmap = frame["labels"]["PNEUMONIA"]["heatmap"]
    picture = Image.open(io.BytesIO(base64.b64decode(heatmap["png"], validate=True)))
    assert picture.format == "PNG"
    assert picture.width > picture.height
    assert heatmap["layer"] == "features"


def test_heatmaps_can_be_left_out(client: TestClient) -> None:
    with_heatmaps = client.post("/v1/predict", files=files(make_dicom(SOPInstanceUID="1.2.3"))).json()
    without = client.post("/v1/predict?heatmaps=false", files=files(make_dicom(SOPInstanceUID="1.2.3"))).json()
    assert [label["heatmap"] for label in without["frames"][0]["labels"].values()] == [None, None]
    assert without["probabilities"] == with_heatmaps["probabilities"]


def test_a_study_has_a_finding_where_any_frame_has_it(client: TestClient, bundle: Bundle) -> None:
    volume = make_dicom(np.random.default_rng(0).integers(0, 4096, (20, 48, 40)).astype(np.uint16))
    answer = client.post("/v1/predict?heatmaps=false", files=files(volume)).json()
    assert [frame["frame_number"] for frame in answer["frames"]] == list(range(1, 21))
    assert answer["aggregation"] == "any_finding"
    for label in bundle.manifest.labels:
        among = [frame["labels"][label] for frame in answer["frames"]]
        largest, some = (min, all) if label == bundle.manifest.normal_label else (max, any)
        assert answer["probabilities"][label] == largest(one["probability"] for one in among)
        assert answer["positive"][label] == some(one["positive"] for one in among)
    assert len({frame["labels"]["PNEUMONIA"]["probability"] for frame in answer["frames"]}) > 1


def test_files_of_one_study_are_one_answer(client: TestClient) -> None:
    contents = [make_dicom(StudyInstanceUID="1.2.826.1"), make_dicom(StudyInstanceUID="1.2.826.1"), make_png()]
    answer = client.post("/v1/predict?heatmaps=false", files=files(*contents)).json()
    assert answer["study_instance_uid"] == "1.2.826.1"
    assert [frame["source"] for frame in answer["frames"]] == ["file0.dcm", "file1.dcm", "file2.dcm"]


def test_pictures_of_one_request_are_one_study_in_any_order(client: TestClient) -> None:
    def uid(*contents: bytes) -> str:
        return str(client.post("/v1/predict?heatmaps=false", files=files(*contents)).json()["study_instance_uid"])

    first, second = make_png(seed=1), make_png(seed=2)
    assert uid(first, second) == uid(second, first)
    assert len({uid(first), uid(second), uid(first, second)}) == 3
    assert uid(first, second).startswith("2.25.")


def test_names_lose_their_folders(client: TestClient) -> None:
    sent = [("files", (r"C:\patients\doe\image.png", make_png())), ("files", ("home/doe/image2.png", make_png(seed=1)))]
    answer = client.post("/v1/predict?heatmaps=false", files=sent).json()
    assert [frame["source"] for frame in answer["frames"]] == ["image.png", "image2.png"]


def test_what_cannot_be_read_is_listed_beside_what_can(client: TestClient) -> None:
    answer = client.post("/v1/predict?heatmaps=false", files=files(make_dicom(), b"just text", make_dicom()[:3000])).json()
    assert [frame["source"] for frame in answer["frames"]] == ["file0.dcm"]
    assert [(failure["source"], failure["reason"]) for failure in answer["failures"]] == [
        ("file1.dcm", "not_an_image"),
        ("file2.dcm", "truncated"),
    ]


def test_the_model_is_described_without_its_files(client: TestClient, bundle: Bundle) -> None:
    answer = client.get("/v1/model").json()
    assert answer["bundle_id"] == bundle.manifest.bundle_id
    assert answer["labels"] == ["NORMAL", "PNEUMONIA"]
    assert answer["preprocessing"] == asdict(Preprocessing(size=32, exact_decoding=True))
    assert answer["quality"] == make_quality()
    assert answer["intended_use"] == {"modalities": ["CR", "DX"], "view_positions": [], "body_parts": [], "ages": None}
    assert not {"files", "provenance"} & set(answer)


def test_heatmaps_that_failed_their_checks_are_marked(tmp_path: Path, client: TestClient) -> None:
    caveat = "The heatmaps of this bundle failed checks (insertion): do not rely on them."
    with running(create_app(make_bundle(tmp_path / "bundle", heatmap=make_support("insertion")), Settings())) as doubtful:
        for one, expected in ((doubtful, caveat), (client, "")):
            assert one.get("/v1/model").json()["heatmap_caveat"] == expected
            assert one.get("/v1/model").json()["heatmap_full_scale"] == 2.0
            (frame,) = one.post("/v1/predict", files=files(make_dicom())).json()["frames"]
            assert frame["labels"]["PNEUMONIA"]["heatmap"]["caveat"] == expected
            assert frame["labels"]["PNEUMONIA"]["heatmap"]["full_scale"] == 2.0


# Health


def test_it_is_alive_and_ready(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_it_is_alive_but_not_ready_before_the_model_is_loaded(bundle: Bundle) -> None:
    client = TestClient(create_app(bundle, Settings()))  # never entered, so that the lifespan has not begun
    assert client.get("/livez").status_code == 200
    check_problem(client.get("/readyz"), 503, "The model is being loaded.", Cause.LOADING)
    response = client.post("/v1/predict", files=files(make_dicom()))
    check_problem(response, 503, "The model is being loaded.", Cause.LOADING)
    assert response.headers["retry-after"] == "5"


def test_a_graph_that_cannot_be_loaded_leaves_it_not_ready(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = make_bundle(tmp_path / "whole")
    contents = {name: whole.read(name) for name in whole.manifest.files}
    fields = whole.manifest.model_dump(exclude={"schema_version", "bundle_id", "files"})
    broken = write_bundle(tmp_path / "broken", {**contents, GRAPH: b"no graph"}, **fields)
    with TestClient(create_app(broken, Settings())) as client:
        for _ in range(500):
            response = client.get("/readyz")
            if "cannot be loaded" in response.text:
                break
            time.sleep(0.01)
        check_problem(response, 503, "The model cannot be loaded: The inference graph cannot be loaded", Cause.BROKEN)
        assert client.get("/livez").status_code == 200
    assert "The model cannot be loaded" in caplog.text


# Problems


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"This is a text file.", "not_an_image"),
        (b"", "not_an_image"),
        (make_dicom()[:3000], "truncated"),
        (make_dicom(PixelData=None), "no_pixels"),
        (make_dicom(Rows=0, Columns=0, PixelData=b""), "empty_image"),
        (make_dicom(Modality="MG"), "wrong_modality"),
        (make_dicom(PixelData=None, SOPClassUID=BasicTextSRStorage), "no_image"),
    ],
    ids=["text", "empty", "truncated", "no-pixels", "no-rows", "wrong-modality", "report"],
)
def test_no_readable_file_is_a_problem_with_reasons(client: TestClient, content: bytes, reason: str) -> None:
    response = client.post("/v1/predict", files=files(content))
    problem = check_problem(response, 422, "None of the files can be scored", Cause.UNREADABLE_STUDY)
    assert problem.failures is not None
    assert [(failure.source, failure.reason.value) for failure in problem.failures] == [("file0.dcm", reason)]
    uids = {"study_instance_uid", "series_instance_uid", "sop_instance_uid"}
    assert {*response.json()["failures"][0]} == {"index", "source", "frame_number", "state", "reason", "message", *uids}
    assert "errors" not in response.json()
    assert "Doe" not in response.text


def test_a_report_beside_an_image_is_no_failure_and_what_a_system_left_behind_is_skipped(client: TestClient) -> None:
    study, thumbnails = "1.2.3.4", ("study/@eaDir/a.dcm/SYNOPHOTO_THUMB_SM.jpg", "Thumbs.db", "._a.dcm")
    report = make_dicom(PixelData=None, SOPClassUID=BasicTextSRStorage, StudyInstanceUID=study)
    sent = [("files", (name, b"x")) for name in thumbnails]
    sent += [("files", ("a.dcm", make_dicom(StudyInstanceUID=study))), ("files", ("b.dcm", report))]
    answer = StudyAnswer.model_validate(client.post("/v1/predict", files=sent).json())
    assert [frame.source for frame in answer.frames] == ["a.dcm"]
    assert answer.failures == ()
    assert [(one.source, one.state.value, one.reason.value) for one in answer.without_image] == [
        ("b.dcm", "no_image", "no_image")
    ]
    assert answer.skipped == 3
    left_alone = client.post("/v1/predict", files=[("files", ("Thumbs.db", b"x"))])
    assert left_alone.json()["failures"][0]["reason"] == "not_an_image"


def test_a_reason_that_holds_for_every_frame_of_a_file_is_one_failure(client: TestClient) -> None:
    ultrasound = make_dicom(np.zeros((7, 40, 40), np.uint8), Modality="US")
    response = client.post("/v1/predict", files=files(make_dicom(), ultrasound))
    (failure,) = response.json()["failures"]
    assert (failure["source"], failure["frame_number"], failure["reason"]) == ("file1.dcm", None, "wrong_modality")


def test_two_studies_are_refused(client: TestClient) -> None:
    response = client.post("/v1/predict", files=files(make_dicom(), make_dicom()))
    check_problem(response, 422, "file1.dcm has another Study Instance UID", Cause.SEVERAL_STUDIES)


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/dicom"}, {"content-type": "application/json"}])
def test_another_media_type_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    response = client.post("/v1/predict", content=make_dicom(), headers=headers)
    check_problem(response, 415, "Send the study's files as multipart", Cause.UNSUPPORTED)


@pytest.mark.parametrize(
    ("content", "content_type"),
    [(b"no boundary", "multipart/form-data"), (b"another form", "multipart/form-data; boundary=b")],
)
def test_a_malformed_body_is_refused(client: TestClient, content: bytes, content_type: str) -> None:
    response = client.post("/v1/predict", content=content, headers={"content-type": content_type})
    check_problem(response, 400, "", Cause.MALFORMED)


def test_a_cut_body_is_refused_even_where_a_file_came_whole(client: TestClient) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.dcm"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    first, second = make_dicom(StudyInstanceUID="1.2.3"), make_dicom(StudyInstanceUID="1.2.3")
    whole = head + first + b"\r\n" + head + second + b"\r\n--b--\r\n"
    assert client.post("/v1/predict", content=whole, headers=headers).status_code == 200
    for cut in (4, 20, 800):
        response = client.post("/v1/predict", content=whole[: -cut - 2], headers=headers)
        check_problem(response, 400, "ends before its closing boundary", Cause.MALFORMED)


def test_an_invalid_parameter_is_named(client: TestClient) -> None:
    response = client.post("/v1/predict?heatmaps=perhaps", files=files(make_dicom()))
    problem = check_problem(response, 422, "`errors` says where", Cause.INVALID)
    assert problem.errors is not None
    assert [error.field for error in problem.errors] == ["heatmaps"]


def test_an_unknown_path_and_method_are_problems(client: TestClient) -> None:
    check_problem(client.get("/v2/predict"), 404, "no such address", Cause.NOT_FOUND)
    response = client.get("/v1/predict")
    check_problem(response, 405, "does not take this method", Cause.OTHER_METHOD)
    assert response.headers["allow"] == "POST"
    assert client.post("/livez").headers["allow"] == "GET, HEAD"


@pytest.fixture(scope="module")
def small(bundle: Bundle) -> Iterator[TestClient]:
    with running(create_app(bundle, Settings(max_body_bytes=20_000, max_files=2))) as client:
        yield client


def test_a_large_body_is_refused(small: TestClient) -> None:
    assert small.post("/v1/predict", files=files(make_dicom())).status_code == 200
    response = small.post("/v1/predict", files=files(make_dicom(np.zeros((200, 200), np.uint16))))
    check_problem(response, 413, "larger than 20,000 bytes", Cause.TOO_LARGE)


def test_a_large_body_without_a_length_is_refused_as_it_comes(small: TestClient) -> None:
    sent = []

    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.dcm"\r\n\r\n'
        for number in range(40):
            sent.append(number)
            yield bytes(1000)
        yield b"\r\n--b--\r\n"

    response = small.post("/v1/predict", content=body(), headers={"content-type": "multipart/form-data; boundary=b"})
    check_problem(response, 413, "larger than 20,000 bytes", Cause.TOO_LARGE)
    assert "content-length" not in response.request.headers


def test_too_many_files_are_refused(small: TestClient) -> None:
    response = small.post("/v1/predict", files=files(b"1", b"2", b"3"))
    check_problem(response, 413, "Too many files: the request has 3 of at most 2.", Cause.TOO_LARGE)


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (RuntimeError("secret of Doe^Jane"), "Something went wrong inside the service"),
        (TrainingError("A sentence."), "A sentence."),
    ],
)
def test_a_fault_inside_tells_no_more_than_octray_wrote(bundle: Bundle, error: Exception, detail: str) -> None:
    app = create_app(bundle, Settings())

    @app.get("/fault")
    def fault() -> None:
        raise error

    with running(app) as client:
        response = client.get("/fault")
    check_problem(response, 500, detail, Cause.FAULT)
    assert "Doe" not in response.text


# The description


def test_the_description_is_openapi_and_documents_problems(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    OpenAPI.model_validate(description)
    assert {*description["paths"]} == {"/livez", "/readyz", "/v1/model", "/v1/predict"}
    predict = description["paths"]["/v1/predict"]["post"]
    assert {*predict["responses"]} == {"200", *(str(cause.status) for cause in (*EVERYWHERE, *PREDICT))}
    for status, response in predict["responses"].items():
        media = "application/json" if status == "200" else MEDIA_TYPE
        assert [*response["content"]] == [media]
    assert "multipart/form-data" in predict["requestBody"]["content"]
    for reference in references(description):
        target: Any = description
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        assert target["type"] in ("object", "string")


def test_operations_have_names_that_stay_and_examples_that_are_valid(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    assert [one["operationId"] for one in operations] == ["livez", "readyz", "get_model", "predict"]
    StudyAnswer.model_validate(operations[-1]["responses"]["200"]["content"]["application/json"]["example"])
    examples = [
        one["value"]
        for operation in operations
        for status, response in operation["responses"].items()
        if int(status) >= 400
        for one in response["content"][MEDIA_TYPE]["examples"].values()
    ]
    assert {Problem.model_validate(one).type for one in examples} == {
        cause.type for cause in Cause if cause not in (Cause.NOT_FOUND, Cause.OTHER_METHOD)
    }


def test_head_is_answered_as_get(client: TestClient) -> None:
    for path in ("/livez", "/readyz", "/v1/model", "/openapi.json", "/docs"):
        there, head = client.get(path), client.head(path)
        assert (head.status_code, head.headers["content-length"]) == (200, there.headers["content-length"])
    assert client.head("/v1/predict").status_code == 405


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    if isinstance(node, list):
        for value in node:
            yield from references(value)


def test_no_deep_learning_framework_is_imported_to_score(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(make_dicom())
    code = """
import sys
from pathlib import Path
from pipeline.model.bundle import load_bundle
from pipeline.score.predictor import Predictor
from services.api import app, command
from services.api.options import Settings
from services.api.scoring import StudyRequest, answer_studies
from services.api.uploads import Upload, UploadRoom, UploadStore
bundle, store = load_bundle(Path(sys.argv[1])), UploadStore("", 2**20)
request = StudyRequest([Upload(0, "a.dcm", Path(sys.argv[2]), bytes(32))], UploadRoom(store, store.path))
((_, body),) = answer_studies([request], Predictor(bundle), Settings())
assert b"probabilities" in b"".join(body)
store.close()
print(*{"torch", "timm", "mlflow", "monai", "matplotlib", "pandas", "sklearn"} & set(sys.modules))
"""
    command = [sys.executable, "-c", code, str(bundle.path), str(tmp_path / "a.dcm")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_nothing_is_logged_of_a_refused_request(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        client.post("/v1/predict", files=files(b"text", name="doe-jane-{}.dcm"))
    assert "doe-jane" not in caplog.text
