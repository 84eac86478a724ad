"""The ledger of a job: units of work that many processes claim from one table, in SQLite or PostgreSQL.

A unit is pending, held by one process until its lease runs out, finished, or failed for a reason that may pass. What a process
holds when it dies is claimed again by another.
"""

import json
import zlib
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, func, select, true, update
from sqlalchemy.engine import URL, Connection

from pipeline.store import bulk
from pipeline.store.database import FAILED, FINISHED, HELD, PENDING, connect, jobs, now, processes, translated, units, writing

_ROWS = 1000
_PAGE = 500
_COMPRESSION = 1
_JOB_COLUMNS = (units.c.job, processes.c.job, jobs.c.name)
"""What names the job in each table."""
_to_json = json.JSONEncoder(separators=(",", ":")).encode

Item = TypeVar("Item")


class Order(StrEnum):
    """In which order outcomes are read: as the units were listed, or the most urgent first."""

    POSITION = "position"
    URGENCY = "urgency"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of work, such as a study that is to be scored.

    Parameters
    ----------
    key
        Names it within its job.
    position
        Its place among the others.
    fingerprint
        Changes if what is to be worked on does.
    work
        What the worker has to know; the store does not look into it.
    """

    key: str
    position: int
    fingerprint: str
    work: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """A unit that one owner works on until its lease runs out; the rest as in `Unit`.

    Parameters
    ----------
    attempt
        Starts at 1.
    scored_at
        As in `Outcome`, if the same files were scored before and something that was written is lost; else 0.
    """

    id: int
    key: str
    fingerprint: str
    attempt: int
    work: bytes
    scored_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Output:
    """A file that was written, known by its content.

    Parameters
    ----------
    name
        Path below the folder of results, with forward slashes.
    sha256
        Of its bytes; empty if it could not be written.
    size
        In bytes.
    """

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a study.

    Parameters
    ----------
    id
        As in its `Claim`.
    record
        What is kept of it; the ledger does not look into it.
    rank, probability
        How urgent it is: a higher rank comes first, and within it a higher probability.
    outputs
        The files that were written.
    is_final
        Whether another attempt would give the same; a study whose outcome is not final may be tried again.
    scored_at
        When these files of the study were first scored, in seconds since 1970; scoring them again does not change it.
    """

    id: int
    record: bytes
    rank: int
    probability: float
    outputs: tuple[Output, ...] = ()
    is_final: bool = True
    scored_at: float = 0.0


@dataclass(frozen=True, slots=True)
class StoredOutcome(Outcome):
    """An outcome as it is read back, with the key of its study and what its worker had to know."""

    key: str = ""
    work: bytes = b""


@dataclass(frozen=True, slots=True)
class CachedResult:
    """The result of a file; an empty fingerprint means that it must be processed again."""

    key: str
    fingerprint: str
    result: str


