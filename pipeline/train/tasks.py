"""What each task trains: its loss, how rare labels are treated, and how the probabilities stay those of the training split.

Whatever is done about rare labels, it must not make them look frequent: operating points, reports and `uncertain` rest on
probabilities. So each way to treat them comes with what undoes its effect on the prior, and `Objective` keeps the two together.
All losses are strictly proper scoring rules (Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation",
JASA 2007): with enough frames the probabilities they teach are the true ones.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.config import Config, Imbalance
from pipeline.errors import ConfigError, TrainingError
from pipeline.evaluate.calibration import Float64
from pipeline.plugins import find_plugin, plugin_names
from pipeline.predictions import Activation, Task

EFFECTIVE_BETA = 0.999
"""Beta of the effective number of frames (Cui et al. 2019): beyond 1,000 frames of a label, more of them hardly count."""
FOCAL_GAMMA = 2
"""Exponent of the focal loss (Lin et al., "Focal loss for dense object detection", ICCV 2017)."""
ORDINAL_SHARE = 3.0
"""What the ranked probability score is multiplied by before it is added to the log loss (`benchmarks/tasks.py`)."""
_FOCAL_STEPS = 5
"""Steps of Newton's method before the last: enough to converge to rounding, for 2 to 14 labels and logits from 0.1 to 100."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""A plug-in's loss: of logits and targets, both of shape (n, labels), one for each label (n, labels) or each frame (n,)."""


def find_loss(config: Config) -> Loss | None:
    """Return the loss of a plug-in that a configuration names; None if it has the task's own.

    Raises
    ------
    ConfigError
        If there is none of that name, or if it cannot be used with `train.imbalance`.
    """
    name = config.train.loss
    if not name:
        return None
    loss = find_plugin("loss", name)
    if loss is None:
        known = ", ".join(plugin_names("loss")) or "none"
        raise ConfigError([f"train.loss: no plug-in registers the loss {name}; registered are: {known}. See plugins."])
    if config.train.imbalance == "focal":
        raise ConfigError(
            [f"train.imbalance: focal is a loss itself, and train.loss is {name}. Set another, for example none."]
        )
    return loss


class Objective:
    """What training minimises: the loss of a task, under one way to treat rare labels.

    - `none`: every frame counts the same.
    - `class_weights`: a label counts by its inverse frequency, as scikit-learn's "balanced".
    - `effective_number`: by the inverse of its effective number of frames (Cui et al., "Class-balanced loss based on effective
      number of samples", CVPR 2019), which grows more slowly than their number.
    - `balanced_sampler`: frames are drawn with replacement, in proportion to what they would count under `class_weights`. If a
      frame has several labels, one rate cannot suit all of them; the loss then carries the rest of each weight (importance
      sampling), so that on average it is that of `class_weights`. A loss over all frames, as of the head, is exactly that one.
    - `focal`: frames that are answered correctly already count less. The focal loss itself is not proper: it teaches
      probabilities that are too low for likely labels. The map from these to the true ones is known (Charoenphakdee et al., "On
      focal loss for class-posterior probability estimation: a theoretical perspective", CVPR 2021), so the loss is applied to
      what the inverse of that map makes of the network's probabilities: those that the network gives are then the true ones,
      with the same graph, heatmaps and decoding as after any other loss.
    - `logit_adjustment`: the log odds of the labels' frequencies are added to the logits (Menon et al., "Long-tail learning via
      logit adjustment", ICLR 2021), so that the network learns what a frame says beyond them.

    A loss that counts a label w times teaches w times its odds: the logits are too high by log w (King and Zeng, "Logistic
    regression in rare events data", 2001, section 4.1); adjusted logits lack the log frequencies. `restore_prior` corrects both
    with a shift of the biases, once, after all training. The ranking of frames by one label does not change.

    Parameters
    ----------
    task
        `multilabel` has the binary log loss of each label, all others the log loss over the labels (cross-entropy). `ordinal`
        adds `ORDINAL_SHARE` times the ranked probability score (Epstein, "A scoring system for probability forecasts of ranked
        categories", 1969), the squared distance between cumulative probabilities: a grade further from the truth costs more.
    imbalance
        As configured.
    targets
        Of the training split, shape (n, labels): 1, 0 or nan (not known).
    own_loss
        Replaces the loss of the task. It gets targets in [0, 1]; what is not known is 0 there and masked in what it returns, so
        with `multilabel` it must return a loss for each label. Weights, sampler and adjustment work as with the task's loss;
        probabilities are as honest as it is proper.
    """

    def __init__(self, task: Task, imbalance: Imbalance, targets: Float64, own_loss: Loss | None = None) -> None:
        self.task, self._imbalance, self._own_loss = task, imbalance, own_loss
        positives = np.nansum(targets, axis=0)
        known = np.sum(~np.isnan(targets), axis=0)
        self.weights = self._label_weights(positives, known - positives)
        """How often a frame with a label counts, of shape (labels,); one without it counts once, or by its own label."""
        self._offsets = np.zeros(len(positives))
        if imbalance == "logit_adjustment":
            others = positives.sum() if self._is_exclusive else known - positives
            self._offsets = np.log(np.maximum(positives, 1) / np.maximum(others, 1))
        self._mean_rate = 1.0
        if imbalance == "balanced_sampler":
            self._mean_rate = float(self._rates(torch.from_numpy(targets)).mean())

    @property
    def _is_exclusive(self) -> bool:
        return self.task.activation is Activation.SOFTMAX

    def _label_weights(self, positives: Float64, negatives: Float64) -> Float64:
        with_label, without = np.maximum(positives, 1), np.maximum(negatives, 1)
        if self._imbalance == "effective_number":
            with_label, without = (_effective_number(counts) for counts in (with_label, without))
        elif self._imbalance not in ("class_weights", "balanced_sampler"):
            return np.ones(len(positives))
        if not self._is_exclusive:
            return without / with_label
        return np.asarray(positives.sum() / (with_label * (positives / with_label).sum()), np.float64)

    def terms(self, targets: Float64) -> int:
        """Return over how many terms `loss` sums: frames whose labels are all known or, with `multilabel`, known labels."""
        known = ~np.isnan(targets)
        return int(known.all(axis=1).sum() if self._is_exclusive else known.sum())

    def loss(
        self, logits: Tensor, targets: Tensor, divisor: float, *, label_smoothing: float = 0.0, drawn: bool = False
    ) -> Tensor:
        """Return the loss summed over all that is known, divided by `divisor`.

        It is linear in the targets. So the loss of a mixture of frames (mixup, CutMix) is the mixture of its values for the
        targets of either, in every task, each masked and weighted as it is.

        Parameters
        ----------
        logits, targets
            Of shape (n, labels); targets are 1, 0 or nan. What is nan is masked; unless the task is `multilabel`, so is a frame
            with a label that is not known.
        divisor
            The same number for all batches of a run, such as `terms` of the training split over the number of batches. The
            weights or known labels of each batch would not do, though torch takes them by default: a frame would count for less
            in a batch that happens to hold more of the heavy labels, and `restore_prior` would correct too much.
        label_smoothing
            In [0, 1): how far targets are drawn towards the uniform distribution.
        drawn
            Whether the frames were drawn by `epoch_order`, whose rates then count as part of the weights.
        """
        wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        targets = targets.to(wide)
        weights, offsets = (torch.from_numpy(values).to(wide) for values in (self.weights, self._offsets))
        labels = targets.shape[1]
        known = ~torch.isnan(targets)
        truth = torch.nan_to_num(targets)
        uniform = 1 / labels if self._is_exclusive else 0.5
        smooth = truth * (1 - label_smoothing) + label_smoothing * uniform
        if self._is_exclusive:
            known = known.all(1, keepdim=True).expand_as(known)
        if self._own_loss is not None:
            losses = self._own_losses(wide + offsets, smooth, weights)
        elif self._is_exclusive:
            losses = weights * smooth * self._costs(wide + offsets)
        else:
            present, absent = self._costs(torch.stack([wide + offsets, torch.zeros_like(wide)], -1)).unbind(-1)
            losses = weights * smooth * present + (1 - smooth) * absent
        if drawn and self._imbalance == "balanced_sampler":
            losses = losses / self._rates(targets).unsqueeze(1).clamp_min(torch.finfo(losses.dtype).tiny)
        return losses[known].sum() / divisor

    def _own_losses(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted losses of a plug-in, of shape (n, labels)."""
        assert self._own_loss is not None  # noqa: S101 - for mypy
        losses = self._own_loss(logits, targets)
        if losses.shape == logits.shape[:1] and self._is_exclusive:
            losses = losses.unsqueeze(1).expand_as(logits) / logits.shape[1]
        if losses.shape != logits.shape:
            shapes = f"(frames, labels) = {tuple(logits.shape)}" + (" or (frames,)" if self._is_exclusive else "")
            raise TrainingError(f"The loss of the plug-in must have the shape {shapes}. Got {tuple(losses.shape)} instead.")
        if self._is_exclusive:
            return losses * (weights * targets).sum(1, keepdim=True)
        return losses * (weights * targets + 1 - targets)

    def _costs(self, logits: Tensor) -> Tensor:
        """Return what each outcome of the last axis costs if it is the true one, in the shape of `logits`."""
        if self._imbalance == "focal":
            logs = focal_log_probabilities(logits)
            costs = -((-torch.expm1(logs)).clamp_min(0) ** FOCAL_GAMMA) * logs
        else:
            costs = -functional.log_softmax(logits, -1)
        if self.task is Task.ORDINAL:
            costs = costs + ORDINAL_SHARE * _ranked_probability_scores(logits)
        return costs

    def epoch_order(self, targets: Float64, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return the positions of the frames of one epoch, in the order in which they are seen; as many as there are.

        Parameters
        ----------
        targets
            Of the frames to choose from, shape (n, labels).
        generator
            Shuffles them, or draws them if the sampler is balanced: some then come several times, and others never.
        """
        if self._imbalance != "balanced_sampler":
            return generator.permutation(len(targets))
        rates = self._rates(torch.from_numpy(targets)).numpy()
        return generator.choice(len(targets), len(targets), p=rates / rates.sum())

    def _rates(self, targets: Tensor) -> Tensor:
        """Return how often each frame is drawn, of shape (n,), on average once in the training split: its weights, averaged."""
        weights, truth = torch.from_numpy(self.weights).to(targets), torch.nan_to_num(targets)
        if self._is_exclusive:
            return (weights * truth).sum(1) / self._mean_rate
        counts = (weights * truth + 1 - truth) * ~torch.isnan(targets)
        return counts.mean(1) / self._mean_rate

    def restore_prior(self, classifier: torch.nn.Linear) -> None:
        """Shift the biases of a trained classifier, in place, so that its probabilities are those of the training split."""
        with torch.no_grad():
            shift = torch.from_numpy(self._offsets - np.log(self.weights))
            classifier.bias.add_(shift.to(classifier.bias))


def focal_log_probabilities(logits: Tensor) -> Tensor:
    """Return the log probabilities of which the focal loss would teach `softmax(logits)`, in the shape of `logits`.

    They are the u that solve softmax(logits) = h(u) / sum of h(u) with h(u) = u / ((1 - u)^g - g (1 - u)^(g - 1) u log u), g
    being `FOCAL_GAMMA` (Charoenphakdee et al. 2021). The inverse has no closed form: Newton's method finds it, and its last
    step, which is differentiable, carries the gradient (the implicit function theorem).
    """
    with torch.no_grad():
        logs = functional.log_softmax(logits / 2, -1)
        for _ in range(_FOCAL_STEPS):
            link, slope, share = _focal_link(logs)
            miss = logits - link
            logs = functional.log_softmax(logs + (miss - (share * miss).sum(-1, keepdim=True)) / slope, -1)
        link, slope, share = _focal_link(logs)
    miss = logits - link
    return logs + (miss - (share * miss).sum(-1, keepdim=True)) / slope


def _focal_link(logs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log h, its derivative by log u, and u over that derivative with sum one; see `focal_log_probabilities`.

    The rest 1 - u of the largest u is the sum of the others, so that it keeps its digits however small it is.
    """
    u = logs.exp()
    is_largest = functional.one_hot(logs.argmax(-1), logs.shape[-1]).bool()
    others = torch.where(is_largest, 0, u).sum(-1, keepdim=True).clamp_min(torch.finfo(u.dtype).eps ** 4)
    rest = torch.where(is_largest, others, 1 - u)
    logs = torch.where(is_largest, torch.log1p(-others), logs)
    mass = rest - FOCAL_GAMMA * u * logs
    link = logs - (FOCAL_GAMMA - 1) * rest.log() - mass.log()
    slope = 1 + FOCAL_GAMMA * u * (2 + logs - (FOCAL_GAMMA - 1) * u * logs / rest) / mass
    share = u / slope
    return link, slope, share / share.sum(-1, keepdim=True)


def _ranked_probability_scores(logits: Tensor) -> Tensor:
    """Return the ranked probability score for each grade being the true one, of shape (n, grades)."""
    grades = logits.shape[-1]
    cumulative = functional.softmax(logits, -1).cumsum(-1)[..., None, :-1]
    steps = torch.ones(grades, grades, dtype=logits.dtype, device=logits.device).triu()[:, :-1]
    return (cumulative - steps).square().sum(-1)


def _effective_number(counts: Float64) -> Float64:
    return np.asarray((1 - EFFECTIVE_BETA**counts) / (1 - EFFECTIVE_BETA), np.float64)
