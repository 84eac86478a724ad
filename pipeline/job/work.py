"""The files of a folder as studies: which files belong together, how one sees that they changed, and how both are stored."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.study import may_state_study, stated_study
from pipeline.imaging.files.study_file import Member, Refusal, StudyFile
from pipeline.imaging.sandbox import Sandbox
from pipeline.intake import Limits
from pipeline.job.shard import Shard

_SCANNERS = 2


_Place = tuple[str, tuple[int, int, int] | None]
"""The source of a file, and what it looks like."""


@dataclass(frozen=True, slots=True)
class StudyFiles:
    """The files of one study.

    Parameters
    ----------
    key
        `study:` and the Study Instance UID (0020,000D) that its files state, or `file:` and the source of a file that states
        none, which is then a study of its own.
    files
        In the order of `discover`.
    fingerprint
        Changes where a file is added, removed or replaced; sizes, times and inodes are looked at, and no content.
    """

    key: str
    files: tuple[StudyFile, ...]
    fingerprint: str


class Grouping:
    """Groups files by study; remembers what a file stated as long as it does not change, so that looking again is cheap."""

    def __init__(self) -> None:
        self._stated: dict[_Place, str] = {}

    def is_known(self, file: StudyFile) -> bool:
        """Say whether a file was looked at before and has not changed since; satisfies what `discover` asks."""
        return (file.source, _looks(file)) in self._stated

    def studies(self, files: Iterable[StudyFile], limits: Limits, shard: Shard) -> list[StudyFiles]:
        """Return the studies of one part, in the order of their first files.

        Parameters
        ----------
        files
            As `discover` finds them.
        limits
            Of the worker processes that parse the starts of the files.
        shard
            Which part.
        """
        found = [(file, (file.source, _looks(file))) for file in files]
        unknown = [one for one in found if one[1] not in self._stated]
        parsed = ((place, file) for file, place in unknown if may_state_study(file))
        with Sandbox(_SCANNERS, limits) as sandbox:
            stated = {place: _answered(answer) for place, answer in sandbox.map(stated_study, parsed)}
        self._stated |= {place: stated.get(place, "") for _, place in unknown}
        groups: dict[str, list[tuple[StudyFile, tuple[int, int, int] | None]]] = {}
        for file, place in found:
            uid = self._stated[place]
            key = f"study:{uid}" if uid else f"file:{file.source}"
            if shard.has(key):
                groups.setdefault(key, []).append((file, place[1]))
        return [StudyFiles(key, tuple(file for file, _ in group), _fingerprint(group)) for key, group in groups.items()]


def changed_at(study: StudyFiles) -> float:
    """Return when a file of a study was last written, moved or touched, in seconds since 1970, by the clock of its disk."""
    return max((_changed(file.path) for file in study.files), default=0.0)


def packed(study: StudyFiles, base: Path) -> bytes:
    """Return the files of a study as JSON, their paths below `base`."""
    return json.dumps([_file(file, base) for file in study.files], separators=(",", ":")).encode()


def unpacked(work: bytes, base: Path) -> tuple[StudyFile, ...]:
    """Return the files that `packed` wrote."""
    return tuple(_to_file(values, base) for values in json.loads(work))


def _answered(answer: Iterator[str]) -> str:
    """Return what a file states; one that no worker could parse states nothing, and reading it will say why."""
    try:
        return next(answer, "")
    except UnreadableError:
        return ""


def _looks(file: StudyFile) -> tuple[int, int, int] | None:
    try:
        return file.stat()
    except UnreadableError:
        return None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_ctime
    except OSError:
        return 0.0


def _fingerprint(group: Iterable[tuple[StudyFile, tuple[int, int, int] | None]]) -> str:
    values = [(file.source, looks, file.refusal and file.refusal.reason.value) for file, looks in group]
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
        tuple(Member(*member) for member in values.get("inside", ())),
        Refusal(Reason(reason), message) if reason else None,
    )
