"""The ways to train: which layers learn, from which frames, and a probe against scikit-learn."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.config import HeadSection, load_config
from pipeline.errors import InputError
from pipeline.frames import ImageRecord, Split
from pipeline.ingest.index import Index, load_index
from pipeline.model.bundle import GRAPH, METRICS, MODEL_CARD, WEIGHTS, Bundle
from pipeline.predictions import Task
from pipeline.train.features import FeatureCache
from pipeline.train.fit import start_network
from pipeline.train.head import fit_probe
from pipeline.train.run import train
from pipeline.train.tasks import Objective
from pipeline.train.trainer import mean_auroc
from tests.conftest import Trained

QUICK = ("tracking.enabled=false", "train.cache_features=false", "train.finetune.epochs=2")


@pytest.fixture(scope="module")
def index(trained: Trained) -> Index:
    return load_index(trained.index)


def changed(bundle: Bundle, trained: Trained, *overrides: str) -> set[str]:
    """The parameters and statistics of the network that training changed."""
    start = start_network(load_config(trained.config, overrides), bundle.manifest.labels)[0].body.state_dict()
    return {name for name, value in load_file(bundle.path / WEIGHTS).items() if not torch.equal(value, start[name])}


def head_of(bundle: Bundle) -> dict[str, float]:
    (network,) = json.loads(bundle.read(METRICS))["networks"]
    return dict(network["head"])


def test_a_probe_changes_the_head_alone(trained: Trained, index: Index, tmp_path: Path) -> None:
    overrides = (*QUICK, "train.way=probe")
    bundle = train(load_config(trained.config, overrides), index, tmp_path / "bundle")
    assert changed(bundle, trained, *overrides) == {"fc.weight", "fc.bias"}
    assert json.loads(bundle.read(METRICS))["networks"][0]["epochs"] == []
    assert head_of(bundle)["head_weight_decay"] in (10.0, 3.0)


def test_full_training_from_random_weights_has_no_probe(trained: Trained, index: Index, tmp_path: Path) -> None:
    overrides = (*QUICK, "train.way=full", "train.finetune.learning_rate=0.001")
    bundle = train(load_config(trained.config, overrides), index, tmp_path / "bundle")
    assert {"conv1.0.weight", "layer4.0.conv1.weight", "fc.weight"} <= changed(bundle, trained, *overrides)
    assert head_of(bundle) == {}


def test_full_training_from_given_weights_starts_with_the_head_of_a_probe(
    trained: Trained, index: Index, tmp_path: Path
) -> None:
    start, _ = start_network(load_config(trained.config, QUICK), ("NORMAL", "PNEUMONIA"))
    save_file({name: value.clone() for name, value in start.body.state_dict().items()}, tmp_path / "start.safetensors")
    weak = ("train.head.weight_decays=[1000.0]", "train.finetune.learning_rate=0.001", "train.finetune.epochs=4")
    overrides = (*QUICK, "train.way=full", *weak, f"model.weights={tmp_path / 'start.safetensors'}")
    bundle = train(load_config(trained.config, overrides), index, tmp_path / "bundle")
    assert "conv1.0.weight" in changed(bundle, trained, *overrides)
    assert head_of(bundle).keys() == {"head_tune_loss", "head_weight_decay"}


def test_a_probe_is_the_regression_of_scikit_learn_with_the_decay_that_folds_choose() -> None:
    rng = np.random.default_rng(0)
    classes, groups = rng.integers(0, 3, 120), np.repeat(np.arange(40), 3)
    features = rng.normal(size=(120, 6)) + np.eye(3, 6)[classes]
    mirrored = features + rng.normal(scale=0.1, size=features.shape)
    targets, folds = np.eye(3)[classes], np.zeros(120, np.int64)
    for number, (_, unseen) in enumerate(GroupKFold(4).split(features, groups=groups)):
        folds[unseen] = number
    decays = (3.0, 0.1, 0.01, 0.0001)
    settings = HeadSection(weight_decays=decays, epochs=500)
    objective = Objective(Task.MULTICLASS, "none", targets)
    head = fit_probe([features, mirrored], targets, folds, objective, settings)

    def regression(chosen: np.ndarray, decay: float) -> Any:
        both, truth = np.concatenate([features[chosen], mirrored[chosen]]), np.tile(classes[chosen], 2)
        model = LogisticRegression(C=1 / (len(both) * decay), max_iter=5000, tol=1e-8)
        return make_pipeline(StandardScaler(), model).fit(both, truth)

    losses, chances = [], []
    for decay in decays:
        unseen = np.zeros((120, 3))
        for fold in range(4):
            unseen[folds == fold] = regression(folds != fold, decay).predict_proba(features[folds == fold])
        losses.append(log_loss(classes, unseen))
        chances.append(unseen)
    assert head.weight_decay == decays[int(np.argmin(losses))]
    assert head.tune_loss == pytest.approx(min(losses), rel=1e-3)
    without = scipy.special.softmax(head.tune_logits, axis=1)
    np.testing.assert_allclose(without, chances[int(np.argmin(losses))], atol=2e-3)
    area = roc_auc_score(classes, without, multi_class="ovr", average="macro")
    assert mean_auroc(head.tune_logits, targets, Task.MULTICLASS.activation) == pytest.approx(area)
    expected = regression(np.ones(120, bool), head.weight_decay).predict_proba(features)
    found = scipy.special.softmax(features @ head.weight.T + head.bias, axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_fold_of_which_nothing_is_known_has_no_say() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(40, 4)), np.eye(2)[np.arange(40) % 2]
    targets[30:] = np.nan
    folds = np.arange(40) // 10
    head = fit_probe([features], targets, folds, Objective(Task.MULTICLASS, "none", targets), HeadSection())
    assert np.isfinite(head.tune_loss)
    assert np.isnan(head.tune_logits).any(axis=1).tolist() == [fold == 3 for fold in folds]


@pytest.mark.parametrize("way", ["probe", "staged"])
def test_only_a_probe_learns_from_the_tune_split(way: str, trained: Trained, index: Index, tmp_path: Path) -> None:
    """Tune frames with exchanged labels change the weights of a probe, and leave the head that `staged` starts from."""
    config = load_config(
        trained.config, [*QUICK, f"train.way={way}", "train.finetune.epochs=1", "train.head.weight_decays=[1.0]"]
    )
    turned = replace(index, records=tuple(exchanged(one) if one.split is Split.TUNE else one for one in index.records))
    plain, other = (train(config, one, tmp_path / str(number)) for number, one in enumerate((index, turned)))
    before, after = (load_file(one.path / WEIGHTS)["fc.weight"] for one in (plain, other))
    if way == "probe":
        assert not torch.allclose(before, after)
    else:
        first, second = (json.loads(one.read(METRICS))["networks"][0]["epochs"][1] for one in (plain, other))
        assert first["train_loss"] == second["train_loss"]


def exchanged(record: ImageRecord) -> ImageRecord:
    return replace(record, labels={label: not holds for label, holds in record.labels.items()})


def test_features_from_the_cache_give_the_same_bundle(
    trained: Trained, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = load_config(trained.config, ["tracking.enabled=false", "train.way=probe"])
    plain = train(load_config(trained.config, [*QUICK, "train.way=probe"]), index, tmp_path / "plain")
    assert not (tmp_path / "cache" / "octray" / "features.sqlite3").exists()
    first = train(config, index, tmp_path / "first")
    assert (tmp_path / "cache" / "octray" / "features.sqlite3").is_file()
    monkeypatch.setattr(FeatureCache, "write", lambda *_: pytest.fail("features were computed again"))
    second = train(config, index, tmp_path / "second")
    assert first.read(WEIGHTS) == second.read(WEIGHTS) == plain.read(WEIGHTS)
    assert first.read(GRAPH) == second.read(GRAPH) == plain.read(GRAPH)
    np.testing.assert_equal(json.loads(first.read(METRICS)), json.loads(second.read(METRICS)))


def test_a_bundle_says_which_weights_and_which_range_its_network_started_from(
    trained: Trained, index: Index, tmp_path: Path
) -> None:
    start, _ = start_network(load_config(trained.config, QUICK), ("NORMAL", "PNEUMONIA"))
    mine = tmp_path / "mine.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in start.body.state_dict().items()}}, mine)
    overrides = (*QUICK, "train.way=probe", f"model.weights={mine}", "model.input_range=[-1024, 1024]")
    (member,) = train(load_config(trained.config, overrides), index, tmp_path / "bundle").manifest.members
    assert member.started_from.model_dump() == {
        "name": "mine.pth",
        "sha256": hashlib.sha256(mine.read_bytes()).hexdigest(),
        "unused": (),
    }
    assert member.normalisation.model_dump() == {"mean": (0.5,) * 3, "std": (1 / 2048,) * 3}
    assert f"started from mine.pth (sha256 {member.started_from.sha256})" in (tmp_path / "bundle" / MODEL_CARD).read_text()


def test_a_run_is_not_resumed_with_another_file_of_weights(trained: Trained, index: Index, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.pth", tmp_path / "bundle"
    config = load_config(trained.config, (*QUICK, f"model.weights={mine}"))
    torch.save({"no": torch.zeros(1)}, mine)
    with pytest.raises(InputError, match="hold no tensor of test_resnet"):
        train(config, index, out)
    torch.save({"other": torch.zeros(1)}, mine)
    with pytest.raises(InputError, match=r"bundle.work belongs to a run with another configuration, index or file of weights"):
        train(config, index, out, resume=True)
