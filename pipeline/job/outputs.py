"""What is written of one study beside its record, each file under a name of its own: pictures of heatmaps, DICOM objects."""

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath

from pipeline.imaging.sandbox import Sandbox
from pipeline.imaging.sources import StudyFile
from pipeline.intake import Limits
from pipeline.job.folder import HEATMAPS, OBJECTS, write_whole
from pipeline.job.objects import Asked, objects_of
from pipeline.ledger.types import Output
from pipeline.model.bundle import Manifest
from pipeline.records import FrameFacts, FramePrediction, Heatmap
from pipeline.results.dicom.kinds import Kind
from pipeline.results.worklist import Picture, ReportFrame
from pipeline.score.batch import Scored
from pipeline.score.overlay import draw, full_scale, jpeg, png
from pipeline.score.view import View

_WRITERS, _AHEAD = 2, 64
_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")

_LIMITS = Limits(frame_seconds=120.0)
"""Of the processes that make DICOM objects: the report of a long volume takes longer than reading any frame."""

Written = Future[tuple[Output, ...]]


@dataclass(frozen=True, slots=True)
class Wanted:
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
    def maps(self) -> bool:
        """Whether heatmaps have to be computed."""
        return self.heatmaps or bool(self.objects - {Kind.SR})

    @property
    def pictures(self) -> bool:
        """Whether heatmaps have to be drawn."""
        return self.heatmaps or Kind.SC in self.objects


@dataclass(slots=True)
class Pieces:
    """The files of one study that are written or being written, and what is still needed to write the last of them.

    `results` and `pictures` are those that DICOM objects are made of; pictures are PNG files by frame number and label.
    """

    under_way: list[tuple[str, Written]] = field(default_factory=list)
    results: dict[str, list[FramePrediction]] = field(default_factory=dict)
    pictures: dict[str, dict[tuple[int, str], bytes]] = field(default_factory=dict)

    def is_done(self) -> bool:
        """Say whether nothing has to be waited for."""
        return all(written.done() for _, written in self.under_way)

    def outputs(self) -> tuple[tuple[Output, ...], tuple[str, ...]]:
        """Wait for every file; return what was written, and why others were not.

        A file that could not be written is an output without a hash: the next run sees that it is missing, and makes it.
        """
        outputs: list[Output] = []
        faults: list[str] = []
        for name, written in self.under_way:
            if error := written.exception():
                outputs.append(Output(name, "", 0))
                faults.append(getattr(error, "strerror", None) or type(error).__name__)
            else:
                outputs += written.result()
        return tuple(outputs), tuple(faults)


class Writer:
    """Draws and writes in threads of its own; few frames wait, so that memory is bounded.

    Parameters
    ----------
    folder
        That of the results.
    manifest
        Of the bundle.
    wanted
        What is written.
    """

    def __init__(self, folder: Path, manifest: Manifest, wanted: Wanted) -> None:
        self._folder = folder
        self._manifest = manifest
        self._wanted = wanted
        self._sandbox = Sandbox(_WRITERS, _LIMITS)
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        self._waiting: deque[Written] = deque()
        (folder / HEATMAPS).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._sandbox.close()

    def draw(self, item: Scored, pieces: Pieces) -> ReportFrame:
        """Begin to draw the heatmaps of a frame, but for the label of no finding; return what the report shows of it."""
        if self._wanted.objects and item.facts.transfer_syntax_uid:
            pieces.results.setdefault(item.facts.source, []).append(item.prediction)
        drawn = shown(item.prediction, self._manifest)
        pictures = tuple(self._begin(item, item.view, heatmap, pieces) for heatmap in drawn if item.view)
        return ReportFrame(replace(item.prediction, heatmaps=()), pictures if self._wanted.heatmaps else ())

    def end(self, files: Iterable[StudyFile], pieces: Pieces) -> None:
        """Begin to write the DICOM objects of a study whose frames have all been given to `draw`."""
        drawings = [written for _, written in pieces.under_way]
        for file in files:
            if results := pieces.results.pop(file.source, None):
                write = partial(self._write_objects, file, results, pieces, drawings)
                self._submit(f"{OBJECTS}/{file.source}", write, pieces)

    def _submit(self, name: str, write: Callable[[], tuple[Output, ...]], pieces: Pieces) -> None:
        """Begin to write files of a study; `name` is that of what is missing where it fails."""
        written = self._pool.submit(write)
        pieces.under_way.append((name, written))
        self._waiting.append(written)
        if len(self._waiting) > _AHEAD:
            self._waiting.popleft().exception()

    def _begin(self, item: Scored, view: View, heatmap: Heatmap, pieces: Pieces) -> Picture:
        name = f"{HEATMAPS}/{picture_name(item.prediction, heatmap.label)}"
        self._submit(name, partial(self._draw, name, item.facts, view, heatmap, pieces), pieces)
        return Picture(heatmap.label, PurePosixPath(name), heatmap.has_positive_evidence)

    def _draw(self, name: str, facts: FrameFacts, view: View, heatmap: Heatmap, pieces: Pieces) -> tuple[Output, ...]:
        full = full_scale(self._manifest.temperature, heatmap.values.size)
        picture = draw(view, heatmap, full)
        if Kind.SC in self._wanted.objects and facts.transfer_syntax_uid:
            pieces.pictures.setdefault(facts.source, {})[facts.key.frame_number, heatmap.label] = png(picture)
        return (write_output(self._folder, name, jpeg(picture)),) if self._wanted.heatmaps else ()

    def _write_objects(
        self, file: StudyFile, results: list[FramePrediction], pieces: Pieces, drawings: list[Written]
    ) -> tuple[Output, ...]:
        """Write the DICOM objects of one file, made in a process of their own, since the file is parsed once more for them."""
        wait(drawings)
        task = partial(objects_of, manifest=self._manifest, kinds=self._wanted.objects)
        asked = Asked(file, tuple(results), pieces.pictures.pop(file.source, {}))
        own = mark(file.source)
        return tuple(
            write_output(self._folder, f"{OBJECTS}/{name.removesuffix('.dcm')}_{own}.dcm", content)
            for name, content in self._sandbox.run(task, asked)
        )


def shown(result: FramePrediction, manifest: Manifest) -> Sequence[Heatmap]:
    """Return the heatmaps of a frame that people see: all but that of the label of no finding."""
    return [heatmap for heatmap in result.heatmaps if heatmap.label != manifest.normal_label]


def write_output(folder: Path, name: str, content: bytes) -> Output:
    """Write one file below the folder of results, and say what it is."""
    write_whole(folder / name, content)
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
    """Return eight characters that are the same for the same parts, and others for others."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _safe(text: str) -> str:
    """Return text as part of a file name: letters, digits, points and hyphens, at most 64."""
    return _UNSAFE.sub("-", text).strip("-.")[:64] or "unnamed"
