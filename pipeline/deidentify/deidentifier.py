"""De-identifies folders: worker processes clean the files, the crosswalk records each, and then it takes its new name."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_has_tag, keyword_for_tag, tag_for_keyword

from pipeline.deidentify.crosswalk import (
    Crosswalk,
    Entry,
    Secret,
    crosswalk_path,
    default_key_path,
    make_or_read_key,
    read_crosswalk,
)
from pipeline.deidentify.instance import Deidentified, deidentify_file
from pipeline.deidentify.profile import Keep, Options, Rectangle, RefusalReason, RefusedError
from pipeline.errors import PASSING, ConfigError, InputError, LedgerError, Reason, UnreadableError
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.files.names import as_text
from pipeline.imaging.files.study_file import FileStamp, StudyFile, file_stamp, lasting_stamp
from pipeline.imaging.quality import ocr
from pipeline.imaging.sources import discover_all
from pipeline.progress import Progress, silent
from pipeline.settings import DEFAULT_READING, Reading, WorkerLimits, worker_limits
from pipeline.store.result_cache import ResultCache
from pipeline.version import reading_versions

_PART = ".dcm.part"
_BYTES_A_SECOND = 2**24
_DECODINGS = 4
"""Decodings of a compressed frame that the time limit allows: one to read it, two or three to find unneeded bytes."""
_TEXT_SECONDS = 120.0
"""Time to find text in one frame; 2000 x 2000 pixels took up to 25 s in one thread of a busy machine."""
_TRANSIENT = PASSING | {Reason.DECODER_CRASH, RefusalReason.SAME_UID}
"""Reasons that may not hold in another run: they depend on the machine, or on other files."""
_WORKER_BYTES, _COPIES = 2**30, 6
"""Memory of a worker without a file, and how many copies of a file it holds while it cleans one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The output folder, the key and the options of a de-identification.

    Parameters
    ----------
    out
        Output folder; the new files are `PSEUDONYM/STUDY/SERIES/INSTANCE.dcm` in it, without anything of the original names.
    key
        The key file, created if missing. The crosswalk is beside it.
    options
        What is kept and what is blanked.
    """

    out: Path
    key: Path
    options: Options = field(default_factory=Options)

    def check(self, sources: Iterable[Path]) -> None:
        """Check, before anything is read, that old files, new files and the key do not lie inside each other.

        Raises
        ------
        InputError
            If they do, or a source is missing.
        ConfigError
            If text is to be found and the extra for it is not installed.
        """
        output = self.out.resolve()
        if output.exists() and not output.is_dir():
            raise InputError(f"{as_text(self.out.name)} is a file. The output must be a folder, new or from earlier runs.")
        for source in (source.resolve() for source in sources):
            if not source.exists():
                raise InputError(f"There is no file or folder {as_text(source.name)}. Check the path.")
            if output.is_relative_to(source):
                raise InputError(f"The output folder {self.out.name} lies inside the sources. Name another.")
            if source.is_relative_to(output):
                raise InputError(f"{source.name} lies inside the output folder {self.out.name}. Name another.")
        if self.key.resolve().is_relative_to(output):
            raise InputError(
                f"The key {self.key.name} lies inside the output folder and would be handed on with it. Name another place."
            )
        if self.options.clean_pixels and not ocr.is_installed():
            raise ConfigError(["Text recognition is not installed: pip install 'octray[ocr]'."])

    @property
    def own_files(self) -> tuple[Path, ...]:
        """The files that de-identification itself writes beside the key; they are no studies, even inside a source."""
        done = _done_path(self.key)
        return self.key, crosswalk_path(self.key), done, done.with_name(f"{done.name}-wal")  # the last is left by a kill


def _done_path(key: Path) -> Path:
    return key.with_name(f"{key.name}.done")


def plan_deidentification(
    out: Path | str,
    *,
    key: Path | str | None = None,
    keep: Iterable[str] = (),
    blank: Iterable[tuple[int, int, int, int]] = (),
    clean_pixels: bool = False,
    allow: Iterable[tuple[str, str]] = (),
) -> Plan:
    """Return what `deidentify_folder` and `build_index` are to do.

    Parameters
    ----------
    out
        Folder for the new files.
    key
        File of the secret key, created if missing; the crosswalk is beside it. None: the default of the user.
    keep
        What is kept beyond the Basic Profile: dates (all of a patient moved by the same number of days), uids, patient (sex,
        age, size and weight), descriptors (those in which every word is known to be safe).
    blank
        Rectangles that are blanked in every frame of every image: left, top, width and height in pixels.
    clean_pixels
        Whether text is searched for in every image and blanked; it can miss text.
    allow
        Values that were refused because they equal an identifier, and that a person has checked: the SHA-256 of one file, and
        the attribute as a DICOM keyword or as gggg,eeee.

    Raises
    ------
    InputError
        If a name in `keep`, a rectangle or a value that is allowed is malformed.
    """
    kept = list(keep)
    if unknown := [name for name in kept if name.upper() not in Keep.__members__]:
        names = ", ".join(name.lower() for name in Keep.__members__)
        raise InputError(f"There is nothing called {', '.join(unknown)} to keep. Name some of {names}.")
    options = Options(
        frozenset(Keep[name.upper()] for name in kept),
        tuple(map(_rectangle, blank)),
        clean_pixels,
        frozenset(_allowed(*one) for one in allow),
    )
    return Plan(Path(out), Path(key) if key else default_key_path(), options)


def _rectangle(sides: tuple[int, int, int, int]) -> Rectangle:
    left, top, width, height = sides
    if min(sides) < 0 or not (width and height):
        text = ",".join(map(str, sides))
        raise InputError(f"The rectangle {text} must be LEFT,TOP,WIDTH,HEIGHT in pixels, for example 0,0,640,40.")
    return Rectangle(left, top, width, height)


def _allowed(sha256: str, attribute: str) -> tuple[str, int]:
    """Return the hash of a file and the tag of an attribute; a folder or a whole file cannot be allowed."""
    number = re.fullmatch(r"\(?([0-9a-fA-F]{4}),([0-9a-fA-F]{4})\)?", attribute)
    tag = int("".join(number.groups()), 16) if number else tag_for_keyword(attribute or "none")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256) or tag is None or not dictionary_has_tag(tag):
        raise InputError(
            f"--allow {sha256}:{attribute} must be SHA256:ATTRIBUTE: the hash of one file from the crosswalk, and a DICOM "
            "keyword or tag, for example WindowCenter or 0028,1050."
        )
    return sha256.lower(), tag


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that was written, now or by an earlier run.

    Parameters
    ----------
    name
        The new file's path below the output folder, with forward slashes.
    has_patient
        Whether the original identifies its patient; if not, its study counts as the patient.
    """

    name: str
    has_patient: bool


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file that was not written.

    Parameters
    ----------
    source
        Its path below the source; it may be identifying, so only the crosswalk may contain it.
    reason
        A code of `Reason` or `RefusalReason`.
    message
        A sentence for the user, without any content of the file.
    alias
        What the file is called outside the crosswalk, which says which file that is.
    """

    source: str
    reason: str
    message: str
    alias: str


@dataclass(frozen=True, slots=True)
class FolderResult:
    """What became of the files of some folders.

    Parameters
    ----------
    names
        Paths of the new files below the output folder, with forward slashes, in the order of their originals.
    refused
        The files that were not written.
    """

    names: tuple[str, ...]
    refused: tuple[RefusedFile, ...]

    @property
    def patients(self) -> int:
        """How many patients the new files are from."""
        return len({name.partition("/")[0] for name in self.names})


def deidentify_folder(
    sources: Sequence[Path | str],
    plan: Plan,
    progress: Progress = silent,
    reading: Reading = DEFAULT_READING,
    workers: int = 0,
    skipped: Counter[str] | None = None,
) -> FolderResult:
    """De-identify every file of some folders into one output folder.

    Parameters
    ----------
    sources
        Files and folders.
    plan
        The output folder, the key and the options, as `plan_deidentification` gives them.
    progress
        Shows how many files are done.
    reading
        Its limits apply to every file.
    workers
        How many files are cleaned at the same time, each in a process of its own; 0 takes one for each core.
    skipped
        As in `discover`.

    Raises
    ------
    InputError
        If a source is missing or there is no file, the paths lie inside each other, or the key cannot be used.
    ConfigError
        If text is to be found and the extra for it is not installed.
    """
    paths = [Path(source) for source in sources]
    plan.check(paths)
    with Deidentifier(plan, reading, workers) as deidentifier:
        found = discover_all(paths, plan.own_files, lambda _, file: deidentifier.knows(file), skipped)
        files = [file for _, file in found]
        if not files:
            raise InputError("The sources contain no file. Check the path.")
        outcomes = deidentifier.deidentify(files, progress)
    names = tuple(one.name for one in outcomes if isinstance(one, WrittenFile))
    return FolderResult(names, tuple(one for one in outcomes if isinstance(one, RefusedFile)))


class Deidentifier:
    """Writes de-identified files into one folder, and keeps the crosswalk open meanwhile.

    Parameters
    ----------
    plan
        The output folder, the key and the options.
    reading
        Its limits apply to every file.
    workers
        How many files are cleaned at the same time, each in a process of its own; 0 takes one for each core.

    Raises
    ------
    InputError
        If the key cannot be used, or the crosswalk belongs to another key.
    """

    def __init__(self, plan: Plan, reading: Reading = DEFAULT_READING, workers: int = 0) -> None:
        self._options, self._reading, self._workers = plan.options, reading, workers
        self.secret = make_or_read_key(plan.key)
        self.out = plan.out.resolve()
        self._originals: dict[str, str] = {}  # new name to the hash of its original
        self._allowed: dict[str, list[str]] = {}  # new name to the attributes that were allowed
        self._refused: dict[str, str] = {}  # alias to the hash of the refused file
        path = crosswalk_path(plan.key)
        with ExitStack() as stack:
            crosswalk = Crosswalk(path, self.secret, self._remembered(read_crosswalk(path, self.secret)))
            self._crosswalk = stack.enter_context(crosswalk)
            self._earlier = _EarlierRuns(_done_path(plan.key), self.secret, _bound_to(plan.options, reading, self.out))
            stack.callback(self._earlier.close)
            self._remove_parts()
            stack.callback(self._remove_parts)
            self._open = stack.pop_all()

    def __enter__(self) -> "Deidentifier":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def knows(self, file: StudyFile) -> bool:
        """Return whether an earlier run dealt with a file, and neither it nor the new file has changed since."""
        return self._earlier_outcome(file, file_stamp(file)) is not None

    def deidentify(self, files: Sequence[StudyFile], progress: Progress = silent) -> list[WrittenFile | RefusedFile]:
        """De-identify the files that are not known yet, and return what became of each, in the same order.

        Raises
        ------
        InputError
            If no worker can be started within the limits, or the new files cannot be written.
        """
        stamps = [file_stamp(file) for file in files]
        lasting = [lasting_stamp(stamp) for stamp in stamps]  # now, before the files are read
        outcomes = {number: self._earlier_outcome(file, stamps[number]) for number, file in enumerate(files)}
        unknown = [number for number, outcome in outcomes.items() if outcome is None]
        with closing(self._clean([files[number] for number in unknown])) as results:
            for number, (part, steps) in zip(unknown, progress(results, "de-identifying", len(unknown)), strict=True):
                outcomes[number] = self._finish(files[number], lasting[number], part, steps)
        return [outcome for outcome in outcomes.values() if outcome is not None]

    def leave_out(self, file: StudyFile, reason: str, message: str, sha256: str = "") -> RefusedFile:
        """Record in the crosswalk that a file was not written, and why."""
        refused = RefusedFile(file.source, reason, message, self._alias(file))
        self._crosswalk.add(
            _original(file, sha256) | {"alias": refused.alias, "reason": refused.reason, "message": refused.message}
        )
        return refused

    def _remembered(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Pass the crosswalk's entries through, and remember their hashes and allowed attributes."""
        for entry in entries:
            if "name" in entry:
                self._originals[entry["name"]] = entry["sha256"]
                self._allowed[entry["name"]] = entry["allowed"]
            elif "alias" in entry:
                self._refused[entry["alias"]] = entry["sha256"]
            yield entry

    def _earlier_outcome(self, file: StudyFile, stamp: FileStamp | None) -> WrittenFile | RefusedFile | None:
        """Return what became of a file in an earlier run; None if that does not hold any more."""
        noted = self._earlier.get(file, stamp) if stamp else None
        if noted is None:
            return None
        if len(noted) == 2:
            reason, message = noted
            refused = RefusedFile(file.source, reason, message, self._alias(file))
            holds = refused.alias in self._refused and not self._allowed_in(self._refused[refused.alias])
            return refused if holds else None
        name, has_patient, *new_stamp = noted
        if name not in self._originals or self._allowed[name] != self._allowed_in(self._originals[name]):
            return None
        is_unchanged = file_stamp(StudyFile(self.out / name, name)) == tuple(new_stamp)
        return WrittenFile(name, has_patient) if is_unchanged else None

    def _allowed_in(self, sha256: str) -> list[str]:
        return sorted(keyword_for_tag(tag) for tag in self._options.allowed_in(sha256))

    def _alias(self, file: StudyFile) -> str:
        return self.secret.alias(f"{file.path.resolve()}\0{file.source}")

    def _clean(self, files: Sequence[StudyFile]) -> Generator[tuple[Path, Iterator[str | Deidentified | None]], None, None]:
        """Yield for each file the path to which a worker writes the new one, and the steps of `deidentify_file`."""
        task = partial(deidentify_file, secret=self.secret, options=self._options, reading=self._reading)
        self.out.mkdir(parents=True, exist_ok=True)
        parts = [self.out / f".{self._alias(file)}{_PART}" for file in files]
        limits = _limits(self._reading.limits.file_bytes, files, self._options.clean_pixels)
        with file_workers(self._workers, limits) as pool:
            yield from pool.map(task, ((part, (file, part)) for file, part in zip(files, parts, strict=True)))

    def _finish(
        self, file: StudyFile, stamp: FileStamp | None, part: Path, steps: Iterator[str | Deidentified | None]
    ) -> WrittenFile | RefusedFile:
        """Record a file in the crosswalk, then give what a worker wrote to `part` its name; or record why it was refused."""
        sha256 = ""
        try:
            sha256 = str(next(steps))
            (new,) = (step for step in steps if isinstance(step, Deidentified))
            if self._originals.get(new.name, sha256) != sha256:
                raise RefusedError(
                    RefusalReason.SAME_UID,
                    "Another file with the same SOP Instance UID but different content was de-identified with this key. Leave "
                    "one of them out.",
                )
            self._crosswalk.add(_original(file, sha256) | _entry(new))
            path = self.out / new.name
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)
            self._originals[new.name] = sha256
            if stamp and (new_stamp := file_stamp(StudyFile(path, new.name))):
                self._earlier.put(file, stamp, [new.name, new.has_patient, *new_stamp])
            return WrittenFile(new.name, new.has_patient)
        except (UnreadableError, RefusedError) as error:
            if stamp and sha256 and error.reason not in _TRANSIENT:
                self._earlier.put(file, stamp, [error.reason.value, str(error)])
            return self.leave_out(file, error.reason.value, str(error), sha256)
        finally:
            part.unlink(missing_ok=True)

    def _remove_parts(self) -> None:
        """Remove what a killed run left unfinished."""
        for part in list(self.out.glob(f".*{_PART}")):
            part.unlink(missing_ok=True)


