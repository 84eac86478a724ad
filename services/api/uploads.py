"""Takes the files of one multipart request, within limits, as they come."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO

import anyio
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from services.api.settings import Settings

FIELD = "files"
_MAX_FIELDS = 16


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of a request: its own name, without folders, and its content, which lies on disk above a megabyte."""

    source: str
    file: BinaryIO


@asynccontextmanager
async def receive_uploads(request: Request, settings: Settings) -> AsyncIterator[Sequence[Upload]]:
    """Receive the files of `request`; they are gone afterwards.

    Raises
    ------
    HTTPException
        415 where the request is not multipart, 413 where it is too large, 408 where it comes too slowly, 400 where it is
        malformed or has too many files, 422 where it has no file in the field `files`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise HTTPException(415, f"Send the study's files as multipart/form-data, in the field `{FIELD}`.")
    limited = _limited(request, settings.max_body_bytes)
    try:
        with anyio.fail_after(settings.upload_seconds):
            form = await limited.form(max_files=settings.max_files, max_fields=_MAX_FIELDS)
    except TimeoutError:
        raise HTTPException(408, f"The request did not come whole within {settings.upload_seconds:g} seconds.") from None
    try:
        yield _named(form.getlist(FIELD))
    finally:
        await form.close()


def _named(values: Sequence[UploadFile | str]) -> Sequence[Upload]:
    files = [value for value in values if isinstance(value, UploadFile) and value.filename]
    if not files:
        raise HTTPException(422, f"The request has no file. Send one file or several of one study in the field `{FIELD}`.")
    return [Upload(_own_name(file.filename or ""), file.file) for file in files]


def _own_name(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _limited(request: Request, most: int) -> Request:
    """Return `request` with a body that ends in 413 as soon as more than `most` bytes are announced or have come."""
    too_large = HTTPException(413, f"The request is larger than {most:,} bytes. Send fewer files at a time.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise too_large
    come = 0

    async def receive() -> Message:
        nonlocal come
        message = await request.receive()
        come += len(message.get("body", b""))
        if come > most:
            raise too_large
        return message

    return Request(request.scope, receive)
