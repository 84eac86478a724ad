"""The HTTP service: routes from a bundle to answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib import metadata
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.openapi.utils import get_openapi

from pipeline.model.bundle import Bundle
from services.api import problems
from services.api.options import Settings
from services.api.problems import Problem
from services.api.schemas import Health, ModelAnswer, StudyAnswer
from services.api.scoring import answer_study
from services.api.service import Service
from services.api.uploads import FIELD, receive_uploads

_DESCRIPTION = (
    "Calibrated predictions with heatmaps for chest X-ray and retinal OCT studies. For research; not a medical device."
)
_STUDY_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}},
                }
            }
        },
    }
}
_PREDICT_PROBLEMS = {
    400: "The multipart body is malformed, or has too many files",
    408: "The body did not come in time",
    413: "The body is too large",
    415: "The body is not multipart/form-data",
    422: "No file, no readable file, or files of more than one study",
    500: "A fault inside the service",
    503: "Not loaded yet, busy, or unable to start a process that reads files; see Retry-After",
}
router = APIRouter()


def create_app(bundle: Bundle, settings: Settings) -> FastAPI:
    """Return the service around one bundle; it is ready some time after its lifespan has begun."""
    app = FastAPI(
        title="octray",
        version=metadata.version("octray"),
        description=_DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = Service(bundle, settings)
    app.include_router(router)
    problems.install(app)
    app.openapi = partial(_openapi, app)  # type: ignore[method-assign]
    return app


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Held = Annotated[Service, Depends(_service)]


def _documented(descriptions: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": description} for status, description in descriptions.items()}


@router.get("/livez")
async def livez() -> Health:
    """Whether the process answers."""
    return Health(status="alive")


@router.get("/readyz", responses=_documented({503: "Not loaded yet"}))
async def readyz(service: Held) -> Health:
    """Whether studies can be scored."""
    service.predictor()
    return Health(status="ready")


@router.get("/v1/model")
async def model(service: Held) -> ModelAnswer:
    """What is served: the public part of the bundle's manifest."""
    return ModelAnswer.of(service.bundle.manifest)


@router.post("/v1/predict", response_model=StudyAnswer, responses=_documented(_PREDICT_PROBLEMS), openapi_extra=_STUDY_BODY)
async def predict(
    request: Request,
    service: Held,
    heatmaps: Annotated[bool, Query(description="whether each frame's answer carries a heatmap for each finding")] = True,
) -> Response:
    """Score one study, sent as one file or several (DICOM, PNG, JPEG, TIFF)."""
    with service.admitted():
        predictor = service.predictor()
        async with receive_uploads(request, service.settings) as uploads:
            work = partial(answer_study, uploads, predictor, service.settings, heatmaps)
            content = await anyio.to_thread.run_sync(lambda: work().model_dump_json(), limiter=service.limiter)
    return Response(content, media_type="application/json")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model beside the running server, so that `/livez` answers while `/readyz` does not yet."""
    async with anyio.create_task_group() as group:
        group.start_soon(app.state.service.load)
        yield


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the description, with problems under their own media type, which FastAPI cannot be told."""
    description = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for operations in description["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    response["content"] = {problems.MEDIA_TYPE: response["content"]["application/json"]}
    return description
