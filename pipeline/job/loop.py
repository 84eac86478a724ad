"""Works through a ledger: claims studies, has them scored, and saves what comes of them."""

import base64
import json
import signal
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
from pipeline.job.scorer import ScoredClaim
from pipeline.predictions import StudyRecord
from pipeline.store import sharing
from pipeline.store.ledger import Claim, Ledger, Outcome, Output

_FEWEST, _MOST_AT_FIRST, _MOST = 8, 64, 256
"""Studies claimed at once: those of about a second, so that a process neither asks often nor keeps long ones from others. As
long as it is not known how many these are, each time twice as many, up to 64."""
_SAVE_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 8.0

Result = TypeVar("Result")

Outcomes = Callable[[Iterable[Claim]], Iterator[ScoredClaim]]
"""Scores claimed studies, on this machine or on others, and gives them back in any order."""


def with_retries(ask: Callable[[], Result]) -> Result:
    """Call a ledger; if it cannot be reached, retry for a minute.

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
    """Files of JSON lines, one line for each outcome that the ledger has not taken yet.

    Parameters
    ----------
    path
        Where they lie: the start of their names, to which each process adds its own ending. Those of earlier processes are read
        once; a line that was cut off by a kill is left out, and its study is scored again.
    is_there
        Tells whether a file that was written is still there.
    """

    def __init__(self, path: Path, is_there: Callable[[Output], bool]) -> None:
        self._path = path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}.jsonl")
        self._earlier = list(path.parent.glob(f"{path.name}-*.jsonl"))
        self._is_there = is_there
        self._kept = {(line["key"], line["fingerprint"]): line for earlier in self._earlier for line in _lines(earlier)}

    def take(self, claim: Claim) -> Outcome | None:
        """Return the outcome of a study, if it is kept here, and its files and what was written are still the same."""
        line = self._kept.get((claim.key, claim.fingerprint))
        if line is None or not all(map(self._is_there, _outputs(line))):
            return None
        record, urgency = base64.b64decode(line["record"]), (line["rank"], line["probability"])
        return Outcome(claim.id, record, *urgency, _outputs(line), line["is_final"], line["scored_at"])

    def names(self) -> set[str]:
        """Return the names of the files that belong to what is kept."""
        return {output.name for line in self._kept.values() for output in _outputs(line)}

    def keep(self, outcomes: Iterable[tuple[Claim, Outcome]]) -> None:
        """Keep the outcomes of studies."""
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
        for path in (*self._earlier, self._path):
            path.unlink(missing_ok=True)


class Loop:
    """Works through a ledger until nothing is left to claim; others may do the same at the same time.

    Parameters
    ----------
    ledger
        Holds the studies.
    owner
        Name of this process in the ledger; a heartbeat extends its leases meanwhile.
    pending_results
        Keeps what the ledger cannot take.
    tell
        Is called with the record of every study that was saved.
    """

    def __init__(
        self, ledger: Ledger, owner: str, pending_results: PendingResults, tell: Callable[[StudyRecord], None]
    ) -> None:
        self.faults: list[str] = []
        self._ledger = ledger
        self._pending_results = pending_results
        self._tell = tell
        self._owner = owner
        self._ready: list[tuple[Claim, Outcome]] = []
        self._saved_at = time.monotonic()
        self._pace = _FEWEST
        self._is_paced = False

    def work(self, outcomes: Outcomes) -> None:
        """Work until nothing can be claimed any more; whatever ends it, what is done is saved and the rest given back.

        Raises
        ------
        LedgerError
            If the ledger cannot be reached for a minute; what was done until then is kept beside it.
        """
        try:
            is_open = True
            while is_open:
                while first := next(claims := self._claims(), None):
                    for done in outcomes(chain((first,), claims)):
                        self._take(done)
                    with_retries(self._save)
                with_retries(self._save)
                is_open = with_retries(lambda: self._ledger.release(self._owner)) > 0  # the answer to a claim can be lost
            self._pending_results.clear()
        finally:
            with delayed_interrupts():
                self._save_or_keep()
            with suppress(LedgerError):  # the lease runs out by itself
                self._ledger.release(self._owner)

    def _claims(self) -> Iterator[Claim]:
        """Claim studies as they are asked for; those that an earlier run could not save are saved now, and not scored."""
        while claims := with_retries(lambda: self._ledger.claim(self._owner, self._pace, sharing.LEASE_SECONDS)):
            if not self._is_paced:
                self._pace = min(2 * self._pace, _MOST_AT_FIRST)
            for claim in claims:
                if outcome := self._pending_results.take(claim):
                    self._ready.append((claim, outcome))
                else:
                    yield claim

    def _take(self, done: ScoredClaim) -> None:
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
def delayed_interrupts() -> Iterator[None]:
    """Hold interrupts back until the block is done. Another thread than the main one gets none and may not change this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
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
