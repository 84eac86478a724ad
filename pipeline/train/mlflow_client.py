"""Talks to MLflow: opens its store, makes its client give up soon, and says in one line what is wrong."""

import fcntl
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import TrackingSection

DEFAULT_STORE = Path("mlruns") / "mlflow.db"
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", _TIMEOUT: "10", "PGCONNECT_TIMEOUT": "10"}
"""How soon to give up, unless the user has set it. For uploads, which are large, MLflow's own time-out holds and not ours."""
_SILENCE = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
_TALKATIVE = ("mlflow", "alembic")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_LONGEST_REASON = 600


def open_client(settings: TrackingSection) -> Any:
    """Return MLflow's client of a store; a database is connected to once first, since MLflow would retry for minutes."""
    from mlflow import MlflowClient

    uri = tracking_uri(settings)
    if is_database(uri):
        import sqlalchemy

        engine = sqlalchemy.create_engine(sqlalchemy.make_url(uri))
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def is_database(uri: str, *names: str) -> bool:
    """Return whether runs are recorded in a database without a server of MLflow, of one of these kinds if any are named."""
    return uri.partition(":")[0].partition("+")[0] in (names or _DATABASES)


def make_sqlite_store(uri: str) -> None:
    """Make MLflow's tables in a new SQLite file, unless they are there or it is another kind of store.

    MLflow makes them step by step and without a lock: two processes that do so together, or one that is killed, leave a file
    that no later process can use. Here one process at a time makes them, in a file that gets its name when it is complete.
    """
    path = _sqlite_file(uri)
    if path is None:
        return
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
        store = SqlAlchemyStore(f"sqlite:///{draft / path.name}", _artifacts_beside(path))  # type: ignore[no-untyped-call]
        store.engine.dispose()
        (draft / path.name).replace(path)
        draft.rmdir()


def _sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite store; None if it is another store, or lies in memory."""
    import sqlalchemy

    if not is_database(uri, "sqlite") or not (database := sqlalchemy.make_url(uri).database):
        return None
    return Path(database)


def tracking_uri(settings: TrackingSection) -> str:
    """Return where runs are recorded: the setting, else MLFLOW_TRACKING_URI, else a SQLite file below the current folder."""
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri:
        return uri
    DEFAULT_STORE.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{DEFAULT_STORE}"


def shared_uri(settings: TrackingSection) -> str:
    """Return where runs are recorded, as a file may say it: without name and password, and as seen from any folder."""
    uri = tracking_uri(settings)
    if file := _sqlite_file(uri):
        return f"sqlite:///{file.resolve()}"
    return re.sub(r"^(\w[\w+.-]*://)[^/@\s]*@", r"\1", uri)


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


def experiment_id(client: Any, settings: TrackingSection) -> str:
    """Return the id of the experiment; with a SQLite file, artefacts lie in the folder `artifacts` beside it."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(settings.experiment)
    if found is not None:
        return str(found.experiment_id)
    file = _sqlite_file(tracking_uri(settings))
    try:
        return str(client.create_experiment(settings.experiment, artifact_location=_artifacts_beside(file) if file else None))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(client.get_experiment_by_name(settings.experiment).experiment_id)  # another process was first


@contextmanager
def client_settings(is_upload: bool = False) -> Iterator[None]:
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


def mlflow_words(error: Exception) -> str:
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
