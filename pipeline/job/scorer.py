"""Scores claimed studies on this machine, and writes what belongs to each of them: heatmaps, DICOM objects and a trace."""

import hashlib
import re
import shutil
import time
import uuid
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

from pipeline.atomic import write_bytes
from pipeline.errors import PASSING, OctrayError, Reason, UnreadableError
from pipeline.frames import Quarantined
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.sources import StudyFile, read_bytes
from pipeline.job.folder import HEATMAPS, OBJECTS, PICTURES, TRACES
from pipeline.job.study_files import files_from_json
from pipeline.levels import LevelResult
from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction, StudyRecord
from pipeline.results.dicom import Kind
from pipeline.results.level_results import study_results
from pipeline.results.trace import Tracer
from pipeline.results.worklist import Ranking
from pipeline.score.study import HeatmapForm, score_studies
from pipeline.settings import Reading, worker_limits
from pipeline.store.ledger import Claim, Outcome, Output
from pipeline.version import software_versions

if TYPE_CHECKING:  # processes that make DICOM objects import this module under their limit of memory
    from pipeline.score.predictor import Predictor

MOST_ATTEMPTS = 3
"""How often one version of a study is tried: within one run if it kills the process that reads it, once in each of several
runs if a file of it could not be opened, or took too much time or memory."""
_WRITERS, _AHEAD = 2, 4
_OBJECT_SECONDS = 120.0
"""Of the processes that make DICOM objects: the report of a long volume takes longer than reading any frame."""
_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")


@dataclass(frozen=True, slots=True)
class ScoredClaim:
    """A study that was scored.

    Parameters
    ----------
    claim
        The study.
    outcome
        What the ledger keeps of it; None if it killed the process that read it, and is to be tried again.
    faults
        Why files of it could not be drawn or written, one for each.
    """

    claim: Claim
    outcome: Outcome | None
    faults: tuple[str, ...] = ()


Written = tuple[list[Output], list[tuple[str, Exception]]]
"""What was written, and the names of what was not, with the reasons."""


