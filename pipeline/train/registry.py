"""Bundles as versions of registered models in MLflow, which `mlflow.pyfunc.load_model` can run."""

import shutil
import tempfile
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config import Config
from pipeline.model.bundle import Bundle

BUNDLE_ID = "octray.bundle_id"
"""Tag of runs and versions of a model."""
_WEIGHTS = "octray.weights"
"""Tag of runs: which weights their networks started from."""
_CODE = "mlflow_model.py"
"""What MLflow runs; its copy lies beside the bundle's files."""


class ModelVersion(NamedTuple):
    """A version of a registered model in MLflow, with the alias that leads to it."""

    name: str
    version: str
    alias: str


def model_name(config: Config) -> str:
    """Return the name of the registered model."""
    return config.tracking.model_name or f"octray-{config.name}"


def record_bundle(client: Any, run_id: str, bundle: Bundle, name: str, alias: str) -> str:
    """Store a bundle in a run and return the version of the model that it is.

    A bundle keeps the version that it has, and a run has one version: if the run was stopped when the bundle was registered
    already, the bundle that it makes when it is resumed takes its place.
    """
    from mlflow.exceptions import MlflowException

    bundle_id = bundle.manifest.bundle_id
    client.set_tag(run_id, _WEIGHTS, ", ".join(member.started_from.words for member in bundle.manifest.members))
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = version_with(client, name, f"tags.`{BUNDLE_ID}` = '{bundle_id}'")
    if not version:
        client.log_artifacts(run_id, str(bundle.path), "bundle")
        _log_code(client, run_id, bundle)
        if version := version_with(client, name, f"run_id = '{run_id}'"):
            client.set_model_version_tag(name, version, BUNDLE_ID, bundle_id)
        else:
            source = f"{client.get_run(run_id).info.artifact_uri}/bundle"
            made = client.create_model_version(name, source=source, run_id=run_id, tags={BUNDLE_ID: bundle_id})
            version = str(made.version)
    client.set_registered_model_alias(name, alias, version)
    return version


def version_with(client: Any, name: str, condition: str) -> str:
    """Return the version of a model that a search of MLflow finds; empty if there is none."""
    return next((str(one.version) for one in client.search_model_versions(condition) if one.name == name), "")


def _log_code(client: Any, run_id: str, bundle: Bundle) -> None:
    """Store beside a bundle's files what `mlflow.pyfunc.load_model` needs: code, and MLmodel with the signature."""
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    asked: list[Any] = [
        ColSpec(DataType.string, "path", required=False),
        ColSpec(Array(Array(DataType.double)), "pixels", required=False),
    ]
    text, number = DataType.string, DataType.double
    given: list[tuple[str, DataType]] = [("row", DataType.long), ("source", text), ("frame_number", number), ("reason", text)]
    for label in bundle.manifest.labels:
        given += [(f"probability.{label}", number), (f"state.{label}", text)]
    answered: list[Any] = [ColSpec(kind, column) for column, kind in given]
    signature = ModelSignature(Schema(asked), Schema(answered))
    model = Model(run_id=run_id, signature=signature)
    place = {"bundle": {"path": ".", "uri": "."}}
    mlflow.pyfunc.add_to_model(model, "mlflow.pyfunc.loaders.code_model", model_code_path=_CODE, artifacts=place)
    with tempfile.TemporaryDirectory() as folder:
        model.save(str(Path(folder) / "MLmodel"))
        with resources.as_file(resources.files("octray") / _CODE) as code:
            shutil.copy(code, folder)
        needed = [f"{name}=={metadata.version(name)}" for name in ("octray", "mlflow")]
        (Path(folder) / "requirements.txt").write_text("".join(f"{one}\n" for one in needed))
        client.log_artifacts(run_id, folder, "bundle")
