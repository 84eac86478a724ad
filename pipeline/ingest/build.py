"""Builds an index: reads every study, joins what is known of labels and patients, and divides the patients into splits."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.deidentify.deidentifier import Deidentifier, Plan
from pipeline.errors import InputError
from pipeline.frames import ImageRecord, Quarantined, Split
from pipeline.imaging.files.names import as_text
from pipeline.imaging.files.study_file import StudyFile
from pipeline.ingest.index import FILES, Index
from pipeline.ingest.journal import JOURNAL, Journal, binding
from pipeline.ingest.labels import FileFacts, FileId, doubt, doubt_patients, folder_labels, match_files, read_labels
from pipeline.ingest.material import Material, deidentified
from pipeline.ingest.order import Row, in_order
from pipeline.ingest.patients import keys_from_paths, parse_patient_pattern, pseudonyms
from pipeline.ingest.reading import How, SeenFrame, find_files
from pipeline.ingest.splits import DEFAULT_PERCENT, Percent, assign_splits, check_given_splits, check_labels
from pipeline.ingest.stream import Outcomes, Places
from pipeline.ingest.verdict import NO_FOLDER, NOT_NAMED, Used, quarantined, usable
from pipeline.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class Rules:
    """Where labels, patients and splits come from.

    Parameters
    ----------
    labels
        Table of labels, see `pipeline.ingest.labels.read_labels`.
    label_from
        Which folder's name is the label of a file, see `pipeline.ingest.labels.folder_labels`; empty if none is.
    patient_key
        A column of the table, or a regular expression with one group for the path below the source. Where it is None: the
        table's column `patient_key`, else Patient ID (0010,0020) under a pseudonym, else the study.
    percent
        Share of the patients in train, tune, calibration and test; a column `split` of the table comes before it.
    seed
        Decides which patients go where.
    deidentify
        How the studies are de-identified first; None reads them as they are.
    """

    labels: Path | None = None
    label_from: str = ""
    patient_key: str | None = None
    percent: Percent = DEFAULT_PERCENT
    seed: int = 0
    deidentify: Plan | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of the files before any is read; `note` says how the table of labels was understood."""

    facts: Mapping[FileId, FileFacts]
    columns: tuple[str, ...] = ()
    note: str = ""


def build_index(
    sources: Sequence[Path],
    rules: Rules,
    progress: Progress = silent,
    workers: int = 0,
    how: How = How(),  # noqa: B008
    out: Path | None = None,
    skipped: Counter[str] | None = None,
) -> tuple[Index, str]:
    """Read every study below the sources and divide the patients into splits.

    Parameters
    ----------
    sources
        Files or folders.
    rules
        Where labels, patients and splits come from.
    progress
        Shows how many files are done.
    workers
        How many files are read at the same time, each in a process of its own; 0 takes one for each core.
    how
        Limits and quality gate.
    out
        Folder of the index: its journal says what was read before, and what is read now is written there at once. None reads
        everything.
    skipped
        As in `discover`.

    Returns
    -------
    tuple
        The index, not yet written, and what is to be said of the labels, empty if that is nothing. A file that cannot be read
        stands in its quarantine, and so does, unread, one without a label if labels were given.

    Raises
    ------
    InputError
        Where nothing is readable, or labels, patients or splits cannot be used.
    """
    _check(sources, rules, out)
    roots = tuple((source.parent if source.is_file() else source).resolve() for source in sources)
    with Journal(out / JOURNAL if out else None, binding(how)) as journal, _deidentifier(rules, how, workers) as deidentifier:
        homes = (deidentifier.out,) if deidentifier else roots
        places = Places([as_text(str(home)) for home in homes], journal)
        is_known = (lambda _, file: deidentifier.knows(file)) if deidentifier else places.knows
        files = find_files(sources, _no_studies(rules, out), is_known, skipped)
        known = _known(rules, sources, roots, files)
        pattern = parse_patient_pattern(rules.patient_key, known.columns)
        wanted = {one: file for one, file in files.items() if _is_wanted(rules, known, one, file)}
        material = Material(files, wanted, known.facts, unlabelled=NOT_NAMED if rules.labels else NO_FOLDER)
        if deidentifier:
            material = deidentified(material, deidentifier, progress)
        outcomes = places.read(material.wanted, how, progress, workers)
        places.keep_only(material.files)
    quarantine = (*material.left_out, *quarantined(material.files, outcomes, material.unlabelled))
    used = usable(outcomes)
    if not used:
        raise InputError(_nothing_readable(sources, files, quarantine))
    labels = _labels(rules, known, material, used)
    records = _records(outcomes, used, material, _patient_keys(outcomes, used, material, pattern), labels)
    named = {record.patient_key for record in records if record.patient_key != record.key.study_instance_uid}
    said = (doubt(labels, _patients(records, labels), bool(rules.label_from)), doubt_patients(named))
    doubts = " ".join(filter(None, said))
    try:
        divided, percent = _divided(records, material, rules)
    except InputError as error:
        raise InputError(" ".join(filter(None, (str(error), doubts)))) from None
    return Index(divided, quarantine, homes, labels, seed=rules.seed, percent=percent), " ".join(
        filter(None, (known.note, doubts))
    )


