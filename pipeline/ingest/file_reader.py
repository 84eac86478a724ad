"""Reads the files of an ingest, each once in worker processes, keeps what the index needs, and says which can be used."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.errors import PASSING, Reason, UnreadableError
from pipeline.frames import Frame, InstanceKey, Quarantined, of_whole_file
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.files.study_file import Refusal, file_stamp, lasting_stamp
from pipeline.imaging.quality.gate import admit
from pipeline.imaging.sources import StudyFile, open_file
from pipeline.ingest.journal import Journal
from pipeline.ingest.labels import FileId
from pipeline.ingest.patients import hash_patient, read_patient_id
from pipeline.progress import Progress
from pipeline.settings import DEFAULT_READING, LENIENT, Check, Gate, Reading
from pipeline.version import reading_versions

if TYPE_CHECKING:
    from pydantic import TypeAdapter

NO_LABEL = "no_label"
UID_CLASH = "uid_clash"

_MAY_PASS = PASSING | {Reason.DECODER_CRASH}


@dataclass(frozen=True, slots=True)
class ReadFrame:
    """What an ingest keeps of a frame, as in `Frame`, with what the quality gate says of it.

    Parameters
    ----------
    flags
        What the gate found and lets pass.
    rejection
        Why the gate rejects the frame; None if it does not.
    """

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
    rejection: Refusal | None = None


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file that was read.

    Parameters
    ----------
    frames
        All frames, rejected ones too; none if the file, or one frame of it, could not be read.
    failure
        Why it could not be read.
    file_sha256
        Hash of its bytes; empty if they could not be read.
    patient
        Keyed hash of Patient ID (0010,0020); empty if there is none.
    """

    frames: tuple[ReadFrame, ...] = ()
    failure: Refusal | None = None
    file_sha256: str = ""
    patient: str = ""

    @property
    def is_final(self) -> bool:
        """Whether reading the same file again would give the same."""
        if self.failure is None or self.failure.reason == Reason.NOT_AN_IMAGE:
            return True
        return bool(self.file_sha256) and self.failure.reason not in _MAY_PASS


def journal_key(reading: Reading, gate: Gate) -> str:
    """Return a hash of all that decides what is read of a file: limits, window, gate, and `reading_versions`."""
    return hashlib.sha256(repr((reading, gate, reading_versions())).encode()).hexdigest()


class FileReader:
    """Reads files in worker processes; a file that the journal has, unchanged, is not read again.

    Parameters
    ----------
    roots
        The source folders, as text; a `FileId` points into them.
    journal
        Has what was read before; what is read now is written there at once, file by file.
    reading, gate
        Limits and window, and what frames have to be like.
    workers
        How many files are read at the same time; 0 takes one for each core.
    """

    def __init__(
        self,
        roots: Sequence[str],
        journal: Journal,
        reading: Reading = DEFAULT_READING,
        gate: Gate = LENIENT,
        workers: int = 0,
    ) -> None:
        self._roots = roots
        self._journal = journal
        self._reading = reading
        self._gate = gate
        self._workers = workers
        self._known: set[FileId] = set()

    def knows(self, file_id: FileId, file: StudyFile) -> bool:
        """Return whether a file was read before and has not changed since; once known, it stays known."""
        if file_id not in self._known and self._journal.knows(self._place(file_id), file):
            self._known.add(file_id)
        return file_id in self._known

    def read(self, files: Mapping[FileId, StudyFile], progress: Progress) -> dict[FileId, ReadFile]:
        """Return what is in each file, in the order of `files`.

        Raises
        ------
        InputError
            If the journal cannot be written, or no worker can be started within the limits.
        """
        self._journal.begin()
        refused = {file_id: ReadFile(failure=file.refusal) for file_id, file in files.items() if file.refusal}
        unread = {one: file for one, file in files.items() if one not in refused and not self.knows(one, file)}
        task = partial(read_file, reading=self._reading, gate=self._gate, salt=self._journal.salt)
        with file_workers(self._workers) as pool:
            begun = pool.map(task, (((file_id, lasting_stamp(file_stamp(file))), file) for file_id, file in unread.items()))
            for (file_id, stamp), results in progress(begun, "reading studies", len(unread)):
                read = collect(results)
                self._journal.put(self._place(file_id), stamp if read.is_final else None, to_json(read))
        rest = [one for one in files if one not in refused]
        read_before_or_now = dict(zip(rest, map(from_json, self._journal.get(map(self._place, rest))), strict=True))
        return {one: refused.get(one) or read_before_or_now[one] for one in files}

    def forget_others(self, files: Mapping[FileId, StudyFile]) -> None:
        """Remove all other files from the journal."""
        self._journal.keep_only({self._place(file_id) for file_id in files})

    def _place(self, file_id: FileId) -> tuple[str, str]:
        return self._roots[file_id[0]], file_id[1]


