"""The answers of the service, as in its OpenAPI description."""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from pipeline.errors import Reason
from pipeline.levels import Level, LevelResult, LevelRule, Pooling
from pipeline.model.bundle import Conformal, LocalCalibration, Manifest, Outliers
from pipeline.predictions import Calibration, OperatingPoint, State, Task
from pipeline.settings import IntendedUse, Preprocessing, Quality

ScoredState = Annotated[State, WithJsonSchema({"type": "string", "enum": ["positive", "negative", "uncertain"]})]
Probability = Annotated[float, Field(ge=0, le=1, description="calibrated")]


class Answer(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class HeatmapAnswer(Answer):
    """Where a frame speaks for a label."""

    png: str = Field(description="PNG, base64: the frame beside the frame with the heatmap on it, and a scale")
    layer: str = Field(description="the feature map that was looked at")
    has_positive_evidence: bool = Field(description="false if no place in the frame speaks for the label")
    full_scale: float = Field(description="heatmap value of the last colour, the same in all pictures of the bundle")
    caveat: str = Field(description="why the heatmaps of the bundle are not to be trusted; empty if its checks were passed")


class LabelAnswer(Answer):
    """What the model says of one label in one frame."""

    logit: float = Field(description="output of the network before calibration")
    probability: Probability
    positive: bool = Field(description="whether the state is positive")
    state: ScoredState = Field(description="uncertain if neither presence nor absence can be ruled out")
    operating_point: float = Field(description="the probability around which the label is uncertain")
    disagreement: float | None = Field(
        default=None, description="how far the networks of an ensemble differ, in probability; null if there is one network"
    )
    conformal_set: tuple[Literal["present", "absent"], ...] = Field(
        description="the state in other words: what cannot be ruled out at the bundle's error rate"
    )
    heatmap: HeatmapAnswer | None = Field(
        default=None,
        description="null for the label that means no finding, and if none was asked for, or the "
        "answer has as many as it may (the frame's flags say so)",
    )


class FrameAnswer(Answer):
    """One frame with its labels."""

    index: int = Field(ge=0, description="position of the file among those of the request, from 0")
    source: str = Field(description="name of the file, without folders")
    series_instance_uid: str
    sop_instance_uid: str
    frame_number: int = Field(ge=1)
    laterality: str = Field(description="R, L, U or B; empty if unknown")
    distance: float = Field(description="how far the frame lies from those of the training, refused above 1")
    labels: dict[str, LabelAnswer]
    flags: tuple[str, ...] = Field(description="what was assumed, stands out or was left out, in sentences")


class Failure(Answer):
    """A file that could not be read whole, or has no image, or a frame that the quality gate or the bundle refuses."""

    index: int = Field(ge=0, description="position of the file among those of the request, from 0")
    source: str = Field(description="name of the file, without folders")
    study_instance_uid: str = Field(description="as the file states it, even if it is damaged; empty if it states none")
    series_instance_uid: str = Field(description="the same")
    sop_instance_uid: str = Field(description="the same")
    frame_number: int | None = Field(default=None, ge=1, description="null if the whole file is meant")
    state: Literal[State.NOT_SCORABLE, State.NO_IMAGE] = State.NOT_SCORABLE
    reason: Reason
    message: str


class DecidingFrameAnswer(Answer):
    """A frame that counts most in a result of several frames."""

    index: int = Field(ge=0, description="position of the file among those of the request, from 0")
    source: str = Field(description="name of the file, without folders")
    frame_number: int = Field(ge=1)
    weight: float = Field(gt=0, le=1, description="how much it counts; the weights of all frames have the sum 1")


class LevelLabelAnswer(Answer):
    """What the model says of one label in a study, an eye or a patient."""

    probability: Probability
    positive: bool = Field(description="whether the state is positive")
    state: ScoredState = Field(description="by the operating point and the band of this level")
    operating_point: float = Field(description="the probability around which the label is uncertain at this level")
    deciding_frames: tuple[DecidingFrameAnswer, ...] = Field(description="at most three, the one that counts most first")


class LevelAnswer(Answer):
    """The result of the study, of one eye, or of the patient as far as this study shows it."""

    level: Level
    laterality: str = Field(description="R or L for an eye, else empty")
    pooling: Pooling = Field(description="how the frames became one result: as the tune split of the training chose")
    labels: dict[str, LevelLabelAnswer] = Field(description="empty if no frame was scored")
    frames: int = Field(description="how many scored frames were pooled")
    left_out: int = Field(description="how many files and frames were not scored, and say nothing here")
    why_unknown: str = Field(description="why there is no state; empty if there is one")

    @classmethod
    def of(cls, result: LevelResult, place: Callable[[str], tuple[int, str]]) -> "LevelAnswer":
        """Return a result; `place` makes of a source the index and the name of its file."""
        labels = {
            one.label: LevelLabelAnswer(
                probability=one.probability,
                positive=one.state is State.POSITIVE,
                state=one.state,
                operating_point=one.operating_point,
                deciding_frames=tuple(
                    DecidingFrameAnswer(index=index, source=name, frame_number=frame.frame_number, weight=frame.weight)
                    for frame in one.deciding
                    for index, name in [place(frame.source)]
                ),
            )
            for one in result.predictions
        }
        return cls(
            level=result.level,
            laterality=result.laterality,
            pooling=result.pooling,
            labels=labels,
            frames=result.frames,
            left_out=result.left_out,
            why_unknown=result.why_unknown,
        )


class StudyAnswer(Answer):
    """One study: the files of one request."""

    study_instance_uid: str = Field(description="from the DICOM files; derived (2.25.*) if there are none")
    bundle_id: str
    model: str
    aggregation: Literal["any_finding", "study_level"] = Field(
        description="study_level: the three fields below are those of the level `study`, which was calibrated for studies. "
        "any_finding, if the bundle has no such level: a finding holds for a study if it holds for any frame, the label that "
        "means no finding if it holds for all: the largest probability among the frames, or for that label the smallest",
    )
    probabilities: dict[str, Probability]
    positive: dict[str, bool] = Field(description="whether the state is positive")
    states: dict[str, ScoredState] = Field(
        description="with any_finding: positive if any frame is, else uncertain if any is, else negative; for the label of no "
        "finding, negative if any frame is, else uncertain if any is, else positive"
    )
    levels: tuple[LevelAnswer, ...] = Field(
        description="results of the study, of each eye in it and of its patient, of those levels that the bundle has"
    )
    frames: tuple[FrameAnswer, ...]
    failures: tuple[Failure, ...] = Field(
        description="files that could not be read whole, of which no frame counts above, and frames that were refused"
    )
    without_image: tuple[Failure, ...] = Field(
        description="files that have no image by their kind, such as structured reports; there is nothing to score in them"
    )
    skipped: int = Field(description="files that operating systems leave behind, by their names, which were not looked at")


class Health(Answer):
    """The state of the service."""

    status: Literal["alive", "ready"]


class ModelAnswer(Answer):
    """The public part of a bundle's manifest."""

    bundle_id: str
    model: str
    architecture: str
    labels: tuple[str, ...]
    normal_label: str | None
    task: Task
    preprocessing: Preprocessing
    calibration: Calibration
    operating_points: tuple[OperatingPoint, ...]
    intended_use: IntendedUse
    quality: Quality
    conformal: Conformal | None
    outliers: Outliers | None
    local: LocalCalibration | None
    levels: tuple[LevelRule, ...]
    heatmap_layer: str
    heatmap_full_scale: float
    heatmap_caveat: str
    created: str
    dataset_name: str

    @classmethod
    def of(cls, manifest: Manifest) -> "ModelAnswer":
        """Return what may be shown of `manifest`: no file, no run, no commit."""
        shared = {name: getattr(manifest, name) for name in cls.model_fields if hasattr(manifest, name)}
        return cls(
            **shared,
            model=manifest.provenance.config_name,
            heatmap_full_scale=manifest.heatmap.full_scale,
            heatmap_caveat=manifest.heatmap.caveat,
            created=manifest.provenance.created,
            dataset_name=manifest.provenance.dataset_name,
        )


STUDY_EXAMPLE = {
    "study_instance_uid": "1.2.840.99999.1",
    "bundle_id": "0123456789abcdef",
    "model": "xray",
    "aggregation": "any_finding",
    "probabilities": {"NORMAL": 0.12, "PNEUMONIA": 0.88},
    "positive": {"NORMAL": False, "PNEUMONIA": True},
    "states": {"NORMAL": "negative", "PNEUMONIA": "positive"},
    "levels": [],
    "frames": [
        {
            "index": 0,
            "source": "image.dcm",
            "series_instance_uid": "1.2.840.99999.1.1",
            "sop_instance_uid": "1.2.840.99999.1.1.1",
            "frame_number": 1,
            "laterality": "",
            "distance": 0.42,
            "labels": {
                "NORMAL": {
                    "logit": -1.0,
                    "probability": 0.12,
                    "positive": False,
                    "state": "negative",
                    "operating_point": 0.5,
                    "disagreement": None,
                    "conformal_set": ["absent"],
                    "heatmap": None,
                },
                "PNEUMONIA": {
                    "logit": 1.0,
                    "probability": 0.88,
                    "positive": True,
                    "state": "positive",
                    "operating_point": 0.5,
                    "disagreement": None,
                    "conformal_set": ["present"],
                    "heatmap": {
                        "png": "iVBORw0KGgo...",
                        "layer": "features",
                        "has_positive_evidence": True,
                        "full_scale": 2.0,
                        "caveat": "",
                    },
                },
            },
            "flags": [],
        }
    ],
    "failures": [
        {
            "index": 1,
            "source": "notes.txt",
            "study_instance_uid": "",
            "series_instance_uid": "",
            "sop_instance_uid": "",
            "frame_number": None,
            "state": "not_scorable",
            "reason": "not_an_image",
            "message": "octray does not recognise the content of the file.",
        }
    ],
    "without_image": [],
    "skipped": 0,
}
"""An answer, as in the OpenAPI description."""
