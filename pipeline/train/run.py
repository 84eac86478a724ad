"""One training run, from an index to a bundle: the whole story in the order in which it happens."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.config import Config
from pipeline.evaluate.calibration import probabilities
from pipeline.evaluate.metrics import flat_figures
from pipeline.evaluate.outliers import RANKED_PATIENTS
from pipeline.frames import FloatArray, Split
from pipeline.ingest.index import Index
from pipeline.ingest.network_input import prepared_frames
from pipeline.model.bundle import (
    CONFIG,
    GRAPH,
    METRICS,
    MODEL_CARD,
    REFERENCE,
    WEIGHTS,
    Bundle,
    Conformal,
    HeatmapSupport,
    Normalisation,
    Outliers,
    draft_manifest,
    write_bundle,
)
from pipeline.model.card import model_card
from pipeline.model.engine import Engine
from pipeline.model.export import check_feature_map, check_graph, export_graph, heatmap_support
from pipeline.model.networks import Network, create_network, load_weights
from pipeline.predictions import DecisionRule, State
from pipeline.progress import Progress, silent, working
from pipeline.settings import Preprocessing
from pipeline.train.assessment import Assessment, assess_network
from pipeline.train.explanation import LESION_FRAMES, Examined, check_explanations, full_scale, lesion_masks
from pipeline.train.finetune import Augmentation, Course, FrameSet, finetune
from pipeline.train.head import Examples, class_weights, fit_head, remove_class_weights
from pipeline.train.tracking import Tracker, flatten, model_name, provenance
from pipeline.train.training_data import TrainingData, select_training_data
from pipeline.train.workspace import Workspace, open_workspace
from pipeline.workers.cores import usable_cores

_CHECKED_FRAMES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What every step of a run needs."""

    config: Config
    data: TrainingData
    workspace: Workspace
    tracker: Tracker
    progress: Progress

    @property
    def preprocessing(self) -> Preprocessing:
        """From a frame to the network's input."""
        return self.config.network_preprocessing()


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What training leaves behind beside the network itself."""

    graph: bytes
    heatmap: HeatmapSupport
    assessment: Assessment
    course: Course


def train(config: Config, index: Index, out: Path, resume: bool = False, progress: Progress = silent) -> Bundle:
    """Train a network on an index and write the bundle.

    Parameters
    ----------
    config
        The settings.
    index
        Frames with labels and splits.
    out
        The bundle's folder; while training runs, its neighbour `NAME.work` holds what a killed run needs to go on.
    resume
        Go on with a run that was killed; the result is the same as without the kill.
    progress
        Shows what takes long.

    Raises
    ------
    ConfigError
        Where configuration and index do not go together.
    InputError
        Where the index cannot be learned from, or its files have changed.
    TrainingError
        Where the loss is not a number.
    """
    data = select_training_data(config, index)
    facts = json.dumps([config.model_dump(mode="json", exclude={"tracking"}), index.sha256], sort_keys=True)
    workspace = open_workspace(out, facts, resume)
    tracker = working(
        progress,
        "opening MLflow",
        lambda: Tracker(
            config.tracking,
            name=config.name,
            parameters=flatten(config.published()),
            dataset_name=index.name,
            dataset_sha256=index.sha256,
            run_id=workspace.run_id,
            left_run=workspace.left_run_id,
            remember=workspace.remember_run,
        ),
    )
    job = Job(config, data, workspace, tracker, progress)
    try:
        with threadpool_limits(config.train.threads or usable_cores(), "blas"):
            bundle = _run(job, index, out)
        working(progress, "handing the bundle to MLflow", lambda: tracker.log_bundle(out, model_name(config)))
    except KeyboardInterrupt:
        tracker.finish("KILLED")
        raise
    except Exception:
        tracker.finish("FAILED")
        raise
    tracker.finish()
    workspace.remove()
    return bundle


def _run(job: Job, index: Index, out: Path) -> Bundle:
    settings = job.config.train
    torch.set_num_threads(settings.threads or usable_cores())
    torch.manual_seed(settings.seed)
    network = create_network(job.config.model.architecture, len(job.data.labels)).eval()
    load_weights(network, job.config.model.architecture, job.config.model.weights)
    check_feature_map(network, job.preprocessing.size)
    pixels = _decode(job)
    _fit_head(job, network, pixels)
    course = _finetune(job, network, pixels) if settings.finetune.epochs else Course()
    remove_class_weights(network.classifier, _class_weights(job))
    graph = working(job.progress, "exporting the network", lambda: export_graph(network, job.preprocessing.size))
    checked = np.ascontiguousarray(pixels[job.data.rows(Split.CALIBRATION)[:_CHECKED_FRAMES]])
    check_graph(network, graph, checked)
    assessment = working(job.progress, "measuring the test split", lambda: assess_network(job.config, job.data, graph, pixels))
    if assessment.evaluation:
        job.tracker.log_metrics(flat_figures(assessment.evaluation.to_json(), "test"))
    heatmap = working(job.progress, "checking the heatmaps", lambda: _checked_heatmaps(job, network, graph, pixels, assessment))
    return _write(job, index, out, network, Fitted(graph, heatmap, assessment, course))


def _checked_heatmaps(job: Job, network: Network, graph: bytes, pixels: FloatArray, assessment: Assessment) -> HeatmapSupport:
    """Say how heatmaps are made, on which scale, and what the checks of them found, on frames of the calibration split."""
    rows = job.data.rows(Split.CALIBRATION)
    frames = np.ascontiguousarray(pixels[rows[:LESION_FRAMES]])
    support = heatmap_support(network, frames[:_CHECKED_FRAMES], job.config.heatmap.method)
    examined = Examined(network, Engine(graph, job.config.train.threads), support, frames, job.config.train.seed)
    known = rows[:LESION_FRAMES]
    checks = check_explanations(examined, lambda cells: lesion_masks(job.data, known, job.preprocessing, cells))
    has, found = _found(job, examined.engine, pixels, rows, assessment)
    full = full_scale(examined, pixels, rows, found if found.any() else has)
    return support.model_copy(update={"checks": checks, "full_scale": full, "true_positives": int(found.sum())})


def _found(
    job: Job, engine: Engine, pixels: FloatArray, rows: NDArray[np.int64], assessment: Assessment
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which of some frames have which findings, and which of these are true positives: of shape (rows, labels)."""
    labels, config = job.data.labels, job.config
    has = (job.data.targets[rows] == 1) & np.array([label != config.data.normal_label for label in labels])
    chances = probabilities(engine.logits(pixels[row] for row in rows), config.model.activation, assessment.temperature)
    rule = DecisionRule.of(labels, assessment.points, assessment.bands, config.model.activation, config.data.normal_label)
    return has, has & np.asarray(rule.states(chances) == State.POSITIVE, bool)


