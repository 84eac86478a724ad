"""Losses of every task against torch, scikit-learn and closed forms, and what undoes the treatment of rare labels."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from pipeline.config import HeadSection, load_config
from pipeline.errors import ConfigError, TrainingError
from pipeline.evaluate.calibration import probabilities
from pipeline.frames import Split
from pipeline.imaging.sources import locate, read_frames
from pipeline.ingest.index import Index, load_index
from pipeline.model.bundle import METRICS, MODEL_CARD, WEIGHTS, Bundle
from pipeline.plugins import register_plugin
from pipeline.predictions import Task
from pipeline.score.predictor import Predictor
from pipeline.train.assessment import evaluate_bundle
from pipeline.train.fit import start_network
from pipeline.train.head import fit_head
from pipeline.train.run import train
from pipeline.train.tasks import Loss, Objective, find_loss, focal_log_probabilities
from tests.conftest import Trained

WAYS = ("none", "class_weights", "effective_number", "balanced_sampler", "focal", "logit_adjustment")
KINDS = (Task.MULTICLASS, Task.MULTILABEL, Task.ORDINAL)


def one_hot(classes: np.ndarray, labels: int) -> np.ndarray:
    return np.eye(labels)[classes]


def several_labels(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    targets = (rng.random((count, 3)) < [0.5, 0.1, 0.03]).astype(float)
    targets[:3] = np.eye(3)
    targets[rng.random((count, 3)) < 0.2] = np.nan
    return targets


# Weights


def test_weights_are_scikit_learns_balanced_ones() -> None:
    classes = np.array([0, 0, 0, 1, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=classes)
    np.testing.assert_allclose(Objective(Task.MULTICLASS, "class_weights", one_hot(classes, 3)).weights, expected)


def test_weights_count_only_what_is_known() -> None:
    targets = np.array([[1, np.nan], [0, 1], [0, 0], [0, np.nan]])
    np.testing.assert_allclose(Objective(Task.MULTILABEL, "class_weights", targets).weights, [3, 1])


def test_effective_numbers_are_those_of_the_paper() -> None:
    """Cui et al. 2019, equation 2; a frame counts once on average, which their normalisation by the labels does not give."""
    counts = np.array([3000, 500, 20])
    targets = one_hot(np.repeat(np.arange(3), counts), 3)
    found = Objective(Task.MULTICLASS, "effective_number", targets).weights
    series = [sum(0.999**power for power in range(count)) for count in counts]
    np.testing.assert_allclose(found / found[0], series[0] / np.array(series), rtol=1e-9)
    assert found @ counts == pytest.approx(counts.sum())
    several = Objective(Task.MULTILABEL, "effective_number", targets).weights
    assert several[2] == pytest.approx(sum(0.999**power for power in range(3500)) / series[2])


# Losses


def test_the_loss_of_exclusive_labels_is_weighted_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, classes = torch.randn(6, 3, generator=generator), torch.tensor([0, 1, 2, 2, 2, 0])
    targets = functional.one_hot(classes, 3).float()
    objective = Objective(Task.MULTICLASS, "class_weights", targets.double().numpy())
    weights = torch.from_numpy(objective.weights).float()
    expected = functional.cross_entropy(logits, classes, weights, label_smoothing=0.1)
    torch.testing.assert_close(objective.loss(logits, targets, weights[classes].sum().item(), label_smoothing=0.1), expected)


def test_the_loss_of_independent_labels_is_weighted_binary_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(8, 3, generator=generator), (torch.rand(8, 3, generator=generator) < 0.3).float()
    objective = Objective(Task.MULTILABEL, "class_weights", targets.double().numpy())
    expected = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=torch.from_numpy(objective.weights))
    torch.testing.assert_close(objective.loss(logits, targets, 24), expected.float())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", KINDS)
def test_unknown_labels_do_not_change_the_loss_or_its_gradient(task: Task, way: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator)
    targets = functional.one_hot(torch.tensor([0, 1, 2, 1]), 3).float()
    objective = Objective(task, way, targets.double().numpy())
    unknown = torch.cat([targets, torch.full((3, 3), torch.nan)])
    assert Objective(task, way, unknown.double().numpy()).weights == pytest.approx(objective.weights)
    if task is Task.MULTILABEL:
        unknown[0, 1] = torch.nan
    more = torch.cat([logits, torch.full((3, 3), 5.0)]).requires_grad_()
    loss = objective.loss(more, unknown, 1.0)
    expected = objective.loss(logits, targets, 1.0)
    if task is Task.MULTILABEL:
        expected = expected - (objective.loss(logits[:1], targets[:1], 1.0) - objective.loss(logits[:1], unknown[:1], 1.0))
        assert objective.terms(unknown.double().numpy()) == 11
    else:
        assert objective.terms(unknown.double().numpy()) == 4
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert more.grad is not None
    assert not more.grad[4:].any()
    assert task is not Task.MULTILABEL or more.grad[0, 1] == 0


def test_the_ordinal_loss_adds_the_ranked_probability_score() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.1]], dtype=torch.float64)
    chances = special.softmax(logits.numpy()[0])
    for grade in range(4):
        targets = one_hot(np.array([grade]), 4)
        squares = [(chances[: end + 1].sum() - (grade <= end)) ** 2 for end in range(3)]
        expected = -np.log(chances[grade]) + 3 * sum(squares)
        found = Objective(Task.ORDINAL, "none", targets).loss(logits, torch.from_numpy(targets), 1.0)
        assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("labels", [2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_focal_loss_is_applied_to_the_inverse_of_the_papers_map(labels: int, dtype: torch.dtype) -> None:
    """Charoenphakdee et al. 2021: h(v) = v / ((1 - v)^g - g (1 - v)^(g - 1) v log v), here of g = 2."""
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1, 5, 12):
        logits = (torch.randn(200, labels, generator=generator) * scale).to(dtype)
        u = focal_log_probabilities(logits).exp().double().numpy()
        np.testing.assert_allclose(u.sum(1), 1, rtol=1e-5)
        h = u / ((1 - u) ** 2 - 2 * (1 - u) * u * np.log(u))
        sure = u.max(1) < 0.999  # beyond, 1 - u has no digits left in a double that came from a single
        np.testing.assert_allclose((h / h.sum(1, keepdims=True))[sure], special.softmax(logits.numpy(), 1)[sure], atol=1e-4)
        assert sure.mean() > 0.05


def test_the_gradient_of_the_focal_loss_is_that_of_finite_differences() -> None:
    logits = (torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3).requires_grad_()
    targets = functional.one_hot(torch.tensor([0, 1, 2, 0, 1, 2]), 3).double()
    for task in KINDS:
        objective = Objective(task, "focal", targets.numpy())
        assert torch.autograd.gradcheck(lambda values, one=objective: one.loss(values, targets, 1.0), (logits,), rtol=1e-4)


def test_the_focal_loss_is_that_of_torchvision_at_the_probabilities_it_teaches() -> None:
    logits = torch.linspace(-9, 9, 7, dtype=torch.float64)[:, None]
    taught = focal_log_probabilities(torch.stack([logits, torch.zeros_like(logits)], -1))
    for present in (0.0, 1.0):
        targets = torch.full_like(logits, present)
        found = Objective(Task.MULTILABEL, "focal", targets.numpy()).loss(logits, targets, 1.0)
        inner = taught[..., 0] - taught[..., 1]
        torch.testing.assert_close(found, sigmoid_focal_loss(inner, targets, alpha=-1, gamma=2, reduction="sum"))


def test_confident_answers_give_finite_losses_and_gradients() -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    targets = torch.eye(3)[[0, 0, 1]]
    for task, way in itertools.product(KINDS, WAYS):
        loss = Objective(task, way, targets.double().numpy()).loss(logits, targets, 1.0)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss), (task, way)
        assert torch.isfinite(gradient).all(), (task, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", KINDS)
def test_the_loss_of_a_mixture_is_the_mixture_of_losses(task: Task, way: str) -> None:
    """As mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) need it; without weights it is torch's loss of soft targets."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator)
    one, other = (functional.one_hot(torch.randint(3, (5,), generator=generator), 3).float() for _ in range(2))
    objective = Objective(task, way, torch.cat([one, other, torch.eye(3)]).double().numpy())
    mixed = 0.3 * objective.loss(logits, one, 5) + 0.7 * objective.loss(logits, other, 5)
    torch.testing.assert_close(objective.loss(logits, 0.3 * one + 0.7 * other, 5), mixed)
    if (task, way) == (Task.MULTICLASS, "none"):
        torch.testing.assert_close(mixed, functional.cross_entropy(logits, 0.3 * one + 0.7 * other))


