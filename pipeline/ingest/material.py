"""What an ingest reads and what is known of it before: the files as they were found, or de-identified ones in their place."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from pipeline.deidentify.deidentifier import Deidentifier, RefusedFile, WrittenFile
from pipeline.errors import InputError
from pipeline.frames import Quarantined
from pipeline.imaging.sources import StudyFile
from pipeline.ingest.labels import FileFacts, FileId, examples
from pipeline.ingest.reading import ReadFile
from pipeline.ingest.verdict import NO_LABEL, NOT_NAMED
from pipeline.progress import Progress


@dataclass(frozen=True, slots=True)
class Material:
    """Files, and what is known of them before any is read.

    Parameters
    ----------
    files
        Every file that has to be accounted for.
    wanted
        Those that are read.
    facts
        What the table of labels or the names of the folders say of them.
    left_out
        Files that are accounted for already.
    origins
        Path below its source under which a file was found, where it now has another.
    nameless
        Files in which the patient was made up, since the original names none.
    pseudonym
        What stands for a patient that the table of labels or a path names.
    unlabelled
        A sentence that says why files that are not wanted have no label.
    """

    files: Mapping[FileId, StudyFile]
    wanted: Mapping[FileId, StudyFile]
    facts: Mapping[FileId, FileFacts]
    left_out: tuple[Quarantined, ...] = ()
    origins: Mapping[FileId, str] = field(default_factory=dict)
    nameless: frozenset[FileId] = frozenset()
    pseudonym: Callable[[str], str] = str
    unlabelled: str = NOT_NAMED

    def of(self, file_id: FileId) -> FileFacts:
        """Return what is known of a file."""
        return self.facts.get(file_id, FileFacts(frozenset()))

    def origin(self, file_id: FileId) -> str:
        """Return the path below its source under which a file was found."""
        return self.origins.get(file_id, file_id[1])

    def patient(self, file_id: FileId, read: ReadFile) -> str:
        """Return the keyed hash of the patient whom a file names; empty where it names none."""
        return "" if file_id in self.nameless else read.patient


def deidentified(found: Material, deidentifier: Deidentifier, progress: Progress) -> Material:
    """De-identify files, and carry over to the new ones what is known of the originals; nothing of their names is left.

    Parameters
    ----------
    found
        The originals.
    deidentifier
        Writes the new files.
    progress
        Shows how far it is.

    Returns
    -------
    Material
        The new files, all of source 0, the folder for them. A file that was refused or has no label is left out under its
        alias.

    Raises
    ------
    InputError
        Where copies of one file have different labels, patients or splits, or the key is none.
    """
    outcomes = dict(zip(found.wanted, deidentifier.deidentify(list(found.wanted.values()), progress), strict=True))
    unlabelled = [
        deidentifier.leave_out(file, NO_LABEL, found.unlabelled) for one, file in found.files.items() if one not in found.wanted
    ]
    made = {(0, one.name): one for one in outcomes.values() if isinstance(one, WrittenFile)}
    files = {file_id: StudyFile(deidentifier.out / file_id[1], file_id[1]) for file_id in sorted(made)}
    refused = [one for one in outcomes.values() if isinstance(one, RefusedFile)]
    return Material(
        files,
        files,
        _carried(found, outcomes, deidentifier.secret.pseudonym),
        tuple(Quarantined(one.alias, one.reason, one.message) for one in (*refused, *unlabelled)),
        {(0, one.name): file_id[1] for file_id, one in outcomes.items() if isinstance(one, WrittenFile)},
        frozenset(file_id for file_id, one in made.items() if not one.has_patient),
        deidentifier.secret.pseudonym,
    )


def _carried(
    found: Material, outcomes: Mapping[FileId, WrittenFile | RefusedFile], pseudonym: Callable[[str], str]
) -> dict[FileId, FileFacts]:
    facts: dict[FileId, FileFacts] = {}
    torn = set()
    for file_id, new_id in _new_ids(outcomes):
        known = found.of(file_id)
        carried = replace(known, patient_key=pseudonym(known.patient_key) if known.patient_key else None)
        if facts.setdefault(new_id, carried) != carried:
            torn.add(new_id[1])
    if torn:
        raise InputError(
            f"{len(torn)} files are there several times, each time with another label, patient or split: {examples(torn)}. "
            "These are their new names; the crosswalk says which files they are. Keep one of each."
        )
    return facts


def _new_ids(outcomes: Mapping[FileId, WrittenFile | RefusedFile]) -> Iterator[tuple[FileId, FileId]]:
    for file_id, one in outcomes.items():
        if isinstance(one, WrittenFile):
            yield file_id, (0, one.name)
