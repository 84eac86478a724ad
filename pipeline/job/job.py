"""A folder of studies into a folder of results: plans the studies, has them scored, and writes what people read."""

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from pipeline.errors import PASSING, ConfigError, InputError, Reason, is_lack_of_memory, lack_of_memory
from pipeline.frames import Quarantined
from pipeline.imaging.sources import StudyFile, discover
from pipeline.job.folder import ResultsFolder, base_of
from pipeline.job.loop import Loop, Outcomes, PendingResults, delayed_interrupts, with_retries
from pipeline.job.outputs import Wanted
from pipeline.job.scorer import MOST_ATTEMPTS, Scorer
from pipeline.job.shard import Shard
from pipeline.job.study_files import (
    Grouping,
    Inbox,
    StudyFiles,
    changed_at,
    files_from_json,
    files_to_json,
    files_without,
    is_there,
)
from pipeline.job.summary import summarise
from pipeline.model.bundle import Bundle
from pipeline.predictions import StudyRecord
from pipeline.progress import Progress
from pipeline.results.patient import Detail
from pipeline.results.worklist import Totals
from pipeline.score.predictor import Predictor
from pipeline.store.database import without_password
from pipeline.store.ledger import Ledger, Order, Output, Unit
from pipeline.version import scoring_versions, software_versions
from pipeline.workers.cores import usable_cores


class Audience(Protocol):
    """Who is told how a job goes."""

    def planned(self, total: int, records: Iterator[StudyRecord]) -> None:
        """So many studies are there; `records` are those of the ones that an earlier run has finished."""

    def done(self, record: StudyRecord) -> None:
        """A study is finished: what it says is in the ledger, and its pictures are written."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be scored, and what is to be written.

    Parameters
    ----------
    studies
        A folder, or one file.
    out
        Folder of the results.
    wanted
        What is written beside tables and report.
    shard
        Which part of the studies.
    ledger
        Address of the database that holds the ledger; empty: a file among the results.
    cluster
        Address of the Ray cluster that scores; empty: this process does.
    details
        What the report says of patients and examinations; no result depends on it.
    """

    studies: Path
    out: Path
    wanted: Wanted = field(default_factory=Wanted)
    shard: Shard = field(default_factory=Shard)
    ledger: str = ""
    cluster: str = ""
    details: frozenset[Detail] = frozenset()

    def facts(self, bundle_id: str) -> dict[str, object]:
        """Return all that results depend on beside the studies themselves: results with other facts are begun anew."""
        return {
            "bundle": bundle_id,
            "studies": os.fsencode(self.studies.absolute()).hex(),
            "heatmaps": self.wanted.heatmaps,
            "objects": sorted(self.wanted.objects),
            "shard": [self.shard.number, self.shard.of],
            "ledger": without_password(self.ledger),
            "versions": dict(scoring_versions()),
        }


