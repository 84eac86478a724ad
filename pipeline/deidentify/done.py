"""Remembers beside the key what became of each file, so that a second run does not read unchanged files again.

It identifies files by keyed hashes only, so it identifies no patient. Without it, everything is read again.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from pipeline.deidentify.crosswalk import Secret
from pipeline.deidentify.profile import Options
from pipeline.errors import InputError, LedgerError
from pipeline.imaging.files.study_file import FileStamp, StudyFile
from pipeline.settings import Reading
from pipeline.store.result_cache import ResultCache
from pipeline.version import reading_versions


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
        The SQLite file; a damaged one is replaced by an empty one.
    secret
        The key of the hashes.
    bound
        What `bound_to` returned.

    Raises
    ------
    InputError
        By every method, if the file cannot be used.
    """

    def __init__(self, path: Path, secret: Secret, bound: str) -> None:
        self._secret, self._bound, self._name = secret, bound, path.name
        with self._in_words():
            self._results = ResultCache(path, "deidentify", seconds=0)
            self._results.begin()
            keys = self._results.keys()
            self._noted = dict(zip(keys, self._results.get(keys), strict=True))

    def get(self, file: StudyFile, looks: FileStamp) -> Sequence[Any] | None:
        """Return what was noted of a file, if it still looks as it did then."""
        digest = self._digest(file)
        if self._results.stamp(digest) != _text(looks):
            return None
        return list(json.loads(self._noted[digest]))

    def put(self, file: StudyFile, looked: FileStamp, noted: Sequence[Any]) -> None:
        """Note what became of a file; `looked` is how it looked before it was read."""
        digest = self._digest(file)
        self._noted[digest] = json.dumps(noted)
        with self._in_words():
            self._results.put(digest, _text(looked), self._noted[digest])

    def close(self) -> None:
        """Close the file."""
        with self._in_words():
            self._results.close()

    def _digest(self, file: StudyFile) -> str:
        return self._secret.file_key(f"{self._bound}\0{os.path.abspath(file.path)}\0{file.source}")  # noqa: PTH100

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except LedgerError as error:
            told = {
                "locked": "Another octray de-identifies with this key. Wait until it has finished.",
                "full": f"{self._name} cannot be written: the disk is full or failing. Free some space and "
                "run the same command to continue.",
            }
            raise InputError(told.get(error.problem, f"{self._name} cannot be used. Delete it, and run it again.")) from None


def _text(stamp: FileStamp) -> str:
    return " ".join(map(str, stamp))
