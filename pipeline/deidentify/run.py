"""One run of de-identification: files are cleaned in worker processes, recorded in the crosswalk, then written."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydicom.datadict import keyword_for_tag

from pipeline.deidentify import crosswalk
from pipeline.deidentify.done import Done, bound_to, done_path
from pipeline.deidentify.instance import Deidentified, deidentify_file
from pipeline.deidentify.job import Job
from pipeline.deidentify.options import Refusal, RefusedError
from pipeline.deidentify.secret import make_or_read
from pipeline.errors import PASSING, Reason, UnreadableError
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.files.study_file import Look, StudyFile, appearance, settled
from pipeline.progress import Progress, silent
from pipeline.settings import DEFAULT_READING, Reading, WorkerLimits, worker_limits

_PART = ".dcm.part"
_BYTES_A_SECOND = 2**24
_DECODINGS = 4
"""Decodings of a compressed frame that there is time for: one to read it, two or three to find what no pixel depends on."""
_TEXT_SECONDS = 120.0
"""To find text in one frame; 2000 x 2000 pixels took up to 25 s in one thread of a busy machine."""
_PASSING = PASSING | {Reason.DECODER_CRASH, Refusal.SAME_UID}
"""Refusals that another run may not meet: they depend on the machine, or on other files."""
_SPACE, _COPIES = 2**30, 6
"""Address space of a worker without a file, and how many times one is in memory while it is cleaned."""


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
        How many files are cleaned at the same time, each in a process of its own; 0 takes one for each core.

    Raises
    ------
    InputError
        Where the key is none, or not that of the crosswalk.
    """

    def __init__(self, job: Job, reading: Reading = DEFAULT_READING, workers: int = 0) -> None:
        self._job, self._reading, self._workers = job, reading, workers
        self.secret = make_or_read(job.key)
        path = crosswalk.crosswalk_path(job.key)
        self.out = job.out.resolve()
        self._originals: dict[str, str] = {}
        self._allowed: dict[str, list[str]] = {}
        self._aliases: dict[str, str] = {}
        self._crosswalk = crosswalk.Writer(path, self.secret, self._noted(crosswalk.read(path, self.secret)))
        self._done = Done(done_path(job.key), self.secret, bound_to(job.options, reading, self.out))
        _remove_parts(self.out)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: object) -> None:
        self._crosswalk.close()
        self._done.close()
        _remove_parts(self.out)

    def knows(self, file: StudyFile) -> bool:
        """Say whether a file was dealt with before, and neither it nor what was made of it has changed since."""
        return self._known(file, appearance(file)) is not None

    def deidentify(self, files: Sequence[StudyFile], progress: Progress = silent) -> list[Made | Refused]:
        """De-identify files, those not that are known; what became of each stands at its position.

        Raises
        ------
        InputError
            Where no worker can be started within the limits, or the new files cannot be written.
        """
        looks = [appearance(file) for file in files]
        lasting = [settled(one) for one in looks]
        known = {number: self._known(file, looks[number]) for number, file in enumerate(files)}
        unknown = [number for number, outcome in known.items() if outcome is None]
        with closing(self._clean([files[number] for number in unknown])) as results:
            for number, (part, steps) in zip(unknown, progress(results, "de-identifying", len(unknown)), strict=True):
                known[number] = self._one(files[number], lasting[number], part, steps)
        return [outcome for outcome in known.values() if outcome is not None]

    def _clean(self, files: Sequence[StudyFile]) -> Generator[tuple[Path, Iterator[str | Deidentified | None]], None, None]:
        """Yield for each file where a worker writes the new one, and what it says of it."""
        task = partial(deidentify_file, secret=self.secret, options=self._job.options, reading=self._reading)
        self.out.mkdir(parents=True, exist_ok=True)
        parts = [self.out / f".{self._alias(file)}{_PART}" for file in files]
        limits = _limits(self._reading.limits.file_bytes, files, self._job.options.clean_pixels)
        with file_workers(self._workers, limits) as pool:
            yield from pool.map(task, ((part, (file, part)) for file, part in zip(files, parts, strict=True)))

    def _known(self, file: StudyFile, looks: Look | None) -> Made | Refused | None:
        """Return what became of a file before, where that still holds."""
        noted = self._done.get(file, looks) if looks else None
        if noted is None:
            return None
        if len(noted) == 2:
            reason, message = noted
            refused = Refused(file.source, reason, message, self._alias(file))
            is_same = refused.alias in self._aliases and not self._allowed_now(self._aliases[refused.alias])
            return refused if is_same else None
        name, names_patient, *made_looks = noted
        made = appearance(StudyFile(self.out / name, name))
        is_same = name in self._originals and self._allowed[name] == self._allowed_now(self._originals[name])
        return Made(name, names_patient) if is_same and made == tuple(made_looks) else None

    def _allowed_now(self, sha256: str) -> list[str]:
        return sorted(keyword_for_tag(tag) for tag in self._job.options.allowed_in(sha256))

    def leave_out(self, file: StudyFile, reason: str, message: str, sha256: str = "") -> Refused:
        """Note in the crosswalk that a file was not written, and why."""
        refused = Refused(file.source, reason, message, self._alias(file))
        self._crosswalk.add(
            _place(file, sha256) | {"alias": refused.alias, "reason": refused.reason, "message": refused.message}
        )
        return refused

    def _noted(self, known: Iterable[crosswalk.Entry]) -> Iterator[crosswalk.Entry]:
        """Pass entries through, and keep for each new name the hash of the file that it was made of."""
        for entry in known:
            if "name" in entry:
                self._originals[entry["name"]] = entry["sha256"]
                self._allowed[entry["name"]] = entry["allowed"]
            elif "alias" in entry:
                self._aliases[entry["alias"]] = entry["sha256"]
            yield entry

    def _alias(self, file: StudyFile) -> str:
        return self.secret.alias(f"{file.path.resolve()}\0{file.source}")

    def _one(
        self, file: StudyFile, looked: Look | None, part: Path, steps: Iterator[str | Deidentified | None]
    ) -> Made | Refused:
        """Give what a worker wrote to `part` its name, once the crosswalk has it, or note why it wrote nothing."""
        sha256 = ""
        try:
            sha256 = str(next(steps))
            (made,) = (step for step in steps if isinstance(step, Deidentified))
            self._check_name(made, sha256)
            return self._accept(file, sha256, looked, part, made)
        except UnreadableError as error:
            return self._refuse(file, sha256, looked, error.reason, str(error))
        except RefusedError as error:
            return self._refuse(file, sha256, looked, error.refusal, str(error))
        finally:
            part.unlink(missing_ok=True)

    def _accept(self, file: StudyFile, sha256: str, looked: Look | None, part: Path, made: Deidentified) -> Made:
        self._crosswalk.add({**_place(file, sha256), **_entry(made)})
        path = self.out / made.name
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)
        self._originals[made.name] = sha256
        if looked and (looks := appearance(StudyFile(path, made.name))):
            self._done.put(file, looked, [made.name, made.names_patient, *looks])
        return Made(made.name, made.names_patient)

    def _refuse(self, file: StudyFile, sha256: str, looked: Look | None, reason: Reason | Refusal, message: str) -> Refused:
        """Leave a file out; it is known from now on where it was read, and the same would come of it again."""
        if looked and sha256 and reason not in _PASSING:
            self._done.put(file, looked, [reason.value, message])
        return self.leave_out(file, reason.value, message, sha256)

    def _check_name(self, made: Deidentified, sha256: str) -> None:
        """Find out whether another original has this new name; two that differ must not replace each other."""
        if self._originals.get(made.name, sha256) != sha256:
            raise RefusedError(
                Refusal.SAME_UID,
                "Another file with the same SOP Instance UID and other content was de-identified with this key. Leave one out.",
            )


