"""Works through a ledger: claims studies, has them scored, and saves what comes of them."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TypeVar

from pipeline.errors import LedgerError
from pipeline.job.scorer import Done
from pipeline.job.signals import undisturbed
from pipeline.job.unsaved import Unsaved
from pipeline.results.record import StudyRecord
from pipeline.store.ledger import Claim, Ledger, Outcome

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


def patiently(ask: Callable[[], Result]) -> Result:
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


class Loop:
    """Works through a ledger until nothing is left to claim; others may do the same at the same time.

    Parameters
    ----------
    ledger
        Holds the studies.
    unsaved
        Keeps what the ledger cannot take.
    tell
        Is called with the record of every study that was saved.
    """

    def __init__(self, ledger: Ledger, unsaved: Unsaved, tell: Callable[[StudyRecord], None]) -> None:
        self.faults: list[str] = []
        self._ledger = ledger
        self._unsaved = unsaved
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
                while patiently(lambda: self._ledger.release(self._owner)):  # a claim whose answer was lost on its way
                    self._work(outcomes)
            self._unsaved.clear()
        finally:
            with undisturbed():
                self._save_or_keep()
            with suppress(LedgerError):  # the lease runs out by itself
                self._ledger.release(self._owner)

    def _work(self, outcomes: Outcomes) -> None:
        while first := next(claims := self._claims(), None):
            for done in outcomes(chain((first,), claims)):
                self._take(done)
            patiently(self._save)
        patiently(self._save)

    def _claims(self) -> Iterator[Claim]:
        """Claim studies as they are asked for; those that an earlier run could not save are saved now, and not scored."""
        while claims := patiently(lambda: self._ledger.claim(self._owner, self._pace, _LEASE_SECONDS)):
            if not self._is_paced:
                self._pace = min(2 * self._pace, _MOST_AT_FIRST)
            for claim in claims:
                if outcome := self._unsaved.take(claim):
                    self._ready.append((claim, outcome))
                else:
                    yield claim

    def _take(self, done: Done) -> None:
        self.faults += done.faults
        if done.outcome is None:
            patiently(lambda: self._ledger.retry(self._owner, [done.claim.id]))
        else:
            self._ready.append((done.claim, done.outcome))
        if time.monotonic() - self._saved_at > _SAVE_SECONDS:
            patiently(self._save)

    def _save(self) -> None:
        """Put what is done into the ledger, and tell of what it took: another may have finished a study in the meantime."""
        with undisturbed():
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
            self._unsaved.keep(self._ready)
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
