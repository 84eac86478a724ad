"""What a run tells MLflow, kept beside the bundle until MLflow has all of it.

The folder `OUT.mlflow` holds one file a run: a line of JSON for the run itself, and one for everything that happened in it,
each with its time. Sent again, a line changes nothing. Beside it stands how many lines MLflow has.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from pipeline.atomic import write_bytes

RUNNING, FINISHED = "RUNNING", "FINISHED"
_LINES, _SENT = ".jsonl", ".sent.json"


def outbox_of(out: Path) -> Path:
    """Return the folder in which a run that writes to `out`, and the runs below it, are kept."""
    place = out.resolve()
    return place.with_name(f"{place.name}.mlflow")


class RunLog:
    """One run: what it is, and everything that happened in it.

    Only the process that holds its lock may add to it; the lock ends with the process.

    Parameters
    ----------
    folder
        The outbox.
    key
        The identity of the run, in MLflow a tag.

    Attributes
    ----------
    lines
        The first says what the run is; `metrics`, `bundle` or `status` is the name of what each other line tells.
    run_id
        In MLflow; empty if MLflow does not have the run yet.
    sent
        How many lines MLflow has.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.key, self._path, self._writing = key, folder / f"{key}{_LINES}", Lock()
        self._lock: int | None = None
        self._read()

    def _read(self) -> None:
        self.lines, self._whole_bytes = _whole_lines(self._path)
        self._measured = {(name, line["step"]) for line in self.lines for name in line.get("metrics", ())}
        try:
            state = json.loads(self._sent_path.read_text(encoding="utf-8"))
            self.run_id, self.sent = str(state["run_id"]), min(int(state["sent"]), len(self.lines))
        except (OSError, ValueError, TypeError, KeyError):
            self.run_id, self.sent = "", 0

    @property
    def _sent_path(self) -> Path:
        return self._path.with_name(f"{self.key}{_SENT}")

    @property
    def head(self) -> Mapping[str, Any]:
        """What the run is; empty if that was not written."""
        return self.lines[0] if self.lines else {}

    @property
    def status(self) -> str:
        """`RUNNING`, or how it ended, in MLflow's words."""
        return next((str(line["status"]) for line in reversed(self.lines) if "status" in line), RUNNING)

    @property
    def is_sent(self) -> bool:
        """Whether MLflow has all of it."""
        return self.sent == len(self.lines)

    @property
    def bundle_id(self) -> str:
        """The identity of the bundle that it made; empty if it made none."""
        return next((str(line["bundle"]) for line in reversed(self.lines) if "bundle" in line), "")

    def lock(self, seconds: float = 0.0) -> bool:
        """Take the lock until the process ends or `unlock` is called; False if another process has it for so many seconds."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, deadline = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), time.monotonic() + seconds
        while not _locks(descriptor):
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return False
            time.sleep(0.1)
        self._lock = descriptor
        self._read()  # the process that had the lock may have added to it
        os.ftruncate(descriptor, self._whole_bytes)  # the line that a killed process did not finish
        return True

    def unlock(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def begin(self, **head: Any) -> None:
        """Write what the run is, or, if that is there, that it goes on."""
        if not self.lines:
            self._add({"run": self.key, "time": milliseconds(), **head})
        elif self.status != RUNNING:
            self._add({"status": RUNNING, "time": milliseconds()})

    def add_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Add figures; one that the run has at this step already is left out, as after a kill and a resume."""
        with self._writing:
            if new := {name: float(value) for name, value in values.items() if (name, step) not in self._measured}:
                self._measured |= {(name, step) for name in new}
                self._write({"metrics": new, "step": step, "time": milliseconds()})

    def next_step(self, prefix: str) -> int:
        """Return the first step without a metric whose name begins like this."""
        return max((step + 1 for name, step in self._measured if name.startswith(prefix)), default=0)

    def add_bundle(self, bundle_id: str, place: Path, model: str, alias: str) -> None:
        """Add that a bundle was made, and as what it is registered."""
        path = os.path.relpath(place.resolve(), self._path.parent)
        self._add({"bundle": bundle_id, "path": path, "model": model, "alias": alias, "time": milliseconds()})

    def bundle_place(self, line: Mapping[str, Any]) -> Path:
        """Return where the bundle of a line lies."""
        return Path(os.path.normpath(self._path.parent / line["path"]))

    def end(self, status: str) -> None:
        """Add how the run ended."""
        self._add({"status": status, "time": milliseconds()})

    def mark(self, run_id: str, sent: int) -> None:
        """Keep that MLflow has the run, and so many lines of it."""
        self.run_id, self.sent = run_id, sent
        write_bytes(self._sent_path, json.dumps({"run_id": run_id, "sent": sent}).encode())

    def remove(self) -> None:
        """Delete the files of the run, and the outbox if it is empty then."""
        self._sent_path.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)
        self.unlock()
        with suppress(OSError):  # other runs are in it
            self._path.parent.rmdir()

    def _add(self, line: Mapping[str, Any]) -> None:
        with self._writing:
            self._write(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._lock is not None, "a run log is written under its lock"  # noqa: S101 - a fault of octray
        content = f"{json.dumps(line)}\n".encode()
        while content:
            content = content[os.write(self._lock, content) :]
        self.lines.append(dict(line))


def logs_in(folder: Path) -> list[RunLog]:
    """Return the runs of an outbox, in the order in which they began; parents come before their children."""
    logs = [RunLog(folder, path.name.removesuffix(_LINES)) for path in folder.glob(f"*{_LINES}")]
    return sorted(logs, key=lambda log: (log.head.get("time", 0), bool(log.head.get("parent")), log.key))


def milliseconds() -> int:
    """Return the time in milliseconds, as MLflow has it."""
    return int(time.time() * 1000)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of a file and their bytes, up to the first that is not whole."""
    lines, size = [], 0
    for line in _lines_of(path):
        try:
            lines.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            break
        size += len(line)
    return lines, size


def _lines_of(path: Path) -> Iterator[bytes]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))
