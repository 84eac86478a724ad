"""What is written of one study beside its record: pictures of heatmaps, as they come, each under a name of its own."""

import hashlib
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from pipeline.job.folder import HEATMAPS, write_whole
from pipeline.ledger.types import Output
from pipeline.model.bundle import Manifest
from pipeline.records import Frame, FramePrediction, Heatmap
from pipeline.results.worklist import Picture, ReportFrame
from pipeline.score.batch import Scored
from pipeline.score.overlay import full_scale, render

_DRAWERS, _DRAWN_AHEAD, _DRAWN_PIXELS = 2, 64, 2**25
_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")


@dataclass(slots=True)
class Drawings:
    """The pictures of one study that are drawn or being drawn."""

    under_way: list[tuple[str, Future[Output]]] = field(default_factory=list)

    def is_done(self) -> bool:
        """Say whether nothing has to be waited for."""
        return all(drawing.done() for _, drawing in self.under_way)

    def outputs(self) -> tuple[tuple[Output, ...], tuple[str, ...]]:
        """Wait for every picture; return what was written, and why others were not.

        A picture that could not be written is an output without a hash: the next run sees that it is missing, and makes it.
        """
        written, faults = [], []
        for name, drawing in self.under_way:
            error = drawing.exception()
            written.append(Output(name, "", 0) if error else drawing.result())
            if error:
                faults.append(getattr(error, "strerror", None) or type(error).__name__)
        return tuple(written), tuple(faults)


class Drawer:
    """Draws heatmaps in threads of its own; few wait, so that memory is bounded.

    Parameters
    ----------
    folder
        That of the results.
    manifest
        Of the bundle.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._pool = ThreadPoolExecutor(_DRAWERS, thread_name_prefix="draw")
        self._waiting: deque[tuple[Future[Output], int]] = deque()
        (folder / HEATMAPS).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Drawer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def draw(self, item: Scored, drawings: Drawings) -> ReportFrame:
        """Begin to draw the heatmaps of a frame, but for the label of no finding; return what the report shows of it."""
        shown = [heatmap for heatmap in item.prediction.heatmaps if heatmap.label != self._manifest.normal_label]
        pictures = tuple(self._begin(item, heatmap, drawings) for heatmap in shown)
        return ReportFrame(replace(item.prediction, heatmaps=()), pictures)

    def _begin(self, item: Scored, heatmap: Heatmap, drawings: Drawings) -> Picture:
        name = f"{HEATMAPS}/{picture_name(item.prediction, heatmap.label)}"
        drawing = self._pool.submit(self._draw, name, item.frame, heatmap)
        drawings.under_way.append((name, drawing))
        self._waiting.append((drawing, item.frame.pixels.size))
        while len(self._waiting) > _DRAWN_AHEAD or (
            len(self._waiting) > 1 and sum(size for _, size in self._waiting) > _DRAWN_PIXELS
        ):
            self._waiting.popleft()[0].exception()
        return Picture(heatmap.label, PurePosixPath(name), heatmap.has_positive_evidence)

    def _draw(self, name: str, frame: Frame, heatmap: Heatmap) -> Output:
        full = full_scale(self._manifest.temperature, heatmap.values.size)
        content = render(frame.pixels, heatmap, self._manifest.preprocessing, full, frame.shape)
        write_whole(self._folder / name, content)
        return Output(name, hashlib.sha256(content).hexdigest(), len(content))


def picture_name(frame: FramePrediction, label: str) -> str:
    """Return a safe name for the heatmap of a frame and label that no other of a run has, whatever their UIDs are."""
    key = frame.key
    mark = hashlib.sha256(repr((frame.source, key.frame_number, label)).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{safe(key.sop_instance_uid)}_f{key.frame_number:04d}_{safe(label)}_{mark}.png"


def safe(text: str) -> str:
    """Return text as part of a file name: letters, digits, points and hyphens, at most 64."""
    return _UNSAFE.sub("-", text).strip("-.")[:64] or "unnamed"
