"""Records runs in MLflow: parameters, metrics, files and a registered model. A dead server costs seconds, never a result."""

import getpass
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import pyarrow as pa
import yaml
from pyarrow import parquet

from pipeline.config import Config, TrackingSection, load_config
from pipeline.errors import BundleError, ConfigError, InputError, TrackingError
from pipeline.evaluate.metrics import flat_figures
from pipeline.ingest.index import Index, frames_to_parquet
from pipeline.model.bundle import CONFIG, MANIFEST, METRICS, Bundle, Provenance, load_bundle
from pipeline.train.mlflow_client import (
    client_settings,
    experiment_id,
    is_database,
    make_sqlite_store,
    mlflow_words,
    open_client,
    shared_uri,
    tracking_uri,
)
from pipeline.train.outbox import FINISHED, RUNNING, RunLog, logs_in, outbox_of
from pipeline.train.registry import BUNDLE_ID, ModelVersion, model_name, record_bundle

_NOT_IN_NAMES = re.compile(r"[^\w.\- ]")
_LONGEST_NAME, _LONGEST_VALUE, _METRICS_AT_ONCE, _PARAMETERS_AT_ONCE = 250, 6000, 1000, 100
"""Limits of MLflow (`mlflow.utils.validation`)."""
_RUN_KEY = "octray.run"
"""Tag of runs: the key of the run's log."""
_PARENT = "mlflow.parentRunId"
"""MLflow's own tag (`mlflow.utils.mlflow_tags`)."""
_ONE_ANSWER = 12.0
"""Seconds that anything but an upload may take before training goes on."""
_BETWEEN_MEASUREMENTS = 10.0
"""Seconds between two measurements of the machine, as MLflow has it."""
_LAST_BREATH = 10.0
"""Seconds to wait for a killed process of the same run, whose own processes may outlive it for a moment."""
_PAUSE, _PART_OF_AGE = 2.0, 20
"""Metrics are sent when these seconds, and this part of the run's age, have passed: a long run sends them ever less often."""


