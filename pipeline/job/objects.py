"""Makes the DICOM objects of one file; runs in a worker process, and imports what makes them only there."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.sources import StudyFile, read_bytes
from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction
from pipeline.results.dicom.kinds import Kind


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A file, the results of its frames, when they were first made in seconds since 1970, and where their pictures lie.

    Pictures are PNG files by frame number and label.
    """

    file: StudyFile
    results: tuple[FramePrediction, ...]
    made_at: float
    pictures: Mapping[tuple[int, str], Path]


class _Pictures(Mapping[tuple[int, str], bytes]):
    """The content of files, read one by one: those of a long volume do not fit into memory."""

    def __init__(self, paths: Mapping[tuple[int, str], Path]) -> None:
        self._paths = paths

    def __getitem__(self, key: tuple[int, str]) -> bytes:
        return self._paths[key].read_bytes()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def objects_of(asked: Asked, manifest: Manifest, kinds: Collection[Kind]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each object.

    Raises
    ------
    UnreadableError
        As `read_bytes` and `write_objects`, and where the file is not the one that was scored: its objects would give the
        results of one patient to another.
    """
    from pipeline.results.dicom.write import write_objects

    content = read_bytes(asked.file)
    if {result.input_sha256 for result in asked.results} != {hashlib.sha256(content).hexdigest()}:
        raise UnreadableError(Reason.INCONSISTENT, "The file was replaced after it was scored. Score it again.")
    made = datetime.fromtimestamp(asked.made_at, UTC)
    yield from write_objects(content, asked.results, manifest, kinds, made, _Pictures(asked.pictures))
