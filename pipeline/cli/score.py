"""`octray score`: a folder of studies in; tables, heatmaps and a report page out."""

import argparse
import json
import re
import signal
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.model.bundle import Manifest
    from pipeline.records import Frame, FramePrediction, Heatmap, Quarantined
    from pipeline.results.worklist import Picture, ReportFrame
    from pipeline.score.batch import Scored
    from pipeline.score.predictor import Predictor

HELP = "score a folder of studies with a bundle"
EXAMPLE = "octray score studies/ --bundle bundle/ --out results/"
PREDICTIONS, FAILURES, REPORT, HEATMAPS = "predictions.csv", "failures.csv", "report.html", "heatmaps"
DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130
DRAWERS, DRAWN_AHEAD, DRAWN_PIXELS = 2, 16, 2**25
_HEATMAP_FILES = "*_f[0-9][0-9][0-9][0-9]*_*.png"
_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("studies", type=Path, metavar="STUDIES", help="folder of studies, or one file")
    parser.add_argument("--bundle", type=Path, required=True, help="folder that `octray train` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="RESULTS", help="folder for the results, made anew")
    parser.add_argument("--json", action="store_true", help="print one JSON object a frame on standard output")


def run(args: argparse.Namespace) -> int:
    """Score, write what was finished, say where it lies, and return the exit code."""
    from pipeline.model.bundle import load_bundle
    from pipeline.score.predictor import Predictor

    _check_places(args.studies, args.out)
    predictor = Predictor(load_bundle(args.bundle))
    try:
        results = _Results(args.out, predictor, args.json)
        interrupted = results.fill(args.studies)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"The results folder {_name(args.out)} cannot be written: {error.strerror}.") from None
    results.say()
    if interrupted:
        return INTERRUPTED
    if not results.frames:
        raise InputError(_nothing(args.studies, len(results.failures)))
    return SOME_FAILED if results.failures or results.not_drawn else DONE


