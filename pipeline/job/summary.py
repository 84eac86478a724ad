"""Tables and report of a folder of results, written from the ledger alone: the same records give the same bytes."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.errors import InputError, OctrayError, is_lack_of_memory, lack_of_memory
from pipeline.frames import Quarantined
from pipeline.imaging.file_workers import file_workers
from pipeline.job.folder import FAILURES, LEVELS, LEVELS_PARQUET, PARQUET, PREDICTIONS, base_of
from pipeline.job.study_files import current_mark, files_from_json, marks_from_json
from pipeline.levels import Level, LevelResult
from pipeline.model.bundle import Bundle, Manifest
from pipeline.predictions import StudyRecord
from pipeline.progress import Progress, silent
from pipeline.results.level_results import patient_results, study_results
from pipeline.results.patient import GONE, NOT_READ, REPLACED, Detail, Patient, read_patient
from pipeline.results.report import FAILURES_SHOWN, write_report
from pipeline.results.tables import AddLevel, failures_table, levels_parquet, levels_table, parquet_table, predictions_table
from pipeline.results.worklist import Ranking, Study, Totals
from pipeline.store.ledger import Ledger, Order, StoredOutcome
from pipeline.workers.pool import WorkerPool

_AHEAD = 32


def summarise(
    folder: Path,
    ledger: Ledger,
    bundle: Bundle,
    progress: Progress = silent,
    not_begun: Sequence[Quarantined] = (),
    *,
    studies: Path,
    since: float = 0.0,
    details: Collection[Detail] = (),
) -> Totals:
    """Write the tables of predictions and failures, the report, and the tables of levels if the bundle has any.

    Memory does not grow with the studies, but for a hash of each patient if the bundle has results of patients or eyes.

    Parameters
    ----------
    folder
        That of the results.
    ledger
        Holds a record of every finished study.
    bundle
        That scored them.
    progress
        Is shown the studies as the report is written.
    not_begun
        Files that the ledger says nothing of, since nothing could be read.
    studies
        What was scored.
    since
        When an earlier run wrote the report, in seconds since 1970; 0 if none did.
    details
        What the report says of patients and examinations: read from the files of the studies now, and written nowhere else.

    Raises
    ------
    InputError
        If there is no memory for the library that writes the Parquet tables, the last of the files.
    """
    manifest = bundle.manifest
    totals, refused = Totals(), list[Quarantined]()
    with ExitStack() as stack:
        add_frame = stack.enter_context(predictions_table(folder / PREDICTIONS))
        add_failure = stack.enter_context(failures_table(folder / FAILURES))
        add_level = stack.enter_context(levels_table(folder / LEVELS, manifest.bundle_id)) if manifest.levels else None
        for study, record, _ in _studies(ledger, Order.POSITION, manifest, since):
            totals = totals.plus(study, len(record.without_image))
            for frame in record.frames:
                add_frame(frame)
            for failure in (*record.failures, *record.without_image):
                add_failure(failure)
            if add_level:
                _add_levels_of_study(add_level, study, record)
            refused += record.failures[: FAILURES_SHOWN - len(refused)]
        for failure in not_begun:
            add_failure(failure)
        studies_of = _studies_of_patients(ledger, base_of(studies), manifest)
        if add_level:
            _add_levels_of_patients(add_level, studies_of, ledger, manifest)
    refused += not_begun[: FAILURES_SHOWN - len(refused)]
    totals = replace(totals, failures=totals.failures + len(not_begun))
    with ExitStack() as stack:
        listed = (
            (_with_other_studies(study, ledger, studies_of.get(outcome.id, ()), manifest), outcome.work)
            for study, _, outcome in _studies(ledger, Order.URGENCY, manifest, since)
            if study.is_listed
        )
        if details:
            shown = _with_patients(listed, base_of(studies), stack.enter_context(file_workers()))
        else:
            shown = (study for study, _ in listed)
        name = studies.resolve().name
        write_report(folder, bundle, shown, refused, totals, progress, source=name, since=since, details=details)
    with _parquet_file(folder / PARQUET) as path, parquet_table(path) as add:
        for outcome in ledger.outcomes(Order.POSITION):
            for frame in StudyRecord.from_json(outcome.record).frames:
                add(frame)
    if manifest.levels:
        with _parquet_file(folder / LEVELS_PARQUET) as path, levels_parquet(path, manifest.bundle_id) as add_level:
            for study, record, _ in _studies(ledger, Order.POSITION, manifest, since):
                _add_levels_of_study(add_level, study, record)
            _add_levels_of_patients(add_level, studies_of, ledger, manifest)
    return totals


def _add_levels_of_study(add: AddLevel, study: Study, record: StudyRecord) -> None:
    """Add the results of a study and of the eyes in it."""
    for result in study.levels if study.is_listed else ():
        add(result, record.study_instance_uid, "")


def _add_levels_of_patients(
    add: AddLevel, studies_of: Mapping[int, tuple[int, ...]], ledger: Ledger, manifest: Manifest
) -> None:
    """Add the results of patients, and of eyes over several studies."""
    for number, ids in enumerate(dict.fromkeys(studies_of.values()), start=1):
        for result in _patient_results(ledger, ids, manifest):
            if result.level is Level.PATIENT or result.studies > 1:
                add(result, "", f"patient-{number:05d}")


@contextmanager
def _parquet_file(path: Path) -> Iterator[Path]:
    """Give the place of a table that is written last, since its library takes as much memory as all else."""
    try:
        yield path
    except Exception as error:
        path.unlink(missing_ok=True)
        if not is_lack_of_memory(error):
            raise
        raise InputError(f"{path.name} was not written, all other files are there: {lack_of_memory()}") from None


def _studies(
    ledger: Ledger, order: Order, manifest: Manifest, since: float
) -> Iterator[tuple[Study, StudyRecord, StoredOutcome]]:
    """Yield each finished study as the worklist shows it, its record, and what the ledger has of it."""
    ranking = Ranking(manifest.normal_label, manifest.urgency)
    for outcome in ledger.outcomes(order):
        record = StudyRecord.from_json(outcome.record)
        study = Study(
            record.study_instance_uid,
            ranking.sorted(record.frames),
            record.failures,
            outcome.rank,
            outcome.scored_at,
            is_new=0 < since < outcome.scored_at,
            levels=study_results(record, manifest),
        )
        yield study, record, outcome


def _studies_of_patients(ledger: Ledger, base: Path, manifest: Manifest) -> dict[int, tuple[int, ...]]:
    """Return for each study by its id in the ledger those of the same patient, if the bundle has results of several studies.

    Two studies are of one patient if their files state the same Patient ID (0010,0020), issuer and birth date. A study whose
    files state no ID, or are not there any more, is of nobody. All that is held in memory of a patient is a hash, and nothing
    of it is written.
    """
    if not any(rule.level in (Level.EYE, Level.PATIENT) for rule in manifest.levels):
        return {}
    patients: dict[bytes, list[int]] = {}
    with file_workers() as pool:
        asked = (
            (outcome.id, (study.main_source, study.study_instance_uid, outcome.work, base))
            for study, _, outcome in _studies(ledger, Order.POSITION, manifest, 0.0)
            if study.is_listed
        )
        for number, answer in pool.map(patient_of, asked, ahead=_AHEAD):
            known = _answered(answer).details
            if known.get(Detail.ID):
                stated = (known[Detail.ID], known.get(Detail.BIRTH_DATE, ""))
                patients.setdefault(hashlib.sha256(repr(stated).encode()).digest(), []).append(number)
    return {number: ids for some in patients.values() for ids in [tuple(some)] for number in ids}


def _patient_results(ledger: Ledger, ids: Sequence[int], manifest: Manifest) -> tuple[LevelResult, ...]:
    records = [StudyRecord.from_json(outcome.record) for outcome in ledger.outcomes_of(ids)]
    return patient_results(records, manifest)


def _with_other_studies(study: Study, ledger: Ledger, ids: Sequence[int], manifest: Manifest) -> Study:
    """Return a study with the results of its patient and eyes over all studies: if there are several, or if it has no own."""
    if not ids:
        return study
    own = {rule.level for rule in manifest.levels if rule.level is not Level.PATIENT}
    others = [one for one in _patient_results(ledger, ids, manifest) if one.studies > 1 or not own]
    return replace(study, levels=(*study.levels, *others))


def _with_patients(listed: Iterator[tuple[Study, bytes]], base: Path, pool: WorkerPool) -> Iterator[Study]:
    """Yield studies with what their files say of the patient; few are begun at a time, to bound memory."""
    asked = ((study, (study.main_source, study.study_instance_uid, work, base)) for study, work in listed)
    for study, answer in pool.map(patient_of, asked, ahead=_AHEAD):
        yield replace(study, patient=_answered(answer))


def _answered(answer: Iterator[Patient]) -> Patient:
    try:
        return next(answer)
    except OctrayError:  # a worker has crashed or cannot start, which is no reason to be without a report
        return Patient(why_unknown=NOT_READ)


def patient_of(asked: tuple[str, str, bytes, Path]) -> Iterator[Patient]:
    """Yield whose study it is, once, by the one of its files that is named; made for worker processes, since it parses.

    A file that is not the one that was scored may be another patient's.
    """
    source, study_instance_uid, work, base = asked
    file = next((file for file in files_from_json(work, base) if file.source == source), None)
    mark = current_mark(file) if file else ""
    if file is None or not mark:
        yield Patient(why_unknown=GONE)
    elif mark != marks_from_json(work)[source]:
        yield Patient(why_unknown=REPLACED)
    else:
        yield from read_patient(file, study_instance_uid)
