"""Starts an Orthanc of its own on loopback, with an empty storage, for tests that need a real archive."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECONDS = 30


@dataclass(frozen=True)
class Orthanc:
    """An archive that is up."""

    url: str
    dicom_port: int

    def get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(self.url + path))  # noqa: S310

    def store(self, content: bytes) -> Any:
        """Store one DICOM file; returns what Orthanc says of it, its own identifier among it."""
        return self._ask(urllib.request.Request(self.url + "/instances", data=content, method="POST"))  # noqa: S310

    def tags(self, identifier: str) -> dict[str, str]:
        tags: dict[str, str] = self.get(f"/instances/{identifier}/simplified-tags")
        return tags

    def _ask(self, request: urllib.request.Request) -> Any:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
            return json.load(answer)


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An empty Orthanc; tests are skipped where it is not installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("Orthanc is not installed")
    folder = tmp_path_factory.mktemp("orthanc")
    http, dicom = free_port(), free_port()
    config = folder / "orthanc.json"
    config.write_text(json.dumps(configuration(folder, http, dicom)))
    with (folder / "log.txt").open("w") as log, subprocess.Popen([program, str(config)], stdout=log, stderr=log) as process:
        try:
            server = Orthanc(f"http://127.0.0.1:{http}", dicom)
            wait_for(server, process, folder / "log.txt")
            yield server
        finally:
            process.terminate()
            process.wait(SECONDS)


def configuration(folder: Path, http: int, dicom: int) -> dict[str, Any]:
    return {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http,
        "DicomPort": dicom,
        "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
    }


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wait_for(server: Orthanc, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until it answers."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            server.get("/system")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"Orthanc did not start: {log.read_text()[-2000:]}")
