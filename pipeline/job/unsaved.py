"""Keeps finished studies beside a ledger that cannot be reached, so that nothing that was scored is scored again or lost."""

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.store.ledger import Claim, Outcome, Output


class Unsaved:
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
