"""De-identifies folders of files: finds them, writes each under a new name, and says what was refused and why."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pipeline.errors import ConfigError, InputError, UnreadableError
from pipeline.imaging import ocr
from pipeline.imaging.guard import silence_decoders
from pipeline.imaging.sources import StudyFile, discover, read_bytes
from pipeline.ingest.deidentify import crosswalk
from pipeline.ingest.deidentify.instance import Deidentified, deidentify_bytes
from pipeline.ingest.deidentify.options import Options, Refusal, RefusedError
from pipeline.ingest.deidentify.secret import Secret, make_or_read
from pipeline.progress import Progress
from pipeline.records import DEFAULT_READING, Reading

_PART = ".part"


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
    """

    source: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of some files.

    Parameters
    ----------
    names
        The new files below the output folder, with forward slashes, in the order of their originals.
    patients
        How many patients they are from.
    refused
        The originals that were not written.
    """

    names: tuple[str, ...]
    patients: int
    refused: tuple[Refused, ...]


def deidentify_tree(
    sources: Sequence[Path], out: Path, key: Path, options: Options, progress: Progress, reading: Reading = DEFAULT_READING
) -> Summary:
    """De-identify every file below some folders into one output folder.

    Parameters
    ----------
    sources
        Files and folders.
    out
        Where the new files go, as `PSEUDONYM/STUDY/SERIES/INSTANCE.dcm`; it holds nothing of the original names.
    key
        The key file, made where there is none. The crosswalk lies beside it.
    options
        What is kept and what is blanked.
    progress
        Shows how far it is.
    reading
        Its limits say what one file may demand.

    Raises
    ------
    InputError
        Where a source is missing or holds no file, the output folder or the key lies where it must not, or the key is none.
    ConfigError
        Where text is to be found and the extra for it is not installed.
    """
    _check(sources, out, key, options)
    files = list(chain.from_iterable([discover(source) for source in sources]))
    if not files:
        raise InputError("There is no file in what was given.")
    secret = make_or_read(key)
    path = crosswalk.crosswalk_path(key)
    known = list(crosswalk.read(path, secret))
    run = _Run(out, secret, options, reading, {entry["name"]: entry["sha256"] for entry in known if "name" in entry})
    silence_decoders()
    _remove_parts(out)
    with crosswalk.Writer(path, secret, known) as writer:
        results = [run.one(file, writer) for file in progress(files, "de-identifying", len(files))]
    names = tuple(result for result in results if isinstance(result, str))
    refused = tuple(result for result in results if isinstance(result, Refused))
    return Summary(names, len({name.partition("/")[0] for name in names}), refused)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run; `originals` says for each new name the hash of the file that it was made of."""

    out: Path
    secret: Secret
    options: Options
    reading: Reading
    originals: dict[str, str]

    def one(self, file: StudyFile, writer: crosswalk.Writer) -> str | Refused:
        """De-identify one file; return its new name, or why it was refused."""
        sha256 = ""
        try:
            content = read_bytes(file, self.reading)
            sha256 = hashlib.sha256(content).hexdigest()
            made = deidentify_bytes(content, self.secret, self.options, self.reading.limits)
            self._check_name(made, sha256)
        except (UnreadableError, RefusedError) as error:
            code = error.reason.value if isinstance(error, UnreadableError) else error.refusal.value
            writer.add(_place(file, sha256) | {"reason": code, "message": str(error)})
            return Refused(file.source, code, str(error))
        writer.add({**_place(file, sha256), **_entry(made)})
        _replace(self.out / made.name, made.content)
        self.originals[made.name] = sha256
        return made.name

    def _check_name(self, made: Deidentified, sha256: str) -> None:
        """Find out whether another original has this new name; two that differ must not replace each other."""
        if self.originals.get(made.name, sha256) != sha256:
            raise RefusedError(
                Refusal.SAME_UID,
                "Another file with the same SOP Instance UID and other content was de-identified with this key. Leave one out.",
            )


def _check(sources: Sequence[Path], out: Path, key: Path, options: Options) -> None:
    output = out.resolve()
    if any(output.is_relative_to(source.resolve()) for source in sources):
        raise InputError(f"The output folder {out.name} lies inside the sources. Name another.")
    if key.resolve().is_relative_to(output):
        raise InputError(
            f"The key {key.name} lies inside the output folder, with which it would be handed on. Name another place."
        )
    if options.clean_pixels and not ocr.is_installed():
        raise ConfigError(["Text recognition is not installed: pip install 'octray[ocr]'."])


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
