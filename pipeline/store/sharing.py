"""Lets several processes share a job: the store knows which are alive, and elects who plans and who writes the report.

A job goes through rounds. In each round one process lists the units of work (planning), all of them work, and one writes what
people read (writing). The process that plans or writes is the leader. If it dies, another one takes its place once its lease
has run out.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from types import TracebackType
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from pipeline.errors import InputError, LedgerError
from pipeline.store.database import HELD, PENDING, jobs, now, processes, units, writing
from pipeline.store.ledger import Ledger

LEASE_SECONDS = 60.0
"""How long what a process holds stays its own without a heartbeat; it beats four times as often."""


class Phase(IntEnum):
    """What the processes of a job do in a round, in this order."""

    PLANNING, WORKING, WRITING, FINISHED = range(4)


class JobMember:
    """One process of a job; as long as the `with` block lasts, a heartbeat extends the lease of all that it holds.

    Parameters
    ----------
    ledger
        Of the job.
    folder
        Names the results folder of the job: its processes must write into the same one.

    Attributes
    ----------
    owner
        Names this process in the store.

    Raises
    ------
    LedgerError
        By every method, if the database cannot be used.
    """

    def __init__(self, ledger: Ledger, folder: str = "") -> None:
        self._ledger = ledger
        self._folder = folder
        self._host = socket.gethostname()
        self.owner = f"{self._host}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._round = 0
        self._is_joined = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "JobMember":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_joined:
            with suppress(LedgerError), writing(self._ledger.engine) as connection:  # otherwise the lease runs out by itself
                connection.execute(processes.delete().where(self._is_mine()))

    def join(self, is_alone: bool) -> None:
        """Enter this process into the store.

        Parameters
        ----------
        is_alone
            Whether no other process of this machine works on the job: those that are still listed for it are dead, and what
            they hold is given back at once.

        Raises
        ------
        InputError
            If the job writes into another results folder.
        """
        insert = sqlite.insert if self._ledger.engine.dialect.name == "sqlite" else postgresql.insert
        first = {"folder": self._folder, "phase": Phase.FINISHED}
        with writing(self._ledger.engine) as connection:
            connection.execute(insert(jobs).values(name=self._ledger.job, **first).on_conflict_do_nothing())
            if self._row(connection).folder != self._folder:
                raise InputError(
                    f"The job {self._ledger.job} of this ledger writes into another results folder. Give that folder as --out, "
                    "shared between the machines, or give the job another name."
                )
            if is_alone:
                self._bury(connection, processes.c.host == self._host)
            self._enter(connection)
            self._is_joined = True

    def take_planning(self) -> bool | None:
        """Find out who lists the work of the next round.

        Returns
        -------
        bool or None
            True: this process does, and calls `planned` afterwards. False: it is listed already, and others work on it. None:
            another process is about to list it, or finishes the round before; ask again.
        """
        with writing(self._ledger.engine) as connection:
            row, others = self._row(connection), self._others(connection)
            if row.phase in (Phase.PLANNING, Phase.WRITING) and row.leader in others:
                return None
            is_shared = row.phase == Phase.WORKING and row.round in others.values()
            self._round = row.round if is_shared else row.round + 1
            self._enter(connection)
            if not is_shared:
                told = row.summary if row.phase == Phase.FINISHED else ""  # else the round before was given up
                self._set(connection, phase=Phase.PLANNING, leader=self.owner, round=self._round, summary=told)
        return not is_shared

    def is_leader(self) -> bool:
        """Return whether this process still plans or writes; if its lease has run out, another one may have taken over."""
        with writing(self._ledger.engine) as connection:
            return bool(self._row(connection).leader == self.owner)

    def planned(self) -> bool:
        """Let the others begin to work; return False if another one has taken over the planning."""
        with writing(self._ledger.engine) as connection:
            if is_leader := self._row(connection).leader == self.owner:
                self._set(connection, phase=Phase.WORKING, leader="")
        return bool(is_leader)

    def take_writing(self) -> bool:
        """Return whether this process writes what people read of the round, and calls `finish` afterwards.

        It does if it is the first to find all work finished, or if no other process is left to finish it.
        """
        with writing(self._ledger.engine) as connection:
            row, others = self._row(connection), self._others(connection)
            if row.round != self._round or row.phase == Phase.FINISHED or row.leader in others:
                return False
            is_open = units.c.state.in_((PENDING, HELD)) & (units.c.job == self._ledger.job)
            if self._round in others.values() and connection.execute(select(func.count()).where(is_open)).scalar_one():
                return False
            self._set(connection, phase=Phase.WRITING, leader=self.owner)
            return True

    def finish(self, summary: str) -> bool:
        """End the round, with what the other processes of the job tell of it.

        Returns
        -------
        bool
            False if another process has taken over the writing. If that one has finished, what this one wrote late may have
            replaced newer tables, so that it has to write once more: `take_writing` is then True.
        """
        with writing(self._ledger.engine) as connection:
            row = self._row(connection)
            if row.leader == self.owner:
                self._set(connection, phase=Phase.FINISHED, leader="", summary=summary)
                return True
            if row.phase == Phase.FINISHED:
                self._follow(connection, row.round)
                self._set(connection, phase=Phase.WRITING, leader=self.owner)
        return False

    def summary(self) -> str | None:
        """Return what `finish` was given, in this round or a later one; None until the round is over.

        If this process was taken for dead and the others have begun another round, it takes part in that.
        """
        with writing(self._ledger.engine) as connection:
            row = self._row(connection)
            if row.phase == Phase.FINISHED or (row.round != self._round and row.summary):
                return str(row.summary)
            if row.round != self._round:
                self._follow(connection, row.round)
        return None

    def _beat(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 4):
            with suppress(LedgerError):  # a lease outlasts three beats, and saving says what is wrong for good
                self._ledger.beat(self.owner, LEASE_SECONDS)
                if self._is_joined:
                    with writing(self._ledger.engine) as connection:
                        self._enter(connection)

    def _row(self, connection: Connection) -> Any:
        """Return the row of the job, which no other process changes until the transaction ends."""
        return connection.execute(select(jobs).where(jobs.c.name == self._ledger.job).with_for_update()).one()

    def _set(self, connection: Connection, **values: Any) -> None:
        connection.execute(update(jobs).where(jobs.c.name == self._ledger.job).values(**values))

    def _others(self, connection: Connection) -> dict[str, int]:
        """Return the rounds of the other processes that are alive, by their names; those that are not are removed."""
        self._bury(connection, processes.c.lease_until < now(self._ledger.engine))
        of_job = (processes.c.job == self._ledger.job) & (processes.c.owner != self.owner)
        return {row.owner: row.round for row in connection.execute(select(processes.c.owner, processes.c.round).where(of_job))}

    def _follow(self, connection: Connection, number: int) -> None:
        self._round = number
        self._enter(connection)

    def _enter(self, connection: Connection) -> None:
        values = {"host": self._host, "round": self._round, "lease_until": now(self._ledger.engine) + LEASE_SECONDS}
        if not connection.execute(update(processes).where(self._is_mine()).values(**values)).rowcount:
            connection.execute(processes.insert().values(job=self._ledger.job, owner=self.owner, **values))

    def _bury(self, connection: Connection, which: ColumnElement[bool]) -> None:
        """Remove dead processes, and give back what they hold."""
        dead = (processes.c.job == self._ledger.job) & (processes.c.owner != self.owner) & which
        owners = list(connection.execute(processes.delete().where(dead).returning(processes.c.owner)).scalars())
        if owners:
            held = (units.c.job == self._ledger.job) & (units.c.state == HELD) & units.c.owner.in_(owners)
            connection.execute(update(units).where(held).values(state=PENDING, owner=""))

    def _is_mine(self) -> ColumnElement[bool]:
        return (processes.c.job == self._ledger.job) & (processes.c.owner == self.owner)


def wait_for(ask: Callable[[], Any], seconds: float = 0.5) -> Any:
    """Ask until the answer is not None, and return it."""
    while (answer := ask()) is None:
        time.sleep(seconds)
    return answer
