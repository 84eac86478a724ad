"""Scores the files of one request as one study; knows no HTTP, runs in a thread, and reads files in a worker process."""

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Quarantined, of_whole_file
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.identity import derived_uid
from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction, Heatmap, Prediction, study_states
from pipeline.results.tables import state_of
from pipeline.score.pictures import draw, png
from pipeline.score.predictor import Predictor
from pipeline.score.reading import View, read_admitted_bytes, read_whole
from pipeline.score.study import Item, Predicted, batches, predicted, reread
from pipeline.workers.pool import WorkerPool
from services.api.options import Settings
from services.api.problems import StudyMismatchError, UnreadableStudyError
from services.api.schemas import Failure, FrameAnswer, HeatmapAnswer, LabelAnswer, StudyAnswer
from services.api.uploads import Upload

Value = TypeVar("Value", bool, float)


def score_study(uploads: Sequence[Upload], predictor: Predictor, settings: Settings, heatmaps: bool) -> StudyAnswer:
    """Score all frames of all files, a batch at a time, so that decoded frames of one batch only are held.

    What grows with the study is the answer, and in it the pictures; `settings.max_heatmaps` bounds them.

    Parameters
    ----------
    uploads
        The files of the study.
    predictor
        That of the bundle.
    settings
        Most heatmaps in the answer, beyond which frames say in their flags that they have none, and how long all may take.
    heatmaps
        Whether to draw heatmaps.

    Raises
    ------
    UnreadableStudyError
        Where no file can be read whole.
    StudyMismatchError
        Where DICOM files carry different Study Instance UIDs (0020,000D).
    WorkerError
        Where no process can be started that reads files.
    """
    manifest = predictor.manifest
    looked_at = [upload for upload in uploads if not upload.is_leftover] or uploads
    with file_workers(2) as pool:  # the second reads a frame again while the first waits
        study = _Study(predictor, pool, settings, heatmaps)
        for upload in looked_at:
            study.add(upload)
    if not study.answers:
        raise UnreadableStudyError((*study.failures, *study.without_image))
    return StudyAnswer(
        study_instance_uid=study.uid(),
        bundle_id=manifest.bundle_id,
        model=manifest.provenance.config_name,
        probabilities=_over_frames(study.answers, manifest, lambda label: label.probability),
        positive=_over_frames(study.answers, manifest, lambda label: label.positive),
        states=study_states(study.predictions, manifest.normal_label),
        frames=tuple(study.answers),
        failures=tuple(study.failures),
        without_image=tuple(study.without_image),
        skipped=len(uploads) - len(looked_at),
    )


def _over_frames(answers: Sequence[FrameAnswer], manifest: Manifest, value: Callable[[LabelAnswer], Value]) -> dict[str, Value]:
    """Return the largest value of each finding, and the smallest of the label that means no finding."""
    return {
        label: (min if label == manifest.normal_label else max)(value(frame.labels[label]) for frame in answers)
        for label in manifest.labels
    }