def _limits(file_bytes: int, files: Iterable[StudyFile], clean_pixels: bool) -> WorkerLimits:
    """Give the largest file the time and the memory that any file of its size takes, and text the time to be found."""
    largest = max((_size(file) for file in files), default=0)
    largest = min(largest, file_bytes)
    limits = worker_limits()
    return replace(
        limits,
        frame_seconds=(_TEXT_SECONDS if clean_pixels else 0.0) + _DECODINGS * limits.frame_seconds + largest // _BYTES_A_SECOND,
        worker_bytes=max(limits.worker_bytes, _SPACE + _COPIES * largest),
    )


def _size(file: StudyFile) -> int:
    try:
        return file.stat()[0]
    except UnreadableError:
        return 0


def _place(file: StudyFile, sha256: str) -> dict[str, str]:
    return {"path": str(file.path.resolve()), "source": file.source, "sha256": sha256}


def _entry(made: Deidentified) -> dict[str, str | int | list[str] | None]:
    study, series, instance = made.uids
    return {
        "name": made.name,
        "patient_id": made.patient_id,
        "pseudonym": made.pseudonym,
        "study_instance_uid": study,
        "series_instance_uid": series,
        "sop_instance_uid": instance,
        "offset_days": made.offset_days,
        "allowed": list(made.allowed),
    }


def _remove_parts(out: Path) -> None:
    """Remove what a killed run left unfinished."""
    for part in list(out.glob(f".*{_PART}")):
        part.unlink(missing_ok=True)
