"""The HTTP service: routes from a bundle to answers."""

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import metadata, resources
from typing import Annotated, Any

import anyio
import jinja2
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.model.bundle import Bundle
from services.api import problems
from services.api.options import Settings
from services.api.problems import Cause, InvalidField, Problem, ProblemError
from services.api.schemas import STUDY_EXAMPLE, Health, ModelAnswer, StudyAnswer
from services.api.scoring import Body, StudyRequest
from services.api.service import Service
from services.api.uploads import FIELD, announced_bytes, check_length, receive_uploads

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
                    "additionalProperties": False,
                    "properties": {FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}},
                }
            }
        },
    }
}
EVERYWHERE = (Cause.MALFORMED, Cause.TOO_SLOW, Cause.LARGE_HEADERS, Cause.FAULT, Cause.UNSUPPORTED_CODING, Cause.BUSY)
"""What any request may be answered with, even before its address is known."""
_NOT_READY = (Cause.LOADING, Cause.BROKEN, Cause.STOPPING)
PREDICT = (
    *(Cause.TOO_LARGE, Cause.UNSUPPORTED, Cause.INVALID, Cause.UNREADABLE_STUDY, Cause.SEVERAL_STUDIES),
    *(*_NOT_READY, Cause.NO_WORKER, Cause.NO_SPACE),
)
"""What a prediction may be answered with besides."""
_NO_STORE = {"Cache-Control": "no-store"}


def create_app(bundle: Bundle, settings: Settings) -> FastAPI:
    """Return the service around one bundle; it is ready some time after its lifespan has begun.

    Raises
    ------
    InputError
        If there is no place for uploads.
    """
    app = FastAPI(
        title="octray",
        version=metadata.version("octray"),
        description=_DESCRIPTION,
        lifespan=_lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = Service(bundle, settings)
    app.include_router(_health)
    app.include_router(_v1)
    problems.install(app)
    description = _description(app)
    for path, content, kind in (
        ("/openapi.json", json.dumps(description), "application/json"),
        ("/docs", _page(description), "text/html"),
    ):
        app.add_api_route(path, _fixed(content, kind), methods=["GET"], include_in_schema=False)
    app.add_middleware(_HeadAsGet)
    return app


class _HeadAsGet:
    """Answers HEAD as GET; the server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self._app({**scope, "method": "GET"} if is_head else scope, receive, send)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _check_options(request: Request) -> None:
    """Refuse options that the address does not have, or that are there twice, instead of dropping them."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    given = [name for name, _ in request.query_params.multi_items()]
    errors = [
        InvalidField(field=name, message="is no option of this address") for name in dict.fromkeys(given) if name not in known
    ]
    errors += [InvalidField(field=name, message="is there more than once") for name in known if given.count(name) > 1]
    if errors:
        raise ProblemError(Cause.INVALID, "The request is not valid; `errors` says where.", errors)


Held = Annotated[Service, Depends(_service)]
_health = APIRouter(tags=["health"])
_v1 = APIRouter(prefix="/v1", tags=["models"], dependencies=[Depends(_check_options)])


def _answered_with(causes: Iterable[Cause]) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of problems: for each status what it means, with an example of each cause."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({cause.status for cause in (*EVERYWHERE, *causes)}):
        some = [cause for cause in dict.fromkeys((*EVERYWHERE, *causes)) if cause.status == status]
        examples = {one.code: {"value": json.loads(Problem.of(one, f"{one.title}.").as_json())} for one in some}
        found[status] = {
            "model": Problem,
            "description": "; ".join(one.title for one in some),
            "content": {"application/json": {"examples": examples}},
        }
        if some[0].headers:
            found[status]["headers"] = {
                "Retry-After": {"description": "seconds after which to try again", "schema": {"type": "integer"}}
            }
    return found


@_health.get("/livez", operation_id="livez", responses=_answered_with(()))
async def livez() -> Health:
    """Whether the process answers."""
    return Health(status="alive")


@_health.get("/readyz", operation_id="readyz", responses=_answered_with(_NOT_READY))
async def readyz(service: Held) -> Health:
    """Whether studies can be scored."""
    service.check()
    return Health(status="ready")


@_v1.get("/model", operation_id="get_model", responses=_answered_with((Cause.INVALID,)))
async def model(service: Held) -> ModelAnswer:
    """What is served: the public part of the bundle's manifest."""
    return ModelAnswer.of(service.bundle.manifest)


@_v1.post(
    "/predict",
    operation_id="predict",
    response_model=StudyAnswer,
    responses={200: {"content": {"application/json": {"example": STUDY_EXAMPLE}}}, **_answered_with(PREDICT)},
    openapi_extra=_STUDY_BODY,
)
async def predict(
    request: Request,
    service: Held,
    heatmaps: Annotated[bool, Query(description="whether each frame's answer carries a heatmap for each finding")] = True,
) -> Response:
    """Score one study, sent as one file or several (DICOM, PNG, JPEG, TIFF)."""
    async with AsyncExitStack() as stack:
        with service.uploading():
            check_length(announced_bytes(request), service.settings)
            room = await stack.enter_async_context(service.store.room(announced_bytes(request)))
            uploads = await receive_uploads(request, service.settings, room)
        body = await _while_connected(request, service, StudyRequest(uploads, room, heatmaps))
        return _BodyResponse(body, stack.pop_all())


async def _while_connected(request: Request, service: Service, study: StudyRequest) -> Body:
    """Score a study for as long as its client waits.

    Raises
    ------
    ClientDisconnect
        If it does not.
    """
    outcome: Body | Exception = ClientDisconnect()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        try:
            outcome = await service.answer(study)
        except Exception as error:
            outcome = error
        group.cancel_scope.cancel()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


class _BodyResponse(Response):
    """Sends a body piece by piece, and then frees what it lies in."""

    media_type = "application/json"

    def __init__(self, body: Body, held: AsyncExitStack) -> None:
        super().__init__(headers={"Content-Length": str(body.length)} | _NO_STORE)
        self._pieces, self._held = iter(body), held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while (piece := await anyio.to_thread.run_sync(next, self._pieces, None)) is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model beside the running server, so that `/livez` answers while `/readyz` does not yet."""
    service: Service = app.state.service
    async with anyio.create_task_group() as group:
        group.start_soon(service.load)
        try:
            yield
        finally:
            service.close()


def _fixed(content: str, kind: str) -> Any:
    """Return a route that always gives the same content, made once."""
    encoded, policy = content.encode(), {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}

    async def fixed() -> Response:
        return Response(encoded, media_type=kind, headers=policy if kind == "text/html" else None)

    return fixed


def _description(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description, with problems under their own media type, which FastAPI cannot be told."""
    description = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for operations in description["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    response["content"] = {problems.MEDIA_TYPE: response["content"]["application/json"]}
    for unused in ("HTTPValidationError", "ValidationError"):
        description["components"]["schemas"].pop(unused, None)
    return description


def _page(description: dict[str, Any]) -> str:
    """Return the description as a page, which loads nothing."""
    template = (resources.files("services.api") / "templates" / "docs.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(template).render(description=description)
