"""What a bundle says of a frame and of a study, and by which rule: frozen dataclasses and enums, numpy arrays."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, Field, PlainSerializer, TypeAdapter

from pipeline.errors import Reason
from pipeline.frames import FloatArray, FrameFacts, InstanceKey, Quarantined
from pipeline.settings import Flag

HeatmapMethod = Literal["grad-cam", "grad-cam++", "layercam", "hirescam"]


DIGITS = 4
"""Digits after the point of every number: more than anyone reads, and fewer than what other hardware changes."""


def rounded(value: float) -> float:
    """Round a number to `DIGITS` digits after the point, with no minus before a zero."""
    return round(value, DIGITS) + 0.0


def _is_none(value: object) -> bool:
    return value is None


Rounded = Annotated[float, PlainSerializer(rounded)]
"""A number that is serialised `rounded`."""


class Activation(StrEnum):
    """How logits become probabilities: `softmax` if exactly one label applies, `sigmoid` if labels are independent."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class Average(StrEnum):
    """Of what an ensemble takes the mean: of the networks' logits, or of their probabilities."""

    LOGIT = "logit"
    PROBABILITY = "probability"


class Task(StrEnum):
    """What a model answers about a frame; whatever depends on it asks the task.

    `multiclass`: exactly one of the labels holds. `binary`: the same, with exactly two labels, so that its bundle is that of a
    `multiclass` task with these two. `ordinal`: exactly one holds, and they are grades in rising or falling order.
    `multilabel`: each label holds or not by itself, so that a single label will do.
    """

    BINARY = "binary"
    MULTICLASS = "multiclass"
    MULTILABEL = "multilabel"
    ORDINAL = "ordinal"

    @property
    def activation(self) -> Activation:
        """How the logits of a bundle for this task become probabilities."""
        return Activation.SIGMOID if self is Task.MULTILABEL else Activation.SOFTMAX


class State(StrEnum):
    """What a result says, in one word; `not_scorable` comes with a reason instead of numbers.

    `no_image` is for objects that have no pixels by their kind, such as a structured report: there is nothing to score.
    """

    POSITIVE = "positive"
    NEGATIVE = "negative"
    UNCERTAIN = "uncertain"
    NOT_SCORABLE = "not_scorable"
    NO_IMAGE = "no_image"


@dataclass(frozen=True, slots=True)
class Calibration:
    """From the logits of a bundle to calibrated ones: logit / temperature + offset, each label with its own two numbers.

    Training fits temperatures alone; `octray calibrate` fits both to the studies of another site. If labels exclude each other,
    all have the same temperature (Alexandari, Kundaje and Shrikumar, "Maximum likelihood with bias-corrected calibration is
    hard-to-beat at label shift adaptation", ICML 2020); with two labels that is Platt's scaling (1999) of their difference.

    Parameters
    ----------
    temperatures
        One for each label, positive.
    offsets
        One for each label.
    """

    temperatures: tuple[Annotated[float, Field(gt=0)], ...]
    offsets: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.temperatures) != len(self.offsets):
            raise ValueError("a calibration has one temperature and one offset for each label")

    @classmethod
    def of(cls, temperature: float, labels: int) -> "Calibration":
        """Return the calibration of so many labels by one temperature."""
        return cls((temperature,) * labels, (0.0,) * labels)

    @property
    def words(self) -> str:
        """The numbers in a few words, in the order of the labels."""
        heat = [f"{one:.3f}" for one in dict.fromkeys(self.temperatures)]
        shifts = f", offsets {', '.join(f'{one:.3f}' for one in self.offsets)}" if any(self.offsets) else ""
        return f"temperature{'s' if len(heat) > 1 else ''} {', '.join(heat)}{shifts}"


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure of an evaluation with its 95 % interval; None if it is not defined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The calibrated probability that best divides frames with a label from those without, chosen on the calibration split.

    Parameters
    ----------
    label
        The finding.
    threshold
        In [0, 1]; the band of the label, in which it is uncertain, lies around it.
    criterion
        How it was chosen, for example "youden".
    sensitivity, specificity
        Of the states that `DecisionRule` gives the frames of the calibration split, in [0, 1]: the part of the frames with the
        label that are positive, and of those without it that are negative. Uncertain frames count as errors.
    expected_sensitivity, expected_specificity
        What the threshold alone promises in further patients, without a band: chosen again without each patient of the
        calibration split and measured on that patient, with 95 % intervals. After a local calibration that keeps the threshold,
        what it does at the site. None if it was not measured.
    """

    label: str
    threshold: float
    criterion: str
    sensitivity: float
    specificity: float
    expected_sensitivity: Interval | None = None
    expected_specificity: Interval | None = None


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
    present_patients, absent_patients
        On how many patients with a frame that has the label, and with one that has not, the edges were fitted. If either are
        fewer than `patients_needed`, the band covers only the interval of the operating point and promises no error rate.
    """

    label: str
    present_from: float
    absent_below: float
    present_patients: int = 0
    absent_patients: int = 0


