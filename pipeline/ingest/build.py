"""Builds an index: reads every study, joins what is known of labels and patients, and divides the patients into splits."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.config import Config
from pipeline.deidentify.deidentifier import Deidentifier, Plan, RefusedFile, WrittenFile
from pipeline.errors import InputError
from pipeline.frames import ImageRecord, Quarantined, Split
from pipeline.imaging.files.names import as_text
from pipeline.imaging.files.study_file import StudyFile
from pipeline.imaging.quality.gate import check_tools
from pipeline.imaging.sources import discover_all
from pipeline.ingest.file_reader import NO_LABEL, FileReader, ReadFile, ReadFrame, journal_key, usable
from pipeline.ingest.index import FILES, Index, difference, write_index
from pipeline.ingest.journal import JOURNAL, Journal
from pipeline.ingest.labels import (
    FileFacts,
    FileId,
    examples,
    folder_labels,
    label_warning,
    match_files,
    patient_key_warning,
    read_labels,
)
from pipeline.ingest.patients import keys_from_paths, parse_patient_pattern, pseudonyms
from pipeline.ingest.splits import DEFAULT_PERCENT, Percent, assign_splits, check_given_splits, check_labels
from pipeline.progress import Progress, silent
from pipeline.settings import DEFAULT_READING, LENIENT, Reading

_NOT_IN_TABLE = "The table of labels does not name this file. Add a row for it to use it."
_NO_FOLDER = "No folder of this file is the label by --label-from. Move it into one, or name another folder, to use it."

Used = Mapping[FileId, Sequence[ReadFrame]]
"""The files that are used, in order, with their frames."""


@dataclass(frozen=True, slots=True)
class _FileSet:
    """The files of an ingest as they were found, or de-identified ones in their place, before any is read.

    Parameters
    ----------
    files
        Every file that has to be accounted for.
    to_read
        Those that are read: without a label, files are not, if labels were given.
    facts
        What the table of labels or the names of the folders say of them.
    quarantine
        Files that are accounted for already.
    origins
        Path below its source under which a file was found, if it now has another.
    nameless
        Files in which the patient was made up, since the original names none.
    pseudonym
        Returns what stands for a patient that the table of labels or a path names.
    """

    files: Mapping[FileId, StudyFile]
    to_read: Mapping[FileId, StudyFile]
    facts: Mapping[FileId, FileFacts]
    quarantine: tuple[Quarantined, ...] = ()
    origins: Mapping[FileId, str] = field(default_factory=dict)
    nameless: frozenset[FileId] = frozenset()
    pseudonym: Callable[[str], str] = str

    def facts_of(self, file_id: FileId) -> FileFacts:
        return self.facts.get(file_id, FileFacts(frozenset()))

    def origin(self, file_id: FileId) -> str:
        return self.origins.get(file_id, file_id[1])


def build_index(
    sources: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    label_from: str = "",
    patient_key: str | None = None,
    percent: Percent = DEFAULT_PERCENT,
    seed: int = 0,
    deidentify: Plan | None = None,
    config: Config | None = None,
    workers: int = 0,
    progress: Progress = silent,
    skipped: Counter[str] | None = None,
) -> tuple[Index, list[str]]:
    """Read every study below the sources, divide the patients into splits, and write the index.

    Parameters
    ----------
    sources
        Files or folders.
    out
        Folder that the index is written to. What is read is written to its journal at once, so that a second run reads only
        what is new. None reads everything and writes nothing.
    labels
        Table of labels, see `pipeline.ingest.labels.read_labels`.
    label_from
        Which folder's name is the label of a file, see `pipeline.ingest.labels.folder_labels`; empty if none is.
    patient_key
        A column of the table, or a regular expression with one group for the path below the source. If None: the table's
        column `patient_key`, else Patient ID (0010,0020) under a pseudonym, else the study.
    percent
        Share of the patients in train, tune, calibration and test; a column `split` of the table comes before it.
    seed
        Decides which patients go into which split.
    deidentify
        How the studies are de-identified first; None reads them as they are.
    config
        Its sections limits, quality, data and preprocessing say which files and frames are taken, and which window is used. If
        None, no frame is refused for its quality.
    workers
        How many files are read at the same time, each in a process of its own; 0 takes one for each core.
    progress
        Shows how many files are done.
    skipped
        As in `discover`.

    Returns
    -------
    tuple
        The index, and notes for the user. A file that cannot be read is in its quarantine, and so is, unread, one without a
        label if labels were given.

    Raises
    ------
    InputError
        If nothing is readable, labels, patients or splits cannot be used, or the index cannot be written.
    ConfigError
        If a check of the configuration needs what is not installed.
    """
    paths, out = [Path(source) for source in sources], Path(out) if out else None
    labels = Path(labels) if labels else None
    reading, gate = DEFAULT_READING, LENIENT
    if config:
        reading, gate = Reading(config.limits, None, config.preprocessing.voi_explanation), config.gate()
        check_tools(gate)
    if deidentify:
        deidentify.check(paths)
        if out and (key := deidentify.key).resolve().is_relative_to(out.resolve()):
            raise InputError(f"The key {key.name} lies inside the index and would be handed on with it. Name another place.")
    roots = tuple((source.parent if source.is_file() else source).resolve() for source in paths)
    own_files = [out / name for name in (*FILES, JOURNAL, f"{JOURNAL}-wal")] if out else []  # the last is left by a kill
    own_files += [*(deidentify.own_files if deidentify else ()), *([labels] if labels else ())]
    with (
        Journal(out / JOURNAL if out else None, journal_key(reading, gate)) as journal,
        Deidentifier(deidentify, reading, workers) if deidentify else nullcontext() as deidentifier,
    ):
        homes = (deidentifier.out,) if deidentifier else roots
        reader = FileReader([as_text(str(home)) for home in homes], journal, reading, gate, workers)

        def is_known(root: int, file: StudyFile) -> bool:
            return deidentifier.knows(file) if deidentifier else reader.knows((root, file.source), file)

        found = {(root, file.source): file for root, file in discover_all(paths, own_files, is_known, skipped)}
        if not found:
            raise InputError(f"There is no file in {', '.join(path.name for path in paths)}. Give a folder of studies.")
        facts, columns, note = _facts(labels, label_from, patient_key, paths, roots, found)
        pattern = parse_patient_pattern(patient_key, columns)
        # Without a table, a file that cannot be read is read nevertheless, to say why.
        to_read = {
            one: file for one, file in found.items() if one in facts or not (labels or (label_from and not file.refusal))
        }
        unlabelled = _NOT_IN_TABLE if labels else _NO_FOLDER
        files = _FileSet(found, to_read, facts)
        if deidentifier:
            files = _deidentified(files, deidentifier, unlabelled, progress)
        outcomes = reader.read(files.to_read, progress)
        reader.forget_others(files.files)
    used, quarantined = usable(files.files, outcomes, unlabelled)
    quarantine = (*files.quarantine, *quarantined)
    if not used:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(row.reason for row in quarantine).items()))
        names = ", ".join(source.name for source in paths)
        raise InputError(f"There is no readable study in {names}: of {len(found)} files none can be used ({reasons}).")
    names_of_labels = _labels(facts if labels else {}, files, used)
    records = _records(outcomes, used, files, _patient_keys(outcomes, used, files, pattern), names_of_labels)
    patients = {label: {record.patient_key for record in records if record.labels[label]} for label in names_of_labels}
    named = {record.patient_key for record in records if record.patient_key != record.key.study_instance_uid}
    warnings = [one for one in (label_warning(names_of_labels, patients, bool(label_from)), patient_key_warning(named)) if one]
    try:
        divided, shares = _divided(records, files, percent, seed)
    except InputError as error:
        raise InputError(" ".join((str(error), *warnings))) from None
    index = Index(divided, quarantine, homes, names_of_labels, seed=seed, percent=shares)
    notes = [*([note] if note else ()), *warnings]
    if out is None:
        return index, notes
    if replaced := difference(out, index):
        notes.append(replaced)
    return write_index(out, index), notes


def _facts(
    labels: Path | None,
    label_from: str,
    patient_key: str | None,
    sources: Sequence[Path],
    roots: Sequence[Path],
    files: Mapping[FileId, StudyFile],
) -> tuple[Mapping[FileId, FileFacts], tuple[str, ...], str]:
    """Return what is known of the files, the columns of the table of labels, and how its names were understood."""
    if labels:
        table = read_labels(labels, patient_key)
        facts, note = match_files(table, roots, files)
        return facts, table.columns, note
    readable = [file_id for file_id, file in files.items() if not file.refusal]
    return folder_labels(label_from, sources, readable) if label_from else {}, (), ""


def _deidentified(found: _FileSet, deidentifier: Deidentifier, unlabelled: str, progress: Progress) -> _FileSet:
    """De-identify files, and carry over to the new ones what is known of the originals, but for their names.

    All new files are of source 0, the folder for them. A file that was refused or has no label is quarantined under its alias.

    Raises
    ------
    InputError
        If copies of one file have different labels, patients or splits, or the key cannot be used.
    """
    outcomes = dict(zip(found.to_read, deidentifier.deidentify(list(found.to_read.values()), progress), strict=True))
    refused = [one for one in outcomes.values() if isinstance(one, RefusedFile)]
    refused += [
        deidentifier.leave_out(file, NO_LABEL, unlabelled) for one, file in found.files.items() if one not in found.to_read
    ]
    written = {file_id: one for file_id, one in outcomes.items() if isinstance(one, WrittenFile)}
    pseudonym = deidentifier.secret.pseudonym
    facts: dict[FileId, FileFacts] = {}
    contradicting = set()
    for file_id, one in written.items():
        known = found.facts_of(file_id)
        carried = replace(known, patient_key=pseudonym(known.patient_key) if known.patient_key else None)
        if facts.setdefault((0, one.name), carried) != carried:
            contradicting.add(one.name)
    if contradicting:
        raise InputError(
            f"{len(contradicting)} files are there several times, each time with another label, patient or split: "
            f"{examples(contradicting)}. These are their new names; the crosswalk says which files they are. Keep one of each."
        )
    files = {(0, name): StudyFile(deidentifier.out / name, name) for name in sorted({one.name for one in written.values()})}
    return _FileSet(
        files,
        files,
        facts,
        quarantine=tuple(Quarantined(one.alias, one.reason, one.message) for one in refused),
        origins={(0, one.name): source for (_, source), one in written.items()},
        nameless=frozenset((0, one.name) for one in written.values() if not one.has_patient),
        pseudonym=pseudonym,
    )


def _labels(table: Mapping[FileId, FileFacts], files: _FileSet, used: Used) -> tuple[str, ...]:
    """Return the labels of what is used; a label of the table must not be lost with its files."""
    present = {label for file_id in used for label in files.facts_of(file_id).labels}
    if lost := sorted({label for known in table.values() for label in known.labels} - present):
        raise InputError(
            f"None of the files with the label {', '.join(lost)} can be read. Repair them, or leave the label out."
        )
    return tuple(sorted(present))


def _patient_keys(
    outcomes: Mapping[FileId, ReadFile], used: Used, files: _FileSet, pattern: re.Pattern[str] | None
) -> dict[FileId, str]:
    """Return the patient of each file; empty if only its study is known."""
    if pattern:
        paths = keys_from_paths(pattern, map(files.origin, used))
        return {file_id: files.pseudonym(paths[files.origin(file_id)]) for file_id in used}
    hashes = {file_id: "" if file_id in files.nameless else outcomes[file_id].patient for file_id in used}
    numbered = pseudonyms(hashes.values())
    return {file_id: files.facts_of(file_id).patient_key or numbered.get(hashes[file_id], "") for file_id in used}


def _records(
    outcomes: Mapping[FileId, ReadFile],
    used: Used,
    files: _FileSet,
    patient_keys: Mapping[FileId, str],
    labels: Sequence[str],
) -> tuple[ImageRecord, ...]:
    truths: dict[frozenset[str], Mapping[str, bool | None]] = {}
    records = []
    for file_id, frame in in_order(used):
        present = files.facts_of(file_id).labels
        records.append(
            ImageRecord(
                key=frame.key,
                root=file_id[0],
                source=file_id[1],
                patient_key=patient_keys[file_id] or frame.key.study_instance_uid,
                pixel_sha256=frame.pixel_sha256,
                labels=truths.setdefault(present, {label: label in present for label in labels}),
                split=Split.TRAIN,
                rows=frame.rows,
                columns=frame.columns,
                modality=frame.modality,
                view_position=frame.view_position,
                laterality=frame.laterality,
                file_sha256=outcomes[file_id].file_sha256,
                flags=frame.flags,
            )
        )
    return tuple(records)


def in_order(files: Used) -> list[tuple[FileId, ReadFrame]]:
    """Return all frames with their files; studies, and series within a study, come in the order of their first file.

    The instances of a series are ordered by the position of their first frame along the normal of its plane, if that is known
    of all of them; otherwise by Instance Number (0020,0013), if all have one; otherwise as their files. The frames of an
    instance stand together, by their number.
    """
    rows = [(number, file_id, frame) for number, (file_id, frames) in enumerate(files.items()) for frame in frames]
    studies: dict[str, int] = {}
    series: dict[tuple[str, str], int] = {}
    firsts: dict[tuple[str, str], dict[tuple[int, str], ReadFrame]] = {}
    for position, (number, _, frame) in enumerate(rows):
        key = frame.key
        one = key.study_instance_uid, key.series_instance_uid
        studies.setdefault(key.study_instance_uid, position)
        series.setdefault(one, position)
        instances = firsts.setdefault(one, {})
        first = instances.setdefault((number, key.sop_instance_uid), frame)
        if key.frame_number < first.key.frame_number:
            instances[number, key.sop_instance_uid] = frame
    ranks = {one: dict(zip(instances, _ranks(list(instances.values())), strict=True)) for one, instances in firsts.items()}

    def order(row: tuple[int, FileId, ReadFrame]) -> tuple[object, ...]:
        number, _, frame = row
        key = frame.key
        one = key.study_instance_uid, key.series_instance_uid
        rank = ranks[one][number, key.sop_instance_uid]
        return studies[key.study_instance_uid], series[one], rank, number, key.sop_instance_uid, key.frame_number

    return [(file_id, frame) for _, file_id, frame in sorted(rows, key=order)]


def _ranks(firsts: Sequence[ReadFrame]) -> list[float]:
    """Return what orders the instances of a series, given the first frame of each."""
    positions = [frame.slice_position_mm for frame in firsts]
    values = positions if None not in positions else [frame.instance_number for frame in firsts]
    return [value if value is not None and None not in values else 0.0 for value in values]


def _divided(
    records: Sequence[ImageRecord], files: _FileSet, percent: Percent, seed: int
) -> tuple[tuple[ImageRecord, ...], Percent | None]:
    """Give each record its split; return with them the shares of the splits, None if the table of labels gave them."""
    strata: list[Collection[str]] = [[label for label, present in record.labels.items() if present] for record in records]
    patients, pixels = [record.patient_key for record in records], [record.pixel_sha256 for record in records]
    studies = [record.key.study_instance_uid for record in records]
    given = [split for record in records if (split := files.facts_of((record.root, record.source)).split)]
    if given:
        check_given_splits(given, patients, pixels, studies)
        check_labels(given, strata, [split for split in Split if split in given])
    splits = given or assign_splits(patients, strata, pixels, studies, percent, seed)
    divided = tuple(replace(record, split=split) for record, split in zip(records, splits, strict=True))
    return divided, None if given else percent
