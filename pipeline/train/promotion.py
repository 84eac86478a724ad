"""Decides whether a bundle takes the place of the one in use: the gate of `octray promote`, on the split for promotion.

The split is worth less with each look at it (Dwork et al., "The reusable holdout", Science 2015), so looks are counted where
all who use the model see it: in tags of the registered model.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import yaml
from pydantic import Field, ValidationError

from pipeline.config import PROMOTION, Section, load_config
from pipeline.errors import ConfigError, InputError, OctrayError, TrackingError
from pipeline.evaluate.calibration import expected_calibration_error
from pipeline.evaluate.comparison import Difference, compare
from pipeline.evaluate.metrics import LabelColumn, Sample, auroc, curve
from pipeline.frames import ImageRecord, Split
from pipeline.ingest.index import Index
from pipeline.model.bundle import CONFIG, Bundle, load_bundle
from pipeline.progress import Progress, silent
from pipeline.settings import PositiveInt
from pipeline.train.assessment import bundle_sample
from pipeline.train.mlflow_client import client_settings, make_sqlite_store, mlflow_words, open_client, tracking_uri
from pipeline.train.registry import BUNDLE_ID, model_name, version_with
from pipeline.train.training_data import known_frames

CHAMPION = "champion"
"""Alias of the version in use."""
_USES = "octray.promotion.uses."
"""Tag of registered models: how often a split was used; the hash of its frames follows."""
_RESULT = "octray.promotion"
"""Tag of versions: passed, or why not."""
_SEED = 0


class SubgroupRequirements(Section):
    """What is asked of groups of patients."""

    columns: tuple[Literal["laterality", "view_position", "modality"], ...] = Field(
        default=(), description="of the index: each value is a group"
    )
    fewest_patients: PositiveInt = Field(default=20, description="with a label and without it; smaller groups are not judged")
    least_auroc: Annotated[float, Field(ge=0, le=1)] = Field(default=0.7, description="of any label in any group")


class PromotionRequirements(Section):
    """What a bundle must show before it becomes the champion."""

    most_uses: PositiveInt = Field(default=20, description="looks at one split for promotion, before it needs new patients")
    fewest_patients: PositiveInt = Field(default=20, description="with each label, and without it")
    auroc_margin: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.02, description="how much worse than the champion's the mean AUROC may be, by the paired 95 % interval"
    )
    log_loss_margin: Annotated[float, Field(ge=0)] = Field(default=0.05, description="the same for the log loss")
    most_ece: Annotated[float, Field(gt=0, le=1)] = Field(default=0.1, description="of any label")
    subgroups: SubgroupRequirements = SubgroupRequirements()


class Promotion(NamedTuple):
    """What came of a promotion.

    Parameters
    ----------
    name, version
        Of the registered model.
    champion
        The version that was the champion before; empty if there was none.
    reasons
        Why it was refused, one sentence each; none if it is the champion now.
    figures
        What was measured.
    uses
        How often the split has been used, this time included.
    """

    name: str
    version: str
    champion: str
    reasons: tuple[str, ...]
    figures: Mapping[str, Any]
    uses: int


def load_requirements(path: Path | None = None) -> PromotionRequirements:
    """Read requirements from a YAML file; None reads those that come with octray.

    Raises
    ------
    ConfigError
        If it is no YAML, or a key is unknown or has an impossible value.
    """
    name = path.name if path else PROMOTION
    text = (path or resources.files("configs") / name).read_text(encoding="utf-8")
    try:
        return PromotionRequirements.model_validate(yaml.safe_load(text))
    except yaml.YAMLError:
        raise ConfigError([f"{name} is not valid YAML."]) from None
    except ValidationError as error:
        raise ConfigError([f"{name}: {'.'.join(map(str, one['loc']))}: {one['msg']}." for one in error.errors()]) from None


def promote(
    bundle: Bundle,
    index: Index,
    requirements: PromotionRequirements | None = None,
    overrides: Sequence[str] = (),
    progress: Progress = silent,
) -> Promotion:
    """Make a registered bundle the champion of its model if it passes the gate, and record in MLflow why it did or did not.

    Parameters
    ----------
    bundle
        One that is registered.
    index
        With a split `promotion`, whose patients no training has seen.
    requirements
        By default those that come with octray.
    overrides
        `tracking.key=value`: where it is registered, if not as its configuration says.
    progress
        Shows the frames that are scored.

    Raises
    ------
    ConfigError
        If an override is not one of tracking.
    InputError
        If the index has no such split, or it has been used too often.
    TrackingError
        If MLflow cannot be reached, or the bundle is not registered.
    """
    requirements = requirements or load_requirements()
    if others := [one for one in overrides if not one.startswith("tracking.")]:
        raise ConfigError([f"{one}: only settings of tracking can be given here." for one in others])
    config = load_config(bundle.path / CONFIG, overrides)
    records = index.of(Split.PROMOTION)
    if not records:
        raise InputError(
            f"The index {index.name} has no split {Split.PROMOTION}. Ingest with a fifth share, such as "
            "--split 60/10/10/10/10, or name it in the column split of the table."
        )
    try:
        with client_settings(is_upload=True), tempfile.TemporaryDirectory() as folder:
            make_sqlite_store(tracking_uri(config.tracking))
            client = open_client(config.tracking)
            gate = _Gate(client, model_name(config), tracking_uri(config.tracking), requirements)
            return gate.decide(bundle, index, records, Path(folder), progress)
    except OctrayError:
        raise
    except Exception as error:
        raise TrackingError(f"MLflow could not promote the bundle: {mlflow_words(error)}. Run the command again.") from None


class _Gate:
    """What the steps of `promote` share."""

    def __init__(self, client: Any, name: str, uri: str, requirements: PromotionRequirements) -> None:
        self._client, self._name, self._uri, self._requirements = client, name, uri, requirements

    def decide(
        self, bundle: Bundle, index: Index, records: Sequence[ImageRecord], folder: Path, progress: Progress
    ) -> Promotion:
        """Count the use, measure, decide, and record the decision."""
        client, name, bundle_id = self._client, self._name, bundle.manifest.bundle_id
        version = version_with(client, name, f"tags.`{BUNDLE_ID}` = '{bundle_id}'")
        if not version:
            raise TrackingError(
                f"The bundle {bundle_id} is no version of {name}. Register it first: octray bundle register {bundle.path.name}"
            )
        champion = self._champion()
        rival = None
        if champion is not None and str(champion.version) != version:
            from mlflow.artifacts import download_artifacts

            place = download_artifacts(artifact_uri=champion.source, dst_path=str(folder), tracking_uri=self._uri)
            rival = load_bundle(Path(place))
            theirs, ours = rival.manifest, bundle.manifest
            if (theirs.task, theirs.labels) != (ours.task, ours.labels):
                raise InputError(
                    f"The champion is a {theirs.task} bundle of {', '.join(theirs.labels)}, this a {ours.task} bundle of "
                    f"{', '.join(ours.labels)}. Register it under another tracking.model_name."
                )
        uses = self._count_use(records)  # after all that can be known without a look
        sample = bundle_sample(bundle, index, split=Split.PROMOTION, progress=progress)
        figures: dict[str, Any] = {"split": {"frames": len(records), "uses": uses}}
        rows, _ = known_frames(index.targets(records, bundle.manifest.labels), bundle.manifest.task)
        reasons = list(self._alone(sample, [records[row] for row in rows], figures))
        if rival:
            other = bundle_sample(rival, index, split=Split.PROMOTION, progress=progress)
            reasons += self._beside(other, sample, figures)
        if not reasons:
            client.set_registered_model_alias(name, CHAMPION, version)
        number = str(champion.version) if champion is not None else ""
        result = Promotion(name, version, number, tuple(reasons), figures, uses)
        client.set_model_version_tag(name, version, _RESULT, " ".join(reasons)[:4000] or f"passed, as use {uses} of the split")
        run_id = client.get_model_version(name, version).run_id
        client.log_text(run_id, json.dumps(result._asdict(), indent=2), f"promotion/version-{version}-use-{uses}.json")
        return result

    def _champion(self) -> Any:
        """Return the version in use; None if there is none."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_model_version_by_alias(self._name, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _count_use(self, records: Sequence[ImageRecord]) -> int:
        """Count one more use of a split, known by its frames, and return how many there are.

        Raises
        ------
        InputError
            If it has been used as often as it may be.
        """
        frames = hashlib.sha256("\n".join(sorted(record.pixel_sha256 for record in records)).encode()).hexdigest()[:16]
        uses = int(self._client.get_registered_model(self._name).tags.get(_USES + frames, 0)) + 1
        if uses > self._requirements.most_uses:
            raise InputError(
                f"The split {Split.PROMOTION} has been used {uses - 1} times for {self._name}, as often as most_uses allows: "
                "bundles have been chosen by it. Keep new patients for promotion."
            )
        self._client.set_registered_model_tag(self._name, _USES + frames, str(uses))
        return uses

    def _alone(self, sample: Sample, records: Sequence[ImageRecord], figures: dict[str, Any]) -> Iterator[str]:
        """Yield what a bundle lacks whatever the champion is: patients, calibration, and the least figure of any group."""
        asked = self._requirements
        labels = figures["labels"] = {}
        for column in sample.columns:
            present, absent = column.patients
            error = float(expected_calibration_error(column.probabilities, column.targets))
            labels[column.label] = {"patients": [present, absent], "auroc": _auroc(column), "ece": error}
            if min(present, absent) < asked.fewest_patients:
                yield (
                    f"The label {column.label} occurs in {present} patients of the split and is absent in {absent}; "
                    f"{asked.fewest_patients} are needed."
                )
            if error > asked.most_ece:
                yield f"Probabilities of {column.label} are off by {error:.3f} (ECE); {asked.most_ece:g} is allowed."
        figures["subgroups"] = {}

        for name in asked.subgroups.columns:
            values = [str(getattr(record, name)) for record in records]
            for value in sorted({one for one in values if one}):
                yield from self._group(sample, np.array([one == value for one in values]), f"{name} {value}", figures)

    def _group(self, sample: Sample, chosen: Any, group: str, figures: dict[str, Any]) -> Iterator[str]:
        """Yield the labels whose figure is too low in a group that is large enough."""
        asked = self._requirements.subgroups
        for column in sample.rows(np.flatnonzero(chosen)).columns:
            if min(column.patients) < asked.fewest_patients:
                continue
            area = figures["subgroups"].setdefault(group, {})[column.label] = _auroc(column)
            if area < asked.least_auroc:
                yield f"AUROC of {column.label} in the group {group} is {area:.3f}; at least {asked.least_auroc:g} is needed."

    def _beside(self, champion: Sample, sample: Sample, figures: dict[str, Any]) -> Iterator[str]:
        """Yield what is not shown to be as good as the champion's."""
        asked = self._requirements
        found = compare(champion, sample, seed=_SEED).macro
        area, loss = found["auroc"], found["log_loss"]
        figures["differences"] = {name: [one.value, one.low, one.high] for name, one in (("auroc", area), ("log_loss", loss))}
        if area.low is None or area.low < -asked.auroc_margin:
            yield (
                f"The mean AUROC is not shown to be as good as the champion's: {_words(area)}; the lower end must be "
                f"{-asked.auroc_margin:g} or more."
            )
        if loss.high is None or loss.high > asked.log_loss_margin:
            yield (
                f"The log loss is not shown to be as good as the champion's: {_words(loss)}; the upper end must be "
                f"{asked.log_loss_margin:g} or less."
            )


def _words(one: Difference) -> str:
    if one.value is None:
        return "it is not defined"
    return f"{one.value:+.3f} " + ("(no interval)" if one.low is None else f"({one.low:+.3f} to {one.high:+.3f})")


def _auroc(column: LabelColumn) -> float:
    return float(auroc(curve(column.probabilities, column.targets, np.ones(len(column.rows)))))
