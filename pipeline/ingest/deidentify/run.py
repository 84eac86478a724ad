"""One run of de-identification: files are cleaned in worker processes, recorded in the crosswalk, then written."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pipeline.errors import ConfigError, InputError, UnreadableError
from pipeline.imaging import ocr
from pipeline.imaging.files import StudyFile
from pipeline.imaging.sandbox import Sandbox
from pipeline.ingest.deidentify import crosswalk
from pipeline.ingest.deidentify.instance import Deidentified, deidentify_file
from pipeline.ingest.deidentify.options import Options, Refusal, RefusedError
from pipeline.ingest.deidentify.secret import make_or_read
from pipeline.progress import Progress, silent
from pipeline.records import DEFAULT_READING, Limits, Reading

_PART = ".part"
_BYTES_A_SECOND = 2**24
_SPACE, _COPIES = 2**30, 6
"""Address space of a worker without a file, and how many times one is in memory while it is cleaned."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked.

    Parameters
    ----------
    out
        Where the new files go, as `PSEUDONYM/STUDY/SERIES/INSTANCE.dcm`; it holds nothing of the original names.
    key
        The key file, made where there is none. The crosswalk lies beside it.
    options
        What is kept and what is blanked.
    """

    out: Path
    key: Path
    options: Options = field(default_factory=Options)

    def check(self, sources: Iterable[Path]) -> None:
        """Find out whether old and new files, and the key, are apart, before anything is read.

        Raises
        ------
        InputError
            Where they are not.
        ConfigError
            Where text is to be found and the extra for it is not installed.
        """
        output = self.out.resolve()
        for source in (source.resolve() for source in sources):
            if output.is_relative_to(source):
                raise InputError(f"The output folder {self.out.name} lies inside the sources. Name another.")
            if source.is_relative_to(output):
                raise InputError(f"{source.name} lies inside the output folder {self.out.name}. Name another.")
        if self.key.resolve().is_relative_to(output):
            raise InputError(
                f"The key {self.key.name} lies inside the output folder, with which it would be handed on. Name another place."
            )
        if self.options.clean_pixels and not ocr.is_installed():
            raise ConfigError(["Text recognition is not installed: pip install 'octray[ocr]'."])

    @property
    def own_files(self) -> tuple[Path, ...]:
        """The files that this writes itself, and that are no studies wherever they lie."""
        return self.key, crosswalk.crosswalk_path(self.key)


@dataclass(frozen=True, slots=True)
class Made:
    """A file that was written, or was there already.

    Parameters
    ----------
    name
        The new file below the output folder, with forward slashes.
    names_patient
        Whether the original said who the patient is; otherwise its study stands for the patient.
    """

    name: str
    names_patient: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that was not written.

    Parameters
    ----------
    source
        Its path below what was given; it may identify, and belongs nowhere but in the crosswalk.
    reason
        A code of `Reason` or `Refusal`.
    message
        A sentence for people, without anything of the file's content.
    alias
        What it may be called everywhere; the crosswalk says which file it is.
    """

    source: str
    reason: str
    message: str
    alias: str


class Run:
    """Writes de-identified files into one folder, one after the other; the crosswalk is open meanwhile.

    Parameters
    ----------
    job
        What is asked.
    reading
        Its limits say what one file may demand.
    workers
        How many files are cleaned at the same time, each in a process of its own.

    Raises
    ------
    InputError
        Where the key is none, or not that of the crosswalk.
    """

    def __init__(self, job: Job, reading: Reading = DEFAULT_READING, workers: int = 2) -> None:
        self._job, self._reading, self._workers = job, reading, workers
        self.secret = make_or_read(job.key)
        path = crosswalk.crosswalk_path(job.key)
        self._originals: dict[str, str] = {}
        self._crosswalk = crosswalk.Writer(path, self.secret, self._noted(crosswalk.read(path, self.secret)))
        _remove_parts(job.out)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: object) -> None:
        self._crosswalk.close()

    def deidentify(self, files: Sequence[StudyFile], progress: Progress = silent) -> list[Made | Refused]:
        """De-identify files; what became of each stands at its position.

        Raises
        ------
        InputError
            Where no worker can be started within the limits.
        """
        task = partial(deidentify_file, secret=self.secret, options=self._job.options, reading=self._reading)
        with Sandbox(self._workers, _limits(self._reading.limits, files)) as sandbox:
            results = zip(files, sandbox.map(task, files), strict=True)
            return [self._one(file, steps) for file, steps in progress(results, "de-identifying", len(files))]

    def leave_out(self, file: StudyFile, reason: str, message: str, sha256: str = "") -> Refused:
        """Note in the crosswalk that a file was not written, and why."""
        refused = Refused(file.source, reason, message, self.secret.alias(f"{file.path.resolve()}\0{file.source}"))
        self._crosswalk.add(
            _place(file, sha256) | {"alias": refused.alias, "reason": refused.reason, "message": refused.message}
        )
        return refused

    def _noted(self, known: Iterable[crosswalk.Entry]) -> Iterator[crosswalk.Entry]:
        """Pass entries through, and keep for each new name the hash of the file that it was made of."""
        for entry in known:
            if "name" in entry:
                self._originals[entry["name"]] = entry["sha256"]
            yield entry

    def _one(self, file: StudyFile, steps: Iterator[str | Deidentified | None]) -> Made | Refused:
        sha256 = ""
        try:
            sha256 = str(next(steps))
            (made,) = (step for step in steps if isinstance(step, Deidentified))
            self._check_name(made, sha256)
        except UnreadableError as error:
            return self.leave_out(file, error.reason.value, str(error), sha256)
        except RefusedError as error:
            return self.leave_out(file, error.refusal.value, str(error), sha256)
        self._crosswalk.add({**_place(file, sha256), **_entry(made)})
        _replace(self._job.out / made.name, made.content)
        self._originals[made.name] = sha256
        return Made(made.name, made.names_patient)

    def _check_name(self, made: Deidentified, sha256: str) -> None:
        """Find out whether another original has this new name; two that differ must not replace each other."""
        if self._originals.get(made.name, sha256) != sha256:
            raise RefusedError(
                Refusal.SAME_UID,
                "Another file with the same SOP Instance UID and other content was de-identified with this key. Leave one out.",
            )


def _limits(limits: Limits, files: Iterable[StudyFile]) -> Limits:
    """Give the largest file the time and the memory that any file of its size takes."""
    largest = max((_size(file) for file in files), default=0)
    largest = min(largest, limits.file_bytes)
    return replace(
        limits,
        frame_seconds=limits.frame_seconds + largest // _BYTES_A_SECOND,
        worker_bytes=max(limits.worker_bytes, _SPACE + _COPIES * largest),
    )


def _size(file: StudyFile) -> int:
    try:
        return file.stat()[0]
    except UnreadableError:
        return 0


def _place(file: StudyFile, sha256: str) -> dict[str, str]:
    return {"path": str(file.path.resolve()), "source": file.source, "sha256": sha256}


def _entry(made: Deidentified) -> dict[str, str | int | None]:
    study, series, instance = made.uids
    return {
        "name": made.name,
        "patient_id": made.patient_id,
        "pseudonym": made.pseudonym,
        "study_instance_uid": study,
        "series_instance_uid": series,
        "sop_instance_uid": instance,
        "offset_days": made.offset_days,
    }


def _replace(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}{_PART}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _remove_parts(out: Path) -> None:
    """Remove what a killed run left unfinished."""
    for part in list(out.rglob(f".*.dcm{_PART}")):
        part.unlink(missing_ok=True)