# Losses of plug-ins


def own_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, targets, reduction="none")


def own_binary(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


@pytest.mark.parametrize("way", sorted(set(WAYS) - {"focal"}))
@pytest.mark.parametrize(("task", "own"), [(Task.MULTICLASS, own_cross_entropy), (Task.MULTILABEL, own_binary)])
def test_a_plug_ins_loss_is_weighted_and_masked_like_the_tasks_own(task: Task, own: Loss, way: str) -> None:
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = several_labels(200, 0)
    if task is Task.MULTICLASS:
        targets = one_hot(np.random.default_rng(0).choice(3, 200, p=[0.8, 0.15, 0.05]), 3)
        targets[::7] = np.nan
    ours, theirs = Objective(task, way, targets), Objective(task, way, targets, own)
    for drawn in (False, True):
        found = theirs.loss(logits, torch.from_numpy(targets), 7, drawn=drawn)
        torch.testing.assert_close(found, ours.loss(logits, torch.from_numpy(targets), 7, drawn=drawn))


def test_a_loss_of_another_shape_is_refused_with_the_shape_it_needs() -> None:
    targets = several_labels(4, 0)
    objective = Objective(Task.MULTILABEL, "none", targets, own_cross_entropy)
    with pytest.raises(TrainingError, match=r"must have the shape \(frames, labels\) = \(4, 3\)\. Got \(4,\) instead\."):
        objective.loss(torch.zeros(4, 3), torch.from_numpy(targets), 1)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ("train.loss=nothing", "train.loss: no plug-in registers the loss nothing; registered are: "),
        ("train.imbalance=focal", "train.imbalance: focal is a loss itself, and train.loss is of_the_tests. Set another, for"),
    ],
)
def test_a_loss_that_cannot_be_used_is_a_fault_before_training(settings: str, fault: str) -> None:
    register_plugin("loss", "of_the_tests")(own_cross_entropy)
    config = load_config("smoke", ["train.loss=of_the_tests", settings])
    with pytest.raises(ConfigError) as caught:
        start_network(config, ("A", "B"))
    assert caught.value.faults[0].startswith(fault)
    assert find_loss(load_config("smoke", ["train.loss=of_the_tests"])) is own_cross_entropy


