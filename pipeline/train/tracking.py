"""MLflow: parameters, metrics, files and a registered model of every run; a dead server costs seconds and never a result."""

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import TrackingSection

DEFAULT_STORE = Path("mlruns") / "mlflow.db"
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PGCONNECT_TIMEOUT": "4",
}
_TALKATIVE = ("mlflow", "alembic")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_NOT_IN_NAMES = re.compile(r"[^\w.\- ]")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is recorded of a run before it starts.

    Parameters
    ----------
    name
        The configuration's name.
    parameters
        The configuration, flattened.
    dataset_name, dataset_sha256
        Name and hash of the index.
    """

    name: str
    parameters: Mapping[str, str]
    dataset_name: str
    dataset_sha256: str


class Tracker:
    """Writes to MLflow until the first failure; then says so once on standard error and lets the run go on without it.

    Parameters
    ----------
    settings
        Where to write.
    facts
        What the run is.
    run_id
        A run to go on with; empty starts a new one.
    """

    def __init__(self, settings: TrackingSection, facts: RunFacts, run_id: str = "") -> None:
        self.run_id = run_id
        self._settings = settings
        self._facts = facts
        self._client: Any = None
        if settings.enabled:
            self._try(self._start)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record numbers of one epoch, or of the evaluation; what MLflow takes in no name becomes an underscore."""

        def write() -> None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            named = [(_NOT_IN_NAMES.sub("_", key), value) for key, value in metrics.items()]
            self._client.log_batch(self.run_id, metrics=[Metric(key, value, now, step) for key, value in named])

        self._try(write, needs_client=True)

    def log_bundle(self, bundle: Path, model_name: str) -> None:
        """Store a bundle as artefact and register it as a new version of the model, with the configured alias."""

        def write() -> None:
            from mlflow.exceptions import MlflowException

            self._client.log_artifacts(self.run_id, str(bundle), "bundle")
            try:
                self._client.create_registered_model(model_name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{self._client.get_run(self.run_id).info.artifact_uri}/bundle"
            version = self._client.create_model_version(model_name, source=source, run_id=self.run_id)
            self._client.set_registered_model_alias(model_name, self._settings.alias, version.version)

        self._try(write, needs_client=True)

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self._try(lambda: self._client.set_terminated(self.run_id, status), needs_client=True)

    def _start(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = tracking_uri(self._settings)
        _check_database(uri)
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if self.run_id:
            self._client.update_run(self.run_id, status="RUNNING")
            return
        run = self._client.create_run(_experiment(self._client, uri, self._settings.experiment), run_name=self._facts.name)
        self.run_id = run.info.run_id
        parameters = [Param(key, value[:6000]) for key, value in self._facts.parameters.items()]
        self._client.log_batch(self.run_id, params=parameters)
        self._client.log_inputs(self.run_id, [_dataset(self._facts)])

    def _try(self, write: Callable[[], object], needs_client: bool = False) -> None:
        if needs_client and self._client is None:
            return
        try:
            with _client_settings():
                write()
        except Exception as error:
            self._client = None
            sys.stderr.write(
                f"octray: MLflow does not record the run ({type(error).__name__}); it goes on and its results are kept, "
                "but from here on they are not tracked.\n"
            )


def tracking_uri(settings: TrackingSection) -> str:
    """Return where runs are recorded: the setting, else MLFLOW_TRACKING_URI, else a SQLite file below the current folder."""
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri:
        return uri
    DEFAULT_STORE.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{DEFAULT_STORE}"


def _check_database(uri: str) -> None:
    """Connect once to a store that is a database: MLflow itself would try again for minutes before it gave up."""
    if uri.partition(":")[0].partition("+")[0] not in _DATABASES:
        return
    import sqlalchemy

    place = sqlalchemy.make_url(uri)
    if place.get_backend_name() == "sqlite" and place.database:
        Path(place.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(place)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `section.key` -> text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = ",".join(map(str, value)) if _is_list(value) else str(value)
    return flat


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _experiment(client: Any, uri: str, name: str) -> str:
    """Return the id of the experiment; with a SQLite file, artefacts lie in a folder beside it."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).resolve().parent / "artifacts" / name).as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def _dataset(facts: RunFacts) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(name=facts.dataset_name, digest=facts.dataset_sha256[:36], source_type="octray-index", source="{}")
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


@contextmanager
def _client_settings() -> Iterator[None]:
    """Let MLflow's client give up soon, send no usage data, and say nothing of its own.

    Its settings can only be made in the environment, and its import sets the levels of its loggers.
    """
    before = {name: os.environ.get(name) for name in _CLIENT_SETTINGS}
    os.environ.update(_CLIENT_SETTINGS)
    try:
        with warnings.catch_warnings(action="ignore"), _quiet_loggers():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    import mlflow  # noqa: F401 - sets the levels

    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
