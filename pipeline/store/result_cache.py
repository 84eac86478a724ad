"""Stores the result of each file of a run, so that unchanged files are not processed again."""

import os
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select

from pipeline.errors import InputError, LedgerError
from pipeline.store.database import APPLICATION, file_address, jobs, writing
from pipeline.store.ledger import CachedResult, Ledger

_MAGIC = b"SQLite format 3\0"
_WAIT_SECONDS = 2.0


class ResultCache:
    """Results by the keys of files, in a SQLite file that one process at a time uses and only its owner may read.

    Nothing is written before `begin`. The file can be deleted: everything is then worked on again.

    Parameters
    ----------
    path
        The file; None keeps the results in memory.
    bound_to
        Hash of everything that results depend on beside the files; results that are bound to something else are removed.
    seconds
        How long results may wait until they are written, to be written together; a killed process loses these.

    Raises
    ------
    LedgerError
        By every method, if the file cannot be used; `problem` tells some reasons.
    InputError
        By the first of them, if octray did not make the file.
    """

    def __init__(self, path: Path | None, bound_to: str, seconds: float = 1.0) -> None:
        self._path = path
        self._bound_to = bound_to
        self._seconds = seconds
        self._ledger: Ledger | None = None
        self._stamps: dict[str, str] = {}
        self._waiting: dict[str, CachedResult] = {}
        self._written_at = 0.0
        self.salt = b""
        """Random key for hashes, drawn once for each `bound_to`; empty before `begin`."""
        if path and path.is_file():
            self.begin()

    def __enter__(self) -> "ResultCache":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def begin(self) -> None:
        """Open the file, or make it; a damaged one is replaced by an empty one.

        Raises
        ------
        OSError
            If there is no place for the file.
        """
        if self._ledger is not None:
            return
        try:
            self._open()
        except LedgerError as error:
            if not (error.problem == "damaged" and self._path):
                raise
            for suffix in ("", "-wal", "-shm", "-journal"):
                self._path.with_name(f"{self._path.name}{suffix}").unlink(missing_ok=True)
            self._open()

    def keys(self) -> list[str]:
        """Return the keys of all files that have a result."""
        return list(self._stamps)

    def stamp(self, key: str) -> str:
        """Return the stamp of a file when it was worked on; empty if nothing is known of it, or it is to be done again."""
        return self._stamps.get(key, "")

    def put(self, key: str, stamp: str, result: str) -> None:
        """Keep the result of a file; with an empty stamp it is worked on again in the next run."""
        self._waiting[key] = CachedResult(key, stamp, result)
        self._stamps[key] = stamp
        if time.monotonic() - self._written_at >= self._seconds:
            self._write()

    def get(self, keys: Iterable[str]) -> Iterator[str]:
        """Yield the results of files in the order of their keys.

        Raises
        ------
        KeyError
            If there is none.
        """
        self._write()
        yield from self._begun.results(keys)

    def keep_only(self, keys: Collection[str]) -> None:
        """Remove all files but these."""
        self._write()
        self._begun.keep(keys)

    def close(self) -> None:
        """Write what is waiting, and close the file."""
        if self._ledger is not None:
            try:
                self._write()
            finally:
                self._ledger.close()
                self._ledger = None

    @property
    def _begun(self) -> Ledger:
        if self._ledger is None:
            raise RuntimeError("The results of files were not begun.")
        return self._ledger

    def _write(self) -> None:
        if self._waiting:
            self._begun.put(self._waiting.values())
            self._waiting.clear()
        self._written_at = time.monotonic()

    def _open(self) -> None:
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600), "rb") as file:
                head = file.read(100)
            if head and not (head.startswith(_MAGIC) and head[68:72] == APPLICATION.to_bytes(4)):
                raise InputError(f"The {self._path.name} that is there was not made by octray. Move it away.")
        url = file_address(self._path) if self._path else "sqlite:///:memory:"
        ledger = Ledger(url, self._bound_to, seconds=_WAIT_SECONDS, is_alone=True)
        try:
            with writing(ledger.engine) as connection:
                salts = {row.name: row.salt for row in connection.execute(select(jobs.c.name, jobs.c.salt))}
                if self._bound_to not in salts:
                    salts[self._bound_to] = secrets.token_hex(32)
                    first = {"phase": 0, "salt": salts[self._bound_to]}  # the files of a run have no phases
                    connection.execute(jobs.insert().values(name=self._bound_to, **first))
            if len(salts) > 1:
                ledger.remove_others()
            self.salt = bytes.fromhex(salts[self._bound_to])
            self._stamps = ledger.fingerprints()
        except BaseException:
            with suppress(LedgerError):
                ledger.close()
            raise
        self._ledger = ledger
