"""Works through a ledger: claims studies, has them scored, and saves what comes of them."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain

from pipeline.errors import LedgerError
from pipeline.job.scorer import Done
from pipeline.job.signals import undisturbed
from pipeline.job.unsaved import Unsaved
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.types import Claim, Outcome
from pipeline.results.record import StudyRecord

_FEWEST, _MOST_AT_FIRST, _MOST = 8, 64, 256
"""Studies claimed at once: those of about a second, so that a process neither asks often nor keeps long ones from others. As
long as it is not known how many these are, each time twice as many, up to 64."""
_LEASE_SECONDS = 60.0
_SAVE_SECONDS = 1.0

Outcomes = Callable[[Iterable[Claim]], Iterator[Done]]
"""Scores claimed studies, on this machine or on others, and gives them back in any order."""


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
            Where the ledger cannot be reached for long; what was done until then is kept beside it.
        """
        try:
            with self._beating():
                while first := next(claims := self._claims(), None):
                    for done in outcomes(chain((first,), claims)):
                        self._take(done)
                    self._save()
        finally:
            self._save()
            self._ledger.release(self._owner)

    def _claims(self) -> Iterator[Claim]:
        """Claim studies as they are asked for; those that an earlier run could not save are saved now, and not scored."""
        while claims := self._ledger.claim(self._owner, self._pace, _LEASE_SECONDS):
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
            self._ledger.retry(self._owner, [done.claim.id])
        else:
            self._ready.append((done.claim, done.outcome))
        if time.monotonic() - self._saved_at > _SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        """Put what is done into the ledger, and tell of what it took: another may have finished a study in the meantime."""
        with undisturbed():
            ready, self._ready = self._ready, []
            self._pace, self._is_paced = min(max(len(ready), _FEWEST), _MOST), True
            taken = self._unsaved.guard(self._ledger, self._owner, ready) if ready else set()
            self._saved_at = time.monotonic()
            for claim, outcome in ready:
                if claim.id in taken:
                    self._tell(StudyRecord.from_json(outcome.record))

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