def _decode(job: Job) -> FloatArray:
    """Return every frame on the network's grid, of shape (n, 1, size, size), as a memory map."""
    records, size = job.data.records, job.preprocessing.size
    frames = prepared_frames(records, job.data.sources, job.preprocessing, job.config.limits)
    rows = job.progress(frames, "reading frames", len(records))
    return job.workspace.array("frames", rows, (len(records), 1, size, size))


def _fit_head(job: Job, network: Network, pixels: FloatArray) -> None:
    """Fit the classifier on the pooled features of the frozen network, computed once by the inference engine.

    Where training mirrors frames at random, the head learns from every frame and from its mirror image.
    """
    data, everything = job.data, np.arange(len(pixels))
    train, tune = data.rows(Split.TRAIN), data.rows(Split.TUNE)
    graph = working(job.progress, "exporting the frozen network", lambda: export_graph(network, job.preprocessing.size))
    engine = Engine(graph, job.config.train.threads)
    features = job.workspace.array("features", *_features(job, network, engine, pixels, everything))
    seen, truth = features[train], data.targets[train]
    if job.config.train.augment.flip_columns:
        mirrored = job.workspace.array("mirrored", *_features(job, network, engine, pixels[..., ::-1], train))
        seen, truth = np.concatenate([seen, mirrored]), np.concatenate([truth, truth])
    examples = Examples(np.asarray(seen, np.float64), truth)
    judged = Examples(np.asarray(features[tune], np.float64), data.targets[tune])
    activation, settings = job.config.model.activation, job.config.train.head
    weights = _class_weights(job)
    head = working(job.progress, "fitting the head", lambda: fit_head(examples, judged, weights, activation, settings))
    with torch.no_grad():
        network.classifier.weight.copy_(torch.from_numpy(head.weight))
        network.classifier.bias.copy_(torch.from_numpy(head.bias))
    job.tracker.log_metrics({"head_tune_loss": head.tune_loss, "head_weight_decay": head.weight_decay})


