"""Builds an index: reads every study, joins what is known of labels and patients, and divides the patients into splits."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.config import Config
from pipeline.deidentify.deidentifier import Deidentifier, Plan, RefusedFile, WrittenFile
from pipeline.errors import InputError
from pipeline.frames import ImageRecord, LabelLevel, Quarantined, Split
from pipeline.imaging.files.names import as_text
from pipeline.imaging.files.study_file import StudyFile
from pipeline.imaging.quality.gate import check_tools
from pipeline.imaging.sources import discover_all
from pipeline.ingest.file_reader import NO_LABEL, FileReader, ReadFile, ReadFrame, journal_key, usable
from pipeline.ingest.index import FILES, Index, difference, write_index
from pipeline.ingest.journal import JOURNAL, Journal
from pipeline.ingest.labels import (
    Empty,
    FileFacts,
    FileId,
    JoinKey,
    LabelTable,
    SeveralRows,
    Uncertain,
    parse_columns,
    read_labels,
    with_one_spelling,
)
from pipeline.ingest.matching import FrameId, join_frames, match_files
from pipeline.ingest.path_names import folder_labels, names_from_paths
from pipeline.ingest.patients import hash_patient, pseudonyms
from pipeline.ingest.remarks import label_remarks, patient_remarks
from pipeline.ingest.spelling import examples, same_text
from pipeline.ingest.splits import (
    DEFAULT_PERCENT,
    Percent,
    assign_splits,
    check_given_splits,
    check_labels,
    divide_validation,
    few_patients,
)
from pipeline.progress import Progress, silent
from pipeline.settings import DEFAULT_READING, LENIENT, Reading

_NOT_IN_TABLE = "The table of labels does not name this file. Add a row for it to use it."
_NO_FOLDER = "No folder of this file is the label by --label-from. Move it into one, or name another folder, to use it."

_NOT_MEANT = (
    "No row of the table of labels has the study, series, instance, eye or patient of this. If the file does not state them, "
    "name the file in the table."
)
_ALL_UNKNOWN = "Nothing is known of the labels of this file: they are empty or uncertain in the table. Add one to use the file."
_LEFT_OUT = "All labels of this are left out by --leave-out."
_NOTHING = FileFacts(frozenset())
_LABELS_SHOWN = 30

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
        As what a file was found, if it now is another.
    nameless
        Files in which the patient was made up, since the original names none.
    pseudonym, uid
        Return what stands for a patient, and for a UID, that the table of labels or a path names.
    """

    files: Mapping[FileId, StudyFile]
    to_read: Mapping[FileId, StudyFile]
    facts: Mapping[FileId, FileFacts]
    quarantine: tuple[Quarantined, ...] = ()
    origins: Mapping[FileId, FileId] = field(default_factory=dict)
    nameless: frozenset[FileId] = frozenset()
    pseudonym: Callable[[str], str] = str
    uid: Callable[[str], str] = str

    def origin(self, file_id: FileId) -> FileId:
        return self.origins.get(file_id, file_id)