class Ledger:
    """The units of one job; may be used by several threads and by many processes at once.

    Parameters
    ----------
    url, seconds, is_alone
        As in `connect`.
    job
        Name of the job; jobs do not see each other.

    Raises
    ------
    LedgerError
        By every method, if the database cannot be used.
    """

    def __init__(self, url: str | URL, job: str, *, seconds: float = 0.0, is_alone: bool = False) -> None:
        self.engine = connect(url, seconds, is_alone)
        self.job = job

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def add(self, works: Iterable[Unit]) -> int:
        """Enter units; return how many are new, or have changed and are to be worked on again.

        The outcome of a unit that has changed is dropped. A unit that is there already takes its new position. What was
        entered before this is interrupted stays, and entering it again does nothing.
        """
        changes = 0
        for group in _groups(works, _ROWS):
            with self._writing() as connection:
                changes += self._add(connection, {work.key: work for work in group})
        return changes

    def keep(self, keys: Collection[str]) -> None:
        """Forget all units but these."""
        there = self._select("id", "key")
        with self._writing() as connection:
            rows = connection.execute(there, execution_options={"yield_per": _ROWS})
            gone = array("q", (row.id for row in rows if row.key not in keys))
            for ids in _groups(gone, _ROWS):
                bulk.remove(connection, ids)

    def claim(self, owner: str, count: int, lease_seconds: float) -> list[Claim]:
        """Claim units that no process holds, in their order; then those whose lease has run out.

        Parameters
        ----------
        owner
            Who takes them: a name that one process has for as long as it lives.
        count
            Maximum number of units.
        lease_seconds
            How long they are held, unless `beat` extends that.
        """
        with self._writing() as connection:
            claims = self._claim(connection, units.c.state == PENDING, owner, count, lease_seconds)
            if not claims:
                lost = (units.c.state == HELD) & (units.c.lease_until < now(self.engine)) & (units.c.owner != owner)
                claims = self._claim(connection, lost, owner, count, lease_seconds)
        return claims

    def beat(self, owner: str, lease_seconds: float) -> None:
        """Extend the lease of all that an owner holds."""
        mine = self._select("id").where(_held_by(owner)).with_for_update(skip_locked=True)  # does not wait
        with self._writing() as connection:
            ids = connection.execute(mine).scalars().all()
            connection.execute(_these(connection, ids).values(lease_until=now(self.engine) + lease_seconds))

    def finish(self, owner: str, outcomes: Sequence[Outcome]) -> set[int]:
        """Record the outcomes of units; return the ids of those that the owner still held. Outcomes of the others are dropped.

        May be called again with the same outcomes if it is not known whether they were kept: the answer is the same.
        """
        rows = {outcome.id: _outcome_row(outcome) for outcome in sorted(outcomes, key=lambda outcome: outcome.id)}
        with self._writing() as connection:
            taken = bulk.change(connection, list(rows.values()), {}, _held_by(owner))
            rest = [one for one in rows if one not in taken]
            kept = _found(connection, rest, "owner", *_OUTCOME) if rest else ()
        return taken | {row.id for row in kept if row.owner == owner and _is_same(row, rows[row.id])}

    def retry(self, owner: str, ids: Sequence[int]) -> None:
        """Give back units that killed their worker: this attempt counts."""
        self._update(_held_by(owner) & units.c.id.in_(ids), state=PENDING, owner="", attempts=units.c.attempts + 1)

    def release(self, owner: str) -> int:
        """Give back all that an owner holds, uncounted; return how many these were."""
        return self._update(_held_by(owner), state=PENDING, owner="")

    def reopen(self, ids: Iterable[int]) -> None:
        """Have finished units worked on again; when they were first scored is kept."""
        for group in _groups(ids, _ROWS):
            self._update(units.c.id.in_(group), **_NOTHING)

    def failed(self, attempts: int | None = None) -> Iterator[StoredOutcome]:
        """Read the outcomes that are not final, as they were when this was called.

        Parameters
        ----------
        attempts
            Only of units that were tried fewer times; None reads all.
        """
        few = units.c.attempts + 1 < attempts if attempts is not None else true()
        with translated(), self.engine.connect() as connection:
            found = self._select("id").where(units.c.state == FAILED, few).order_by(units.c.position)
            ids = array("q", connection.execute(found).scalars())
        yield from self.outcomes_of(ids)

    def retry_failed(self, ids: Iterable[int]) -> None:
        """Have units worked on again whose outcome is not final: the attempt that gave it counts."""
        for group in _groups(ids, _ROWS):
            which = units.c.id.in_(group) & (units.c.state == FAILED)
            self._update(which, **_NOTHING | {"attempts": units.c.attempts + 1})

    def replace(self, outcome: Outcome, work: bytes) -> None:
        """Replace the outcome of a unit, and the work that it was made of."""
        row = _outcome_row(outcome)
        self._update(units.c.id == row.pop("unit"), work=work, **row)

    def forget(self, keys: Iterable[str]) -> None:
        """Forget these units."""
        for group in _groups(keys, _ROWS):
            with self._writing() as connection:
                there = self._select("id").where(bulk.among(connection, units.c.key, group))
                bulk.remove(connection, list(connection.execute(there).scalars()))

    def remove(self, folder: str | None = None) -> None:
        """Forget the whole job; if `folder` is given, only if it is the results folder of the job, as in `Member`."""
        with self._writing() as connection:
            owner = connection.execute(select(jobs.c.folder).where(jobs.c.name == self.job)).scalar()
            if folder is not None and owner not in (None, folder):
                return
            for column in _JOB_COLUMNS:
                connection.execute(column.table.delete().where(column == self.job))

    def remove_others(self) -> None:
        """Forget all other jobs of the database."""
        with self._writing() as connection:
            for column in _JOB_COLUMNS:
                connection.execute(column.table.delete().where(column != self.job))

    def put(self, results: Iterable[CachedResult]) -> None:
        """Keep results of units that this process worked on without claiming them, whatever was kept of them before."""
        for group in _groups(results, _ROWS):
            rows = [
                {
                    "key": one.key,
                    "fingerprint": one.fingerprint,
                    "state": FINISHED if one.fingerprint else FAILED,
                    "record": zlib.compress(one.result.encode(), _COMPRESSION),
                }
                for one in group
            ]
            first = {name: value for name, value in _NOTHING.items() if name not in ("state", "record")}
            with self._writing() as connection:
                known = self._select("id").where(bulk.among(connection, units.c.key, [one.key for one in group]))
                bulk.remove(connection, list(connection.execute(known).scalars()))
                bulk.insert(connection, rows, first | {"job": self.job, "position": 0, "work": b""})

    def results(self, keys: Iterable[str]) -> Iterator[str]:
        """Yield what `put` was given of units, in the order of their keys, a page at a time.

        Raises
        ------
        KeyError
            If nothing is known of one.
        """
        for page in _groups(keys, _PAGE):
            with translated(), self.engine.connect() as connection:
                rows = connection.execute(self._select("key", "record").where(bulk.among(connection, units.c.key, page)))
                found = {row.key: row.record for row in rows}
            yield from (zlib.decompress(found[key]).decode() for key in page)

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of all units by their keys."""
        with translated(), self.engine.connect() as connection:
            return {row.key: row.fingerprint for row in connection.execute(self._select("key", "fingerprint"))}

    def works(self) -> Iterator[tuple[str, bytes]]:
        """Read the keys of all units, and what their workers have to know."""
        with translated(), self.engine.connect() as connection:
            rows = connection.execute(self._select("key", "work"), execution_options={"yield_per": _ROWS})
            yield from ((row.key, bytes(row.work)) for row in rows)

    def __len__(self) -> int:
        return self._count(true())

    def unfinished(self) -> int:
        """Return how many units are not finished."""
        return self._count(units.c.state.in_((PENDING, HELD)))

    def outcomes(self, order: Order) -> Iterator[StoredOutcome]:
        """Read the outcomes of the units, final or not, a page at a time, as it was when this was called.

        All that is held in memory of the others is their number: eight bytes for each.
        """
        place = (units.c.position, units.c.id)
        by = place if order is Order.POSITION else (units.c.rank.desc(), units.c.probability.desc(), *place)
        finished = self._select("id").where(units.c.state.in_((FINISHED, FAILED))).order_by(*by)
        with translated(), self.engine.connect() as connection:
            ids = array("q", connection.execute(finished, execution_options={"yield_per": _ROWS}).scalars())
        yield from self.outcomes_of(ids)

    def outcomes_of(self, ids: Iterable[int]) -> Iterator[StoredOutcome]:
        """Read the outcomes of some units, by their ids, in that order; of what is gone by now there is none."""
        yield from map(_stored, self._rows(ids))

    def _rows(self, ids: Iterable[int]) -> Iterator[Any]:
        """Read units that have an outcome, a page at a time, in the order of their ids as given."""
        for page in _groups(ids, _PAGE):
            with translated(), self.engine.connect() as connection:
                rows = _found(connection, page, "key", "state", "work", *_OUTCOME)
            found = {row.id: row for row in rows if row.record is not None}
            yield from (found[one] for one in page if one in found)

    def _writing(self) -> AbstractContextManager[Connection]:
        return writing(self.engine)

    def _count(self, which: ColumnElement[bool]) -> int:
        with translated(), self.engine.connect() as connection:
            return int(connection.execute(select(func.count()).where(units.c.job == self.job, which)).scalar_one())

    def _select(self, *names: str) -> Any:
        return select(*(units.c[name] for name in names)).where(units.c.job == self.job)

    def _add(self, connection: Connection, works: dict[str, Unit]) -> int:
        """Enter units; one that has changed is entered as another, so that what comes late of the old one is not taken."""
        there = self._select("id", "key", "fingerprint", "position").where(bulk.among(connection, units.c.key, list(works)))
        known = [(row, works[row.key]) for row in connection.execute(there)]
        same = [(row, work) for row, work in known if work.fingerprint == row.fingerprint]
        changed = [row.id for row, work in known if work.fingerprint != row.fingerprint]
        moved = [{"position": work.position, "unit": row.id} for row, work in same if work.position != row.position]
        bulk.change(connection, moved, {}, true())
        bulk.remove(connection, changed)
        rest = works.keys() - {row.key for row, _ in same}
        new = [_row(work) for key, work in works.items() if key in rest]
        return bulk.insert(connection, new, _NOTHING | {"job": self.job})

    def _claim(
        self, connection: Connection, which: ColumnElement[bool], owner: str, count: int, lease_seconds: float
    ) -> list[Claim]:
        free = self._select("id", "key", "fingerprint", "attempts", "work", "scored_at").where(which).order_by(units.c.position)
        rows = connection.execute(free.limit(count).with_for_update(skip_locked=True)).all()
        taken = _these(connection, [row.id for row in rows])
        connection.execute(taken.values(state=HELD, owner=owner, lease_until=now(self.engine) + lease_seconds))
        return [
            Claim(row.id, row.key, row.fingerprint, row.attempts + 1, bytes(row.work), row.scored_at or 0.0) for row in rows
        ]

    def _update(self, which: ColumnElement[bool], **values: Any) -> int:
        with self._writing() as connection:
            return connection.execute(update(units).where(units.c.job == self.job, which).values(**values)).rowcount


_NOTHING: dict[str, Any] = {
    "state": PENDING,
    "attempts": 0,
    "owner": "",
    "lease_until": 0.0,
    "record": None,
    "rank": None,
    "probability": None,
    "outputs": None,
}
_OUTCOME = ("record", "rank", "probability", "outputs", "scored_at")


def _row(work: Unit) -> dict[str, Any]:
    return {"key": work.key, "position": work.position, "fingerprint": work.fingerprint, "work": work.work}


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    outputs = [(output.name, output.sha256, output.size) for output in outcome.outputs]
    return {
        "unit": outcome.id,
        "record": zlib.compress(outcome.record, _COMPRESSION),
        "rank": outcome.rank,
        "probability": outcome.probability,
        "outputs": _to_json(outputs),
        "state": FINISHED if outcome.is_final else FAILED,
        "scored_at": outcome.scored_at,
    }


def _stored(row: Any) -> StoredOutcome:
    outputs = tuple(Output(*output) for output in json.loads(row.outputs))
    record, is_final = zlib.decompress(row.record), row.state != FAILED
    urgency = row.rank, row.probability
    return StoredOutcome(row.id, record, *urgency, outputs, is_final, row.scored_at, row.key, bytes(row.work))


def _found(connection: Connection, ids: Collection[int], *names: str) -> Sequence[Any]:
    columns = select(units.c.id, *(units.c[name] for name in names))
    return connection.execute(columns.where(bulk.among(connection, units.c.id, list(ids)))).all()


def _these(connection: Connection, ids: Sequence[int]) -> Any:
    """Return an update of units by their ids alone: PostgreSQL would evaluate a subquery again for each of them."""
    return update(units).where(bulk.among(connection, units.c.id, list(ids)))


def _held_by(owner: str) -> ColumnElement[bool]:
    return (units.c.owner == owner) & (units.c.state == HELD)


def _is_same(row: Any, outcome: dict[str, Any]) -> bool:
    return all(row._mapping[name] == outcome[name] for name in _OUTCOME)


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group
