"""Tables and report of a folder of results, written from the ledger alone: the same records give the same bytes."""

from collections.abc import Iterator
from pathlib import Path

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


def summarise(folder: Path, ledger: Ledger, bundle: Bundle, progress: Progress = silent) -> Totals:
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
    """
    totals, refused = Totals(), list[Quarantined]()
    with (
        predictions_table(folder / PREDICTIONS) as add_frame,
        parquet_table(folder / PARQUET) as add_typed,
        failures_table(folder / FAILURES) as add_failure,
    ):
        for record in _records(ledger, Order.POSITION):
            totals = totals.plus(record, bundle.manifest.normal_label)
            for frame in record.frames:
                add_frame(frame.prediction)
                add_typed(frame.prediction)
            for failure in record.failures:
                add_failure(failure)
            refused += record.failures[: FAILURES_SHOWN - len(refused)]
    write_report(folder, bundle, _records(ledger, Order.URGENCY), refused, totals, progress)
    return totals


def _records(ledger: Ledger, order: Order) -> Iterator[StudyRecord]:
    return (StudyRecord.from_json(outcome.record) for outcome in ledger.outcomes(order))
