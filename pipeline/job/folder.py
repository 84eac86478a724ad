"""The folder of results: one run writes to it at a time, and one that was ended goes on where it was."""

import fcntl
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pipeline.atomic import replacing_text
from pipeline.errors import InputError

STATE = ".octray"
"""Folder within the results that holds what a run needs to go on: the ledger, and which run it is."""

PREDICTIONS, PARQUET, FAILURES = "predictions.csv", "predictions.parquet", "failures.csv"
REPORT = "report.html"
HEATMAPS, TRACES, OBJECTS = "heatmaps", "traces", "dicom"
PICTURES = f"{STATE}/pictures"
"""Folder of pictures that DICOM objects are still to be made of."""
_LEDGER, _RUN, _LOCK, _PENDING_RESULTS = "ledger.sqlite", "run.json", "lock", "pending-results.jsonl"
_PIECES = re.compile(
    rf"{HEATMAPS}/(.+_f\d{{4,}}_.+_[0-9a-f]{{16}}\.jpg|\..+\.part)"
    rf"|{TRACES}/(.+_[0-9a-f]{{16}}\.trace\.json|\..+\.part)"
    rf"|{OBJECTS}/(.+-(sr|pm|sc)(-.+)?_[0-9a-f]{{16}}\.dcm|\..+\.part)"
)
"""Names of what is written for studies, below the folder of results, and of what a kill leaves of it."""
_WHOLE = re.compile("|".join((*map(re.escape, (PREDICTIONS, PARQUET, FAILURES, REPORT)), r"report-\d+\.html")))


@dataclass(frozen=True, slots=True)
class Run:
    """One run of work in a folder.

    Parameters
    ----------
    key
        Names it in the ledger.
    goes_on
        Whether an earlier run with the same facts was ended, or finished, in this folder.
    replaced
        Key of the run whose results were removed for this one; empty where there was none.
    reported_at
        When the report of this run was last written, in seconds since 1970; 0 if it never was.
    """

    key: str
    goes_on: bool
    replaced: str = ""
    reported_at: float = 0.0


class ResultsFolder:
    """A folder of results that this process alone writes to, as long as the `with` block lasts.

    Parameters
    ----------
    path
        Made where it is missing.

    Raises
    ------
    InputError
        On entering it, where another process writes to it, or where it holds files that octray would take for its own,
        although it has never written there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> "ResultsFolder":
        if not (self.path / STATE / _LOCK).exists() and (foreign := next(self._own(), None)):
            raise InputError(
                f"{self.path.resolve().name} holds {foreign.name}, which is named like a result of octray, and no run that it "
                "belongs to. Move it away, or give another --out."
            )
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
        shutil.rmtree(self.path / PICTURES, ignore_errors=True)  # a kill leaves them
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
    def pending_results(self) -> Path:
        """Where results are kept that the ledger could not take."""
        return self.path / STATE / _PENDING_RESULTS

    def begin(self, facts: Mapping[str, Any], keep: bool = False) -> Run:
        """Return the run that has these facts; where the folder holds another's results, they are removed first.

        Parameters
        ----------
        facts
            All that results depend on beside the studies themselves: JSON values.
        keep
            Whether another's results are not removed, since their studies may be gone.

        Raises
        ------
        InputError
            Where another's results are not to be removed.
        """
        path = self.path / STATE / _RUN
        told = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        before, same, reported_at = _run_in(path, told)
        if same:
            return Run(before, goes_on=True, reported_at=reported_at)
        if keep and before:
            raise InputError(
                f"{self.path.resolve().name} holds results of another bundle, folder, --dicom or version of octray, whose "
                "studies may have been taken away. Give another --out."
            )
        path.unlink(missing_ok=True)
        self.clear()
        run = Run(uuid.uuid4().hex, goes_on=False, replaced=before)
        with replacing_text(path) as file:
            json.dump({"run": run.key, "facts_sha256": told}, file)
        return run

    def reported(self, seconds: float) -> None:
        """Keep when the report was written, so that the next one can say what is new."""
        path = self.path / STATE / _RUN
        told = json.loads(path.read_text(encoding="utf-8"))
        with replacing_text(path) as file:
            json.dump(told | {"reported_at": seconds}, file)

    def clear(self) -> None:
        """Remove what octray wrote here, and nothing else."""
        for path in (*self._own(), *(self.path / STATE).glob(f"{_LEDGER}*"), self.pending_results):
            path.unlink(missing_ok=True)

    def keep_pieces(self, names: Collection[str]) -> None:
        """Remove the pictures and the like that octray wrote, but for those of these names."""
        for name, path in self._pieces():
            if name not in names:
                path.unlink(missing_ok=True)

    def _own(self) -> Iterator[Path]:
        """Yield the files whose names octray gives to results."""
        yield from (path for path in self.path.glob("*") if _WHOLE.fullmatch(path.name))
        yield from (path for _, path in self._pieces())

    def _pieces(self) -> Iterator[tuple[str, Path]]:
        for room in (HEATMAPS, TRACES, OBJECTS):
            for path in (self.path / room).glob("*"):
                if _PIECES.fullmatch(name := f"{room}/{path.name}"):
                    yield name, path


def _run_in(path: Path, facts_sha256: str) -> tuple[str, bool, float]:
    """Return the key of the run in a folder, empty if there is none, whether it has these facts, and when it was reported."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        return str(run["run"]), run["facts_sha256"] == facts_sha256, float(run.get("reported_at", 0.0))
    except (OSError, ValueError, TypeError, KeyError):
        return "", False, 0.0


def base_of(studies: Path) -> Path:
    """Return the folder below which the sources of `discover` lie."""
    return (studies if studies.is_dir() else studies.parent).absolute()
