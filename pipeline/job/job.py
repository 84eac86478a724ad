"""A folder of studies into a folder of results: plans the studies, has them scored, and writes what people read."""

import errno
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.errors import PASSING, ConfigError, InputError, Reason, is_lack_of_memory, lack_of_memory
from pipeline.frames import Quarantined
from pipeline.imaging.sources import StudyFile, discover
from pipeline.job.folder import ResultsFolder, Run, base_of
from pipeline.job.loop import Loop, Outcomes, PendingResults, delayed_interrupts, with_retries
from pipeline.job.scorer import MOST_ATTEMPTS, Scorer
from pipeline.job.study_files import (
    Grouping,
    Inbox,
    StudyFiles,
    changed_at,
    current_mark,
    files_from_json,
    files_to_json,
    files_without,
    is_there,
    marks_from_json,
)
from pipeline.job.summary import summarise
from pipeline.model.bundle import Bundle
from pipeline.predictions import StudyRecord
from pipeline.progress import Progress, silent
from pipeline.results.dicom import Kind
from pipeline.results.patient import Detail
from pipeline.results.worklist import Totals
from pipeline.score.predictor import Predictor
from pipeline.store.database import file_address, without_password
from pipeline.store.ledger import Ledger, Order, Output, Unit
from pipeline.store.sharing import JobMember, wait_for
from pipeline.version import scoring_versions, software_versions
from pipeline.workers.cores import usable_cores

_POLL_SECONDS = 0.5
_FILES_COMPARED = 20
"""Studies of which a process that joins compares the files with those that were listed."""


class Audience(Protocol):
    """Is notified of the progress of a job."""

    def started(self) -> None:
        """The results folder may be written to, and the studies are looked for."""

    def planned(self, total: int, records: Iterator[StudyRecord]) -> None:
        """This many studies were found; `records` are those that an earlier run has finished."""

    def done(self, record: StudyRecord) -> None:
        """A study is finished: what it says is in the ledger, and its pictures are written."""


class _NoAudience:
    """An audience that does not listen."""

    def started(self) -> None:
        pass

    def planned(self, total: int, records: Iterator[StudyRecord]) -> None:
        pass

    def done(self, record: StudyRecord) -> None:
        pass


def score_folder(
    studies: Path | str,
    bundle: Bundle,
    out: Path | str,
    *,
    heatmaps: bool = True,
    objects: Collection[str] = (),
    identity: Collection[str] = (),
    watch: float | None = None,
    ledger: str = "",
    job: str = "",
    cluster: str = "",
    audience: Audience | None = None,
    progress: Progress = silent,
) -> "Job":
    """Score a folder of studies, and write tables, pictures and a report; what an earlier call has finished is not done again.

    Parameters
    ----------
    studies
        A folder, or one file.
    bundle
        As `load_bundle` gives it.
    out
        Folder of the results; neither it nor the studies may lie inside the other.
    heatmaps
        Whether pictures of heatmaps are written.
    objects
        Which DICOM objects are written for each DICOM file: sr (report), pm (heatmaps), sc (heatmaps over the image).
    identity
        What the report says of patients and examinations: some of name, id, birth_date, accession_number, study_date, device.
    watch
        Seconds for which nothing of a study must have changed before it is scored: the call then goes on until Ctrl+C. None
        scores what is there, and returns.
    ledger
        Address of a PostgreSQL database that keeps the results; empty: a file in the results folder.
    job
        Name under which other processes, also on other machines, share the work.
    cluster
        HOST:PORT of the Ray cluster that scores; `auto` finds one on this machine; empty: this process scores.
    audience
        Is told of every study that is finished.
    progress
        Shows how the report is written.

    Returns
    -------
    Job
        How it went: `totals` of frames, studies and failures, `faults`, and whether it was `interrupted`.

    Raises
    ------
    InputError
        If there is no study, the folders lie inside each other, or the results cannot be written.
    ConfigError
        If an argument names what there is not, or Ray is not installed.
    """
    studies, out = Path(studies), Path(out)
    _check_places(studies, bundle.path, out)
    kinds, details = _choices(Kind, objects, "objects"), _choices(Detail, identity, "identity")
    predictor, audience = Predictor(bundle, threads=1), audience or _NoAudience()
    try:
        with ResultsFolder(out) as folder:
            audience.started()
            scored = Job(
                studies,
                folder,
                bundle,
                predictor,
                audience,
                progress,
                heatmaps=heatmaps,
                objects=kinds,
                name=job,
                ledger=ledger,
                cluster=cluster,
                details=details,
            )
            try:
                if watch is None:
                    scored.score()
                else:
                    scored.watch(watch)
            except KeyboardInterrupt:
                scored.interrupted = True
            return scored
    except OSError as error:
        if not _is_of(error, out):
            raise
        raise InputError(f"The results folder {_name(out)} cannot be written: {error.strerror}.") from None


