"""The files of a folder as studies: which files belong together, how one sees that they changed, and how both are stored."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.dataset import StatedStudy, may_state_study, stated_study
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.files.study_file import ArchiveMember, Refusal, StudyFile

_SCANNERS = 2


_FileState = tuple[str, tuple[int, int, int] | None]
"""The source of a file, and what it looks like."""

_LONGEST_KEY = 500
"""Characters; what is longer, as the path of a member of an archive may be, does not fit into an index of PostgreSQL."""


@dataclass(frozen=True, slots=True)
class StudyFiles:
    """The files of one study.

    Parameters
    ----------
    key
        `study:` and the Study Instance UID (0020,000D) that its files state, or `file:` and the source of a file that states
        none, or one that belongs to another patient, and is then a study of its own.
    files
        In the order of `discover`.
    marks
        Of each file: changes if it is replaced; its size, its times and its inode are looked at, and no content. Empty for
        a file that is not there any more.
    """

    key: str
    files: tuple[StudyFile, ...]
    marks: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Changes if a file is added, removed or replaced."""
        return _hash([(file.source, mark) for file, mark in zip(self.files, self.marks, strict=True)])


class Grouping:
    """Groups files by study; remembers what a file stated as long as it does not change, so that looking again is cheap."""

    def __init__(self) -> None:
        self._stated: dict[_FileState, StatedStudy] = {}
        self._patients: dict[str, tuple[set[bytes], set[bytes]]] = {}

    def is_known(self, file: StudyFile) -> bool:
        """Say whether a file was read before and has not changed since; satisfies what `discover` asks."""
        return (file.source, _state(file)) in self._stated

    def studies(self, files: Iterable[StudyFile]) -> list[StudyFiles]:
        """Return the studies, in the order of their first files.

        Parameters
        ----------
        files
            As `discover` finds them.
        """
        found = [(file, (file.source, _state(file))) for file in files]
        unknown = [one for one in found if one[1] not in self._stated]
        parsed = ((place, file) for file, place in unknown if may_state_study(file))
        with file_workers(_SCANNERS) as pool:
            stated = {place: _answered(answer) for place, answer in pool.map(stated_study, parsed)}
        stated = {place: self._stated.get(place) or stated.get(place, StatedStudy()) for _, place in found}
        self._stated = {place: stated[place] for file, place in found if not file.refusal}  # a damaged archive is found as one
        groups: dict[str, list[tuple[StudyFile, str]]] = {}
        for file, place in found:
            key = f"study:{one.study_instance_uid}" if self._is_of_study(one := stated[place]) else file_key(file.source)
            groups.setdefault(key, []).append((file, _mark(file, place)))
        return [StudyFiles(key, *zip(*group, strict=True)) for key, group in groups.items()]

    def _is_of_study(self, stated: StatedStudy) -> bool:
        """Return whether a file belongs to the study that it states: that of the patient who was found first (PS3.3 7.3.1).

        A file of a patient with another ID and another name is a study of its own, whatever UID a faulty device gave it.
        """
        if not stated.study_instance_uid:
            return False
        ids, names = self._patients.setdefault(stated.study_instance_uid, (set(), set()))
        if ids and stated.patient_id and stated.patient_id not in ids and stated.patient_name not in names:
            return False
        ids |= {stated.patient_id} - {b""}
        names |= {stated.patient_name} - {b""}
        return True


