"""Reads the files of an ingest in worker processes, where the journal does not know them, and writes each there at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from pipeline.imaging.sandbox import Sandbox
from pipeline.imaging.sources import StudyFile
from pipeline.ingest.journal import Journal, Place, appearance
from pipeline.ingest.labels import FileId
from pipeline.ingest.reading import How, ReadFile, collect, read_file
from pipeline.progress import Progress

Outcomes = Mapping[FileId, ReadFile]


@dataclass(frozen=True, slots=True)
class Places:
    """The files of some source folders in a journal.

    Parameters
    ----------
    roots
        The source folders, as text; a `FileId` points into them.
    journal
        Where it is written what was read.
    """

    roots: tuple[str, ...]
    journal: Journal

    def knows(self, file_id: FileId, file: StudyFile) -> bool:
        """Say whether a file was read before and has not changed since."""
        return self.journal.knows(self._place(file_id), file)

    def read(self, files: Mapping[FileId, StudyFile], how: How, progress: Progress, workers: int) -> dict[FileId, ReadFile]:
        """Read files, several at a time; those that the journal knows are not read again.

        Returns
        -------
        dict
            What is in each, in the order of `files`.

        Raises
        ------
        InputError
            Where the journal cannot be written, or no worker can be started within the limits.
        """
        self.journal.begin()
        unread = {file_id: file for file_id, file in files.items() if not self.knows(file_id, file)}
        outcomes = _read(unread, replace(how, salt=self.journal.salt), workers)
        for file_id, looked, read in progress(outcomes, "reading studies", len(unread)):
            self.journal.put(self._place(file_id), looked if read.is_settled else None, read)
        return {file_id: self.journal.get(self._place(file_id)) for file_id in files}

    def keep_only(self, files: Mapping[FileId, StudyFile]) -> None:
        """Forget what was read of other files."""
        self.journal.keep_only({self._place(file_id) for file_id in files})

    def _place(self, file_id: FileId) -> Place:
        return self.roots[file_id[0]], file_id[1]


def _read(
    files: Mapping[FileId, StudyFile], how: How, workers: int
) -> Iterator[tuple[FileId, tuple[int, int] | None, ReadFile]]:
    """Yield each file with how it looked before it was read, and what is in it."""
    looked: dict[FileId, tuple[int, int] | None] = {}

    def begun() -> Iterator[StudyFile]:
        for file_id, file in files.items():
            looked[file_id] = appearance(file)
            yield file

    with Sandbox(workers, how.reading.limits) as sandbox:
        for file_id, results in zip(files, sandbox.map(partial(read_file, how=how), begun()), strict=True):
            yield file_id, looked.pop(file_id), collect(results)
