"""From the files of requests to answers: each request is one study, and its record becomes the answer; runs in threads."""

import base64
import re
import secrets
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import IO

from pipeline.errors import Reason, UnreadableError, WorkerError
from pipeline.frames import Quarantined
from pipeline.imaging.dicom.dataset import stated_uids
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.identity import uid_of_digest
from pipeline.imaging.sources import StudyFile
from pipeline.levels import Level
from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction, State, StudyRecord
from pipeline.results.level_results import study_results
from pipeline.results.tables import state_of
from pipeline.results.worklist import whole_study
from pipeline.score.predictor import Predictor
from pipeline.score.study import HeatmapForm, score_studies, without_partial_files
from services.api.options import Settings
from services.api.problems import Cause, ProblemError
from services.api.schemas import Failure, FrameAnswer, HeatmapAnswer, LabelAnswer, LevelAnswer, StudyAnswer
from services.api.uploads import Upload, UploadRoom

_UIDS_UNKNOWN = ("", "", "")


@dataclass(slots=True, eq=False)
class StudyRequest:
    """A study that is to be scored, and while it is, what was drawn of it.

    Parameters
    ----------
    uploads
        The files of the study.
    room
        Where its pictures lie until they are sent.
    heatmaps
        Whether to draw heatmaps.
    cancelled
        Why nobody waits for the answer any more, in a sentence; empty as long as somebody does. Another thread may set it.

    Attributes
    ----------
    problem
        What the request is answered with instead; None as long as nothing has failed.
    pictures
        What was drawn.
    """

    uploads: Sequence[Upload]
    room: UploadRoom
    heatmaps: bool = True
    cancelled: str = ""
    problem: ProblemError | None = field(init=False, default=None)
    pictures: "_Pictures" = field(init=False)

    def __post_init__(self) -> None:
        self.pictures = _Pictures(self.room)

    @property
    def looked_at(self) -> Sequence[Upload]:
        """The files that are not left behind by a system, or all if there are no others."""
        return [upload for upload in self.uploads if not upload.is_leftover] or self.uploads

    def files(self) -> Iterator[StudyFile]:
        """Yield the files that are read; their names may be equal, so that the index tells them apart."""
        for upload in self.looked_at:
            yield StudyFile(upload.path, f"{upload.index}/{upload.source}")

    def keep(self, frame: FramePrediction) -> None:
        """Keep the pictures of a frame; if they have no room, that is the problem of this request alone."""
        try:
            self.pictures.add(frame)
        except ProblemError as error:
            self.problem = error


