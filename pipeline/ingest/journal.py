"""The journal of an ingest: what was read of each file, in SQLite beside the index, so that no file is read twice.

A file is known by its source folder and its path below that. The journal holds no pixels, no Patient ID and no name. It can be
deleted: everything is then read again.
"""

import os
import secrets
import sqlite3
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.imaging.files.study_file import FileStamp, file_stamp
from pipeline.imaging.sources import StudyFile

JOURNAL = "journal.sqlite"
_COMMIT_SECONDS = 1.0
_WAIT_SECONDS = 2.0
_MAGIC = b"SQLite format 3\0"
_APPLICATION = int.from_bytes(b"octj")
"""Application ID in the header of the file (https://sqlite.org/fileformat.html, offset 68), by which ours are known."""
_SCHEMA = (
    f"PRAGMA application_id = {_APPLICATION}",
    "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE files (root TEXT, source TEXT, size INTEGER, mtime_ns INTEGER, mark INTEGER, outcome TEXT NOT NULL, "
    "PRIMARY KEY (root, source)) WITHOUT ROWID",
)

class Journal:
    """What was read of each file; nothing is written before `begin`.

    Parameters
    ----------
    path
        The file; None keeps it in memory.
    bound_to
        All that decides what is read; a journal that is bound to something else, or is damaged, is emptied.

    Raises
    ------
    InputError
        By every method, if the file cannot be used; by the first of them, if octray did not make it.
    """

    def __init__(self, path: Path | None, bound_to: str) -> None:
        self._path = path
        self._bound_to = bound_to
        self._database: sqlite3.Connection | None = None
        self._committed = 0.0
        if path and path.is_file():
            self.begin()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if self._database and self._database.in_transaction:
                self._execute("COMMIT")
        finally:
            self._close()

    def begin(self) -> None:
        """Open the file, or make it, readable by its owner only."""
        if self._database:
            return
        try:
            self._open()
        except BaseException:
            self._close()
            raise

    def _open(self) -> None:
        try:
            self._connect()
            try:
                self._check()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._replace()
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        except OSError as error:
            raise InputError(f"The index cannot be written: {error.strerror}. Give --out another folder.") from None

    def _replace(self) -> None:
        """Replace a damaged journal by an empty one."""
        self._close()
        if self._path:
            self._path.unlink()
        self._connect()
        self._check()

    @property
    def salt(self) -> bytes:
        """Key of the hashes that stand for patients; drawn once for each journal."""
        return bytes.fromhex(self._about("salt"))

    def knows(self, place: tuple[str, str], file: StudyFile) -> bool:
        """Return whether this file was read before and has not changed since, by its stamp, without opening it."""
        if not self._database:
            return False
        rows = self._execute("SELECT size, mtime_ns, mark FROM files WHERE root = ? AND source = ?", place)
        return bool(rows) and rows[0] == file_stamp(file)

    def put(self, place: tuple[str, str], stamp: FileStamp | None, read: str) -> None:
        """Keep what was read of a file.

        Parameters
        ----------
        place
            Which one.
        stamp
            What `file_stamp` returned before it was read; if it is None, the file is not known afterwards.
        read
            What was read, as text.
        """
        values = (*place, *(stamp or (None, None, None)), read)
        self._execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", values)
        if time.monotonic() - self._committed > _COMMIT_SECONDS:
            self._execute("COMMIT")
            self._execute("BEGIN")
            self._committed = time.monotonic()

    def get(self, place: tuple[str, str]) -> str:
        """Return what was read of a file.

        Raises
        ------
        KeyError
            If nothing was read of it.
        """
        rows = self._execute("SELECT outcome FROM files WHERE root = ? AND source = ?", place)
        if not rows:
            raise KeyError(place)
        return str(rows[0][0])

    def keep_only(self, places: Collection[tuple[str, str]]) -> None:
        """Remove all files but these."""
        gone = set(self._execute("SELECT root, source FROM files")).difference(places)
        for place in gone:
            self._execute("DELETE FROM files WHERE root = ? AND source = ?", place)

    def _connect(self) -> None:
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600), "rb") as file:
                _check_owner(file.read(100))
        self._database = sqlite3.connect(self._path or ":memory:", timeout=_WAIT_SECONDS, isolation_level=None)

    def _check(self) -> None:
        """Lock the file for this process, and empty it if it is bound to something else."""
        for statement in ("PRAGMA locking_mode = EXCLUSIVE", "PRAGMA synchronous = NORMAL", "BEGIN EXCLUSIVE"):
            self._run(statement)
        tables = {name for (name,) in self._run("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "about" in tables and self._run("SELECT 1 FROM about WHERE name = 'bound_to' AND value = ?", (self._bound_to,)):
            return
        for table in tables:
            self._run(f'DROP TABLE "{table}"')
        for statement in _SCHEMA:
            self._run(statement)
        for pair in (("bound_to", self._bound_to), ("salt", secrets.token_hex(32))):
            self._run("INSERT INTO about VALUES (?, ?)", pair)

    def _about(self, name: str) -> str:
        return str(self._execute("SELECT value FROM about WHERE name = ?", (name,))[0][0])

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        try:
            return self._run(statement, values)
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _run(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        if not self._database:
            raise RuntimeError("The journal was not begun.")
        return self._database.execute(statement, values).fetchall()

    def _unusable(self, error: sqlite3.Error) -> InputError:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return InputError(f"Another octray writes to this {JOURNAL}. Wait until it is done, or give --out another folder.")
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            return InputError(
                f"The {JOURNAL} of the index cannot be written: the disk is full, or fails. Free some space; the same command "
                "goes on from there."
            )
        return InputError(f"The {JOURNAL} of the index cannot be used ({type(error).__name__}). Delete it, and ingest again.")

    def _close(self) -> None:
        if self._database:
            self._database.close()
            self._database = None


def _check_owner(head: bytes) -> None:
    """Check by the first bytes of a file that octray made it; an empty file counts as ours."""
    if head and not (head.startswith(_MAGIC) and head[68:72] == _APPLICATION.to_bytes(4)):
        raise InputError(f"The {JOURNAL} that is there was not made by octray. Give --out another folder.")
