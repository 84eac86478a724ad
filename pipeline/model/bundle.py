"""The bundle: the only thing that passes from training to scoring.

It is a folder of safetensors, ONNX, JSON and text files, none of them pickled. `manifest.json` holds the sha256 of every other
file and is written last, so if it exists, the bundle is complete.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from pipeline.atomic import remove_leftovers, write_bytes
from pipeline.errors import BundleError
from pipeline.frames import EXACT_EVIDENCE
from pipeline.levels import Attention, LabelSet, Level, LevelRule, Pooling
from pipeline.predictions import (
    Activation,
    Average,
    Calibration,
    ConformalBand,
    DecisionRule,
    HeatmapMethod,
    Interval,
    OperatingPoint,
    Task,
)
from pipeline.settings import Gate, IntendedUse, Limits, Preprocessing, Quality

SCHEMA_VERSION = 5
MANIFEST = "manifest.json"
GRAPH = "model.onnx"
WEIGHTS = "weights.safetensors"
METRICS = "metrics.json"
MODEL_CARD = "MODEL_CARD.md"
CONFIG = "config.yaml"
REFERENCE = "reference.safetensors"
HOME = "home.safetensors"
"""What the bundle keeps of its data, as `evaluate.drift.Home` describes."""
ATTENTION = "attention.safetensors"
"""Only in bundles with a level whose frames are pooled by attention."""
REQUIRED_FILES = frozenset({GRAPH, WEIGHTS, METRICS, MODEL_CARD, CONFIG, REFERENCE, HOME})


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Normalisation(_Part):
    """What the graph does first to the pixels of each colour channel: subtract `mean`, divide by `std`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class ExplanationCheck(_Part):
    """One check of the heatmaps, made on frames of the calibration split when the bundle was written.

    `value` was measured on `frames` frames and compared with `reference`. Zero frames mean that nothing could be measured,
    since every map had the same value everywhere.
    """

    name: Literal["randomisation", "deletion", "insertion", "pointing", "iou"]
    frames: int
    value: float
    reference: float
    passed: bool


