"""The HTTP server under the application: how many connections it has, how long they may idle, and how it ends."""

import asyncio
import logging
import resource
import signal
import socket
import sys
import time
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from services.api.options import Settings
from services.api.problems import MEDIA_TYPE, Cause, Problem
from services.api.service import Service

_log = logging.getLogger("uvicorn.error")
_KEPT_DESCRIPTORS, _A_CONNECTION = 40, 2
"""Descriptors for what are not connections (log, workers, libraries), and those of one: its socket and a file."""
_LINGER_SECONDS = 2.0
_REMIND_SECONDS = 60.0
_MOST_HEAD = 2**14
_HEADERS = [("X-Content-Type-Options", "nosniff")]


class Listener(socket.socket):
    """A listening socket that gives one connection at a time, so that each is counted before the next is accepted."""

    _is_next = False

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises
        ------
        BlockingIOError
            If there is none, and every second time: asyncio would go on for as long as it has descriptors.
        """
        self._is_next = not self._is_next
        if not self._is_next:
            raise BlockingIOError
        return super().accept()


class Server(uvicorn.Server):
    """uvicorn with the limits of the service; the first signal drains it, the second ends it.

    Parameters
    ----------
    app
        As `create_app` gives it.
    settings
        Those it was made with.
    log_config
        As uvicorn takes it.

    Attributes
    ----------
    ended_by
        The signal that ended it; None as long as none has come.
    """

    def __init__(self, app: FastAPI, settings: Settings, log_config: dict[str, Any]) -> None:
        self.most_connections = _most_connections(settings.max_connections)
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=partial(Connection, server=self),  # type: ignore[arg-type]
            ws="none",
            log_config=log_config,
            server_header=False,
            headers=_HEADERS,
            h11_max_incomplete_event_size=_MOST_HEAD,
            timeout_keep_alive=max(1, round(settings.idle_seconds)),
        )
        super().__init__(config)
        self.settings = settings
        self.ended_by: signal.Signals | None = None
        self._service: Service = app.state.service
        self._deadline: float | None = None
        self._reported = float("-inf")

    def report(self, sentence: str) -> None:
        """Log a sentence about a lack, once a minute."""
        if time.monotonic() - self._reported > _REMIND_SECONDS:
            self._reported = time.monotonic()
            _log.warning(sentence)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or end at once if that goes on already."""
        if self.ended_by:
            self.should_exit = self.force_exit = True
        self.ended_by = signal.Signals(sig)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, with one line instead of a traceback if descriptors run out."""
        asyncio.get_running_loop().set_exception_handler(self._on_fault)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end: nothing is being scored any more, or the grace is over."""
        if await super().on_tick(counter):
            self._service.stop()
            self._service.cancel()
            return True
        if not self.ended_by:
            return False
        if self._deadline is None:
            _log.info("Finishing what is being scored. Another signal ends it at once.")
            self._deadline = time.monotonic() + self.settings.grace_seconds
            self._service.stop()
        if self._service.is_at_work() and time.monotonic() < self._deadline:
            return False
        self._service.cancel()
        return True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Send the answers, and close all connections: those whose clients do not read when the grace is over."""
        left = max(_LINGER_SECONDS, (self._deadline or 0) - time.monotonic())
        timer = asyncio.get_running_loop().call_later(left, self._abort)
        await super().shutdown(sockets)
        timer.cancel()

    def _abort(self) -> None:
        for one in list(self.server_state.connections):
            one.transport.abort()

    def _on_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "out of system resource" in context.get("message", ""):
            self.report("The process may not open more files (ulimit -n): new connections wait.")
        else:
            loop.default_exception_handler(context)


def _most_connections(asked: int) -> int:
    """Return how many connections may be open: as many as asked, or fewer if the process may not open as many files."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(asked, (descriptors - _KEPT_DESCRIPTORS) // _A_CONNECTION))


class Connection(H11Protocol):
    """One connection: h11 within time-outs, and problem details for what never reaches the application."""

    def __init__(self, *arguments: Any, server: Server, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._server = server
        self._idle_seconds = server.settings.idle_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._idle_since = time.monotonic()
        self._has_begun = self._is_refused = False

    def is_idle(self) -> bool:
        """Return whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection; if there are too many, end the one that has idled longest, or refuse this one."""
        super().connection_made(transport)
        self._wait(self._idle_seconds)
        most = self._server.most_connections
        if len(self.connections) <= most:
            return
        self._server.report(f"All {most} connections are in use: idle ones are closed, and others refused.")
        idle = [one for one in self.connections if isinstance(one, Connection) and one is not self and one.is_idle()]
        if idle:
            min(idle, key=lambda one: one._idle_since).transport.abort()
        else:
            self._refuse(Cause.BUSY, "The service has too many connections. Try again in a few seconds.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for timer in (self._timer, self._stalled):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come; the head of a request has so much time from its first byte on."""
        if self._is_refused:
            return
        if self.is_idle() and not self._has_begun:
            self._has_begun = True
            self._wait(self._idle_seconds)
        super().data_received(data)
        if not self.is_idle() and self._timer:
            self._timer.cancel()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._idle_since, self._has_begun = time.monotonic(), False
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which no further request has come."""
        self._close()

    def pause_writing(self) -> None:
        """Wait for the client to take what was sent, but not for long."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._idle_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 has just refused."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        if status == 431:
            self._refuse(Cause.LARGE_HEADERS, f"The head of the request has more than {_MOST_HEAD:,} bytes. Send less.")
        elif status == 501:
            self._refuse(Cause.UNSUPPORTED_CODING, "The only transfer coding is chunked. Send the body so, or with its length.")
        else:
            self._refuse(Cause.MALFORMED, "The request is not valid HTTP/1.1. Send it with an ordinary HTTP client.")

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: a request to upgrade is answered without (RFC 9110 7.8)."""

    def _wait(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._on_time)

    def _on_time(self) -> None:
        if self._has_begun and not self._is_refused and self.conn.our_state is h11.IDLE:
            self._refuse(
                Cause.TOO_SLOW, f"The head of the request did not come within {self._idle_seconds:g} seconds. Try again."
            )
        elif self.is_idle():
            self._close()

    def _refuse(self, cause: Cause, detail: str) -> None:
        """Answer with a problem instead of the application, and read on for a moment, so that the client sees the answer."""
        if self.cycle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = Problem.of(cause, detail).as_json().encode()
        own = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), "connection": "close"} | cause.headers
        headers = [*self.server_state.default_headers, *((name.encode(), value.encode()) for name, value in own.items())]
        head = h11.Response(status_code=cause.status, headers=headers, reason=STATUS_PHRASES[cause.status])
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        client = "{}:{}".format(*self.client) if self.client else ""
        self.access_logger.info('%s - "%s %s HTTP/%s" %d', client, "-", f"({cause.code})", "1.1", cause.status)
        self._is_refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait(_LINGER_SECONDS)

    def _close(self) -> None:
        """Close the connection, without waiting for a client that does not take what was sent."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()
