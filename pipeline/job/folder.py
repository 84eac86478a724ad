"""The results folder: which job its results belong to, and which processes may write into it at the same time."""

import fcntl
import hashlib
import json
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pipeline.atomic import replacing_text
from pipeline.errors import InputError

STATE = ".octray"
"""Folder within the results that holds what a run needs to go on: the ledger, and which run it is."""

PREDICTIONS, PARQUET, FAILURES = "predictions.csv", "predictions.parquet", "failures.csv"
LEVELS, LEVELS_PARQUET = "levels.csv", "levels.parquet"
REPORT = "report.html"
HEATMAPS, TRACES, OBJECTS = "heatmaps", "traces", "dicom"
PICTURES = f"{STATE}/pictures"
"""Folder of pictures that DICOM objects are still to be made of."""
_LEDGER, _RUN, _LOCK, _STARTING, _PENDING_RESULTS = "ledger.sqlite", "run.json", "lock", "starting", "pending-results"
_STARTING_SECONDS = 60.0
"""How long a process waits for others that are about to start in the same folder."""
_PIECES = re.compile(
    rf"{HEATMAPS}/(.+_f\d{{4,}}_.+_[0-9a-f]{{16}}\.jpg|\..+\.part)"
    rf"|{TRACES}/(.+_[0-9a-f]{{16}}\.trace\.json|\..+\.part)"
    rf"|{OBJECTS}/(.+-(sr|pm|sc)(-.+)?_[0-9a-f]{{16}}\.dcm|\..+\.part)"
)
"""Names of what is written for studies, below the folder of results, and of what a kill leaves of it."""
_WHOLE = re.compile(
    "|".join((*map(re.escape, (PREDICTIONS, PARQUET, FAILURES, LEVELS, LEVELS_PARQUET, REPORT)), r"report-\d+\.html"))
)


@dataclass(frozen=True, slots=True)
class Run:
    """The results that a folder holds.

    Parameters
    ----------
    id
        Drawn when the results are begun.
    job
        Name of their job in the ledger.
    goes_on
        Whether an earlier process with the same facts has begun them.
    replaced
        Name of the job whose results were removed for these; empty if there was none.
    reported_at
        When their report was last written, in seconds since 1970; 0 if it never was.
    """

    id: str
    job: str
    goes_on: bool
    replaced: str = ""
    reported_at: float = 0.0


