"""Headless Chromium, as a reader of pages that lie on the disk; nothing it does reaches a network."""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_SECONDS = 120


class Chromium:
    """Opens one page at a time, each with a profile of its own."""

    def __init__(self, program: str) -> None:
        self._program = program

    def text(self, page: Path) -> str:
        """Return the document as the browser understood it."""
        return self._run(page, "--dump-dom")

    def screenshot(self, page: Path, out: Path) -> None:
        """Draw what a reader sees first, 1280 x 1600 pixels."""
        self._run(page, f"--screenshot={out}", "--window-size=1280,1600", "--hide-scrollbars")

    def pdf(self, page: Path, out: Path) -> None:
        """Print a page."""
        self._run(page, f"--print-to-pdf={out}")

    @contextmanager
    def reader(self, page: Path) -> Iterator["Reader"]:
        """Give somebody who reads a page without a mouse."""
        to_browser, from_browser = os.pipe(), os.pipe()
        shell = f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'  # the numbers that Chromium asks for
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            flags = [*_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
            process = subprocess.Popen(
                ["bash", "-c", shell, "bash", self._program, *flags],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(to_browser[0], from_browser[1]),
            )
            os.close(to_browser[0])
            os.close(from_browser[1])
            try:
                with os.fdopen(to_browser[1], "wb", 0) as asked, os.fdopen(from_browser[0], "rb") as answered:
                    yield Reader(asked, answered, page)
            finally:
                process.kill()
                process.wait()

    def _run(self, page: Path, *more: str) -> str:
        with tempfile.TemporaryDirectory() as profile:
            command = [self._program, *_FLAGS, f"--user-data-dir={profile}", *more, page.as_uri()]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS)
        return done.stdout


class Reader:
    """Presses keys on a page, by the DevTools protocol."""

    def __init__(self, asked: IO[bytes], answered: IO[bytes], page: Path) -> None:
        self._asked = asked
        self._answered = answered
        self._session: dict[str, str] = {}
        self._number = 0
        self._read = b""
        target = self._ask("Target.createTarget", url=page.as_uri())["targetId"]
        self._session = {"sessionId": self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self._ask("Emulation.setFocusEmulationEnabled", enabled=True)
        deadline = time.monotonic() + _SECONDS
        while self.evaluate("[location.href, document.readyState]") != [page.as_uri(), "complete"]:  # not the empty page before
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def press(self, key: str, code: int) -> None:
        """Press and release a key, given by its name and its Windows virtual key code."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        return self._ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, width: int, last: str) -> str:
        """Return what the page shows down to the end of an element, given by its selector, as a PNG file in base64."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)
        height = self.evaluate(f"document.querySelector('{last}').getBoundingClientRect().bottom + scrollY + 14")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        content: str = self._ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        return content

    def _ask(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | self._session
        self._asked.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self._number:
                assert "result" in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _message(self) -> bytes:
        while b"\0" not in self._read:
            if not select.select([self._answered], [], [], _SECONDS)[0]:
                raise TimeoutError("Chromium does not answer.")
            if not (more := os.read(self._answered.fileno(), 2**16)):
                raise EOFError("Chromium has ended.")
            self._read += more
        message, _, self._read = self._read.partition(b"\0")
        return message


@pytest.fixture(scope="session")
def chromium() -> Chromium:
    """A browser; tests that need it are skipped where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not here: install Debian's package chromium")
    return Chromium(program)
