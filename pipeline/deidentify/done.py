"""Remembers beside the key what was done, so that a second run over unchanged files looks at them and reads none.

Files stand in it under keyed hashes, so that it names nobody; without it everything is done again.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from pipeline.deidentify.options import Options
from pipeline.deidentify.secret import Secret
from pipeline.imaging.files.study_file import Look, StudyFile
from pipeline.settings import Reading
from pipeline.version import reading_versions

_DIGITS = 32


def done_path(key: Path) -> Path:
    """Return where it lies: beside the key, as the crosswalk."""
    return key.with_name(f"{key.name}.done")


def bound_to(options: Options, reading: Reading, out: Path) -> str:
    """Return a hash of all that decides what becomes of a file: options, limits, where it goes, and `reading_versions`."""
    keep = sorted(one.name for one in options.keep)
    boxes = list(map(astuple, options.boxes))
    digest = hashlib.sha256(repr((keep, boxes, options.clean_pixels, os.fspath(out), reading)).encode())
    digest.update(repr(reading_versions()).encode())
    return digest.hexdigest()


class Done:
    """What was done with files, by runs that were bound to the same; each is noted before the next.

    Parameters
    ----------
    path
        Where it lies.
    secret
        The key of the hashes.
    bound
        What `bound_to` returned.
    """

    def __init__(self, path: Path, secret: Secret, bound: str) -> None:
        self._secret, self._bound = secret, bound
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        self._lines = {line[:_DIGITS]: line[_DIGITS:] for line in text.splitlines()}
        self._file = path.open("a", encoding="utf-8")
        path.chmod(0o600)
        if text and not text.endswith("\n"):
            self._file.write("\n")  # a killed run left half a line

    def get(self, file: StudyFile, looks: Look) -> Sequence[Any] | None:
        """Return what was noted of a file, where it still looks as it did then."""
        try:
            before, *noted = json.loads(self._lines[self._digest(file)])
        except (KeyError, ValueError):
            return None
        return noted if before == list(looks) else None

    def put(self, file: StudyFile, looked: Look, noted: Sequence[Any]) -> None:
        """Note something of a file that looked so before it was read."""
        self._file.write(f"{self._digest(file)}{json.dumps([looked, *noted])}\n")
        self._file.flush()

    def close(self) -> None:
        """End it."""
        self._file.close()

    def _digest(self, file: StudyFile) -> str:
        return self._secret.mark(f"{self._bound}\0{os.path.abspath(file.path)}\0{file.source}")  # noqa: PTH100
