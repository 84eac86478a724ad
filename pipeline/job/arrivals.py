"""What is new in a folder in which studies arrive, and from which they are taken away once they were scored."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from pipeline.job.work import StudyFiles, file_key, marks_of


class Arrivals:
    """Remembers the files of all studies that were entered, so that none of their results is lost where files are taken away.

    Parameters
    ----------
    entered
        Keys of the studies that an earlier run has entered, and what `packed` made of their files.
    """

    def __init__(self, entered: Iterable[tuple[str, bytes]]) -> None:
        self._marks: dict[str, dict[str, str]] = {}
        self._parts: Counter[str] = Counter()
        for key, work in entered:
            self._add(*_whole(key), marks_of(work))

    def new(self, study: StudyFiles) -> StudyFiles | None:
        """Return what is to be scored of a study, and remember it.

        Returns
        -------
        StudyFiles or None
            The study, where it is new, or where a file was added or replaced; None where nothing was. Once files of it were
            taken away, what comes later is a further part of it, scored by itself, since scoring the study again would lose
            the results of those that are gone.
        """
        there = {file.source: mark for file, mark in zip(study.files, study.marks, strict=True) if mark}
        before = self._marks.get(study.key, {})
        late = {source for source, mark in there.items() if before.get(source) != mark}
        if not late:
            return None
        if before.keys() <= there.keys() and self._parts[study.key] < 2:
            self._marks[study.key], self._parts[study.key] = there, 1
            return _only(study, there)
        self._add(study.key, self._parts[study.key] + 1, there)
        return replace(_only(study, late), key=_part(study.key, self._parts[study.key]))

    def replaced(self, study: StudyFiles) -> list[str]:
        """Return the keys of files that stated no study when they were scored, and now belong to this one; forget them."""
        keys = {file_key(file.source) for file in study.files} - {study.key}
        found = [key for key in keys if key in self._marks]
        for key in found:
            del self._marks[key]
        return found

    def _add(self, key: str, number: int, marks: dict[str, str]) -> None:
        self._marks[key] = self._marks.get(key, {}) | marks
        self._parts[key] = max(number, self._parts[key])


def _only(study: StudyFiles, sources: Iterable[str]) -> StudyFiles:
    wanted = set(sources)
    left = [(file, mark) for file, mark in zip(study.files, study.marks, strict=True) if file.source in wanted]
    return StudyFiles(study.key, *zip(*left, strict=True))


def _part(key: str, number: int) -> str:
    """Return the key of a part of the study `study:UID`: `study+2:UID` and so on."""
    return f"study+{number}:{key.partition(':')[2]}"


def _whole(key: str) -> tuple[str, int]:
    """Return the key of a whole study, and the number of the part of it that a key names."""
    kind, _, stated = key.partition(":")
    number = kind.partition("+")[2]
    return f"study:{stated}" if kind.startswith("study") else key, int(number or 1)
