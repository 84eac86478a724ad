"""Takes the files of one multipart request as they come: onto a disk, hashed on the way, within limits, and nothing else."""

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from pipeline.errors import InputError
from pipeline.imaging.files.names import leftover, visible
from services.api.options import Settings
from services.api.problems import Cause, InvalidField, ProblemError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "files"
_MOST_ERRORS = 16
_BLOCK = 2**20
"""Bytes of a body that are parsed, hashed and written together, in a thread; a request holds no more in memory."""
_STEP = 2**16
"""Bytes for which room is made together, if it is not known beforehand how many will come."""
_SPARE = 2**27
"""Bytes of the disk that uploads leave free."""
_PREFIX = "octray-uploads-"


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of a request.

    Parameters
    ----------
    index
        Its position among the files of the request, from 0.
    source
        Its own name, as one can see it and without folders.
    path
        Where its content lies.
    sha256
        Of its content.
    is_leftover
        Whether an operating system or a network drive left it behind, by its name and those of its folders.
    """

    index: int
    source: str
    path: Path
    sha256: bytes
    is_leftover: bool = False


class UploadStore:
    """A folder of the service's own for what belongs to open requests; bounded, and checked before anything is written.

    A folder that a killed service left behind is removed by the next one: what lies in it may be patients' data.

    Parameters
    ----------
    parent
        Where the folder is made; empty takes the system's temporary folder.
    most
        Bytes of all requests together.

    Raises
    ------
    InputError
        If no folder can be made there.

    Attributes
    ----------
    path
        The folder.
    close
        Removes it and all in it; called at the end of the process at the latest.
    """

    def __init__(self, parent: str, most: int) -> None:
        base = Path(parent or tempfile.gettempdir())
        try:
            _remove_left_behind(base)
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise InputError(
                f"Uploads cannot be kept in {base.name or base}: {error.strerror}. Give another folder with --upload-folder."
            ) from None
        self.close = weakref.finalize(self, _remove, self.path, lock)
        self._most = most
        self._reserved = 0
        self._lock = threading.Lock()

    @asynccontextmanager
    async def room(self, announced: int) -> AsyncIterator["UploadRoom"]:
        """Give one request a folder, which is gone afterwards.

        Raises
        ------
        ProblemError
            507 if there is no room for the bytes that are announced.
        """
        room = UploadRoom(self, Path(tempfile.mkdtemp(dir=self.path)))
        try:
            room.reserve(announced)
            yield room
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(room.close)

    def reserve(self, count: int) -> None:
        """Count bytes before they are written; negative ones give them back.

        Raises
        ------
        ProblemError
            507 if the bound or the disk has no room for them.
        """
        with self._lock:
            free = shutil.disk_usage(self.path).free - _SPARE if count > 0 else 0
            if count > 0 and (self._reserved + count > self._most or count > free):
                raise _no_space()
            self._reserved += count


class UploadRoom:
    """The folder of one request."""

    def __init__(self, store: UploadStore, path: Path) -> None:
        self.path = path
        self._store = store
        self._reserved = self._written = 0
        self._lock = threading.Lock()
        self._closed = False

    def reserve(self, total: int) -> None:
        """Make sure that the request has room for so many bytes in all.

        Raises
        ------
        ProblemError
            507 if there is none, or if the request has ended.
        """
        with self._lock:
            if self._closed:
                raise _no_space()
            if total > self._reserved:
                self._store.reserve(total - self._reserved)
                self._reserved = total

    def open(self, name: str) -> IO[bytes]:
        """Open a new file of the folder for `write`.

        Raises
        ------
        ProblemError
            507 if there is no room for it, or if the request has ended.
        """
        try:
            return (self.path / name).open("wb")
        except OSError:
            raise _no_space() from None

    def write(self, file: IO[bytes], content: bytes | memoryview) -> None:
        """Write into a file of the folder.

        Raises
        ------
        ProblemError
            507 if there is no room.
        """
        self._written += len(content)
        if self._written > self._reserved:
            self.reserve(max(self._written, self._reserved + _STEP))
        try:
            file.write(content)
        except OSError:  # most often ENOSPC: another program was faster
            raise _no_space() from None

    def close(self) -> None:
        """Remove the folder, and give its bytes back."""
        with self._lock:
            self._closed = True
            self._store.reserve(-self._reserved)
        shutil.rmtree(self.path, ignore_errors=True)


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _no_space() -> ProblemError:
    return ProblemError(Cause.NO_SPACE, "The service has no room on its disk for this request now. Try again in a few seconds.")


def _remove_left_behind(base: Path) -> None:
    """Remove the folders of services of this user that do not run any more."""
    for path in base.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
        with suppress(OSError), (path / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)


async def receive_uploads(request: Request, settings: Settings, room: UploadRoom) -> Sequence[Upload]:
    """Receive the files of `request` into its folder.

    Raises
    ------
    ProblemError
        415 if the request is not multipart, 413 if it or the number of its files is too large, 408 if it arrives too slowly,
        400 if it is malformed, 422 if it has no file or anything but files in the field `files`, 507 if the disk is full.
    ClientDisconnect
        If the client does not wait for the end.
    """
    form = _Form(_boundary(request), room, settings.max_files)
    started, total, pending = time.monotonic(), 0, bytearray()
    more_body = True
    with closing(form):
        while more_body:
            message = await _received(request, settings, started, total)
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            content, more_body = message.get("body", b""), message.get("more_body", False)
            total += len(content)
            check_length(total, settings)
            pending += content
            if pending and (len(pending) >= _BLOCK or not more_body):
                await anyio.to_thread.run_sync(form.feed, bytes(pending))
                pending.clear()
    return form.files()


def announced_bytes(request: Request) -> int:
    """Return how many bytes the body of a request will have; 0 if it does not say."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def check_length(size: int, settings: Settings) -> None:
    """Raise 413 if a body of so many bytes is too large."""
    if size > settings.max_body_bytes:
        raise ProblemError(
            Cause.TOO_LARGE, f"The request is larger than {settings.max_body_bytes:,} bytes. Send fewer files at a time."
        )


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise ProblemError(Cause.UNSUPPORTED, f"Send the study's files as multipart/form-data, in the field `{FIELD}`.")
    if not options.get(b"boundary"):
        raise ProblemError(Cause.MALFORMED, "The header Content-Type names no boundary of the multipart body.")
    return options[b"boundary"]


