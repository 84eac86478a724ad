"""Records runs in MLflow: parameters, metrics, files and a registered model. A dead server costs seconds, never a result."""

import fcntl
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.config import Config, TrackingSection, load_config
from pipeline.errors import ConfigError, TrackingError
from pipeline.evaluate.metrics import flat_figures
from pipeline.ingest.index import Index
from pipeline.model.bundle import CONFIG, METRICS, Bundle, Provenance, load_bundle

DEFAULT_STORE = Path("mlruns") / "mlflow.db"
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", _TIMEOUT: "10", "PGCONNECT_TIMEOUT": "10"}
"""How soon to give up, unless the user has set it. For uploads, which are large, MLflow's own time-out holds and not ours."""
_SILENCE = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
_TALKATIVE = ("mlflow", "alembic")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_NOT_IN_NAMES = re.compile(r"[^\w.\- ]")
_LONGEST_NAME, _LONGEST_VALUE, _METRICS_AT_ONCE = 250, 6000, 1000
"""Limits of MLflow (`mlflow.utils.validation`)."""
_LONGEST_REASON = 600
_BUNDLE_ID = "octray.bundle_id"
"""Tag of runs and versions of a model."""
_PARENT = "mlflow.parentRunId"
"""MLflow's own tag (`mlflow.utils.mlflow_tags`)."""
_WEIGHTS = "octray.weights"
"""Tag of runs: which weights their networks started from."""


