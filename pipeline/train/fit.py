"""Fits one network on one division of the index: a linear head on frozen features, then as many layers as `train.way` says.

Nothing here learns from the calibration or the test split; the exported graph is compared with the network on a few calibration
frames. What a network is worth is measured by `pipeline.train.assessment`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import Config, Way
from pipeline.frames import FloatArray, Split
from pipeline.model.engine import Engine
from pipeline.model.export import check_feature_map, check_graph, export_graph
from pipeline.model.networks import Network, create_network
from pipeline.model.weights import load_weights
from pipeline.progress import Progress, working
from pipeline.train.finetune import Augmentation, Course, FrameSet, finetune
from pipeline.train.head import class_weights, fit_head, remove_class_weights
from pipeline.train.tracking import Tracker
from pipeline.train.training_data import TrainingData
from pipeline.train.workspace import Workspace

_COMPARED_FRAMES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A trained network.

    Parameters
    ----------
    architecture
        Its name.
    network
        With its best weights; its probabilities are those of the training split.
    graph
        The network as ONNX, compared with it.
    course
        Of the epochs; empty if only the head was fitted.
    """

    architecture: str
    network: Network
    graph: bytes
    course: Course


def start_network(config: Config, labels: Sequence[str]) -> Network:
    """Return the network that training starts from: with its weights loaded, and a head of random weights drawn from the seed.

    Raises
    ------
    ConfigError
        If there is no such network, its last features are not a map, or the weights do not exist.
    DownloadError
        If weights cannot be downloaded.
    InputError
        If a file holds weights of another network.
    """
    torch.manual_seed(config.train.seed)
    network = create_network(config.model.architecture, len(labels)).eval()
    load_weights(network, config.model.architecture, config.model.weights)
    check_feature_map(network, config.preprocessing.size)
    return network


def fit(
    network: Network,
    config: Config,
    data: TrainingData,
    pixels: FloatArray,
    *,
    train: NDArray[np.int64],
    tune: NDArray[np.int64],
    workspace: Workspace,
    tracker: Tracker,
    progress: Progress,
) -> Fitted:
    """Train one network.

    Parameters
    ----------
    network
        As from `start_network`; changed in place.
    config
        The settings; `train.way` says which layers are trained.
    data
        Targets and splits.
    pixels
        All frames on the network's grid, float32 of shape (n, 1, size, size) in [0, 1].
    train, tune
        The frames that weights learn from, and those that choose between weight decays and epochs.
    workspace
        Keeps what a killed run needs to resume.
    tracker
        Gets the figures of the head and of each epoch.
    progress
        Shows the progress of long steps.

    Raises
    ------
    TrainingError
        If the loss is not a number, or the exported graph differs from the network.
    """
    fitting = _Fitting(config, data, pixels, train, tune, workspace, tracker, progress)
    if config.train.way is not Way.FULL or config.model.weights != "none":
        fitting.fit_head(network)
    course = Course() if config.train.way is Way.PROBE else fitting.finetune(network)
    remove_class_weights(network.classifier, fitting.class_weights)
    graph = working(progress, "exporting the network", lambda: export_graph(network, config.preprocessing.size))
    check_graph(network, graph, np.ascontiguousarray(pixels[data.rows(Split.CALIBRATION)[:_COMPARED_FRAMES]]))
    return Fitted(config.model.architecture, network, graph, course)


class _Fitting:
    """What the steps of `fit` share."""

    def __init__(
        self,
        config: Config,
        data: TrainingData,
        pixels: FloatArray,
        train: NDArray[np.int64],
        tune: NDArray[np.int64],
        workspace: Workspace,
        tracker: Tracker,
        progress: Progress,
    ) -> None:
        self._config, self._data, self._pixels, self._train, self._tune = config, data, pixels, train, tune
        self._workspace, self._tracker, self._progress = workspace, tracker, progress
        targets = data.targets[train]
        weighted = config.train.class_weights
        self.class_weights = class_weights(targets, config.model.activation) if weighted else np.ones(targets.shape[1])

    def fit_head(self, network: Network) -> None:
        """Fit the classifier on the pooled features of the frozen network, computed once by the inference engine.

        If training mirrors frames at random, the head learns from every frame and from its mirror image.
        """
        size, pixels, targets = self._config.preprocessing.size, self._pixels, self._data.targets
        graph = working(self._progress, "exporting the frozen network", lambda: export_graph(network, size))
        engine = Engine(graph, self._config.train.threads)
        everything = np.arange(len(pixels))
        features = self._workspace.array("features", *self._features(network, engine, pixels, everything))
        seen, truth = features[self._train], targets[self._train]
        if self._config.train.augment.flip_columns:
            mirrored = self._workspace.array("mirrored", *self._features(network, engine, pixels[..., ::-1], self._train))
            seen, truth = np.concatenate([seen, mirrored]), np.concatenate([truth, truth])
        examples = np.asarray(seen, np.float64), truth
        others = np.asarray(features[self._tune], np.float64), targets[self._tune]
        activation, settings, weights = self._config.model.activation, self._config.train.head, self.class_weights
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

    def finetune(self, network: Network) -> Course:
        """Train the last groups of layers, or all of them, and leave the network with its best weights."""
        settings, data = self._config.train, self._data
        train, tune = (FrameSet(self._pixels, data.targets, rows) for rows in (self._train, self._tune))
        all_groups = {"groups": len(network.parameter_groups())}
        return finetune(
            network,
            train=train,
            tune=tune,
            class_weights=torch.from_numpy(self.class_weights).float(),
            activation=self._config.model.activation,
            settings=settings.finetune.model_copy(update=all_groups if settings.way is Way.FULL else {}),
            augmentation=Augmentation(settings.augment, self._config.preprocessing.size),
            seed=settings.seed,
            checkpoint=self._workspace.checkpoint,
            on_epoch=lambda epoch, metrics: self._tracker.log_metrics(metrics, epoch),
            progress=self._progress,
        )