def _check(sources: Sequence[Path], rules: Rules, out: Path | None) -> None:
    """Find out whether what identifies and what does not would stay apart."""
    plan = rules.deidentify
    if plan is None:
        return
    plan.check(sources)
    if out and plan.key.resolve().is_relative_to(out.resolve()):
        raise InputError(f"The key {plan.key.name} lies inside the index and would be handed on with it. Name another place.")


def _deidentifier(rules: Rules, how: How, workers: int) -> AbstractContextManager[Deidentifier | None]:
    return Deidentifier(rules.deidentify, how.reading, workers) if rules.deidentify else nullcontext()


def _no_studies(rules: Rules, out: Path | None) -> list[Path]:
    """Return the files that are found among the studies where somebody keeps them there, and that are none."""
    own = [out / name for name in (*FILES, JOURNAL, f"{JOURNAL}-journal")] if out else []  # the last is left by a kill
    own += rules.deidentify.own_files if rules.deidentify else ()
    return [*own, rules.labels] if rules.labels else own


def _known(rules: Rules, sources: Sequence[Path], roots: Sequence[Path], files: Mapping[FileId, StudyFile]) -> _Known:
    if rules.labels:
        table = read_labels(rules.labels, rules.patient_key)
        facts, note = match_files(table, roots, files)
        return _Known(facts, table.columns, note)
    found = [file_id for file_id, file in files.items() if not file.refusal]
    return _Known(folder_labels(rules.label_from, sources, found) if rules.label_from else {})


def _is_wanted(rules: Rules, known: _Known, file_id: FileId, file: StudyFile) -> bool:
    """Return whether a file is read, if only to say why it cannot be; files without a label are not, if labels were given."""
    if rules.labels or (rules.label_from and not file.refusal):
        return file_id in known.facts
    return True


def _nothing_readable(sources: Sequence[Path], files: Collection[FileId], quarantine: Sequence[Quarantined]) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(row.reason for row in quarantine).items()))
    names = ", ".join(source.name for source in sources)
    return f"There is no readable study in {names}: of {len(files)} files none can be used ({reasons})."


def _labels(rules: Rules, known: _Known, material: Material, used: Iterable[FileId]) -> tuple[str, ...]:
    """Return the labels of what is used; a label of the table must not be lost with its files."""
    present = {label for file_id in used for label in material.of(file_id).labels}
    named = {label for facts in known.facts.values() for label in facts.labels} if rules.labels else present
    if lost := sorted(named - present):
        raise InputError(
            f"None of the files with the label {', '.join(lost)} can be read. Repair them, or leave the label out."
        )
    return tuple(sorted(present))


