"""The ledger, on SQLite and on PostgreSQL: what is claimed is held by one, and what is finished stays."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import LedgerError
from pipeline.store.ledger import Ledger, Order, Outcome, Unit
from tests.ledgers import LONG, keys, outcome, works


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def run() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def ledger(url: str, run: str) -> Iterator[Ledger]:
    with Ledger(url, run) as ledger:
        yield ledger


def test_studies_are_claimed_in_order_and_once(ledger: Ledger) -> None:
    assert ledger.add(works(5)) == 5
    first, second = ledger.claim("a", 3, LONG), ledger.claim("b", 3, LONG)
    assert [claim.key for claim in first + second] == [f"study:{number}" for number in range(5)]
    assert [(claim.work, claim.attempt, claim.fingerprint) for claim in first[:1]] == [(b"[0]", 1, "f")]
    assert ledger.claim("c", 3, LONG) == []
    assert ledger.unfinished() == 5


def test_what_is_finished_comes_back_in_both_orders(ledger: Ledger) -> None:
    ledger.add(works(5))
    urgency = {"study:0": (0, 0.9), "study:1": (2, 0.1), "study:2": (2, 0.8), "study:3": (0, 0.9), "study:4": (1, 0.7)}
    claims = ledger.claim("a", 10, LONG)
    outcomes = [outcome(claim, *urgency[claim.key]) for claim in reversed(claims)]
    assert ledger.finish("a", outcomes) == {claim.id for claim in claims}
    assert keys(ledger) == list(urgency)
    assert keys(ledger, Order.URGENCY) == ["study:2", "study:1", "study:4", "study:0", "study:3"]
    stored = next(ledger.outcomes(Order.POSITION))
    assert (stored.record, stored.outputs) == (outcomes[-1].record, outcomes[-1].outputs)
    assert ledger.unfinished() == 0


def test_a_second_result_and_a_late_one_are_dropped(ledger: Ledger) -> None:
    ledger.add(works(2))
    first, second = ledger.claim("a", 2, LONG)
    ledger.release("a")
    (again,) = ledger.claim("b", 1, LONG)
    assert again.id == first.id
    assert ledger.finish("a", [outcome(first, probability=0.1), outcome(second)]) == set()
    assert ledger.finish("b", [outcome(again, probability=0.9)]) == {first.id}
    assert ledger.finish("b", [outcome(again, probability=0.9)]) == {first.id}  # the caller does not know, and tries again
    assert ledger.finish("a", [outcome(again, probability=0.9)]) == set()
    assert ledger.finish("b", [outcome(again, probability=0.2)]) == set()
    assert [stored.probability for stored in ledger.outcomes(Order.POSITION)] == [0.9]


def test_an_outcome_that_is_not_final_counts_as_one_until_the_study_is_tried_again(ledger: Ledger) -> None:
    ledger.add(works(3))
    for attempt in (1, 2, 3):
        claims = ledger.claim("a", 3, LONG)
        assert {claim.attempt for claim in claims if claim.key == "study:1"} == {attempt}
        ledger.finish("a", [replace(outcome(claim), is_final=claim.key != "study:1") for claim in claims])
        assert (keys(ledger), ledger.unfinished()) == (["study:0", "study:1", "study:2"], 0)
        failed = [(one.key, one.work) for one in ledger.failed(3)]
        assert failed == ([("study:1", b"[1]")] if attempt < 3 else [])
        ledger.retry_failed([one.id for one in ledger.failed(3)])
        assert keys(ledger) == ["study:0", "study:1", "study:2"][:: 2 if attempt < 3 else 1]
    (left,) = ledger.failed()
    ledger.replace(replace(left, record=b"[]", is_final=True), b"other")
    assert list(ledger.failed()) == []
    assert [one.record for one in ledger.outcomes(Order.POSITION) if one.key == "study:1"] == [b"[]"]
    assert dict(ledger.works())["study:1"] == b"other"


def test_what_comes_late_of_a_study_that_changed_or_is_gone_is_taken_for_no_other(ledger: Ledger) -> None:
    ledger.add(works(2))
    changed, gone = ledger.claim("a", 2, LONG)
    ledger.keep({changed.key})
    ledger.add([Unit(changed.key, 0, "other", b""), Unit("study:new", 1, "f", b"")])
    assert len(ledger.claim("a", 2, LONG)) == 2
    assert ledger.finish("a", [outcome(changed), outcome(gone)]) == set()
    assert ledger.unfinished() == 2


def test_nobody_is_given_what_it_holds_already(ledger: Ledger) -> None:
    ledger.add(works(1))
    (claim,) = ledger.claim("a", 1, -1.0)
    assert ledger.claim("a", 1, LONG) == []
    assert [again.id for again in ledger.claim("b", 1, LONG)] == [claim.id]


def test_a_lease_runs_out_unless_it_is_extended(ledger: Ledger) -> None:
    ledger.add(works(2))
    (kept,) = ledger.claim("alive", 1, 0.2)
    (lost,) = ledger.claim("dead", 1, 0.2)
    ledger.beat("alive", LONG)
    time.sleep(0.3)
    (again,) = ledger.claim("b", 5, LONG)
    assert (again.id, again.attempt) == (lost.id, 1)
    assert ledger.finish("dead", [outcome(lost)]) == set()
    assert ledger.finish("alive", [outcome(kept)]) == {kept.id}


def test_an_attempt_counts_where_the_worker_was_killed(ledger: Ledger) -> None:
    ledger.add(works(1))
    attempts = []
    for _ in range(3):
        (claim,) = ledger.claim("a", 1, LONG)
        attempts.append(claim.attempt)
        ledger.retry("a", [claim.id])
    assert attempts == [1, 2, 3]
    ledger.retry("b", [claim.id])  # who does not hold it cannot count
    (claim,) = ledger.claim("a", 1, LONG)
    assert claim.attempt == 4


def test_a_study_that_changes_is_worked_on_again_and_others_stay(ledger: Ledger) -> None:
    ledger.add(works(3))
    ledger.finish("a", [outcome(claim) for claim in ledger.claim("a", 3, LONG)])
    before, changed, _ = works(3)
    assert ledger.add([before, Unit(changed.key, 7, "other", b"new")]) == 1
    assert keys(ledger) == ["study:0", "study:2"]
    (claim,) = ledger.claim("a", 3, LONG)
    assert (claim.key, claim.work, claim.fingerprint, claim.attempt) == ("study:1", b"new", "other", 1)
    ledger.finish("a", [outcome(claim)])
    assert keys(ledger) == ["study:0", "study:2", "study:1"]


def test_studies_that_are_gone_are_forgotten(ledger: Ledger) -> None:
    ledger.add(works(4))
    ledger.finish("a", [outcome(claim) for claim in ledger.claim("a", 2, LONG)])
    ledger.keep({"study:1", "study:3"})
    assert keys(ledger) == ["study:1"]
    assert [claim.key for claim in ledger.claim("a", 9, LONG)] == ["study:3"]


def test_finished_units_may_be_opened_again(ledger: Ledger) -> None:
    ledger.add(works(3))
    done, *_ = ledger.claim("a", 3, LONG)
    ledger.finish("a", [outcome(done)])
    ledger.release("a")
    ledger.reopen([done.id])
    assert [claim.key for claim in ledger.claim("a", 9, LONG)] == ["study:0", "study:1", "study:2"]
    assert keys(ledger) == []


def test_runs_do_not_see_each_other(ledger: Ledger, url: str) -> None:
    ledger.add(works(2))
    with Ledger(url, uuid.uuid4().hex) as other:
        assert other.add(works(3)) == 3
        assert len(other.claim("a", 9, LONG)) == 3
        other.remove()
        assert other.unfinished() == 0
    assert len(ledger.claim("a", 9, LONG)) == 2


WORKER = """
import sys
from pipeline.store.ledger import Ledger
from pipeline.store.ledger import Outcome
url, run, owner = sys.argv[1:]
with Ledger(url, run) as ledger:
    ledger.unfinished()
    print("ready", flush=True)
    sys.stdin.readline()
    while claims := ledger.claim(owner, 7, 1000.0):
        print(*(claim.key for claim in claims), flush=True)
        assert len(ledger.finish(owner, [Outcome(claim.id, owner.encode(), 0, 0.5) for claim in claims])) == len(claims)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 8])
