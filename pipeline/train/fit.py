"""Fits one network on one division of the index: a linear head on frozen features, then as many layers as `train.way` says.

Nothing here learns from the calibration or the test split; the exported graph is compared with the network on a few calibration
frames. What a network is worth is measured by `pipeline.train.assessment`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from pipeline.config import Config, Way
from pipeline.evaluate.calibration import Float64
from pipeline.frames import FloatArray, ImageRecord, Split
from pipeline.model.bundle import StartingWeights
from pipeline.model.engine import Engine
from pipeline.model.export import check_graph, export_graph, with_classifier
from pipeline.model.networks import Network, create_network
from pipeline.model.weights import load_weights, set_normalisation
from pipeline.plugins import find_plugin
from pipeline.progress import Progress, working
from pipeline.train.augment import Augmentation
from pipeline.train.devices import Compute
from pipeline.train.features import FeatureCache, hashed
from pipeline.train.head import Head, fit_head, fit_probe
from pipeline.train.tasks import Objective, find_loss
from pipeline.train.trainer import Course, FrameSet, finetune, mean_auroc
from pipeline.train.training_data import TrainingData
from pipeline.train.workspace import PreparedFrames, Workspace
from pipeline.version import scoring_versions

Log = Callable[[Mapping[str, float], int], None]

_COMPARED_FRAMES = 4
_KEPT_AT_ONCE = 512
_FORMAT = 2
"""Raised by hand if features become others though nothing that is hashed does."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """The head on frozen features that training started from.

    Parameters
    ----------
    rows
        The frames of the train and the tune split, rising.
    features
        Their pooled features, of shape (rows, channels).
    weight_decay
        Of the head.
    run
        Returns the logits, (n, labels), of frames of shape (n, 1, size, size).
    is_final
        Whether no layer was trained after it.
    """

    rows: NDArray[np.int64]
    features: Float64
    weight_decay: float
    run: Callable[[FloatArray], FloatArray]
    is_final: bool


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A trained network.

    Parameters
    ----------
    architecture
        Its name.
    size
        Rows and columns that it reads.
    started_from
        The weights that its training started from.
    network
        With its best weights; its probabilities are those of the training split.
    graph
        The network as ONNX, compared with it.
    course
        Of the epochs; empty if only the head was fitted.
    head
        Figures of the head before them.
    seed
        That it was trained from.
    fold
        The one that it was trained without; None if there are no folds.
    held_out
        The frames of that fold.
    probe
        The head that training started from; None if it started from random weights, or robustness is not measured.
    """

    architecture: str
    size: int
    started_from: StartingWeights
    network: Network
    graph: bytes
    course: Course
    head: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    fold: int | None = None
    held_out: NDArray[np.int64] = field(default_factory=lambda: np.array([], np.int64))
    probe: Probe | None = None


def start_network(config: Config, labels: Sequence[str]) -> tuple[Network, StartingWeights]:
    """Return the network that training starts from, and which weights it has; its head is drawn from the seed.

    Raises
    ------
    ConfigError
        If there is no such network or loss, it cannot read frames of this size, or the weights do not exist.
    DownloadError
        If weights cannot be downloaded.
    InputError
        If a file holds weights of another network.
    """
    torch.manual_seed(config.train.seed)
    find_loss(config)
    model, size = config.model, config.preprocessing.size
    own_size = model.size or size
    network = create_network(
        model.architecture, len(labels), own_size, global_pool=model.global_pool, blocks=model.blocks
    ).eval()
    network.resize_frames(size, own_size)
    set_normalisation(network, input_range=model.input_range, mean=model.mean, std=model.std)
    started_from = load_weights(network, model.architecture, model.weights)
    return network, started_from


