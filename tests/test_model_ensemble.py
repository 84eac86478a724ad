"""Several networks of one bundle: averages, maps and disagreement against what is worked out by hand from each network."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.special
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import save

from pipeline.errors import BundleError
from pipeline.evaluate.outliers import Reference, pooled
from pipeline.model.bundle import REFERENCE, Bundle, write_bundle
from pipeline.model.engine import Engine
from pipeline.model.ensemble import averaged_logits, mean_maps
from pipeline.predictions import Activation, Average, StudyRecord
from pipeline.results.tables import rows_of
from pipeline.score.predictor import Predictor
from tests.builders import make_bundle, make_frame, make_graph, make_member, make_pixels, make_support

LABELS = ("NORMAL", "PNEUMONIA")


def make_ensemble(path: Path, networks: int = 3, labels: tuple[str, ...] = LABELS, **fields: Any) -> Bundle:
    """A bundle of several tiny networks with different weights."""
    plain = make_bundle(path / "plain", labels)
    contents = {name: plain.read(name) for name in plain.manifest.files}
    members = []
    for number in range(networks):
        graph = make_graph(len(labels), seed=number)
        tensors = {one.name: numpy_helper.to_array(one) for one in onnx.load_from_string(graph).graph.initializer}
        files = {"graph": f"model-{number}.onnx", "weights": f"weights-{number}.safetensors"}
        contents |= {files["graph"]: graph, files["weights"]: save({"classifier.weight": tensors["weight"].copy()})}
        members.append(make_member(f"tiny{number}") | files)
    own = {name: value for name, value in plain.manifest if name not in ("schema_version", "bundle_id", "files")}
    heatmap = make_support(members=tuple(range(networks)))
    contents[REFERENCE] = Reference(np.zeros(4), np.eye(4), 2.0).to_bytes()
    return write_bundle(path / "ensemble", contents, **(own | {"members": members, "heatmap": heatmap} | fields))


def outputs(bundle: Bundle, pixels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits and features of each network, by the reference implementation of ONNX."""
    found = []
    for member in bundle.manifest.members:
        logits, features = ReferenceEvaluator(bundle.read(member.graph)).run(None, {"pixels": pixels})
        found.append((np.asarray(logits, np.float64), np.asarray(features)))
    return found


@pytest.mark.parametrize("activation", [Activation.SOFTMAX, Activation.SIGMOID])
def test_probabilities_are_averaged_as_said(activation: Activation) -> None:
    logits = np.random.default_rng(0).normal(0, 6, (3, 5, 4)).astype(np.float32)
    function = (lambda values: scipy.special.softmax(values, axis=-1)) if activation == "softmax" else scipy.special.expit
    mean = averaged_logits(logits, Average.PROBABILITY, activation)
    np.testing.assert_allclose(function(mean.astype(np.float64)), function(logits.astype(np.float64)).mean(0), rtol=1e-4)
    np.testing.assert_allclose(averaged_logits(logits, Average.LOGIT, activation), logits.mean(0), rtol=1e-5)


def test_an_average_of_certain_networks_is_finite() -> None:
    logits = np.array([[[900.0, -900.0]], [[-900.0, 900.0]]], np.float32)
    for activation in Activation:
        assert np.isfinite(averaged_logits(logits, Average.PROBABILITY, activation)).all()


@pytest.mark.parametrize("average", list(Average))
def test_one_network_alone_is_left_as_it_is(average: Average) -> None:
    logits = np.random.default_rng(0).normal(0, 6, (1, 5, 4)).astype(np.float32)
    assert averaged_logits(logits, average, Activation.SOFTMAX).tobytes() == logits[0].tobytes()


@pytest.mark.parametrize("average", list(Average))
def test_an_ensemble_answers_with_the_average_of_its_networks(average: Average, tmp_path: Path) -> None:
    bundle = make_ensemble(tmp_path, average=average)
    predictor = Predictor(bundle)
    frame = make_frame()
    (result,) = predictor.predict([frame])
    pixels = predictor.admission.admit(frame).pixels[None]
    each = [logits[0] for logits, _ in outputs(bundle, pixels)]
    temperature = bundle.manifest.calibration.temperatures[0]
    if average is Average.LOGIT:
        logits = np.mean(each, axis=0)
    else:
        logits = np.log(np.mean([scipy.special.softmax(one) for one in each], axis=0))
    expected = scipy.special.softmax(logits / temperature)
    np.testing.assert_allclose([one.probability for one in result.predictions], expected, atol=1e-5)
    apart = np.std([scipy.special.softmax(one / temperature) for one in each], axis=0)
    np.testing.assert_allclose([one.disagreement for one in result.predictions], apart, atol=1e-5)
    assert [row["disagreement"] for row in rows_of(result)] == [round(one.disagreement or 0, 4) for one in result.predictions]
    record = StudyRecord("1", (result.without_content(),))
    restored = StudyRecord.from_json(record.to_json()).frames[0].predictions
    np.testing.assert_allclose([one.disagreement for one in restored], apart, atol=1e-4)


