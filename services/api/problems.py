"""Every error of the service as a problem detail (RFC 9457); the only place that turns exceptions into answers."""

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pipeline.errors import InputError, OctrayError, UnreadableError, WorkerError
from services.api.schemas import Failure

MEDIA_TYPE = "application/problem+json"
RETRY = {"Retry-After": "5"}


class InvalidField(BaseModel):
    """One part of a request that is not valid."""

    field: str
    message: str


class Problem(BaseModel):
    """A problem detail (RFC 9457) with two extensions of octray's own."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(default="about:blank", description="about:blank, or urn:octray:problem:*")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    errors: tuple[InvalidField, ...] | None = Field(default=None, description="what is wrong in the request, field by field")
    failures: tuple[Failure, ...] | None = Field(default=None, description="the files that could not be read, with reasons")


class UnreadableStudyError(InputError):
    """None of a request's files can be read.

    Parameters
    ----------
    failures
        One for each file.
    """

    def __init__(self, failures: tuple[Failure, ...]) -> None:
        self.failures = failures
        super().__init__("None of the files can be scored; `failures` says why.")


class StudyMismatchError(InputError):
    """The files of one request belong to more than one study."""


_TYPES: Mapping[type[OctrayError], tuple[int, str, str]] = {
    UnreadableStudyError: (422, "unreadable-study", "No file can be scored"),
    StudyMismatchError: (422, "several-studies", "Files of more than one study"),
    UnreadableError: (422, "unreadable-file", "File cannot be read"),
    WorkerError: (503, "no-worker", "Files cannot be read now"),
    InputError: (422, "unusable-input", "Input cannot be used"),
    OctrayError: (500, "service-fault", "The service cannot answer"),
}


def problem_of(error: Exception) -> Problem:
    """Return the sentence that a caller gets for `error`: never a traceback, never more than octray itself wrote."""
    if isinstance(error, OctrayError):
        status, code, title = next(_TYPES[kind] for kind in type(error).__mro__ if kind in _TYPES)
        failures = getattr(error, "failures", None)
        return Problem(type=f"urn:octray:problem:{code}", title=title, status=status, detail=str(error), failures=failures)
    if isinstance(error, RequestValidationError):
        errors = tuple(InvalidField(field=".".join(map(str, e["loc"][1:])), message=e["msg"]) for e in error.errors())
        return _plain(422, "The request is not valid; `errors` says where.", errors)
    if isinstance(error, HTTPException):
        return _plain(error.status_code, error.detail)
    if isinstance(error, ClientDisconnect):
        return _plain(400, "The connection was closed before the whole request had come.")
    return _plain(
        500, "Something went wrong inside the service. The study was not scored; its operator finds the cause in the log."
    )


def install(app: FastAPI) -> None:
    """Answer every exception of `app` with its problem detail."""
    for kind in (OctrayError, RequestValidationError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _answer)


def _plain(status: int, detail: str, errors: tuple[InvalidField, ...] | None = None) -> Problem:
    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors)


async def _answer(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    headers = error.headers if isinstance(error, HTTPException) else RETRY if problem.status == 503 else None
    unused = {name for name in ("errors", "failures") if getattr(problem, name) is None}
    return Response(problem.model_dump_json(exclude=unused), problem.status, headers, MEDIA_TYPE)
