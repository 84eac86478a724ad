"""The tables of the store: new databases get them at once, older ones step by step, and both are the same."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url

from pipeline.errors import LedgerError
from pipeline.store import database
from pipeline.store.database import VERSION, VERSION_TABLE, connect, metadata, migrate, schema, writing
from pipeline.store.ledger import Ledger
from tests.ledgers import LONG, keys, outcome, works
from tests.test_store_faults import administrator


@pytest.fixture(params=["sqlite", "postgresql"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """Addresses of two databases, both empty."""
    if request.param == "sqlite":
        yield [f"sqlite:///{tmp_path / name}.sqlite" for name in "ab"]
        return
    postgres_url = request.getfixturevalue("postgres_url")
    names = [f"new_{uuid.uuid4().hex}" for _ in "ab"]
    with administrator(postgres_url) as server:
        for name in names:
            server.execute(text(f"CREATE DATABASE {name}"))
        yield [make_url(postgres_url).set(database=name).render_as_string(hide_password=False) for name in names]
        for name in names:
            server.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def empty(url: str) -> Engine:
    """Connect without making tables."""
    return create_engine(make_url(url).set(drivername="sqlite" if url.startswith("sqlite") else "postgresql+pg8000"))


def revisions() -> list[str]:
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).with_name("migrations")))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


def described(connection: Connection) -> dict[str, Any]:
    """All that a database says of its tables."""
    found = inspect(connection)
    return {
        table: (
            [{name: str(value) for name, value in column.items()} for column in found.get_columns(table)],
            found.get_pk_constraint(table),
            sorted(found.get_indexes(table), key=str),
        )
        for table in sorted(found.get_table_names())
        if table.startswith("octray")
    }


def sqlite_tables(connection: Connection) -> list[str]:
    rows = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").scalars()
    return ["".join(sql.split()) for sql in rows]


def test_a_database_that_is_migrated_from_nothing_is_as_a_new_one(urls: list[str]) -> None:
    new, migrated = connect(urls[0]), empty(urls[1])
    with writing(new) as one, writing(migrated) as other:
        migrate(other)
        assert described(one) == described(other)
        if new.dialect.name == "sqlite":
            assert sqlite_tables(one) == sqlite_tables(other)
        context = MigrationContext.configure(other, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, metadata) == []
    new.dispose()
    migrated.dispose()


def test_each_migration_can_be_undone(urls: list[str]) -> None:
    engine = empty(urls[0])
    numbers, before = revisions(), []
    with writing(engine) as connection:
        for number in numbers:
            before.append(described(connection))
            migrate(connection, number)
        for number in reversed(["base", *numbers[:-1]]):
            migrate(connection, number)
            there = described(connection)
            there.pop(VERSION_TABLE)
            assert there == {name: table for name, table in before.pop().items() if name != VERSION_TABLE}
    engine.dispose()


def test_the_last_migration_is_the_version_of_the_tables() -> None:
    assert revisions()[-1] == VERSION
    assert revisions() == sorted(revisions())


def test_an_older_database_is_brought_up_to_date_and_keeps_what_it_holds(urls: list[str]) -> None:
    with Ledger(urls[0], "job") as ledger:
        ledger.add(works(2))
        (claim,) = ledger.claim("a", 1, LONG)
        ledger.finish("a", [outcome(claim)])
        with writing(ledger.engine) as connection:
            migrate(connection, "0001")
            assert not inspect(connection).has_table("octray_jobs")
    with Ledger(urls[0], "job") as ledger:
        assert (keys(ledger), ledger.unfinished()) == (["study:0"], 1)
        with ledger.engine.connect() as reader:
            assert inspect(reader).has_table("octray_jobs")


def test_a_database_of_a_newer_octray_is_refused(urls: list[str]) -> None:
    engine = connect(urls[0])
    with writing(engine) as connection:
        connection.execute(schema.update().values(version_num="9999"))
    engine.dispose()
    with pytest.raises(LedgerError, match="another version of octray"):
        Ledger(urls[0], "job")


def test_a_migration_that_fails_leaves_the_database_as_it_was(urls: list[str]) -> None:
    engine = connect(urls[0])
    with writing(engine) as connection:
        migrate(connection, "0001")
        before = described(connection)

    @event.listens_for(engine, "before_cursor_execute")
    def fail(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "octray_processes" in statement:
            raise OSError("The disk is full.")

    with pytest.raises(LedgerError), writing(engine) as connection:
        migrate(connection)
    with engine.connect() as reader:
        assert described(reader) == before
    engine.dispose()


ALEMBIC = """
import sys
from pipeline.store.ledger import Ledger
for _ in range(2):
    with Ledger(sys.argv[1], "job") as ledger:
        assert len(ledger) == 0
assert not [name for name in sys.modules if name.startswith(("alembic", "mako"))]
"""


def test_alembic_is_not_imported_unless_a_database_is_old(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", ALEMBIC, f"sqlite:///{tmp_path / 'ledger.sqlite'}"], check=True)