@dataclass(slots=True)
class _Study:
    """A study of which not everything is known or written.

    `outputs` are the files that are there, or, without a hash, those that could not be written: the next run sees that they
    are missing, and scores the study again to make them. `results` and `pictures` are what DICOM objects are made of, by
    source; pictures are the places of PNG files by frame number and label.
    """

    claim: Claim
    files: tuple[StudyFile, ...]
    scored_at: float
    record: StudyRecord = field(default_factory=lambda: StudyRecord(""))
    outputs: list[Output] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    being_written: list[Future[Written]] = field(default_factory=list)
    results: dict[str, list[FramePrediction]] = field(default_factory=dict)
    pictures: dict[str, dict[tuple[int, str], Path]] = field(default_factory=dict)
    levels: tuple[LevelResult, ...] = ()

    def is_written(self) -> bool:
        """Return whether all files are written."""
        return all(future.done() for future in self.being_written)

    def fail(self, name: str, why: str | Exception) -> None:
        """Note that a file could not be written."""
        if not isinstance(why, str):
            why = str(why) if isinstance(why, OctrayError) else getattr(why, "strerror", None) or type(why).__name__
        self.outputs.append(Output(name, "", 0))
        self.faults.append(f"{PurePosixPath(name).name}: {why}")

    def outcome(self, ranking: Ranking) -> Outcome:
        """Return what the ledger keeps; it is final if another attempt would give the same.

        Whether a file is refused is found out when it is discovered.
        """
        refused = {file.source for file in self.files if file.refusal}
        is_final = not any(row.reason in PASSING and row.source not in refused for row in self.record.failures)
        urgency = ranking.of_study(self.record.frames, self.levels)
        return Outcome(self.claim.id, self.record.to_json(), *urgency, tuple(self.outputs), is_final, self.scored_at)


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
        The results folder.
    heatmaps
        Whether pictures of heatmaps are written.
    objects
        Which DICOM objects are written for each DICOM file.
    cores
        How many it keeps at work.
    """

    predictor: "Predictor"
    base: Path
    folder: Path
    heatmaps: bool = True
    objects: frozenset[Kind] = frozenset()
    cores: int = 1

    def outcomes(self, claims: Iterable[Claim]) -> Iterator[ScoredClaim]:
        """Score studies in the order of their claims, which are taken as needed; a study is done when all of it is written."""
        needed: dict[HeatmapForm, bool] = {
            "values": Kind.PM in self.objects,
            "jpeg": self.heatmaps,
            "png": Kind.SC in self.objects,
        }
        forms = [form for form, is_needed in needed.items() if is_needed]
        begun = (_Study(claim, files_from_json(claim.work, self.base), claim.scored_at or time.time()) for claim in claims)
        studies = ((study, study.files) for study in begun)
        waiting: deque[_Study] = deque()
        (self.folder / HEATMAPS).mkdir(parents=True, exist_ok=True)
        with (
            threadpool_limits(1, "blas"),  # its threads would spin for the cores that read and score
            ObjectWriter(self.folder, self.predictor.manifest, self.objects) as writer,
            closing(score_studies(studies, self.predictor, heatmaps=forms, cores=self.cores)) as items,
        ):
            for study, item in items:
                if isinstance(item, FramePrediction):
                    self._write_heatmaps(study, item, writer.pictures)
                elif isinstance(item, StudyRecord):
                    study.record = replace(item, frames=tuple(map(self._with_pictures, item.frames)))
                    study.levels = study_results(study.record, self.predictor.manifest)
                    writer.begin(study)
                    waiting.append(study)
                while waiting and waiting[0].is_written():
                    yield self._finished(waiting.popleft())
            while waiting:
                yield self._finished(waiting.popleft())

    def _write_heatmaps(self, study: _Study, result: FramePrediction, aside: Path) -> None:
        """Write the pictures of a frame, and put aside what DICOM objects are made of."""
        is_dicom = bool(result.facts.transfer_syntax_uid)
        if self.objects and is_dicom:
            bare = replace(result, heatmaps=tuple(replace(one, jpeg=b"", png=b"") for one in result.heatmaps))
            study.results.setdefault(result.source, []).append(bare)
        for heatmap in result.heatmaps:
            name = picture_name(result, heatmap.label)
            if heatmap.png and is_dicom:
                path = aside / name
                try:
                    write_bytes(path, heatmap.png)
                except OSError as error:
                    study.fail(f"{OBJECTS}/{name}", error)
                else:
                    study.pictures.setdefault(result.source, {})[result.key.frame_number, heatmap.label] = path
            if self.heatmaps and heatmap.fault:
                study.fail(f"{HEATMAPS}/{name}", heatmap.fault)
            elif heatmap.jpeg:
                try:
                    study.outputs.append(write_output(self.folder, f"{HEATMAPS}/{name}", heatmap.jpeg))
                except OSError as error:
                    study.fail(f"{HEATMAPS}/{name}", error)

    def _with_pictures(self, result: FramePrediction) -> FramePrediction:
        """Return a frame of a record with the paths of its pictures."""
        drawn = result.heatmaps if self.heatmaps else ()
        named = (replace(one, picture=f"{HEATMAPS}/{picture_name(result, one.label)}") for one in drawn)
        return replace(result, heatmaps=tuple(named))

    def _finished(self, study: _Study) -> ScoredClaim:
        """Wait until all files of a study are written, and return its outcome."""
        for future in study.being_written:
            outputs, failures = future.result()
            study.outputs += outputs
            for name, error in failures:
                study.fail(name, error)
        claim, manifest = study.claim, self.predictor.manifest
        if claim.attempt < MOST_ATTEMPTS and any(row.reason == Reason.DECODER_CRASH for row in study.record.failures):
            return ScoredClaim(claim, None)
        kind, _, stated = claim.key.partition(":")
        if kind == "study":
            study.record = replace(study.record, study_instance_uid=stated)
        name = trace_name(study.record.study_instance_uid, claim.key)
        study.outputs.append(write_output(self.folder, name, self._tracer.trace(study.record)))
        outcome = study.outcome(Ranking(manifest.normal_label, manifest.urgency))
        return ScoredClaim(claim, outcome, tuple(study.faults))

    @cached_property
    def _tracer(self) -> Tracer:
        engine = self.predictor.engine
        return Tracer(self.predictor.manifest, provider=engine.provider, threads=engine.threads, versions=software_versions())


def killed(claim: Claim, base: Path) -> ScoredClaim:
    """Return the record of a study whose worker was killed: it will be tried again, or was tried often enough."""
    if claim.attempt < MOST_ATTEMPTS:
        return ScoredClaim(claim, None)
    message = f"Reading or scoring the study ended its process {MOST_ATTEMPTS} times. Copy or export it again."
    study = _Study(claim, files_from_json(claim.work, base), claim.scored_at or time.time())
    kind, _, stated = claim.key.partition(":")
    failures = tuple(Quarantined(file.source, Reason.DECODER_CRASH, message) for file in study.files)
    study.record = StudyRecord(stated if kind == "study" else "", (), failures)
    return ScoredClaim(claim, study.outcome(Ranking()))


class ObjectWriter:
    """Writes the DICOM objects of studies, which take long, in threads of its own.

    Parameters
    ----------
    folder
        The results folder.
    manifest
        That of the bundle.
    kinds
        Which objects are written.

    Attributes
    ----------
    pictures
        Folder of pictures that objects are still to be made of; other processes of a job have folders of their own.
    """

    def __init__(self, folder: Path, manifest: Manifest, kinds: Collection[Kind]) -> None:
        self.pictures = folder / PICTURES / uuid.uuid4().hex
        self._folder = folder
        self._manifest = manifest
        self._kinds = kinds
        self._workers = file_workers(_WRITERS, replace(worker_limits(), frame_seconds=_OBJECT_SECONDS))
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        self._waiting: deque[Future[Written]] = deque()

    def __enter__(self) -> "ObjectWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._workers.close()  # what it is still making is not needed
        self._pool.shutdown(cancel_futures=True)
        shutil.rmtree(self.pictures, ignore_errors=True)

    def begin(self, study: _Study) -> None:
        """Begin to write the objects of a study of which all frames are scored; few files wait, to bound memory."""
        for file in study.files:
            if results := study.results.pop(file.source, None):
                future = self._pool.submit(
                    self._write, file, results, study.levels, study.scored_at, study.pictures.pop(file.source, {})
                )
                study.being_written.append(future)
                self._waiting.append(future)
                if len(self._waiting) > _AHEAD:
                    self._waiting.popleft().exception()

    def _write(
        self,
        file: StudyFile,
        results: Sequence[FramePrediction],
        levels: Sequence[LevelResult],
        made_at: float,
        pictures: Mapping[tuple[int, str], Path],
    ) -> Written:
        """Write the objects of one file, made in a process of their own, since the file is parsed once more for them."""
        task = partial(
            objects_of,
            results=results,
            levels=levels,
            manifest=self._manifest,
            kinds=self._kinds,
            made_at=made_at,
            pictures=pictures,
        )
        own = mark(file.source)
        outputs: list[Output] = []
        try:
            for name, content in self._workers.run(task, file):
                outputs.append(write_output(self._folder, f"{OBJECTS}/{name.removesuffix('.dcm')}_{own}.dcm", content))
        except (OctrayError, OSError) as error:
            return outputs, [(f"{OBJECTS}/{file.source}", error)]
        finally:
            for path in pictures.values():
                path.unlink(missing_ok=True)
        return outputs, []


class _Pictures(Mapping[tuple[int, str], bytes]):
    """The content of files, read one by one: those of a long volume do not fit into memory."""

    def __init__(self, paths: Mapping[tuple[int, str], Path]) -> None:
        self._paths = paths

    def __getitem__(self, key: tuple[int, str]) -> bytes:
        return self._paths[key].read_bytes()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def objects_of(
    file: StudyFile,
    *,
    results: Sequence[FramePrediction],
    levels: Sequence[LevelResult] = (),
    manifest: Manifest,
    kinds: Collection[Kind],
    made_at: float,
    pictures: Mapping[tuple[int, str], Path],
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each DICOM object of a file; made for worker processes.

    Parameters
    ----------
    file
        A DICOM file.
    results
        Of its frames.
    levels
        Of its study and the eyes in it.
    manifest
        That of the bundle.
    kinds
        Which objects to make.
    made_at
        When the results were first made, in seconds since 1970.
    pictures
        PNG files by frame number and label.

    Raises
    ------
    UnreadableError
        As `read_bytes` and `write_objects`, and if the file is not the one that was scored: its objects would give the results
        of one patient to another.
    """
    from pipeline.results.dicom.write import write_objects

    content = read_bytes(file, Reading(manifest.limits))
    if {result.facts.file_sha256 for result in results} != {hashlib.sha256(content).hexdigest()}:
        raise UnreadableError(Reason.INCONSISTENT, "The file was replaced after it was scored. Score it again.")
    made = datetime.fromtimestamp(made_at, UTC)
    yield from write_objects(content, results, manifest, kinds, made, _Pictures(pictures), levels)


def write_output(folder: Path, name: str, content: bytes) -> Output:
    """Write one file below the results folder, and say what it is."""
    write_bytes(folder / name, content)
    return Output(name, hashlib.sha256(content).hexdigest(), len(content))


def picture_name(frame: FramePrediction, label: str) -> str:
    """Return a safe name for the heatmap of a frame and label that no other of a run has, whatever their UIDs are."""
    key = frame.key
    own = mark(frame.source, str(key.frame_number), label)
    return f"{_safe(key.sop_instance_uid)}_f{key.frame_number:04d}_{_safe(label)}_{own}.jpg"


def trace_name(study_instance_uid: str, key: str) -> str:
    """Return a safe path below the results folder for the trace of a study that no other of a run has."""
    return f"{TRACES}/{_safe(study_instance_uid)}_{mark(key)}.trace.json"


def mark(*parts: str) -> str:
    """Return sixteen characters that are the same for the same parts, and others for others."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _safe(text: str) -> str:
    """Return text as part of a file name: letters, digits, points and hyphens, at most 64."""
    return _UNSAFE.sub("-", text).strip("-.")[:64] or "unnamed"