class _Study:
    """Holds what was said of the files so far, which study they belong to, and what could not be read.

    A DICOM file states which study it belongs to. A PNG, JPEG or TIFF does not, nor does a DICOM file without a valid UID: the
    UID of its frames is derived from its content, so that it belongs to whatever study it is sent with.
    """

    def __init__(self, predictor: Predictor, pool: WorkerPool, settings: Settings, heatmaps: bool) -> None:
        self._predictor = predictor
        self._pool = pool
        self._admission = replace(predictor.admission, drawn=heatmaps)
        self._manifest = predictor.manifest
        self._max_heatmaps = settings.max_heatmaps if heatmaps else None
        self._seconds = settings.study_seconds
        self._deadline = time.monotonic() + settings.study_seconds
        self._heatmaps = 0
        self.answers: list[FrameAnswer] = []
        self.predictions: list[tuple[Prediction, ...]] = []
        self.failures: list[Failure] = []
        self.without_image: list[Failure] = []
        self._stated: set[str] = set()
        self._derived: set[str] = set()

    def add(self, upload: Upload) -> None:
        """Score a file; one that breaks off counts for nothing, whatever could be read, or was refused, of it before."""
        content = upload.file.read()
        drawn = self._heatmaps
        answers: list[FrameAnswer] = []
        predictions: list[tuple[Prediction, ...]] = []
        refused: list[Quarantined] = []
        uid = ""
        try:
            for item in self._results(content, upload.source):
                if isinstance(item, Quarantined):
                    refused.append(item)
                elif isinstance(item, Predicted):
                    answers.append(self._answer(item))
                    predictions.append(item.prediction.predictions)
                    uid = item.prediction.key.study_instance_uid
        except UnreadableError as error:
            self._heatmaps = drawn
            rows = self.without_image if error.reason is Reason.NO_IMAGE else self.failures
            rows.append(_failure(Quarantined(upload.source, error.reason, str(error))))
            return
        self.failures += map(_failure, refused if answers else of_whole_file(refused))
        self.answers += answers
        self.predictions += predictions
        if uid:
            self._join(upload.source, uid, is_stated=uid != derived_uid(content, "study"))

    def _results(self, content: bytes, source: str) -> Iterator[Predicted | Item[None]]:
        """Yield what comes of every frame of a file."""
        heatmaps = self._max_heatmaps is not None
        read = partial(self._pool.run, partial(read_whole, admission=self._admission, content=content))
        for batch in batches(self._items(content, source), self._predictor.engine.frames_at_once):
            yield from predicted(reread(predicted(batch, self._predictor, heatmaps), read), self._predictor, heatmaps)

    def _items(self, content: bytes, source: str) -> Iterator[Item[None]]:
        read = partial(read_admitted_bytes, source=source, admission=self._admission)
        self._check_time()
        for item in self._pool.run(read, content):
            self._check_time()
            yield item

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise UnreadableError(
                Reason.TIME_LIMIT,
                f"The study took longer than the {self._seconds:g} seconds that the service gives one. Send fewer files.",
            )

    def uid(self) -> str:
        if self._stated:
            return next(iter(self._stated))
        if len(self._derived) == 1:
            return next(iter(self._derived))
        digest = hashlib.sha256("\n".join(sorted(self._derived)).encode()).digest()
        return f"2.25.{int.from_bytes(digest[:16])}"

    def _join(self, source: str, uid: str, is_stated: bool) -> None:
        (self._stated if is_stated else self._derived).add(uid)
        if len(self._stated) > 1:
            raise StudyMismatchError(
                f"The files belong to more than one study: {source} has another Study Instance UID (0020,000D) than the "
                "files before it. Send each study in a request of its own."
            )

    def _answer(self, item: Predicted) -> FrameAnswer:
        """Draw the findings' heatmaps, all of them or, where they would be too many, none."""
        if item.view is None:
            return _frame_answer(item.prediction, {})
        heatmaps = [one for one in item.prediction.heatmaps if one.label != self._manifest.normal_label]
        most = self._max_heatmaps or 0
        if self._heatmaps + len(heatmaps) > most:
            left_out = f"No heatmap: an answer has at most {most}. Send fewer frames at a time to see it."
            return _frame_answer(item.prediction, {}, (left_out,))
        self._heatmaps += len(heatmaps)
        answers = {heatmap.label: _heatmap_answer(item.view, heatmap, self._manifest) for heatmap in heatmaps}
        return _frame_answer(item.prediction, answers)


def _failure(row: Quarantined) -> Failure:
    return Failure(
        source=row.source, frame_number=row.frame_number, state=state_of(row), reason=Reason(row.reason), message=row.message
    )


def _frame_answer(
    predicted: FramePrediction, heatmaps: Mapping[str, HeatmapAnswer], left_out: tuple[str, ...] = ()
) -> FrameAnswer:
    labels = {
        prediction.label: LabelAnswer(
            logit=prediction.logit,
            probability=prediction.probability,
            positive=prediction.positive,
            state=prediction.state,
            operating_point=prediction.operating_point,
            conformal_set=prediction.conformal_set,
            heatmap=heatmaps.get(prediction.label),
        )
        for prediction in predicted.predictions
    }
    return FrameAnswer(
        source=predicted.source,
        series_instance_uid=predicted.key.series_instance_uid,
        sop_instance_uid=predicted.key.sop_instance_uid,
        frame_number=predicted.key.frame_number,
        laterality=predicted.facts.laterality,
        distance=predicted.distance,
        labels=labels,
        flags=(*(flag.message for flag in predicted.flags), *predicted.facts.notes, *left_out),
    )


def _heatmap_answer(view: View, heatmap: Heatmap, manifest: Manifest) -> HeatmapAnswer:
    picture = png(draw(view, heatmap, manifest.heatmap.full_scale, manifest.heatmap.meaning))
    return HeatmapAnswer(
        png=base64.b64encode(picture).decode("ascii"),
        layer=manifest.heatmap.layer,
        has_positive_evidence=heatmap.has_positive_evidence,
        full_scale=manifest.heatmap.full_scale,
        caveat=manifest.heatmap.caveat,
    )
