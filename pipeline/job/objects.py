"""Makes the DICOM objects of one file; runs in a worker process, and imports what makes them only there."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from pipeline.imaging.sources import StudyFile, read_bytes
from pipeline.model.bundle import Manifest
from pipeline.records import FramePrediction
from pipeline.results.dicom.kinds import Kind


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A file, the results of its frames, and their pictures: PNG files by frame number and label."""

    file: StudyFile
    results: tuple[FramePrediction, ...]
    pictures: Mapping[tuple[int, str], bytes]


def objects_of(asked: Asked, manifest: Manifest, kinds: Collection[Kind]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each object; raises as `write_objects` does."""
    from pipeline.results.dicom.write import write_objects

    yield from write_objects(read_bytes(asked.file), asked.results, manifest, kinds, asked.pictures)
