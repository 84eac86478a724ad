"""Scores claimed studies on this machine, and writes what belongs to each of them."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from threadpoolctl import threadpool_limits

from pipeline.errors import PASSING, Reason
from pipeline.frames import Quarantined
from pipeline.imaging.sources import StudyFile
from pipeline.job.folder import TRACES
from pipeline.job.outputs import OutputOptions, Pieces, Writer, trace_name, write_output
from pipeline.job.study_files import files_from_json
from pipeline.predictions import FramePrediction, StudyRecord
from pipeline.results.trace import Tracer
from pipeline.results.worklist import Ranking
from pipeline.score.predictor import Predictor
from pipeline.score.study import score_studies
from pipeline.store.ledger import Claim, Outcome, Output
from pipeline.version import software_versions

MOST_ATTEMPTS = 3
"""How often one version of a study is tried: within one run if it kills the process that reads it, once in each of several
runs if a file of it could not be opened, or took too much time or memory."""


@dataclass(frozen=True, slots=True)
class ScoredClaim:
    """A study that was scored.

    Parameters
    ----------
    claim
        The study.
    outcome
        What the ledger keeps of it; None if it killed the process that read it, and is to be retried.
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
    record: StudyRecord | None = None
    pieces: Pieces = field(default_factory=Pieces)

    def outcome(self, record: StudyRecord, ranking: Ranking, outputs: tuple[Output, ...] = ()) -> Outcome:
        """Return what the ledger keeps; it is final if another attempt would give the same.

        Whether a file is refused is found out when it is discovered.
        """
        refused = {file.source for file in self.files if file.refusal}
        is_final = not any(row.reason in PASSING and row.source not in refused for row in record.failures)
        return Outcome(self.claim.id, record.to_json(), *ranking.of_study(record.frames), outputs, is_final, self.scored_at)


@dataclass(frozen=True, eq=False)
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
    options
        What is written beside the record.
    cores
        How many it keeps at work.
    """

    predictor: Predictor
    base: Path
    folder: Path
    options: OutputOptions = field(default_factory=OutputOptions)
    cores: int = 1

    def outcomes(self, claims: Iterable[Claim]) -> Iterator[ScoredClaim]:
        """Score studies in the order of their claims, which are taken as needed; a study is done when all of it is written."""
        studies = (
            (study, study.files)
            for claim in claims
            if (study := _Study(claim, files_from_json(claim.work, self.base), claim.scored_at or time.time()))
        )
        forms = self.options.heatmap_forms
        waiting: deque[_Study] = deque()
        with (
            threadpool_limits(1, "blas"),  # its threads would spin for the cores that read and score
            Writer(self.folder, self.predictor.manifest, self.options) as writer,
            closing(score_studies(studies, self.predictor, heatmaps=forms, cores=self.cores)) as items,
        ):
            for study, item in items:
                if isinstance(item, FramePrediction):
                    writer.add(item, study.pieces)
                elif isinstance(item, StudyRecord):
                    study.record = replace(item, frames=tuple(map(writer.with_pictures, item.frames)))
                    writer.end(study.files, study.pieces, study.scored_at)
                    waiting.append(study)
                while waiting and waiting[0].pieces.is_done():
                    yield self._done(waiting.popleft())
            while waiting:
                yield self._done(waiting.popleft())

    def _done(self, study: _Study) -> ScoredClaim:
        outputs, faults = study.pieces.outputs()
        claim, record, manifest = study.claim, study.record, self.predictor.manifest
        assert record is not None  # noqa: S101 - for mypy
        if claim.attempt < MOST_ATTEMPTS and any(row.reason == Reason.DECODER_CRASH for row in record.failures):
            return ScoredClaim(claim, None)
        kind, _, stated = claim.key.partition(":")
        record = replace(record, study_instance_uid=stated if kind == "study" else record.study_instance_uid)
        name = f"{TRACES}/{trace_name(record.study_instance_uid, claim.key)}"
        trace = write_output(self.folder, name, self._tracer.trace(record))
        ranking = Ranking(manifest.normal_label, manifest.urgency)
        return ScoredClaim(claim, study.outcome(record, ranking, (*outputs, trace)), faults)

    @cached_property
    def _tracer(self) -> Tracer:
        engine = self.predictor.engine
        return Tracer(self.predictor.manifest, provider=engine.provider, threads=engine.threads, versions=software_versions())


def killed(claim: Claim, base: Path) -> ScoredClaim:
    """Return what is said of a study whose worker was killed: it is to be tried again, or was tried often enough."""
    if claim.attempt < MOST_ATTEMPTS:
        return ScoredClaim(claim, None)
    message = f"Reading or scoring the study ended its process {MOST_ATTEMPTS} times. Copy or export it again."
    study = _Study(claim, files_from_json(claim.work, base), claim.scored_at or time.time())
    kind, _, stated = claim.key.partition(":")
    failures = tuple(Quarantined(file.source, Reason.DECODER_CRASH, message) for file in study.files)
    return ScoredClaim(claim, study.outcome(StudyRecord(stated if kind == "study" else "", (), failures), Ranking()))