def _bound_to(options: Options, reading: Reading, out: Path) -> str:
    """Return a hash of everything that decides what becomes of a file: options, limits, output folder, `reading_versions`."""
    keep = sorted(one.name for one in options.keep)
    rectangles = list(map(astuple, options.rectangles))
    digest = hashlib.sha256(repr((keep, rectangles, options.clean_pixels, os.fspath(out), reading)).encode())
    digest.update(repr(reading_versions()).encode())
    return digest.hexdigest()


class _EarlierRuns:
    """What became of each file in runs with the same `bound_to`, so that a second run does not read unchanged files again.

    It identifies files by keyed hashes only, so it names nobody. Each outcome is written before the next file is done. Without
    it, everything is read again.

    Parameters
    ----------
    path
        The SQLite file; a damaged one is replaced by an empty one.
    secret
        The key of the hashes.
    bound_to
        A hash of everything else that decides what becomes of a file.

    Raises
    ------
    InputError
        By every method, if the file cannot be used.
    """

    def __init__(self, path: Path, secret: Secret, bound_to: str) -> None:
        self._secret, self._bound_to, self._name = secret, bound_to, path.name
        with self._as_input_error():
            self._results = ResultCache(path, "deidentify", seconds=0)
            self._results.begin()
            keys = self._results.keys()
            self._noted = dict(zip(keys, self._results.get(keys), strict=True))

    def get(self, file: StudyFile, stamp: FileStamp) -> Sequence[Any] | None:
        """Return what was noted of a file, if its stamp is still the same."""
        digest = self._digest(file)
        if self._results.stamp(digest) != _text(stamp):
            return None
        return list(json.loads(self._noted[digest]))

    def put(self, file: StudyFile, stamp: FileStamp, noted: Sequence[Any]) -> None:
        """Note what became of a file; `stamp` is the one that it had before it was read."""
        digest = self._digest(file)
        self._noted[digest] = json.dumps(noted)
        with self._as_input_error():
            self._results.put(digest, _text(stamp), self._noted[digest])

    def close(self) -> None:
        """Close the file."""
        with self._as_input_error():
            self._results.close()

    def _digest(self, file: StudyFile) -> str:
        return self._secret.file_key(f"{self._bound_to}\0{os.path.abspath(file.path)}\0{file.source}")  # noqa: PTH100

    @contextmanager
    def _as_input_error(self) -> Iterator[None]:
        try:
            yield
        except LedgerError as error:
            told = {
                "locked": "Another octray de-identifies with this key. Wait until it has finished.",
                "full": f"{self._name} cannot be written: the disk is full or failing. Free some space and "
                "run the same command to continue.",
            }
            raise InputError(told.get(error.problem, f"{self._name} cannot be used. Delete it, and run it again.")) from None


