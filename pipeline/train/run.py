"""One training run, from an index to a bundle, with its steps in the order in which they happen."""

import json
from collections.abc import Iterator
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
from pipeline.model.networks import Network, create_network
from pipeline.model.weights import load_weights
from pipeline.predictions import DecisionRule, State
from pipeline.progress import Progress, silent, working
from pipeline.train.assessment import Assessment, assess_network
from pipeline.train.explanation import LESION_FRAMES, Examined, check_explanations, full_scale, lesion_masks
from pipeline.train.finetune import Augmentation, Course, FrameSet, finetune
from pipeline.train.head import class_weights, fit_head, remove_class_weights
from pipeline.train.tracking import Tracker, flatten, model_name, provenance
from pipeline.train.training_data import TrainingData, select_training_data
from pipeline.train.workspace import Workspace, open_workspace
from pipeline.workers.cores import usable_cores

_CHECKED_FRAMES = 4


def train(config: Config, index: Index, out: Path | str, resume: bool = False, progress: Progress = silent) -> Bundle:
    """Train a network on an index and write the bundle.

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

    Raises
    ------
    ConfigError
        If configuration and index do not fit together.
    InputError
        If the index cannot be learned from, or its files have changed.
    TrainingError
        If the loss is not a number.
    """
    out, data = Path(out), select_training_data(config, index)
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
    training = _Training(config, index, data, workspace, tracker, progress)
    try:
        with threadpool_limits(config.train.threads or usable_cores(), "blas"):
            bundle = training.run(out)
        working(progress, "registering the bundle in MLflow", lambda: tracker.log_bundle(out, model_name(config)))
    except KeyboardInterrupt:
        tracker.finish("KILLED")
        raise
    except Exception:
        tracker.finish("FAILED")
        raise
    tracker.finish()
    workspace.remove()
    return bundle


