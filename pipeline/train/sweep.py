"""A sweep: trials with settings from a search space, and a bundle of the best of them.

Trials see the frames of the train and the tune split only, and the tune split alone compares them. The calibration and the test
split are read once, when the best configuration is trained and judged like any other.
"""

import csv
import fcntl
import json
import logging
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import optuna
import sqlalchemy
import yaml
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits
from torch.distributed import is_torchelastic_launched

from pipeline.atomic import replacing_text, write_bytes
from pipeline.config import Config, Way
from pipeline.csv_escape import csv_escape
from pipeline.errors import BundleError, ConfigError, InputError, TrainingError
from pipeline.frames import Split
from pipeline.ingest.index import Index
from pipeline.ingest.network_input import prepared_frames
from pipeline.model.bundle import Bundle, load_bundle
from pipeline.model.networks import Network
from pipeline.model.weights import cache_folder
from pipeline.plugins import load_plugins
from pipeline.progress import Progress, silent, working
from pipeline.train.devices import open_compute
from pipeline.train.features import FeatureCache, hashed
from pipeline.train.fit import Fitting, Log, start_network
from pipeline.train.run import check_cluster, train
from pipeline.train.search_space import SearchSpace, compared_by, one_network
from pipeline.train.tracking import Tracker, dataset_facts, flatten
from pipeline.train.training_data import TrainingData, select_training_data
from pipeline.train.workspace import PreparedFrames, Workspace
from pipeline.workers.cores import usable_cores

Item = TypeVar("Item")

STORAGE, TABLE, BEST, BUNDLE = "trials.db", "trials.csv", "best.yaml", "bundle"
_WORK, _LOCK = "work", "lock"
_STUDY = "sweep"
_FIRST_TRIALS, _FIRST_EPOCHS = 5, 2
"""Nothing is pruned before so many trials have finished, nor before this epoch."""


class SweepResult(NamedTuple):
    """What a sweep found.

    Parameters
    ----------
    best
        Number of the best trial, as in `trials.csv`.
    value
        Its figure on the tune split.
    measure
        Which figure that is.
    settings
        Its values, by dotted key.
    config
        Its configuration.
    bundle
        What was trained with it.
    finished, pruned, failed
        How many trials came to their end, were stopped early, and could not be trained.
    """

    best: int
    value: float
    measure: str
    settings: Mapping[str, Any]
    config: Config
    bundle: Bundle
    finished: int
    pruned: int
    failed: int


def sweep(
    config: Config,
    index: Index,
    out: Path | str,
    *,
    space: Path | str | Mapping[str, Any],
    trials: int,
    progress: Progress = silent,
    cluster: str = "",
    processes: int = 1,
) -> SweepResult:
    """Search for the settings with the best figure on the tune split, and train a bundle with them.

    Each trial trains one network, with values that Optuna's tree-structured Parzen estimator proposes from the trials before
    (Bergstra et al., "Algorithms for hyper-parameter optimization", NIPS 2011). A trial ends early if its best epoch so far is
    worse than the median of the others at that epoch. `train.seed` decides what is proposed, so that on the same machine the
    same sweep has the same trials. Called again with the same arguments, a sweep that was killed goes on: the trial that was
    killed is repeated, and the rest is as if there had been no kill. With a higher `trials` it goes further.

    On a Ray cluster, trials run side by side. What is proposed for one of them follows from all trials before it but the last
    `processes - 1`, whichever of those have ended: so the trials do not depend on how long each of them takes.

    Parameters
    ----------
    config
        What the trials have in common.
    index
        Frames with labels and splits.
    out
        Folder of the sweep: `trials.db` (Optuna's storage), `trials.csv`, `best.yaml` and the folder `bundle`.
    space
        A YAML file, or what it holds; see `SearchSpace`.
    trials
        How many in all, those of earlier calls included. The first ten are drawn at random.
    progress
        Shows the progress of long steps.
    cluster
        Address of a Ray cluster, as in `train`. This process reads frames, keeps the trials and talks to MLflow.
    processes
        How many trials run side by side on the cluster.

    Raises
    ------
    ConfigError
        If configuration, search space and index do not fit together.
    InputError
        If the index cannot be learned from, its files have changed, the folder belongs to another sweep, or the cluster cannot
        be used or does not answer any more.
    TrainingError
        If no trial came to its end.
    """
    check_cluster(cluster, processes)
    if trials < 1:
        raise ConfigError([f"A sweep needs one trial or more. Got {trials} instead."])
    if is_torchelastic_launched():
        raise ConfigError(["A sweep runs in one process. Start it without torchrun."])
    load_plugins(config.plugins)
    out, searched = Path(out).absolute(), SearchSpace(space, one_network(config))
    with ExitStack() as stack:
        running = _Sweep(config, index, out, searched, stack.enter_context(_opened(config, index, out, searched)), progress)
        with running.tracker.ending():
            running.search(trials, cluster, processes)
            result = running.train_best(cluster)
        shutil.rmtree(out / _WORK, ignore_errors=True)
    return result


