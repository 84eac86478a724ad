"""Keeps finished studies beside a ledger that cannot be reached, so that nothing that was scored is scored again or lost."""

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import LedgerError
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.types import Claim, Outcome, Output

_PATIENCE_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 0.5


class Unsaved:
    """A file of JSON lines, one for each outcome that no ledger has taken yet.

    Parameters
    ----------
    path
        Read once; a line that a kill has cut off is left out, since its study is scored again.
    patience
        For how many seconds a ledger is tried before outcomes are kept here.
    """

    def __init__(self, path: Path, patience: float = _PATIENCE_SECONDS) -> None:
        self._path = path
        self._patience = patience
        self._kept = {(line["key"], line["fingerprint"]): line for line in _lines(path)}

    def take(self, claim: Claim) -> Outcome | None:
        """Return what an earlier run made of a study, if it is kept here and the study's files are still the same."""
        line = self._kept.get((claim.key, claim.fingerprint))
        if line is None:
            return None
        outputs = tuple(Output(**output) for output in line["outputs"])
        return Outcome(claim.id, base64.b64decode(line["record"]), line["rank"], line["probability"], outputs)

    def guard(self, ledger: Ledger, owner: str, outcomes: Sequence[tuple[Claim, Outcome]]) -> set[int]:
        """Put outcomes into the ledger, trying again while it cannot be reached; return the ids of those it took.

        Raises
        ------
        LedgerError
            Where it stays out of reach; the outcomes are kept here by then.
        """
        pause, deadline = _FIRST_PAUSE_SECONDS, time.monotonic() + self._patience
        while True:
            try:
                return ledger.finish(owner, [outcome for _, outcome in outcomes])
            except LedgerError:
                if time.monotonic() + pause > deadline:
                    self._keep(outcomes)
                    raise
            time.sleep(pause)
            pause *= 2

    def _keep(self, outcomes: Sequence[tuple[Claim, Outcome]]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            for claim, outcome in outcomes:
                line = {
                    "key": claim.key,
                    "fingerprint": claim.fingerprint,
                    "record": base64.b64encode(outcome.record).decode(),
                    "rank": outcome.rank,
                    "probability": outcome.probability,
                    "outputs": [asdict(output) for output in outcome.outputs],
                }
                file.write(json.dumps(line) + "\n")


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