async def _received(request: Request, settings: Settings, started: float, total: int) -> Message:
    """Return the next message of a body of which `total` bytes have come since `started`."""
    by_rate = started + settings.idle_seconds + total / settings.upload_rate
    now = time.monotonic()
    try:
        with anyio.fail_after(max(0.0, min(now + settings.idle_seconds, by_rate, started + settings.upload_seconds) - now)):
            return await request.receive()
    except TimeoutError:
        raise ProblemError(
            Cause.TOO_SLOW,
            f"The request came too slowly: nothing for {settings.idle_seconds:g} seconds, less than {settings.upload_rate:,} "
            f"bytes a second, or not all of it within {settings.upload_seconds:g} seconds. Try again, with fewer files.",
        ) from None


@dataclass(slots=True)
class _Part:
    """A part of the form that is being received; `file` is None if nothing of it is kept."""

    disposition: bytes = b""
    name: str = ""
    path: Path | None = None
    file: IO[bytes] | None = None


class _Form:
    """A form of files: its parts go to the disk, and what must not be in it is remembered until the body has come."""

    def __init__(self, boundary: bytes, room: UploadRoom, max_files: int) -> None:
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._open,
            "on_part_data": self._data,
            "on_part_end": self._close,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError:
            raise _malformed() from None
        self._room, self._max_files = room, max_files
        self._part, self._name, self._value = _Part(), b"", b""
        self._digest = hashlib.sha256()
        self._files: list[Upload] = []
        self._errors: list[InvalidField] = []
        self._count, self._ended = 0, False

    def feed(self, content: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(content)
        except FormParserError:
            raise _malformed() from None

    def files(self) -> Sequence[Upload]:
        """Return the files, once the whole body has come."""
        if not self._ended:
            raise ProblemError(
                Cause.MALFORMED, "The multipart body ends before its closing boundary; a file may be missing. Send it again."
            )
        if self._errors:
            raise ProblemError(
                Cause.INVALID, "The request has parts that are not files of a study; `errors` says which.", self._errors
            )
        if self._count > self._max_files:
            raise ProblemError(
                Cause.TOO_LARGE, f"Too many files: the request has {self._count:,} of at most {self._max_files:,}."
            )
        if not self._files:
            message = f"The request has no file. Send one file or several of one study in the field `{FIELD}`."
            raise ProblemError(Cause.INVALID, message, [InvalidField(field=FIELD, message="is required")])
        return self._files

    def _begin(self) -> None:
        self._part, self._name, self._value = _Part(), b"", b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._part.disposition = self._value
        self._name = self._value = b""

    def _open(self) -> None:
        _, options = parse_options_header(self._part.disposition)
        field, name = _text(options.get(b"name", b"")), _text(options.get(b"filename", b""))
        if message := _fault(field, name, b"filename" in options):
            if len(self._errors) < _MOST_ERRORS:
                self._errors.append(InvalidField(field=visible(field), message=message))
            return
        self._count += 1
        if self._errors or self._count > self._max_files:
            return  # the request will be refused, once it has been read
        self._part.name = name
        self._part.path = self._room.path / str(self._count - 1)
        self._part.file = self._room.open(self._part.path.name)
        self._digest = hashlib.sha256()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.file:
            content = memoryview(data)[start:end]
            self._digest.update(content)
            self._room.write(self._part.file, content)

    def _close(self) -> None:
        if self._part.file and self._part.path:
            self.close()
            parts = self._part.name.replace("\\", "/").rstrip("/").split("/")
            is_leftover = any(map(leftover, parts))
            index, digest = len(self._files), self._digest.digest()
            self._files.append(Upload(index, visible(parts[-1]), self._part.path, digest, is_leftover))

    def _end(self) -> None:
        self._ended = True

    def close(self) -> None:
        """Close the file that is being written, if there is one."""
        if self._part.file:
            file, self._part.file = self._part.file, None
            try:
                file.close()
            except OSError:
                raise _no_space() from None


def _fault(field: str, name: str, has_name: bool) -> str:
    if field != FIELD:
        return f"is no field of this form. Send every file in the field `{FIELD}`, spelled like this."
    if not name:
        what = "an empty" if has_name else "no"
        return f"has a part with {what} file name. Give each file its name (`filename=` in its Content-Disposition)."
    return ""


def _malformed() -> ProblemError:
    return ProblemError(Cause.MALFORMED, "The multipart body is malformed. Send the files with an ordinary HTTP client.")


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")