_Choice = TypeVar("_Choice", bound=StrEnum)


def _choices(kind: type[_Choice], names: Collection[str], argument: str) -> frozenset[_Choice]:
    if unknown := sorted({*names} - {*kind}):
        raise ConfigError([f"{argument}: there is no {', '.join(unknown)}. Name some of {', '.join(kind)}."])
    return frozenset(map(kind, names))


def _check_places(studies: Path, bundle: Path, out: Path) -> None:
    if not studies.exists():
        raise InputError(f"There is no file or folder {_name(studies)}. Give the folder of studies to score.")
    if out.resolve().is_relative_to(bundle.resolve()):
        raise InputError(f"The results must not lie in the folder of the bundle, {_name(bundle)}. Give another --out.")
    if studies.resolve().is_relative_to(out.resolve()):
        where = f"The results folder {_name(out)} must not contain the studies {_name(studies)}"
        raise InputError(f"{where}, since octray deletes old results in it. Give another --out.")
    if out.resolve().is_relative_to(studies.resolve()):
        where = f"The results folder {_name(out)} must not lie inside {_name(studies)}"
        raise InputError(f"{where}: its heatmaps would be scored in the next run. Give another --out.")


def _is_of(error: OSError, out: Path) -> bool:
    """Say whether an error is one of a file among the results; that of a full disk names none."""
    if error.filename is None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
    return Path(os.fsdecode(error.filename)).resolve().is_relative_to(out.resolve())


def _name(path: Path) -> str:
    return path.resolve().name


