"""The heartbeat of a loop: what a process works on stays its own for as long as it works, however short a lease is."""

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select

from pipeline.job.loop import Loop, PendingResults
from pipeline.job.scorer import ScoredClaim
from pipeline.predictions import StudyRecord
from pipeline.store import sharing
from pipeline.store.database import HELD, units
from pipeline.store.ledger import Claim, Ledger, Order, Outcome
from pipeline.store.sharing import JobMember
from tests.ledgers import works

LEASE_SECONDS = 6.0
DEADLINE_SECONDS = 60.0
RECORD = StudyRecord("1.2.3", ()).to_json()


def test_leases_are_extended_while_a_process_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LEASE_SECONDS", LEASE_SECONDS)
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    engine = create_engine(url)
    taken_by_another: list[list[Claim]] = []

    def lease_ends() -> list[float]:
        with engine.connect() as connection:
            return list(connection.execute(select(units.c.lease_until).where(units.c.state == HELD)).scalars())

    with Ledger(url, "job") as ledger, Ledger(url, "job") as other:
        ledger.add(works(3))

        def score(claims: Iterable[Claim]) -> Iterator[ScoredClaim]:
            claimed = list(claims)
            first, deadline = max(lease_ends()), time.monotonic() + DEADLINE_SECONDS
            while min(lease_ends()) < first + LEASE_SECONDS:  # the lease that was given at first has ended by then
                assert time.monotonic() < deadline
                time.sleep(0.05)
            taken_by_another.append(other.claim("another", 3, LEASE_SECONDS))
            yield from (ScoredClaim(claim, Outcome(claim.id, RECORD, 0, 0.0)) for claim in claimed)

        told: list[StudyRecord] = []
        with JobMember(ledger) as member:
            pending_results = PendingResults(tmp_path / "pending-results", lambda output: True)
            Loop(ledger, member.owner, pending_results, told.append).work(score)
        assert taken_by_another == [[]]
        assert (len(told), ledger.unfinished()) == (3, 0)
        assert [outcome.key for outcome in ledger.outcomes(Order.POSITION)] == ["study:0", "study:1", "study:2"]
    engine.dispose()
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_process_that_does_not_beat_loses_what_it_works_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LEASE_SECONDS", LEASE_SECONDS)
    url, deadline = f"sqlite:///{tmp_path / 'ledger.sqlite'}", time.monotonic() + DEADLINE_SECONDS
    with Ledger(url, "job") as ledger, Ledger(url, "job") as other:
        ledger.add(works(1))
        monkeypatch.setattr(ledger, "beat", lambda owner, seconds: None)

        def score(claims: Iterable[Claim]) -> Iterator[ScoredClaim]:
            for claim in claims:
                while not (taken := other.claim("another", 1, DEADLINE_SECONDS)):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                assert [one.key for one in taken] == [claim.key]
                yield ScoredClaim(claim, Outcome(claim.id, RECORD, 0, 0.0))

        told: list[StudyRecord] = []
        with JobMember(ledger) as member:
            pending_results = PendingResults(tmp_path / "pending-results", lambda output: True)
            Loop(ledger, member.owner, pending_results, told.append).work(score)
        assert (told, ledger.unfinished()) == ([], 1)