class Tracker:
    """Records one training run in MLflow. A failure is reported once on standard error, and training continues.

    What happens is written to the run's log beside the bundle first, and sent from there. A server may cost the run
    `tracking.seconds` in all, whatever it does; what MLflow has not got by then stays in the log, for `sync_runs`. A SQLite
    file is no server: only what fails there counts.

    Parameters
    ----------
    settings
        Address, experiment and alias.
    out
        What the run writes; its log is kept beside it, or in the parent's place.
    key
        The identity of the run. If there is a log of it, the run goes on.
    name, parameters
        The configuration's name, and the configuration itself, flattened.
    dataset
        As `dataset_facts` gives it.
    parent
        The run that this one is a child of, as a trial is of its sweep. If it is not recorded, neither is the child.
    parent_key
        The key of the parent, if that may be in another process; the log is then kept beside what this run writes.

    Raises
    ------
    InputError
        If another process has the run.
    """

    def __init__(
        self,
        settings: TrackingSection,
        *,
        out: Path,
        key: str,
        name: str,
        parameters: Mapping[str, str],
        dataset: Mapping[str, Any],
        parent: "Tracker | None" = None,
        parent_key: str = "",
    ) -> None:
        self.name = name
        self._settings, self._parent, self._dataset = settings, parent, dataset
        self._out: Path = parent._out if parent else out
        self._log: RunLog | None = None
        self._seconds_left = settings.seconds
        self._client: Any = None
        self._sending: Thread | None = None
        self._has_ended = Event()
        self._said: set[str] = set()
        self._began, self._next_sending, self._failures = time.monotonic(), 0.0, 0
        if not settings.enabled or (parent and not parent._log):
            return
        log = RunLog(outbox_of(self._out), key)
        if not log.lock(_LAST_BREATH):
            raise InputError(f"Another octray writes to {out.name}. Wait for it, or choose another --out.")
        log.begin(
            name=name,
            experiment=settings.experiment,
            uri=shared_uri(settings),
            parent=parent.key if parent else parent_key,
            params={key: value[:_LONGEST_VALUE] for key, value in parameters.items()},
            tags=_tags(),
            dataset=dict(dataset),
        )
        self._log = log
        self._machine: _SystemMetrics | None = None
        try:
            self._send()
            if parent is None:
                self._send_others()
                self._machine = _SystemMetrics(log) if settings.system_metrics else None
        except KeyboardInterrupt:
            self.finish("KILLED")
            raise

    @property
    def key(self) -> str:
        """The identity of the run; empty if it is not recorded."""
        return self._log.key if self._log else ""

    @property
    def run_id(self) -> str:
        """The run's id in MLflow; empty if it is not there, or not yet."""
        return self._log.run_id if self._log else ""

    def child(self, key: str, name: str, parameters: Mapping[str, str]) -> "Tracker":
        """Begin a run that is a part of this one; `key` tells it from the other parts."""
        own = f"{self._log.key}-{key}" if self._log else key
        return Tracker(
            self._settings, out=self._out, key=own, name=name, parameters=parameters, dataset=self._dataset, parent=self
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record numbers of one epoch, or of the evaluation; characters that MLflow does not take become underscores.

        What the run has at this step already is left out: a run that is resumed repeats its last epoch's figures.
        """
        if self._log is None:
            return
        self._log.add_metrics({_metric_name(key): value for key, value in metrics.items()}, step)
        keeps_half = self._available > self._settings.seconds / 2  # for the bundle, and for the end of the run
        if keeps_half and time.monotonic() >= self._next_sending:
            self._send()

    def log_bundle(self, bundle: Path, model_name: str) -> None:
        """Store a bundle as artefact and register it as a new version of the model, with the configured alias."""
        if self._log is None:
            return
        self._log.add_bundle(load_bundle(bundle).manifest.bundle_id, bundle, model_name, self._settings.alias)
        self._send(is_upload=True)

    @contextmanager
    def ending(self, expected: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """End the run with the block: as KILLED after an interrupt, as FAILED after an error that is not `expected`."""
        try:
            yield
        except KeyboardInterrupt:
            self.finish("KILLED")
            raise
        except Exception as error:
            self.finish(FINISHED if isinstance(error, expected) else "FAILED")
            raise
        self.finish()

    def finish(self, status: str = FINISHED) -> None:
        """End the run as FINISHED, FAILED or KILLED; its log is deleted if it is finished and MLflow has all of it."""
        if (log := self._log) is None:
            return
        if self._machine:
            self._machine.stop()
        log.end(status)
        self._send(is_upload=True)
        self._has_ended.set()
        if log.is_sent and status == FINISHED and self._parent is None:
            for child in self._others(is_child=True):
                if child.is_sent and child.status == FINISHED:
                    child.remove()
                child.unlock()
            log.remove()
        else:
            log.unlock()

    def _send_others(self) -> None:
        """End what killed runs left at this place, and send what earlier runs could not."""
        for is_child in (False, True):
            for log in self._others(is_child):
                if log.status == RUNNING:
                    log.end("KILLED")
                if self._send(log) and not is_child:  # a child that is resumed must know what it has recorded
                    log.remove()
                log.unlock()

    def _others(self, is_child: bool) -> Iterator[RunLog]:
        """Yield, locked, the logs at this place of this run's children, or those of all other runs."""
        assert self._log is not None  # noqa: S101 - for mypy
        for log in logs_in(outbox_of(self._out)):
            if log.key != self._log.key and (log.head.get("parent") == self._log.key) == is_child and log.lock():
                yield log

    @property
    def _available(self) -> float:
        """Seconds that may still be waited."""
        return max(0.0, min(self._seconds_left, self._parent._available if self._parent else self._seconds_left))

    def _spend(self, seconds: float, is_success: bool) -> None:
        """Count seconds of waiting; those that brought nothing count for the parent, too, so that all trials share them."""
        if is_success and is_database(tracking_uri(self._settings), "sqlite"):
            return
        self._seconds_left -= seconds
        if self._parent and not is_success:
            self._parent._spend(seconds, is_success)

    def _send(self, log: RunLog | None = None, is_upload: bool = False) -> bool:
        """Send what MLflow has not got of a run, by default of this one; if that fails, print each reason once."""
        log = log or self._log
        if log is None or log.is_sent or (self._parent and not self._parent.run_id and not self._parent._send()):
            return log is not None and log.is_sent
        seconds = self._available if is_upload else min(_ONE_ANSWER, self._available)
        error = self._deliver(log, seconds, is_upload)
        age = time.monotonic() - self._began
        self._failures = self._failures + 1 if error else 0
        self._next_sending = time.monotonic() + max(_PAUSE, age / _PART_OF_AGE, 2**self._failures if error else 0)
        is_new = error is not None and not (self._said and isinstance(error, TimeoutError))  # the first reason says more
        if error is not None and is_new and (why := mlflow_words(error)) not in self._said:
            self._said.add(why)
            sys.stderr.write(
                f"octray: MLflow does not record the run ({why}); training continues and its results are kept. "
                f"`octray sync {self._out.name}` records it later.\n"
            )
        return error is None

    def _deliver(self, log: RunLog, seconds: float, is_upload: bool) -> Exception | None:
        """Send a run in so many seconds, and return what went wrong."""

        def send() -> None:
            self._client = self._client or open_client(self._settings)
            deliver(self._client, log, self._settings, is_wanted=lambda: not self._has_ended.is_set())

        uri, began = tracking_uri(self._settings), time.monotonic()
        error: Exception | None = None
        try:
            with client_settings(is_upload):
                make_sqlite_store(uri)  # it may take long where the machine is busy, and no server is waited for
                began = time.monotonic()
                if is_database(uri, "sqlite"):
                    send()
                else:
                    self._in_time(send, seconds)
        except Exception as found:
            error = found
        self._spend(time.monotonic() - began, error is None)
        return error

    def _in_time(self, send: Callable[[], None], seconds: float) -> None:
        """Send in a thread of its own, since no time-out of MLflow ends an answer that comes byte by byte.

        Raises
        ------
        TimeoutError
            If it takes longer. The thread goes on until the server lets it, and does not keep the process.
        """
        deadline, failed = time.monotonic() + seconds, list[Exception]()

        def run() -> None:
            try:
                send()
            except Exception as error:
                failed.append(error)

        if self._sending:
            self._sending.join(seconds)  # of the attempt before, which sends the same lines
        if not (self._sending and self._sending.is_alive()):
            self._sending = Thread(target=run, daemon=True)
            self._sending.start()
            self._sending.join(max(0.0, deadline - time.monotonic()))
        if self._sending.is_alive():
            raise TimeoutError(
                f"it is slower than the {self._settings.seconds:g} seconds that it may cost a run, see tracking.seconds"
            )
        if failed:
            raise failed[0]


class _SystemMetrics:
    """Measures processor, memory, disk, network and GPUs every ten seconds, with MLflow's own monitors and names.

    MLflow's own thread would send them itself, and wait for a server that does not answer; here they go to the run's log.
    """

    def __init__(self, log: RunLog) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._log, self._step, self._is_over = log, log.next_step("system/"), Event()
        self._monitors: list[Any] = []
        for monitor in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            with suppress(Exception):  # without a GPU, or in a container that shows no network
                self._monitors.append(monitor())
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Measure once more, and stop."""
        if not self._is_over.is_set():
            self._is_over.set()
            self._thread.join()
            self._measure()

    def _run(self) -> None:
        while not self._is_over.wait(_BETWEEN_MEASUREMENTS):
            self._measure()

    def _measure(self) -> None:
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        self._log.add_metrics({f"system/{name}": value for name, value in found.items()}, self._step)
        self._step += 1


def deliver(client: Any, log: RunLog, settings: TrackingSection, is_wanted: Callable[[], bool] = lambda: True) -> list[str]:
    """Send MLflow what it has not got of a run. What was sent before a kill, but is not known to have been, changes nothing.

    Parameters
    ----------
    client
        Of MLflow.
    log
        The run; which lines MLflow has is kept in it.
    settings
        The experiment; a bundle's model and alias are in the log.
    is_wanted
        Asked before each step.

    Returns
    -------
    list[str]
        A sentence for each bundle that is no longer where the run wrote it.
    """
    remarks = []
    if not log.run_id and is_wanted():
        log.mark(_run_with_key(client, log, settings), 0)
    while not log.is_sent and is_wanted():
        line, count = log.lines[log.sent], 1
        if "metrics" in line:
            count = _send_metrics(client, log)
        elif "bundle" in line:
            try:
                remarks += _send_bundle(client, log, line)
            except Exception:
                with suppress(Exception):  # a bundle that MLflow refuses does not keep the run from its end
                    _send_status(client, log.run_id, {"status": log.status, "time": log.lines[-1]["time"]})
                raise
        elif "status" in line:
            _send_status(client, log.run_id, line)
        else:
            _describe(client, log.run_id, line)
        log.mark(log.run_id, log.sent + count)
    return remarks


def _run_with_key(client: Any, log: RunLog, settings: TrackingSection) -> str:
    """Return the id of a run, which is made if it does not exist."""
    experiment, head = experiment_id(client, settings), log.head
    if found := _find_run(client, experiment, _RUN_KEY, log.key):
        return found
    tags = dict(head["tags"]) | {_RUN_KEY: log.key}
    if head["parent"]:
        tags[_PARENT] = _find_run(client, experiment, _RUN_KEY, head["parent"])
        if not tags[_PARENT]:
            raise TrackingError("the run that it is a part of is not recorded yet")
    return str(client.create_run(experiment, start_time=head["time"], tags=tags, run_name=head["name"]).info.run_id)


def _find_run(client: Any, experiment: str, tag: str, value: str) -> str:
    """Return the id of the run with a tag; empty if there is none."""
    found = client.search_runs([experiment], f"tags.`{tag}` = '{value}'", max_results=1)
    return str(found[0].info.run_id) if found else ""


def _describe(client: Any, run_id: str, head: Mapping[str, Any]) -> None:
    """Record parameters and data set."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    parameters = [Param(key, value) for key, value in head["params"].items()]
    for start in range(0, len(parameters), _PARAMETERS_AT_ONCE):
        client.log_batch(run_id, params=parameters[start : start + _PARAMETERS_AT_ONCE])
    inputs = [DatasetInput(Dataset(**head["dataset"]), [InputTag("mlflow.data.context", "training")])]
    try:
        client.log_inputs(run_id, inputs)
    except Exception as error:
        if not any(word in str(error).lower() for word in ("unique", "duplicate")):
            raise
        client.log_inputs(run_id, inputs)  # another run has recorded the same data set in the same moment


def _send_metrics(client: Any, log: RunLog) -> int:
    """Send the metrics that come next, as many as MLflow takes at once, and return how many lines these are."""
    from mlflow.entities import Metric

    metrics: list[Any] = []
    count = 0
    for line in takewhile(lambda line: "metrics" in line, log.lines[log.sent :]):
        if count and len(metrics) + len(line["metrics"]) > _METRICS_AT_ONCE:
            break
        metrics += [Metric(key, value, line["time"], line["step"]) for key, value in line["metrics"].items()]
        count += 1
    for start in range(0, len(metrics), _METRICS_AT_ONCE):
        client.log_batch(log.run_id, metrics=metrics[start : start + _METRICS_AT_ONCE])
    return count


def _send_bundle(client: Any, log: RunLog, line: Mapping[str, Any]) -> list[str]:
    client.set_tag(log.run_id, BUNDLE_ID, line["bundle"])
    try:
        bundle = load_bundle(log.bundle_place(line))
    except BundleError:
        bundle = None
    if bundle is None or bundle.manifest.bundle_id != line["bundle"]:
        return [f"The bundle {line['bundle']} of the run {log.head['name']} is no longer there and was not recorded."]
    record_bundle(client, log.run_id, bundle, line["model"], line["alias"])
    return []


def _send_status(client: Any, run_id: str, line: Mapping[str, Any]) -> None:
    if line["status"] == RUNNING:
        client.update_run(run_id, status=RUNNING)
    else:
        client.set_terminated(run_id, line["status"], line["time"])


class SyncedRun(NamedTuple):
    """What `sync_runs` did with a run: MLflow has all of it as `run_id`, or, if that is empty, it is still training."""

    name: str
    run_id: str
    remarks: tuple[str, ...] = ()


def sync_runs(out: Path | str, store: str = "") -> list[SyncedRun]:
    """Record in MLflow what runs could not record while they trained; doing it twice, or again after a kill, records it once.

    Parameters
    ----------
    out
        What was given to `train` or `sweep`.
    store
        Where to record; empty: where the runs would have been recorded.

    Returns
    -------
    list[SyncedRun]
        One for each run that MLflow lacked something of. Runs that were killed end as KILLED.

    Raises
    ------
    InputError
        If nothing was ever trained there.
    TrackingError
        If MLflow cannot be reached or refuses it, with its own sentence.
    """
    out = Path(out)
    folders = [outbox_of(out), outbox_of(out / "bundle")]  # the second is that of the best configuration of a sweep
    if not out.exists() and not any(folder.exists() for folder in folders):
        raise InputError(f"There is no {out.name}. Give what was given to `octray train` or `octray sweep` as --out.")
    logs = [*logs_in(folders[0]), *logs_in(folders[1])]
    if not logs and not any((out / name).exists() for name in (MANIFEST, f"bundle/{MANIFEST}", "trials.db")):
        raise InputError(
            f"Nothing was trained to {out.name}, so there is nothing to record. Give what was given to `octray train` or "
            "`octray sweep` as --out."
        )
    is_resumable = any(place.with_name(f"{place.name}.work").exists() for place in (out.resolve(), out.resolve() / "bundle"))
    synced = []
    for log in logs:
        if not log.lock():
            synced.append(SyncedRun(str(log.head.get("name", "")), ""))
            continue
        try:
            if log.head and log.status == RUNNING:
                log.end("KILLED")
            if not log.is_sent:
                synced.append(_sync(log, store))
            if not is_resumable:
                log.remove()  # otherwise the run may be resumed, and then needs to know what it has recorded
        finally:
            log.unlock()
    return synced


def _sync(log: RunLog, store: str) -> SyncedRun:
    name = str(log.head["name"])
    settings = TrackingSection(uri=store or log.head["uri"], experiment=log.head["experiment"])
    try:
        with client_settings(is_upload=True):
            make_sqlite_store(tracking_uri(settings))
            remarks = deliver(open_client(settings), log, settings)
    except Exception as error:
        raise TrackingError(
            f"MLflow could not record the run {name}: {mlflow_words(error)}. What it lacks is kept; run the command again."
        ) from None
    return SyncedRun(name, log.run_id, tuple(remarks))


def dataset_facts(index: Index) -> dict[str, str]:
    """Return what MLflow records of an index: name, digest, source, columns, and the counts of each split."""
    schema = parquet.read_schema(pa.BufferReader(frames_to_parquet(index.records[:1], index.labels)))
    columns = [{"name": field.name, "required": not field.nullable} | _column_type(field.type) for field in schema]
    counts = index.counts()
    return {
        "name": index.name,
        "digest": index.sha256[:36],
        "source_type": "local",
        "source": json.dumps({"uri": str(index.sources[0])} if index.sources else {}),
        "schema": json.dumps({"mlflow_colspec": columns}),
        "profile": json.dumps({"sources": [str(source) for source in index.sources], "splits": counts}),
    }


def _column_type(kind: pa.DataType) -> dict[str, Any]:
    """Return the type of a column as MLflow's `Schema.to_dict` has it."""
    if pa.types.is_list(kind):
        return {"type": "array", "items": _column_type(kind.value_type)}
    if pa.types.is_boolean(kind):
        return {"type": "boolean"}
    return {"type": "long" if pa.types.is_integer(kind) else "double" if pa.types.is_floating(kind) else "string"}


def _tags() -> dict[str, str]:
    """Return who runs which octray where, in MLflow's own tags if it has one."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container with a number and no name
        user = ""
    tags = {
        "mlflow.user": user,
        "mlflow.source.name": "octray",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": _git_commit(),
        "octray.host": platform.node(),
        "octray.version": metadata.version("octray"),
    }
    return {name: value for name, value in tags.items() if value}


def _metric_name(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name)[:_LONGEST_NAME]


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
        with client_settings():
            make_sqlite_store(tracking_uri(config.tracking))
            client = open_client(config.tracking)
            run_id = _run_of(client, bundle, config)
        try:
            with client_settings(is_upload=True):
                return ModelVersion(name, record_bundle(client, run_id, bundle, name, alias), alias)
        finally:
            with client_settings(), suppress(Exception):  # what went wrong before is what counts
                if client.get_run(run_id).info.status != "FINISHED":
                    client.set_terminated(run_id, "FINISHED")
    except Exception as error:
        raise TrackingError(
            f"MLflow could not register the bundle: {mlflow_words(error)}. The bundle is unchanged; run the command again."
        ) from None


def _run_of(client: Any, bundle: Bundle, config: Config) -> str:
    """Return the run that trained a bundle, or one that was made for it before, or else a new one."""
    from mlflow.exceptions import MlflowException

    origin, bundle_id = bundle.manifest.provenance, bundle.manifest.bundle_id
    if origin.mlflow_run_id:
        try:
            if client.get_run(origin.mlflow_run_id).info.lifecycle_stage == "active":
                client.set_tag(origin.mlflow_run_id, BUNDLE_ID, bundle_id)
                return origin.mlflow_run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    if found := _find_run(client, experiment_id(client, config.tracking), BUNDLE_ID, bundle_id):
        return found
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder), f"bundle-{bundle_id}")
        log.lock()
        log.begin(
            name=origin.config_name,
            parent="",
            params={key: value[:_LONGEST_VALUE] for key, value in flatten(yaml.safe_load(bundle.read(CONFIG))).items()},
            tags=_tags() | {BUNDLE_ID: bundle_id, "mlflow.source.git.commit": origin.git_commit},
            dataset={
                "name": origin.dataset_name,
                "digest": origin.dataset_sha256[:36],
                "source_type": "octray-index",
                "source": "{}",
            },
        )
        figures = flat_figures(json.loads(bundle.read(METRICS)).get("evaluation") or {}, "test")
        log.add_metrics({_metric_name(key): value for key, value in figures.items()}, 0)
        deliver(client, log, config.tracking)
        log.unlock()
        return log.run_id


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
