"""The journal of an ingest: what was read of each file, in SQLite beside the index, so that no file is read twice.

A file is known by its source folder and its path below that. The journal holds no pixels, no Patient ID and no name. It can be
deleted: everything is then read again.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError, LedgerError
from pipeline.imaging.files.study_file import FileStamp, file_stamp
from pipeline.imaging.sources import StudyFile
from pipeline.store.result_cache import ResultCache

JOURNAL = "journal.sqlite"


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
        with _in_words():
            self._results = ResultCache(path, bound_to)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        with _in_words():
            self._results.close()

    def begin(self) -> None:
        """Open the file, or make it, readable by its owner only."""
        with _in_words():
            self._results.begin()

    @property
    def salt(self) -> bytes:
        """Key of the hashes that stand for patients; drawn once for each journal."""
        return self._results.salt

    def knows(self, place: tuple[str, str], file: StudyFile) -> bool:
        """Return whether this file was read before and has not changed since, by its stamp, without opening it."""
        stamp = self._results.stamp(_key(place))
        return bool(stamp) and stamp == _text(file_stamp(file))

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
        with _in_words():
            self._results.put(_key(place), _text(stamp), read)

    def get(self, places: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Yield what was read of files, in their order.

        Raises
        ------
        KeyError
            If nothing was read of one.
        """
        with _in_words():
            yield from self._results.get(map(_key, places))

    def keep_only(self, places: Collection[tuple[str, str]]) -> None:
        """Remove all files but these."""
        with _in_words():
            self._results.keep_only(set(map(_key, places)))


def _key(place: tuple[str, str]) -> str:
    return "\n".join(place)  # a path in text has no line end


def _text(stamp: FileStamp | None) -> str:
    return " ".join(map(str, stamp)) if stamp else ""


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn what the store says into sentences about the journal."""
    try:
        yield
    except OSError as error:
        raise InputError(f"The index cannot be written: {error.strerror}. Give --out another folder.") from None
    except LedgerError as error:
        raise InputError(_SENTENCES.get(error.problem, _OTHER)) from None


_SENTENCES = {
    "locked": f"Another octray writes to this {JOURNAL}. Wait until it has finished, or give --out another folder.",
    "full": f"The {JOURNAL} of the index cannot be written: the disk is full or failing. Free some space and run the "
    "same command to continue.",
}
_OTHER = f"The {JOURNAL} of the index cannot be used. Delete it, and ingest again."
