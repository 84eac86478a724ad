"""A training run: the bundle against what scikit-learn, timm and scipy make of the same parts, and which frames it may use."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import scipy.special
import timm
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

import pipeline
from pipeline.config import Config, load_config
from pipeline.evaluate.calibration import fit_temperature
from pipeline.evaluate.outliers import pooled
from pipeline.frames import Split
from pipeline.imaging.preprocess import prepare
from pipeline.imaging.sources import locate, read_frames
from pipeline.ingest.index import Index, load_index
from pipeline.ingest.network_input import prepared_frames
from pipeline.model.bundle import (
    CONFIG,
    GRAPH,
    METRICS,
    MODEL_CARD,
    REFERENCE,
    REQUIRED_FILES,
    WEIGHTS,
    Bundle,
    load_bundle,
    write_bundle,
)
from pipeline.model.gradient_maps import gradient_maps
from pipeline.model.networks import create_network
from pipeline.predictions import Activation, HeatmapMethod
from pipeline.score.predictor import Predictor
from pipeline.train.run import train
from tests.conftest import Trained

PLOTS = {f"plots/{name}.png" for name in ("roc", "pr", "reliability", "decision_curve", "confusion", "most_probable")}


@pytest.fixture(scope="module")
def bundle(trained: Trained) -> Bundle:
    return load_bundle(trained.bundle)


@pytest.fixture(scope="module")
def index(trained: Trained) -> Index:
    return load_index(trained.index)


def pixels_of(bundle: Bundle, index: Index, split: Split) -> np.ndarray:
    return np.stack(list(prepared_frames(index.of(split), index.sources, bundle.manifest.preprocessing)))


def logits_of(bundle: Bundle, index: Index, split: Split) -> np.ndarray:
    session = onnxruntime.InferenceSession(bundle.read(GRAPH), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"pixels": pixels_of(bundle, index, split)})[0], np.float64)


def test_the_bundle_is_whole_and_the_workspace_is_gone(bundle: Bundle, trained: Trained) -> None:
    assert set(bundle.manifest.files) == REQUIRED_FILES | {REFERENCE} | PLOTS
    assert not trained.bundle.with_name("bundle.work").exists()


def test_the_manifest_says_what_was_trained_on_what(bundle: Bundle, index: Index, trained: Trained) -> None:
    manifest, origin = bundle.manifest, bundle.manifest.provenance
    config = load_config(trained.config)
    assert Config.model_validate(yaml.safe_load(bundle.read(CONFIG))) == config
    assert (manifest.labels, manifest.normal_label) == (("NORMAL", "PNEUMONIA"), "NORMAL")
    assert (manifest.urgency, manifest.label_names) == (("PNEUMONIA",), {"PNEUMONIA": "lung infection"})
    assert (manifest.architecture, manifest.task, manifest.preprocessing.size) == ("test_resnet", "multiclass", 64)
    assert (origin.dataset_name, origin.dataset_sha256) == (index.name, index.sha256)
    assert (origin.config_name, origin.seed) == ("tiny", 0)
    assert [member.started_from.name for member in manifest.members] == ["none"]
    assert origin.versions["torch"] == torch.__version__.partition("+")[0]


def test_weights_and_graph_are_one_network(bundle: Bundle, index: Index) -> None:
    body = timm.create_model("test_resnet", num_classes=2).eval()
    body.load_state_dict(load_file(bundle.path / WEIGHTS))
    normalisation = bundle.manifest.members[0].normalisation
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (normalisation.mean, normalisation.std))
    with torch.no_grad():
        expected = body((torch.from_numpy(pixels_of(bundle, index, Split.TEST)) - mean) / std).numpy()
    np.testing.assert_allclose(logits_of(bundle, index, Split.TEST), expected, atol=1e-4)


def test_the_figures_are_scikit_learns_on_the_test_split(bundle: Bundle, index: Index) -> None:
    evaluation = json.loads(bundle.read(METRICS))["evaluation"]
    records = index.of(Split.TEST)
    chances = scipy.special.softmax(logits_of(bundle, index, Split.TEST) / bundle.manifest.calibration.temperatures[0], axis=1)
    truth = index.targets(records, bundle.manifest.labels)
    states = bundle.manifest.rule().states(chances)
    assert (evaluation["frames"], evaluation["patients"]) == (len(records), len({record.patient_key for record in records}))
    for column, point in enumerate(bundle.manifest.operating_points):
        found = evaluation["labels"][point.label]
        figures = {name: estimate["value"] for name, estimate in found["metrics"].items()}
        present = truth[:, column] == 1
        assert found["threshold"] == point.threshold
        assert figures["auroc"] == pytest.approx(roc_auc_score(truth[:, column], chances[:, column]))
        assert figures["average_precision"] == pytest.approx(average_precision_score(truth[:, column], chances[:, column]))
        assert figures["brier"] == pytest.approx(brier_score_loss(truth[:, column], chances[:, column]), abs=1e-6)
        assert figures["sensitivity"] == pytest.approx((states[present, column] == "positive").mean())
        assert figures["specificity"] == pytest.approx((states[~present, column] == "negative").mean())


def test_temperature_and_operating_points_are_those_of_the_calibration_split(bundle: Bundle, index: Index) -> None:
    logits = logits_of(bundle, index, Split.CALIBRATION)
    truth = index.targets(index.of(Split.CALIBRATION), bundle.manifest.labels)
    assert fit_temperature(logits, truth, Activation.SOFTMAX) == pytest.approx(
        bundle.manifest.calibration.temperatures[0], rel=1e-4
    )
    chances = scipy.special.softmax(logits / bundle.manifest.calibration.temperatures[0], axis=1)
    states = bundle.manifest.rule().states(chances)
    for column, (point, band) in enumerate(zip(bundle.manifest.operating_points, bundle.manifest.conformal.bands, strict=True)):
        missed, found, _ = roc_curve(truth[:, column], chances[:, column])
        present, positive = truth[:, column] == 1, chances[:, column] >= point.threshold
        assert positive[present].mean() - positive[~present].mean() == pytest.approx((found - missed).max())
        assert band.present_from <= point.threshold <= band.absent_below
        assert point.sensitivity == pytest.approx((states[present, column] == "positive").mean())
        assert point.specificity == pytest.approx((states[~present, column] == "negative").mean())


def test_the_manifest_says_how_often_the_bundle_does_not_answer(bundle: Bundle, index: Index) -> None:
    records, manifest = index.of(Split.TEST), bundle.manifest
    chances = scipy.special.softmax(logits_of(bundle, index, Split.TEST) / manifest.calibration.temperatures[0], axis=1)
    states = manifest.rule().states(chances)
    said, refused = manifest.conformal.measured, manifest.outliers.measured
    assert said is not None
    assert refused is not None
    patients = {record.patient_key for record in records}
    assert (said.frames, said.patients) == (refused.frames, refused.patients) == (len(records), len(patients))
    assert said.uncertain.value == pytest.approx((states == "uncertain").any(axis=1).mean())
    predictor = Predictor(bundle)
    distances = [
        predictor._reference.distance(pooled(predictor.engine.run(frame[None]).features[0][0]))
        for frame in pixels_of(bundle, index, Split.TEST)
    ]
    concerned = {record.patient_key for record, distance in zip(records, distances, strict=True) if distance > 1}
    assert (refused.refused_frames, refused.refused_patients) == (sum(one > 1 for one in distances), len(concerned))
    assert refused.low <= refused.refused_patients / refused.patients <= refused.high
    calibration = {record.patient_key for record in index.of(Split.CALIBRATION)}
    assert manifest.outliers.calibration_patients == len(calibration)
    written = json.loads(bundle.read(METRICS))
    assert written["states"] == json.loads(said.model_dump_json())
    assert written["refusals"] == json.loads(refused.model_dump_json())


def test_the_best_epoch_is_the_one_with_the_lowest_tune_loss(bundle: Bundle) -> None:
    (metrics,) = json.loads(bundle.read(METRICS))["networks"]
    losses = [epoch["tune_loss"] for epoch in metrics["epochs"]]
    assert metrics["best_epoch"] == int(np.argmin(losses))
    assert metrics["best_epoch"] > 0, "the run must test more than its head"


@pytest.fixture(scope="module")
def untested(trained: Trained, index: Index, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same run on an index whose test split was taken away."""
    rest = replace(index, records=tuple(record for record in index.records if record.split is not Split.TEST))
    config = load_config(trained.config, ["tracking.enabled=false"])
    return train(config, rest, tmp_path_factory.mktemp("untested") / "bundle")


