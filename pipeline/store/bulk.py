"""Writes many units of work at once: by one statement on PostgreSQL, instead of one round trip for each."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ColumnElement,
    LargeBinary,
    Text,
    any_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.types import TypeEngine

from pipeline.store.database import units

Rows = Sequence[Mapping[str, Any]]
"""Values by the names of their columns, the same names in each."""


def insert(connection: Connection, rows: Rows, constants: Mapping[str, Any]) -> int:
    """Enter units, but none whose key is in the job already; return how many were entered.

    Parameters
    ----------
    connection
        Within a transaction.
    rows
        What differs between the units.
    constants
        What is the same for all of them, by the names of the columns.
    """
    if not rows:
        return 0
    if connection.dialect.name == "postgresql":
        given, values = _given(rows)
        chosen = select(*(literal(value, units.c[name].type) for name, value in constants.items()), *values.values())
        entered = postgresql.insert(units).from_select([*constants, *values], chosen.select_from(given))
        return connection.execute(entered.on_conflict_do_nothing()).rowcount
    own: dict[str, Any] = {name: bindparam(name) for name in rows[0]}
    statement = sqlite.insert(units).values({**constants, **own}).on_conflict_do_nothing()
    return connection.execute(statement, rows).rowcount


def change(connection: Connection, rows: Rows, constants: Mapping[str, Any], only: ColumnElement[bool]) -> set[int]:
    """Change the units that fulfil a condition, and return their ids.

    Parameters
    ----------
    connection
        Within a transaction; on SQLite one that excludes other writers.
    rows
        What differs between the units; `unit` is the id of the one that a row belongs to.
    constants
        What is the same for all of them.
    only
        The condition.
    """
    if not rows:
        return set()
    if connection.dialect.name == "postgresql":
        _, values = _given(rows)
        unit = values.pop("unit")
        fits = case((only, True), else_=False)  # a guess at how many fit would make PostgreSQL look for them in the whole table
        changed = update(units).where(units.c.id == unit, fits).values(**constants, **values).returning(units.c.id)
        return set(connection.execute(changed).scalars())
    fit = select(units.c.id).where(units.c.id.in_([row["unit"] for row in rows]), only)
    ids = set(connection.execute(fit).scalars())
    values = {name: bindparam(name) for name in rows[0] if name != "unit"}
    statement = update(units).where(units.c.id == bindparam("unit")).values(**constants, **values)
    if ids:
        connection.execute(statement, [row for row in rows if row["unit"] in ids])
    return ids


def remove(connection: Connection, ids: list[int]) -> None:
    """Remove units by their ids."""
    if ids:
        connection.execute(units.delete().where(among(connection, units.c.id, ids)))


def among(connection: Connection, what: Column[Any], values: list[Any]) -> ColumnElement[bool]:
    """Return the condition that a column has one of some values; PostgreSQL gets them as one array."""
    if connection.dialect.name == "postgresql":
        return what == any_(cast(bindparam(what.name, values), ARRAY(what.type)))
    return what.in_(values)


def _given(rows: Rows) -> tuple[Any, dict[str, Any]]:
    """Return rows as a table that PostgreSQL unfolds from one array a column, and for each name its column.

    Text goes there as bytes, which the driver writes several times as fast.
    """
    types: dict[str, TypeEngine[Any]] = {name: BigInteger() if name == "unit" else units.c[name].type for name in rows[0]}
    texts = {name for name, kind in types.items() if isinstance(kind, Text)}
    sent = {name: LargeBinary() if name in texts else kind for name, kind in types.items()}
    arrays = {name: [row[name].encode() if name in texts else row[name] for row in rows] for name in types}
    unfolded = func.unnest(*(cast(bindparam(name, arrays[name]), ARRAY(kind)) for name, kind in sent.items()))
    columns = (column(name, kind) for name, kind in sent.items())
    given = unfolded.table_valued(*columns, name="given").render_derived()
    values = {name: func.convert_from(given.c[name], "UTF8") if name in texts else given.c[name] for name in types}
    return given, values