class ResultsFolder:
    """A results folder that only processes of one job write to, as long as the `with` block lasts.

    Which of them are alive is known by a lock on a file, which the operating system gives back when a process ends.

    Parameters
    ----------
    path
        Made if it does not exist.

    Raises
    ------
    InputError
        On entering it, if it holds files that octray would take for its own although it has never written there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def __enter__(self) -> "ResultsFolder":
        if not (self.path / STATE / _LOCK).exists() and (foreign := next(self._own(), None)):
            raise InputError(
                f"{self.path.resolve().name} holds {foreign.name}, which is named like a result of octray, and no run that it "
                "belongs to. Move it away, or give another --out."
            )
        (self.path / STATE).mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / STATE / _LOCK).open("a+", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    @contextmanager
    def starting(self, *, is_watch: bool = False, is_one_machine: bool = False) -> Iterator[bool]:
        """Let this process start while no other does, and tell whether it is alone in the folder; it stays in it afterwards.

        Parameters
        ----------
        is_watch
            Whether it must stay alone.
        is_one_machine
            Whether the ledger is of one machine only, so that processes of others cannot join.

        Raises
        ------
        InputError
            If it cannot join the processes that are there.
        """
        assert self._lock is not None  # noqa: S101 - for mypy
        with (self.path / STATE / _STARTING).open("a") as turn:
            if not _locked(turn, fcntl.LOCK_EX, _STARTING_SECONDS):
                raise InputError(f"{self._name} is in use by another octray that does not get ready. Wait, or end that one.")
            if is_alone := _locked(self._lock, fcntl.LOCK_EX):
                self._lock.truncate(0)
                self._lock.write(socket.gethostname())
                self._lock.flush()
                shutil.rmtree(self.path / PICTURES, ignore_errors=True)  # a killed process leaves them
            elif is_watch or not _locked(self._lock, fcntl.LOCK_SH):
                raise InputError(
                    f"Another octray works in {self._name}, and with --watch only one may. Wait until it has finished, or give "
                    "another --out."
                )
            elif is_one_machine and (self.path / STATE / _LOCK).read_text(encoding="utf-8") != socket.gethostname():
                raise InputError(
                    f"Another machine works in {self._name}, with a ledger in a file, which machines cannot share. Give each "
                    "of them the same --ledger postgresql://USER:PASSWORD@HOST/DATABASE."
                )
            yield is_alone
            if is_alone and not is_watch:
                _locked(self._lock, fcntl.LOCK_SH)

    @property
    def ledger(self) -> Path:
        """The file of the ledger in this folder."""
        return self.path / STATE / _LEDGER

    @property
    def pending_results(self) -> Path:
        """Where results are kept that the ledger could not take; each process adds an ending of its own."""
        return self.path / STATE / _PENDING_RESULTS

    @property
    def _name(self) -> str:
        return self.path.resolve().name

    def begin(
        self,
        facts: Mapping[str, Any],
        job: str = "",
        *,
        is_alone: bool = True,
        keep: bool = False,
        remove_job: Callable[[Run], None] | None = None,
    ) -> Run:
        """Return the results that have these facts; if the folder holds others, they are removed first.

        Parameters
        ----------
        facts
            All that results depend on, beside the studies themselves: JSON values by their names for people.
        job
            Name of the job; empty draws one.
        is_alone
            Whether no other process works in the folder; while one does, its results are not removed.
        keep
            Whether other results are never removed, since their studies may be gone.
        remove_job
            Removes the job of other results from a ledger outside of the folder; called before anything else is removed, so
            that a failure leaves all as it was.

        Raises
        ------
        InputError
            If the folder holds other results, and they are not to be removed.
        OSError
            If the folder cannot be read or written.
        """
        path = self.path / STATE / _RUN
        hashes = {name: hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).hexdigest() for name, fact in facts.items()}
        before, hashes_before = _run_in(path)
        if before and hashes == hashes_before:
            return before
        if not is_alone:
            others = ", ".join(name for name in hashes if hashes[name] != hashes_before.get(name))
            raise InputError(
                f"Another octray works in {self._name}, with another value of: {others}. Give the same to share its work; or "
                "wait until it is done, or give another --out."
            )
        if before and keep:
            raise InputError(
                f"{self._name} holds results of another bundle, folder, --dicom or version of octray, whose "
                "studies may have been taken away. Give another --out."
            )
        if before and remove_job:
            remove_job(before)
        path.unlink(missing_ok=True)
        self.clear()
        drawn = uuid.uuid4().hex
        run = Run(drawn, job or drawn, goes_on=False, replaced=before.job if before else "")
        with replacing_text(path) as file:
            json.dump({"id": run.id, "job": run.job, "facts_sha256": hashes}, file)
        return run

    def reported(self, seconds: float) -> None:
        """Keep when the report was written, so that the next one can say what is new."""
        path = self.path / STATE / _RUN
        told = json.loads(path.read_text(encoding="utf-8"))
        with replacing_text(path) as file:
            json.dump(told | {"reported_at": seconds}, file)

    def clear(self) -> None:
        """Remove what octray wrote here, and nothing else."""
        state = self.path / STATE
        for path in (*self._own(), *state.glob(f"{_LEDGER}*"), *state.glob(f"{_PENDING_RESULTS}*")):
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


def _run_in(path: Path) -> tuple[Run | None, dict[str, str]]:
    """Return the results that a folder holds, if any, and the hashes of their facts."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        found = Run(str(run["id"]), str(run["job"]), goes_on=True, reported_at=float(run.get("reported_at", 0.0)))
        return found, dict(run["facts_sha256"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None, {}


def _locked(file: IO[str], how: int, seconds: float = 0.0) -> bool:
    """Lock a file, or return that others keep it locked for this many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(0.02)


def base_of(studies: Path) -> Path:
    """Return the folder below which the sources of `discover` lie."""
    return (studies if studies.is_dir() else studies.parent).absolute()