class MapSupport(_Part):
    """How the maps of one network are made: by the closed form if it holds for this network, otherwise by a gradient.

    `layer` names the feature map that the graph returns; `classifier` is the tensor of shape (labels, channels) in the
    network's file of weights; `max_difference` is the largest absolute difference between the closed form and `grad-cam`, in
    logits, measured when the bundle was written, None if the closed form has no meaning; `exact` says that it is small enough.
    """

    layer: str
    classifier: str
    exact: bool
    max_difference: float | None
    computed: Literal["closed_form", "gradient"]
    checks: tuple[ExplanationCheck, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the maps passed every check."""
        return all(check.passed for check in self.checks)


class StartingWeights(_Part):
    """The weights that the training of a network started from.

    `name` is `none`, the name of a file, a package with its version, or a name on timm's hub. `sha256` is that of the file,
    for the hub that of the tensors as a safetensors file; it is empty if the weights were random. `unused` names the tensors
    of the file that the network has no place for.
    """

    name: str
    sha256: str = ""
    unused: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Name and sha256 in a few words."""
        return "random" if self.name == "none" else f"{self.name} (sha256 {self.sha256})"


class Member(_Part):
    """One network of a bundle; all of them take the same frames on the same grid.

    `graph` and `weights` are files of the bundle; `normalisation` is what the graph does to the pixels. If the network reads
    another `size` than that of the frames, its graph resizes them first. `blocks` are those of a transformer that its head
    reads, from 1; they are empty if it reads the last one. `gradient_maps.rebuild_network` needs no more to build the network
    again.
    """

    architecture: str
    size: int
    blocks: tuple[int, ...] = ()
    started_from: StartingWeights
    graph: str
    weights: str
    normalisation: Normalisation
    maps: MapSupport


class HeatmapSupport(_Part):
    """What the heatmaps of a bundle show, and on which scale.

    `method` names the map; `members` are the positions of the networks whose maps it is the mean of; `computed` says how, and
    is `gradient` if one of them needs a gradient; `exact` says that each value of the methods `grad-cam` and `hirescam` is what
    its cell adds to the bundle's logit. `checks` are those of the
    heatmaps as they are shown.

    `full_scale` is the value of the last colour in all pictures of the bundle: in 95 % of the true positives of each finding on
    the calibration split the strongest cell reaches no more. There are `true_positives` of them; without any it was taken from
    all frames that have a finding.
    """

    method: HeatmapMethod = "grad-cam"
    members: tuple[int, ...] = (0,)
    exact: bool
    computed: Literal["closed_form", "gradient"]
    full_scale: float = Field(gt=0)
    true_positives: int
    checks: tuple[ExplanationCheck, ...] = ()

    @property
    def is_part_of_logit(self) -> bool:
        """Whether each value is what its cell adds to the logit: true for a linear head and two of the methods."""
        return self.exact and self.method in ("grad-cam", "hirescam")

    @property
    def meaning(self) -> str:
        """The meaning of a heatmap's values, in a few words."""
        return EXACT_EVIDENCE if self.is_part_of_logit else f"evidence by {self.method}"

    @property
    def caveat(self) -> str:
        """A sentence for readers of the heatmaps; empty if every check was passed."""
        failed = ", ".join(check.name for check in self.checks if check.frames and not check.passed)
        empty = ", ".join(check.name for check in self.checks if not check.frames)
        found = [f"failed checks ({failed})"] if failed else []
        found += [f"could not be checked ({empty}), as they are the same everywhere"] if empty else []
        return f"The heatmaps of this bundle {' and '.join(found)}: do not rely on them." if found else ""


class LabelCoverage(_Part):
    """How often the states of one label held the truth on the test split, and how often they were uncertain.

    Patients count alike: each gives the part of its frames with the label that were not negative (`covered_positives`), and of
    those without it that were not positive (`covered_negatives`). `uncertain` is the part of all frames.
    """

    covered_positives: Interval
    covered_negatives: Interval
    uncertain: Interval


class MeasuredStates(_Part):
    """How often the bundle was uncertain on its test split: about any label (`uncertain`), and about each label.

    `open_labels` is how many labels it could not rule out in a frame, on average.
    """

    frames: int
    patients: int
    uncertain: Interval
    open_labels: Interval
    labels: Mapping[str, LabelCoverage]


class Conformal(_Part):
    """The band around its operating point in which a label is uncertain.

    `alpha` is how often states may miss the truth, in frames with a label and in frames without it; `measured` is None if there
    was no test split.
    """

    alpha: float
    bands: tuple[ConformalBand, ...]
    measured: MeasuredStates | None = None


class MeasuredRefusals(_Part):
    """False alarms: how many frames of the test split are refused, and how many patients have such a frame.

    `low` and `high` are the 95 % interval of the part of the patients (Clopper and Pearson 1934).
    """

    frames: int
    refused_frames: int
    patients: int
    refused_patients: int
    low: float
    high: float


class Outliers(_Part):
    """The distance above which a frame is refused, measured from the features in `reference.safetensors`.

    Features are those of the network at the position `member`.
    `threshold` is that of `evaluate.outliers.Reference`; it was fixed on `calibration_frames` of `calibration_patients`.
    `measured` is None if there was no test split.
    """

    member: int = 0
    threshold: float
    calibration_frames: int
    calibration_patients: int = 0
    measured: MeasuredRefusals | None = None


class Provenance(_Part):
    """How the bundle was made: when, from which data and commit, and with which versions of libraries."""

    created: str
    git_commit: str
    mlflow_run_id: str
    dataset_name: str
    dataset_sha256: str
    config_name: str
    seed: int
    versions: Mapping[str, str]


class LocalCalibration(_Part):
    """How a bundle was calibrated to the studies of another site, by `octray calibrate`.

    `parent` is the identity of the bundle that it was made from, a hash over all of its content. `frames` of `patients` were
    used; `present` and `absent` say how many patients have each label and how many lack it; `known_patients` were left out
    since frames of theirs belong to the data of the parent, and `refused_frames` since the bundle refuses them. `refitted`
    names the labels that were calibrated; the others kept the calibration of the parent. `decisions` says whether operating
    points and bands were chosen again as well. `gain` is the mean log loss of a frame before minus that after, with its 95 %
    interval, each frame measured by a calibration that was fitted without its patient; `proven` says that the interval lies
    above zero.
    """

    parent: str
    created: str
    dataset_name: str
    dataset_sha256: str
    frames: int
    patients: int
    present: Mapping[str, int]
    absent: Mapping[str, int]
    known_patients: int
    refused_frames: int
    refitted: tuple[str, ...]
    decisions: bool
    log_loss_before: float
    log_loss_after: float
    gain: Interval
    proven: bool

    @property
    def words(self) -> str:
        """What it brought, in a sentence."""
        low, high = self.gain.low or 0.0, self.gain.high or 0.0
        size = f"{self.gain.value:.4f} (95 % interval {low:.4f} to {high:.4f})"
        kind = "The gain is proven" if self.proven else "The gain is unproven: its interval holds zero"
        return f"{kind}. The log loss of a frame falls by {size}, from {self.log_loss_before:.4f} to {self.log_loss_after:.4f}."


class Manifest(_Part):
    """Everything that scoring needs to know besides the graph."""

    schema_version: int
    bundle_id: str
    members: tuple[Member, ...] = Field(min_length=1)
    average: Average = Average.LOGIT
    labels: tuple[str, ...]
    normal_label: str | None
    urgency: tuple[str, ...] = ()
    label_names: Mapping[str, str] = {}
    task: Task
    preprocessing: Preprocessing
    calibration: Calibration
    operating_points: tuple[OperatingPoint, ...]
    heatmap: HeatmapSupport
    intended_use: IntendedUse
    quality: Quality
    limits: Limits
    conformal: Conformal
    outliers: Outliers
    provenance: Provenance
    files: Mapping[str, str]
    levels: tuple[LevelRule, ...] = ()
    local: LocalCalibration | None = None

    @property
    def architecture(self) -> str:
        """The names of the networks, each once."""
        return ", ".join(dict.fromkeys(member.architecture for member in self.members))

    @property
    def heatmap_layer(self) -> str:
        """The names of the feature maps that the heatmaps are made from, each once."""
        return ", ".join(dict.fromkeys(self.members[place].maps.layer for place in self.heatmap.members))

    @property
    def activation(self) -> Activation:
        """How logits become probabilities, which follows from the task."""
        return self.task.activation

    @property
    def label_set(self) -> LabelSet:
        """The labels, and what is pooled of them for studies, eyes and patients."""
        return LabelSet(self.labels, self.task, self.normal_label)

    def rule(self) -> DecisionRule:
        """Return the rule that turns probabilities into states; every label must have an operating point."""
        return DecisionRule.of(self.labels, self.operating_points, self.conformal.bands, self.activation, self.normal_label)

    def gate(self) -> Gate:
        """Return the quality gate that frames pass before the bundle scores them."""
        return Gate(self.quality, self.intended_use)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded bundle, all of whose files match their hashes."""

    path: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """Return the content of one file, checked once more against its hash.

        Raises
        ------
        BundleError
            If the file is not part of the bundle, or has changed since.
        """
        expected = self.manifest.files.get(name)
        if expected is None:
            raise BundleError(f"The bundle {self.path.name} has no file {name}.")
        content = _read(self.path, name)
        if hashlib.sha256(content).hexdigest() != expected:
            raise BundleError(
                f"The file {name} of bundle {self.path.name} does not match its hash in {MANIFEST}: it was altered or cut. "
                "Copy the bundle again, or train it again."
            )
        return content

    def attention(self) -> dict[Level, Attention]:
        """Return the attention of each level that pools frames by it.

        Raises
        ------
        BundleError
            If the file of it is missing, or does not fit the manifest.
        """
        levels = [rule.level for rule in self.manifest.levels if rule.pooling is Pooling.ATTENTION]
        if not levels:
            return {}
        try:
            tensors = load(self.read(ATTENTION))
            return {level: Attention.of(tensors, level, self.manifest.label_set.weightings) for level in levels}
        except (SafetensorError, ValueError):
            raise BundleError(
                f"The file {ATTENTION} of bundle {self.path.name} cannot be used. Train the bundle again."
            ) from None


def bundle_id(values: Mapping[str, object]) -> str:
    """Return the identity of a bundle: the first 16 hex digits of the hash over its whole manifest, files' hashes included.

    Parameters
    ----------
    values
        The manifest as it stands in its file: one that lacks a field of a later octray keeps its identity.
    """
    named = {name: value for name, value in values.items() if name != "bundle_id"}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def draft_manifest(files: Mapping[str, str] | None = None, **fields: object) -> Manifest:
    """Return the manifest of a bundle that has no identity yet; `fields` are those of `write_bundle`."""
    return Manifest.model_validate({"schema_version": SCHEMA_VERSION, "bundle_id": "", "files": files or {}, **fields})


def write_bundle(path: Path, contents: Mapping[str, bytes], **fields: object) -> Bundle:
    """Write a bundle; the manifest comes last.

    Parameters
    ----------
    path
        Folder to create; an older bundle there is replaced, its manifest first.
    contents
        File names and what they hold; all of `REQUIRED_FILES` must be there.
    fields
        The fields of `Manifest` other than `schema_version`, `bundle_id` and `files`.

    Raises
    ------
    BundleError
        If a required file is missing.
    """
    if missing := REQUIRED_FILES - set(contents):
        raise BundleError(f"A bundle needs {', '.join(sorted(missing))}.")
    files = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(contents.items())}
    draft = draft_manifest(files, **fields)
    manifest = draft.model_copy(update={"bundle_id": bundle_id(draft.model_dump(mode="json"))})
    path.mkdir(parents=True, exist_ok=True)
    _remove_bundle(path)
    for name, content in contents.items():
        remove_leftovers(path / name)
        write_bytes(path / name, content, durable=True)
    write_bytes(path / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode(), durable=True)
    return Bundle(path, manifest)


def load_bundle(path: Path | str) -> Bundle:
    """Load a bundle and check the hash of every file.

    Raises
    ------
    BundleError
        If it is missing, incomplete, altered, or of another schema version.
    """
    path = Path(path)
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise BundleError(
            f"{path.name} is not a bundle: it has no readable {MANIFEST}. Give the folder that `octray train --out` wrote."
        ) from None
    bundle = Bundle(path, _parse_manifest(path.name, text))
    for name in sorted(bundle.manifest.files):
        bundle.read(name)
    return bundle


def _remove_bundle(path: Path) -> None:
    """Delete the files of an older bundle, its manifest first; files that no manifest names are not touched."""
    try:
        names = load_bundle(path).manifest.files
    except BundleError:
        names = {}
    (path / MANIFEST).unlink(missing_ok=True)
    for name in names:
        (path / name).unlink(missing_ok=True)


def _parse_manifest(name: str, text: str) -> Manifest:
    try:
        values = json.loads(text)
        version = values["schema_version"]
    except (ValueError, TypeError, KeyError):
        raise BundleError(f"The {MANIFEST} of bundle {name} is damaged. Copy the bundle again, or train it again.") from None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"The bundle {name} has schema version {version}; this octray reads {SCHEMA_VERSION}. Train it again, or score "
            "with the octray that wrote it."
        )
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, fault["loc"])) for fault in error.errors()}))
        raise BundleError(f"The {MANIFEST} of bundle {name} is not valid in: {fields}. Train the bundle again.") from None
    members = {name for member in manifest.members for name in (member.graph, member.weights)}
    places = range(len(manifest.members))
    known = manifest.heatmap.members and all(place in places for place in (*manifest.heatmap.members, manifest.outliers.member))
    fits = all(rule.fits(manifest.label_set) for rule in manifest.levels)
    unsafe = [file for file in manifest.files if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts]
    fits = fits and len(manifest.calibration.temperatures) == len(manifest.labels)
    fits = fits and set(manifest.files) >= REQUIRED_FILES | members
    if unsafe or not (known and fits) or bundle_id(values) != manifest.bundle_id:
        raise BundleError(f"The {MANIFEST} of bundle {name} does not describe a whole bundle. Copy or train it again.")
    return manifest


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError:
        raise BundleError(f"The file {name} of bundle {path.name} cannot be read. Copy the bundle again.") from None
