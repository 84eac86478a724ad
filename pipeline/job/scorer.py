"""Scores claimed studies on this machine, and writes what belongs to each of them."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from threadpoolctl import threadpool_limits

from pipeline.errors import PASSING, Reason
from pipeline.frames import Quarantined, of_whole_file
from pipeline.imaging.sources import StudyFile
from pipeline.job.folder import TRACES
from pipeline.job.outputs import Pieces, Wanted, Writer, trace_name, write_output
from pipeline.job.study_files import files_from_json
from pipeline.predictions import FramePrediction, StudyRecord
from pipeline.results.trace import Tracer
from pipeline.results.worklist import Ranking
from pipeline.score.predictor import Predictor
from pipeline.score.study import Ended, score_studies
from pipeline.store.ledger import Claim, Outcome, Output
from pipeline.version import software_versions

MOST_ATTEMPTS = 3
"""How often one version of a study is tried: within one run if it kills the process that reads it, once in each of several
runs if a file of it could not be opened, or took too much time or memory."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True)
class ScoredClaim:
    """A study that was scored.

    Parameters
    ----------
    claim
        The study.
    outcome
        What the ledger keeps of it; None where it killed the process that read it, and is to be tried again.
    faults
        Why files of it could not be drawn or written, one for each.
    """

    claim: Claim
    outcome: Outcome | None
    faults: tuple[str, ...] = ()


@dataclass(slots=True)
class _Study:
    """A study of which not everything is known or written."""

    claim: Claim
    files: tuple[StudyFile, ...]
    scored_at: float
    begun_at: str = field(default_factory=_now)
    frames: list[FramePrediction] = field(default_factory=list)
    failures: list[Quarantined] = field(default_factory=list)
    pieces: Pieces = field(default_factory=Pieces)

    def is_to_be_tried_again(self) -> bool:
        crashed = any(failure.reason == Reason.DECODER_CRASH for failure in self.failures)
        return crashed and self.claim.attempt < MOST_ATTEMPTS

    def is_final(self) -> bool:
        """Return whether another attempt would give the same; whether a file is refused is found out when it is discovered."""
        refused = {file.source for file in self.files if file.refusal}
        return not any(failure.reason in PASSING and failure.source not in refused for failure in self.failures)

    def uid(self) -> str:
        """Return the UID that the files state, else the derived one; empty where nothing could be read."""
        kind, _, stated = self.claim.key.partition(":")
        return stated if kind == "study" else self.frames[0].key.study_instance_uid if self.frames else ""

    def record(self) -> StudyRecord:
        scored = {frame.source for frame in self.frames}
        not_used: list[Quarantined] = []
        for source, group in groupby(self.failures, lambda row: row.source):
            rows = tuple(group)
            not_used += rows if source in scored else of_whole_file(rows)
        return StudyRecord(self.uid(), tuple(self.frames), tuple(not_used), self.begun_at, _now())

    def outcome(self, ranking: Ranking, outputs: tuple[Output, ...] = ()) -> Outcome:
        record = self.record().to_json()
        return Outcome(self.claim.id, record, *ranking.of_study(self.frames), outputs, self.is_final(), self.scored_at)


@dataclass(frozen=True, slots=True, eq=False)
class Scorer:
    """Scores studies with one bundle.

    Parameters
    ----------
    predictor
        What scores.
    base
        Folder below which the sources of the studies lie.
    folder
        That of the results.
    wanted
        What is written beside the record.
    cores
        How many it keeps at work.
    """

    predictor: Predictor
    base: Path
    folder: Path
    wanted: Wanted = field(default_factory=Wanted)
    cores: int = 1

    def outcomes(self, claims: Iterable[Claim]) -> Iterator[ScoredClaim]:
        """Score studies in the order of their claims, which are taken as needed; a study is done when all of it is written."""
        begun: deque[_Study] = deque()
        ended: deque[_Study] = deque()

        def studies() -> Iterator[tuple[_Study, tuple[StudyFile, ...]]]:
            for claim in claims:
                begun.append(_Study(claim, files_from_json(claim.work, self.base), claim.scored_at or time.time()))
                yield begun[-1], begun[-1].files

        tracer = self._tracer()
        with (
            threadpool_limits(1, "blas"),  # its threads would spin for the cores that read and score
            Writer(self.folder, self.predictor.manifest, self.wanted) as writer,
            closing(score_studies(studies(), self.predictor, self.cores, self.wanted.drawing)) as items,
        ):
            for item in items:
                if isinstance(item, FramePrediction):
                    begun[0].frames.append(writer.add(item, begun[0].pieces))
                elif isinstance(item, Ended):
                    ended.append(begun.popleft())
                    writer.end(ended[-1].files, ended[-1].pieces, ended[-1].scored_at)
                else:
                    begun[0].failures.append(item)
                while ended and ended[0].pieces.is_done():
                    yield self._done(ended.popleft(), tracer)
            while ended:
                yield self._done(ended.popleft(), tracer)

    def _done(self, study: _Study, tracer: Tracer) -> ScoredClaim:
        outputs, faults = study.pieces.outputs()
        if study.is_to_be_tried_again():
            return ScoredClaim(study.claim, None)
        manifest, record = self.predictor.manifest, study.record()
        trace = write_output(self.folder, f"{TRACES}/{trace_name(study.uid(), study.claim.key)}", tracer.trace(record))
        outcome = study.outcome(Ranking(manifest.normal_label, manifest.urgency), (*outputs, trace))
        return ScoredClaim(study.claim, outcome, faults)

    def _tracer(self) -> Tracer:
        engine = self.predictor.engine
        return Tracer(self.predictor.manifest, provider=engine.provider, threads=engine.threads, versions=software_versions())


def killed(claim: Claim, base: Path) -> ScoredClaim:
    """Return what is said of a study whose worker was killed: it is to be tried again, or was tried often enough."""
    if claim.attempt < MOST_ATTEMPTS:
        return ScoredClaim(claim, None)
    message = f"Reading or scoring the study ended its process {MOST_ATTEMPTS} times. Copy or export it again."
    study = _Study(claim, files_from_json(claim.work, base), claim.scored_at or time.time())
    study.failures += (Quarantined(file.source, Reason.DECODER_CRASH, message) for file in study.files)
    return ScoredClaim(claim, study.outcome(Ranking()))