class _Training:
    """The steps of one run, and what all of them need."""

    def __init__(
        self, config: Config, index: Index, data: TrainingData, workspace: Workspace, tracker: Tracker, progress: Progress
    ) -> None:
        self._config, self._index, self._data = config, index, data
        self._workspace, self._tracker, self._progress = workspace, tracker, progress
        self._preprocessing = config.network_preprocessing()

    def run(self, out: Path) -> Bundle:
        """Train, assess and write the bundle."""
        settings = self._config.train
        torch.set_num_threads(settings.threads or usable_cores())
        torch.manual_seed(settings.seed)
        network = create_network(self._config.model.architecture, len(self._data.labels)).eval()
        load_weights(network, self._config.model.architecture, self._config.model.weights)
        check_feature_map(network, self._preprocessing.size)
        pixels = self._decode()
        self._fit_head(network, pixels)
        course = self._finetune(network, pixels) if settings.finetune.epochs else Course()
        remove_class_weights(network.classifier, self._class_weights())
        graph = working(self._progress, "exporting the network", lambda: export_graph(network, self._preprocessing.size))
        checked = np.ascontiguousarray(pixels[self._data.rows(Split.CALIBRATION)[:_CHECKED_FRAMES]])
        check_graph(network, graph, checked)
        assessment = working(
            self._progress, "measuring the test split", lambda: assess_network(self._config, self._data, graph, pixels)
        )
        if assessment.evaluation:
            self._tracker.log_metrics(flat_figures(assessment.evaluation.to_json(), "test"))
        heatmap = working(
            self._progress, "checking the heatmaps", lambda: self._check_heatmaps(network, graph, pixels, assessment)
        )
        return self._write(out, network, graph, assessment, heatmap, course)

    def _decode(self) -> FloatArray:
        """Return every frame on the network's grid, of shape (n, 1, size, size), as a memory map."""
        records, size = self._data.records, self._preprocessing.size
        frames = prepared_frames(records, self._data.sources, self._preprocessing, self._config.limits)
        rows = self._progress(frames, "reading frames", len(records))
        return self._workspace.array("frames", rows, (len(records), 1, size, size))

    def _fit_head(self, network: Network, pixels: FloatArray) -> None:
        """Fit the classifier on the pooled features of the frozen network, computed once by the inference engine.

        If training mirrors frames at random, the head learns from every frame and from its mirror image.
        """
        data, everything = self._data, np.arange(len(pixels))
        train, tune = data.rows(Split.TRAIN), data.rows(Split.TUNE)
        graph = working(self._progress, "exporting the frozen network", lambda: export_graph(network, self._preprocessing.size))
        engine = Engine(graph, self._config.train.threads)
        features = self._workspace.array("features", *self._features(network, engine, pixels, everything))
        seen, truth = features[train], data.targets[train]
        if self._config.train.augment.flip_columns:
            mirrored = self._workspace.array("mirrored", *self._features(network, engine, pixels[..., ::-1], train))
            seen, truth = np.concatenate([seen, mirrored]), np.concatenate([truth, truth])
        examples = np.asarray(seen, np.float64), truth
        others = np.asarray(features[tune], np.float64), data.targets[tune]
        activation, settings = self._config.model.activation, self._config.train.head
        weights = self._class_weights()
        head = working(self._progress, "fitting the head", lambda: fit_head(examples, others, weights, activation, settings))
        with torch.no_grad():
            network.classifier.weight.copy_(torch.from_numpy(head.weight))
            network.classifier.bias.copy_(torch.from_numpy(head.bias))
        self._tracker.log_metrics({"head_tune_loss": head.tune_loss, "head_weight_decay": head.weight_decay})

    def _features(
        self, network: Network, engine: Engine, pixels: FloatArray, rows: NDArray[np.int64]
    ) -> tuple[Iterator[FloatArray], tuple[int, int]]:
        """Return the pooled features of some frames, computed when they are first read, and their shape."""

        def compute() -> Iterator[FloatArray]:
            parts = engine.parts(len(rows))
            for part in self._progress(parts, "computing features", len(parts)):
                _, features = engine.run(pixels[rows[part]])
                with torch.no_grad():
                    yield from network.pooled(torch.from_numpy(features)).numpy()

        return compute(), (len(rows), network.classifier.in_features)

    def _class_weights(self) -> NDArray[np.float64]:
        targets = self._data.targets[self._data.rows(Split.TRAIN)]
        if not self._config.train.class_weights:
            return np.ones(targets.shape[1])
        return class_weights(targets, self._config.model.activation)

    def _finetune(self, network: Network, pixels: FloatArray) -> Course:
        settings, data = self._config.train, self._data
        train, tune = (FrameSet(pixels, data.targets, data.rows(split)) for split in (Split.TRAIN, Split.TUNE))
        return finetune(
            network,
            train=train,
            tune=tune,
            class_weights=torch.from_numpy(self._class_weights()).float(),
            activation=self._config.model.activation,
            settings=settings.finetune,
            augmentation=Augmentation(settings.augment, self._config.preprocessing.size),
            seed=settings.seed,
            checkpoint=self._workspace.checkpoint,
            on_epoch=lambda epoch, metrics: self._tracker.log_metrics(metrics, epoch),
            progress=self._progress,
        )

    def _check_heatmaps(self, network: Network, graph: bytes, pixels: FloatArray, assessment: Assessment) -> HeatmapSupport:
        """Choose how heatmaps are made and on which scale, and check them, all on frames of the calibration split."""
        rows = self._data.rows(Split.CALIBRATION)
        frames = np.ascontiguousarray(pixels[rows[:LESION_FRAMES]])
        support = heatmap_support(network, frames[:_CHECKED_FRAMES], self._config.heatmap.method)
        examined = Examined(network, Engine(graph, self._config.train.threads), support, frames, self._config.train.seed)
        known = rows[:LESION_FRAMES]
        checks = check_explanations(examined, lambda cells: lesion_masks(self._data, known, self._preprocessing, cells))
        has, found = self._found(examined.engine, pixels, rows, assessment)
        full = full_scale(examined, pixels, rows, found if found.any() else has)
        return support.model_copy(update={"checks": checks, "full_scale": full, "true_positives": int(found.sum())})

    def _found(
        self, engine: Engine, pixels: FloatArray, rows: NDArray[np.int64], assessment: Assessment
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which findings the frames have, and which of these the bundle would call positive, of shape (rows, labels)."""
        labels, config = self._data.labels, self._config
        has = (self._data.targets[rows] == 1) & np.array([label != config.data.normal_label for label in labels])
        chances = probabilities(engine.logits(pixels[row] for row in rows), config.model.activation, assessment.temperature)
        rule = DecisionRule.of(labels, assessment.points, assessment.bands, config.model.activation, config.data.normal_label)
        return has, has & np.asarray(rule.states(chances) == State.POSITIVE, bool)

    def _write(
        self, out: Path, network: Network, graph: bytes, assessment: Assessment, heatmap: HeatmapSupport, course: Course
    ) -> Bundle:
        config, data, reference = self._config, self._data, assessment.reference
        mean, std = (tuple(values.flatten().tolist()) for values in (network.mean, network.std))
        metrics = {
            "splits": {split.value: data.counts(split) for split in Split},
            "frames_without_patient": data.frames_without_patient(),
            "split": Split.TEST.value,
            "evaluation": assessment.evaluation.to_json() if assessment.evaluation else None,
            "states": assessment.states.model_dump(mode="json") if assessment.states else None,
            "refusals": assessment.refusals.model_dump(mode="json") if assessment.refusals else None,
            "epochs": course.history,
            "best_epoch": course.best_epoch,
        }
        fields: dict[str, Any] = {
            "architecture": config.model.architecture,
            "labels": data.labels,
            "normal_label": config.data.normal_label,
            "urgency": tuple(label for label in config.data.urgency if label in data.labels),
            "label_names": {label: words for label, words in config.data.label_names.items() if label in data.labels},
            "activation": config.model.activation,
            "preprocessing": self._preprocessing,
            "normalisation": Normalisation(mean=mean, std=std),
            "temperature": assessment.temperature,
            "operating_points": assessment.points,
            "heatmap": heatmap,
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
        }
        card = model_card(
            draft_manifest(**fields), metrics, weights=config.published()["model"]["weights"], ranked_patients=RANKED_PATIENTS
        )
        contents = {
            GRAPH: graph,
            WEIGHTS: safetensors.torch.save(dict(network.body.state_dict())),
            METRICS: (json.dumps(metrics, indent=2) + "\n").encode(),
            MODEL_CARD: card.encode(),
            REFERENCE: reference.to_bytes(),
            CONFIG: yaml.safe_dump(config.published(), sort_keys=False).encode(),
        }
        return write_bundle(out, contents | {f"plots/{name}": picture for name, picture in assessment.plots.items()}, **fields)
