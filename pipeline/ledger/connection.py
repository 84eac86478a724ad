"""Connects to the database of a ledger, within a bounded time, and says in a sentence what is the matter with it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, create_engine, event, func, literal_column, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from pipeline.errors import LedgerError
from pipeline.ledger import schema

_SECONDS = 15.0
"""How long one call to the database may take."""


def connect(url: str) -> Engine:
    """Return an engine whose tables exist and have this octray's schema version.

    Parameters
    ----------
    url
        `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/DATABASE`.

    Raises
    ------
    LedgerError
        Where it is no such address, or the database cannot be reached, or was made by a newer octray.
    """
    try:
        address = make_url(url)
    except ArgumentError:
        raise _wrong_address() from None
    kind = address.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise _wrong_address()
    if kind == "postgresql":
        address = address.set(drivername="postgresql+pg8000")
    try:
        engine = create_engine(address, connect_args={"timeout": _SECONDS}, pool_pre_ping=kind == "postgresql")
    except NoSuchModuleError:
        raise _wrong_address() from None
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # what it says with a traceback is raised as well
    if kind == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    with translated(), engine.begin() as connection:
        _create(connection)
    return engine


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the database raises into a sentence that names neither its address nor its password.

    Raises
    ------
    LedgerError
        Always where anything was raised by the database.
    """
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        raise LedgerError(_sentence(error)) from None


def now(engine: Engine) -> ColumnElement[float]:
    """Return the seconds since 1970 by the clock of the database, on which all owners agree."""
    if engine.dialect.name == "sqlite":
        return literal_column("((julianday('now') - 2440587.5) * 86400.0)")
    return func.extract("epoch", func.clock_timestamp()).cast(schema.studies.c.lease_until.type)


def _create(connection: Connection) -> None:
    try:
        schema.metadata.create_all(connection)
    except IntegrityError:  # another process made the tables at the same moment
        connection.rollback()
    versions = connection.execute(select(schema.about.c.version)).scalars().all()
    if not versions:
        connection.execute(schema.about.insert().values(version=schema.VERSION))
    elif max(versions) > schema.VERSION:
        raise LedgerError("The ledger was made by a newer octray. Install that one, or give another ledger.")


def _prepare_sqlite(connection: Any, _: object) -> None:
    """Let readers and a writer work side by side; a power cut may cost the last studies, which are then scored again."""
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _wrong_address() -> LedgerError:
    return LedgerError(
        "The address of the ledger is not one that octray knows. It reads sqlite:///PATH or "
        "postgresql://USER:PASSWORD@HOST/DATABASE."
    )


def _sentence(error: Exception) -> str:
    text = str(getattr(error, "orig", None) or error).lower()
    if "locked" in text:
        return "The ledger is locked by another program. Close what has it open, and start again."
    if "full" in text:
        return "The disk of the ledger is full. Make room, and start again."
    if "malformed" in text or "not a database" in text:
        return "The ledger is damaged. Remove it, and score again."
    if "password" in text or "authentication" in text:
        return "The database of the ledger does not accept the user or the password. Correct its address."
    return "The database of the ledger cannot be reached or used. Check that it runs and may be written to, and start again."