class Tracker:
    """Records one training run in MLflow. A failure is reported once on standard error, and training continues.

    Every run gets a final state if MLflow can be reached at the end, whatever failed before. Metrics that
    could not be recorded are kept and sent with later ones.

    Parameters
    ----------
    settings
        Address, experiment and alias.
    name, parameters
        The configuration's name, and the configuration itself, flattened.
    dataset_name, dataset_sha256
        Name and hash of the index.
    run_id
        A run to resume; empty starts a new one.
    left_run
        A run that was killed and is not resumed; it ends as KILLED.
    remember
        Called with the id of a new run as soon as it exists.
    parent
        The run that a new one is a child of, as a trial is of its sweep; empty if there is none.
    """

    def __init__(
        self,
        settings: TrackingSection,
        *,
        name: str,
        parameters: Mapping[str, str],
        dataset_name: str,
        dataset_sha256: str,
        run_id: str = "",
        left_run: str = "",
        remember: Callable[[str], None] = lambda run_id: None,
        parent: str = "",
    ) -> None:
        self.run_id = run_id
        self._parent = parent
        self._settings = settings
        self._name = name
        self._describe = partial(_describe, parameters=parameters, dataset_name=dataset_name, dataset_sha256=dataset_sha256)
        self._remember = remember
        self._client: Any = None
        self._said: set[str] = set()
        self._pending: list[Any] = []
        self._failures = self._to_skip = 0
        if settings.enabled:
            try:
                self._try(lambda: self._start(left_run))
            except KeyboardInterrupt:
                self.finish("KILLED")
                raise

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record numbers of one epoch, or of the evaluation; characters that MLflow does not take become underscores."""
        if self._client is None:
            return
        self._pending += _as_metrics(metrics, step)
        if self._to_skip:  # while MLflow does not answer, ever fewer epochs wait for it
            self._to_skip -= 1
        elif not self._send_metrics():
            self._failures += 1
            self._to_skip = 2**self._failures

    def log_bundle(self, bundle: Path, model_name: str) -> None:
        """Store a bundle as artefact and register it as a new version of the model, with the configured alias."""
        if self._client is None:
            return
        made = load_bundle(bundle)
        if self._try(lambda: self._client.set_tag(self.run_id, _BUNDLE_ID, made.manifest.bundle_id)):
            self._try(lambda: _record(self._client, self.run_id, made, model_name, self._settings.alias), is_upload=True)

    def adopt(self, run_id: str) -> None:
        """Make another run a child of this one."""
        if self._client is not None and run_id:
            self._try(lambda: self._client.set_tag(run_id, _PARENT, self.run_id))

    @contextmanager
    def ending(self, expected: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """End the run with the block: as KILLED after an interrupt, as FAILED after an error that is not `expected`."""
        try:
            yield
        except KeyboardInterrupt:
            self.finish("KILLED")
            raise
        except Exception as error:
            self.finish("FINISHED" if isinstance(error, expected) else "FAILED")
            raise
        self.finish()

    def finish(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        if self._client is not None:
            self._send_metrics()
            self._try(lambda: self._client.set_terminated(self.run_id, status))

    def _start(self, left_run: str) -> None:
        client = _connect(self._settings)
        if left_run:
            with suppress(Exception):  # it may be in another store
                if client.get_run(left_run).info.status == "RUNNING":
                    client.set_terminated(left_run, "KILLED")
        if self.run_id:
            client.update_run(self.run_id, status="RUNNING")
            self._client = client
            return
        self.run_id = _new_run(client, self._settings, self._name)
        self._client = client
        self._remember(self.run_id)
        if self._parent:
            client.set_tag(self.run_id, _PARENT, self._parent)
        self._describe(client, self.run_id)

    def _send_metrics(self) -> bool:
        def send() -> None:
            while self._pending:
                self._client.log_batch(self.run_id, metrics=self._pending[:_METRICS_AT_ONCE])
                del self._pending[:_METRICS_AT_ONCE]

        return self._try(send)

    def _try(self, write: Callable[[], object], is_upload: bool = False) -> bool:
        """Write; if that fails, print each reason once and return False."""
        try:
            with _client_settings(is_upload):
                write()
        except Exception as error:
            if (reason := _reason(error)) not in self._said:
                self._said.add(reason)
                sys.stderr.write(
                    f"octray: MLflow does not record the run ({reason}); training continues and its results are kept. "
                    "`octray bundle register` records the bundle later.\n"
                )
            return False
        return True


class ModelVersion(NamedTuple):
    """A version of a registered model in MLflow, with the alias that leads to it."""

    name: str
    version: str
    alias: str


def register_bundle(bundle: Bundle, overrides: Sequence[str] = ()) -> ModelVersion:
    """Record a bundle in MLflow: in the run that trained it, or in a new one if there is none.

    Parameters
    ----------
    bundle
        As `load_bundle` gives it.
    overrides
        `tracking.key=value`, for what is not to be as in the bundle's configuration: where, under which name and with which
        alias it is recorded.

    Returns
    -------
    ModelVersion
        If the bundle has one already, it keeps it and gets the alias.

    Raises
    ------
    ConfigError
        If an override is not one of tracking, or its value cannot be used.
    TrackingError
        If MLflow cannot be reached or refuses it, with its own sentence.
    """
    if others := [one for one in overrides if not one.startswith("tracking.")]:
        raise ConfigError(
            [f"{one}: only settings of tracking can be given here; the bundle keeps all others." for one in others]
        )
    config = load_config(bundle.path / CONFIG, overrides)
    name, alias = model_name(config), config.tracking.alias
    try:
        with _client_settings():
            client = _connect(config.tracking)
            run_id = _run_of(client, bundle, config)
        try:
            with _client_settings(is_upload=True):
                return ModelVersion(name, _record(client, run_id, bundle, name, alias), alias)
        finally:
            with _client_settings(), suppress(Exception):  # what went wrong before is what counts
                if client.get_run(run_id).info.status != "FINISHED":
                    client.set_terminated(run_id, "FINISHED")
    except Exception as error:
        raise TrackingError(
            f"MLflow could not register the bundle: {_reason(error)}. The bundle is unchanged; run the command again."
        ) from None


def model_name(config: Config) -> str:
    """Return the name of the registered model."""
    return config.tracking.model_name or f"octray-{config.name}"


def _record(client: Any, run_id: str, bundle: Bundle, name: str, alias: str) -> str:
    """Store a bundle in a run and return the version of the model that it is, an older one if it was registered before."""
    from mlflow.exceptions import MlflowException

    bundle_id = bundle.manifest.bundle_id
    client.set_tag(run_id, _WEIGHTS, ", ".join(member.started_from.words for member in bundle.manifest.members))
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = [one.version for one in client.search_model_versions(f"tags.`{_BUNDLE_ID}` = '{bundle_id}'") if one.name == name]
    if known:
        version = str(known[0])
    else:
        client.log_artifacts(run_id, str(bundle.path), "bundle")
        source = f"{client.get_run(run_id).info.artifact_uri}/bundle"
        version = str(client.create_model_version(name, source=source, run_id=run_id, tags={_BUNDLE_ID: bundle_id}).version)
    client.set_registered_model_alias(name, alias, version)
    return version


def _run_of(client: Any, bundle: Bundle, config: Config) -> str:
    """Return the run that trained a bundle, or one that was made for it before, or else a new one."""
    from mlflow.exceptions import MlflowException

    origin, bundle_id = bundle.manifest.provenance, bundle.manifest.bundle_id
    if origin.mlflow_run_id:
        try:
            if client.get_run(origin.mlflow_run_id).info.lifecycle_stage == "active":
                client.set_tag(origin.mlflow_run_id, _BUNDLE_ID, bundle_id)
                return origin.mlflow_run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    experiment = _experiment(client, config.tracking)
    if found := client.search_runs([experiment], f"tags.`{_BUNDLE_ID}` = '{bundle_id}'", max_results=1):
        return str(found[0].info.run_id)
    settings = flatten(yaml.safe_load(bundle.read(CONFIG)))
    run_id = _new_run(client, config.tracking, origin.config_name)
    client.set_tag(run_id, _BUNDLE_ID, bundle_id)
    _describe(client, run_id, settings, origin.dataset_name, origin.dataset_sha256)
    figures = _as_metrics(flat_figures(json.loads(bundle.read(METRICS)).get("evaluation") or {}, "test"), 0)
    for start in range(0, len(figures), _METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=figures[start : start + _METRICS_AT_ONCE])
    return run_id


def _as_metrics(metrics: Mapping[str, float], step: int) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    named = ((_NOT_IN_NAMES.sub("_", key)[:_LONGEST_NAME], value) for key, value in metrics.items())
    return [Metric(key, value, now, step) for key, value in named]


def _connect(settings: TrackingSection) -> Any:
    from mlflow import MlflowClient

    uri = tracking_uri(settings)
    _open_database(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _new_run(client: Any, settings: TrackingSection, name: str) -> str:
    return str(client.create_run(_experiment(client, settings), run_name=name).info.run_id)


def _describe(client: Any, run_id: str, parameters: Mapping[str, str], dataset_name: str, dataset_sha256: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    client.log_batch(run_id, params=[Param(key, value[:_LONGEST_VALUE]) for key, value in parameters.items()])
    dataset = Dataset(name=dataset_name, digest=dataset_sha256[:36], source_type="octray-index", source="{}")
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _reason(error: Exception) -> str:
    """Return in one line what MLflow, or a library below it, says is wrong; without statements, passwords and folders."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{Path(os.fsdecode(error.filename)).name}: {error.strerror}"
    text = re.split(r"\[SQL:|\(Background on this error", str(error))[0]
    text = re.sub(r"( with url: \S+| object at 0x[0-9a-f]+)", "", text)
    text = re.sub(r"(\w[\w+.-]*://)[^/@\s]*@", r"\1", text)
    text = re.sub(r"(?<![\w:/.])/(?!api/)(?:[^/\s'\"()]+/)+", "", text)
    text = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    text = text[:_LONGEST_REASON] + "..." * (len(text) > _LONGEST_REASON)
    return text.rstrip(".") or type(error).__name__


