"""Headless Chromium, as a reader of pages that lie on the disk; nothing it does reaches a network."""

import shutil
import subprocess
import tempfile
from pathlib import Path

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

    def _run(self, page: Path, *more: str) -> str:
        with tempfile.TemporaryDirectory() as profile:
            command = [self._program, *_FLAGS, f"--user-data-dir={profile}", *more, page.as_uri()]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS)
        return done.stdout


@pytest.fixture(scope="session")
def chromium() -> Chromium:
    """A browser; tests that need it are skipped where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not here: install Debian's package chromium")
    return Chromium(program)