class _Sweep:
    """A sweep that is running, and what its trials share."""

    def __init__(
        self, config: Config, index: Index, out: Path, space: SearchSpace, study: optuna.Study, progress: Progress
    ) -> None:
        self._config, self._index, self._out, self._space = config, index, out, space
        self._study, self._progress = study, progress
        data = select_training_data(config, index)
        seen = np.sort(np.concatenate([data.rows(Split.TRAIN), data.rows(Split.TUNE)]))
        self._data = replace(data, records=tuple(data.records[row] for row in seen), targets=data.targets[seen])
        self._cache = _feature_cache(config)
        searched = {f"space.{one.key}": f"{one.kind} {list(one.values)}" for one in space.dimensions}
        self.tracker = Tracker(
            config.tracking,
            out=out,
            key=_Facts(study).get("run_key"),
            name=f"{config.name}-sweep",
            parameters=flatten(config.published()) | searched,
            dataset=dataset_facts(index),
        )

    def search(self, trials: int, cluster: str, at_once: int) -> None:
        """Run trials until there are so many; they are told to Optuna in the order in which it proposed them."""
        self._repeat_killed()
        if len(self._counted()) >= trials:
            return
        with self._started(cluster, at_once) as start, ExitStack() as unfinished:
            running = deque[tuple[optuna.Trial, Callable[[], float]]]()
            while (number := len(self._counted()) + len(running)) < trials or running:
                if number == trials or len(running) == at_once:
                    self._tell(*running.popleft())
                    continue
                # A sampler for each place in the row: its state would be lost if the sweep were killed.
                seed = np.random.SeedSequence([self._config.train.seed, number]).generate_state(1)[0]
                self._study.sampler = TPESampler(seed=int(seed), constant_liar=True)  # which heeds trials that are running
                trial = self._study.ask()
                try:
                    config = self._space.configuration(self._space.suggest(trial))
                    end = self._begin(trial, config, f"trial {number + 1} of {trials}: ", start, unfinished)
                except ConfigError as error:
                    end = partial(_fail, error)
                running.append((trial, end))

    def _tell(self, trial: optuna.Trial, end: Callable[[], float]) -> None:
        """Wait for the end of a trial, and keep what it found."""
        number = len(self._counted())
        try:
            value = end()
        except optuna.TrialPruned:
            self._study.tell(trial, state=TrialState.PRUNED)
        except (ConfigError, TrainingError) as error:  # of these values; other trials may go well
            trial.set_user_attr("error", str(error))
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, value)
            self.tracker.log_metrics({"best_value": self._study.best_value}, number)
        self._write_table()

    def train_best(self, cluster: str) -> SweepResult:
        """Write the best configuration, and train and judge it, unless that is done already."""
        counted = self._counted()
        states = [trial.state for trial in counted]
        if TrialState.COMPLETE not in states:
            errors = [str(trial.user_attrs["error"]) for trial in counted if "error" in trial.user_attrs]
            raise TrainingError(f"No trial of {len(counted)} came to its end. The first one failed: {errors[0]}")
        best = self._study.best_trial
        settings = self._space.suggest(optuna.trial.FixedTrial(best.params))
        config = self._space.configuration(settings)
        write_bytes(self._out / BEST, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
        facts, place = _Facts(self._study), self._out / BUNDLE
        bundle = _finished_bundle(place, facts.get("bundle_id")) if facts.get("trained") == str(best.number) else None
        if bundle is None:
            resumes = facts.get("trained") == str(best.number)
            facts.set("trained", str(best.number))
            bundle = train(
                config, self._index, place, resume=resumes, progress=self._progress, cluster=cluster, parent=self.tracker.key
            )
            facts.set("bundle_id", bundle.manifest.bundle_id)
        numbers = (states.count(state) for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        assert best.value is not None  # noqa: S101 - for mypy
        return SweepResult(best.number, best.value, compared_by(config), settings, config, bundle, *numbers)

    def _begin(
        self, trial: optuna.Trial, config: Config, place: str, start: "_Start", unfinished: ExitStack
    ) -> Callable[[], float]:
        """Start one trial, and return what waits for its figure; if an interrupt comes before, `unfinished` ends its run."""
        try:
            network, _ = start_network(config, self._data.labels)
        except InputError as error:  # of the weights that this trial names
            raise ConfigError([str(error)]) from None
        pixels = self._frames(config)
        workspace = Workspace(self._out / _WORK / f"trial-{trial.number}", "")
        name = f"trial-{trial.number}"
        tracker = self.tracker.child(name, f"{config.name}-{name}", flatten(config.published()))
        stack = unfinished.enter_context(ExitStack())
        stack.callback(shutil.rmtree, workspace.path, ignore_errors=True)
        stack.enter_context(tracker.ending(expected=(optuna.TrialPruned,)))
        before = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        wait = start(config, network, pixels, workspace, before, _named(self._progress, place))

        def log(metrics: Mapping[str, float], step: int) -> None:
            tracker.log_metrics(metrics, step)
            if (monitor := _monitor(config)) in metrics:
                trial.report(metrics[monitor], step)

        def end() -> float:
            with stack:
                return wait(log)

        return end

    @contextmanager
    def _started(self, cluster: str, at_once: int) -> Iterator["_Start"]:
        """Give what starts a trial: in this process when its end is waited for, or at once in a process on a cluster."""
        if not cluster:
            yield lambda config, *given: partial(_run_trial, config, self._data, self._cache, *given)
            return
        from pipeline.workers.ray_cluster import Processes, connected

        uses_gpus = self._config.train.device in ("auto", "cuda")
        plugins, sources = self._config.plugins, self._index.sources
        with (
            connected(cluster),
            Processes(at_once, gpus=uses_gpus, sources=sources, out=self._out, plugins=plugins) as processes,
        ):
            data = processes.share(self._data)

            def start(config: Config, *given: Any) -> Callable[[Log], float]:
                *arguments, progress = given
                task = processes.begin(_run_elsewhere, config, data, *arguments)

                def wait(log: Log) -> float:
                    reports, ended = working(progress, "training on the Ray cluster", lambda: processes.result(task))
                    for metrics, step in reports:
                        log(metrics, step)
                    if isinstance(ended, Exception):
                        raise ended
                    return float(ended)

                return wait

            yield start

    def _frames(self, config: Config) -> PreparedFrames:
        """Return the frames on the grid of a trial's network; they are read once for all trials with that grid."""
        preprocessing = config.network_preprocessing()
        folder = self._out / _WORK / f"frames-{hashed(json.dumps(asdict(preprocessing), sort_keys=True))[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        records, size = self._data.records, preprocessing.size
        frames = prepared_frames(records, self._data.sources, preprocessing, config.limits, config.gate())
        rows = self._progress(frames, "reading frames", len(records))
        return Workspace(folder, "").frames(rows, (len(records), 1, size, size))

    def _repeat_killed(self) -> None:
        """Mark the trials that a killed sweep left as failed, and put their values first in the row, in the same order."""
        while self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):  # by a sweep that was killed before
            self._space.suggest(self._study.ask())
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)
            if trial.params.keys() == {one.key for one in self._space.dimensions}:
                self._study.enqueue_trial(dict(trial.params), user_attrs={"repeats": trial.number})
            shutil.rmtree(self._out / _WORK / f"trial-{trial.number}", ignore_errors=True)

    def _counted(self) -> list[FrozenTrial]:
        """Return the trials that count: all but those that were killed, or have yet to run."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        trials = self._study.get_trials(deepcopy=False, states=ended)
        return [trial for trial in trials if trial.state is not TrialState.FAIL or "error" in trial.user_attrs]

    def _write_table(self) -> None:
        keys = [one.key for one in self._space.dimensions]
        with replacing_text(self._out / TABLE) as file:
            rows = csv.writer(file)
            rows.writerow(["trial", "state", "value", "epochs", *keys, "reason"])
            for trial in self._counted():
                values = [csv_escape(str(trial.params.get(key, ""))) for key in keys]
                epochs = max(trial.intermediate_values, default="")
                value = "" if trial.value is None else trial.value
                reason = csv_escape(str(trial.user_attrs.get("error", "")))
                rows.writerow([trial.number, trial.state.name.lower(), value, epochs, *values, reason])


_Start = Callable[..., Callable[[Log], float]]
"""Starts a trial, and returns what waits for its figure; its metrics are logged until then."""


def _run_trial(
    config: Config,
    data: TrainingData,
    cache: FeatureCache,
    network: Network,
    pixels: PreparedFrames,
    workspace: Workspace,
    before: Sequence[FrozenTrial],
    progress: Progress,
    log: Log,
) -> float:
    """Train the network of one trial, and return its figure on the tune split.

    Raises
    ------
    TrialPruned
        If it falls behind the median of the trials that had come to their end before it began.
    """
    monitor, shadow = _monitor(config), optuna.create_study(direction=_direction(config), pruner=_pruner())
    shadow.add_trials(before)
    trial = shadow.ask()

    def watch(metrics: Mapping[str, float], step: int) -> None:
        log(metrics, step)
        if monitor in metrics:
            trial.report(metrics[monitor], step)
            if trial.should_prune():
                raise optuna.TrialPruned

    workspace.path.mkdir(parents=True)
    with open_compute(config.train) as compute, threadpool_limits(config.train.threads or usable_cores(), "blas"):
        fitting = Fitting(
            config,
            data,
            pixels,
            train=data.rows(Split.TRAIN),
            tune=data.rows(Split.TUNE),
            workspace=workspace,
            cache=cache,
            compute=compute,
            log=watch,
            progress=progress,
        )
        head, course = fitting.learn(network)
    return head["head_tune_loss"] if config.train.way is Way.PROBE else course.history[course.best_epoch][monitor]


def _run_elsewhere(
    config: Config,
    data: TrainingData,
    network: Network,
    pixels: PreparedFrames,
    workspace: Workspace,
    before: list[FrozenTrial],
) -> tuple[list[tuple[Mapping[str, float], int]], float | Exception]:
    """Run a trial in a process on a cluster, and return what it logged, and its figure or what ended it."""
    shutil.rmtree(workspace.path, ignore_errors=True)  # of a process that was lost
    reports: list[tuple[Mapping[str, float], int]] = []
    with _quiet():
        try:
            value = _run_trial(
                config,
                data,
                _feature_cache(config),
                network,
                pixels,
                workspace,
                before,
                silent,
                lambda metrics, step: reports.append((metrics, step)),
            )
        except (optuna.TrialPruned, ConfigError, TrainingError) as error:
            return reports, error
    return reports, value


def _fail(error: ConfigError) -> float:
    raise error


def _monitor(config: Config) -> str:
    return "head_tune_loss" if config.train.way is Way.PROBE else config.train.finetune.monitor


def _direction(config: Config) -> StudyDirection:
    return StudyDirection.MAXIMIZE if "AUROC" in compared_by(config) else StudyDirection.MINIMIZE


def _pruner() -> MedianPruner:
    return MedianPruner(n_startup_trials=_FIRST_TRIALS, n_warmup_steps=_FIRST_EPOCHS)


def _feature_cache(config: Config) -> FeatureCache:
    return FeatureCache(cache_folder() / "features.sqlite3" if config.train.cache_features else None)


class _Facts:
    """What is kept of a study or a trial beside its values, in Optuna's storage."""

    def __init__(self, owner: optuna.Study | optuna.Trial) -> None:
        self._owner = owner

    def get(self, name: str) -> str:
        return str(self._owner.user_attrs.get(name, ""))

    def set(self, name: str, value: str) -> None:
        self._owner.set_user_attr(name, value)