def tracking_uri(settings: TrackingSection) -> str:
    """Return where runs are recorded: the setting, else MLFLOW_TRACKING_URI, else a SQLite file below the current folder."""
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri:
        return uri
    DEFAULT_STORE.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{DEFAULT_STORE}"


def _open_database(uri: str) -> None:
    """Connect once to a database store, since MLflow itself would retry for minutes; a SQLite file is made if there is none."""
    if uri.partition(":")[0].partition("+")[0] not in _DATABASES:
        return
    import sqlalchemy

    place = sqlalchemy.make_url(uri)
    if place.get_backend_name() == "sqlite" and place.database:
        _make_sqlite_store(Path(place.database))
    engine = sqlalchemy.create_engine(place)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _make_sqlite_store(path: Path) -> None:
    """Make MLflow's tables in a new SQLite file, unless another process has done so already.

    MLflow makes them step by step and without a lock: two processes that do so together, or one that is killed, leave a file
    that no later process can use. Here one process at a time makes them, in a file that gets its name when it is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with _locked(path.parent):
        if path.exists():
            return
        draft = path.with_name(f".{path.name}.part")  # a folder, for SQLite's own journal as well
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        SqlAlchemyStore(f"sqlite:///{draft / path.name}", _artifacts_beside(path)).engine.dispose()  # type: ignore[no-untyped-call]
        (draft / path.name).replace(path)
        draft.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which ends with the process and leaves no file behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _artifacts_beside(database: Path) -> str:
    """Return where the artefacts of a SQLite store lie."""
    return (database.resolve().parent / "artifacts").as_uri()


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


def _experiment(client: Any, settings: TrackingSection) -> str:
    """Return the id of the experiment; with a SQLite file, artefacts lie in the folder `artifacts` beside it."""
    import sqlalchemy
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(settings.experiment)
    if found is not None:
        return str(found.experiment_id)
    location, uri = None, tracking_uri(settings)
    if uri.startswith("sqlite:") and (database := sqlalchemy.make_url(uri).database):
        location = _artifacts_beside(Path(database))
    try:
        return str(client.create_experiment(settings.experiment, artifact_location=location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(client.get_experiment_by_name(settings.experiment).experiment_id)  # another process was first


@contextmanager
def _client_settings(is_upload: bool = False) -> Iterator[None]:
    """Make MLflow's client give up soon, send no usage data, and print nothing.

    Its settings can only be made in the environment, and its import sets the levels of its loggers.
    """
    ours = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    if is_upload:
        ours.pop(_TIMEOUT, None)
    ours |= _SILENCE
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
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


_LIBRARIES = ("octray", "torch", "timm", "monai", "numpy", "pillow", "pydicom", "imagecodecs", "onnx", "onnxruntime")


def provenance(config: Config, index: Index, run_id: str) -> Provenance:
    """Return what one needs to know to train the same bundle again."""
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=_git_commit(),
        mlflow_run_id=run_id,
        dataset_name=index.name,
        dataset_sha256=index.sha256,
        config_name=config.name,
        seed=config.train.seed,
        versions={"python": platform.python_version()} | {name: metadata.version(name) for name in _LIBRARIES},
    )


def _git_commit() -> str:
    """Return the commit of octray's own checkout; empty if it is not in a checkout, or in one of another project."""
    git = shutil.which("git")
    here = Path(__file__)
    if git is None:
        return ""

    def ask(*words: str) -> str | None:
        command = [git, "-C", str(here.parent), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
        return done.stdout.strip() if done.returncode == 0 else None

    return (ask("ls-files", "--error-unmatch", here.name) and ask("rev-parse", "HEAD")) or ""
