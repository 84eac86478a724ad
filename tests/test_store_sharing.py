"""Processes that share a job: one plans, one writes, and whoever dies is replaced."""

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.store import sharing
from pipeline.store.ledger import Ledger
from pipeline.store.sharing import JobMember
from tests.ledgers import LONG, keys, outcome, works


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    path = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    with Ledger(path if request.param == "sqlite" else request.getfixturevalue("postgres_url"), uuid.uuid4().hex) as ledger:
        yield ledger


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def joined(stack: ExitStack, ledger: Ledger, is_alone: bool = False) -> JobMember:
    member = stack.enter_context(JobMember(ledger, "folder"))
    member.join(is_alone)
    return member


def test_one_plans_all_work_and_the_first_to_find_all_finished_writes(ledger: Ledger, stack: ExitStack) -> None:
    a, b = joined(stack, ledger), joined(stack, ledger)
    assert a.take_planning() is True
    assert b.take_planning() is None
    ledger.add(works(2))
    a.planned()
    assert b.take_planning() is False
    (mine,), (other,) = ledger.claim(a.owner, 1, LONG), ledger.claim(b.owner, 1, LONG)
    ledger.finish(a.owner, [outcome(mine)])
    assert (a.take_writing(), a.summary()) == (False, None)  # b may still need help
    ledger.finish(b.owner, [outcome(other)])
    assert (b.take_writing(), a.take_writing()) == (True, False)
    late = joined(stack, ledger)
    assert late.take_planning() is None
    b.finish("2 studies")
    assert a.summary() == "2 studies"
    assert late.take_planning() is True
    assert a.summary() == "2 studies"  # whatever becomes of the next round


def test_who_plans_or_writes_and_dies_is_replaced(ledger: Ledger, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(JobMember, "_beat", lambda self: None)
    dead = joined(stack, ledger)
    assert dead.take_planning() is True
    time.sleep(0.6)
    a = joined(stack, ledger)
    assert a.take_planning() is True
    dead.planned()  # it was slow, not dead
    a.planned()
    time.sleep(0.6)
    b = joined(stack, ledger)
    assert b.take_planning() is True  # nobody works on the round that was planned
    b.planned()
    c = joined(stack, ledger)
    assert c.take_planning() is False
    assert c.take_writing() is True
    time.sleep(0.6)
    assert b.take_writing() is True


def test_who_is_alone_takes_over_at_once_what_the_dead_of_its_machine_hold(ledger: Ledger, stack: ExitStack) -> None:
    dead = joined(stack, ledger)
    dead.take_planning()
    ledger.add(works(3))
    dead.planned()
    done, *_ = ledger.claim(dead.owner, 2, LONG)
    ledger.finish(dead.owner, [outcome(done)])
    alone = joined(stack, ledger, is_alone=True)
    assert alone.take_planning() is True
    assert [claim.key for claim in ledger.claim(alone.owner, 9, LONG)] == ["study:1", "study:2"]
    assert keys(ledger) == ["study:0"]


def test_who_leaves_first_leaves_writing_to_the_others(ledger: Ledger, stack: ExitStack) -> None:
    a, b = joined(stack, ledger), joined(stack, ledger)
    a.take_planning()
    ledger.add(works(1))
    a.planned()
    b.take_planning()
    assert a.take_writing() is False
    a.__exit__(None, None, None)
    assert b.take_writing() is True  # the last, though not all is finished


def test_a_job_writes_into_one_folder(ledger: Ledger, stack: ExitStack) -> None:
    joined(stack, ledger)
    with JobMember(ledger, "other") as member, pytest.raises(InputError, match="writes into another results folder"):
        member.join(is_alone=True)


def test_who_was_stopped_longer_than_a_lease_goes_on_with_the_others(
    ledger: Ledger, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(JobMember, "_beat", lambda self: None)
    stopped = joined(stack, ledger)
    assert stopped.take_planning() is True
    ledger.add(works(1))
    assert (stopped.is_leader(), stopped.planned()) == (True, True)
    time.sleep(0.6)
    other = joined(stack, ledger)
    assert other.take_planning() is True
    assert (stopped.summary(), stopped.take_writing()) == (None, False)  # what it worked on was never finished
    other.planned()
    (claim,) = ledger.claim(stopped.owner, 9, LONG)
    assert other.take_writing() is False  # it is seen again
    ledger.finish(stopped.owner, [outcome(claim)])
    assert stopped.take_writing() is True
    time.sleep(0.6)
    assert other.take_writing() is True
    assert (other.finish("1 study"), stopped.summary()) == (True, "1 study")
    assert stopped.finish("0 studies") is False  # what it wrote may have replaced the tables of the other
    assert (stopped.take_writing(), stopped.finish("1 study, again")) == (True, True)
    assert other.summary() == "1 study, again"


def test_who_plans_too_slowly_leaves_the_list_of_another(
    ledger: Ledger, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(JobMember, "_beat", lambda self: None)
    slow = joined(stack, ledger)
    assert slow.take_planning() is True
    time.sleep(0.6)
    other = joined(stack, ledger)
    assert other.take_planning() is True
    assert (slow.is_leader(), slow.planned(), slow.take_planning()) == (False, False, None)
    assert other.planned() is True
    assert slow.take_planning() is False
