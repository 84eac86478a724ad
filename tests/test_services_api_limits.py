"""The service as an ASGI application, driven message by message: slow, vanished and waiting clients."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI

from pipeline.model.bundle import Bundle
from services.api.app import create_app
from services.api.options import Settings
from services.api.problems import MEDIA_TYPE, Cause
from tests.builders import make_bundle, make_dicom

SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/v1/predict",
    "raw_path": b"/v1/predict",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"octray"), (b"content-type", b"multipart/form-data; boundary=b")],
    "server": ("octray", 80),
    "client": ("127.0.0.1", 1),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("served") / "bundle")


def answer(app: FastAPI, receive: Callable[[], Awaitable[dict[str, Any]]]) -> tuple[int, dict[str, Any]]:
    """The status and the problem that `app` sends to a client that `receive` plays."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def run() -> None:
        await app.state.service.load()
        await app(dict(SCOPE), receive, send)

    anyio.run(run)
    assert (b"content-type", MEDIA_TYPE.encode()) in sent[0]["headers"]
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


def test_a_body_that_does_not_come_is_given_up(bundle: Bundle) -> None:
    async def receive() -> dict[str, Any]:
        await anyio.sleep_forever()
        raise AssertionError

    status, problem = answer(create_app(bundle, Settings(upload_seconds=0.05)), receive)
    assert (status, problem["type"]) == (408, Cause.TOO_SLOW.type)
    assert "not all of it within 0.05 seconds" in problem["detail"]


def test_a_client_that_vanishes_leaves_no_place_taken(bundle: Bundle) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    app = create_app(bundle, Settings(queue=0))
    for _ in range(3):
        status, problem = answer(app, receive)
        assert (status, problem["detail"]) == (400, "The connection was closed before the whole request had come.")


def test_a_full_queue_is_a_problem_and_leaves_the_rest_answering(bundle: Bundle) -> None:
    """No study has its turn, since no thread takes one: the second finds no place."""
    app = create_app(bundle, Settings(concurrency=1, queue=0))
    service = app.state.service
    statuses: list[int] = []

    async def predict(client: httpx.AsyncClient) -> None:
        statuses.append((await client.post("/v1/predict", files={"files": ("a.dcm", make_dicom())})).status_code)

    async def run() -> None:
        await service.load()
        with service._changed:
            service._closed = True  # no thread takes a study any more
            service._changed.notify_all()
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://octray") as client,
            anyio.create_task_group() as group,
        ):
            group.start_soon(predict, client)
            while not service._waiting:
                await anyio.sleep(0.001)
            response = await client.post("/v1/predict", files={"files": ("a.dcm", make_dicom())})
            assert (response.status_code, response.json()["type"]) == (503, Cause.BUSY.type)
            assert response.headers["retry-after"] == "5"
            assert (await client.get("/livez")).status_code == 200
            service.stop()
        assert statuses == [503]

    anyio.run(run)
    service.close()
