"""Tables and report of a folder of results, written from the ledger alone: the same records give the same bytes."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pipeline.errors import InputError, OctrayError, is_lack_of_memory, lack_of_memory
from pipeline.frames import Quarantined
from pipeline.imaging.file_workers import file_workers
from pipeline.job.folder import FAILURES, PARQUET, PREDICTIONS, base_of
from pipeline.job.study_files import current_mark, files_from_json, marks_from_json
from pipeline.model.bundle import Bundle
from pipeline.predictions import StudyRecord
from pipeline.progress import Progress, silent
from pipeline.results.patient import GONE, NOT_READ, REPLACED, Detail, Patient, read_patient
from pipeline.results.report import FAILURES_SHOWN, write_report
from pipeline.results.tables import failures_table, parquet_table, predictions_table
from pipeline.results.worklist import Ranking, Study, Totals
from pipeline.store.ledger import Ledger, Order
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
    """Write `predictions.csv`, `predictions.parquet`, `failures.csv` and the report; memory does not grow with the studies.

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
        If there is no memory for the library that writes `predictions.parquet`, the last of the files.
    """
    ranking = Ranking(bundle.manifest.normal_label, bundle.manifest.urgency)
    totals, refused = Totals(), list[Quarantined]()
    with (
        predictions_table(folder / PREDICTIONS) as add_frame,
        failures_table(folder / FAILURES) as add_failure,
    ):
        for study, record, _ in _studies(ledger, Order.POSITION, ranking, since):
            totals = totals.plus(study, len(record.without_image))
            for frame in record.frames:
                add_frame(frame)
            for failure in (*record.failures, *record.without_image):
                add_failure(failure)
            refused += record.failures[: FAILURES_SHOWN - len(refused)]
        for failure in not_begun:
            add_failure(failure)
    refused += not_begun[: FAILURES_SHOWN - len(refused)]
    totals = replace(totals, failures=totals.failures + len(not_begun))
    with ExitStack() as stack:
        listed = ((study, work) for study, _, work in _studies(ledger, Order.URGENCY, ranking, since) if study.is_listed)
        if details:
            shown = _with_patients(listed, base_of(studies), stack.enter_context(file_workers()))
        else:
            shown = (study for study, _ in listed)
        name = studies.resolve().name
        write_report(folder, bundle, shown, refused, totals, progress, source=name, since=since, details=details)
    _write_parquet(folder / PARQUET, ledger)
    return totals


def _write_parquet(path: Path, ledger: Ledger) -> None:
    """Write the table by itself, so that its library, which takes as much memory as all else, costs no other file."""
    try:
        with parquet_table(path) as add:
            for outcome in ledger.outcomes(Order.POSITION):
                for frame in StudyRecord.from_json(outcome.record).frames:
                    add(frame)
    except Exception as error:
        path.unlink(missing_ok=True)
        if not is_lack_of_memory(error):
            raise
        raise InputError(f"{path.name} was not written, all other files are there: {lack_of_memory()}") from None


def _studies(ledger: Ledger, order: Order, ranking: Ranking, since: float) -> Iterator[tuple[Study, StudyRecord, bytes]]:
    """Yield each finished study as the worklist shows it, its record, and what `files_to_json` wrote of its files."""
    for outcome in ledger.outcomes(order):
        record = StudyRecord.from_json(outcome.record)
        study = Study(
            record.study_instance_uid,
            ranking.sorted(record.frames),
            record.failures,
            outcome.rank,
            outcome.scored_at,
            is_new=0 < since < outcome.scored_at,
        )
        yield study, record, outcome.work


def _with_patients(listed: Iterator[tuple[Study, bytes]], base: Path, pool: WorkerPool) -> Iterator[Study]:
    """Yield studies with what their files say of the patient; few are begun at a time, to bound memory."""
    asked = ((study, (study.main_source, study.study_instance_uid, work, base)) for study, work in listed)
    for study, answer in pool.map(patient_of, asked, ahead=_AHEAD):
        try:
            patient = next(answer)
        except OctrayError:  # a worker has crashed or cannot start, which is no reason to be without a report
            patient = Patient(why_unknown=NOT_READ)
        yield replace(study, patient=patient)


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