def read_file(file: StudyFile, reading: Reading, gate: Gate, salt: bytes) -> Iterator[str | ReadFrame]:
    """Read one file; runs in a worker process.

    Parameters
    ----------
    file
        Which one.
    reading, gate
        As in `FileReader`.
    salt
        Key of the hash that stands for a patient.

    Yields
    ------
    str or ReadFrame
        The hash of the bytes, then the frames in their order, then the keyed hash of the patient: see `collect`.

    Raises
    ------
    UnreadableError
        As `read_frames`.
    """
    content, frames = open_file(file, reading)
    yield hashlib.sha256(content).hexdigest()
    is_dicom = False
    for frame in frames:
        is_dicom = is_dicom or bool(frame.transfer_syntax_uid)
        yield _checked(frame, gate)
    yield hash_patient(read_patient_id(content), salt) if is_dicom else ""


def _checked(frame: Frame, gate: Gate) -> ReadFrame:
    flags: tuple[Check, ...] = ()
    rejection = None
    try:
        flags = tuple(flag.check for flag in admit(frame, gate))
    except UnreadableError as error:
        rejection = Refusal.of(error)
    rows, columns = frame.shape
    return ReadFrame(
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


def collect(results: Iterator[str | ReadFrame]) -> ReadFile:
    """Return what `read_file` yields as one file; a file that fails half way has no frames."""
    frames: list[ReadFrame] = []
    hashes = []
    try:
        for result in results:
            if isinstance(result, ReadFrame):
                frames.append(result)
            else:
                hashes.append(result)
    except UnreadableError as error:
        return ReadFile(failure=Refusal.of(error), file_sha256=hashes[0] if hashes else "")
    file_sha256, patient = hashes
    return ReadFile(tuple(frames), None, file_sha256, patient)


def to_json(read: ReadFile) -> str:
    """Return a file that was read as the journal keeps it."""
    return json.dumps(_adapter().dump_python(read, mode="json", exclude_defaults=True))  # its own JSON has no lone surrogates


def from_json(text: str) -> ReadFile:
    """Return the file that `to_json` was given."""
    return _adapter().validate_python(json.loads(text))


@cache
def _adapter() -> "TypeAdapter[ReadFile]":
    from pydantic import TypeAdapter  # here, since worker processes need none

    return TypeAdapter(ReadFile)


def usable(
    files: Collection[FileId], outcomes: Mapping[FileId, ReadFile], unlabelled: str
) -> tuple[dict[FileId, tuple[ReadFrame, ...]], list[Quarantined]]:
    """Divide files into those that are used and those that are not, in order.

    Parameters
    ----------
    files
        Every file that was found.
    outcomes
        What was read; the other files have no label.
    unlabelled
        A sentence that says why those have none.

    Returns
    -------
    tuple
        The files with frames that can be used, with these frames; and a row for each file that is not used, or for each frame
        that is not if others of its file are.
    """
    clashing = clashes(outcomes)
    used: dict[FileId, tuple[ReadFrame, ...]] = {}
    quarantine: list[Quarantined] = []
    for file_id in files:
        root, source = file_id
        read = outcomes.get(file_id)
        if read is None:
            quarantine.append(Quarantined(source, NO_LABEL, unlabelled, root=root))
        elif read.failure:
            quarantine.append(Quarantined(source, read.failure.reason.value, read.failure.message, root=root))
        elif other := clashing.get(file_id):
            message = (
                f"The file {PurePosixPath(other[1]).name} has the same SOP Instance UID (0008,0018) and other pixels. Find out "
                "which of them is right, and leave the other out."
            )
            quarantine.append(Quarantined(source, UID_CLASH, message, root=root))
        else:
            rejected = [
                Quarantined(source, frame.rejection.reason.value, frame.rejection.message, frame.key.frame_number, root)
                for frame in read.frames
                if frame.rejection
            ]
            quarantine += of_whole_file(rejected) if len(rejected) == len(read.frames) else rejected
            if accepted := tuple(frame for frame in read.frames if frame.rejection is None):
                used[file_id] = accepted
    return used, quarantine


def clashes(files: Mapping[FileId, ReadFile]) -> dict[FileId, FileId]:
    """Return the files with an instance that another file has with other pixels, each with such a file.

    Two files with the same SOP Instance UID (0008,0018) and the same pixels are copies, and do not clash.
    """
    contents: dict[str, dict[str, FileId]] = {}
    for file_id, read in files.items():
        for instance, content in _contents(read).items():
            contents.setdefault(instance, {}).setdefault(content, file_id)
    several = {instance: known for instance, known in contents.items() if len(known) > 1}
    return {
        file_id: next(other for known, other in several[instance].items() if known != content)
        for file_id, read in files.items()
        for instance, content in (_contents(read).items() if several else ())
        if instance in several
    }


def _contents(read: ReadFile) -> dict[str, str]:
    """Return for each instance of a file a hash of the pixels of all its frames."""
    contents: dict[str, str] = {}
    for frame in read.frames:
        instance = frame.key.sop_instance_uid
        known = f"{contents.get(instance, '')} {frame.key.frame_number} {frame.pixel_sha256}"
        contents[instance] = hashlib.sha256(known.encode()).hexdigest()
    return contents