def build_index(
    sources: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    labels: Path | str | Sequence[Path | str] | None = None,
    label_from: str = "",
    columns: Mapping[str, str] | Sequence[str] = (),
    uncertain: Uncertain | str = Uncertain.IGNORE,
    empty: Empty | str | None = None,
    several_rows: SeveralRows | str = SeveralRows.REFUSE,
    leave_out: Collection[str] = (),
    merge_spellings: bool = False,
    patient_from: str = "",
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
        Table of labels, or several that are joined, see `pipeline.ingest.labels.read_labels`.
    label_from
        Which folder's name is the label of a file, see `pipeline.ingest.path_names.folder_labels`; empty if none is.
    columns
        Which column of the table says what: `{"file": "image", "label": "finding"}`, or texts: `["file=image,label=finding"]`.
    uncertain
        What -1 in a column that is a label means: `ignore` (nothing is known), `zeros` (absent) or `ones` (present).
    empty
        What an empty cell means: `unknown` or `absent`; None as in `read_labels`.
    several_rows
        What holds if rows for the same files contradict each other: `refuse`, `unknown`, `any` or `majority`.
    leave_out
        Labels that do not count; frames that have no other are not used.
    merge_spellings
        Whether labels that differ only in case, blanks or invisible characters are one, in the spelling that most frames have.
    patient_from
        Which folder's name is the patient (`folder:N`), or a regular expression with one group for the path below the source.
        If empty: the table's column of patient keys, else Patient ID (0010,0020) under a pseudonym, else the study.
    percent
        Share of the patients in train, tune, calibration, test and, if there is a fifth number, promotion; a column `split`
        of the table comes before it.
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
    tables = [Path(one) for one in ([labels] if isinstance(labels, Path | str) else labels or ())]
    columns = columns if isinstance(columns, Mapping) else parse_columns(columns)
    uncertain, empty, several_rows = Uncertain(uncertain), Empty(empty) if empty else None, SeveralRows(several_rows)
    if columns and not tables:
        raise InputError("--columns says what the columns of a table of labels mean, but --labels gives none.")
    reading, gate = DEFAULT_READING, LENIENT
    if config:
        reading, gate = Reading(config.limits, None, config.preprocessing.voi_explanation), config.gate()
        check_tools(gate)
    if deidentify:
        deidentify.check(paths)
        if out and (key := deidentify.key).resolve().is_relative_to(out.resolve()):
            raise InputError(f"The key {key.name} lies inside the index and would be handed on with it. Name another place.")
    table = None
    if tables:
        table = read_labels(tables, columns, uncertain=uncertain, empty=empty, with_patients=not patient_from)
        if merge_spellings and not table.states_absence:  # columns cannot differ in case or blanks only
            rows, spellings = with_one_spelling(table.rows)
            found_labels = {label for _, facts in rows for label in facts.labels}
            table = replace(table, rows=tuple(rows), labels=tuple(sorted(found_labels)), notes=(*table.notes, *spellings))
    roots = tuple((source.parent if source.is_file() else source).resolve() for source in paths)
    own_files = [out / name for name in (*FILES, JOURNAL, f"{JOURNAL}-wal")] if out else []  # the last is left by a kill
    own_files += [*(deidentify.own_files if deidentify else ()), *tables]
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
        unlabelled = _NOT_IN_TABLE if table else _NO_FOLDER
        facts, notes = _facts(table, label_from, several_rows, paths, roots, found)
        if merge_spellings and not table:
            merged, spellings = with_one_spelling(list(facts.items()))
            facts, notes = dict(merged), [*notes, *spellings]
        by_path = names_from_paths(patient_from, "--patient-from", paths, found) if patient_from else None
        # Without a table, a file that cannot be read is read nevertheless, to say why.
        by_file = bool(table and not table.joined_by)
        to_read = {
            one: file for one, file in found.items() if one in facts or not (by_file or (label_from and not file.refusal))
        }
        files = _FileSet(found, to_read, facts)
        if deidentifier:
            files = _deidentified(files, deidentifier, unlabelled, progress)
        outcomes = reader.read(files.to_read, progress)
        reader.forget_others(files.files)
        salt = journal.salt
    used, quarantined = usable(files.files, outcomes, unlabelled)
    patients = _patients(outcomes, used, files, by_path, patient_from)

    def key_of(key: JoinKey) -> JoinKey:
        """Return a row's key as files have it: identifiers replaced if they were de-identified, a hash for Patient ID."""
        study, series, instance = (files.uid(uid) if uid else "" for uid in key[:3])
        patient = key.patient_key
        if patient and not patient_from:
            patient = hash_patient(files.pseudonym(patient), salt)
        return JoinKey(study, series, instance, key.laterality, patient)

    known, more = _known(table, several_rows, files, used, outcomes, patients, key_of)
    notes += more
    left_out = frozenset(map(same_text, leave_out))
    kept = _without(known, left_out)
    every = frozenset(table.labels) - left_out if table and table.states_absence else frozenset()
    labelled: Used = used
    if table or label_from:
        labelled, without = _labelled(used, kept, known, every)
        quarantined += without
    quarantine = (*files.quarantine, *quarantined)
    if not labelled:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(row.reason for row in quarantine).items()))
        names = ", ".join(source.name for source in paths)
        raise InputError(f"There is no readable study in {names}: of {len(found)} files none can be used ({reasons}).")
    if table:
        _check_not_lost(facts, labelled, files, left_out)
    numbered = pseudonyms(patients[file_id] for file_id in labelled)

    def patient_of(file_id: FileId, facts: FileFacts) -> str:
        if patient_from:
            return files.pseudonym(patients[file_id])
        return facts.patient_key or numbered.get(patients[file_id], "")

    names_of_labels = _labels(kept, labelled, every)
    records = _records(outcomes, labelled, files, kept, patient_of, names_of_labels)
    index = Index(records, quarantine, homes, names_of_labels, seed=seed)
    warnings = [*label_remarks(index, bool(label_from)), *patient_remarks(index, patient_from)]
    try:
        are_given = table is not None and any(one.split for one in kept.values())
        index = _divided(index, are_given, bool(table and table.has_validation), percent)
    except InputError as error:
        raise InputError(" ".join((str(error), *warnings))) from None
    notes += warnings
    if rare := few_patients(
        [record.split for record in index.records], index.strata(), [record.patient_key for record in index.records]
    ):
        notes.append(rare)
    if out is None:
        return index, notes
    if replaced := difference(out, index):
        notes.append(replaced)
    return write_index(out, index), notes


