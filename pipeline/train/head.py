"""The linear head on frozen features: a convex problem, solved to its end for each weight decay, chosen on the tune split."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import HeadSection
from pipeline.errors import TrainingError
from pipeline.predictions import Activation
from pipeline.train.loss import count_terms, weighted_loss

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """What a head is trained or judged on.

    Parameters
    ----------
    features
        Pooled features of shape (n, channels).
    targets
        Of shape (n, labels): 1, 0 or nan.
    """

    features: Array
    targets: Array


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

    weight: Array
    bias: Array
    weight_decay: float
    tune_loss: float


def fit_head(train: Examples, tune: Examples, weights: Array, activation: Activation, settings: HeadSection) -> Head:
    """Fit a linear layer for every weight decay and return the one with the lowest loss on the tune split.

    Features are standardised for the fit, and the scaling is folded into the layer that is returned.

    Raises
    ------
    TrainingError
        Where the loss is not a number.
    """
    center, scale = train.features.mean(0), train.features.std(0) + 1e-6
    near, far = (Examples((part.features - center) / scale, part.targets) for part in (train, tune))
    heads = [_fit(near, far, weights, activation, decay, settings.epochs) for decay in settings.weight_decays]
    best = min(heads, key=lambda head: head.tune_loss)
    weight = best.weight / scale
    return Head(weight, best.bias - weight @ center, best.weight_decay, best.tune_loss)


def _fit(train: Examples, tune: Examples, weights: Array, activation: Activation, decay: float, epochs: int) -> Head:
    features, targets, counts = (torch.from_numpy(array) for array in (train.features, train.targets, weights))
    layer = torch.nn.Linear(features.shape[1], targets.shape[1], dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    solver = torch.optim.LBFGS(layer.parameters(), max_iter=epochs, history_size=20, line_search_fn="strong_wolfe")

    terms, tune_terms = (count_terms(part.targets, activation) for part in (train, tune))

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = weighted_loss(layer(features), targets, counts, activation, terms) + decay * layer.weight.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    final = float(solver.step(closure).detach())  # type: ignore[no-untyped-call]
    with torch.no_grad():
        tune_logits = layer(torch.from_numpy(tune.features))
        tune_loss = float(weighted_loss(tune_logits, torch.from_numpy(tune.targets), counts, activation, tune_terms))
    if not np.isfinite([final, tune_loss]).all():
        raise TrainingError("The loss of the linear head is not a number. Look for frames with extreme or empty pixels.")
    return Head(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy(), decay, tune_loss)