def _text(stamp: FileStamp) -> str:
    return " ".join(map(str, stamp))


def _limits(file_bytes: int, files: Iterable[StudyFile], clean_pixels: bool) -> WorkerLimits:
    """Return limits with the time and memory that the largest file needs, and with time to find text."""
    largest = min(max(map(_size, files), default=0), file_bytes)
    limits = worker_limits()
    return replace(
        limits,
        frame_seconds=(_TEXT_SECONDS if clean_pixels else 0.0) + _DECODINGS * limits.frame_seconds + largest // _BYTES_A_SECOND,
        worker_bytes=max(limits.worker_bytes, _WORKER_BYTES + _COPIES * largest),
    )


def _size(file: StudyFile) -> int:
    try:
        return file.stat()[0]
    except UnreadableError:
        return 0


def _original(file: StudyFile, sha256: str) -> dict[str, object]:
    return {"path": str(file.path.resolve()), "source": file.source, "sha256": sha256}


def _entry(new: Deidentified) -> dict[str, object]:
    study, series, instance = new.uids
    return {
        "name": new.name,
        "patient_id": new.patient_id,
        "pseudonym": new.pseudonym,
        "study_instance_uid": study,
        "series_instance_uid": series,
        "sop_instance_uid": instance,
        "offset_days": new.offset_days,
        "allowed": list(new.allowed),
    }
