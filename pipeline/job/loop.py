"""Works through a ledger: claims studies, has them scored, and saves what comes of them."""

import base64
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import LedgerError
from pipeline.job.scorer import Done
from pipeline.predictions import StudyRecord
from pipeline.store.ledger import Claim, Ledger, Outcome, Output

_FEWEST, _MOST_AT_FIRST, _MOST = 8, 64, 256
"""Studies claimed at once: those of about a second, so that a process neither asks often nor keeps long ones from others. As
long as it is not known how many these are, each time twice as many, up to 64."""
_LEASE_SECONDS = 60.0
_SAVE_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 8.0

Result = TypeVar("Result")

Outcomes = Callable[[Iterable[Claim]], Iterator[Done]]
"""Scores claimed studies, on this machine or on others, and gives them back in any order."""


def with_retries(ask: Callable[[], Result]) -> Result:
    """Ask a ledger for something; where it cannot be reached, ask again for a minute.

    Raises
    ------
    LedgerError
        What the last attempt raised.
    """
    pause, deadline = _FIRST_PAUSE_SECONDS, 0.0
    while True:
        try:
            return ask()
        except LedgerError:
            deadline = deadline or time.monotonic() + _PATIENCE_SECONDS
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


class PendingResults:
    """A file of JSON lines, one for each outcome that no ledger has taken yet.

    Parameters
    ----------
    path
        Read once; a line that a kill has cut off is left out, since its study is scored again.
    is_there
        Says whether a file that was written is still there.
    """

    def __init__(self, path: Path, is_there: Callable[[Output], bool]) -> None:
        self._path = path
        self._is_there = is_there
        self._kept = {(line["key"], line["fingerprint"]): line for line in _lines(path)}

    def take(self, claim: Claim) -> Outcome | None:
        """Return what was made of a study, if it is kept here, and its files and what was written are still the same."""
        line = self._kept.get((claim.key, claim.fingerprint))
        if line is None or not all(map(self._is_there, _outputs(line))):
            return None
        record, urgency = base64.b64decode(line["record"]), (line["rank"], line["probability"])
        return Outcome(claim.id, record, *urgency, _outputs(line), line["is_final"], line["scored_at"])

    def names(self) -> set[str]:
        """Return the names of the files that belong to what is kept."""
        return {output.name for line in self._kept.values() for output in _outputs(line)}

    def keep(self, outcomes: Iterable[tuple[Claim, Outcome]]) -> None:
        """Keep what came of studies."""
        with self._path.open("a", encoding="utf-8") as file:
            for claim, outcome in outcomes:
                line = {
                    "key": claim.key,
                    "fingerprint": claim.fingerprint,
                    "record": base64.b64encode(outcome.record).decode(),
                    "rank": outcome.rank,
                    "probability": outcome.probability,
                    "outputs": [asdict(output) for output in outcome.outputs],
                    "is_final": outcome.is_final,
                    "scored_at": outcome.scored_at,
                }
                self._kept[claim.key, claim.fingerprint] = line
                file.write(json.dumps(line) + "\n")

    def clear(self) -> None:
        """Forget everything, once the ledger has all of it."""
        self._kept.clear()
        self._path.unlink(missing_ok=True)


class Loop:
    """Works through a ledger until nothing is left to claim; others may do the same at the same time.

    Parameters
    ----------
    ledger
        Holds the studies.
    pending_results
        Keeps what the ledger cannot take.
    tell
        Is called with the record of every study that was saved.
    """

    def __init__(self, ledger: Ledger, pending_results: PendingResults, tell: Callable[[StudyRecord], None]) -> None:
        self.faults: list[str] = []
        self._ledger = ledger
        self._pending_results = pending_results
        self._tell = tell
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._ready: list[tuple[Claim, Outcome]] = []
        self._saved_at = time.monotonic()
        self._pace = _FEWEST
        self._is_paced = False

    def work(self, outcomes: Outcomes) -> None:
        """Work until nothing can be claimed any more; whatever ends it, what is done is saved and the rest given back.

        Raises
        ------
        LedgerError
            Where the ledger cannot be reached for a minute; what was done until then is kept beside it.
        """
        try:
            with self._beating():
                self._work(outcomes)
                while with_retries(lambda: self._ledger.release(self._owner)):  # a claim whose answer was lost on its way
                    self._work(outcomes)
            self._pending_results.clear()
        finally:
            with delayed_interrupts():
                self._save_or_keep()
            with suppress(LedgerError):  # the lease runs out by itself
                self._ledger.release(self._owner)

    def _work(self, outcomes: Outcomes) -> None:
        while first := next(claims := self._claims(), None):
            for done in outcomes(chain((first,), claims)):
                self._take(done)
            with_retries(self._save)
        with_retries(self._save)

    def _claims(self) -> Iterator[Claim]:
        """Claim studies as they are asked for; those that an earlier run could not save are saved now, and not scored."""
        while claims := with_retries(lambda: self._ledger.claim(self._owner, self._pace, _LEASE_SECONDS)):
            if not self._is_paced:
                self._pace = min(2 * self._pace, _MOST_AT_FIRST)
            for claim in claims:
                if outcome := self._pending_results.take(claim):
                    self._ready.append((claim, outcome))
                else:
                    yield claim

    def _take(self, done: Done) -> None:
        self.faults += done.faults
        if done.outcome is None:
            with_retries(lambda: self._ledger.retry(self._owner, [done.claim.id]))
        else:
            self._ready.append((done.claim, done.outcome))
        if time.monotonic() - self._saved_at > _SAVE_SECONDS:
            with_retries(self._save)

    def _save(self) -> None:
        """Put what is done into the ledger, and tell of what it took: another may have finished a study in the meantime."""
        with delayed_interrupts():
            taken = self._ledger.finish(self._owner, [outcome for _, outcome in self._ready]) if self._ready else set()
            ready, self._ready = self._ready, []
            self._pace, self._is_paced = min(max(len(ready), _FEWEST), _MOST), True
            self._saved_at = time.monotonic()
            for claim, outcome in ready:
                if claim.id in taken:
                    self._tell(StudyRecord.from_json(outcome.record))

    def _save_or_keep(self) -> None:
        try:
            self._save()
        except LedgerError:
            self._pending_results.keep(self._ready)
            raise

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Extend the leases from time to time, as long as this process lives."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(_LEASE_SECONDS / 4):
                with suppress(LedgerError):  # a lease outlasts three beats, and saving says what is wrong for good
                    self._ledger.beat(self._owner, _LEASE_SECONDS)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def delayed_interrupts() -> Iterator[None]:
    """Hold interrupts back until the block is done; made for the main thread, which alone gets them."""
    held: list[int] = []
    with ExitStack() as restored:
        for number in (signal.SIGINT, signal.SIGTERM):
            restored.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, lambda number, _: held.append(number))
        yield
    if held:
        raise KeyboardInterrupt


def _outputs(line: dict[str, Any]) -> tuple[Output, ...]:
    return tuple(Output(**output) for output in line["outputs"])


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for text in texts:
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found