class Fitting:
    """Training of one network on one division of the index.

    Parameters
    ----------
    config
        The settings; `train.way` says which layers are trained.
    data
        Targets and splits.
    pixels
        All frames on the network's grid.
    train, tune
        The frames that weights learn from, and those that choose between weight decays and epochs.
    workspace
        Keeps what a killed run needs to resume.
    cache
        Of the features of frozen networks.
    compute
        The device, and the other processes of the run.
    log
        Gets the figures of the head, and of each epoch with its number.
    progress
        Shows the progress of long steps.
    """

    def __init__(
        self,
        config: Config,
        data: TrainingData,
        pixels: PreparedFrames,
        *,
        train: NDArray[np.int64],
        tune: NDArray[np.int64],
        workspace: Workspace,
        cache: FeatureCache,
        compute: Compute,
        log: Log,
        progress: Progress,
    ) -> None:
        self._config, self._data, self._pixels, self._train, self._tune = config, data, pixels, train, tune
        self._workspace, self._compute, self._log, self._progress = workspace, compute, log, progress
        is_ours = find_plugin("network", config.model.architecture) is None
        self._cache = cache if is_ours else FeatureCache(None)  # the code of a plug-in changes without a new version
        self._engine: Engine | None = None
        self._probe: Probe | None = None
        self._start: tuple[bytes, tuple[FloatArray, FloatArray]] | None = None
        self._fits_tune = config.train.way is Way.PROBE  # there is nothing else that the tune split would have to choose
        learned = np.union1d(train, tune) if self._fits_tune else train
        self.objective = Objective(config.task, config.train.imbalance, data.targets[learned], find_loss(config))

    def fit(self, network: Network, started_from: StartingWeights) -> Fitted:
        """Train a network, and export it.

        Parameters
        ----------
        network, started_from
            As from `start_network`; the network is changed in place.

        Raises
        ------
        TrainingError
            If the loss is not a number, or the exported graph differs from the network.
        """
        config, data = self._config, self._data
        if config.train.way is Way.PROBE:
            with torch.no_grad():
                network.classifier.bias.copy_(torch.arange(1, len(data.labels) + 1))  # one of zeros is left out of the graph
            self.frozen(network)  # before its classifier changes
        head, course = self.learn(network)
        graph = working(self._progress, "exporting the network", lambda: self.exported(network))
        check_graph(network, graph, np.ascontiguousarray(self._pixels[data.rows(Split.CALIBRATION)[:_COMPARED_FRAMES]]))
        size = config.model.size or config.preprocessing.size
        known = (config.model.architecture, size, started_from, network, graph, course, head, config.train.seed)
        return Fitted(*known, probe=self._probe)

    @property
    def starts_random(self) -> bool:
        """Whether all layers are trained from random weights; no head fits these, and they have no batch statistics to keep."""
        return self._config.train.way is Way.FULL and self._config.model.weights == "none"

    def learn(self, network: Network) -> tuple[dict[str, float], Course]:
        """Train a network in place as `train.way` says, without exporting it.

        Returns
        -------
        tuple
            Figures of the head, which are empty if it started from random weights, and the course of the epochs after it,
            which is empty if only the head was fitted.

        Raises
        ------
        TrainingError
            If the loss is not a number.
        """
        head = {} if self.starts_random else self.fit_head(network)
        course = Course() if self._config.train.way is Way.PROBE else self.finetune(network)
        self.objective.restore_prior(network.classifier)
        return head, course

    def fit_head(self, network: Network) -> dict[str, float]:
        """Fit the classifier on the pooled features of the frozen network, computed once by the inference engine.

        If training mirrors frames at random, the head learns from every frame and from its mirror image. The way `probe` learns
        from the train and the tune split, and folds of their patients choose the weight decay. For the other ways the tune
        split chooses it, since it has to choose between epochs as well.
        """
        objective, settings = self.objective, self._config.train.head
        if self._fits_tune:
            rows = np.union1d(self._train, self._tune)
            views, targets, folds = self._views(network, rows), self._data.targets[rows], self._inner_folds(rows)
            seen = views[0]
            head = working(self._progress, "fitting the head", lambda: fit_probe(views, targets, folds, objective, settings))
        else:
            views = self._views(network, self._train)
            examples = np.concatenate(views), np.concatenate([self._data.targets[self._train]] * len(views))
            others = np.asarray(self._features(network, self._tune), np.float64), self._data.targets[self._tune]
            head = working(self._progress, "fitting the head", lambda: fit_head(examples, others, objective, settings))
            rows = np.union1d(self._train, self._tune)
            seen = np.empty((len(rows), others[0].shape[1]))
            for part, values in ((self._train, views[0]), (self._tune, others[0])):
                seen[np.searchsorted(rows, part)] = values
        with torch.no_grad():
            network.classifier.weight.copy_(torch.from_numpy(head.weight))
            network.classifier.bias.copy_(torch.from_numpy(head.bias))
        if self._config.evaluate.robustness:
            engine, weight, bias = self.frozen(network), head.weight, head.bias
            start = network if network.is_averaged else deepcopy(network)  # a mean has no weights that training changes

            def run(pixels: FloatArray) -> FloatArray:
                found = [engine.run(pixels[part])[1] for part in engine.parts(len(pixels))]
                with torch.no_grad():
                    pooled = start.pooled(torch.from_numpy(np.concatenate(found))).numpy()
                return np.asarray(pooled @ weight.T + bias, np.float32)

            self._probe = Probe(rows, seen, head.weight_decay, run, self._fits_tune)
        figures = {"head_tune_loss": head.tune_loss, "head_weight_decay": head.weight_decay}
        self._log(figures | self._figures_of_probe(head, targets) if self._fits_tune else figures, 0)
        return figures

    def _figures_of_probe(self, head: Head, targets: NDArray[np.float64]) -> dict[str, float]:
        """Return what fine-tuning measures on the tune split, here on the folds that the head was fitted without."""
        known = ~np.isnan(head.tune_logits).any(axis=1)
        area = mean_auroc(head.tune_logits[known], targets[known], self._config.task.activation)
        return {"tune_loss": head.tune_loss} | ({"tune_auroc": area} if math.isfinite(area) else {})

    def _views(self, network: Network, rows: NDArray[np.int64]) -> list[Float64]:
        """Return the features of some frames as they are and, if training mirrors frames, of their mirror images."""
        ways = (False, True) if self._config.train.augment.flip_columns else (False,)
        return [np.asarray(self._features(network, rows, is_mirrored), np.float64) for is_mirrored in ways]

    def _inner_folds(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the fold of each of these frames; there are fewer folds if there are fewer patients."""
        patients = len(set(self._data.patients(rows)))
        return self._data.folds(rows, min(self._config.train.head.folds, patients), self._config.train.seed)

    def _features(self, network: Network, rows: NDArray[np.int64], is_mirrored: bool = False) -> FloatArray:
        """Return the pooled features of some frames, or of their mirror images, of shape (rows, channels).

        What the cache does not have is computed, and kept in it a few frames at a time, so that a killed run loses little.
        """
        name = self._set_name(network, is_mirrored)
        frames = [_frame_name(self._data.records[row]) for row in rows]
        found = self._cache.read(name, frames)
        missing = np.array([place for place, frame in enumerate(frames) if frame not in found], np.int64)
        if len(missing):
            engine = self.frozen(network)
            parts, computed = engine.parts(len(missing)), dict[str, FloatArray]()
            for part in self._progress(parts, "computing features", len(parts)):
                pixels = self._pixels[rows[missing[part]]]
                _, features = engine.run(pixels[..., ::-1] if is_mirrored else pixels)
                with torch.no_grad():
                    pooled = network.pooled(torch.from_numpy(features)).numpy()
                computed |= {frames[place]: one for place, one in zip(missing[part], pooled, strict=True)}
                if len(computed) >= _KEPT_AT_ONCE:
                    self._cache.write(name, computed)
                    found, computed = found | computed, {}
            self._cache.write(name, computed)
            found |= computed
        return np.stack([found[frame] for frame in frames])

    def frozen(self, network: Network) -> Engine:
        """Return what computes features: the network as it started, exported once."""
        if self._engine is None:
            size = self._config.preprocessing.size
            graph = working(self._progress, "exporting the frozen network", lambda: export_graph(network, size))
            self._engine = Engine(graph, self._config.train.threads)
            self._start = graph, _classifier(network)
        return self._engine

    def exported(self, network: Network) -> bytes:
        """Return the graph of the trained network; a probe's is that of the frozen one with another classifier."""
        changed = None
        if self._fits_tune and self._start is not None:
            graph, before = self._start
            changed = with_classifier(graph, before, _classifier(network))
        return changed or export_graph(network, self._config.preprocessing.size)

    def _set_name(self, network: Network, is_mirrored: bool) -> str:
        """Return the hash of all that features depend on beside the frames: network, weights, pixels' way, and libraries."""
        own = network.classifier_name.rpartition(".")[0]
        state = {name: value for name, value in network.state_dict().items() if not name.startswith(f"body.{own}.")}
        settings = {
            "model": self._config.model.model_dump(mode="json", exclude={"weights"}),
            "preprocessing": asdict(self._config.network_preprocessing()),
            "mean": network.mean.flatten().tolist(),
            "std": network.std.flatten().tolist(),
            "mirrored": is_mirrored,
            "format": _FORMAT,
            "versions": dict(scoring_versions()),
        }
        weights = safetensors.torch.save({name: value.contiguous() for name, value in state.items()})
        return hashed(json.dumps(settings, sort_keys=True), weights)

    def finetune(self, network: Network) -> Course:
        """Train the last groups of layers, or all of them, and leave the network with its best weights."""
        settings, data = self._config.train, self._data
        train, tune = (FrameSet(self._pixels, data.targets, rows) for rows in (self._train, self._tune))
        all_groups = {"groups": len(network.parameter_groups())}
        return finetune(
            network,
            train=train,
            tune=tune,
            objective=self.objective,
            settings=settings.finetune.model_copy(update=all_groups if settings.way is Way.FULL else {}),
            augmentation=Augmentation(settings.augment, self._config.plugins),
            seed=settings.seed,
            checkpoint=self._workspace.checkpoint,
            on_epoch=lambda epoch, metrics: self._log(metrics, epoch),
            progress=self._progress,
            trains_statistics=self.starts_random,
            workers=settings.workers,
            compute=self._compute,
        )


def _classifier(network: Network) -> tuple[FloatArray, FloatArray]:
    """Return copies of the weight and the bias of the classifier."""
    weight, bias = (values.detach().numpy().copy() for values in (network.classifier.weight, network.classifier.bias))
    return weight, bias


def _frame_name(record: ImageRecord) -> str:
    """Return the hash of a frame: of the content of its file, and its place in it."""
    key = record.key
    return hashed(record.file_sha256, key.series_instance_uid, key.sop_instance_uid, str(key.frame_number))