FEW_PATIENTS = 20
"""With fewer patients with a label, or without it, tables warn of its figures: a rule of thumb."""


def patients_needed(alpha: float) -> int:
    """Return with how many patients of each kind a conformal band can promise to miss the truth no more often than `alpha`."""
    return math.ceil(1 / alpha - 1 - 1e-9)


@dataclass(frozen=True, slots=True)
class DecisionRule:
    """The one way from probabilities to states, for training, figures, folders and HTTP.

    Parameters
    ----------
    bands
        One for each label, in the order of the outputs.
    exclusive
        Whether exactly one label holds in each frame, as with softmax.
    normal_label
        The label that means no finding; None if there is none.
    """

    bands: tuple[ConformalBand, ...]
    exclusive: bool
    normal_label: str | None

    @classmethod
    def of(
        cls,
        labels: Sequence[str],
        points: Sequence[OperatingPoint],
        bands: Sequence[ConformalBand],
        activation: Activation,
        normal_label: str | None,
    ) -> "DecisionRule":
        """Return the rule for `labels`; one that has no band is decided at its operating point, which it must have."""
        thresholds = {point.label: point.threshold for point in points}
        known = {band.label: band for band in bands}
        complete = tuple(known.get(label) or ConformalBand(label, thresholds[label], thresholds[label]) for label in labels)
        return cls(complete, activation is Activation.SOFTMAX, normal_label)

    def states(self, probabilities: ArrayLike) -> NDArray[np.object_]:
        """Return the state of each label in each frame.

        1. A label is ruled out if its probability lies below `present_from` of its band. If labels are exclusive, a finding
           that is the most probable label is not; and if all labels are ruled out though one must hold, the most probable
           finding is not either.
        2. A label that is ruled out is negative.
        3. A finding is positive if its probability reaches `absent_below` of its band, and if all labels that cannot hold
           beside it are ruled out: if labels are exclusive all others, else the normal label.
        4. The normal label follows from the findings: it is positive if all of them are negative, and negative beside a
           positive one. If some are uncertain and none is positive, it is negative if it is ruled out itself.
        5. Everything else is uncertain.

        Hence two labels that exclude each other are never both positive in a frame. Against the bands alone, findings only turn
        from positive or negative to uncertain, which misses no truth. The normal label is negative only if its own band rules
        it out, and wrongly positive only if a finding that is there is wrongly negative. So all labels have the coverage
        of `evaluate.conformal`.

        Parameters
        ----------
        probabilities
            Calibrated, of shape (n, labels), in [0, 1].

        Returns
        -------
        NDArray[np.object_]
            `State`, of shape (n, labels): positive, negative or uncertain.
        """
        chances = np.asarray(probabilities, np.float64)
        is_normal = np.array([band.label == self.normal_label for band in self.bands])
        has_normal = bool(is_normal.any() and not is_normal.all())
        finding = ~is_normal if has_normal else np.ones(len(self.bands), bool)
        kept = chances >= [band.present_from for band in self.bands]
        if self.exclusive or has_normal:
            likeliest = np.where(finding, chances, -1).argmax(axis=1)
            stays = ~kept.any(axis=1)
            if self.exclusive:
                stays |= chances.max(axis=1) == chances[np.arange(len(chances)), likeliest]
            kept[stays, likeliest[stays]] = True
        rivals = kept.sum(axis=1, keepdims=True) - kept if self.exclusive else kept[:, ~finding].sum(axis=1, keepdims=True)
        positive = (chances >= [band.absent_below for band in self.bands]) & (rivals == 0)
        positive[:, ~finding] = ~kept[:, finding].any(axis=1, keepdims=True)
        states = np.empty(chances.shape, dtype=object)
        states.fill(State.UNCERTAIN)  # np.full would make a plain string of it
        states[positive] = State.POSITIVE
        states[~kept] = State.NEGATIVE
        return states


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a bundle says of one label in one frame.

    Parameters
    ----------
    label
        The finding.
    logit
        Output of the network before calibration.
    probability
        Calibrated, in [0, 1].
    state
        What the bundle's `DecisionRule` makes of the probabilities of the frame.
    operating_point
        The threshold of the label, in [0, 1], around which its band lies.
    disagreement
        How far the networks of an ensemble differ: the standard deviation of their calibrated probabilities, in [0, 0.5].
        None if the bundle has one network.
    """

    label: str
    logit: Rounded
    probability: Rounded
    state: State
    operating_point: Rounded
    disagreement: Annotated[Rounded | None, Field(exclude_if=_is_none)] = None

    @property
    def positive(self) -> bool:
        """Whether the state is positive; an uncertain label is not."""
        return self.state is State.POSITIVE

    @property
    def conformal_set(self) -> tuple[str, ...]:
        """What cannot be ruled out at the bundle's error rate: "present", "absent" or both."""
        kept = (("present", self.state is not State.NEGATIVE), ("absent", self.state is not State.POSITIVE))
        return tuple(name for name, stays in kept if stays)


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Which parts of a frame speak for a label.

    Parameters
    ----------
    label
        The finding.
    has_positive_evidence
        False if no cell speaks for the label; the map is then all zero.
    picture
        Path of its JPEG file below the folder of results, with forward slashes; empty if there is none.
    rows, columns
        Of the frame alone, which stands at the upper left of the picture; 0 if nothing was drawn.
    values
        float32 array of shape (map_rows, map_columns), not negative: what each cell of the last feature map says for the label,
        in the bundle's measure (`HeatmapSupport.meaning`). None once they are no longer needed.
    jpeg, png
        The picture as files; empty if they were not asked for, or are written already.
    fault
        Why no picture could be drawn; empty if there is no fault.
    """

    label: str
    has_positive_evidence: bool
    picture: str = ""
    rows: int = 0
    columns: int = 0
    values: Annotated[FloatArray | None, Field(exclude=True)] = field(default=None, compare=False)
    jpeg: Annotated[bytes, Field(exclude=True)] = field(default=b"", compare=False, repr=False)
    png: Annotated[bytes, Field(exclude=True)] = field(default=b"", compare=False, repr=False)
    fault: Annotated[str, Field(exclude=True)] = ""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)


@dataclass(frozen=True, slots=True)
class FramePrediction:
    """What a bundle says of a frame.

    Parameters
    ----------
    facts
        What is known of the frame.
    bundle_id
        Identity of the bundle.
    predictions
        One for each label, in the bundle's order.
    flags
        What the quality gate found in the frame and let pass.
    distance
        How far the frame lies from those that the bundle was trained on, in units of the bundle's threshold: above 1 it is
        refused.
    heatmaps
        One for each label, or none if they were not asked for; in a `StudyRecord` those of which pictures were asked for.
    attention
        The scores by which each level weighs the frame, one for each label, by the name of the level; only of levels that pool
        frames by attention.
    """

    facts: FrameFacts
    bundle_id: str
    predictions: tuple[Prediction, ...]
    flags: tuple[Flag, ...]
    distance: Rounded
    heatmaps: tuple[Heatmap, ...] = ()
    attention: Mapping[str, tuple[Rounded, ...]] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> InstanceKey:
        """Study, series, instance and frame."""
        return self.facts.key

    @property
    def source(self) -> str:
        """Path of the file below what was given to read."""
        return self.facts.source

    def without_content(self) -> "FramePrediction":
        """Return it without the values and the files of its heatmaps, which may be large."""
        drawn = [heatmap for heatmap in self.heatmaps if heatmap.rows or heatmap.fault]
        return replace(self, heatmaps=tuple(replace(one, values=None, jpeg=b"", png=b"") for one in drawn))


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study with everything that was found in it and everything that was not used; all results are derived from it.

    Parameters
    ----------
    study_instance_uid
        Study Instance UID (0020,000D), or the derived one; empty if no file of the study could be read.
    frames
        Results in the order of the files and frames, without the content of their heatmaps.
    not_used
        Files and frames without a result, with the reasons, in the same order.
    begun_at, ended_at
        When scoring began and ended (ISO 8601, UTC); not serialised, so that equal results give equal bytes.
    """

    study_instance_uid: str
    frames: tuple[FramePrediction, ...] = ()
    not_used: tuple[Quarantined, ...] = ()
    begun_at: Annotated[str, Field(exclude=True)] = field(default="", compare=False)
    ended_at: Annotated[str, Field(exclude=True)] = field(default="", compare=False)

    @property
    def failures(self) -> tuple[Quarantined, ...]:
        """Files and frames that should have been scored and were not."""
        return tuple(row for row in self.not_used if row.reason != Reason.NO_IMAGE)

    @property
    def without_image(self) -> tuple[Quarantined, ...]:
        """Files that have no image by their kind, such as structured reports: there is nothing to score in them."""
        return tuple(row for row in self.not_used if row.reason == Reason.NO_IMAGE)

    def sources(self) -> set[str]:
        """Return the files that appear in the record."""
        return {frame.source for frame in self.frames} | {row.source for row in self.not_used}

    def to_json(self) -> bytes:
        """Return the record as JSON with numbers `rounded`; equal records give equal bytes."""
        return _adapter().dump_json(self)

    @staticmethod
    def from_json(content: bytes) -> "StudyRecord":
        """Return the record that `to_json` wrote."""
        return _adapter().validate_json(content)


@cache
def _adapter() -> TypeAdapter[StudyRecord]:
    return TypeAdapter(StudyRecord)
