"""Configuration of a training run: loads YAML with key=value overrides, and reports every fault at once."""

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import StrEnum
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass

from pipeline.errors import ConfigError
from pipeline.predictions import Average, HeatmapMethod, Task
from pipeline.settings import Gate, IntendedUse, Limits, Policy, PositiveInt, Preprocessing, Quality

PROMOTION = "promotion.yaml"
"""The requirements of `octray promote`, which lie beside the configurations."""

Fraction = Annotated[float, Field(gt=0, lt=1)]
Label = Annotated[str, AfterValidator(partial(unicodedata.normalize, "NFC"))]
"""The name of a label in the form that the index has it in."""
Imbalance = Literal["none", "class_weights", "effective_number", "balanced_sampler", "focal", "logit_adjustment"]
"""What is done about rare labels, as `train.tasks.Objective` describes."""


def _experiment(name: str) -> str:
    if not name.strip():
        raise ValueError("an MLflow experiment needs a name")
    return name


def _model_name(name: str) -> str:
    """Check what MLflow's `_validate_model_name` checks; the empty name stands for the default."""
    if "/" in name or ":" in name or name in (".", "..") or (name and not name.strip()):
        raise ValueError("an MLflow model name must not contain / or :, and must not consist of dots or blanks")
    return name


def _alias(name: str) -> str:
    """Check what MLflow's `_validate_model_alias_name` and `_validate_model_alias_name_reserved` check."""
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError("an MLflow alias consists of letters, digits, underscores and dashes")
    if name.lower() == "latest" or re.fullmatch(r"[vV]\d+", name):
        raise ValueError("MLflow reserves the alias latest, and version names such as v1")
    return name


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""NumPy and torch take such numbers as seeds, and what octray adds to them as well."""


class Section(BaseModel):
    """A part of a configuration: unknown keys are faults, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False)


@pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", validate_default=True))
class DataSection(IntendedUse):
    """What the labels mean, and which studies the model is meant for."""

    labels: tuple[Label, ...] = Field(default=(), description="in the order of the outputs; empty: those of the index, sorted")
    normal_label: Label | None = Field(default=None, description="the label that means no finding; it is never urgent")
    urgency: tuple[Label, ...] = Field(default=(), description="findings, the most urgent first; the others follow as equals")
    label_names: Mapping[Label, str] = Field(default={}, description="what the abbreviations among the labels stand for")

    @field_validator("labels", "urgency")
    @classmethod
    def _once_each(cls, labels: tuple[Label, ...]) -> tuple[Label, ...]:
        if len(set(labels)) < len(labels):
            raise ValueError("a label is named twice; leave one out")
        return labels

    @field_validator("ages")
    @classmethod
    def _in_order(cls, ages: tuple[int, int] | None) -> tuple[int, int] | None:
        if ages is not None and ages[0] > ages[1]:
            raise ValueError("the youngest age must come before the oldest, for example [0, 17]")
        return ages


