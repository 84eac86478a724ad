"""The folder of results: one run writes to it at a time, and one that was ended goes on where it was."""

import fcntl
import hashlib
import json
import platform
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any

from pipeline.errors import InputError
from pipeline.results.files import replacing

STATE = ".octray"
"""Folder within the results that holds what a run needs to go on: the ledger, and which run it is."""

PREDICTIONS, PARQUET, FAILURES = "predictions.csv", "predictions.parquet", "failures.csv"
REPORT = "report.html"
HEATMAPS, TRACES, OBJECTS = "heatmaps", "traces", "dicom"
_LEDGER, _RUN, _LOCK, _UNSAVED = "ledger.sqlite", "run.json", "lock", "unsaved.jsonl"
_PIECES = (f"{HEATMAPS}/*_f[0-9][0-9][0-9][0-9]*_*.jpg", f"{TRACES}/*.trace.json", f"{OBJECTS}/*_????????.dcm")
_WHOLE = (PREDICTIONS, PARQUET, FAILURES, REPORT, "report-*.html", f"{STATE}/{_LEDGER}*", f"{STATE}/{_UNSAVED}")
_ROOMS = ("errors.py", "records.py", "intake.py", "cells.py", "imaging", "evaluate", "model", "score", "results", "job")
_LIBRARIES = ("highdicom", "imagecodecs", "numpy", "onnxruntime", "pillow", "pydicom", "scipy", "tifffile")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of work in a folder.

    Parameters
    ----------
    key
        Names it in the ledger.
    goes_on
        Whether an earlier run with the same facts was ended, or finished, in this folder.
    """

    key: str
    goes_on: bool


class ResultsFolder:
    """A folder of results that this process alone writes to, as long as the `with` block lasts.

    Parameters
    ----------
    path
        Made where it is missing.

    Raises
    ------
    InputError
        On entering it, where another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> "ResultsFolder":
        (self.path / STATE).mkdir(parents=True, exist_ok=True)
        lock = (self.path / STATE / _LOCK).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise InputError(
                f"Another octray writes to {self.path.resolve().name}. Wait until it is done, or give another --out."
            ) from None
        self._lock = lock
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    @property
    def ledger(self) -> str:
        """Address of the ledger in this folder."""
        return f"sqlite:///{self.path.resolve() / STATE / _LEDGER}"

    @property
    def unsaved(self) -> Path:
        """Where results are kept that the ledger could not take."""
        return self.path / STATE / _UNSAVED

    def begin(self, facts: Mapping[str, Any]) -> Run:
        """Return the run that has these facts; where the folder holds another's results, they are removed first.

        Parameters
        ----------
        facts
            All that results depend on beside the studies themselves: JSON values.
        """
        path = self.path / STATE / _RUN
        told = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            if run["facts_sha256"] == told:
                return Run(run["run"], goes_on=True)
        except (OSError, ValueError, TypeError, KeyError):
            pass
        path.unlink(missing_ok=True)
        self.clear()
        run = Run(uuid.uuid4().hex, goes_on=False)
        with replacing(path) as file:
            json.dump({"run": run.key, "facts_sha256": told}, file)
        return run

    def clear(self) -> None:
        """Remove what octray wrote here, and nothing else."""
        for pattern in _WHOLE:
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)
        self.keep_pieces(frozenset())

    def keep_pieces(self, names: Collection[str]) -> None:
        """Remove the pictures and the like that octray wrote, but for those of these names, and nothing that others wrote."""
        for pattern in _PIECES:
            for path in self.path.glob(pattern):
                if path.relative_to(self.path).as_posix() not in names:
                    path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there; it survives that this process is killed."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except FileNotFoundError:
        if path.parent.exists():
            raise
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@cache
def code_version() -> Mapping[str, str]:
    """Return the versions of what decides about results: octray's own source text, as a hash, and the libraries it runs."""
    digest = hashlib.sha256()
    for room in _ROOMS:
        for module in _modules(resources.files("pipeline") / room):
            digest.update(module.read_bytes())
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    return MappingProxyType({"octray": digest.hexdigest(), "python": platform.python_version(), **versions})


def _modules(place: Traversable) -> list[Traversable]:
    if place.is_file():
        return [place] if place.name.endswith(".py") else []
    return [one for found in sorted(place.iterdir(), key=lambda one: one.name) for one in _modules(found)]


def base_of(studies: Path) -> Path:
    """Return the folder below which the sources of `discover` lie."""
    return (studies if studies.is_dir() else studies.parent).absolute()
