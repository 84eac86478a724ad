"""Tables and report of a folder of results, written from the ledger alone: the same records give the same bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import InputError, is_lack_of_memory, lack_of_memory
from pipeline.job.folder import FAILURES, PARQUET, PREDICTIONS
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.types import Order
from pipeline.model.bundle import Bundle
from pipeline.progress import Progress, silent
from pipeline.records import Quarantined
from pipeline.results.parquet import parquet_table
from pipeline.results.record import StudyRecord
from pipeline.results.report import FAILURES_SHOWN, write_report
from pipeline.results.tables import failures_table, predictions_table
from pipeline.results.totals import Totals


def summarise(
    folder: Path, ledger: Ledger, bundle: Bundle, progress: Progress = silent, not_begun: Sequence[Quarantined] = ()
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

    Raises
    ------
    InputError
        If there is no memory for the library that writes `predictions.parquet`, the last of the files.
    """
    totals, refused = Totals(), list[Quarantined]()
    with (
        predictions_table(folder / PREDICTIONS) as add_frame,
        failures_table(folder / FAILURES) as add_failure,
    ):
        for record in _records(ledger, Order.POSITION):
            totals = totals.plus(record, bundle.manifest.normal_label)
            for frame in record.frames:
                add_frame(frame.prediction)
            for failure in record.failures:
                add_failure(failure)
            refused += record.failures[: FAILURES_SHOWN - len(refused)]
        for failure in not_begun:
            add_failure(failure)
    refused += not_begun[: FAILURES_SHOWN - len(refused)]
    totals = replace(totals, failures=totals.failures + len(not_begun))
    write_report(folder, bundle, _records(ledger, Order.URGENCY), refused, totals, progress)
    _write_parquet(folder / PARQUET, ledger)
    return totals


def _write_parquet(path: Path, ledger: Ledger) -> None:
    """Write the table by itself, so that its library, which takes as much memory as all else, costs no other file."""
    try:
        with parquet_table(path) as add:
            for record in _records(ledger, Order.POSITION):
                for frame in record.frames:
                    add(frame.prediction)
    except Exception as error:
        path.unlink(missing_ok=True)
        if not is_lack_of_memory(error):
            raise
        raise InputError(f"{path.name} was not written, all other files are there: {lack_of_memory()}") from None


def _records(ledger: Ledger, order: Order) -> Iterator[StudyRecord]:
    return (StudyRecord.from_json(outcome.record) for outcome in ledger.outcomes(order))