class ModelSection(Section):
    """Which network, and where its weights come from."""

    architecture: str = "tf_efficientnet_lite0"
    weights: str = Field(
        default="bundled", description="bundled, hub, none, or the path of a safetensors file or of one of torch.save"
    )
    input_range: tuple[FiniteFloat, FiniteFloat] | None = Field(
        default=None, description="what black and white were when the weights were made; TorchXRayVision: [-1024, 1024]"
    )
    mean: tuple[FiniteFloat, ...] | None = Field(
        default=None, description="subtracted from the input, for all channels or each; null: as the weights need it"
    )
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] | None = Field(
        default=None, description="the input is divided by it, for all channels or each; null: as the weights need it"
    )
    size: Annotated[int, Field(ge=32, le=1024)] | None = Field(
        default=None, description="rows and columns that the network reads, if they are not those of preprocessing.size"
    )
    global_pool: bool = Field(
        default=False, description="replace the network's head by the mean of each channel and one linear layer"
    )
    blocks: tuple[PositiveInt, ...] = Field(
        default=(), description="blocks of a vision transformer that the head reads together, from 1; empty: the last"
    )

    @field_validator("input_range")
    @classmethod
    def _rises(cls, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        if ends is not None and ends[0] >= ends[1]:
            raise ValueError("black must be below white, for example [-1024, 1024]")
        return ends

    @field_validator("blocks")
    @classmethod
    def _rise(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if list(blocks) != sorted(set(blocks)):
            raise ValueError("blocks are named once each, in rising order, for example [8, 10]")
        return blocks

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both, or none of them")
        return self


class HeadSection(Section):
    """The linear head on frozen features; its weight decay is chosen on frames that it is not fitted on."""

    weight_decays: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1e-1, 1e-2, 1e-3, 1e-4)
    epochs: PositiveInt = 200
    folds: Annotated[int, Field(ge=2, le=20)] = Field(
        default=5, description="of the patients of the train and tune split, in which `probe` chooses the weight decay"
    )


class FinetuneSection(Section):
    """Training of the backbone together with the head, if `train.way` is `staged` or `full`."""

    epochs: PositiveInt = Field(default=10, description="at most so many")
    groups: PositiveInt = Field(
        default=2, description="how many groups of backbone layers, counted from the head, `staged` trains with it"
    )
    batch_size: PositiveInt = Field(default=32, description="frames in a batch, over all processes")
    accumulate: PositiveInt = Field(default=1, description="batches in an optimiser step")
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = "adamw"
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="of sgd and rmsprop")
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    backbone_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="learning rate of the backbone as a part of that of the head"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="learning rate of a group of layers as a part of that of the next one towards the head"
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(ge=0)] = Field(default=0.0, description="largest norm of a step's gradient; 0: no limit")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="of the moving average of the weights, which is then measured and kept; 0: none"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    monitor: Literal["tune_loss", "tune_auroc"] = Field(
        default="tune_loss", description="what chooses the epoch, stops training and lowers the rate"
    )
    patience: PositiveInt = Field(default=5, description="epochs without a better monitored value before training stops")
    scheduler: Literal["plateau", "cosine", "constant"] = "plateau"
    plateau_patience: PositiveInt = Field(default=2, description="epochs without a better value before the rate falls")
    plateau_factor: Fraction = 0.3
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="epochs over which the rate rises before scheduler=cosine lowers it"
    )
    views: Annotated[int, Field(ge=0)] = Field(
        default=0, description="cached views of each frame behind the frozen layers; 0: compute these layers in every epoch"
    )

    @model_validator(mode="after")
    def _needs_cosine(self) -> "FinetuneSection":
        if self.warmup_epochs and self.scheduler != "cosine":
            raise ValueError("warmup_epochs belongs to scheduler=cosine; set that, or warmup_epochs=0")
        if self.warmup_epochs > self.epochs:
            raise ValueError("warmup_epochs must not be more than epochs")
        return self


class AugmentSection(Section):
    """Random changes of training frames; zero leaves one out."""

    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="as a part of the side")
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    flip_columns: bool = Field(default=False, description="mirror left and right")
    gamma: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="exponent from 1-g to 1+g")
    noise: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="deviation of added noise")
    policy: Literal["none", "randaugment", "trivialaugment", "acquisition"] = Field(
        default="none", description="further changes: of geometry and grey levels, or of what differs between devices"
    )
    operations: PositiveInt = Field(default=2, description="changes of a frame by policy=randaugment")
    magnitude: Annotated[float, Field(gt=0, le=1)] = Field(default=0.3, description="how far they go")
    transforms: tuple[str, ...] = Field(default=(), description="of plug-ins, in the order in which they are applied")
    mixup: Annotated[float, Field(ge=0)] = Field(default=0.0, description="alpha of the Beta distribution of mixup; 0: none")
    cutmix: Annotated[float, Field(ge=0)] = Field(default=0.0, description="alpha of the Beta distribution of CutMix; 0: none")


class Way(StrEnum):
    """How much of a network is trained.

    `probe` fits the head on frozen features; `staged` trains the last groups of layers as well, and `full` all layers, both
    from the head of `probe`. If `full` starts from random weights, its head is random, too.
    """

    PROBE = "probe"
    STAGED = "staged"
    FULL = "full"