class Job:
    """A folder of studies and its results; `score` once, or `watch` a folder in which studies arrive.

    Any number of processes may work on the same job at the same time, on one machine or on several. They are those that give
    the same results folder, ledger, job name and bundle.

    Parameters
    ----------
    studies
        A folder, or one file.
    folder
        The results folder, entered already.
    bundle, predictor
        What scores.
    audience
        Is notified of progress.
    progress
        Shows how the report is written.
    heatmaps
        Whether pictures of heatmaps are written.
    objects
        Which DICOM objects are written for each DICOM file.
    name
        Name of the job in the ledger. If it is given, other processes may find the studies under other paths.
    ledger
        Address of the database that holds the ledger; empty: a file in the results folder.
    cluster
        Address of the Ray cluster that scores; empty: this process does.
    details
        What the report says of patients and examinations; no result depends on it.

    Attributes
    ----------
    totals
        Of the last time that tables and report were written; None if that is left to other processes.
    skipped
        Files that systems leave behind, which were skipped when the folder was last looked at, and how often.
    replaced
        Whether results of another job were removed for this one.
    scored
        How many studies this process has finished.
    faults
        Names of files of studies that could not be drawn or written, each with the reason.
    interrupted
        Whether Ctrl+C ended it. What was finished by then is written.
    """

    def __init__(
        self,
        studies: Path,
        folder: ResultsFolder,
        bundle: Bundle,
        predictor: Predictor,
        audience: Audience,
        progress: Progress = silent,
        *,
        heatmaps: bool = True,
        objects: frozenset[Kind] = frozenset(),
        name: str = "",
        ledger: str = "",
        cluster: str = "",
        details: frozenset[Detail] = frozenset(),
    ) -> None:
        self._root = studies
        self._folder = folder
        self._bundle = bundle
        self._audience = audience
        self._progress = progress
        self._heatmaps = heatmaps
        self._objects = objects
        self._name = name
        self._url = ledger
        self._cluster = cluster
        self._details = details
        self._scorer = Scorer(
            predictor, base_of(studies), folder.path, heatmaps=heatmaps, objects=objects, cores=usable_cores()
        )
        self._grouping = Grouping()
        self.skipped: Counter[str] = Counter()
        self.replaced = False
        self.scored = 0
        self.faults: list[str] = []
        self.interrupted = False
        self.totals: Totals | None = None
        self._reported_at = 0.0

    def score(self) -> None:
        """Score everything that is there and not finished yet, and write tables and report, even if that is interrupted.

        Raises
        ------
        InputError
            If there is no file at all; what was scored before stays as it is.
        """
        if next(iter(discover(self._root)), None) is None:
            name = self._root.resolve().name
            raise InputError(f"{name} holds no files. Give a folder of DICOM, PNG, JPEG or TIFF files.")
        with self._joined() as (ledger, member):
            while wait_for(lambda: with_retries(member.take_planning)):
                with_retries(partial(_reopen, ledger, self._scorer.base, self._folder.path))
                self.skipped.clear()
                files = list(discover(self._root, skipped=self.skipped))
                studies = self._studies(ledger, member, files)
                with_retries(partial(self._plan, ledger, studies, 0))
                if not with_retries(member.is_leader):  # this process was taken for dead, and the list of another one is newer
                    continue
                with_retries(partial(ledger.keep, {study.key for study in studies}))
                with_retries(partial(self._try_again, ledger))
                if with_retries(member.planned):
                    break
            else:
                self._check_files(ledger)
            self._work(ledger, member)

    def watch(self, quiet: float, pause: Callable[[float], None] = time.sleep) -> None:
        """Score studies as they arrive, each once nothing of it has changed for `quiet` seconds, until interrupted.

        Results of files that have been taken away stay, and a folder that is away is waited for. A file that is gone before it
        could be read was never scored and is not listed: whatever it was renamed to is found, and so is the file if it is back.
        """
        with self._joined(is_watch=True) as (ledger, member):
            wait_for(lambda: with_retries(member.take_planning))  # a process of another machine may have died just now
            _reopen(ledger, self._scorer.base, self._folder.path)
            inbox, is_begun = Inbox(ledger.works()), bool(len(ledger))
            while True:
                try:
                    self.skipped.clear()
                    found = list(discover(self._root, self._grouping.is_known, self.skipped))
                except InputError:  # a share that is away comes back
                    found = []
                settled = [study for study in self._studies(ledger, member, found) if _is_quiet(study.files, quiet)]
                replaced = [key for study in settled for key in inbox.replaced(study)]
                with_retries(partial(ledger.forget, replaced))
                if studies := [new for study in settled if (new := inbox.new(study))]:
                    with_retries(partial(self._plan, ledger, studies, with_retries(ledger.__len__)))
                again = with_retries(partial(self._try_again, ledger, quiet))
                if studies or again or is_begun:
                    with_retries(member.take_planning)
                    with_retries(member.planned)
                    if self._work(ledger, member, is_watched=True):
                        inbox = Inbox(ledger.works())
                is_begun = False
                pause(max(1.0, quiet / 4))

    @contextmanager
    def _joined(self, is_watch: bool = False) -> Iterator[tuple[Ledger, JobMember]]:
        """Begin the results of this job, go on with them, or join the processes that work on them."""
        url = self._url or file_address(self._folder.ledger)
        with ExitStack() as stack:
            is_file = not self._url or self._url.startswith("sqlite")
            with self._folder.starting(is_watch=is_watch, is_one_machine=is_file) as is_alone:
                remove = self._remove_job if self._url else None
                run = self._folder.begin(self._facts(), self._name, is_alone=is_alone, keep=is_watch, remove_job=remove)
                self.replaced = bool(run.replaced)
                self._reported_at = run.reported_at
                ledger = stack.enter_context(Ledger(url, run.job))
                member = stack.enter_context(JobMember(ledger, run.id))
                member.join(is_alone)
            yield ledger, member

    def _remove_job(self, run: Run) -> None:
        """Remove the job of other results, unless it belongs to another folder: one that this process could not join."""
        with Ledger(self._url, run.job) as old:
            old.remove(run.id)

    def _facts(self) -> dict[str, object]:
        """Return all that results depend on, beside the studies themselves, by names for people."""
        return {
            "the bundle": self._bundle.manifest.bundle_id,
            "STUDIES or --job": self._name or os.fsencode(self._root.absolute()).hex(),
            "--no-heatmaps": self._heatmaps,
            "--dicom": sorted(self._objects),
            "--ledger": without_password(self._url),
            "the version of octray or its libraries": dict(scoring_versions()),
        }

    def _check_files(self, ledger: Ledger) -> None:
        """Find out whether this process sees the files that another one has listed."""
        works = [work for _, work in islice(ledger.works(), _FILES_COMPARED)]
        marks = [marks_from_json(work) for work in works]
        files = [files_from_json(work, self._scorer.base) for work in works]
        same = (current_mark(file) == mark[file.source] for mark, study in zip(marks, files, strict=True) for file in study)
        if works and not any(same):
            raise InputError(
                f"{self._root.resolve().name} does not hold the files that the other processes of this job score. Mount the "
                "same share on each machine; a copy is not enough."
            )

    def _studies(self, ledger: Ledger, member: JobMember, files: list[StudyFile]) -> list[StudyFiles]:
        """Group files by study; if nothing can be read, write the tables of what is known all the same."""
        try:
            return self._grouping.studies(files)
        except Exception as error:
            if member.take_writing():
                self.totals = self._write(ledger, _not_begun(ledger, files, error))
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

    def _work(self, ledger: Ledger, member: JobMember, is_watched: bool = False) -> bool:
        """Score what is not finished, and write tables and report, whatever ends it, unless another process of the job does.

        Returns whether files of a watched folder were gone before they could be read; the ledger then forgets them.
        """
        finished = (StudyRecord.from_json(outcome.record) for outcome in ledger.outcomes(Order.POSITION))
        self._audience.planned(len(ledger), finished)
        loop = Loop(ledger, member.owner, self._pending_results(), self._tell)
        some_gone, is_ended = False, False
        not_begun: list[Quarantined] = []
        try:
            with self._outcomes() as outcomes:
                loop.work(outcomes)
                while with_retries(member.summary) is None:
                    if not with_retries(ledger.unfinished) and with_retries(member.take_writing):
                        break
                    time.sleep(_POLL_SECONDS)  # what others hold is finished by them, or claimed here once their leases run out
                    loop.work(outcomes)
            is_ended = True
        except Exception as error:
            files = (file for _, work in ledger.works() for file in files_from_json(work, self._scorer.base))
            not_begun = _not_begun(ledger, files, error)
            raise
        finally:
            self.faults += loop.faults
            self.totals = None
            attempt: Callable[[Callable[[], Any]], Any] = with_retries if is_ended else _once
            with delayed_interrupts():
                if attempt(member.take_writing):
                    some_gone = is_watched and attempt(partial(_forget_gone, ledger, self._scorer.base))
                    totals = attempt(partial(self._write, ledger, not_begun))
                    if attempt(partial(member.finish, json.dumps(asdict(totals)))):
                        self.totals = totals
        if is_ended and self.totals is None:
            if (summary := with_retries(member.summary)) is None:  # this process was taken for dead while it wrote
                return self._work(ledger, member, is_watched)
            self.totals = Totals(**json.loads(summary))
        return some_gone

    def _pending_results(self) -> PendingResults:
        return PendingResults(self._folder.pending_results, partial(_is_there, self._folder.path))

    def _tell(self, record: StudyRecord) -> None:
        self.scored += 1
        self._audience.done(record)

    @contextmanager
    def _outcomes(self) -> Iterator[Outcomes]:
        """Give what scores: this process, or a cluster."""
        if not self._cluster:
            yield self._scorer.outcomes
            return
        try:
            from pipeline.job.cluster import ActorSettings, Cluster
        except ImportError:
            raise ConfigError(["--engine ray needs Ray: pip install 'octray[cluster]'."]) from None
        bundle_id, code = self._bundle.manifest.bundle_id, dict(software_versions())
        folder = self._folder.path.absolute()
        settings = ActorSettings(
            self._bundle.path.absolute(), bundle_id, code, self._scorer.base, folder, self._heatmaps, self._objects
        )
        with Cluster(self._cluster, settings) as cluster:
            yield cluster.outcomes

    def _write(self, ledger: Ledger, not_begun: Sequence[Quarantined]) -> Totals:
        names = {output.name for outcome in ledger.outcomes(Order.POSITION) for output in outcome.outputs}
        names |= self._pending_results().names()
        self._folder.keep_pieces(names)  # not those of studies that changed, or that a kill cut off
        totals = summarise(
            self._folder.path,
            ledger,
            self._bundle,
            self._progress,
            not_begun,
            studies=self._root,
            since=self._reported_at,
            details=self._details,
        )
        self._folder.reported(time.time())
        return totals


def _once(ask: Callable[[], Any]) -> Any:
    return ask()


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
    """Return whether all files are there, and nothing of them has changed for this many seconds."""
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