def test_no_test_frame_has_a_part_in_what_is_learned(bundle: Bundle, untested: Bundle) -> None:
    assert untested.read(WEIGHTS) == bundle.read(WEIGHTS)
    assert untested.manifest.calibration == bundle.manifest.calibration
    assert untested.manifest.operating_points == bundle.manifest.operating_points


def test_without_a_test_split_nothing_is_claimed(untested: Bundle) -> None:
    assert json.loads(untested.read(METRICS))["evaluation"] is None
    assert "Not measured: the index has no test split." in untested.read(MODEL_CARD).decode()
    assert json.loads(untested.read(METRICS))["states"] is None
    assert untested.manifest.conformal.measured is None
    assert set(untested.manifest.files) == REQUIRED_FILES | {REFERENCE}


def test_the_method_of_the_configuration_is_that_of_the_bundle(trained: Trained, index: Index, tmp_path: Path) -> None:
    quick = ("tracking.enabled=false", "train.way=probe", "heatmap.method=layercam")
    support = train(load_config(trained.config, quick), index, tmp_path / "bundle").manifest.heatmap
    assert (support.method, support.meaning) == ("layercam", "evidence by layercam")


@pytest.mark.parametrize(
    ("method", "meaning"),
    [
        ("grad-cam", "exact evidence"),
        ("hirescam", "exact evidence"),
        ("grad-cam++", "evidence by grad-cam++"),
        ("layercam", "evidence by layercam"),
    ],
)
def test_the_method_of_the_bundle_makes_its_maps(
    bundle: Bundle, trained: Trained, index: Index, tmp_path: Path, method: HeatmapMethod, meaning: str
) -> None:
    contents = {name: bundle.read(name) for name in bundle.manifest.files}
    fields = {name: value for name, value in bundle.manifest if name not in ("schema_version", "bundle_id", "files")}
    fields["heatmap"] = bundle.manifest.heatmap.model_copy(update={"method": method})
    frame = next(read_frames(locate(trained.studies, index.of(Split.TEST)[0].source)))
    scored_with = write_bundle(tmp_path / "bundle", contents, **fields)
    (found,) = Predictor(scored_with).predict([frame])
    network = create_network(bundle.manifest.architecture, 2).eval()
    network.body.load_state_dict(load_file(bundle.path / WEIGHTS))
    with torch.no_grad():
        _, features = network(torch.from_numpy(prepare(frame.pixels, bundle.manifest.preprocessing)[None]))
    expected = gradient_maps(network, features.numpy(), method)[0]
    assert expected.max() > 0
    np.testing.assert_allclose([heatmap.values for heatmap in found.heatmaps], expected, atol=1e-4)
    assert scored_with.manifest.heatmap.meaning == meaning


def test_a_commit_of_somebody_elses_checkout_is_not_claimed(tmp_path: Path) -> None:
    shutil.copytree(Path(pipeline.__file__).parent, tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "--quiet"], [*identity, "commit", "--quiet", "--allow-empty", "--message", "empty"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    ask = "from pipeline.train import tracking; print(tracking.__file__); print(repr(tracking._git_commit()))"
    done = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    place, commit = done.stdout.splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert commit == "''"