class Job:
    """One request on its way; `score` once for a folder, or again and again for one in which studies arrive.

    Parameters
    ----------
    request
        What to do.
    bundle, predictor
        What scores.
    folder
        Entered already.
    audience
        Who is told.
    progress
        Shows how the report is written.

    Attributes
    ----------
    totals
        Of the last time that tables and report were written.
    skipped
        What was skipped when the folder was last looked at, since systems leave it behind, and how often.
    replaced
        Whether results of another run were removed for this one.
    scored
        How many studies were finished since it began.
    faults
        Names of files of studies that could not be drawn or written, each with the reason.
    """

    def __init__(
        self,
        request: Request,
        predictor: Predictor,
        bundle: Bundle,
        folder: ResultsFolder,
        audience: Audience,
        progress: Progress,
    ) -> None:
        self._request = request
        self._bundle = bundle
        self._folder = folder
        self._audience = audience
        self._progress = progress
        self._scorer = Scorer(predictor, base_of(request.studies), folder.path, request.wanted, usable_cores())
        self._grouping = Grouping()
        self.skipped: Counter[str] = Counter()
        self.replaced = False
        self.scored = 0
        self.faults: list[str] = []
        self.totals = Totals()
        self._reported_at = 0.0

    def score(self) -> None:
        """Score everything that is there and not finished yet, and write tables and report, even where that is interrupted.

        Raises
        ------
        InputError
            Where there is no file at all; what was scored before stays as it is.
        """
        files = list(discover(self._request.studies, skipped=self.skipped))
        if not files:
            name = self._request.studies.resolve().name
            raise InputError(f"{name} holds no files. Give a folder of DICOM, PNG, JPEG or TIFF files.")
        with self._ledger() as ledger:
            studies = self._studies(ledger, files)
            self._plan(ledger, studies, 0)
            ledger.keep({study.key for study in studies})
            self._try_again(ledger)
            self._work(ledger)

    def watch(self, quiet: float, pause: Callable[[float], None] = time.sleep) -> None:
        """Score studies as they arrive, each once nothing of it has changed for `quiet` seconds, until interrupted.

        Results of files that have been taken away stay, and a folder that is away is waited for. A file that is gone before it
        could be read was never scored and is not listed: whatever it was renamed to is found, and so is the file if it is back.
        """
        with self._ledger(keep=True) as ledger:
            inbox, is_begun = Inbox(ledger.works()), bool(len(ledger))
            while True:
                try:
                    self.skipped.clear()
                    found = list(discover(self._request.studies, self._grouping.is_known, self.skipped))
                except InputError:  # a share that is away comes back
                    found = []
                settled = [study for study in self._studies(ledger, found) if _is_quiet(study.files, quiet)]
                replaced = [key for study in settled for key in inbox.replaced(study)]
                with_retries(partial(ledger.forget, replaced))
                if studies := [new for study in settled if (new := inbox.new(study))]:
                    with_retries(partial(self._plan, ledger, studies, with_retries(ledger.__len__)))
                again = with_retries(partial(self._try_again, ledger, quiet))
                if (studies or again or is_begun) and self._work(ledger, is_watched=True):
                    inbox = Inbox(ledger.works())
                is_begun = False
                pause(max(1.0, quiet / 4))

    @contextmanager
    def _ledger(self, keep: bool = False) -> Iterator[Ledger]:
        run = self._folder.begin(self._request.facts(self._bundle.manifest.bundle_id), keep)
        self.replaced = bool(run.replaced)
        self._reported_at = run.reported_at
        url = self._request.ledger or self._folder.ledger
        if run.replaced and self._request.ledger:
            with Ledger(url, run.replaced) as old:
                old.remove()
        with Ledger(url, run.key) as ledger:
            if run.goes_on:
                ledger.take_over()
                _reopen(ledger, self._scorer.base, self._folder.path)
            yield ledger

    def _studies(self, ledger: Ledger, files: list[StudyFile]) -> list[StudyFiles]:
        """Group files by study; if nothing can be read, write the tables of what is known all the same."""
        try:
            return self._grouping.studies(files, self._request.shard)
        except Exception as error:
            self._write(ledger, _not_begun(ledger, files, error), self._pending_results().names())
            raise

    def _plan(self, ledger: Ledger, studies: list[StudyFiles], first: int) -> None:
        """Enter studies into the ledger, their positions from `first` on."""
        base = self._scorer.base
        works = (Unit(one.key, place, one.fingerprint, files_to_json(one, base)) for place, one in enumerate(studies, first))
        ledger.add(works)

    def _try_again(self, ledger: Ledger, quiet: float = 0.0) -> int:
        """Have studies scored again that failed for what may have passed, if all their files are there and quiet."""
        failed = ledger.failed(MOST_ATTEMPTS)
        ids = [outcome.id for outcome in failed if _is_quiet(files_from_json(outcome.work, self._scorer.base), quiet)]
        ledger.retry_failed(ids)
        return len(ids)

    def _work(self, ledger: Ledger, is_watched: bool = False) -> bool:
        """Score what is not finished, and write tables and report, whatever ends it.

        Returns whether files of a watched folder were gone before they could be read; the ledger then forgets them.
        """
        finished = (StudyRecord.from_json(outcome.record) for outcome in ledger.outcomes(Order.POSITION))
        self._audience.planned(len(ledger), finished)
        pending_results = self._pending_results()
        loop = Loop(ledger, pending_results, self._tell)
        some_gone = False
        not_begun: list[Quarantined] = []
        try:
            with self._outcomes() as outcomes:
                loop.work(outcomes)
        except Exception as error:
            files = (file for _, work in ledger.works() for file in files_from_json(work, self._scorer.base))
            not_begun = _not_begun(ledger, files, error)
            raise
        finally:
            self.faults += loop.faults
            with delayed_interrupts():
                if is_watched:
                    some_gone = _forget_gone(ledger, self._scorer.base)
                self._write(ledger, not_begun, pending_results.names())
        return some_gone

    def _pending_results(self) -> PendingResults:
        return PendingResults(self._folder.pending_results, partial(_is_there, self._folder.path))

    def _tell(self, record: StudyRecord) -> None:
        self.scored += 1
        self._audience.done(record)

    @contextmanager
    def _outcomes(self) -> Iterator[Outcomes]:
        """Give what scores: this process, or a cluster."""
        if not self._request.cluster:
            yield self._scorer.outcomes
            return
        try:
            from pipeline.job.cluster import Cluster, Place
        except ImportError:
            raise ConfigError(["--engine ray needs Ray: pip install 'octray[cluster]'."]) from None
        bundle_id, code = self._bundle.manifest.bundle_id, dict(software_versions())
        folder = self._folder.path.absolute()
        place = Place(self._bundle.path.absolute(), bundle_id, code, self._scorer.base, folder, self._request.wanted)
        with Cluster(self._request.cluster, place) as cluster:
            yield cluster.outcomes

    def _write(self, ledger: Ledger, not_begun: Sequence[Quarantined], pending: Collection[str]) -> None:
        names = {output.name for outcome in ledger.outcomes(Order.POSITION) for output in outcome.outputs}
        self._folder.keep_pieces(names.union(pending))  # not those of studies that changed, or that a kill cut off
        self.totals = summarise(
            self._folder.path,
            ledger,
            self._bundle,
            self._progress,
            not_begun,
            studies=self._request.studies,
            since=self._reported_at,
            details=self._request.details,
        )
        self._folder.reported(time.time())