class _Results:
    """The folder of results: heatmaps are written as they come, tables and report at the end or when interrupted."""

    def __init__(self, out: Path, predictor: "Predictor", print_json: bool) -> None:
        self.frames: list[ReportFrame] = []
        self.failures: list[Quarantined] = []
        self.not_drawn: list[str] = []
        self._out = out
        self._predictor = predictor
        self._manifest = predictor.manifest
        self._print_json = print_json
        self._names: set[str] = set()
        self._pool = ThreadPoolExecutor(DRAWERS, thread_name_prefix="draw")
        self._drawings: deque[tuple[Future[None], Path, int]] = deque()
        _clear(out)

    def fill(self, studies: Path) -> bool:
        """Score everything and write it; return whether that was interrupted."""
        from pipeline.cli.progress import bar
        from pipeline.score.batch import Scored, score_folder

        try:
            with closing(score_folder(studies, self._predictor, bar)) as items:
                for item in items:
                    if isinstance(item, Scored):
                        self._add(item)
                    else:
                        self.failures.append(item)
        except KeyboardInterrupt:
            return True
        finally:
            with _undisturbed():
                self._write()
        return False

    def say(self) -> None:
        """Say on standard error what was done and where it lies."""
        from pipeline.results.worklist import worklist

        studies = worklist(self.frames, self._manifest.normal_label)
        urgent = sum(study.urgent for study in studies)
        sys.stderr.write(
            f"Frames scored: {len(self.frames)}. Studies: {len(studies)}, with a finding: {urgent}. "
            f"Files or frames not scored: {len(self.failures)}.\n"
        )
        if self.not_drawn:
            why = ", ".join(sorted(set(self.not_drawn)))
            sys.stderr.write(f"Heatmaps that could not be drawn: {len(self.not_drawn)} ({why}). The tables are complete.\n")
        for name in (REPORT, PREDICTIONS, FAILURES, HEATMAPS):
            sys.stderr.write(f"  {self._out / name}\n")

    def _add(self, item: "Scored") -> None:
        from pipeline.results.tables import frame_record
        from pipeline.results.worklist import ReportFrame

        pictures = tuple(self._draw(item, heatmap) for heatmap in item.prediction.heatmaps if self._is_shown(heatmap))
        self.frames.append(ReportFrame(replace(item.prediction, heatmaps=()), pictures))
        if self._print_json:
            names = {picture.label: f"{HEATMAPS}/{picture.path.name}" for picture in pictures}
            sys.stdout.write(json.dumps(frame_record(item.prediction) | {"heatmaps": names}) + "\n")
            sys.stdout.flush()

    def _is_shown(self, heatmap: "Heatmap") -> bool:
        return heatmap.label != self._manifest.normal_label

    def _draw(self, item: "Scored", heatmap: "Heatmap") -> "Picture":
        """Start to draw one heatmap; at most `DRAWN_AHEAD` of `DRAWN_PIXELS`, or one, are under way, to keep memory bounded."""
        from pipeline.results.worklist import Picture

        path = self._out / HEATMAPS / self._heatmap_name(item.prediction, heatmap.label)
        pixels = item.frame.pixels
        self._drawings.append((self._pool.submit(_draw_heatmap, path, item.frame, heatmap, self._manifest), path, pixels.size))
        while len(self._drawings) > DRAWN_AHEAD or (
            len(self._drawings) > 1 and sum(size for _, _, size in self._drawings) > DRAWN_PIXELS
        ):
            self._await_drawing()
        return Picture(heatmap.label, path, heatmap.has_positive_evidence)

    def _await_drawing(self) -> None:
        """Wait for the oldest drawing; where it failed, note why and leave no half picture behind."""
        drawing, path, _ = self._drawings.popleft()
        if error := drawing.exception():
            self.not_drawn.append(getattr(error, "strerror", None) or type(error).__name__)
            with suppress(OSError):
                path.unlink()

    def _heatmap_name(self, frame: "FramePrediction", label: str) -> str:
        """Return a safe name that no other heatmap of this run has; the same UID may come in two files."""
        key = frame.key
        stem = f"{_safe(key.sop_instance_uid)}_f{key.frame_number:04d}_{_safe(label)}"
        number, name = 1, stem
        while name.lower() in self._names:
            number += 1
            name = f"{stem}-{number}"
        self._names.add(name.lower())
        return f"{name}.png"

    def _write(self) -> None:
        from pipeline.cli.progress import bar
        from pipeline.results.report import write_report
        from pipeline.results.tables import write_failures, write_predictions

        write_predictions(self._out / PREDICTIONS, (frame.prediction for frame in self.frames))
        write_failures(self._out / FAILURES, self.failures)
        while self._drawings:
            self._await_drawing()
        self._pool.shutdown()
        write_report(self._out / REPORT, self._manifest, self.frames, self.failures, bar)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold interrupts back until the block is done, so that tables and report are never left half written."""
    held: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: held.append(number)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        raise KeyboardInterrupt


def _draw_heatmap(path: Path, frame: "Frame", heatmap: "Heatmap", manifest: "Manifest") -> None:
    from pipeline.score.overlay import full_scale, render

    full = full_scale(manifest.temperature, heatmap.values.size)
    path.write_bytes(render(frame.pixels, heatmap, manifest.preprocessing, full, frame.shape))


def _nothing(studies: Path, failures: int) -> str:
    if failures:
        return f"None of the files in {_name(studies)} could be scored; {FAILURES} says why for each of the {failures}."
    return f"{_name(studies)} holds no files. Give a folder of DICOM, PNG, JPEG or TIFF files."


def _check_places(studies: Path, out: Path) -> None:
    if not studies.exists():
        raise InputError(f"There is no file or folder {_name(studies)}. Give the folder of studies to score.")
    if out.resolve().is_relative_to(studies.resolve()):
        where = f"The results folder {_name(out)} must not lie inside {_name(studies)}"
        raise InputError(f"{where}: its heatmaps would be scored the next time. Give another --out.")


def _clear(out: Path) -> None:
    """Make the folder, and take out what an earlier run left there, so that all it shows comes from one run."""
    (out / HEATMAPS).mkdir(parents=True, exist_ok=True)
    for path in (out / PREDICTIONS, out / FAILURES, out / REPORT, *(out / HEATMAPS).glob(_HEATMAP_FILES)):
        path.unlink(missing_ok=True)


def _name(path: Path) -> str:
    return path.resolve().name


def _safe(text: str) -> str:
    return _UNSAFE.sub("-", text).strip("-.")[:64] or "unnamed"
