"""Remembers beside the key what became of each file, so that a second run does not read unchanged files again.

It identifies files by keyed hashes only, so it names nobody. Without it, everything is read again.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from pipeline.deidentify.crosswalk import Secret
from pipeline.deidentify.profile import Options
from pipeline.imaging.files.study_file import FileStamp, StudyFile
from pipeline.settings import Reading
from pipeline.version import reading_versions

_DIGITS = 32


def done_path(key: Path) -> Path:
    """Return its path: beside the key, like the crosswalk."""
    return key.with_name(f"{key.name}.done")


def bound_to(options: Options, reading: Reading, out: Path) -> str:
    """Return a hash of everything that decides what becomes of a file: options, limits, output folder, `reading_versions`."""
    keep = sorted(one.name for one in options.keep)
    rectangles = list(map(astuple, options.rectangles))
    digest = hashlib.sha256(repr((keep, rectangles, options.clean_pixels, os.fspath(out), reading)).encode())
    digest.update(repr(reading_versions()).encode())
    return digest.hexdigest()


class Done:
    """What became of files in runs with the same `bound_to`; each entry is written before the next.

    Parameters
    ----------
    path
        The file.
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

    def get(self, file: StudyFile, looks: FileStamp) -> Sequence[Any] | None:
        """Return what was noted of a file, if it still looks as it did then."""
        try:
            before, *noted = json.loads(self._lines[self._digest(file)])
        except (KeyError, ValueError):
            return None
        return noted if before == list(looks) else None

    def put(self, file: StudyFile, looked: FileStamp, noted: Sequence[Any]) -> None:
        """Note what became of a file; `looked` is how it looked before it was read."""
        self._file.write(f"{self._digest(file)}{json.dumps([looked, *noted])}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _digest(self, file: StudyFile) -> str:
        return self._secret.file_key(f"{self._bound}\0{os.path.abspath(file.path)}\0{file.source}")  # noqa: PTH100
