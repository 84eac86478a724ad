"""The ledger: one table of studies that many workers claim from, in SQLite or PostgreSQL, and that survives any of them."""

import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Double,
    LargeBinary,
    SmallInteger,
    Text,
    bindparam,
    cast,
    column,
    func,
    select,
    update,
)
from sqlalchemy.engine import Connection

from pipeline.ledger.connection import connect, now, translated
from pipeline.ledger.schema import FINISHED, HELD, PENDING, studies
from pipeline.ledger.types import Claim, Order, Outcome, Output, StudyWork

_ROWS = 1000
_PAGE = 500
_COMPRESSION = 1

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class StoredOutcome(Outcome):
    """An outcome as it is read back, with the key of its study."""

    key: str = ""


class Ledger:
    """One run of work in a database; may be used by several threads at once, and by many processes.

    Parameters
    ----------
    url
        As in `connect`.
    run
        Names the run; runs do not see each other.

    Raises
    ------
    LedgerError
        By every method, where the database cannot be used.
    """

    def __init__(self, url: str, run: str) -> None:
        self._engine = connect(url)
        self._run = run

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._engine.dispose()

    def add(self, works: Iterable[StudyWork]) -> int:
        """Enter studies; return how many are new, or have changed since and are to be worked on again.

        What came of a study that has changed is dropped. A study that is there already takes its new position.
        """
        changes = 0
        with translated(), self._engine.begin() as connection:
            known = {row.key: row for row in connection.execute(self._select("id", "key", "fingerprint", "position"))}
            for group in _groups(works, _ROWS):
                new = [_row(work) | {"run": self._run, "key": work.key} for work in group if work.key not in known]
                changed = [work for work in group if work.key in known and work.fingerprint != known[work.key].fingerprint]
                moved = [work for work in group if work.key in known and work.position != known[work.key].position]
                places = [{"study": known[work.key].id, "position": work.position} for work in moved]
                self._write(connection, studies.insert(), new)
                self._write(connection, _by_id(_FRESH), [_row(one) | {"study": known[one.key].id} for one in changed])
                self._write(connection, _by_id(("position",)), places)
                changes += len(new) + len(changed)
        return changes

    def keep(self, keys: Collection[str]) -> None:
        """Forget all studies but these."""
        with translated(), self._engine.begin() as connection:
            gone = [row.id for row in connection.execute(self._select("id", "key")) if row.key not in keys]
            for ids in _groups(gone, _ROWS):
                connection.execute(studies.delete().where(studies.c.id.in_(ids)))

    def claim(self, owner: str, count: int, lease_seconds: float) -> list[Claim]:
        """Take studies that nobody holds, in their order; then those whose holder has let its lease run out.

        Parameters
        ----------
        owner
            Who takes them.
        count
            At most so many.
        lease_seconds
            How long they are held, unless `beat` extends that.
        """
        with translated(), self._engine.begin() as connection:
            claims = self._claim(connection, studies.c.state == PENDING, owner, count, lease_seconds)
            if not claims:
                lost = (studies.c.state == HELD) & (studies.c.lease_until < now(self._engine))
                claims = self._claim(connection, lost, owner, count, lease_seconds)
        return claims

    def beat(self, owner: str, lease_seconds: float) -> None:
        """Extend the lease of all that an owner holds."""
        values = {"lease_until": now(self._engine) + lease_seconds}
        self._update((studies.c.owner == owner) & (studies.c.state == HELD), **values)

    def finish(self, owner: str, outcomes: Sequence[Outcome]) -> set[int]:
        """Keep what came of studies; return the ids of those that the owner still held, since the others are dropped."""
        rows = [_outcome_row(outcome) for outcome in outcomes]
        with translated(), self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                return self._finish_at_once(connection, owner, rows)
            held = (studies.c.owner == owner) & (studies.c.state == HELD)
            ids = [outcome.id for outcome in outcomes]
            taken = {row for group in _groups(ids, _ROWS) for row in self._held(connection, held, group)}
            self._write(connection, _by_id(_OUTCOME), [row for row in rows if row["study"] in taken])
        return taken

    def retry(self, owner: str, ids: Sequence[int]) -> None:
        """Give studies back that killed their worker: this attempt counts."""
        held = (studies.c.owner == owner) & (studies.c.state == HELD) & studies.c.id.in_(ids)
        self._update(held, state=PENDING, owner="", attempts=studies.c.attempts + 1)

    def release(self, owner: str) -> None:
        """Give back all that an owner holds, uncounted."""
        self._update((studies.c.owner == owner) & (studies.c.state == HELD), state=PENDING, owner="")

    def take_over(self) -> None:
        """Give back all that anybody holds, uncounted; for the only process that works on the run, when it starts."""
        self._update(studies.c.state == HELD, state=PENDING, owner="")

    def reopen(self, ids: Iterable[int]) -> None:
        """Have finished studies worked on again."""
        for group in _groups(ids, _ROWS):
            self._update(studies.c.id.in_(group), **_NOTHING)

    def remove(self) -> None:
        """Forget the whole run."""
        with translated(), self._engine.begin() as connection:
            connection.execute(studies.delete().where(studies.c.run == self._run))

    def unfinished(self) -> int:
        """Return how many studies are not finished."""
        with translated(), self._engine.connect() as connection:
            count = select(func.count()).where(studies.c.run == self._run, studies.c.state != FINISHED)
            return int(connection.execute(count).scalar_one())

    def outcomes(self, order: Order) -> Iterator[StoredOutcome]:
        """Read what came of the finished studies, a page at a time, as they were when this was called."""
        place = (studies.c.position, studies.c.id)
        by = place if order is Order.POSITION else (studies.c.rank.desc(), studies.c.probability.desc(), *place)
        with translated(), self._engine.connect() as connection:
            ids = connection.execute(self._select("id").where(studies.c.state == FINISHED).order_by(*by)).scalars().all()
        for page in _groups(ids, _PAGE):
            with translated(), self._engine.connect() as connection:
                rows = connection.execute(self._select("id", "key", *_OUTCOME).where(studies.c.id.in_(page))).all()
            found = {row.id: row for row in rows if row.record is not None}
            yield from (_stored(found[one]) for one in page if one in found)

    def _select(self, *names: str) -> Any:
        return select(*(studies.c[name] for name in names)).where(studies.c.run == self._run)

    def _claim(
        self, connection: Connection, which: ColumnElement[bool], owner: str, count: int, lease_seconds: float
    ) -> list[Claim]:
        chosen = self._select("id").where(which).order_by(studies.c.position).limit(count).with_for_update(skip_locked=True)
        taken = (
            update(studies)
            .where(studies.c.id.in_(chosen))
            .values(state=HELD, owner=owner, lease_until=now(self._engine) + lease_seconds)
            .returning(*(studies.c[name] for name in ("position", "id", "key", "fingerprint", "attempts", "work")))
        )
        rows = sorted(connection.execute(taken).all())
        return [Claim(row.id, row.key, row.fingerprint, row.attempts + 1, bytes(row.work)) for row in rows]

    def _held(self, connection: Connection, held: ColumnElement[bool], ids: list[int]) -> Iterable[int]:
        """Return which of some studies are held; the write lock of the database is taken first."""
        connection.execute(update(studies).where(held, studies.c.id.in_(ids)).values(state=HELD))
        return connection.execute(select(studies.c.id).where(held, studies.c.id.in_(ids))).scalars()

    def _finish_at_once(self, connection: Connection, owner: str, rows: list[dict[str, Any]]) -> set[int]:
        """Write many outcomes in one statement; PostgreSQL would take one round trip for each otherwise."""
        given = (
            func.unnest(*(cast(bindparam(name, [row[name] for row in rows]), ARRAY(kind)) for name, kind in _KINDS.items()))
            .table_valued(*(column(name, kind) for name, kind in _KINDS.items()), name="given")
            .render_derived()
        )
        statement = (
            update(studies)
            .where(studies.c.id == given.c.study, studies.c.owner == owner, studies.c.state == HELD)
            .values({name: given.c[name] for name in ("record", "rank", "probability", "outputs")})
            .values(state=FINISHED)
            .returning(studies.c.id)
        )
        return set(connection.execute(statement).scalars())

    def _update(self, which: ColumnElement[bool], **values: Any) -> None:
        with translated(), self._engine.begin() as connection:
            connection.execute(update(studies).where(studies.c.run == self._run, which).values(**values))

    @staticmethod
    def _write(connection: Connection, statement: Any, rows: list[dict[str, Any]]) -> None:
        if rows:
            connection.execute(statement, rows)


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
_FRESH = ("position", "fingerprint", "work", *_NOTHING)
_OUTCOME = ("state", "record", "rank", "probability", "outputs")
_KINDS: dict[str, Any] = {
    "study": BigInteger,
    "record": LargeBinary,
    "rank": SmallInteger,
    "probability": Double,
    "outputs": Text,
}


def _row(work: StudyWork) -> dict[str, Any]:
    return _NOTHING | {"position": work.position, "fingerprint": work.fingerprint, "work": work.work}


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    return {
        "study": outcome.id,
        "state": FINISHED,
        "record": zlib.compress(outcome.record, _COMPRESSION),
        "rank": outcome.rank,
        "probability": outcome.probability,
        "outputs": json.dumps([list(asdict(output).values()) for output in outcome.outputs], separators=(",", ":")),
    }


def _stored(row: Any) -> StoredOutcome:
    outputs = tuple(Output(*output) for output in json.loads(row.outputs))
    return StoredOutcome(row.id, zlib.decompress(row.record), row.rank, row.probability, outputs, row.key)


def _by_id(names: Iterable[str]) -> Any:
    return update(studies).where(studies.c.id == bindparam("study")).values({name: bindparam(name) for name in names})


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group
