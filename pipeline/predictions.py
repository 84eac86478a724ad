"""What a bundle says of a frame, and by which thresholds: frozen dataclasses and enums, numpy arrays, nothing heavier."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from pipeline.intake import Flag
from pipeline.records import EXACT_EVIDENCE, FloatArray, InstanceKey

HeatmapMethod = Literal["grad-cam", "grad-cam++", "layercam", "hirescam"]


class Activation(StrEnum):
    """How logits become probabilities: `softmax` where exactly one label holds, `sigmoid` where labels are independent."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class State(StrEnum):
    """What a result says, in one word; `not_scorable` comes with a reason instead of numbers.

    `no_image` is said of objects that have no pixels by their kind, such as a structured report: there is nothing to score.
    """

    POSITIVE = "positive"
    NEGATIVE = "negative"
    UNCERTAIN = "uncertain"
    NOT_SCORABLE = "not_scorable"
    NO_IMAGE = "no_image"


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where a probability becomes a positive, chosen on the calibration split.

    Parameters
    ----------
    label
        The finding.
    threshold
        Positive from this calibrated probability on, in [0, 1].
    criterion
        How it was chosen, for example "youden".
    sensitivity, specificity
        At the threshold on the calibration split, in [0, 1].
    """

    label: str
    threshold: float
    criterion: str
    sensitivity: float
    specificity: float


@dataclass(frozen=True, slots=True)
class ConformalBand:
    """Where neither presence nor absence of a label can be ruled out, fitted on the calibration split.

    Parameters
    ----------
    label
        The finding.
    present_from
        From this calibrated probability on, presence cannot be ruled out; at most the threshold of the operating point.
    absent_below
        Below this one, absence cannot; at least that threshold.
    """

    label: str
    present_from: float
    absent_below: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a bundle says of one label in one frame.

    Parameters
    ----------
    key
        Study, series, instance and frame.
    label
        The finding.
    logit
        Output of the network before calibration.
    probability
        Calibrated, in [0, 1].
    positive
        Whether the probability reaches the label's operating point.
    bundle_id
        Identity of the bundle that said it.
    conformal_set
        What cannot be ruled out at the bundle's error rate: of "present" and "absent", one or both; empty where the bundle has
        no conformal thresholds for the label.
    operating_point
        The threshold of the label that `positive` comes from, in [0, 1]; None where it is not known.
    """

    key: InstanceKey
    label: str
    logit: float
    probability: float
    positive: bool
    bundle_id: str
    conformal_set: tuple[str, ...] = ()
    operating_point: float | None = None

    @property
    def state(self) -> State:
        """Uncertain where neither presence nor absence can be ruled out; otherwise what the operating point says."""
        if len(self.conformal_set) > 1:
            return State.UNCERTAIN
        return State.POSITIVE if self.positive else State.NEGATIVE


@dataclass(frozen=True, slots=True, eq=False)
class Heatmap:
    """Which parts of a frame speak for a label.

    Parameters
    ----------
    values
        float32 array of shape (map_rows, map_columns), not negative, in logits: what each cell of the last feature map says for
        the label.
    label
        The finding.
    layer
        Name of the feature map.
    has_positive_evidence
        False where no cell speaks for the label; the map is then all zero.
    meaning
        What a value is: `EXACT_EVIDENCE`, which its cell adds to the logit, or evidence that a method measures in its own way.
    """

    values: FloatArray
    label: str
    layer: str
    has_positive_evidence: bool
    meaning: str = EXACT_EVIDENCE


@dataclass(frozen=True, slots=True)
class FramePrediction:
    """All labels of one frame, in the bundle's order, with their heatmaps where they were asked for.

    Parameters
    ----------
    key, source, laterality, view_position
        As in `Frame`.
    predictions
        One for each label.
    heatmaps
        One for each label, or none.
    flags
        What the quality gate found in the frame and let pass.
    distance
        How far the frame lies from those that the bundle was trained on, in units of the bundle's threshold: above 1 it is
        refused; None where the bundle has no reference.
    input_sha256
        `file_sha256` of the frame.
    """

    key: InstanceKey
    source: str
    predictions: tuple[Prediction, ...]
    heatmaps: tuple[Heatmap, ...] = field(default=())
    flags: tuple[Flag, ...] = ()
    laterality: str = ""
    distance: float | None = None
    input_sha256: str = ""
    view_position: str = ""
