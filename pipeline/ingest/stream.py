"""Reads the files of an ingest in worker processes, where the journal does not know them, and writes each there at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.files.study_file import Look, Refusal, appearance, settled
from pipeline.imaging.sources import StudyFile
from pipeline.ingest.journal import Journal, Place
from pipeline.ingest.labels import FileId
from pipeline.ingest.reading import Failure, How, ReadFile, collect, read_file
from pipeline.progress import Progress
from pipeline.workers.pool import WorkerPool

"""FAT file systems keep the time of a change to two seconds."""

Outcomes = Mapping[FileId, ReadFile]


class Places:
    """The files of some source folders in a journal.

    Parameters
    ----------
    roots
        The source folders, as text; a `FileId` points into them.
    journal
        Where it is written what was read.
    """

    def __init__(self, roots: Sequence[str], journal: Journal) -> None:
        self._roots = roots
        self._journal = journal
        self._known: set[FileId] = set()

    def knows(self, file_id: FileId, file: StudyFile) -> bool:
        """Say whether a file was read before and has not changed since; one that is known stays so."""
        if file_id in self._known:
            return True
        if self._journal.knows(self._place(file_id), file):
            self._known.add(file_id)
        return file_id in self._known

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
        self._journal.begin()
        refused = {file_id: _refused(file.refusal) for file_id, file in files.items() if file.refusal}
        unread = {one: file for one, file in files.items() if one not in refused and not self.knows(one, file)}
        with file_workers(workers) as pool:
            outcomes = _read(pool, unread, replace(how, salt=self._journal.salt))
            for file_id, looked, read in progress(outcomes, "reading studies", len(unread)):
                self._journal.put(self._place(file_id), looked if read.is_settled else None, read)
        return {one: refused.get(one) or self._journal.get(self._place(one)) for one in files}

    def keep_only(self, files: Mapping[FileId, StudyFile]) -> None:
        """Forget what was read of other files."""
        self._journal.keep_only({self._place(file_id) for file_id in files})

    def _place(self, file_id: FileId) -> Place:
        return self._roots[file_id[0]], file_id[1]


def _refused(refusal: Refusal) -> ReadFile:
    return ReadFile(failure=Failure(refusal.reason.value, refusal.message))


def _read(pool: WorkerPool, files: Mapping[FileId, StudyFile], how: How) -> Iterator[tuple[FileId, Look | None, ReadFile]]:
    """Yield each file with how it looked before it was read, and what is in it."""
    begun = (((file_id, settled(appearance(file))), file) for file_id, file in files.items())
    for (file_id, looked), results in pool.map(partial(read_file, how=how), begun):
        yield file_id, looked, collect(results)
