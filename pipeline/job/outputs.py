"""What is written of one study beside its record, each file under a name of its own: pictures of heatmaps, DICOM objects."""

import hashlib
import re
import shutil
import uuid
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath

from pipeline.atomic import write_bytes
from pipeline.errors import OctrayError, Reason, UnreadableError
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.sources import StudyFile, read_bytes
from pipeline.job.folder import HEATMAPS, OBJECTS, PICTURES
from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction, Heatmap
from pipeline.results.dicom import Kind
from pipeline.score.study import HeatmapForm
from pipeline.settings import Reading, worker_limits
from pipeline.store.ledger import Output


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A file, the results of its frames, when they were first made in seconds since 1970, and where their pictures lie.

    Pictures are PNG files by frame number and label.
    """

    file: StudyFile
    results: tuple[FramePrediction, ...]
    made_at: float
    pictures: Mapping[tuple[int, str], Path]


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


def objects_of(asked: Asked, manifest: Manifest, kinds: Collection[Kind]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each object.

    Raises
    ------
    UnreadableError
        As `read_bytes` and `write_objects`, and where the file is not the one that was scored: its objects would give the
        results of one patient to another.
    """
    from pipeline.results.dicom.write import write_objects

    content = read_bytes(asked.file, Reading(manifest.limits))
    if {result.facts.file_sha256 for result in asked.results} != {hashlib.sha256(content).hexdigest()}:
        raise UnreadableError(Reason.INCONSISTENT, "The file was replaced after it was scored. Score it again.")
    made = datetime.fromtimestamp(asked.made_at, UTC)
    yield from write_objects(content, asked.results, manifest, kinds, made, _Pictures(asked.pictures))


_WRITERS, _AHEAD = 2, 4
_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")

_OBJECT_SECONDS = 120.0
"""For making a DICOM object: the report of a long volume takes longer than reading any frame."""

