"""Features of frozen networks: each is computed once by the inference engine, and kept in octray's cache folder."""

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from pipeline.frames import FloatArray

MOST_BYTES = 4 * 2**30
_WAIT_SECONDS = 30.0
_KEYS_AT_ONCE = 500
_TABLES = """
CREATE TABLE IF NOT EXISTS sets (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, used REAL NOT NULL);
CREATE TABLE IF NOT EXISTS features (
    set_id INTEGER NOT NULL, frame TEXT NOT NULL, value BLOB NOT NULL, UNIQUE (set_id, frame)
);
"""


class FeatureCache:
    """Feature vectors of frames in a SQLite file that several processes may use at once, and that may be deleted at any time.

    Whatever is wrong with the file (no place on the disk, no right to write, damage), training goes on without it, and keeps
    features in memory. Only its owner may read the file, since features are made from images of patients; it holds no names,
    and hashes in place of UIDs.

    Parameters
    ----------
    path
        The file; None keeps features in memory.
    most_bytes
        Above this size the sets that were not used for longest are removed.
    """

    def __init__(self, path: Path | None, most_bytes: int = MOST_BYTES) -> None:
        self._path, self._most_bytes = path, most_bytes
        self._memory: dict[str, dict[str, FloatArray]] = {}

    def read(self, name: str, frames: Sequence[str]) -> dict[str, FloatArray]:
        """Return what is there of a set.

        Parameters
        ----------
        name
            Hash of all that the features depend on beside the frames.
        frames
            Hashes of the frames.

        Returns
        -------
        dict
            float32 of shape (channels,), by frame.
        """
        memory = self._memory.get(name, {})
        found = {frame: memory[frame] for frame in frames if frame in memory}
        with self._opened() as database:
            if database is None:
                return found
            try:
                for start in range(0, len(frames), _KEYS_AT_ONCE):
                    some = frames[start : start + _KEYS_AT_ONCE]
                    marks = ",".join("?" * len(some))
                    query = (
                        "SELECT frame, value FROM features JOIN sets ON sets.id = set_id "  # noqa: S608 - only marks are put in
                        f"WHERE name = ? AND frame IN ({marks})"
                    )
                    found |= {frame: np.frombuffer(value, "<f4") for frame, value in database.execute(query, (name, *some))}
                with database:
                    database.execute("UPDATE sets SET used = ? WHERE name = ?", (time.time(), name))
            except sqlite3.Error as error:
                self._give_up(error)
        return found

    def write(self, name: str, features: Mapping[str, FloatArray]) -> None:
        """Add features to a set, all of them or none; parameters as in `read`."""
        with self._opened() as database:
            if database is None:
                self._memory.setdefault(name, {}).update(features)
                return
            try:
                with database:
                    database.execute("BEGIN IMMEDIATE")
                    added = "INSERT INTO sets (name, used) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET used = excluded.used"
                    database.execute(added, (name, time.time()))
                    (number,) = database.execute("SELECT id FROM sets WHERE name = ?", (name,)).fetchone()
                    rows = ((number, frame, np.asarray(value, "<f4").tobytes()) for frame, value in features.items())
                    database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
                    self._remove_oldest(database, number)
                database.execute("PRAGMA incremental_vacuum").fetchall()
            except sqlite3.Error as error:
                self._give_up(error)

    def _remove_oldest(self, database: sqlite3.Connection, but: int) -> None:
        """Remove whole sets, the one that was used longest ago first, until what is left is small enough."""
        sizes = dict(database.execute("SELECT set_id, SUM(LENGTH(value) + 128) FROM features GROUP BY set_id"))
        total = sum(sizes.values())
        for (number,) in database.execute("SELECT id FROM sets WHERE id <> ? ORDER BY used", (but,)).fetchall():
            if total <= self._most_bytes:
                return
            database.execute("DELETE FROM features WHERE set_id = ?", (number,))
            database.execute("DELETE FROM sets WHERE id = ?", (number,))
            total -= sizes.get(number, 0)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection | None]:
        """Give the database, or None if it cannot be used."""
        try:
            database = self._connect()
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)
            database = None
        if database is None:
            yield None
            return
        with closing(database):
            yield database

    def _connect(self) -> sqlite3.Connection | None:
        if self._path is None:
            return None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        database = sqlite3.connect(self._path, timeout=_WAIT_SECONDS)
        try:
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table is made
            database.executescript(_TABLES)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _give_up(self, error: Exception) -> None:
        """Work without the file from now on; a damaged one is removed, so that the next run starts a new one."""
        if self._path and isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            self._path.unlink(missing_ok=True)
        self._path = None


def hashed(*parts: str | bytes) -> str:
    """Return one hash of several parts, each of which counts with its length."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8))
        digest.update(content)
    return digest.hexdigest()
