"""The database behind every ledger: its tables, how to connect within a bounded time, and its errors as sentences."""

import logging
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    inspect,
    literal_column,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from pipeline.errors import LedgerError

VERSION, VERSION_TABLE = "0003", "octray_schema"
"""Number of the last migration in `migrations/versions`, and where a database says how far it is."""
PENDING, HELD, FINISHED, FAILED = 0, 1, 2, 3

metadata = MetaData()

schema = Table(
    VERSION_TABLE,
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),  # as Alembic makes it
)

units = Table(
    "octray_units",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("job", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("work", LargeBinary, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("owner", Text, nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("record", LargeBinary),
    Column("rank", SmallInteger),
    Column("probability", Double),
    Column("outputs", Text),
    Column("scored_at", Double),
    Index("octray_units_key", "key", "job", unique=True),  # the job last: by it alone, the index below is the one to use
    Index("octray_units_state", "job", "state", "position"),
    sqlite_autoincrement=True,  # an id is never used again, so that a late outcome finds no other study
)

jobs = Table(
    "octray_jobs",
    metadata,
    Column("name", Text, primary_key=True),
    Column("folder", Text, nullable=False, default=""),
    Column("phase", SmallInteger, nullable=False),
    Column("leader", Text, nullable=False, default=""),
    Column("round", Integer, nullable=False, default=0),
    Column("summary", Text, nullable=False, default=""),
    Column("salt", Text, nullable=False, server_default=""),
)

processes = Table(
    "octray_processes",
    metadata,
    Column("job", Text, primary_key=True),
    Column("owner", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("round", Integer, nullable=False),
    Column("lease_until", Double, nullable=False),
)

APPLICATION = int.from_bytes(b"octr")
"""Application ID in the header of a SQLite file (https://sqlite.org/fileformat.html, offset 68), by which ours are known."""

_SECONDS = 15.0
"""How long one call to the database may take."""

_TABLES = 0x6F637472
"""Number of the lock under which tables are made."""


def connect(url: str | URL, seconds: float = 0.0, is_alone: bool = False) -> Engine:
    """Return an engine whose tables exist and are those of this octray.

    Parameters
    ----------
    url
        `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, or what `file_address` returned.
    seconds
        How long one call may take; 0 takes 15.
    is_alone
        Whether a SQLite file is locked for this engine until it is disposed of.

    Raises
    ------
    LedgerError
        If it is no such address, or the database cannot be reached, or was made by a newer octray.
    """
    try:
        address = make_url(url)
    except ArgumentError:
        raise _wrong_address() from None
    kind = address.get_backend_name()
    has_rest = isinstance(url, str) and kind == "sqlite" and "?" in url  # which is not the name of a file
    if kind not in ("sqlite", "postgresql") or has_rest or not address.query.keys() <= {"unix_sock"}:
        raise _wrong_address()
    if kind == "postgresql":
        address = address.set(drivername="postgresql+pg8000")
    try:
        limits = {"timeout": seconds or _SECONDS}
        engine = create_engine(address, connect_args=limits, pool_pre_ping=kind == "postgresql")
    except NoSuchModuleError:
        raise _wrong_address() from None
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # what it says with a traceback is raised as well
    prepare = partial(_prepare_sqlite, seconds=seconds or _SECONDS, is_alone=is_alone)
    event.listen(engine, "connect", prepare if kind == "sqlite" else _prepare_postgresql)
    try:
        _create(engine)
    except LedgerError:
        engine.dispose()
        raise
    return engine


def file_address(path: Path) -> URL:
    """Return the address of a SQLite file of any name, also one that means something else in an address."""
    return URL.create("sqlite", database=os.fspath(path.resolve()))


def without_password(url: str) -> str:
    """Return the address of a ledger without what may change while the ledger stays the same.

    Raises
    ------
    LedgerError
        If it is no address.
    """
    try:
        return make_url(url).set(password=None).render_as_string() if url else ""
    except ArgumentError:
        raise _wrong_address() from None


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Give a connection within a transaction that is kept as a whole at the end, or not at all.

    On SQLite it waits here until no other writes, so that what it reads cannot change before it writes.

    Raises
    ------
    LedgerError
        If the database raised anything.
    """
    with translated(), engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the database raises into a sentence that names neither its address nor its password.

    Raises
    ------
    LedgerError
        If the database raised anything.
    """
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        raise LedgerError(*_told(error)) from None


def now(engine: Engine) -> ColumnElement[float]:
    """Return the seconds since 1970 by the clock of the database, on which all owners agree."""
    if engine.dialect.name == "sqlite":
        return literal_column("((julianday('now') - 2440587.5) * 86400.0)")
    return func.extract("epoch", func.clock_timestamp()).cast(units.c.lease_until.type)


def migrate(connection: Connection, target: str = VERSION) -> None:
    """Bring the tables to another version, within the transaction of a connection; imports Alembic, which takes long.

    Parameters
    ----------
    connection
        As `writing` gives it.
    target
        Number of a migration; `base` removes all tables.

    Raises
    ------
    LedgerError
        If the tables have a version that this octray does not know.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", os.fspath(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    is_back = target == "base" or target < _version(connection)
    try:
        (command.downgrade if is_back else command.upgrade)(config, target)
    except CommandError:
        raise LedgerError(
            "The ledger was made by another version of octray. Install that one, or give another ledger."
        ) from None


def _create(engine: Engine) -> None:
    """Make the tables of a new database, or bring those of an older octray up to date, one process after the other."""
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_TABLES})")
        version = _version(connection)
        if not version:
            metadata.create_all(connection)
            connection.execute(schema.insert().values(version_num=VERSION))
        elif version != VERSION:
            migrate(connection)


def _version(connection: Connection) -> str:
    """Return the version of the tables; empty if there are none."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return ""
    return connection.execute(select(schema.c.version_num)).scalar_one_or_none() or ""


def _prepare_sqlite(connection: Any, _: object, *, seconds: float, is_alone: bool) -> None:
    """Let readers and a writer work side by side; a power cut may cost the last units, which are then worked on again."""
    deadline = time.monotonic() + seconds
    if is_alone:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        if connection.execute("PRAGMA page_count").fetchone() == (0,):
            connection.execute(f"PRAGMA application_id = {APPLICATION}")  # now, so that it is in the file and not in the log
    while connection.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", "memory"):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:  # for this alone SQLite does not wait while others have it open
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous = NORMAL")


def _prepare_postgresql(connection: Any, _: object) -> None:
    """Bound what the server does by itself, and have it read by its indices, whatever its statistics say.

    Those describe the table as it was some time ago: nothing pending, or nothing finished. Plans that believe them read
    everything again for each study.
    """
    settings = {
        "statement_timeout": f"{_SECONDS * 800:.0f}",  # so that the server answers before it is given up
        "idle_in_transaction_session_timeout": f"{_SECONDS * 2000:.0f}",
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
        "enable_sort": "off",
        "jit": "off",
    }
    if (wire := getattr(connection, "_usock", None)) is not None and wire.family != socket.AF_UNIX:
        # pg8000 writes a statement in pieces, which TCP holds back for 40 ms otherwise, and has no setting for it.
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    cursor = connection.cursor()
    for name, value in settings.items():
        cursor.execute(f"SET {name} = {value}")
    cursor.close()
    connection.commit()


def _wrong_address() -> LedgerError:
    return LedgerError(
        "The address of the ledger is not one that octray knows. It reads sqlite:///PATH or "
        "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with nothing after it."
    )


def _told(error: Exception) -> tuple[str, str]:
    """Return a sentence, and which problem it is about."""
    original = getattr(error, "orig", None) or error
    told = original.args[0] if original.args else ""
    text, code = str(original).lower(), told.get("C", "") if isinstance(told, dict) else ""
    for marks, codes, sentence, problem in _SENTENCES:
        if code in codes or any(mark in text for mark in marks):
            return sentence, problem
    return _OTHER, ""


_SENTENCES: tuple[tuple[tuple[str, ...], tuple[str, ...], str, str], ...] = (
    (
        ("database is locked", "table is locked"),
        ("55P03",),
        "The ledger is locked by another program. Close what has it open, and start again.",
        "locked",
    ),
    (
        ("disk is full", "disk i/o error"),
        ("53100",),
        "The disk of the ledger is full or failing. Free some space, and start again.",
        "full",
    ),
    (
        ("malformed", "not a database"),
        ("XX001", "XX002"),
        "The ledger is damaged. Remove it, and score again.",
        "damaged",
    ),
    (
        (),
        ("28000", "28P01"),
        "The database of the ledger does not accept the user or the password. Correct its address.",
        "",
    ),
    (
        (),
        ("53300",),
        "The database of the ledger has no connection left. Raise its max_connections, or start fewer processes.",
        "",
    ),
    (
        (),
        ("57014",),
        "The database of the ledger is too slow: it has not answered in time. Check its load, and start again.",
        "",
    ),
)
"""Marks in what the driver says, or codes of PostgreSQL (its manual, Appendix A), and the message for each."""

_OTHER = (
    "The database of the ledger cannot be reached or used. Check that it is running and that you may write to it, then start "
    "again."
)
