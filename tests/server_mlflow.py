"""Starts an MLflow server of its own on loopback, and a proxy before it that is slow or down when a test wants it."""

import http.client
import http.server
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.server_orthanc import free_port

SECONDS = 240


@contextmanager
def mlflow_server(store: Path | str, folder: Path) -> Iterator[str]:
    """Serve a SQLite file that is there, or the address of a database; artefacts pass through the server into the folder."""
    port = free_port()
    uri = f"sqlite:///{store}" if isinstance(store, Path) else store
    where = ["--backend-store-uri", uri, "--artifacts-destination", str(folder), "--serve-artifacts"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *where]
    log = folder.with_suffix(".log")
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, process_group=0) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(SECONDS)


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until it answers."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=SECONDS).close()  # noqa: S310
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"MLflow did not start: {log.read_text()[-2000:]}")


@dataclass
class Proxy:
    """What stands before the server: it answers the next upload late, or nothing at all."""

    url: str
    upload_seconds: float = 0.0
    is_down: bool = False
    uploads: int = 0


@contextmanager
def proxy_of(url: str) -> Iterator[Proxy]:
    upstream = url.removeprefix("http://")
    proxy = Proxy("")

    class Handler(http.server.BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = b"".join(self.chunks())
            if proxy.is_down:
                self.answer(503, b"the proxy is down")
                return
            kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "transfer-encoding")}
            connection = http.client.HTTPConnection(upstream, timeout=SECONDS)
            connection.request(self.command, self.path, body, kept | {"Content-Length": str(len(body))})
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if self.command == "PUT":
                proxy.uploads += 1
                seconds, proxy.upload_seconds = proxy.upload_seconds, 0.0
                time.sleep(seconds)
            self.answer(answer.status, content, answer.getheader("Content-Type", ""))

        def chunks(self) -> Iterator[bytes]:
            if self.headers.get("Transfer-Encoding") != "chunked":
                yield self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def answer(self, status: int, content: bytes, kind: str = "text/plain") -> None:
            with suppress(ConnectionError):  # the client may have given up
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815 - names of http.server

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        proxy.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