class TrainSection(Section):
    """The course of training."""

    seed: Seed = 0
    seeds: tuple[Seed, ...] = Field(
        default=(),
        description="one network is trained from each, and they answer together; empty: one network, from train.seed",
    )
    folds: Annotated[int, Field(ge=1, le=20)] = Field(
        default=1,
        description="one network is trained without each fold of the patients of the train split, and they answer together",
    )
    threads: Annotated[int, Field(ge=0)] = Field(default=0, description="cores to use; 0: all that the process may use")
    way: Way = Field(
        default=Way.PROBE,
        description="probe: the head on frozen features; staged: then the last groups of layers with it; full: all layers",
    )
    cache_features: bool = Field(default=True, description="keep features of frozen networks in octray's cache folder")
    imbalance: Imbalance = Field(
        default="class_weights",
        description="what is done about rare labels: none, class_weights, effective_number, balanced_sampler, focal or "
        "logit_adjustment; probabilities stay those of the training split",
    )
    loss: str = Field(default="", description="name of a plug-in's loss; empty: that of the task")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="auto: cuda, else mps, else cpu")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the network's computations; auto: float32, but 16 bits on CUDA"
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        default="auto", description="processes that load and change frames; auto: none on the processor"
    )
    head: HeadSection = HeadSection()
    finetune: FinetuneSection = FinetuneSection()
    augment: AugmentSection = AugmentSection()

    @model_validator(mode="after")
    def _not_both(self) -> "TrainSection":
        if self.finetune.views and (self.augment.mixup or self.augment.cutmix):
            raise ValueError("finetune.views caches single frames, but augment.mixup and augment.cutmix mix them; set one to 0")
        return self


class MemberSection(Section):
    """One network of an ensemble: the keys of the sections `model` and `train` in which it differs from the configuration."""

    model: Mapping[str, Any] = {}
    train: Mapping[str, Any] = {}


class EnsembleSection(Section):
    """Several networks in one bundle, which answer together."""

    members: tuple[MemberSection, ...] = Field(default=(), description="the networks; empty: the one of the section model")
    average: Average = Field(default=Average.LOGIT, description="of what the mean is taken: logit or probability")


class EvaluateSection(Section):
    """Statistics of the report."""

    bootstrap: Annotated[int, Field(ge=100)] = Field(default=1000, description="resamples of patients")
    criterion: str = Field(
        default="youden", pattern=r"^(youden|sensitivity>=0\.\d+)$", description="youden or sensitivity>=0.NN"
    )
    robustness: bool = Field(
        default=False,
        description="measure what the network is worth away from home: on corrupted frames of the tune split, and by probes "
        "fitted without groups of frames that were acquired alike",
    )
    conformal_alpha: Fraction = Field(
        default=0.1, description="how often a conformal set may miss the truth; what it leaves open is uncertain"
    )


LevelPooling = Literal["auto", "none", "max", "noisy_or", "mean", "attention"]


class LevelsSection(Section):
    """How the frames of a study, an eye or a patient become one result; the tune split chooses, if it is `auto`."""

    study: LevelPooling = Field(
        default="auto",
        description="auto: the best of max, noisy_or, mean and attention, if studies have several frames and each label has "
        "studies with and without it; one of these names; none: no such results",
    )
    eye: LevelPooling = Field(default="auto", description="the same for eyes: the frames of a patient that show R, or L")
    patient: LevelPooling = Field(default="auto", description="the same for patients")


class HeatmapSection(Section):
    """How the bundle will explain its predictions."""

    method: HeatmapMethod = Field(default="grad-cam", description="grad-cam, grad-cam++, layercam or hirescam")
    rows: Annotated[int, Field(ge=0, le=512)] = Field(
        default=0, description="rows of finer maps, by gradient at an inner layer, kept if they pass all checks; 0: none"
    )


class TrackingSection(Section):
    """MLflow: where runs are recorded."""

    enabled: bool = True
    uri: str = Field(default="", description="empty: MLFLOW_TRACKING_URI, else sqlite:///mlruns/mlflow.db")
    experiment: Annotated[str, Field(max_length=500), AfterValidator(_experiment)] = "octray"
    model_name: Annotated[str, Field(max_length=250), AfterValidator(_model_name)] = Field(
        default="", description="registered model; empty: octray- and the config's name"
    )
    alias: Annotated[str, Field(max_length=255), AfterValidator(_alias)] = "candidate"
    system_metrics: bool = Field(default=True, description="whether processor, memory, disk, network and GPUs are recorded")
    seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=30.0, description="the most that waiting for a server may cost a run; `octray sync` records the rest later"
    )