def _facts(
    table: LabelTable | None,
    label_from: str,
    several_rows: SeveralRows,
    sources: Sequence[Path],
    roots: Sequence[Path],
    files: Mapping[FileId, StudyFile],
) -> tuple[Mapping[FileId, FileFacts], list[str]]:
    """Return what is known of the files before any is read, and how the names in the table were understood."""
    if table:
        return ({}, list(table.notes)) if table.joined_by else _matched(table, roots, files, several_rows)
    readable = [file_id for file_id, file in files.items() if not file.refusal]
    return folder_labels(label_from, sources, readable) if label_from else {}, []


def _matched(
    table: LabelTable, roots: Sequence[Path], files: Mapping[FileId, StudyFile], several_rows: SeveralRows
) -> tuple[Mapping[FileId, FileFacts], list[str]]:
    facts, notes = match_files(table, roots, files, several_rows)
    found = {label for known in facts.values() for label in known.labels | known.unknown}
    if gone := sorted({*table.labels} - found) if not table.states_absence else []:
        notes.append(f"No file is left with the label {examples(gone)}.")
    return facts, [*table.notes, *notes]


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
    secret = deidentifier.secret
    facts: dict[FileId, FileFacts] = {}
    contradicting = set()
    for file_id, one in written.items():
        if file_id not in found.facts:
            continue
        known = found.facts[file_id]
        carried = replace(known, patient_key=secret.pseudonym(known.patient_key) if known.patient_key else None)
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
        origins={(0, one.name): file_id for file_id, one in written.items()},
        nameless=frozenset((0, one.name) for one in written.values() if not one.has_patient),
        pseudonym=secret.pseudonym,
        uid=secret.uid,
    )


def _patients(
    outcomes: Mapping[FileId, ReadFile], used: Used, files: _FileSet, by_path: Mapping[FileId, str] | None, patient_from: str
) -> dict[FileId, str]:
    """Return what tells patients apart for each file: the name in its path, or else the hash of Patient ID; empty if unknown.

    Raises
    ------
    InputError
        If patients are named by paths, and not by all.
    """
    if by_path is None:
        return {file_id: "" if file_id in files.nameless else outcomes[file_id].patient for file_id in used}
    if without := [files.origin(file_id)[1] for file_id in used if files.origin(file_id) not in by_path]:
        raise InputError(
            f"--patient-from {patient_from} finds no patient in the path of {len(without)} files: {examples(without)}. It is "
            "searched for in the path below the source folder."
        )
    return {file_id: by_path[files.origin(file_id)] for file_id in used}


def _known(
    table: LabelTable | None,
    several_rows: SeveralRows,
    files: _FileSet,
    used: Used,
    outcomes: Mapping[FileId, ReadFile],
    patients: Mapping[FileId, str],
    key_of: Callable[[JoinKey], JoinKey],
) -> tuple[dict[FrameId, FileFacts], list[str]]:
    """Return what is known of each frame that can be used; a label for a file of several frames is one for an instance."""
    if table and table.joined_by:
        frames = {
            (file_id, frame.key): JoinKey(
                frame.key.study_instance_uid,
                frame.key.series_instance_uid,
                frame.key.sop_instance_uid,
                frame.laterality,
                patients[file_id],
            )
            for file_id, own in used.items()
            for frame in own
        }
        joined, notes = join_frames(table, frames, several_rows, key_of)
        renamed = {
            facts: replace(facts, patient_key=files.pseudonym(facts.patient_key)) if facts.patient_key else facts
            for facts in set(joined.values())
        }
        return {frame_id: renamed[facts] for frame_id, facts in joined.items()}, notes
    known: dict[FrameId, FileFacts] = {}
    for file_id, own in used.items():
        if file_id in files.facts:
            facts = files.facts[file_id]
            if facts.level is LabelLevel.FRAME and len(outcomes[file_id].frames) > 1:
                facts = replace(facts, level=LabelLevel.INSTANCE)
            known |= {(file_id, frame.key): facts for frame in own}
    return known, []


def _without(known: Mapping[FrameId, FileFacts], left_out: frozenset[str]) -> Mapping[FrameId, FileFacts]:
    """Return what is known of frames without some labels; a frame that has no other label is left out.

    Raises
    ------
    InputError
        If nothing is known of one of these labels.
    """
    if not left_out:
        return known
    labels = {label for facts in set(known.values()) for label in facts.labels | facts.unknown}
    if other := sorted(left_out - labels):
        raise InputError(f"--leave-out names {examples(other)}, but the labels are {examples(labels, _LABELS_SHOWN)}.")
    less = {
        facts: replace(facts, labels=facts.labels - left_out, unknown=facts.unknown - left_out) for facts in set(known.values())
    }
    return {frame_id: less[facts] for frame_id, facts in known.items() if less[facts].labels or not facts.labels & left_out}


