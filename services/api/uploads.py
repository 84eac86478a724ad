"""Takes the files of one multipart request, within limits, as they come."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO

import anyio
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from pipeline.imaging.files.names import leftover, visible
from services.api.options import Settings

FIELD = "files"
_MAX_FIELDS = 16
_END = 512


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of a request.

    Parameters
    ----------
    source
        Its own name, as one can see it and without folders.
    file
        Its content, on disk above a megabyte.
    is_leftover
        Whether an operating system or a network drive left it behind, by its name and those of its folders.
    """

    source: str
    file: BinaryIO
    is_leftover: bool = False


@asynccontextmanager
async def receive_uploads(request: Request, settings: Settings) -> AsyncIterator[Sequence[Upload]]:
    """Receive the files of `request`; they are gone afterwards.

    Raises
    ------
    HTTPException
        415 if the request is not multipart, 413 if it is too large, 408 if it arrives too slowly, 400 if it is
        malformed or has too many files, 422 if it has no file in the field `files`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise HTTPException(415, f"Send the study's files as multipart/form-data, in the field `{FIELD}`.")
    body = _Body(request, settings.max_body_bytes)
    try:
        with anyio.fail_after(settings.upload_seconds):
            form = await Request(request.scope, body.receive).form(max_files=settings.max_files, max_fields=_MAX_FIELDS)
    except TimeoutError:
        raise HTTPException(408, f"The request did not arrive completely within {settings.upload_seconds:g} seconds.") from None
    try:
        yield _named(form.getlist(FIELD))
    finally:
        await form.close()


def _named(values: Sequence[UploadFile | str]) -> Sequence[Upload]:
    files = [value for value in values if isinstance(value, UploadFile) and value.filename]
    if not files:
        raise HTTPException(422, f"The request has no file. Send one file or several of one study in the field `{FIELD}`.")
    return [_upload(file.filename or "", file.file) for file in files]


def _upload(name: str, file: BinaryIO) -> Upload:
    parts = name.replace("\\", "/").rstrip("/").split("/")
    return Upload(visible(parts[-1]), file, any(map(leftover, parts)))


class _Body:
    """A request's body, which ends in 413 as soon as more than `most` bytes are announced or have come."""

    def __init__(self, request: Request, most: int) -> None:
        self._request = request
        self._most = most
        self._come = 0
        self._end = b""
        announced = request.headers.get("content-length", "")
        self._check(int(announced) if announced.isdecimal() else 0)

    async def receive(self) -> Message:
        message = await self._request.receive()
        content = message.get("body", b"")
        self._come += len(content)
        self._check(self._come)
        self._end = (self._end + content[-_END:])[-_END:]
        if message["type"] == "http.request" and not message.get("more_body"):
            self._check_end()
        return message

    def _check_end(self) -> None:
        """Raise 400 if the closing boundary is missing, since the parser would silently drop the last file."""
        _, options = parse_options_header(self._request.headers["content-type"])
        if b"--" + options[b"boundary"] + b"--" not in self._end:
            raise HTTPException(400, "The multipart body ends before its closing boundary; a file may be missing.")

    def _check(self, size: int) -> None:
        if size > self._most:
            raise HTTPException(413, f"The request is larger than {self._most:,} bytes. Send fewer files at a time.")
