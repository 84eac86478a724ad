"""Builds an index: reads every study, joins what is known of labels and patients, and divides the patients into splits."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import InputError
from pipeline.ingest.index import Index
from pipeline.ingest.labels import FileFacts, FileId, folder_labels, match_files, read_labels
from pipeline.ingest.patients import keys_from_paths, parse_patient_pattern, pseudonyms
from pipeline.ingest.reading import ReadFile, find_files, read_files
from pipeline.ingest.splits import DEFAULT_PERCENT, Percent, assign_splits, check_given_splits, check_labels
from pipeline.progress import Progress, silent
from pipeline.records import ImageRecord, Quarantined, Split

NO_LABEL = "no_label"


@dataclass(frozen=True, slots=True)
class Rules:
    """Where labels, patients and splits come from.

    Parameters
    ----------
    labels
        Table of labels, see `pipeline.ingest.labels.read_labels`.
    label_from_folder
        Whether the name of a file's folder is its label.
    patient_key
        A column of the table, or a regular expression with one group for the path below the source. Where it is None: the
        table's column `patient_key`, else Patient ID (0010,0020) under a pseudonym, else the study.
    percent
        Share of the patients in train, tune, calibration and test; a column `split` of the table comes before it.
    seed
        Decides which patients go where.
    """

    labels: Path | None = None
    label_from_folder: bool = False
    patient_key: str | None = None
    percent: Percent = DEFAULT_PERCENT
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of the files before any is read; `note` says how the table of labels was understood."""

    facts: Mapping[FileId, FileFacts]
    columns: tuple[str, ...] = ()
    note: str = ""

    def of(self, file: ReadFile) -> FileFacts:
        return self.facts.get(file.file_id, FileFacts(frozenset()))


def build_index(sources: Sequence[Path], rules: Rules, progress: Progress = silent, workers: int = 2) -> tuple[Index, str]:
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
        How many files are read at the same time.

    Returns
    -------
    tuple
        The index, not yet written, and a sentence on how the table of labels was understood, empty where there is none. A file
        that cannot be read stands in its quarantine, and so does, unread, one without a label where labels were given.

    Raises
    ------
    InputError
        Where nothing is readable, or labels, patients or splits cannot be used.
    """
    files = find_files(sources, rules.labels)
    roots = tuple((source.parent if source.is_file() else source).resolve() for source in sources)
    known = _known(rules, roots, files)
    pattern = parse_patient_pattern(rules.patient_key, known.columns)
    wanted = {file_id: file for file_id, file in files.items() if not rules.labels or file_id in known.facts}
    read, unreadable = read_files(wanted, progress, workers)
    quarantine = unreadable + [_unlabelled(file_id) for file_id in files if file_id not in wanted]
    if not read:
        raise InputError(_nothing_readable(sources, quarantine))
    paths = keys_from_paths(pattern, [file.file_id[1] for file in read]) if pattern else {}
    labels = _labels(rules, known, read)
    records = _records(read, known, _patient_keys(read, known, paths), labels)
    given = [split for file in read if (split := known.of(file).split) for _ in file.records]
    splits = _checked(given, records) if given else _assigned(records, rules)
    records = tuple(replace(record, split=split) for record, split in zip(records, splits, strict=True))
    return Index(
        records, tuple(quarantine), roots, labels, seed=rules.seed, percent=None if given else rules.percent
    ), known.note


def _known(rules: Rules, roots: Sequence[Path], files: Iterable[FileId]) -> _Known:
    if rules.labels:
        table = read_labels(rules.labels, rules.patient_key)
        facts, note = match_files(table, roots, files)
        return _Known(facts, table.columns, note)
    return _Known(folder_labels(roots, files) if rules.label_from_folder else {})


def _unlabelled(file_id: FileId) -> Quarantined:
    root, source = file_id
    return Quarantined(source, NO_LABEL, "The table of labels does not name this file. Add a row for it to use it.", root=root)


def _nothing_readable(sources: Sequence[Path], quarantine: Sequence[Quarantined]) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(row.reason for row in quarantine).items()))
    names = ", ".join(source.name for source in sources)
    return f"There is no readable study in {names}: of {len(quarantine)} files none can be used ({reasons})."


def _labels(rules: Rules, known: _Known, read: Iterable[ReadFile]) -> tuple[str, ...]:
    """Return the labels of what was read; a label of the table must not be lost with its files."""
    present = {label for file in read for label in known.of(file).labels}
    named = {label for facts in known.facts.values() for label in facts.labels} if rules.labels else present
    if lost := sorted(named - present):
        raise InputError(
            f"None of the files with the label {', '.join(lost)} can be read. Repair them, or leave the label out."
        )
    return tuple(sorted(present))


def _patient_keys(read: Sequence[ReadFile], known: _Known, paths: Mapping[str, str]) -> list[str]:
    """Return the patient of each file; empty where only its study is known."""
    numbered = pseudonyms(file.patient_id for file in read)
    return [paths.get(file.file_id[1]) or known.of(file).patient_key or numbered.get(file.patient_id, "") for file in read]


def _records(
    read: Sequence[ReadFile], known: _Known, patient_keys: Sequence[str], labels: Sequence[str]
) -> tuple[ImageRecord, ...]:
    return tuple(
        replace(
            record,
            patient_key=patient_key or record.key.study_instance_uid,
            labels={label: label in known.of(file).labels for label in labels},
        )
        for file, patient_key in zip(read, patient_keys, strict=True)
        for record in file.records
    )


def _strata(records: Sequence[ImageRecord]) -> list[Collection[str]]:
    return [[label for label, holds in record.labels.items() if holds] for record in records]


def _ties(records: Sequence[ImageRecord]) -> tuple[list[str], list[str], list[str]]:
    """Return the patient, the pixels and the study of each frame; none of them may cross splits."""
    patients, pixels = [record.patient_key for record in records], [record.pixel_sha256 for record in records]
    return patients, pixels, [record.key.study_instance_uid for record in records]


def _assigned(records: Sequence[ImageRecord], rules: Rules) -> list[Split]:
    patients, pixels, studies = _ties(records)
    return assign_splits(patients, _strata(records), pixels, studies, rules.percent, rules.seed)


def _checked(given: list[Split], records: Sequence[ImageRecord]) -> list[Split]:
    check_given_splits(given, *_ties(records))
    check_labels(given, _strata(records), [split for split in Split if split in given])
    return given