# The balanced sampler


@pytest.mark.parametrize("task", KINDS)
def test_frames_that_are_drawn_have_the_class_weighted_loss_on_average(task: Task) -> None:
    rng = np.random.default_rng(0)
    exclusive = one_hot(rng.choice(3, 200, p=[0.8, 0.15, 0.05]), 3)
    targets = several_labels(200, 0) if task is Task.MULTILABEL else exclusive
    logits = torch.from_numpy(rng.normal(size=targets.shape))
    drawn, weighted = (Objective(task, way, targets) for way in ("balanced_sampler", "class_weights"))
    truth = torch.from_numpy(targets)
    rates = drawn._rates(truth)
    assert rates.mean().item() == pytest.approx(1)
    each = [drawn.loss(logits[row : row + 1], truth[row : row + 1], 1.0, drawn=True) for row in range(200)]
    expected = weighted.loss(logits, truth, 1.0)
    torch.testing.assert_close((torch.stack(each) * rates).sum(), expected)
    torch.testing.assert_close(drawn.loss(logits, truth, 1.0), expected)


def test_labels_that_exclude_each_other_are_drawn_equally_often() -> None:
    targets = one_hot(np.repeat(np.arange(3), [900, 80, 20]), 3)
    objective = Objective(Task.MULTICLASS, "balanced_sampler", targets)
    orders = np.stack([objective.epoch_order(targets, np.random.default_rng(seed)) for seed in range(30)])
    assert orders.shape == (30, 1000)
    np.testing.assert_allclose(targets[orders.ravel()].mean(0), 1 / 3, atol=0.01)
    again = objective.epoch_order(targets, np.random.default_rng(0))
    np.testing.assert_array_equal(again, orders[0])


def test_otherwise_every_frame_comes_once() -> None:
    targets = one_hot(np.arange(12) % 3, 3)
    for way in set(WAYS) - {"balanced_sampler"}:
        order = Objective(Task.MULTICLASS, way, targets).epoch_order(targets, np.random.default_rng(5))
        np.testing.assert_array_equal(order, np.random.default_rng(5).permutation(12))


# Probabilities stay those of the training split


