"""What the losses teach, on features drawn at random, whose truth is known: `python -m benchmarks.tasks`.

First each way to treat rare labels at 1:20: how far probabilities are from the true posterior, before and after the correction
of the prior. Then the plain focal loss with a temperature fitted afterwards, against the proper form that octray uses. Last the
share of the ranked probability score in the loss of ordinal tasks, on features that a linear head describes only roughly.
"""

import sys
from typing import get_args

import numpy as np
import torch
from scipy import special
from sklearn.metrics import cohen_kappa_score, log_loss, mean_absolute_error
from torch import Tensor
from torch.nn import functional

from pipeline.config import HeadSection, Imbalance
from pipeline.evaluate.calibration import Float64, fit_temperature, probabilities
from pipeline.predictions import Activation, Task
from pipeline.train import tasks
from pipeline.train.head import Head, fit_head

FRAMES, SEEDS = 20_000, 5
FREE = HeadSection(weight_decays=(1e-7,))
CHOSEN = HeadSection(weight_decays=(1.0, 0.3, 0.1, 0.03, 0.01, 1e-3))


def main() -> int:
    """Print three tables."""
    print("mean distance from the true posterior at 1:20, and among frames whose finding is likelier than 0.2")
    for way in get_args(Imbalance):
        rows = [_distances(way, seed) for seed in range(SEEDS)]
        print(f"{way:18} uncorrected {_pair(rows, 0)}  corrected {_pair(rows, 1)}")
    print("\nfocal loss: mean and largest distance from the true posterior")
    for labels in (2, 4, 8):
        found = np.mean([_focal(labels, seed) for seed in range(SEEDS)], axis=0)
        print(f"{labels} labels  plain, with a temperature {found[0]:.4f} {found[1]:.3f}  proper {found[2]:.4f} {found[3]:.3f}")
    print("\nordinal, by the share of the ranked probability score: kappa, mean error, ranked probability score, log loss")
    share = tasks.ORDINAL_SHARE
    for grades, frames in ((4, 150), (5, 300), (5, 600)):
        for tasks.ORDINAL_SHARE in (0.0, 1.0, 3.0, 10.0):
            found = np.mean([_ordinal(grades, frames, seed) for seed in range(2 * SEEDS)], axis=0)
            figures = " ".join(f"{one:.3f}" for one in found)
            print(f"{grades} grades, {frames} frames, share {tasks.ORDINAL_SHARE:4}: {figures}")
    tasks.ORDINAL_SHARE = share
    return 0


def _clouds(rng: np.random.Generator, count: int, prior: Float64, centres: Float64) -> tuple[Float64, Float64, Float64]:
    """Return features of normal clouds, targets, and the true posterior."""
    classes = rng.choice(len(prior), count, p=prior)
    features = rng.normal(size=(count, centres.shape[1])) + centres[classes]
    posterior = special.softmax(features @ centres.T - (centres**2).sum(1) / 2 + np.log(prior), 1)
    return features, np.eye(len(prior))[classes], posterior


def _answers(head: Head, features: Float64) -> Float64:
    return np.asarray(features @ head.weight.T + head.bias, np.float64)


def _distances(way: Imbalance, seed: int) -> tuple[float, ...]:
    rng = np.random.default_rng(seed)
    prior, centres = np.array([14, 6, 1]) / 21, np.array([[0, 0, 0, 0], [0.9, 0, 0.5, 0], [1.6, 0.5, 1.2, 0]])
    features, targets, _ = _clouds(rng, FRAMES, prior, centres)
    new, _, posterior = _clouds(rng, FRAMES, prior, centres)
    objective = tasks.Objective(Task.MULTICLASS, way, targets)
    head = fit_head((features, targets), (features, targets), objective, FREE)
    shift = torch.nn.Linear(1, 3, dtype=torch.float64)
    torch.nn.init.zeros_(shift.bias)
    objective.restore_prior(shift)
    logits, likely = _answers(head, new), posterior[:, 2] > 0.2
    wrong = [np.abs(special.softmax(one, 1) - posterior) for one in (logits, logits + shift.bias.detach().numpy())]
    return tuple(float(part.mean()) for one in wrong for part in (one, one[likely]))


def _pair(rows: list[tuple[float, ...]], place: int) -> str:
    whole, likely = np.mean(rows, axis=0)[2 * place : 2 * place + 2]
    return f"{whole:.4f} {likely:.4f}"


def _focal(labels: int, seed: int) -> tuple[float, ...]:
    rng = np.random.default_rng(seed)
    prior = np.array([20.0, *range(labels - 1, 0, -1)])
    prior, centres = prior / prior.sum(), rng.normal(size=(labels, 6)) * 0.8
    features, targets, _ = _clouds(rng, FRAMES, prior, centres)
    new, _, posterior = _clouds(rng, FRAMES, prior, centres)
    proper = fit_head((features, targets), (features, targets), tasks.Objective(Task.MULTICLASS, "focal", targets), FREE)
    taught = tasks.focal_log_probabilities

    def plain(logits: Tensor) -> Tensor:
        return functional.log_softmax(logits, -1)

    tasks.focal_log_probabilities = plain
    usual = fit_head((features, targets), (features, targets), tasks.Objective(Task.MULTICLASS, "focal", targets), FREE)
    tasks.focal_log_probabilities = taught
    temperature = fit_temperature(_answers(usual, features), targets, Activation.SOFTMAX)
    wrong = [
        np.abs(probabilities(_answers(head, new), Activation.SOFTMAX, heat) - posterior)
        for head, heat in ((usual, temperature), (proper, 1.0))
    ]
    return tuple(float(part) for one in wrong for part in (one.mean(), one.max()))


def _ordinal(grades: int, frames: int, seed: int) -> tuple[float, ...]:
    """Return figures of a head for grades of a severity that is not quite linear in some of 60 features."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> tuple[Float64, Float64]:
        features = rng.normal(size=(count, 60))
        severity = 1.5 * features[:, 0] + features[:, 1] + 0.5 * features[:, 2] ** 2 + rng.normal(size=count)
        cuts = np.quantile(severity, np.linspace(0, 1, grades + 1)[1:-1] ** 0.6)
        return features, np.eye(grades)[np.searchsorted(cuts, severity)]

    train, tune, (new, targets) = draw(frames), draw(frames // 2), draw(4000)
    head = fit_head(train, tune, tasks.Objective(Task.ORDINAL, "none", train[1]), CHOSEN)
    chances = special.softmax(_answers(head, new), 1)
    true, chosen = targets.argmax(1), chances.argmax(1)
    ranked = ((chances.cumsum(1) - targets.cumsum(1)) ** 2).sum(1).mean()
    kappa = cohen_kappa_score(true, chosen, weights="quadratic")
    return float(kappa), float(mean_absolute_error(true, chosen)), float(ranked), float(log_loss(true, chances))


if __name__ == "__main__":
    sys.exit(main())
