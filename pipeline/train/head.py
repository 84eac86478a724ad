"""The linear head on frozen features, and the class-weighted loss of every stage of training.

Fitting the head is a convex problem: it is solved to its end for each weight decay, and the tune split chooses between them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import HeadSection
from pipeline.errors import TrainingError
from pipeline.evaluate.calibration import Float64
from pipeline.predictions import Activation


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A trained linear layer.

    Parameters
    ----------
    weight
        Of shape (labels, channels).
    bias
        Of shape (labels,).
    weight_decay
        The one that was chosen.
    tune_loss
        Class-weighted loss on the tune split.
    """

    weight: Float64
    bias: Float64
    weight_decay: float
    tune_loss: float


def fit_head(
    train: tuple[Float64, Float64],
    tune: tuple[Float64, Float64],
    weights: Float64,
    activation: Activation,
    settings: HeadSection,
) -> Head:
    """Fit a linear layer for every weight decay and return the one with the lowest loss on the tune split.

    Features are standardised for the fit, and the scaling is folded into the layer that is returned.

    Parameters
    ----------
    train, tune
        Pooled features of shape (n, channels), and targets of shape (n, labels): 1, 0 or nan.
    weights, activation
        As from and in `class_weights`.
    settings
        As configured.

    Raises
    ------
    TrainingError
        If the loss is not a number.
    """
    center, scale = train[0].mean(0), train[0].std(0) + 1e-6
    near, far = (((features - center) / scale, targets) for features, targets in (train, tune))
    heads = [_fit(near, far, weights, activation, decay, settings.epochs) for decay in settings.weight_decays]
    best = min(heads, key=lambda head: head.tune_loss)
    weight = best.weight / scale
    return Head(weight, best.bias - weight @ center, best.weight_decay, best.tune_loss)


def _fit(
    train: tuple[Float64, Float64],
    tune: tuple[Float64, Float64],
    weights: Float64,
    activation: Activation,
    decay: float,
    epochs: int,
) -> Head:
    features, targets, counts = (torch.from_numpy(array) for array in (*train, weights))
    layer = torch.nn.Linear(features.shape[1], targets.shape[1], dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    solver = torch.optim.LBFGS(layer.parameters(), max_iter=epochs, history_size=20, line_search_fn="strong_wolfe")

    terms, tune_terms = (count_terms(truth, activation) for _, truth in (train, tune))

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = weighted_loss(layer(features), targets, counts, activation, terms) + decay * layer.weight.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    final = float(solver.step(closure).detach())  # type: ignore[no-untyped-call]
    with torch.no_grad():
        tune_logits = layer(torch.from_numpy(tune[0]))
        tune_loss = float(weighted_loss(tune_logits, torch.from_numpy(tune[1]), counts, activation, tune_terms))
    if not np.isfinite([final, tune_loss]).all():
        raise TrainingError("The loss of the linear head is not a number. Look for frames with extreme or empty pixels.")
    return Head(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy(), decay, tune_loss)


def class_weights(targets: Float64, activation: Activation) -> Float64:
    """Return how much each label counts in the loss, from its frequency in the training split.

    Parameters
    ----------
    targets
        Of shape (n, labels): 1, 0 or nan (not known).
    activation
        `softmax`: n / (labels x frames of the label), as scikit-learn's "balanced". `sigmoid`: negatives / positives, the
        weight of a positive example.

    Returns
    -------
    Float64
        Of shape (labels,).
    """
    positives = np.nansum(targets, axis=0)
    known = np.sum(~np.isnan(targets), axis=0)
    if activation is Activation.SOFTMAX:
        return np.asarray(known / (targets.shape[1] * np.maximum(positives, 1)), np.float64)
    return np.asarray((known - positives) / np.maximum(positives, 1), np.float64)


def remove_class_weights(classifier: torch.nn.Linear, weights: Float64) -> None:
    """Shift the biases of a classifier so that its probabilities are those of the training split again.

    A loss in which a label counts w times teaches w times its odds: the logits are too high by log w (King and Zeng, "Logistic
    regression in rare events data", 2001, section 4.1). The ranking of frames by one label does not change.

    Parameters
    ----------
    classifier
        Changed in place.
    weights
        As from `class_weights`, of shape (labels,).
    """
    with torch.no_grad():
        classifier.bias.sub_(torch.from_numpy(np.log(weights)))


def count_terms(targets: Float64, activation: Activation) -> int:
    """Return the number of terms in `weighted_loss`: frames with all labels known or, with sigmoid, known labels."""
    known = ~np.isnan(targets)
    return int(known.all(axis=1).sum() if activation is Activation.SOFTMAX else known.sum())


def weighted_loss(
    logits: Tensor, targets: Tensor, weights: Tensor, activation: Activation, divisor: float, label_smoothing: float = 0.0
) -> Tensor:
    """Return the loss summed over all known labels, divided by `divisor`.

    Parameters
    ----------
    logits, targets
        Of shape (n, labels); targets are 1, 0 or nan.
    weights
        As from `class_weights`, of shape (labels,).
    activation
        `softmax` gives weighted cross-entropy over the frames whose labels are all known, `sigmoid` weighted binary
        cross-entropy over all known labels.
    divisor
        The same number for all batches of a run. A batch's own weights or known labels would not do, though torch takes them
        by default: a frame would count for less in a batch that happens to hold more of the heavy labels, so that a label of
        weight w is not taught w times its odds, and `remove_class_weights` would remove too much.
    label_smoothing
        In [0, 1): how far targets are drawn towards the uniform distribution.
    """
    if activation is Activation.SOFTMAX:
        known = ~torch.isnan(targets).any(1)
        classes = targets[known].argmax(1)
        losses = functional.cross_entropy(logits[known], classes, weights, label_smoothing=label_smoothing, reduction="none")
        return losses.sum() / divisor
    known = ~torch.isnan(targets)
    smooth = torch.nan_to_num(targets) * (1 - label_smoothing) + label_smoothing / 2
    losses = functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights, reduction="none")
    return losses[known].sum() / divisor
