"""Reads files in worker processes, each once, and keeps what the index needs and not the pixels."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.errors import PASSING, InputError, Reason, UnreadableError
from pipeline.frames import Frame, InstanceKey
from pipeline.imaging.quality.gate import admit
from pipeline.imaging.sources import StudyFile, discover, open_file
from pipeline.ingest.labels import FileId
from pipeline.ingest.patients import hash_patient, read_patient_id
from pipeline.settings import DEFAULT_READING, LENIENT, Check, Gate, Reading

_PASSING = PASSING | {Reason.DECODER_CRASH}


@dataclass(frozen=True, slots=True)
class How:
    """How files are read.

    Parameters
    ----------
    reading
        Limits, and which window.
    gate
        What frames have to be like.
    salt
        Key of the hash that stands for a patient.
    """

    reading: Reading = DEFAULT_READING
    gate: Gate = LENIENT
    salt: bytes = b""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file or a frame is not used: a `Reason` code, and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class SeenFrame:
    """What the index keeps of a frame, as in `Frame`; `rejection` says why the quality gate did not let it pass."""

    key: InstanceKey
    pixel_sha256: str
    rows: int
    columns: int
    modality: str = ""
    view_position: str = ""
    laterality: str = ""
    instance_number: int | None = None
    slice_position_mm: float | None = None
    flags: tuple[Check, ...] = ()
    rejection: Failure | None = None


@dataclass(frozen=True, slots=True)
class ReadFile:
    """One file as it was read.

    Parameters
    ----------
    frames
        All frames, the rejected ones too; none where the file, or one frame of it, could not be read.
    failure
        Why it could not be.
    file_sha256
        Hash of its bytes; empty where they could not be read.
    patient
        Keyed hash of Patient ID (0010,0020); empty where there is none.
    """

    frames: tuple[SeenFrame, ...] = ()
    failure: Failure | None = None
    file_sha256: str = ""
    patient: str = ""

    @property
    def is_settled(self) -> bool:
        """Say whether reading the same file again would give the same."""
        if self.failure is None or self.failure.reason == Reason.NOT_AN_IMAGE:
            return True
        return bool(self.file_sha256) and self.failure.reason not in _PASSING


@dataclass(frozen=True, slots=True)
class Content:
    """The first thing that is known of a file: the hash of its bytes."""

    sha256: str


@dataclass(frozen=True, slots=True)
class Patient:
    """The last thing that is known of a file: the keyed hash of its patient."""

    key: str


def find_files(
    sources: Sequence[Path],
    leave_out: Collection[Path],
    is_known: Callable[[FileId, StudyFile], bool],
    skipped: Counter[str] | None = None,
) -> dict[FileId, StudyFile]:
    """Return every file of the sources in order, once each.

    Parameters
    ----------
    sources
        Files or folders.
    leave_out
        Files that are no studies: the table of labels, the index itself.
    is_known, skipped
        As in `discover`.

    Raises
    ------
    InputError
        Where a source is missing, or none has a file.
    """
    unwanted = {os.path.realpath(path) for path in leave_out}
    folders: dict[Path, str] = {}
    seen: set[object] = set()
    files: dict[FileId, StudyFile] = {}
    for root, source in enumerate(sources):
        knows = partial(_knows, root, is_known)
        for file in discover(source, knows, skipped):
            place = _real_path(file.path, folders), tuple(member.offset for member in file.inside)
            if file.refusal is None and (place in seen or (not file.inside and place[0] in unwanted)):
                continue
            seen.add(place)
            files[root, file.source] = file
    if not files:
        raise InputError(f"There is no file in {', '.join(source.name for source in sources)}. Give a folder of studies.")
    return files


def _knows(root: int, is_known: Callable[[FileId, StudyFile], bool], file: StudyFile) -> bool:
    return is_known((root, file.source), file)


def _real_path(path: Path, folders: dict[Path, str]) -> str:
    """Return the path with links followed; `folders` remembers those of the folders, so that a file costs one look at it."""
    if path.is_symlink():
        return os.path.realpath(path)
    folder = path.parent
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], path.name)  # noqa: PTH118


def read_file(file: StudyFile, how: How) -> Iterator[Content | SeenFrame | Patient]:
    """Read one file; what a worker process does.

    Yields
    ------
    Content or SeenFrame or Patient
        The hash of the bytes, then the frames in their order, then the patient.

    Raises
    ------
    UnreadableError
        As `read_frames`.
    """
    content, frames = open_file(file, how.reading)
    yield Content(hashlib.sha256(content).hexdigest())
    dicom = False
    for frame in frames:
        dicom = dicom or bool(frame.transfer_syntax_uid)
        yield _seen(frame, how.gate)
    yield Patient(hash_patient(read_patient_id(content), how.salt) if dicom else "")


def _seen(frame: Frame, gate: Gate) -> SeenFrame:
    flags: tuple[Check, ...] = ()
    rejection = None
    try:
        flags = tuple(flag.check for flag in admit(frame, gate))
    except UnreadableError as error:
        rejection = Failure(error.reason.value, str(error))
    rows, columns = frame.shape
    return SeenFrame(
        key=frame.key,
        pixel_sha256=frame.pixel_sha256,
        rows=rows,
        columns=columns,
        modality=frame.modality,
        view_position=frame.view_position,
        laterality=frame.laterality,
        instance_number=frame.instance_number,
        slice_position_mm=frame.slice_position_mm,
        flags=flags,
        rejection=rejection,
    )


def collect(results: Iterator[Content | SeenFrame | Patient]) -> ReadFile:
    """Put together what `read_file` yields; a file that fails half way is not used at all."""
    frames: list[SeenFrame] = []
    sha256 = patient = ""
    try:
        for result in results:
            if isinstance(result, SeenFrame):
                frames.append(result)
            elif isinstance(result, Content):
                sha256 = result.sha256
            else:
                patient = result.key
    except UnreadableError as error:
        return ReadFile(failure=Failure(error.reason.value, str(error)), file_sha256=sha256)
    return ReadFile(tuple(frames), None, sha256, patient)