def test_processes_never_hold_the_same_study(url: str, run: str, processes: int) -> None:
    count = 1000
    with Ledger(url, run) as ledger:
        ledger.add(works(count))
        commands = [[sys.executable, "-c", WORKER, url, run, str(number)] for number in range(processes)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers = [subprocess.Popen(command, **pipes) for command in commands]
        assert [worker.stdout.readline() for worker in workers if worker.stdout] == ["ready\n"] * processes
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        with ThreadPoolExecutor(processes) as pool:
            said = list(pool.map(lambda worker: worker.communicate()[0].split(), workers))
        assert [worker.returncode for worker in workers] == [0] * processes
        assert sorted(key for keys in said for key in keys) == sorted(f"study:{number}" for number in range(count))
        who = {key: str(number) for number, keys in enumerate(said) for key in keys}
        assert {stored.key: stored.record.decode() for stored in ledger.outcomes(Order.POSITION)} == who


@pytest.mark.slow
def test_reading_outcomes_takes_memory_for_a_page_only(ledger: Ledger) -> None:
    ledger.add(works(20_000))
    while claims := ledger.claim("a", 1000, LONG):
        ledger.finish("a", [Outcome(claim.id, os.urandom(1000), 0, 0.5) for claim in claims])
    for order in Order:
        tracemalloc.start()
        assert sum(len(stored.record) for stored in ledger.outcomes(order)) == 20_000 * 1000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 6_000_000  # all of them would be 20 MB and more


KILLED = """
import os, sys
from pipeline.store.ledger import Ledger
from pipeline.store.ledger import Outcome
with Ledger(sys.argv[1], sys.argv[2]) as ledger:
    print("ready", flush=True)
    while claims := ledger.claim("killed", 3, 1000.0):
        ledger.finish("killed", [Outcome(claim.id, b"killed", 0, 0.5) for claim in claims])
        print(len(claims), flush=True)
"""


def test_a_killed_worker_loses_nothing_and_doubles_nothing(url: str, run: str) -> None:
    count = 3000
    with Ledger(url, run) as ledger:
        ledger.add(works(count))
        said = 0
        for _ in range(3):
            with subprocess.Popen([sys.executable, "-c", KILLED, url, run], stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                said += sum(int(process.stdout.readline()) for _ in range(5))
                os.kill(process.pid, signal.SIGKILL)
                said += sum(int(line) for line in process.stdout if line.endswith("\n"))
            ledger.release("killed")
        finished = len(keys(ledger))
        assert said <= finished < count
        while claims := ledger.claim("a", 100, LONG):
            assert len(ledger.finish("a", [outcome(claim) for claim in claims])) == len(claims)
        records = Counter(stored.record == b"killed" for stored in ledger.outcomes(Order.POSITION))
        assert records == {True: finished, False: count - finished}


@pytest.mark.parametrize("address", ["", "no address", "mysql://user:secret@host/x", "oracle+cx://user:secret@host/x"])
def test_an_unknown_address_is_said_without_its_password(address: str) -> None:
    with pytest.raises(LedgerError, match=r"It reads sqlite:///PATH or postgresql://") as caught:
        Ledger(address, "run")
    assert "secret" not in str(caught.value)


def test_a_database_that_cannot_be_reached_is_said_without_its_password() -> None:
    with pytest.raises(LedgerError, match="cannot be reached or used") as caught:
        Ledger("postgresql://user:secret@127.0.0.1:1/x", "run")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_ledger_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(LedgerError, match="damaged"):
        Ledger(f"sqlite:///{tmp_path / 'x.sqlite'}", "run")
