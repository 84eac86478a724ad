"""Every error of the service as a problem detail (RFC 9457); the only place that turns exceptions into answers."""

from collections.abc import Iterable, Sequence
from enum import Enum

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pipeline.errors import InputError, OctrayError
from services.api.schemas import Failure

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5


class Cause(Enum):
    """Why a request is not answered as asked: status, code in the type, and title."""

    MALFORMED = (400, "malformed-request", "The request is malformed")
    NOT_FOUND = (404, "not-found", "No such address")
    OTHER_METHOD = (405, "method-not-allowed", "The address has other methods")
    TOO_SLOW = (408, "too-slow", "The request did not come in time")
    TOO_LARGE = (413, "too-large", "The request is too large")
    UNSUPPORTED = (415, "unsupported-media-type", "The media type is not supported")
    INVALID = (422, "invalid-request", "The request is not valid")
    UNREADABLE_STUDY = (422, "unreadable-study", "No file can be scored")
    SEVERAL_STUDIES = (422, "several-studies", "Files of more than one study")
    LARGE_HEADERS = (431, "headers-too-large", "The headers are too large")
    FAULT = (500, "service-fault", "The service cannot answer")
    UNSUPPORTED_CODING = (501, "unsupported-coding", "The transfer coding is not supported")
    LOADING = (503, "loading", "The model is being loaded")
    BROKEN = (503, "broken", "The model cannot be loaded")
    BUSY = (503, "busy", "The service is busy")
    STOPPING = (503, "stopping", "The service is being stopped")
    NO_WORKER = (503, "no-worker", "Files cannot be read now")
    NO_SPACE = (507, "no-space", "No room for uploads")

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.value[0]

    @property
    def code(self) -> str:
        """What `type` ends with."""
        return self.value[1]

    @property
    def type(self) -> str:
        """URI that programs may rely on."""
        return f"urn:octray:problem:{self.code}"

    @property
    def title(self) -> str:
        """The same for people."""
        return self.value[2]

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with every answer: when to try again, if that may help."""
        return {"Retry-After": str(RETRY_SECONDS)} if self.status in (503, 507) else {}


class InvalidField(BaseModel):
    """One part of a request that is not valid."""

    field: str
    message: str


class Problem(BaseModel):
    """A problem detail (RFC 9457) with two extensions of octray's own."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="urn:octray:problem:*, for programs")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="a sentence for people")
    errors: tuple[InvalidField, ...] | None = Field(default=None, description="what is wrong in the request, field by field")
    failures: tuple[Failure, ...] | None = Field(default=None, description="the files that could not be read, with reasons")

    @classmethod
    def of(
        cls,
        cause: Cause,
        detail: str,
        errors: Iterable[InvalidField] | None = None,
        failures: Iterable[Failure] | None = None,
    ) -> "Problem":
        """Return the problem that a cause makes of a request."""
        return cls(
            type=cause.type,
            title=cause.title,
            status=cause.status,
            detail=detail,
            errors=None if errors is None else tuple(errors),
            failures=None if failures is None else tuple(failures),
        )

    def as_json(self) -> str:
        """Return the body of the answer, without the extensions that say nothing."""
        return self.model_dump_json(exclude={name for name in ("errors", "failures") if getattr(self, name) is None})


class ProblemError(Exception):
    """A request that is answered with a problem.

    Parameters
    ----------
    cause, detail, errors, failures
        As in `Problem`.
    """

    def __init__(
        self, cause: Cause, detail: str, errors: Sequence[InvalidField] | None = None, failures: Sequence[Failure] | None = None
    ) -> None:
        self.cause, self.errors, self.failures = cause, errors, failures
        super().__init__(detail)


_STATUSES = {404: Cause.NOT_FOUND, 405: Cause.OTHER_METHOD}
_SENTENCES = {
    Cause.NOT_FOUND: "The service has no such address; /openapi.json lists those that it has.",
    Cause.OTHER_METHOD: "The address does not take this method; the header Allow lists those that it takes.",
}


def problem_of(error: Exception) -> tuple[Cause, Problem]:
    """Return what a caller gets for `error`: never a traceback, never more than octray itself wrote."""
    if isinstance(error, ProblemError):
        return error.cause, Problem.of(error.cause, str(error), error.errors, error.failures)
    if isinstance(error, RequestValidationError):
        errors = [InvalidField(field=".".join(map(str, e["loc"][1:])), message=e["msg"]) for e in error.errors()]
        return Cause.INVALID, Problem.of(Cause.INVALID, "The request is not valid; `errors` says where.", errors)
    if isinstance(error, InputError):  # such as too little memory for a process that reads files
        return Cause.NO_WORKER, Problem.of(Cause.NO_WORKER, str(error))
    if isinstance(error, OctrayError):
        return Cause.FAULT, Problem.of(Cause.FAULT, str(error))
    if isinstance(error, HTTPException):
        cause = _STATUSES.get(error.status_code, Cause.MALFORMED)
        return cause, Problem.of(cause, _SENTENCES.get(cause, error.detail))
    if isinstance(error, ClientDisconnect):
        return Cause.MALFORMED, Problem.of(Cause.MALFORMED, "The connection was closed before the whole request had come.")
    return Cause.FAULT, Problem.of(
        Cause.FAULT,
        "Something went wrong inside the service. The study was not scored; its operator finds the cause in the log.",
    )


def install(app: FastAPI) -> None:
    """Answer every exception of `app` with its problem detail."""
    for kind in (ProblemError, OctrayError, RequestValidationError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _answer)


async def _answer(_: Request, error: Exception) -> Response:
    cause, problem = problem_of(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"
    return Response(problem.as_json(), problem.status, headers | cause.headers, MEDIA_TYPE)