class Config(Section):
    """The settings of one training run, as `load_config` reads and checks them."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    task: Task = Field(
        default=Task.MULTICLASS,
        description="binary or multiclass if exactly one label holds in a frame, ordinal if these are grades in their order, "
        "multilabel if several may hold",
    )
    plugins: tuple[str, ...] = Field(default=(), description="modules, or Python files, that register networks and more")
    data: DataSection = DataSection()
    limits: Limits = Limits()
    quality: Quality = Quality()
    preprocessing: Preprocessing = Preprocessing()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    ensemble: EnsembleSection = EnsembleSection()
    evaluate: EvaluateSection = EvaluateSection()
    levels: LevelsSection = LevelsSection()
    heatmap: HeatmapSection = HeatmapSection()
    tracking: TrackingSection = TrackingSection()

    def intended_use(self) -> IntendedUse:
        """Return the studies that the model is meant for."""
        return IntendedUse(**{field.name: getattr(self.data, field.name) for field in fields(IntendedUse)})

    def gate(self) -> Gate:
        """Return the quality gate of training and of the bundle."""
        return Gate(self.quality, self.intended_use())

    def network_preprocessing(self) -> Preprocessing:
        """Return how a frame becomes the network's input; frames are decoded whole if text is looked for."""
        looks_for_text = self.quality.burned_in_text is not Policy.IGNORE
        return replace(self.preprocessing, exact_decoding=self.preprocessing.exact_decoding or looks_for_text)

    def networks(self) -> "tuple[Config, ...]":
        """Return the configuration of each network to train, not counting folds: by `ensemble.members` and `train.seeds`.

        Raises
        ------
        ConfigError
            With one sentence for each fault in a member.
        """
        found: list[Config] = []
        faults: list[str] = []
        known: list[tuple[ModelSection, TrainSection]] = []
        for number, member in enumerate(self.ensemble.members or (MemberSection(),)):
            place = f"ensemble.members[{number}]: " if self.ensemble.members else ""
            values = self.model_dump(mode="json", include={"model", "train"})
            faults += [
                f"{place}train.{key} holds for all networks. Set it outside the ensemble." for key in _SHARED & {*member.train}
            ]
            try:
                sections = {name: _merged(values[name], getattr(member, name)) for name in ("model", "train")}
                one = _Networks.model_validate(sections)
            except ValidationError as error:
                faults += [place + _sentence(dict(fault)) for fault in error.errors()]
                continue
            seeds = one.train.seeds or (one.train.seed,)
            if len(set(seeds)) < len(seeds):
                faults.append(f"{place}train.seeds names a seed twice. Leave one out.")
            if len(seeds) > 1 and one.train.way is Way.PROBE and one.model.weights != "none":
                faults.append(
                    f"{place}train.seeds: the way probe gives the same network for every seed. Leave train.seeds out, or set "
                    "train.way to staged or full."
                )
            is_drawn = one.train.way is not Way.PROBE or one.model.weights == "none"
            learned = one.model, one.train if is_drawn else one.train.model_copy(update={"seed": 0})
            if learned in known:
                faults.append(f"{place}it is the same network as one before it. Leave it out, or give it another key.")
            known.append(learned)
            found += [
                self.model_copy(
                    update={
                        "model": one.model,
                        "train": one.train.model_copy(update={"seed": seed, "seeds": ()}),
                        "ensemble": EnsembleSection(),
                    }
                )
                for seed in seeds
            ]
        if faults:
            raise ConfigError(faults)
        return tuple(found)

    def changed(self, changes: Mapping[str, Any]) -> "Config":
        """Return the configuration with some values changed.

        Parameters
        ----------
        changes
            Values by dotted key, such as `train.seed`; a mapping changes the keys that it names, and leaves the others.

        Raises
        ------
        ConfigError
            With one sentence for each fault, and the nearest valid key if one is unknown.
        """
        values = self.model_dump(mode="json")
        for key, value in changes.items():
            for part in reversed(key.split(".")):
                value = {part: value}
            values = _merged(values, value)
        return _checked(values)

    def published(self) -> dict[str, Any]:
        """Return the settings as others may see them: without the tracking server's address, and files by their own name."""
        values = self.model_dump(mode="json", exclude={"tracking": {"uri"}})
        values["plugins"] = [Path(plugin).name for plugin in self.plugins]
        for section in (values, *values["ensemble"]["members"]):
            if weights := section["model"].get("weights"):
                section["model"]["weights"] = Path(str(weights)).name
        return values