Written = Future[tuple[list[Output], list[tuple[str, str]]]]
"""What was written, and the names of what was not, with the reasons."""


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What is written of a study beside its record.

    Parameters
    ----------
    heatmaps
        Whether there are pictures of heatmaps.
    objects
        Which DICOM objects there are for each DICOM file.
    """

    heatmaps: bool = True
    objects: frozenset[Kind] = frozenset()

    @property
    def heatmap_forms(self) -> frozenset[HeatmapForm]:
        """What is made of the heatmaps of a frame."""
        needed: dict[HeatmapForm, bool] = {
            "values": Kind.PM in self.objects,
            "jpeg": self.heatmaps,
            "png": Kind.SC in self.objects,
        }
        return frozenset(form for form, is_needed in needed.items() if is_needed)


@dataclass(slots=True)
class Pieces:
    """The files of one study, and what is still needed to write the last of them.

    `written` are those that are there, or, without a hash, those that could not be written: the next run sees that they are
    missing, and scores the study again to make them. `results` and `pictures` are those that DICOM objects are made of;
    pictures are the places of PNG files by frame number and label.
    """

    written: list[Output] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    under_way: list[Written] = field(default_factory=list)
    results: dict[str, list[FramePrediction]] = field(default_factory=dict)
    pictures: dict[str, dict[tuple[int, str], Path]] = field(default_factory=dict)

    def is_done(self) -> bool:
        """Say whether nothing has to be waited for."""
        return all(written.done() for written in self.under_way)

    def outputs(self) -> tuple[tuple[Output, ...], tuple[str, ...]]:
        """Wait for every file; return what was written, and of others their names and why they were not."""
        for written in self.under_way:
            outputs, faults = written.result()
            self.written += outputs
            for name, why in faults:
                self.fail(name, why)
        self.under_way.clear()
        return tuple(self.written), tuple(self.faults)

    def fail(self, name: str, why: str) -> None:
        """Note that a file could not be written."""
        self.written.append(Output(name, "", 0))
        self.faults.append(f"{PurePosixPath(name).name}: {why}")


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, OctrayError) else getattr(error, "strerror", None) or type(error).__name__


class Writer:
    """Writes what belongs to studies: pictures at once, DICOM objects, which take long, in threads of its own.

    Parameters
    ----------
    folder
        That of the results.
    manifest
        Of the bundle.
    options
        What is written.
    """

    def __init__(self, folder: Path, manifest: Manifest, options: OutputOptions) -> None:
        self._folder = folder
        self._pictures = folder / PICTURES / uuid.uuid4().hex  # not those of other processes of the job
        self._manifest = manifest
        self._options = options
        self._workers = file_workers(_WRITERS, replace(worker_limits(), frame_seconds=_OBJECT_SECONDS))
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        self._waiting: deque[Written] = deque()
        (folder / HEATMAPS).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._workers.close()  # nobody wants what it is still making
        self._pool.shutdown(cancel_futures=True)
        shutil.rmtree(self._pictures, ignore_errors=True)

    def add(self, result: FramePrediction, pieces: Pieces) -> None:
        """Write the pictures of a frame, and keep what DICOM objects are made of."""
        if self._options.objects and result.facts.transfer_syntax_uid:
            bare = replace(result, heatmaps=tuple(replace(one, jpeg=b"", png=b"") for one in result.heatmaps))
            pieces.results.setdefault(result.source, []).append(bare)
        for heatmap in result.heatmaps:
            if heatmap.png and result.facts.transfer_syntax_uid:
                self._keep(result, heatmap, pieces)
            if self._options.heatmaps and (heatmap.jpeg or heatmap.fault):
                self._write(f"{HEATMAPS}/{picture_name(result, heatmap.label)}", heatmap, pieces)

    def with_pictures(self, result: FramePrediction) -> FramePrediction:
        """Return a frame of a record with the paths of its pictures."""
        drawn = result.heatmaps if self._options.heatmaps else ()
        named = (replace(one, picture=f"{HEATMAPS}/{picture_name(result, one.label)}") for one in drawn)
        return replace(result, heatmaps=tuple(named))

    def end(self, files: Iterable[StudyFile], pieces: Pieces, scored_at: float) -> None:
        """Begin to write the DICOM objects of a study whose frames have all been added; few files wait, to bound memory.

        `scored_at` is when the study was first scored, in seconds since 1970.
        """
        for file in files:
            if results := pieces.results.pop(file.source, None):
                asked = Asked(file, tuple(results), scored_at, pieces.pictures.pop(file.source, {}))
                written = self._pool.submit(self._write_objects, asked)
                pieces.under_way.append(written)
                self._waiting.append(written)
                if len(self._waiting) > _AHEAD:
                    self._waiting.popleft().exception()

    def _keep(self, frame: FramePrediction, drawn: Heatmap, pieces: Pieces) -> None:
        """Put a picture aside until the DICOM objects of its file are made."""
        name = picture_name(frame, drawn.label)
        path = self._pictures / name
        try:
            write_bytes(path, drawn.png)
        except OSError as error:
            pieces.fail(f"{OBJECTS}/{name}", _why(error))
        else:
            pieces.pictures.setdefault(frame.source, {})[frame.key.frame_number, drawn.label] = path

    def _write(self, name: str, drawn: Heatmap, pieces: Pieces) -> None:
        if drawn.fault:
            pieces.fail(name, drawn.fault)
            return
        try:
            pieces.written.append(write_output(self._folder, name, drawn.jpeg))
        except OSError as error:
            pieces.fail(name, _why(error))

    def _write_objects(self, asked: Asked) -> tuple[list[Output], list[tuple[str, str]]]:
        """Write the DICOM objects of one file, made in a process of their own, since the file is parsed once more for them."""
        task = partial(objects_of, manifest=self._manifest, kinds=self._options.objects)
        own = mark(asked.file.source)
        outputs: list[Output] = []
        try:
            for name, content in self._workers.run(task, asked):
                outputs.append(write_output(self._folder, f"{OBJECTS}/{name.removesuffix('.dcm')}_{own}.dcm", content))
        except (OctrayError, OSError) as error:
            return outputs, [(f"{OBJECTS}/{asked.file.source}", _why(error))]
        finally:
            for path in asked.pictures.values():
                path.unlink(missing_ok=True)
        return outputs, []


def write_output(folder: Path, name: str, content: bytes) -> Output:
    """Write one file below the folder of results, and say what it is."""
    write_bytes(folder / name, content)
    return Output(name, hashlib.sha256(content).hexdigest(), len(content))


def picture_name(frame: FramePrediction, label: str) -> str:
    """Return a safe name for the heatmap of a frame and label that no other of a run has, whatever their UIDs are."""
    key = frame.key
    own = mark(frame.source, str(key.frame_number), label)
    return f"{_safe(key.sop_instance_uid)}_f{key.frame_number:04d}_{_safe(label)}_{own}.jpg"


def trace_name(study_instance_uid: str, key: str) -> str:
    """Return a safe name for the trace of a study that no other of a run has."""
    return f"{_safe(study_instance_uid)}_{mark(key)}.trace.json"


def mark(*parts: str) -> str:
    """Return sixteen characters that are the same for the same parts, and others for others."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _safe(text: str) -> str:
    """Return text as part of a file name: letters, digits, points and hyphens, at most 64."""
    return _UNSAFE.sub("-", text).strip("-.")[:64] or "unnamed"
