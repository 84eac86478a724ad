"""Scores the files of one request as one study; knows no HTTP and runs in a worker thread."""

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from pipeline.errors import UnreadableError
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.model.bundle import Manifest
from pipeline.records import Frame, FramePrediction, Heatmap
from pipeline.results.tables import state
from pipeline.score.overlay import full_scale, render
from pipeline.score.predictor import Predictor, check_intended_use
from services.api.problems import StudyMismatchError, UnreadableStudyError
from services.api.schemas import Failure, FrameAnswer, HeatmapAnswer, LabelAnswer, StudyAnswer
from services.api.uploads import Upload

Value = TypeVar("Value", bool, float)

_BATCH = 16


def score_study(uploads: Sequence[Upload], predictor: Predictor, manifest: Manifest, heatmaps: bool) -> StudyAnswer:
    """Score all frames of all files, a batch at a time, so that memory does not grow with the study.

    Raises
    ------
    UnreadableStudyError
        Where no file gives a frame.
    StudyMismatchError
        Where DICOM files carry different Study Instance UIDs (0020,000D).
    """
    study = _Study(manifest)
    frames = study.read(uploads)
    answers: list[FrameAnswer] = []
    while batch := list(islice(frames, _BATCH)):
        predictions = predictor.predict(batch, heatmaps=heatmaps)
        answers += [_frame_answer(*pair, manifest) for pair in zip(batch, predictions, strict=True)]
    if not answers:
        raise UnreadableStudyError(tuple(study.failures))
    return StudyAnswer(
        study_instance_uid=study.uid(),
        bundle_id=manifest.bundle_id,
        model=manifest.provenance.config_name,
        probabilities=_over_frames(answers, manifest, lambda label: label.probability),
        positive=_over_frames(answers, manifest, lambda label: label.positive),
        frames=tuple(answers),
        failures=tuple(study.failures),
    )


def _over_frames(answers: Sequence[FrameAnswer], manifest: Manifest, value: Callable[[LabelAnswer], Value]) -> dict[str, Value]:
    """Return the largest value of each finding, and the smallest of the label that means no finding."""
    return {
        label: (min if label == manifest.normal_label else max)(value(frame.labels[label]) for frame in answers)
        for label in manifest.labels
    }


class _Study:
    """Holds which study the frames read so far belong to, and what could not be read.

    A DICOM file says which study it belongs to. A PNG, JPEG or TIFF does not: the UID of its frame is derived from its content,
    so that it belongs to whatever study it is sent with.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.failures: list[Failure] = []
        self._stated: set[str] = set()
        self._derived: set[str] = set()

    def read(self, uploads: Sequence[Upload]) -> Iterator[Frame]:
        for upload in uploads:
            try:
                for frame in read_frames_from_bytes(upload.file.read(), upload.source):
                    self._join(frame)
                    check_intended_use(frame, self._manifest)
                    yield frame
            except UnreadableError as error:
                self.failures.append(Failure(source=upload.source, reason=error.reason, message=str(error)))

    def uid(self) -> str:
        if self._stated:
            return next(iter(self._stated))
        if len(self._derived) == 1:
            return next(iter(self._derived))
        digest = hashlib.sha256("\n".join(sorted(self._derived)).encode()).digest()
        return f"2.25.{int.from_bytes(digest[:16])}"

    def _join(self, frame: Frame) -> None:
        is_dicom = bool(frame.transfer_syntax_uid)
        (self._stated if is_dicom else self._derived).add(frame.key.study_instance_uid)
        if len(self._stated) > 1:
            raise StudyMismatchError(
                f"The files belong to more than one study: {frame.source} has another Study Instance UID (0020,000D) than the "
                "files before it. Send each study in a request of its own."
            )


def _frame_answer(frame: Frame, predicted: FramePrediction, manifest: Manifest) -> FrameAnswer:
    heatmaps = {heatmap.label: _heatmap_answer(frame, heatmap, manifest) for heatmap in predicted.heatmaps}
    labels = {
        prediction.label: LabelAnswer(
            logit=prediction.logit,
            probability=prediction.probability,
            positive=prediction.positive,
            state=state(prediction),
            heatmap=heatmaps.get(prediction.label),
        )
        for prediction in predicted.predictions
    }
    return FrameAnswer(
        source=frame.source,
        series_instance_uid=frame.key.series_instance_uid,
        sop_instance_uid=frame.key.sop_instance_uid,
        frame_number=frame.key.frame_number,
        labels=labels,
        flags=frame.notes,
    )


def _heatmap_answer(frame: Frame, heatmap: Heatmap, manifest: Manifest) -> HeatmapAnswer:
    full = full_scale(manifest.temperature, heatmap.values.size)
    png = render(frame.pixels, heatmap, manifest.preprocessing, full)
    return HeatmapAnswer(
        png=base64.b64encode(png).decode("ascii"),
        layer=heatmap.layer,
        has_positive_evidence=heatmap.has_positive_evidence,
    )
