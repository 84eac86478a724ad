"""Answers one request: its files are scored as one study, and the study's record becomes the answer; runs in a thread."""

import base64
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

from pipeline.errors import Reason
from pipeline.frames import Quarantined
from pipeline.imaging.identity import derived_uid
from pipeline.levels import Level
from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction, State, StudyRecord
from pipeline.results.level_results import study_results
from pipeline.results.tables import state_of
from pipeline.results.worklist import whole_study
from pipeline.score.predictor import Predictor
from pipeline.score.reading import InMemoryFile
from pipeline.score.study import HeatmapForm, score_study, without_partial_files
from services.api.options import Settings
from services.api.problems import StudyMismatchError, UnreadableStudyError
from services.api.schemas import Failure, FrameAnswer, HeatmapAnswer, LabelAnswer, LevelAnswer, StudyAnswer
from services.api.uploads import Upload

EncodedPictures = dict[tuple[str, int], dict[str, str]]
"""PNG files, base64, by file and frame, and by label."""


def answer_study(uploads: Sequence[Upload], predictor: Predictor, settings: Settings, heatmaps: bool) -> StudyAnswer:
    """Score all frames of all files; a file that cannot be read to its end counts for nothing.

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
        If no file can be read whole.
    StudyMismatchError
        If DICOM files carry different Study Instance UIDs (0020,000D).
    WorkerError
        If no process can be started that reads files.
    """
    looked_at = [upload for upload in uploads if not upload.is_leftover] or uploads
    deadline = time.monotonic() + settings.study_seconds
    derived: dict[str, str] = {}
    pictures: EncodedPictures = {}

    def files() -> Iterator[InMemoryFile]:
        """Read uploads as they are needed; their names may be equal, so that numbers tell them apart."""
        for number, upload in enumerate(looked_at):
            file = InMemoryFile(f"{number}/{upload.source}", upload.file.read())
            derived[file.source] = derived_uid(file.content, "study")
            yield file

    def cancel() -> str:
        if time.monotonic() <= deadline:
            return ""
        return (
            f"The study took longer than the {settings.study_seconds:g} seconds that the service gives one. Send fewer files."
        )

    drawn_so_far = 0

    def draws() -> bool:
        return drawn_so_far < settings.max_heatmaps

    record = StudyRecord("")
    forms: frozenset[HeatmapForm] = frozenset({"png"} if heatmaps else ())
    items = score_study(files(), predictor, heatmaps=forms, in_workers=False, draws=draws, cancel=cancel)
    with closing(items):
        for item in items:
            if isinstance(item, StudyRecord):
                record = without_partial_files(item)
            elif isinstance(item, FramePrediction):
                drawn = [one for one in item.heatmaps if one.png]
                if draws() and drawn_so_far + len(drawn) <= settings.max_heatmaps:
                    encoded = {one.label: base64.b64encode(one.png).decode("ascii") for one in drawn}
                    pictures[item.source, item.key.frame_number] = encoded
                    drawn_so_far += len(drawn)  # never less again, so that `draws` decides alike in any thread
    if not record.frames:
        raise UnreadableStudyError(tuple(map(_failure, (*record.failures, *record.without_image))))
    uid = _study_instance_uid(record, derived)
    left_out = f"No heatmap: an answer has at most {settings.max_heatmaps}. Send fewer frames at a time to see it."
    return _answer(record, uid, predictor.manifest, pictures, left_out if heatmaps else "", len(uploads) - len(looked_at))


def _study_instance_uid(record: StudyRecord, derived: Mapping[str, str]) -> str:
    """Return which study the files belong to.

    A DICOM file states it. A PNG, JPEG or TIFF does not, nor does a DICOM file without a valid UID: the UID of its frames is
    derived from its content, so that it belongs to whatever study it is sent with.
    """
    uids = {frame.source: frame.key.study_instance_uid for frame in record.frames}
    stated = ""
    for source, uid in uids.items():
        if uid == derived[source]:
            continue
        if stated and uid != stated:
            raise StudyMismatchError(
                f"The files belong to more than one study: {_name(source)} has another Study Instance UID (0020,000D) than the "
                "files before it. Send each study in a separate request."
            )
        stated = uid
    others = sorted(set(uids.values()))
    if stated or len(others) == 1:
        return stated or others[0]
    digest = hashlib.sha256("\n".join(others).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16])}"


def _answer(
    record: StudyRecord, uid: str, manifest: Manifest, pictures: EncodedPictures, left_out: str, skipped: int
) -> StudyAnswer:
    levels = study_results(record, manifest, tuple(Level))
    labels = manifest.label_set
    pooled = labels.pooled_probabilities([[one.probability for one in frame.predictions] for frame in record.frames])
    probabilities = dict(zip(labels.labels, pooled.tolist(), strict=True))
    states = labels.states(frame.predictions for frame in record.frames)
    if whole := whole_study(levels):
        probabilities = {one.label: one.probability for one in whole}
        states = {one.label: one.state for one in whole}
    return StudyAnswer(
        study_instance_uid=uid,
        bundle_id=manifest.bundle_id,
        model=manifest.provenance.config_name,
        aggregation="study_level" if whole else "any_finding",
        probabilities=probabilities,
        positive={label: state is State.POSITIVE for label, state in states.items()},
        states=states,
        levels=tuple(LevelAnswer.of(one, _name) for one in levels),
        frames=tuple(_frame_answer(frame, manifest, pictures, left_out) for frame in record.frames),
        failures=tuple(map(_failure, record.failures)),
        without_image=tuple(map(_failure, record.without_image)),
        skipped=skipped,
    )


def _frame_answer(frame: FramePrediction, manifest: Manifest, pictures: EncodedPictures, left_out: str) -> FrameAnswer:
    """Return the answer for a frame; its findings have their heatmaps, all of them or, if they would be too many, none."""
    drawn = pictures.get((frame.source, frame.key.frame_number))
    flags = (*(flag.message for flag in frame.flags), *frame.facts.notes)
    labels = {}
    for one in frame.predictions:
        heatmap = next((heatmap for heatmap in frame.heatmaps if heatmap.label == one.label), None)
        labels[one.label] = LabelAnswer(
            logit=one.logit,
            probability=one.probability,
            positive=one.positive,
            state=one.state,
            operating_point=one.operating_point,
            disagreement=one.disagreement,
            conformal_set=one.conformal_set,
            heatmap=None
            if heatmap is None or not drawn or one.label not in drawn
            else HeatmapAnswer(
                png=drawn[one.label],
                layer=manifest.heatmap_layer,
                has_positive_evidence=heatmap.has_positive_evidence,
                full_scale=manifest.heatmap.full_scale,
                caveat=manifest.heatmap.caveat,
            ),
        )
    return FrameAnswer(
        source=_name(frame.source),
        series_instance_uid=frame.key.series_instance_uid,
        sop_instance_uid=frame.key.sop_instance_uid,
        frame_number=frame.key.frame_number,
        laterality=frame.facts.laterality,
        distance=frame.distance,
        labels=labels,
        flags=(*flags, left_out) if left_out and drawn is None else flags,
    )


def _failure(row: Quarantined) -> Failure:
    return Failure(
        source=_name(row.source),
        frame_number=row.frame_number,
        state=state_of(row),
        reason=Reason(row.reason),
        message=row.message,
    )


def _name(source: str) -> str:
    """Return the name of an upload without its number."""
    return source.partition("/")[2]
