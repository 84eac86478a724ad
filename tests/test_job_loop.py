"""How many studies a process claims at once: as many as it finishes in about a second."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from pipeline.job import loop
from pipeline.job.loop import Loop
from pipeline.job.scorer import Done
from pipeline.job.unsaved import Unsaved
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.types import Claim, Order, Outcome, StudyWork
from pipeline.results.record import StudyRecord

RECORD = StudyRecord("1.2.3", ()).to_json()


def score(claims: Iterable[Claim]) -> Iterator[Done]:
    for claim in claims:
        yield Done(claim, Outcome(claim.id, RECORD, 0, 0.0))


@pytest.mark.parametrize(("seconds", "expected"), [(0.025, 41), (2.0, 8), (0.003, 256)])
def test_a_process_claims_what_it_finishes_in_a_second(
    seconds: float, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock) * seconds)  # each study looks at it once
    asked: list[int] = []
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", "run") as ledger:
        ledger.add(StudyWork(f"study:{number}", number, "f", b"[]") for number in range(2000))
        claim = ledger.claim

        def note(owner: str, count: int, lease: float) -> list[Claim]:
            asked.append(count)
            return claim(owner, count, lease)

        monkeypatch.setattr(ledger, "claim", note)
        Loop(ledger, Unsaved(tmp_path / "unsaved.jsonl"), lambda record: None).work(score)
        assert len(list(ledger.outcomes(Order.POSITION))) == 2000
    assert asked[:3] == ([8, 8, 8] if seconds > 1 else [8, 16, 32])
    assert max(asked) == expected