def test_one_network_has_nothing_to_disagree_with(tmp_path: Path) -> None:
    (result,) = Predictor(make_bundle(tmp_path / "bundle")).predict([make_frame()])
    assert [one.disagreement for one in result.predictions] == [None, None]
    assert rows_of(result)[0]["disagreement"] is None
    assert b"disagreement" not in StudyRecord("1", (result.without_content(),)).to_json()


@pytest.mark.parametrize("shown", [(0, 1, 2), (1,), (0, 2)])
def test_heatmaps_are_the_mean_of_those_that_are_shown(shown: tuple[int, ...], tmp_path: Path) -> None:
    bundle = make_ensemble(tmp_path, heatmap=make_support(members=shown))
    predictor, frame = Predictor(bundle), make_frame()
    (result,) = predictor.predict([frame])
    signed = []
    for place, (_, features) in enumerate(outputs(bundle, predictor.admission.admit(frame).pixels[None])):
        if place in shown:
            initial = onnx.load_from_string(bundle.read(f"model-{place}.onnx")).graph.initializer
            (weight,) = (numpy_helper.to_array(one) for one in initial if one.name == "weight")
            signed.append(np.einsum("lc,chw->lhw", weight, features[0]) / features[0, 0].size)
    expected = np.maximum(np.mean(signed, axis=0), 0)
    np.testing.assert_allclose([one.values for one in result.heatmaps], expected, atol=1e-5)


def test_maps_of_different_grids_keep_their_sums() -> None:
    rng = np.random.default_rng(0)
    maps = [rng.random((2, 3, *shape), np.float32) for shape in ((7, 7), (9, 9), (16, 12))]
    mean = mean_maps(maps)
    assert mean.shape == (2, 3, 16, 12)
    np.testing.assert_allclose(mean.sum((2, 3)), np.mean([one.sum((2, 3)) for one in maps], axis=0), rtol=1e-5)
    even = mean_maps([np.full((1, 1, 7, 7), 1 / 49, np.float32), np.full((1, 1, 16, 16), 1 / 256, np.float32)])
    np.testing.assert_allclose(even, 1 / 256, rtol=1e-5)


def test_what_speaks_against_a_label_in_one_network_counts_against_another() -> None:
    first, second = (np.full((1, 1, 2, 2), value, np.float32) for value in (3.0, -1.0))
    np.testing.assert_array_equal(mean_maps([first, second]), np.full((1, 1, 2, 2), 1.0, np.float32))
    np.testing.assert_array_equal(mean_maps([second]), np.zeros((1, 1, 2, 2), np.float32))


def test_distances_are_measured_in_the_features_that_the_manifest_names(tmp_path: Path) -> None:
    outliers = {"threshold": 2.0, "calibration_frames": 30, "member": 1}
    bundle = make_ensemble(tmp_path, outliers=outliers)
    predictor, frame = Predictor(bundle), make_frame()
    (result,) = predictor.predict([frame])
    features = outputs(bundle, predictor.admission.admit(frame).pixels[None])[1][1]
    assert result.distance == pytest.approx(Reference(np.zeros(4), np.eye(4), 2.0).distance(pooled(features[0])), abs=1e-5)


def test_frames_of_an_ensemble_do_not_depend_on_their_neighbours(tmp_path: Path) -> None:
    predictor = Predictor(make_ensemble(tmp_path), threads=1)
    assert predictor.engine.frames_at_once == Engine(make_graph(), threads=1).frames_at_once
    assert predictor.engine.calls(4) == 4
    frames = [make_frame(pixels=make_pixels(40 + seed, 50, seed)) for seed in range(5)]
    together = predictor.predict(frames)
    assert [predictor.predict([frame])[0].predictions for frame in frames] == [one.predictions for one in together]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (make_graph(labels=3), r"different numbers of logits \(2, 2, 3\)"),
        (make_graph(size=64), r"different sizes \(32, 32, 64 pixels\)"),
    ],
)
def test_graphs_that_do_not_belong_together_are_refused(graph: bytes, message: str, tmp_path: Path) -> None:
    bundle = make_ensemble(tmp_path)
    contents = {name: bundle.read(name) for name in bundle.manifest.files} | {"model-2.onnx": graph}
    fields = {name: value for name, value in bundle.manifest if name not in ("schema_version", "bundle_id", "files")}
    with pytest.raises(BundleError, match=message):
        Predictor(write_bundle(bundle.path, contents, **fields))


@pytest.mark.parametrize(
    "changed", [{"heatmap": make_support(members=(3,))}, {"outliers": {"threshold": 2.0, "calibration_frames": 3, "member": 3}}]
)
def test_a_manifest_that_names_a_network_that_is_not_there_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    from pipeline.model.bundle import load_bundle

    with pytest.raises(BundleError, match="does not describe a whole bundle"):
        load_bundle(make_ensemble(tmp_path, **changed).path)
