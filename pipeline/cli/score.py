"""`octray score`: a folder of studies in; tables, heatmaps and a report page out."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.terminal import printable
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.cli.progress import Advance
    from pipeline.job.job import Job
    from pipeline.predictions import StudyRecord
    from pipeline.results.dicom import Kind
    from pipeline.results.patient import Detail

HELP = "score a folder of studies with a bundle"
EXAMPLE = "octray score studies/ --bundle bundle/ --out results/"
DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130
DETAILS = "name,id,birth_date,accession_number,study_date,device"
_FAULTS_SHOWN = 10
_LONGEST_JOB = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("studies", type=Path, metavar="STUDIES", help="folder of studies, or one file")
    parser.add_argument("--bundle", type=Path, required=True, help="folder that `octray train` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="RESULTS", help="folder for the results")
    parser.add_argument("--json", action="store_true", help="print one JSON object per frame on standard output")
    parser.add_argument("--no-heatmaps", action="store_true", help="draw no heatmaps")
    parser.add_argument(
        "--dicom",
        type=_kinds,
        default="",
        metavar="KINDS",
        help="also write DICOM objects, separated by commas: sr (report), pm (heatmaps), sc (heatmaps over the image)",
    )
    parser.add_argument(
        "--watch",
        type=_seconds,
        metavar="SECONDS",
        help="keep running: score each study once its files have not changed for SECONDS",
    )
    parser.add_argument(
        "--ledger",
        default="",
        metavar="URL",
        help="PostgreSQL database that records what is finished, instead of a file in RESULTS",
    )
    parser.add_argument(
        "--job",
        type=_job,
        default="",
        metavar="NAME",
        help="share the work with other processes that give the same NAME",
    )
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="score on this machine or on a Ray cluster")
    parser.add_argument("--address", default="auto", help="HOST:PORT of the Ray cluster; auto finds one on this machine")
    parser.add_argument(
        "--identity",
        type=_details,
        default="",
        metavar="DETAILS",
        help=f"name patients in the report: all, or some of {DETAILS}",
    )


def run(args: argparse.Namespace) -> int:
    """Score, write what was finished, say where it lies, and return the exit code."""
    from pipeline.imaging.file_workers import warm_file_worker

    if args.engine != "ray" and args.studies.exists():
        warm_file_worker()
    from pipeline.cli.progress import bar
    from pipeline.job.job import score_folder
    from pipeline.model.bundle import load_bundle

    with ExitStack() as stack:
        job = score_folder(
            args.studies,
            load_bundle(args.bundle),
            args.out,
            heatmaps=not args.no_heatmaps,
            objects=args.dicom,
            identity=args.identity,
            watch=args.watch,
            ledger=args.ledger,
            job=args.job,
            cluster=args.address if args.engine == "ray" else "",
            audience=_Audience(stack, args.json),
            progress=bar,
        )
    _say(args.out, job)
    if job.interrupted or job.totals is None:
        return INTERRUPTED
    if job.totals.failures and not job.totals.frames:
        told = f"failures.csv says why for each of the {job.totals.failures}"
        raise InputError(f"None of the files in {args.studies.resolve().name} could be scored; {told}.")
    return SOME_FAILED if job.totals.failures or job.faults else DONE


class _Audience:
    """Moves the bar and prints what was finished; what an earlier run has finished comes first."""

    def __init__(self, stack: ExitStack, print_json: bool) -> None:
        self._stack = stack
        self._advance: Advance | None = None
        self._out = sys.stdout if print_json else None  # as it is now: a cluster prints what it thinks, which goes elsewhere
        self._is_new = True
        self._total = self._done = self._failed = 0

    def started(self) -> None:
        from pipeline.cli.progress import study_bar

        self._advance = self._stack.enter_context(study_bar("scoring"))

    def planned(self, total: int, records: "Iterator[StudyRecord]") -> None:
        self._total, self._done, self._failed = total, 0, 0
        for record in records:
            self._count(record)
            self._print(record if self._is_new else None)
        self._is_new = False

    def done(self, record: "StudyRecord") -> None:
        self._count(record)
        self._print(record)

    def _count(self, record: "StudyRecord") -> None:
        self._done += 1
        self._failed += len(record.failures)
        if self._advance:
            self._advance(self._total, self._done, self._failed)

    def _print(self, record: "StudyRecord | None") -> None:
        from pipeline.results.tables import failure_record, frame_record

        if record and self._out:
            lines = [frame_record(frame) for frame in record.frames]
            lines += [failure_record(row) for row in (*record.failures, *record.without_image)]
            try:
                self._out.write("".join(f"{json.dumps(line)}\n" for line in lines))
                self._out.flush()
            except BrokenPipeError:  # the reader has gone, which is no reason to skip studies
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
                self._out = None


def _say(out: Path, job: "Job") -> None:
    """Say on standard error what was done and where it lies."""
    from pipeline.imaging.files.names import skipped_line
    from pipeline.job.folder import FAILURES, HEATMAPS, LEVELS, OBJECTS, PREDICTIONS, REPORT

    totals = job.totals
    if totals is None:
        told = f"Studies and single files processed in this run: {job.scored}. "
        sys.stderr.write(f"{told}Other processes of this job, or the next run, write tables and report.\n")
        return
    sys.stderr.write(
        f"Frames scored: {totals.frames}. Studies: {totals.studies}, with a finding: {totals.urgent}. "
        f"Files or frames not scored: {totals.failures}. Studies and single files processed in this run: {job.scored}.\n"
    )
    if totals.without_image:
        sys.stderr.write(
            f"Files without an image by their kind (reports, presentation states and the like): {totals.without_image}. "
            "There is nothing to score in them.\n"
        )
    if line := skipped_line(job.skipped):
        sys.stderr.write(f"{line}\n")
    if job.replaced:
        sys.stderr.write("The results of another bundle, folder, job or octray, which were there before, were removed.\n")
    if job.faults:
        sys.stderr.write(f"Heatmaps or DICOM objects that could not be written: {len(job.faults)}. The tables are complete.\n")
        for fault in job.faults[:_FAULTS_SHOWN]:
            sys.stderr.write(f"  {printable(fault)}\n")
    for path in (out / name for name in (REPORT, PREDICTIONS, LEVELS, FAILURES, HEATMAPS, OBJECTS)):
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            sys.stderr.write(f"  {path}\n")


def _kinds(text: str) -> "frozenset[Kind]":
    from pipeline.results.dicom import Kind

    try:
        return frozenset(Kind(name) for name in text.split(",") if text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must name some of {', '.join(Kind)}, with commas between") from None


def _details(text: str) -> "frozenset[Detail]":
    from pipeline.results.patient import Detail

    try:
        return frozenset(Detail) if text == "all" else frozenset(Detail(name) for name in text.split(",") if text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be all, or name some of {DETAILS}, with commas between") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _job(text: str) -> str:
    if len(text) > _LONGEST_JOB or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} must have at most {_LONGEST_JOB} printable characters")
    return text