class _Networks(Section):
    """The sections in which the networks of an ensemble may differ."""

    model: ModelSection
    train: TrainSection


_SHARED = {"folds", "threads"}


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with `changes` in it, section by section."""
    both = {
        key: _merged(values[key], change) if isinstance(change, Mapping) and isinstance(values.get(key), Mapping) else change
        for key, change in changes.items()
    }
    return {**values, **both}


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Load a configuration, apply overrides and check it.

    Parameters
    ----------
    source
        Path of a YAML file, or the name of one that ships with octray (`xray`, `xray.yaml`).
    overrides
        `section.key=value`, the value read as YAML.

    Raises
    ------
    ConfigError
        With one sentence for each fault, and the nearest valid key if one is unknown.
    """
    values = _read_yaml(source)
    return _checked(values, [fault for override in overrides if (fault := _apply_override(values, override))])


def _checked(values: Mapping[str, Any], faults: Sequence[str] = ()) -> Config:
    """Return a configuration; raise if it has faults, or there are some already."""
    try:
        config = Config.model_validate(values)
        config.networks()
    except ValidationError as error:
        raise ConfigError([*faults, *(_sentence(dict(fault)) for fault in error.errors())]) from None
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    if faults:
        raise ConfigError(faults)
    return config


def _read_yaml(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    shipped = resources.files("configs") / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.is_file():
        text = path.read_bytes().decode("utf-8", errors="replace")
    elif path.name == str(source) and shipped.is_file():
        text = shipped.read_text(encoding="utf-8")
    else:
        names = sorted(
            file.name for file in resources.files("configs").iterdir() if file.name.endswith(".yaml") and file.name != PROMOTION
        )
        raise ConfigError([f"There is no configuration {path.name}. Give a file, or one of {', '.join(names)}."])
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 1}" if place else ""
        raise ConfigError([f"{path.name} is not valid YAML{where}."]) from None
    if not isinstance(values, dict):
        raise ConfigError(
            [f"{path.name} must be a mapping of sections, such as `model:`. `octray config check smoke` prints an example."]
        )
    return values


def _apply_override(values: dict[str, Any], override: str) -> str | None:
    """Set one dotted key in place; return a sentence if that is not possible."""
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not last:
        return f"The override {override!r} must have the form section.key=value."
    target: Any = values
    for parent in parents:
        target = target.setdefault(parent, {}) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        return f"The override {override!r} sets a key below {'.'.join(parents)}, which is not a section."
    try:
        target[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        return f"The value of the override {override!r} is not valid YAML."
    return None


def _sentence(fault: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near = difflib.get_close_matches(key, list(_keys(Config)), n=1, cutoff=0.5)
        return f"{key} is not a setting of octray." + (f" Did you mean {near[0]}?" if near else "")
    if fault["type"] == "missing":
        return f"{key} is missing; every configuration needs it."
    got = "" if isinstance(fault["input"], dict) else f" Got {fault['input']!r} instead."
    quotes = ""
    if fault["type"] == "string_type" and isinstance(fault["input"], int | float | None):
        quotes = (
            ' YAML reads NO, yes, null and numbers without quotes as something else than text: write "NO" or "0" in quotes.'
        )
    return f"{key}: {fault['msg'].removeprefix('Value error, ')}.{got}{quotes}"


def _keys(section: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a section and of the sections in it."""
    if issubclass(section, BaseModel):
        keys: dict[str, Any] = {name: info.annotation for name, info in section.model_fields.items()}
    else:
        keys = {field.name: field.type for field in fields(section)} if is_dataclass(section) else {}
    for name, kind in keys.items():
        yield prefix + name
        if isinstance(kind, type):
            yield from _keys(kind, f"{prefix}{name}.")
