"""The answers of the service, as in its OpenAPI description."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from pipeline.errors import Reason
from pipeline.model.bundle import Conformal, Manifest, Outliers
from pipeline.predictions import OperatingPoint, State, Task
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

    source: str = Field(description="name of the file, without folders")
    frame_number: int | None = Field(default=None, ge=1, description="null if the whole file is meant")
    state: Literal[State.NOT_SCORABLE, State.NO_IMAGE] = State.NOT_SCORABLE
    reason: Reason
    message: str


class StudyAnswer(Answer):
    """One study: the files of one request."""

    study_instance_uid: str = Field(description="from the DICOM files; derived (2.25.*) if there are none")
    bundle_id: str
    model: str
    aggregation: Literal["any_finding"] = Field(
        default="any_finding",
        description="a finding holds for a study if it holds for any frame, the label that means no finding if it holds "
        "for all: the largest probability among the frames, or for that label the smallest",
    )
    probabilities: dict[str, Probability]
    positive: dict[str, bool] = Field(description="whether any frame is positive; for the label of no finding, whether all are")
    states: dict[str, ScoredState] = Field(
        description="positive if any frame is, else uncertain if any is, else negative; for the label of no finding, "
        "negative if any frame is, else uncertain if any is, else positive"
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
    temperature: float
    operating_points: tuple[OperatingPoint, ...]
    intended_use: IntendedUse
    quality: Quality
    conformal: Conformal | None
    outliers: Outliers | None
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