def _labelled(
    used: Used, known: Mapping[FrameId, FileFacts], with_left_out: Mapping[FrameId, FileFacts], every: frozenset[str]
) -> tuple[dict[FileId, Sequence[ReadFrame]], list[Quarantined]]:
    """Divide what is used into frames of which a label is known, and rows for the quarantine.

    Parameters
    ----------
    known, with_left_out
        What is known of the frames; and what it was before labels were left out.
    every
        All labels, if each row of the table says of all of them whether they are known.
    """
    labelled: dict[FileId, Sequence[ReadFrame]] = {}
    quarantine = []
    for (root, source), frames in used.items():
        why = []
        for frame in frames:
            frame_id = (root, source), frame.key
            if frame_id in known:
                why.append(_ALL_UNKNOWN if every and known[frame_id].unknown == every else "")
            else:
                why.append(_LEFT_OUT if frame_id in with_left_out else _NOT_MEANT)
        if good := tuple(frame for frame, message in zip(frames, why, strict=True) if not message):
            labelled[root, source] = good
        rows = [
            Quarantined(source, NO_LABEL, message, frame.key.frame_number, root)
            for frame, message in zip(frames, why, strict=True)
            if message
        ]
        quarantine += rows if good else [replace(rows[0], frame_number=None)]
    return labelled, quarantine


def _check_not_lost(facts: Mapping[FileId, FileFacts], used: Used, files: _FileSet, left_out: frozenset[str]) -> None:
    """Refuse an index in which a label of the table is lost with the files that could not be read."""
    present = {label for file_id in used if file_id in files.facts for label in files.facts[file_id].labels}
    if lost := sorted({label for known in facts.values() for label in known.labels} - present - left_out):
        raise InputError(
            f"None of the files with the label {', '.join(lost)} can be read. Repair them, or leave the label out."
        )


def _labels(known: Mapping[FrameId, FileFacts], used: Used, every: frozenset[str]) -> tuple[str, ...]:
    """Return the labels of which something is known of what is used, `every` those of which each row says something."""
    facts = {
        known[frame_id] for file_id, frames in used.items() for frame in frames if (frame_id := (file_id, frame.key)) in known
    }
    never = frozenset.intersection(*(one.unknown for one in facts)) if facts else frozenset()
    return tuple(sorted(every.union(*(one.labels | one.unknown for one in facts)) - never))


def _records(
    outcomes: Mapping[FileId, ReadFile],
    used: Used,
    files: _FileSet,
    known: Mapping[FrameId, FileFacts],
    patient_of: Callable[[FileId, FileFacts], str],
    labels: Sequence[str],
) -> tuple[ImageRecord, ...]:
    truths: dict[tuple[frozenset[str], frozenset[str]], Mapping[str, bool | None]] = {}
    records = []
    for file_id, frame in in_order(used):
        facts = known.get((file_id, frame.key), _NOTHING)
        said = facts.labels, facts.unknown
        if said not in truths:
            truths[said] = {label: None if label in facts.unknown else label in facts.labels for label in labels}
        records.append(
            ImageRecord(
                key=frame.key,
                root=file_id[0],
                source=file_id[1],
                patient_key=patient_of(file_id, facts) or frame.key.study_instance_uid,
                pixel_sha256=frame.pixel_sha256,
                labels=truths[said],
                split=facts.split or Split.TRAIN,
                rows=frame.rows,
                columns=frame.columns,
                modality=frame.modality,
                view_position=frame.view_position,
                laterality=frame.laterality,
                file_sha256=outcomes[file_id].file_sha256,
                flags=frame.flags,
                label_level=facts.level if labels else None,
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


def _divided(index: Index, are_given: bool, has_validation: bool, percent: Percent) -> Index:
    """Return an index in which each record has its split: the one that the table of labels gave, or a new one.

    If it gave a validation split, this is divided between tune and calibration.
    """
    records = index.records
    strata = index.strata()
    patients, pixels = [record.patient_key for record in records], [record.pixel_sha256 for record in records]
    studies = [record.key.study_instance_uid for record in records]
    if are_given:
        given = [record.split for record in records]
        check_given_splits(given, patients, pixels, studies)
        splits = divide_validation(given, patients, strata, pixels, studies, index.seed) if has_validation else given
        check_labels(splits, strata, patients, [split for split in Split if split in splits], are_given=True)
    else:
        splits = assign_splits(patients, strata, pixels, studies, percent, index.seed)
        index = replace(index, percent=percent)
    return replace(index, records=tuple(replace(record, split=split) for record, split in zip(records, splits, strict=True)))
