"""The linear head on frozen features.

Fitting the head is a convex problem: it is solved to its end for each weight decay, and the tune split chooses between them.
"""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.config import HeadSection
from pipeline.errors import TrainingError
from pipeline.evaluate.calibration import Float64
from pipeline.train.tasks import Objective


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
        Loss on the tune split.
    """

    weight: Float64
    bias: Float64
    weight_decay: float
    tune_loss: float


def fit_head(
    train: tuple[Float64, Float64],
    tune: tuple[Float64, Float64],
    objective: Objective,
    settings: HeadSection,
) -> Head:
    """Fit a linear layer for every weight decay and return the one with the lowest loss on the tune split.

    Features are standardised for the fit, and the scaling is folded into the layer that is returned.

    Parameters
    ----------
    train, tune
        Pooled features of shape (n, channels), and targets of shape (n, labels): 1, 0 or nan.
    objective
        Whose loss is minimised; made for the targets of `train`.
    settings
        As configured.

    Raises
    ------
    TrainingError
        If the loss is not a number.
    """
    center, scale = train[0].mean(0), train[0].std(0) + 1e-6
    near, far = (((features - center) / scale, targets) for features, targets in (train, tune))
    heads = [_fit(near, far, objective, decay, settings.epochs) for decay in settings.weight_decays]
    best = min(heads, key=lambda head: head.tune_loss)
    weight = best.weight / scale
    return Head(weight, best.bias - weight @ center, best.weight_decay, best.tune_loss)


def _fit(
    train: tuple[Float64, Float64],
    tune: tuple[Float64, Float64],
    objective: Objective,
    decay: float,
    epochs: int,
) -> Head:
    features, targets = (torch.from_numpy(array) for array in train)
    layer = torch.nn.Linear(features.shape[1], targets.shape[1], dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    solver = torch.optim.LBFGS(layer.parameters(), max_iter=epochs, history_size=20, line_search_fn="strong_wolfe")

    terms, tune_terms = (objective.terms(truth) for _, truth in (train, tune))

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = objective.loss(layer(features), targets, terms) + decay * layer.weight.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    final = float(solver.step(closure).detach())  # type: ignore[no-untyped-call]
    with torch.no_grad():
        tune_logits = layer(torch.from_numpy(tune[0]))
        tune_loss = float(objective.loss(tune_logits, torch.from_numpy(tune[1]), tune_terms))
    if not np.isfinite([final, tune_loss]).all():
        raise TrainingError("The loss of the linear head is not a number. Look for frames with extreme or empty pixels.")
    return Head(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy(), decay, tune_loss)