def _patient_keys(outcomes: Outcomes, used: Used, material: Material, pattern: re.Pattern[str] | None) -> dict[FileId, str]:
    """Return the patient of each file; empty where only its study is known."""
    paths = keys_from_paths(pattern, map(material.origin, used)) if pattern else {}
    hashes = {file_id: material.patient(file_id, outcomes[file_id]) for file_id in used}
    numbered = pseudonyms(hashes.values())
    return {
        file_id: material.pseudonym(paths[material.origin(file_id)])
        if pattern
        else material.of(file_id).patient_key or numbered.get(hashes[file_id], "")
        for file_id in used
    }


def _records(
    outcomes: Outcomes, used: Used, material: Material, patient_keys: Mapping[FileId, str], labels: Sequence[str]
) -> tuple[ImageRecord, ...]:
    file_ids = list(used)
    held = {file_id: material.of(file_id).labels for file_id in file_ids}
    rows = in_order([Row(number, frame) for number, file_id in enumerate(file_ids) for frame in used[file_id]])
    truths = {some: {label: label in some for label in labels} for some in set(held.values())}
    return tuple(
        _record(row.frame, file_id, outcomes[file_id].file_sha256, patient_keys[file_id], truths[held[file_id]])
        for row in rows
        for file_id in (file_ids[row.file],)
    )


def _patients(records: Sequence[ImageRecord], labels: Sequence[str]) -> dict[str, set[str]]:
    """Return for each label the patients in whom it occurs."""
    patients: dict[str, set[str]] = {label: set() for label in labels}
    for record in records:
        for label in patients:
            if record.labels[label]:
                patients[label].add(record.patient_key)
    return patients


def _record(
    frame: SeenFrame, file_id: FileId, file_sha256: str, patient_key: str, labels: Mapping[str, bool | None]
) -> ImageRecord:
    return ImageRecord(
        key=frame.key,
        root=file_id[0],
        source=file_id[1],
        patient_key=patient_key or frame.key.study_instance_uid,
        pixel_sha256=frame.pixel_sha256,
        labels=labels,
        split=Split.TRAIN,
        rows=frame.rows,
        columns=frame.columns,
        modality=frame.modality,
        view_position=frame.view_position,
        laterality=frame.laterality,
        file_sha256=file_sha256,
        flags=frame.flags,
    )


def _strata(records: Sequence[ImageRecord]) -> list[Collection[str]]:
    return [[label for label, holds in record.labels.items() if holds] for record in records]


def _ties(records: Sequence[ImageRecord]) -> tuple[list[str], list[str], list[str]]:
    """Return the patient, the pixels and the study of each frame; none of them may cross splits."""
    patients, pixels = [record.patient_key for record in records], [record.pixel_sha256 for record in records]
    return patients, pixels, [record.key.study_instance_uid for record in records]


def _divided(
    records: Sequence[ImageRecord], material: Material, rules: Rules
) -> tuple[tuple[ImageRecord, ...], Percent | None]:
    """Give each record its split; return with them the shares of the splits, None where the table of labels gave them."""
    given = [split for record in records if (split := material.of((record.root, record.source)).split)]
    splits = _checked(given, records) if given else _assigned(records, rules)
    divided = tuple(replace(record, split=split) for record, split in zip(records, splits, strict=True))
    return divided, None if given else rules.percent


def _assigned(records: Sequence[ImageRecord], rules: Rules) -> list[Split]:
    patients, pixels, studies = _ties(records)
    return assign_splits(patients, _strata(records), pixels, studies, rules.percent, rules.seed)


def _checked(given: list[Split], records: Sequence[ImageRecord]) -> list[Split]:
    check_given_splits(given, *_ties(records))
    check_labels(given, _strata(records), [split for split in Split if split in given])
    return given
