"""Files that are whole or not there: written under a temporary name, and renamed when they are done."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give the place of a file that takes its name only when the block ends without an error; an older file is replaced."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file that takes its name as `beside` says.

    Line ends are written as given. What UTF-8 cannot hold (bytes of a file name that are not UTF-8) is written as `\\udcXX`.
    """
    with beside(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        yield file
