"""The ways to train: which layers learn, from which frames, and a probe against scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import load_config
from pipeline.ingest.index import Index, load_index
from pipeline.model.bundle import METRICS, WEIGHTS, Bundle
from pipeline.train.fit import start_network
from pipeline.train.run import train
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
    rate = "train.finetune.learning_rate=0.0005"
    overrides = (*QUICK, "train.way=full", rate, f"model.weights={tmp_path / 'start.safetensors'}")
    bundle = train(load_config(trained.config, overrides), index, tmp_path / "bundle")
    assert "conv1.0.weight" in changed(bundle, trained, *overrides)
    assert head_of(bundle).keys() == {"head_tune_loss", "head_weight_decay"}


def test_features_from_the_cache_give_the_same_bundle(
    trained: Trained, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = load_config(trained.config, ["tracking.enabled=false", "train.way=probe"])
    plain = train(load_config(trained.config, [*QUICK, "train.way=probe"]), index, tmp_path / "plain")
    assert not (tmp_path / "cache" / "octray" / "features.sqlite3").exists()
    first = train(config, index, tmp_path / "first")
    assert (tmp_path / "cache" / "octray" / "features.sqlite3").is_file()
    monkeypatch.setattr("pipeline.train.fit._Fitting._frozen", lambda *_: pytest.fail("the network ran again"))
    second = train(config, index, tmp_path / "second")
    assert first.read(WEIGHTS) == second.read(WEIGHTS) == plain.read(WEIGHTS)
    np.testing.assert_equal(json.loads(first.read(METRICS)), json.loads(second.read(METRICS)))
