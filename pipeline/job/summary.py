"""Tables and report of a folder of results, written from the ledger alone: the same records give the same bytes."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.job.folder import FAILURES, PARQUET, PREDICTIONS
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.types import Order
from pipeline.model.bundle import Bundle
from pipeline.progress import Progress, silent
from pipeline.records import FramePrediction, Quarantined
from pipeline.results.parquet import write_parquet
from pipeline.results.record import StudyRecord
from pipeline.results.report import write_report
from pipeline.results.tables import write_failures, write_predictions
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
    write_predictions(folder / PREDICTIONS, _frames(ledger))
    write_parquet(folder / PARQUET, _frames(ledger))
    write_failures(folder / FAILURES, _failures(ledger))
    totals = Totals.of(_records(ledger, Order.POSITION), bundle.manifest.normal_label)
    write_report(folder, bundle, _records(ledger, Order.URGENCY), _failures(ledger), totals, progress)
    return totals


def _records(ledger: Ledger, order: Order) -> Iterator[StudyRecord]:
    return (StudyRecord.from_json(outcome.record) for outcome in ledger.outcomes(order))


def _frames(ledger: Ledger) -> Iterator[FramePrediction]:
    return (frame.prediction for record in _records(ledger, Order.POSITION) for frame in record.frames)


def _failures(ledger: Ledger) -> Iterator[Quarantined]:
    return (failure for record in _records(ledger, Order.POSITION) for failure in record.failures)
