"""Fitting: the head against scikit-learn, and a killed run against one that was not."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.config import HeadSection
from pipeline.errors import TrainingError
from pipeline.predictions import Task
from pipeline.train.head import fit_head
from pipeline.train.tasks import Objective

SIZE = 32


def one_hot(classes: np.ndarray, labels: int) -> np.ndarray:
    return np.eye(labels)[classes]


def examples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, count)
    features = rng.normal(size=(count, 8)) * 3 + 10 + one_hot(classes, 8) * 4
    return features, one_hot(classes, 3)


def test_the_head_is_a_balanced_logistic_regression() -> None:
    train, tune = examples(300, 0), examples(100, 1)
    decay = 0.01
    head = fit_head(train, tune, Objective(Task.MULTICLASS, "class_weights", train[1]), HeadSection(weight_decays=(decay,)))
    center, scale = train[0].mean(0), train[0].std(0)
    oracle = LogisticRegression(C=1 / (decay * 300), class_weight="balanced", tol=1e-8, max_iter=5000)
    oracle.fit((train[0] - center) / scale, train[1].argmax(1))
    expected = oracle.predict_proba((tune[0] - center) / scale)
    logits = tune[0] @ head.weight.T + head.bias
    found = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_weight_decay_with_the_lowest_tune_loss_is_taken() -> None:
    train, tune = examples(60, 0), examples(200, 1)
    objective = Objective(Task.MULTICLASS, "none", train[1])
    decays = (10.0, 0.1, 1e-6)
    alone = [fit_head(train, tune, objective, HeadSection(weight_decays=(decay,))) for decay in decays]
    chosen = fit_head(train, tune, objective, HeadSection(weight_decays=decays))
    assert chosen.tune_loss == min(head.tune_loss for head in alone)


def test_features_that_are_not_numbers_stop_the_head() -> None:
    broken = examples(20, 0)
    broken[0][3, 3] = np.inf
    with pytest.raises(TrainingError, match="loss of the linear head is not a number"), np.errstate(invalid="ignore"):
        fit_head(broken, examples(20, 1), Objective(Task.MULTICLASS, "none", broken[1]), HeadSection())
