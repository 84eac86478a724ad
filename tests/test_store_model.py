"""The ledger against a plain model of it, through any sequence of what owners and jobs may ask of it."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pipeline.store.ledger import Claim, Ledger, Order, Outcome, Unit

OWNERS = st.sampled_from(["a", "b"])
KEYS = st.integers(0, 3).map(str)


@dataclass
class Study:
    fingerprint: str
    position: int
    id: int = 0
    attempts: int = 0
    owner: str = ""
    lost: bool = False
    outcome: tuple[bytes, int, float] | None = None
    finished_by: str = ""
    is_final: bool = True


class Machine(RuleBasedStateMachine):
    """Does the same to a ledger and to a dictionary; a lease of no seconds is one that has run out at once."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.ledger = Ledger(url, uuid.uuid4().hex)
        self.model: dict[str, Study] = {}
        self.claims: list[Claim] = []

    def teardown(self) -> None:
        self.ledger.remove()
        self.ledger.__exit__(None, None, None)

    @rule(found=st.dictionaries(KEYS, st.sampled_from("xy")), first=st.integers(0, 20))
    def add(self, found: dict[str, str], first: int) -> None:
        works = [Unit(key, first + place, held, key.encode()) for place, (key, held) in enumerate(found.items())]
        changed = [one for one in works if one.key not in self.model or self.model[one.key].fingerprint != one.fingerprint]
        assert self.ledger.add(works) == len(changed)
        for work in works:
            if work in changed:
                self.model[work.key] = Study(work.fingerprint, work.position)
            self.model[work.key].position = work.position

    @rule(keys=st.sets(KEYS, min_size=2))
    def keep(self, keys: set[str]) -> None:
        self.ledger.keep(keys)
        self.model = {key: study for key, study in self.model.items() if key in keys}

    @rule(owner=OWNERS, count=st.integers(1, 4), lost=st.booleans())
    def claim(self, owner: str, count: int, lost: bool) -> None:
        free = [one for one in self.model.values() if not one.owner and one.outcome is None]
        free = free or [one for one in self.model.values() if one.lost and one.owner != owner]
        claims = self.ledger.claim(owner, count, -1.0 if lost else 1000.0)
        taken = [self.model[claim.key] for claim in claims]
        assert all(any(one is other for other in free) for one in taken)
        assert [one.position for one in taken] == sorted(one.position for one in free)[:count]
        assert [(claim.fingerprint, claim.attempt) for claim in claims] == [
            (one.fingerprint, one.attempts + 1) for one in taken
        ]
        for claim, study in zip(claims, taken, strict=True):
            study.id, study.owner, study.lost = claim.id, owner, lost
        self.claims += claims

    @rule(owner=OWNERS)
    def beat(self, owner: str) -> None:
        self.ledger.beat(owner, 1000.0)
        for study in self.held(owner):
            study.lost = False

    @rule(
        data=st.data(), owner=OWNERS, rank=st.integers(0, 2), probability=st.sampled_from([0.25, 0.5]), is_final=st.booleans()
    )
    def finish(self, data: Any, owner: str, rank: int, probability: float, is_final: bool) -> None:
        """Finish anything that was ever claimed, even where that was long ago, or by another."""
        ever = st.lists(st.sampled_from(self.claims), unique_by=lambda claim: claim.id) if self.claims else st.just([])
        chosen, made, expected = data.draw(ever), (b"made", rank, probability), set()
        for claim in chosen:
            study = self.model.get(claim.key)
            if study and study.id == claim.id and study.owner == owner:
                study.outcome, study.finished_by, study.owner, study.lost = made, owner, "", False
                study.is_final = is_final
            if study and study.id == claim.id and (study.outcome, study.finished_by) == (made, owner):
                expected.add(claim.id)
        assert self.ledger.finish(owner, [Outcome(claim.id, *made, is_final=is_final) for claim in chosen]) == expected

    @rule(owner=OWNERS, data=st.data())
    def retry(self, owner: str, data: Any) -> None:
        ids = data.draw(st.sets(st.sampled_from([claim.id for claim in self.claims]))) if self.claims else set()
        self.ledger.retry(owner, list(ids))
        for study in self.held(owner):
            if study.id in ids:
                study.attempts, study.owner, study.lost = study.attempts + 1, "", False

    @rule(owner=OWNERS)
    def release(self, owner: str) -> None:
        self.ledger.release(owner)
        for study in self.held(owner):
            study.owner, study.lost = "", False

    @rule(data=st.data())
    def reopen(self, data: Any) -> None:
        finished = [one for one in self.model.values() if one.outcome is not None]
        chosen = data.draw(st.lists(st.sampled_from(finished), unique_by=id)) if finished else []
        self.ledger.reopen([one.id for one in chosen])
        for study in chosen:
            study.outcome, study.finished_by, study.attempts = None, "", 0

    @rule(attempts=st.integers(1, 3))
    def retry_failed(self, attempts: int) -> None:
        failed = [one for one in self.model.values() if one.outcome is not None and not one.is_final]
        few = {one.id for one in failed if one.attempts + 1 < attempts}
        assert {outcome.id for outcome in self.ledger.failed()} == {one.id for one in failed}
        assert {outcome.id for outcome in self.ledger.failed(attempts)} == few
        self.ledger.retry_failed(one.id for one in self.model.values() if one.id in few or one.is_final)
        for study in failed:
            if study.id in few:
                study.outcome, study.finished_by, study.attempts = None, "", study.attempts + 1

    @invariant()
    def outcomes_are_those_of_the_model(self) -> None:
        finished = [(key, study) for key, study in self.model.items() if study.outcome is not None]
        assert self.ledger.unfinished() == len(self.model) - len(finished)
        for order in Order:
            stored = list(self.ledger.outcomes(order))
            assert sorted((one.key, (one.record, one.rank, one.probability)) for one in stored) == sorted(
                (key, study.outcome) for key, study in finished
            )
            places = [self.place(one.key, order) for one in stored]
            assert places == sorted(places)

    def place(self, key: str, order: Order) -> tuple[float, ...]:
        study = self.model[key]
        assert study.outcome is not None
        _, rank, probability = study.outcome
        return (study.position,) if order is Order.POSITION else (-rank, -probability, study.position)

    def held(self, owner: str) -> list[Study]:
        return [study for study in self.model.values() if study.owner == owner]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_ledger_does_what_its_model_does(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.sqlite'}" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    run_state_machine_as_test(lambda: Machine(url), settings=settings(max_examples=40, stateful_step_count=30, deadline=None))
