"""Finds the files of the sources and reads each one once, keeping what the index needs and not the pixels."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, UnreadableError
from pipeline.imaging.sources import StudyFile, discover, read_frames
from pipeline.ingest.labels import FileId
from pipeline.ingest.patients import read_patient_id
from pipeline.progress import Progress
from pipeline.records import Frame, ImageRecord, Quarantined, Split


@dataclass(frozen=True, slots=True)
class ReadFile:
    """The frames of one file; patient, labels and split are still open.

    `patient_id` is Patient ID (0010,0020): it stays in memory, and is empty for files that are not DICOM.
    """

    file_id: FileId
    records: tuple[ImageRecord, ...]
    patient_id: str


def find_files(sources: Sequence[Path], leave_out: Path | None) -> dict[FileId, StudyFile]:
    """Return every file of the sources in order, once each, without the table of labels.

    Raises
    ------
    InputError
        Where a source is missing, or none has a file.
    """
    seen = {leave_out.resolve()} if leave_out else set()
    files: dict[FileId, StudyFile] = {}
    for root, source in enumerate(sources):
        for file in discover(source):
            if (place := Path(os.path.realpath(file.path))) not in seen:
                seen.add(place)
                files[root, file.source] = file
    if not files:
        raise InputError(f"There is no file in {', '.join(source.name for source in sources)}. Give a folder of studies.")
    return files


def read_files(files: Mapping[FileId, StudyFile], progress: Progress, workers: int) -> tuple[list[ReadFile], list[Quarantined]]:
    """Read files, several at a time; return what was read and what could not be, both in the order of `files`."""
    pool = ThreadPoolExecutor(workers)
    try:
        outcomes = pool.map(_read, files, files.values())
        done = list(progress(outcomes, "reading studies", len(files)))
    finally:
        pool.shutdown(cancel_futures=True)
    return [one for one in done if isinstance(one, ReadFile)], [one for one in done if isinstance(one, Quarantined)]


def _read(file_id: FileId, file: StudyFile) -> ReadFile | Quarantined:
    records: list[ImageRecord] = []
    dicom = False
    try:
        for frame in read_frames(file):
            records.append(_to_record(file_id, frame))
            dicom = dicom or bool(frame.transfer_syntax_uid)
    except UnreadableError as error:
        return Quarantined(file.source, error.reason.value, str(error), root=file_id[0])
    return ReadFile(file_id, tuple(records), read_patient_id(file.path) if dicom else "")


def _to_record(file_id: FileId, frame: Frame) -> ImageRecord:
    rows, columns = frame.pixels.shape
    return ImageRecord(
        key=frame.key,
        root=file_id[0],
        source=file_id[1],
        patient_key="",
        pixel_sha256=frame.pixel_sha256,
        labels={},
        split=Split.TRAIN,
        rows=rows,
        columns=columns,
        modality=frame.modality,
        view_position=frame.view_position,
        laterality=frame.laterality,
    )