def rare_finding(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, targets of (common, rare) and their true posterior: 1 frame in 21 is rare, two normal clouds."""
    rng = np.random.default_rng(seed)
    rare = rng.random(count) < 1 / 21
    centre = np.array([1.2, -0.8, 0.0, 0.5])
    features = rng.normal(size=(count, 4)) + rare[:, None] * centre
    odds = features @ centre - centre @ centre / 2 - np.log(20)
    chance = special.expit(odds)
    return features, np.stack([~rare, rare], 1).astype(float), np.stack([1 - chance, chance], 1)


def grades(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three grades of which the last is that of 1 frame in 21, and a label for each."""
    rng = np.random.default_rng(seed)
    prior = np.array([14, 6, 1]) / 21
    classes = rng.choice(3, count, p=prior)
    centres = np.array([[0, 0, 0, 0], [0.9, 0, 0.5, 0], [1.6, 0.5, 1.2, 0]])
    features = rng.normal(size=(count, 4)) + centres[classes]
    posterior = special.softmax(features @ centres.T - (centres**2).sum(1) / 2 + np.log(prior), 1)
    return features, one_hot(classes, 3), posterior


def layer_of(weight: np.ndarray, bias: np.ndarray) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64).requires_grad_(False)
    layer.weight.copy_(torch.from_numpy(weight))
    layer.bias.copy_(torch.from_numpy(bias))
    return layer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("task", "draw"),
    [(Task.BINARY, rare_finding), (Task.MULTILABEL, rare_finding), (Task.MULTICLASS, grades), (Task.ORDINAL, grades)],
)
def test_the_head_gives_the_true_posterior_of_a_rare_finding(task: Task, draw, way: str) -> None:
    """At 1:20, probabilities are right to 0.01 on average, and to 0.05 among frames whose finding is likelier than 0.2."""
    features, targets, _ = draw(20_000, 0)
    new, _, posterior = draw(5_000, 1)
    objective = Objective(task, way, targets)
    head = fit_head((features, targets), (features, targets), objective, HeadSection(weight_decays=(1e-7,)))
    layer = layer_of(head.weight, head.bias)
    taught = probabilities(layer(torch.from_numpy(new)), task.activation, 1.0)
    objective.restore_prior(layer)
    found = probabilities(layer(torch.from_numpy(new)), task.activation, 1.0)
    wrong = np.abs(found - posterior)
    likely = posterior[:, -1] > 0.2
    assert likely.sum() > 100
    assert wrong.mean() < 0.01
    assert wrong[likely].mean() < 0.05
    assert found[:, -1].mean() == pytest.approx(posterior[:, -1].mean(), abs=0.005)
    changed = way not in ("none", "focal")
    assert (np.abs(taught - posterior).mean() > 0.01) == changed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("unknown", [0.0, 0.4])
