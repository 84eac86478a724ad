"""One training run, from an index to a bundle, with its steps in the order in which they happen."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import yaml
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch.distributed import is_torchelastic_launched

from pipeline.config import Config
from pipeline.errors import ConfigError, TrainingError
from pipeline.evaluate.metrics import flat_figures
from pipeline.evaluate.outliers import RANKED_PATIENTS
from pipeline.frames import TRAINING_SPLITS, Split
from pipeline.ingest.index import Index
from pipeline.ingest.network_input import prepared_frames
from pipeline.model.bundle import (
    ATTENTION,
    CONFIG,
    GRAPH,
    HOME,
    METRICS,
    MODEL_CARD,
    REFERENCE,
    WEIGHTS,
    Bundle,
    Conformal,
    MapSupport,
    Member,
    Normalisation,
    Outliers,
    draft_manifest,
    load_bundle,
    write_bundle,
)
from pipeline.model.card import model_card
from pipeline.model.weights import cache_folder, file_sha256
from pipeline.plugins import load_plugins
from pipeline.progress import Progress, silent, working
from pipeline.train.assessment import Assessment, judge
from pipeline.train.devices import Compute, open_compute
from pipeline.train.features import FeatureCache
from pipeline.train.fit import Fitted, Fitting, start_network
from pipeline.train.registry import model_name
from pipeline.train.robustness import flat_robustness
from pipeline.train.tracking import Tracker, dataset_facts, flatten, provenance
from pipeline.train.trainer import help_to_finetune
from pipeline.train.training_data import TrainingData, order_of_urgency, select_training_data
from pipeline.train.workspace import STATE, PreparedFrames, Workspace, open_workspace
from pipeline.workers.cores import usable_cores


def train(
    config: Config,
    index: Index,
    out: Path | str,
    resume: bool = False,
    progress: Progress = silent,
    *,
    cluster: str = "",
    processes: int = 1,
    parent: str = "",
) -> Bundle:
    """Train a network on an index and write the bundle.

    If `torchrun` started several processes, all of them call it: the first one does the work, the others help with the training
    steps and return the bundle that it wrote. On a Ray cluster, octray starts the processes; if one dies, all of them start
    again from the last finished epoch. The bundle is that of as many processes of `torchrun` on the same machines.

    Parameters
    ----------
    config
        The settings.
    index
        Frames with labels and splits.
    out
        The bundle's folder. While training runs, `NAME.work` beside it holds what a killed run needs to resume.
    resume
        Resume a run that was killed; the result is the same as without the kill.
    progress
        Shows the progress of long steps.
    cluster
        Address of a Ray cluster, `HOST:PORT` or `auto`; empty trains on this machine. All its machines must see the sources of
        the index, the folder around `out` and the working folder under the same paths.
    processes
        How many train together on the cluster, each on a GPU of its own if it has any, unless `train.device` is `cpu`.
    parent
        Key of the run that this one is a child of in MLflow, such as that of a sweep; empty if there is none.

    Raises
    ------
    ConfigError
        If configuration and index do not fit together.
    InputError
        If the index cannot be learned from, its files have changed, or the cluster cannot be used or does not answer any more.
    TrainingError
        If the loss is not a number, or another process of the run has ended.
    """
    check_cluster(cluster, processes)
    if cluster:
        return _train_on_cluster(config, index, Path(out), resume, progress, cluster, processes, parent)
    load_plugins(config.plugins)
    out = Path(out)
    with open_compute(config.train) as compute:
        if compute.rank:
            help_to_finetune(compute)
            return load_bundle(out)
        bundle = _train(config, index, out, resume, compute, progress, parent)
        compute.share(None)
        return bundle


def check_cluster(cluster: str, processes: int) -> None:
    """Raise a `ConfigError` if processes are asked for that nothing would start, or Ray is not installed."""
    if processes < 1:
        raise ConfigError([f"--processes must be 1 or more. Got {processes} instead."])
    if processes > 1 and not cluster:
        raise ConfigError(["--processes needs --engine ray. On one machine, start several processes with torchrun."])
    if cluster and is_torchelastic_launched():
        raise ConfigError(["On a Ray cluster octray starts the processes itself. Leave out torchrun, and give --processes."])
    if cluster and find_spec("ray") is None:
        raise ConfigError(["--engine ray needs Ray: pip install 'octray[cluster]'."])


def _train_on_cluster(
    config: Config, index: Index, out: Path, resume: bool, progress: Progress, cluster: str, processes: int, parent: str
) -> Bundle:
    """Train in processes of a Ray cluster, starting them again if some of them are lost."""
    from pipeline.workers.ray_cluster import MOST_LOST, LostProcessError, Processes, connected

    place, needs_gpu = out.absolute(), config.train.device in ("auto", "cuda")
    work, lost, newest = place.with_name(f"{place.name}.work"), 0, 0.0
    place.parent.mkdir(parents=True, exist_ok=True)
    begun = _changed(work, STATE)

    def start(resume: bool) -> None:
        with Processes(processes, gpus=needs_gpu, sources=index.sources, out=place, plugins=config.plugins) as started:
            started.run_together(partial(train, parent=parent), config, index, place, resume)

    with connected(cluster):
        while True:
            shown = "training on the Ray cluster" + ", started again" * bool(lost or newest)
            try:
                working(progress, shown, partial(start, resume))
                return load_bundle(out)
            except LostProcessError:
                changed, before = _changed(work, "checkpoint.safetensors"), newest
                newest, lost = max(before, changed), 0 if changed > before else lost + 1
                if lost == MOST_LOST:
                    raise TrainingError(
                        "The processes of octray end on the Ray cluster before they have trained an epoch. Check that its "
                        "machines have enough memory, and start again with --resume."
                    ) from None
                resume = resume or _changed(work, STATE) not in (0.0, begun)


def _changed(folder: Path, name: str) -> float:
    """Return when the newest file of that name in a folder was written; 0 if there is none."""
    return max((path.stat().st_mtime for path in folder.rglob(name)), default=0.0)


def _train(config: Config, index: Index, out: Path, resume: bool, compute: Compute, progress: Progress, parent: str) -> Bundle:
    """Train, judge, write, register, and delete the workspace."""
    data = select_training_data(config, index)
    weights = [file_sha256(one.model.architecture, one.model.weights) for one in config.networks()]
    facts = json.dumps([config.model_dump(mode="json", exclude={"tracking"}), index.sha256, weights], sort_keys=True)
    workspace = open_workspace(out, facts, resume)
    tracker = working(
        progress,
        "opening MLflow",
        lambda: Tracker(
            config.tracking,
            out=out,
            key=workspace.run_key,
            name=config.name,
            parameters=flatten(config.published()),
            dataset=dataset_facts(index),
            parent_key=parent,
        ),
    )
    training = _Training(config, index, data, workspace, tracker, compute, progress)
    with tracker.ending():
        with threadpool_limits(config.train.threads or usable_cores(), "blas"):
            bundle = training.run(out)
        working(progress, "registering the bundle in MLflow", lambda: tracker.log_bundle(out, model_name(config)))
    workspace.remove()
    return bundle


class _Training:
    """The steps of one run, and what all of them need."""

    def __init__(
        self,
        config: Config,
        index: Index,
        data: TrainingData,
        workspace: Workspace,
        tracker: Tracker,
        compute: Compute,
        progress: Progress,
    ) -> None:
        self._config, self._index, self._data = config, index, data
        self._workspace, self._tracker, self._compute, self._progress = workspace, tracker, compute, progress
        self._preprocessing = config.network_preprocessing()
        self._cache = FeatureCache(cache_folder() / "features.sqlite3" if config.train.cache_features else None)

    def run(self, out: Path) -> Bundle:
        """Train, judge and write the bundle."""
        networks = self._config.networks()
        self._check(networks)
        folds = self._folds()
        pixels = self._decode()
        count = len(networks) * len(folds)
        places = ((config, fold) for config in networks for fold in folds)
        fitted = [self._fit(*place, pixels, number, count) for number, place in enumerate(places, 1)]
        assessment = judge(self._config, self._data, fitted, pixels, self._index, self._progress)
        for name, evaluation in (("test", assessment.evaluation), ("out_of_fold", assessment.out_of_fold)):
            if evaluation:
                self._tracker.log_metrics(flat_figures(evaluation.to_json(), name))
        self._tracker.log_metrics(flat_robustness(assessment.robustness))
        return self._write(out, fitted, assessment)

    def _check(self, networks: Sequence[Config]) -> None:
        """Say what is wrong with the networks before any frame is read."""
        faults: list[str] = []
        for config in networks:
            try:
                start_network(config, self._data.labels)
            except ConfigError as error:
                faults += error.faults
        if faults:
            raise ConfigError(list(dict.fromkeys(faults)))

    def _folds(self) -> list[tuple[int | None, NDArray[np.int64]]]:
        """Return numbers and frames of the folds of the train split; without folds, no frame is held out."""
        rows, config = self._data.rows(Split.TRAIN), self._config.train
        if config.folds == 1:
            return [(None, rows[:0])]
        assigned = self._data.folds(rows, config.folds, config.seed)
        return [(fold, rows[assigned == fold]) for fold in range(config.folds)]

    def _fit(
        self, config: Config, fold: tuple[int | None, NDArray[np.int64]], pixels: PreparedFrames, number: int, count: int
    ) -> Fitted:
        """Train one network; of several, each has its own place in the workspace and is a child run in MLflow."""
        is_alone, (name, held_out) = count == 1, fold
        tracker = self._tracker
        if not is_alone:
            own = flatten(config.published()) | ({} if name is None else {"fold": str(name)})
            tracker = tracker.child(f"network-{number}", f"{config.name}-network-{number}", own)
        fitting = Fitting(
            config,
            self._data,
            pixels,
            train=np.setdiff1d(self._data.rows(Split.TRAIN), held_out),
            tune=self._data.rows(Split.TUNE),
            workspace=self._workspace if is_alone else self._workspace.of_network(number),
            cache=self._cache,
            compute=self._compute,
            log=tracker.log_metrics,
            progress=self._progress,
        )
        with nullcontext() if is_alone else tracker.ending():
            fitted = fitting.fit(*start_network(config, self._data.labels))
        return replace(fitted, fold=name, held_out=held_out)

    def _decode(self) -> PreparedFrames:
        """Return every frame on the network's grid, kept on disk."""
        config, records, size = self._config, self._data.records, self._preprocessing.size
        frames = prepared_frames(records, self._data.sources, self._preprocessing, config.limits, config.gate())
        rows = self._progress(frames, "reading frames", len(records))
        return self._workspace.frames(rows, (len(records), 1, size, size))

    def _write(self, out: Path, fitted: Sequence[Fitted], assessment: Assessment) -> Bundle:
        config, data, reference = self._config, self._data, assessment.reference
        members = tuple(_member(*pair) for pair in enumerate(zip(fitted, assessment.maps, strict=True), 1))
        metrics = {
            "splits": {split.value: data.counts(split) for split in TRAINING_SPLITS},
            "frames_without_patient": data.frames_without_patient(),
            "frames_without_label": data.frames_without_label,
            "label_levels": data.label_levels(),
            "split": Split.TEST.value,
            "evaluation": assessment.evaluation.to_json() if assessment.evaluation else None,
            "states": assessment.states.model_dump(mode="json") if assessment.states else None,
            "refusals": assessment.refusals.model_dump(mode="json") if assessment.refusals else None,
            "levels": assessment.level_reports,
            "out_of_fold": assessment.out_of_fold.to_json() if assessment.out_of_fold else None,
            "robustness": assessment.robustness,
            "networks": [
                {
                    "architecture": one.architecture,
                    "seed": one.seed,
                    "fold": one.fold,
                    "head": dict(one.head),
                    "epochs": one.course.history,
                    "best_epoch": one.course.best_epoch,
                }
                for one in fitted
            ],
        }
        fields: dict[str, Any] = {
            "members": members,
            "average": config.ensemble.average,
            "labels": data.labels,
            "normal_label": config.data.normal_label,
            "urgency": order_of_urgency(config, data.labels),
            "label_names": {label: words for label, words in config.data.label_names.items() if label in data.labels},
            "task": config.task,
            "preprocessing": self._preprocessing,
            "calibration": assessment.calibration,
            "operating_points": assessment.points,
            "heatmap": assessment.heatmap,
            "intended_use": config.intended_use(),
            "quality": config.quality,
            "limits": config.limits,
            "conformal": Conformal(alpha=config.evaluate.conformal_alpha, bands=assessment.bands, measured=assessment.states),
            "outliers": Outliers(
                threshold=reference.threshold,
                calibration_frames=reference.calibration_frames,
                calibration_patients=reference.calibration_patients,
                measured=assessment.refusals,
            ),
            "provenance": provenance(config, self._index, self._tracker.run_id),
            "levels": assessment.levels,
        }
        card = model_card(draft_manifest(**fields), metrics, ranked_patients=RANKED_PATIENTS)
        contents = {
            METRICS: (json.dumps(metrics, indent=2) + "\n").encode(),
            MODEL_CARD: card.encode(),
            REFERENCE: reference.to_bytes(),
            HOME: assessment.home.to_bytes(),
            CONFIG: yaml.safe_dump(config.published(), sort_keys=False).encode(),
        }
        if assessment.attention:
            contents[ATTENTION] = assessment.attention
        for member, one in zip(members, fitted, strict=True):
            contents |= {member.graph: one.graph, member.weights: safetensors.torch.save(dict(one.network.body.state_dict()))}
        return write_bundle(out, contents | {f"plots/{name}": picture for name, picture in assessment.plots.items()}, **fields)


def _member(number: int, made: tuple[Fitted, MapSupport]) -> Member:
    """Return what the manifest says of a network; files of the first have the plain names."""
    (fitted, maps), suffix = made, "" if number == 1 else f"-{number}"
    mean, std = (tuple(values.flatten().tolist()) for values in (fitted.network.mean, fitted.network.std))
    return Member(
        architecture=fitted.architecture,
        size=fitted.size,
        blocks=tuple(place + 1 for place in fitted.network.blocks),
        started_from=fitted.started_from,
        graph=GRAPH.replace(".", f"{suffix}."),
        weights=WEIGHTS.replace(".", f"{suffix}."),
        normalisation=Normalisation(mean=mean, std=std),
        maps=maps,
    )