class Body:
    """The body of an answer: JSON whose pictures lie on the disk until they are sent.

    Parameters
    ----------
    answer
        With `_Pictures.mark` in the place of each picture.
    pictures
        Where these lie.

    Attributes
    ----------
    length
        Bytes in all.
    """

    def __init__(self, answer: StudyAnswer, pictures: "_Pictures") -> None:
        self._pictures = pictures
        self._pieces = pictures.pattern.split(answer.model_dump_json())
        texts = sum(len(text.encode()) for text in self._pieces[::2])
        self.length = texts + sum(4 * ((pictures.size(int(number)) + 2) // 3) for number in self._pieces[1::2])

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body in pieces, no more than one picture at a time."""
        for place, piece in enumerate(self._pieces):
            yield base64.b64encode(self._pictures.read(int(piece))) if place % 2 else piece.encode()


class _Pictures:
    """The pictures of one answer, in one file behind each other."""

    def __init__(self, room: UploadRoom) -> None:
        self._room = room
        self._file: IO[bytes] | None = None
        self._places: list[tuple[int, int]] = []
        self._of_frames: dict[tuple[str, int], dict[str, int]] = {}
        self._mark = secrets.token_hex(16)
        self.pattern = re.compile(f"{self._mark}-([0-9]+)")

    def __len__(self) -> int:
        return len(self._places)

    def add(self, frame: FramePrediction) -> None:
        """Keep the pictures of a frame, which may be none."""
        numbers = self._of_frames.setdefault((frame.source, frame.key.frame_number), {})
        for one in frame.heatmaps:
            if one.png:
                self._file = self._file or self._room.open("pictures")
                numbers[one.label] = len(self._places)
                start = sum(self._places[-1]) if self._places else 0
                self._room.write(self._file, one.png)
                self._places.append((start, len(one.png)))

    def marks(self, frame: FramePrediction) -> Mapping[str, str] | None:
        """Return what stands for the picture of each label of a frame; None if nothing of the frame was kept."""
        numbers = self._of_frames.get((frame.source, frame.key.frame_number))
        return None if numbers is None else {label: f"{self._mark}-{number}" for label, number in numbers.items()}

    def size(self, number: int) -> int:
        return self._places[number][1]

    def read(self, number: int) -> bytes:
        start, size = self._places[number]
        with (self._room.path / "pictures").open("rb") as file:
            file.seek(start)
            return file.read(size)

    def close(self) -> None:
        if self._file:
            self._file.close()


def answer_studies(
    requests: Sequence[StudyRequest], predictor: Predictor, settings: Settings
) -> Generator[tuple[StudyRequest, Body | Exception], None, None]:
    """Score the studies of some requests together, all of them with heatmaps or none, so that they share calls of the network.

    A file that cannot be read to its end counts for nothing. What grows with a study in memory is its answer without pictures.

    Parameters
    ----------
    requests
        At least one. If the last of them is cancelled, at most the frames that are being scored are finished.
    predictor
        That of the bundle.
    settings
        Most heatmaps in an answer, beyond which frames say in their flags that they have none, and how long all may take.

    Yields
    ------
    tuple
        Each request, in order, with its answer, or with the problem that it is answered with.

    Raises
    ------
    BundleError, ScoringError, WorkerError
        If none of the rest can be scored.
    """
    deadline = time.monotonic() + settings.study_seconds
    most = settings.max_heatmaps
    forms: frozenset[HeatmapForm] = frozenset({"png"} if requests[0].heatmaps else ())

    def cancel() -> str:
        if all(request.cancelled for request in requests):
            return requests[0].cancelled
        if time.monotonic() <= deadline:
            return ""
        return (
            f"The study took longer than the {settings.study_seconds:g} seconds that the service gives one. Send fewer files."
        )

    def draws() -> bool:
        return any(len(request.pictures) < most for request in requests)

    studies = [(request, request.files()) for request in requests]
    items = score_studies(studies, predictor, heatmaps=forms, draws=draws, cancel=cancel)
    with closing(items):
        for request, item in items:
            if isinstance(item, StudyRecord):
                request.pictures.close()
                yield request, _body(request, without_partial_files(item), predictor.manifest, most)
            elif isinstance(item, FramePrediction):
                drawn = sum(bool(one.png) for one in item.heatmaps)
                if not request.problem and len(request.pictures) < most and len(request.pictures) + drawn <= most:
                    request.keep(item)


def _body(request: StudyRequest, record: StudyRecord, manifest: Manifest, most: int) -> Body | Exception:
    """Return the answer, or the problem instead."""
    if request.problem:
        return request.problem
    try:
        if any(row.reason == Reason.WORKER_ENDED for row in record.failures):
            raise WorkerError("The processes that read the study were ended from outside. Try again in a few seconds.")
        failures, without_image = _failures(record.failures, request), _failures(record.without_image, request)
        if not record.frames:
            problem = "None of the files can be scored; `failures` says why."
            raise ProblemError(Cause.UNREADABLE_STUDY, problem, failures=(*failures, *without_image))
        derived = {f"{one.index}/{one.source}": uid_of_digest(one.sha256, "study") for one in request.uploads}
        left_out = f"No heatmap: an answer has at most {most}. Send fewer frames at a time to see it."
        answer = _answer(
            record,
            manifest,
            uid=_study_instance_uid(record, derived),
            frames=[
                _frame_answer(one, manifest, request.pictures, left_out if request.heatmaps else "") for one in record.frames
            ],
            failures=failures,
            without_image=without_image,
            skipped=len(request.uploads) - len(request.looked_at),
        )
        return Body(answer, request.pictures)
    except (ProblemError, WorkerError) as error:
        return error


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
            raise ProblemError(
                Cause.SEVERAL_STUDIES,
                f"The files belong to more than one study: {_place(source)[1]} has another Study Instance UID (0020,000D) than "
                "the files before it. Send each study in a separate request.",
            )
        stated = uid
    others = sorted(set(uids.values()))
    if stated or len(others) == 1:
        return stated or others[0]
    digest = sha256("\n".join(others).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16])}"


def _answer(
    record: StudyRecord,
    manifest: Manifest,
    *,
    uid: str,
    frames: Sequence[FrameAnswer],
    failures: Sequence[Failure],
    without_image: Sequence[Failure],
    skipped: int,
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
        levels=tuple(LevelAnswer.of(one, _place) for one in levels),
        frames=tuple(frames),
        failures=tuple(failures),
        without_image=tuple(without_image),
        skipped=skipped,
    )


def _frame_answer(frame: FramePrediction, manifest: Manifest, pictures: _Pictures, left_out: str) -> FrameAnswer:
    """Return the answer for a frame; its findings have their heatmaps, all of them or, if they would be too many, none."""
    drawn = pictures.marks(frame)
    index, name = _place(frame.source)
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
        index=index,
        source=name,
        series_instance_uid=frame.key.series_instance_uid,
        sop_instance_uid=frame.key.sop_instance_uid,
        frame_number=frame.key.frame_number,
        laterality=frame.facts.laterality,
        distance=frame.distance,
        labels=labels,
        flags=(*flags, left_out) if left_out and drawn is None else flags,
    )


def _failures(rows: Sequence[Quarantined], request: StudyRequest) -> list[Failure]:
    """Return what was not scored, each with the UIDs that its file states, which a worker reads."""
    if not rows:
        return []
    sources = list(dict.fromkeys(row.source for row in rows))
    files = {file.source: file for file in request.files()}
    found: list[tuple[str, str, str]] = []
    with file_workers(1) as workers, suppress(UnreadableError, WorkerError):
        if not request.cancelled:
            found += workers.run(stated_uids, [files[source] for source in sources])
    uids = dict(zip(sources, found, strict=False))
    return [_failure(row, uids.get(row.source, _UIDS_UNKNOWN)) for row in rows]


def _failure(row: Quarantined, uids: tuple[str, str, str]) -> Failure:
    index, name = _place(row.source)
    return Failure(
        index=index,
        source=name,
        study_instance_uid=uids[0],
        series_instance_uid=uids[1],
        sop_instance_uid=uids[2],
        frame_number=row.frame_number,
        state=state_of(row),
        reason=Reason(row.reason),
        message=row.message,
    )


def _place(source: str) -> tuple[int, str]:
    """Return the index and the name of an upload."""
    index, _, name = source.partition("/")
    return int(index), name