@contextmanager
def _opened(config: Config, index: Index, out: Path, space: SearchSpace) -> Iterator[optuna.Study]:
    """Open the storage of a sweep for this process alone.

    Raises
    ------
    InputError
        If the folder is a bundle or an index, or holds another sweep, or another process uses it.
    """
    if out.is_file() or any((out / name).exists() for name in ("manifest.json", "index.json")):
        raise InputError(f"A sweep cannot be written to {out.name}: it is a file, a bundle or an index. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        lock = stack.enter_context((out / _LOCK).open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another octray runs the sweep in {out.name}. Wait for it, or choose another --out.") from None
        stack.enter_context(_quiet())
        url = sqlalchemy.URL.create("sqlite", database=str((out / STORAGE).resolve()))
        try:
            storage = optuna.storages.RDBStorage(url.render_as_string(hide_password=False))
            stack.callback(storage.engine.dispose)
            stack.callback(storage.remove_session)
            study = optuna.create_study(
                storage=storage,
                study_name=_STUDY,
                direction=_direction(config),
                load_if_exists=True,
            )
        except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError):
            raise InputError(f"{STORAGE} in {out.name} cannot be read. Choose another --out, or delete the file.") from None
        facts, identity = _Facts(study), [config.model_dump(mode="json", exclude={"tracking"}), index.sha256, str(space)]
        sha256 = hashed(json.dumps(identity, sort_keys=True))
        if facts.get("identity") not in ("", sha256):
            raise InputError(
                f"{out.name} holds a sweep of another configuration, index or search space. Give the same ones to go on with "
                "it, or choose another --out."
            )
        facts.set("identity", sha256)
        facts.set("run_key", facts.get("run_key") or secrets.token_hex(16))
        yield study


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Optuna say nothing of single trials."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _finished_bundle(place: Path, bundle_id: str) -> Bundle | None:
    """Return the bundle that an earlier call trained, if it is still there."""
    try:
        bundle = load_bundle(place)
    except BundleError:
        return None
    return bundle if bundle.manifest.bundle_id == bundle_id else None


def _named(progress: Progress, place: str) -> Progress:
    """Return what shows the same progress, and of which trial it is."""

    def show(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        return progress(items, f"{place}{description}", total)

    return show
