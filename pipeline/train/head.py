"""The linear head on frozen features.

Fitting the head is a convex problem (nearly so with the losses of `ordinal` and `focal`; all start from weights of zero): it is
solved to its end for each weight decay, and frames that it was not fitted on choose between them: those of the tune split, or
each fold of the patients in its turn.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import HeadSection
from pipeline.errors import TrainingError
from pipeline.evaluate.calibration import Float64
from pipeline.train.tasks import Objective

_LARGE = 2**25
"""Features times frames from which on several threads are worth it."""


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
        Loss on the frames that chose it.
    tune_logits
        Of these frames, of shape (n, labels); nan for frames of which no label is known.
    """

    weight: Float64
    bias: Float64
    weight_decay: float
    tune_loss: float
    tune_logits: Float64


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
    return min(_fit_each(train, tune, objective, settings.weight_decays, settings.epochs), key=lambda head: head.tune_loss)


def fit_probe(
    views: Sequence[Float64], targets: Float64, folds: NDArray[np.int64], objective: Objective, settings: HeadSection
) -> Head:
    """Fit a linear layer on all frames, with the weight decay whose loss is lowest on frames that a layer was fitted without.

    For each weight decay a layer is fitted without each fold, and measured on it (cross-validation); the layer that is returned
    is fitted on everything.

    Parameters
    ----------
    views
        Pooled features, one array of shape (n, channels) for each way in which the same n frames are shown, for example as they
        are and mirrored. Layers are measured on the first.
    targets
        Of shape (n, labels): 1, 0 or nan.
    folds
        The fold of each frame; no patient is in two.
    objective, settings
        As in `fit_head`.

    Raises
    ------
    TrainingError
        If the loss is not a number.
    """
    decays, epochs = settings.weight_decays, settings.epochs
    losses, total = np.zeros(len(decays)), 0
    unseen_logits = np.full((len(decays), *targets.shape), np.nan)
    for fold in np.unique(folds):
        seen, unseen = folds != fold, folds == fold
        if terms := objective.terms(targets[unseen]):
            heads = _fit_each(_shown(views, targets, seen), (views[0][unseen], targets[unseen]), objective, decays, epochs)
            losses += terms * np.array([head.tune_loss for head in heads])
            unseen_logits[:, unseen] = [head.tune_logits for head in heads]
            total += terms
    best = int(np.argmin(losses))
    everything = np.ones(len(targets), bool)
    (head,) = _fit_each(_shown(views, targets, everything), (views[0], targets), objective, decays[best : best + 1], epochs)
    return replace(head, tune_loss=float(losses[best] / total), tune_logits=unseen_logits[best])


def _shown(views: Sequence[Float64], targets: Float64, chosen: NDArray[np.bool_]) -> tuple[Float64, Float64]:
    """Return the features of some frames in every view, and their targets."""
    return np.concatenate([view[chosen] for view in views]), np.concatenate([targets[chosen]] * len(views))


def _fit_each(
    train: tuple[Float64, Float64],
    tune: tuple[Float64, Float64],
    objective: Objective,
    decays: Sequence[float],
    epochs: int,
) -> list[Head]:
    """Return the layer of each weight decay, for features as they are."""
    center, scale = train[0].mean(0), train[0].std(0) + 1e-6
    near, far = (((features - center) / scale, targets) for features, targets in (train, tune))
    with _few_threads(train[0].size):
        heads = [_fit(near, far, objective, decay, epochs) for decay in decays]
    return [replace(head, weight=head.weight / scale, bias=head.bias - head.weight / scale @ center) for head in heads]


@contextmanager
def _few_threads(numbers: int) -> Iterator[None]:
    """Let torch use one thread for small matrices.

    The solver takes thousands of steps of less than a millisecond. Threads that wait for each other at each of them gain little
    on an idle machine, and beside other work they take 30 times the processor time and 25 times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if numbers < _LARGE else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    weight, bias = layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()
    return Head(weight, bias, decay, tune_loss, tune_logits.numpy())
