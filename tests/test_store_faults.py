"""What a ledger says of a database that is slow, full, locked, gone or refuses, and that it works again afterwards."""

import sqlite3
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url

from pipeline.errors import LedgerError
from pipeline.job.study_files import file_key
from pipeline.store import database
from pipeline.store.ledger import Ledger, Order, Unit
from tests.ledgers import LONG, keys, outcome, works


@pytest.fixture
def run() -> str:
    return uuid.uuid4().hex


@contextmanager
def administrator(postgres_url: str) -> Iterator[Connection]:
    address = make_url(postgres_url).set(drivername="postgresql+pg8000")
    engine = create_engine(address, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_SECONDS", 1.0)


def test_a_ledger_that_is_locked_is_said_and_takes_the_same_afterwards(impatient: None, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(f"sqlite:///{path}", "run") as ledger:
        ledger.add(works(1))
        (claim,) = ledger.claim("a", 1, LONG)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerError, match="is locked by another program"):
            ledger.finish("a", [outcome(claim)])
        other.close()
        assert ledger.finish("a", [outcome(claim)]) == {claim.id}


def test_a_server_that_does_not_answer_in_time_is_said_and_takes_the_same_afterwards(
    impatient: None, postgres_url: str, run: str
) -> None:
    with Ledger(postgres_url, run) as ledger:
        ledger.add(works(1))
        (claim,) = ledger.claim("a", 1, LONG)
        with administrator(postgres_url) as other:
            other.execute(text("BEGIN"))
            other.execute(text("LOCK TABLE octray_units"))
            with pytest.raises(LedgerError, match="too slow: it has not answered in time"):
                ledger.finish("a", [outcome(claim)])
        assert ledger.finish("a", [outcome(claim)]) == {claim.id}


def test_connections_that_the_server_has_ended_are_opened_anew(postgres_url: str, run: str) -> None:
    with Ledger(postgres_url, run) as ledger:
        ledger.add(works(1))
        (claim,) = ledger.claim("a", 1, LONG)
        with administrator(postgres_url) as other:
            other.execute(text("SELECT pg_terminate_backend(pid, 9000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"))
        assert ledger.finish("a", [outcome(claim)]) == {claim.id}


def test_a_full_disk_is_said_and_what_was_kept_stays(tmp_path: Path) -> None:
    engine = database.connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with engine.connect() as full:
        full.exec_driver_sql("PRAGMA max_page_count = 20")  # holds for this connection, which the pool gives back
    fill = (
        "INSERT INTO octray_schema WITH RECURSIVE n(i) AS (VALUES (1000) UNION SELECT i + 1 FROM n) SELECT * FROM n LIMIT 99999"
    )
    with pytest.raises(LedgerError, match="disk of the ledger is full"), database.writing(engine) as writer:
        writer.exec_driver_sql(fill)
    with engine.connect() as reader:
        assert reader.exec_driver_sql("SELECT version_num FROM octray_schema").all() == [(database.VERSION,)]
    engine.dispose()


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ("LOGIN CONNECTION LIMIT 0", "has no connection left. Raise its max_connections"),
        ("NOLOGIN", "does not accept the user"),
    ],
)
def test_a_server_that_refuses_says_why_and_never_the_password(postgres_url: str, limit: str, sentence: str) -> None:
    user = f"user_{uuid.uuid4().hex}"
    with administrator(postgres_url) as server:
        server.execute(text(f"CREATE ROLE {user} {limit}"))
    address = make_url(postgres_url).set(username=user, password="secret").render_as_string(hide_password=False)
    with pytest.raises(LedgerError, match=sentence) as caught:
        Ledger(address, "run")
    assert "secret" not in str(caught.value)
    with administrator(postgres_url) as server:
        server.execute(text(f"DROP ROLE {user}"))


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new.sqlite'}"
        return
    postgres_url = request.getfixturevalue("postgres_url")
    name = f"new_{uuid.uuid4().hex}"
    with administrator(postgres_url) as server:
        server.execute(text(f"CREATE DATABASE {name}"))
        yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        server.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def test_many_may_make_a_ledger_and_enter_the_same_at_the_same_moment(new_database: str) -> None:
    def enter(_: int) -> int:
        with Ledger(new_database, "run") as ledger:
            return ledger.add(works(1500))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(enter, range(8))) == 1500
    with Ledger(new_database, "run") as ledger:
        assert ledger.unfinished() == 1500
        assert list(ledger.outcomes(Order.POSITION)) == []


def test_what_was_entered_before_an_interrupt_stays(new_database: str) -> None:
    def interrupted() -> Iterator[Unit]:
        yield from works(2000)
        raise KeyboardInterrupt

    with Ledger(new_database, "run") as ledger:
        with pytest.raises(KeyboardInterrupt):
            ledger.add(interrupted())
        assert ledger.unfinished() == 2000
        assert ledger.add(works(2500)) == 500
        assert keys(ledger) == []


@pytest.mark.parametrize(
    "address", ["", "mysql://host/x", "sqlite:////a?b", "postgresql://octray@127.0.0.1:1/postgres?sslmode=require"]
)
def test_an_address_that_is_not_known_is_said(address: str) -> None:
    with pytest.raises(LedgerError, match="address of the ledger is not one that octray knows"):
        Ledger(address, "run")


def test_files_of_any_name_have_a_place_in_the_ledger(new_database: str) -> None:
    names = ["x" * 100_000, "y" * 100_000, "\u00fc/\U0001f9ea.png", "..", ""]
    with Ledger(new_database, "run") as ledger:
        assert ledger.add(Unit(file_key(name), 0, "f", b"[]") for name in names) == len(names)
        ledger.forget([file_key("..")])
        assert {key for key, _ in ledger.works()} == {file_key(name) for name in names} - {"file:.."}
        assert len(ledger) == 4