class Inbox:
    """Remembers the files of all studies that were entered, so that no result is lost when files are taken away.

    Parameters
    ----------
    entered
        Keys of the studies that an earlier run has entered, and what `files_to_json` made of their files.
    """

    def __init__(self, entered: Iterable[tuple[str, bytes]]) -> None:
        self._marks: dict[str, dict[str, str]] = {}
        self._parts: Counter[str] = Counter()
        for key, work in entered:
            self._add(*_whole(key), marks_from_json(work))

    def new(self, study: StudyFiles) -> StudyFiles | None:
        """Return what is to be scored of a study, and remember it.

        Returns
        -------
        StudyFiles or None
            The study if it is new, or if a file was added or replaced; otherwise None. Once files of it were
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


def changed_at(files: Iterable[StudyFile]) -> float:
    """Return when one of the files was last written, moved or touched, in seconds since 1970, by the clock of its disk.

    It is infinite if one of them is not there any more: what it was renamed to is still to be found.
    """
    return max((_changed(file.path) for file in files), default=0.0)


def file_key(source: str) -> str:
    """Return the key of a file that states no study."""
    return f"file:{source if len(source) <= _LONGEST_KEY else _hash(source)}"


def files_to_json(study: StudyFiles, base: Path) -> bytes:
    """Return the files of a study and their marks as JSON, their paths below `base`."""
    files = [_file(file, base) | {"mark": mark} for file, mark in zip(study.files, study.marks, strict=True)]
    return json.dumps(files, separators=(",", ":")).encode()


def files_from_json(work: bytes, base: Path) -> tuple[StudyFile, ...]:
    """Return the files that `files_to_json` wrote."""
    return tuple(_to_file(values, base) for values in json.loads(work))


def files_without(work: bytes, sources: Collection[str]) -> bytes:
    """Return what `files_to_json` wrote without some of its files."""
    files = [values for values in json.loads(work) if values["source"] not in sources]
    return json.dumps(files, separators=(",", ":")).encode()


def marks_from_json(work: bytes) -> dict[str, str]:
    """Return the marks that `files_to_json` wrote, by the sources of their files."""
    return {values["source"]: values["mark"] for values in json.loads(work)}


def current_mark(file: StudyFile) -> str:
    """Return the mark that a file has now, as in `StudyFiles`; empty if it is not there."""
    return _mark(file, (file.source, _state(file)))


def _answered(answer: Iterator[StatedStudy]) -> StatedStudy:
    """Return what a file states; one that no worker could parse states nothing, and reading it will say why."""
    try:
        return next(answer, StatedStudy())
    except UnreadableError:
        return StatedStudy()


def _state(file: StudyFile) -> tuple[int, int, int] | None:
    try:
        return file.stat()
    except UnreadableError:
        return None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_ctime
    except OSError:
        return 0.0 if is_there(path) else math.inf


def is_there(path: Path) -> bool:
    """Return whether there is something at a path; a link that leads nowhere is, and so is what may not be looked at."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def _mark(file: StudyFile, place: _FileState) -> str:
    return _hash((place[1], file.refusal and file.refusal.reason.value))[:16] if file.refusal or place[1] else ""


def _hash(values: object) -> str:
    return hashlib.sha256(repr(values).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _file(file: StudyFile, base: Path) -> dict[str, Any]:
    values: dict[str, Any] = {"source": file.source, "path": os.path.relpath(file.path, base)}
    if file.inside:
        values["inside"] = [list(asdict(member).values()) for member in file.inside]
    if file.refusal:
        values["refusal"] = [file.refusal.reason.value, file.refusal.message]
    return values


def _to_file(values: Mapping[str, Any], base: Path) -> StudyFile:
    reason, message = values.get("refusal", (None, ""))
    return StudyFile(
        base / values["path"],
        values["source"],
        tuple(ArchiveMember(*member) for member in values.get("inside", ())),
        Refusal(Reason(reason), message) if reason else None,
    )


def _only(study: StudyFiles, sources: Iterable[str]) -> StudyFiles:
    chosen = set(sources)
    left = [(file, mark) for file, mark in zip(study.files, study.marks, strict=True) if file.source in chosen]
    return StudyFiles(study.key, *zip(*left, strict=True))


def _part(key: str, number: int) -> str:
    """Return the key of a part of the study `study:UID`: `study+2:UID` and so on."""
    return f"study+{number}:{key.partition(':')[2]}"


def _whole(key: str) -> tuple[str, int]:
    """Return the key of a whole study, and the number of the part of it that a key names."""
    kind, _, stated = key.partition(":")
    number = kind.partition("+")[2]
    return f"study:{stated}" if kind.startswith("study") else key, int(number or 1)