def test_in_small_batches_the_mean_probability_is_the_frequency(task: Task, way: str, unknown: float) -> None:
    """Batches of four, as they are drawn in fine-tuning; a network that knows nothing must end at the frequencies."""
    rng = np.random.default_rng(0)
    targets = one_hot(rng.choice(3, 400, p=[0.75, 0.2, 0.05]), 3)
    if unknown:  # more often so for frames with the common label, so that what a batch knows goes with what it holds
        hidden = rng.random(400) < unknown * (1 + targets[:, 0]) / 2
        targets[hidden] = np.nan
    frequency = np.nanmean(targets, axis=0)
    objective = Objective(task, way, targets)
    layer = torch.nn.Linear(1, 3, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    solver = torch.optim.LBFGS([layer.bias], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9)
    nothing = torch.zeros(4, 1, dtype=torch.float64)
    divisor = 4 * objective.terms(targets) / len(targets)
    batches = torch.from_numpy(targets).split(4)

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = sum((objective.loss(layer(nothing), batch, divisor) for batch in batches), torch.tensor(0.0)) / len(batches)
        loss.backward()
        return loss

    solver.step(closure)
    objective.restore_prior(layer)
    (found,) = probabilities(layer.bias.detach().numpy()[None], task.activation, 1.0)
    np.testing.assert_allclose(found, frequency, rtol=1e-3)


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.MULTILABEL])
def test_batches_of_the_balanced_sampler_teach_the_frequencies_too(task: Task) -> None:
    rng = np.random.default_rng(0)
    exclusive = one_hot(rng.choice(3, 300, p=[0.75, 0.2, 0.05]), 3)
    targets = several_labels(300, 1) if task is Task.MULTILABEL else exclusive
    objective = Objective(task, "balanced_sampler", targets)
    drawn = np.concatenate([objective.epoch_order(targets, np.random.default_rng(seed)) for seed in range(300)])
    layer = torch.nn.Linear(1, 3, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    solver = torch.optim.LBFGS([layer.bias], max_iter=100, line_search_fn="strong_wolfe")
    nothing, truth = torch.zeros(len(drawn), 1, dtype=torch.float64), torch.from_numpy(targets[drawn])

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = objective.loss(layer(nothing), truth, len(drawn), drawn=True)
        loss.backward()
        return loss

    solver.step(closure)
    objective.restore_prior(layer)
    (found,) = probabilities(layer.bias.detach().numpy()[None], task.activation, 1.0)
    np.testing.assert_allclose(found, np.nanmean(targets, axis=0), rtol=0.05)


# From an index to a bundle that scores


def graded(index: Index) -> Index:
    """The frames of an index with three grades: those with pneumonia are mild or severe in turn."""
    records, seen = [], dict.fromkeys(Split, 0)
    for record in index.records:
        grade = "NORMAL"
        if record.labels["PNEUMONIA"]:
            grade = ("MILD", "SEVERE")[seen[record.split] % 2]
            seen[record.split] += 1
        records.append(replace(record, labels={name: name == grade for name in ("MILD", "NORMAL", "SEVERE")}))
    return replace(index, records=tuple(records), labels=("MILD", "NORMAL", "SEVERE"))


def partly_unknown(index: Index) -> Index:
    """The frames of an index, some with an unknown label, one with none that is known."""
    records = [
        replace(record, labels=record.labels | ({"PNEUMONIA": None} if number % 3 == 1 else {}))
        for number, record in enumerate(index.records)
    ]
    records[0] = replace(records[0], labels=dict.fromkeys(index.labels))
    return replace(index, records=tuple(records))


def learned(trained: Trained, index: Index, out: Path, *settings: str) -> Bundle:
    quick = ("tracking.enabled=false", "train.finetune.epochs=2", "train.cache_features=false")
    return train(load_config(trained.config, [*quick, *settings]), index, out / "bundle")


def test_grades_go_from_an_index_to_a_bundle_that_scores(trained: Trained, tmp_path: Path) -> None:
    index = graded(load_index(trained.index))
    order = ("data.labels=[NORMAL, MILD, SEVERE]", "data.urgency=[]")
    bundle = learned(trained, index, tmp_path, "task=ordinal", "train.imbalance=balanced_sampler", *order)
    assert (bundle.manifest.task, bundle.manifest.labels) == (Task.ORDINAL, ("NORMAL", "MILD", "SEVERE"))
    assert bundle.manifest.urgency == ("SEVERE", "MILD")
    argmax = json.loads(bundle.read(METRICS))["evaluation"]["argmax"]
    assert argmax["quadratic_kappa"]["value"] is not None
    assert argmax["grade_error"]["low"] is not None
    card = bundle.read(MODEL_CARD).decode()
    assert "- task: ordinal, grades from the mildest to the worst: NORMAL, MILD, SEVERE\n" in card
    assert "Grades of the most probable label: quadratic weighted kappa" in card
    frame = next(read_frames(locate(trained.studies, index.of(Split.TEST)[0].source)))
    (result,) = Predictor(bundle).predict([frame])
    assert sum(one.probability for one in result.predictions) == pytest.approx(1)
    assert [heatmap.label for heatmap in result.heatmaps] == ["NORMAL", "MILD", "SEVERE"]


def test_unknown_labels_go_through_a_whole_run(trained: Trained, tmp_path: Path) -> None:
    index = partly_unknown(load_index(trained.index))
    bundle = learned(trained, index, tmp_path, "task=multilabel", "train.imbalance=focal", "data.normal_label=null")
    written = json.loads(bundle.read(METRICS))
    records = [record for record in index.of(Split.TEST) if record.labels["PNEUMONIA"] is not None]
    figures = written["evaluation"]["labels"]["PNEUMONIA"]
    assert figures["n_positive"] + figures["n_negative"] == len(records) < len(index.of(Split.TEST))
    assert written["frames_without_label"] == 1
    assert "counts neither as present nor as absent: PNEUMONIA in 13." in bundle.read(MODEL_CARD).decode()
    assert "1 more frames of the index were not used, since none of the labels is known" in bundle.read(MODEL_CARD).decode()
    again = evaluate_bundle(bundle, index).to_json()
    assert again["frames"] == written["evaluation"]["frames"]
    assert [again["labels"]["PNEUMONIA"][name] for name in ("n_positive", "n_negative")] == [
        figures["n_positive"],
        figures["n_negative"],
    ]
    assert np.isfinite([epoch["tune_loss"] for epoch in written["networks"][0]["epochs"]]).all()


def test_binary_is_multiclass_with_two_labels(trained: Trained, tmp_path: Path) -> None:
    index = load_index(trained.index)
    one, other = (learned(trained, index, tmp_path / task, f"task={task}") for task in ("binary", "multiclass"))
    assert one.read(WEIGHTS) == other.read(WEIGHTS)
    assert one.manifest.rule() == other.manifest.rule()
    assert json.loads(one.read(METRICS)) == json.loads(other.read(METRICS))