def _features(
    job: Job, network: Network, engine: Engine, pixels: FloatArray, rows: NDArray[np.int64]
) -> tuple[Iterator[FloatArray], tuple[int, int]]:
    """Return the pooled features of some frames, computed only when they are asked for, and the shape they will have."""

    def compute() -> Iterator[FloatArray]:
        parts = engine.parts(len(rows))
        for part in job.progress(parts, "computing features", len(parts)):
            _, features = engine.run(pixels[rows[part]])
            with torch.no_grad():
                yield from network.pooled(torch.from_numpy(features)).numpy()

    return compute(), (len(rows), network.classifier.in_features)


def _class_weights(job: Job) -> NDArray[np.float64]:
    targets = job.data.targets[job.data.rows(Split.TRAIN)]
    if not job.config.train.class_weights:
        return np.ones(targets.shape[1])
    return class_weights(targets, job.config.model.activation)


def _finetune(job: Job, network: Network, pixels: FloatArray) -> Course:
    settings, data = job.config.train, job.data
    train, tune = (FrameSet(pixels, data.targets, data.rows(split)) for split in (Split.TRAIN, Split.TUNE))
    return finetune(
        network,
        train=train,
        tune=tune,
        class_weights=torch.from_numpy(_class_weights(job)).float(),
        activation=job.config.model.activation,
        settings=settings.finetune,
        augmentation=Augmentation(settings.augment, job.config.preprocessing.size),
        seed=settings.seed,
        checkpoint=job.workspace.checkpoint,
        on_epoch=lambda epoch, metrics: job.tracker.log_metrics(metrics, epoch),
        progress=job.progress,
    )


def _write(job: Job, index: Index, out: Path, network: Network, fitted: Fitted) -> Bundle:
    config, data, assessment = job.config, job.data, fitted.assessment
    origin = provenance(config, index, job.tracker.run_id)
    metrics = {
        "splits": {split.value: data.counts(split) for split in Split},
        "frames_without_patient": data.frames_without_patient(),
        "split": Split.TEST.value,
        "evaluation": assessment.evaluation.to_json() if assessment.evaluation else None,
        "states": assessment.states.model_dump(mode="json") if assessment.states else None,
        "refusals": assessment.refusals.model_dump(mode="json") if assessment.refusals else None,
        "epochs": fitted.course.history,
        "best_epoch": fitted.course.best_epoch,
    }
    fields: dict[str, Any] = {
        "architecture": config.model.architecture,
        "labels": data.labels,
        "normal_label": config.data.normal_label,
        "urgency": tuple(label for label in config.data.urgency if label in data.labels),
        "label_names": {label: words for label, words in config.data.label_names.items() if label in data.labels},
        "activation": config.model.activation,
        "preprocessing": job.preprocessing,
        "normalisation": Normalisation(mean=tuple(network.mean.flatten().tolist()), std=tuple(network.std.flatten().tolist())),
        "temperature": assessment.temperature,
        "operating_points": assessment.points,
        "heatmap": fitted.heatmap,
        "intended_use": config.intended_use(),
        "quality": config.quality,
        "limits": config.limits,
        "conformal": Conformal(alpha=config.evaluate.conformal_alpha, bands=assessment.bands, measured=assessment.states),
        "outliers": Outliers(
            threshold=assessment.reference.threshold,
            calibration_frames=assessment.reference.calibration_frames,
            calibration_patients=assessment.reference.calibration_patients,
            measured=assessment.refusals,
        ),
        "provenance": origin,
    }
    card = model_card(
        draft_manifest(**fields), metrics, weights=config.published()["model"]["weights"], ranked_patients=RANKED_PATIENTS
    )
    contents = {
        GRAPH: fitted.graph,
        WEIGHTS: safetensors.torch.save(dict(network.body.state_dict())),
        METRICS: (json.dumps(metrics, indent=2) + "\n").encode(),
        MODEL_CARD: card.encode(),
        REFERENCE: assessment.reference.to_bytes(),
        CONFIG: yaml.safe_dump(config.published(), sort_keys=False).encode(),
    }
    return write_bundle(out, contents | {f"plots/{name}": picture for name, picture in assessment.plots.items()}, **fields)
