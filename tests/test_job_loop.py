"""How many studies a process claims at once: as many as it finishes in about a second."""

import itertools
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import LedgerError
from pipeline.job import loop
from pipeline.job.loop import Loop, PendingResults
from pipeline.job.scorer import ScoredClaim
from pipeline.predictions import StudyRecord
from pipeline.store import database
from pipeline.store.ledger import Claim, Ledger, Order, Outcome, Unit

RECORD = StudyRecord("1.2.3", ()).to_json()


def score(claims: Iterable[Claim]) -> Iterator[ScoredClaim]:
    for claim in claims:
        yield ScoredClaim(claim, Outcome(claim.id, RECORD, 0, 0.0))


@pytest.mark.parametrize(("seconds", "expected"), [(0.025, 41), (2.0, 8), (0.003, 256)])
def test_a_process_claims_what_it_finishes_in_a_second(
    seconds: float, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock) * seconds)  # each study looks at it once
    asked: list[int] = []
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", "run") as ledger:
        ledger.add(Unit(f"study:{number}", number, "f", b"[]") for number in range(2000))
        claim = ledger.claim

        def note(owner: str, count: int, lease: float) -> list[Claim]:
            asked.append(count)
            return claim(owner, count, lease)

        monkeypatch.setattr(ledger, "claim", note)
        Loop(ledger, "me", PendingResults(tmp_path / "pending-results", lambda output: True), lambda record: None).work(score)
        assert len(list(ledger.outcomes(Order.POSITION))) == 2000
    assert asked[:3] == ([8, 8, 8] if seconds > 1 else [8, 16, 32])
    assert max(asked) == expected


def test_a_ledger_that_is_out_of_reach_for_a_while_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_SECONDS", 0.1)
    path = tmp_path / "ledger.sqlite"
    failed: list[str] = []

    def locked(name: str) -> Callable[..., object]:
        """Lock the database for the first two calls of a method."""
        method = getattr(ledger, name)

        def call(*arguments: object) -> object:
            with sqlite3.connect(path, isolation_level=None) as other:
                if failed.count(name) < 2:
                    other.execute("BEGIN EXCLUSIVE")
                    failed.append(name)
                return method(*arguments)

        return call

    with Ledger(f"sqlite:///{path}", "run") as ledger:
        ledger.add(Unit(f"study:{number}", number, "f", b"[]") for number in range(20))
        for name in ("claim", "retry", "finish", "release"):
            monkeypatch.setattr(ledger, name, locked(name))
        tried: list[str] = []

        def score_at_second_sight(claims: Iterable[Claim]) -> Iterator[ScoredClaim]:
            for claim in claims:
                tried.append(claim.key)
                yield from score([claim]) if claim.attempt == 2 else (ScoredClaim(claim, None),)

        Loop(ledger, "me", PendingResults(tmp_path / "pending-results", lambda output: True), lambda record: None).work(
            score_at_second_sight
        )
        assert ledger.unfinished() == 0
    assert Counter(failed) == {"claim": 2, "retry": 2, "finish": 2, "release": 2}
    assert sorted(tried) == sorted(2 * [f"study:{number}" for number in range(20)])


def test_studies_whose_claim_was_lost_on_its_way_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", "run") as ledger:
        ledger.add(Unit(f"study:{number}", number, "f", b"[]") for number in range(20))
        claim, answers = ledger.claim, itertools.count()

        def lose_the_first(owner: str, count: int, lease: float) -> list[Claim]:
            claims = claim(owner, count, lease)
            if next(answers) == 0:
                raise LedgerError("The connection was cut.")
            return claims

        monkeypatch.setattr(ledger, "claim", lose_the_first)
        Loop(ledger, "me", PendingResults(tmp_path / "pending-results", lambda output: True), lambda record: None).work(score)
        assert ledger.unfinished() == 0