def _not_begun(ledger: Ledger, files: Iterable[StudyFile], error: Exception) -> list[Quarantined]:
    """Return why files were not looked at, of which nothing is known from an earlier run either.

    It is known if no process can be started that reads files, here or on a cluster, or if there is no memory.
    """
    why = lack_of_memory() if is_lack_of_memory(error) else str(error) if isinstance(error, InputError) else ""
    if not why:
        return []
    records = (StudyRecord.from_json(outcome.record) for outcome in ledger.outcomes(Order.POSITION))
    known = {source for record in records for source in record.sources()}
    return [Quarantined(file.source, Reason.NO_WORKER, why) for file in files if file.source not in known]


def _is_quiet(files: Sequence[StudyFile], seconds: float) -> bool:
    """Return whether all files are there, and nothing of them has changed for so many seconds."""
    return time.time() - changed_at(files) >= seconds


def _forget_gone(ledger: Ledger, base: Path) -> bool:
    """Forget files that were not there any more when they were to be read, and studies of which nothing is left."""
    some_gone = False
    for outcome in ledger.failed():
        record, files = StudyRecord.from_json(outcome.record), files_from_json(outcome.work, base)
        missing = {failure.source for failure in record.failures if failure.reason == Reason.MISSING}
        gone = {file.source for file in files if file.source in missing and not is_there(file.path)}
        if not gone:
            continue
        some_gone = True
        not_used = tuple(row for row in record.not_used if row.source not in gone)
        if not (record.frames or not_used):
            ledger.forget([outcome.key])
            continue
        is_final = not any(row.reason in PASSING for row in not_used)
        record = replace(record, not_used=not_used)
        ledger.replace(replace(outcome, record=record.to_json(), is_final=is_final), files_without(outcome.work, gone))
    return some_gone


def _reopen(ledger: Ledger, base: Path, folder: Path) -> None:
    """Have studies scored again of which something is gone that was written, and all files are there."""
    lost = {
        outcome.key: outcome.id
        for outcome in ledger.outcomes(Order.POSITION)
        if not all(_is_there(folder, output) for output in outcome.outputs)
    }
    if lost:
        works = [(key, work) for key, work in ledger.works() if key in lost]
        ledger.reopen(lost[key] for key, work in works if all(file.path.exists() for file in files_from_json(work, base)))


def _is_there(folder: Path, output: Output) -> bool:
    try:
        return (folder / output.name).stat().st_size == output.size
    except OSError:
        return False
