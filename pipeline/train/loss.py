"""The loss of every stage of training: class-weighted, and silent about labels that are not known."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.predictions import Activation


def class_weights(targets: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
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
    NDArray[np.float64]
        Of shape (labels,).
    """
    positives = np.nansum(targets, axis=0)
    known = np.sum(~np.isnan(targets), axis=0)
    if activation is Activation.SOFTMAX:
        return np.asarray(known / (targets.shape[1] * np.maximum(positives, 1)), np.float64)
    return np.asarray((known - positives) / np.maximum(positives, 1), np.float64)


def remove_class_weights(classifier: torch.nn.Linear, weights: NDArray[np.float64]) -> None:
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


def count_terms(targets: NDArray[np.float64], activation: Activation) -> int:
    """Return how many terms `weighted_loss` adds up: frames of which all labels are known, or with sigmoid known labels."""
    known = ~np.isnan(targets)
    return int(known.all(axis=1).sum() if activation is Activation.SOFTMAX else known.sum())


def weighted_loss(
    logits: Tensor, targets: Tensor, weights: Tensor, activation: Activation, divisor: float, label_smoothing: float = 0.0
) -> Tensor:
    """Return the sum of the loss over all that is known, divided by `divisor`.

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
