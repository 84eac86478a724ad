"""The predictor against the same steps by scipy and the ONNX reference, and its refusals."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load, save

from pipeline.errors import BundleError, ConfigError, Reason, UnreadableError
from pipeline.frames import FloatArray, Quarantined
from pipeline.imaging.preprocess import prepare
from pipeline.model.bundle import GRAPH, REFERENCE, WEIGHTS, Bundle, write_bundle
from pipeline.predictions import ConformalBand, FramePrediction, OperatingPoint, State
from pipeline.score.predictor import Predictor
from pipeline.settings import Check, Policy, Preprocessing
from tests.builders import (
    make_bundle,
    make_frame,
    make_graph,
    make_key,
    make_known_pixels,
    make_pixels,
    make_quality,
    make_wary_bundle,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def rewrite(bundle: Bundle, **contents: bytes) -> Bundle:
    """The same bundle with some files changed, whole and with right hashes."""
    names = {"graph": GRAPH, "weights": WEIGHTS}
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    files |= {names[key]: content for key, content in contents.items()}
    fields = dict(bundle.manifest)
    return write_bundle(bundle.path, files, **{key: fields[key] for key in fields if key not in _OWN})


_OWN = {"schema_version", "bundle_id", "files"}


def test_what_a_frame_says_of_its_side_and_view_stands_beside_the_result(bundle: Bundle) -> None:
    frame = make_frame(laterality="L", view_position="PA")
    (result,) = Predictor(bundle).predict([frame])
    assert (result.facts.laterality, result.facts.view_position) == ("L", "PA")


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_it_does_what_the_bundle_says(tmp_path: Path, task: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", task=task)
    frame = make_frame()
    (result,) = Predictor(bundle).predict([frame])
    pixels = prepare(frame.pixels, bundle.manifest.preprocessing)[None]
    logits, features = ReferenceEvaluator(bundle.read(GRAPH)).run(None, {"pixels": pixels})
    scaled = logits[0] / bundle.manifest.calibration.temperatures[0]
    expected = scipy.special.softmax(scaled) if task == "multiclass" else scipy.special.expit(scaled)
    assert (result.key, result.source) == (frame.key, frame.source)
    assert [item.label for item in result.predictions] == ["NORMAL", "PNEUMONIA"]
    np.testing.assert_allclose([item.logit for item in result.predictions], logits[0], atol=1e-5)
    np.testing.assert_allclose([item.probability for item in result.predictions], expected, atol=1e-6)
    assert result.bundle_id == bundle.manifest.bundle_id
    weight = load(bundle.read(WEIGHTS))["classifier.weight"]
    for index, heatmap in enumerate(result.heatmaps):
        evidence = np.maximum(np.tensordot(weight[index], features[0], axes=1), 0) / features[0, 0].size
        np.testing.assert_allclose(heatmap.values, evidence, atol=1e-6)
        assert heatmap.has_positive_evidence == bool(evidence.any())
        assert heatmap.label == bundle.manifest.labels[index]


def test_a_probability_at_the_operating_point_is_positive(tmp_path: Path) -> None:
    """In a bundle without bands, as hand-made ones are."""
    (before,) = Predictor(make_bundle(tmp_path / "before", task="multilabel")).predict([make_frame()])
    normal, pneumonia = (item.probability for item in before.predictions)
    just_above = float(np.nextafter(pneumonia, 1)), float(np.nextafter(normal, 1))
    for number, (thresholds, states) in enumerate(
        [
            ((pneumonia, just_above[1]), ["negative", "positive"]),
            ((just_above[0], normal), ["positive", "negative"]),
        ]
    ):
        points = tuple(
            OperatingPoint(label, threshold, "youden", 0.9, 0.8)
            for label, threshold in zip(("PNEUMONIA", "NORMAL"), thresholds, strict=True)
        )
        made = make_bundle(tmp_path / f"after-{number}", operating_points=points, task="multilabel")
        (after,) = Predictor(made).predict([make_frame()])
        assert [item.state for item in after.predictions] == states


def test_a_frame_has_the_same_result_whatever_stands_beside_it(bundle: Bundle) -> None:
    predictor = Predictor(bundle)
    count = predictor.engine.frames_at_once * 2 + 1
    frames = [make_frame(pixels=make_pixels(40 + seed, 50, seed), key=make_key(seed + 1)) for seed in range(count)]
    together = predictor.predict(frames)
    for frame, result in zip(frames, together, strict=True):
        (alone,) = predictor.predict([frame])
        assert alone.predictions == result.predictions
        assert [heatmap.values.tobytes() for heatmap in alone.heatmaps] == [
            heatmap.values.tobytes() for heatmap in result.heatmaps
        ]


def test_heatmaps_are_left_out_if_they_are_not_wanted(bundle: Bundle) -> None:
    assert Predictor(bundle).predict([make_frame()], heatmaps=False)[0].heatmaps == ()


def test_no_frames_give_no_results(bundle: Bundle) -> None:
    assert Predictor(bundle).predict([]) == []


@pytest.mark.parametrize(
    ("frame", "use"),
    [
        ({"modality": "CR"}, {"modalities": ("CR", "DX"), "view_positions": ()}),
        ({"modality": ""}, {"modalities": ("CR", "DX"), "view_positions": ("PA",)}),
        ({"modality": "OPT"}, {"modalities": (), "view_positions": ()}),
        ({"view_position": "PA"}, {"modalities": (), "view_positions": ("PA", "AP")}),
    ],
)
def test_frames_within_the_intended_use_pass(frame: dict[str, str], use: dict[str, Any], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", intended_use=use, quality=make_quality(smallest_side=40))
    (result,) = Predictor(bundle).predict([make_frame(**frame)])
    assert {flag.check for flag in result.flags} <= {Check.INVERTED}  # what the pixels of a made-up frame look like


def test_frames_of_another_modality_are_refused(bundle: Bundle) -> None:
    with pytest.raises(UnreadableError, match=r"^The frame is of another modality than CR or DX\.") as caught:
        Predictor(bundle).predict([make_frame(), make_frame(modality="OPT")])
    assert caught.value.reason is Reason.WRONG_MODALITY


def test_frames_of_another_view_are_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", intended_use={"modalities": ("CR",), "view_positions": ("PA", "AP")})
    with pytest.raises(UnreadableError, match=r"^The header names another view than PA or AP") as caught:
        Predictor(bundle).predict([make_frame(view_position="LL")])
    assert caught.value.reason is Reason.NOT_FRONTAL


def test_what_the_gate_of_the_bundle_lets_pass_is_marked(tmp_path: Path) -> None:
    quality = make_quality({Check.TOO_SMALL: Policy.REJECT, Check.BLANK: Policy.FLAG}, smallest_side=40)
    predictor = Predictor(make_bundle(tmp_path / "bundle", quality=quality))
    blank = make_frame(pixels=np.zeros((50, 50), np.float32))
    plain, marked = predictor.predict([make_frame(), blank])
    assert plain.flags == ()
    assert [flag.check for flag in marked.flags] == [Check.BLANK]
    with pytest.raises(UnreadableError, match="at least 40"):
        predictor.predict([make_frame(pixels=make_pixels(39, 50))])


def test_a_bundle_that_needs_text_recognition_says_so_before_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)  # as if it were not installed
    quality = make_quality({Check.BURNED_IN_TEXT: Policy.FLAG})
    with pytest.raises(ConfigError, match=r"pip install 'octray\[ocr\]'"):
        Predictor(make_bundle(tmp_path / "bundle", quality=quality))


def test_a_graph_of_another_size_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", preprocessing=Preprocessing(size=64, exact_decoding=True))
    with pytest.raises(BundleError, match="takes 32 pixels, the manifest says 64"):
        Predictor(bundle)


def test_a_graph_with_other_labels_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="returns 3 logits for 2 labels"):
        Predictor(rewrite(bundle, graph=make_graph(labels=3)))


def test_a_classifier_of_another_shape_is_refused(bundle: Bundle) -> None:
    weights = save({"classifier.weight": np.zeros((2, 9), np.float32)})
    with pytest.raises(BundleError, match=r"The classifier has shape \(2, 9\) instead of \(2, 4\)"):
        Predictor(rewrite(bundle, weights=weights))


@pytest.mark.parametrize("weights", [b"not safetensors", save({"other": np.zeros(1, np.float32)})])
def test_weights_without_the_classifier_are_refused(weights: bytes, bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"have no tensor classifier\.weight"):
        Predictor(rewrite(bundle, weights=weights))


def test_a_label_without_an_operating_point_is_refused(tmp_path: Path) -> None:
    points = (OperatingPoint("NORMAL", 0.5, "youden", 0.9, 0.8),)
    with pytest.raises(BundleError, match="no operating point for PNEUMONIA"):
        Predictor(make_bundle(tmp_path / "bundle", operating_points=points))


def unlike() -> np.ndarray:
    """Fine stripes, where `make_known_pixels` has large even fields."""
    return np.tile(np.array([0.0, 1.0], np.float32), (48, 20))


def test_a_frame_unlike_the_training_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    predictor = Predictor(make_wary_bundle(tmp_path / "bundle"))
    known = [make_frame(pixels=make_known_pixels(seed)) for seed in range(3)]
    strange = make_frame(pixels=unlike(), key=make_key(7), source="a/b.dcm")
    frames = [predictor.admission.admit(frame) for frame in (known[0], strange, *known[1:])]
    first, refused, *rest = predictor.predict_admitted(frames)
    assert isinstance(refused, Quarantined)
    assert (refused.source, refused.frame_number, refused.reason) == ("a/b.dcm", 7, Reason.OUT_OF_DISTRIBUTION)
    assert refused.message.startswith("The frame is unlike the images that the bundle was trained on (distance ")
    for result, frame in zip([first, *rest], known, strict=True):
        assert isinstance(result, FramePrediction)
        assert 0 <= result.distance <= 1
        (alone,) = predictor.predict([frame])
        assert alone.distance == result.distance
    with pytest.raises(UnreadableError, match="refused above 1") as caught:
        predictor.predict([strange])
    assert caught.value.reason is Reason.OUT_OF_DISTRIBUTION


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": np.zeros(1, np.float32)}, r"reference\.safetensors of bundle bundle cannot be used"),
        (
            {"mean": np.zeros(3, np.float32), "whitening": np.eye(3, dtype=np.float32)},
            r"The reference has 3 features for \d+ of the graph\. Train the bundle again\.",
        ),
    ],
)
def test_a_reference_that_is_damaged_or_of_another_network_is_refused(
    tensors: dict[str, FloatArray], message: str, tmp_path: Path
) -> None:
    wary = make_wary_bundle(tmp_path / "bundle")
    contents = {name: wary.read(name) for name in wary.manifest.files} | {REFERENCE: save(tensors)}
    fields = {key: value for key, value in wary.manifest if key not in _OWN}
    with pytest.raises(BundleError, match=message):
        Predictor(write_bundle(wary.path, contents, **fields))


def test_inside_its_band_a_label_is_uncertain(tmp_path: Path) -> None:
    conformal = {"alpha": 0.1, "bands": (ConformalBand("PNEUMONIA", 0.0, 1.1),)}
    (result,) = Predictor(make_bundle(tmp_path / "bundle", conformal=conformal)).predict([make_frame()])
    normal, pneumonia = result.predictions
    assert (pneumonia.conformal_set, pneumonia.state) == (("present", "absent"), State.UNCERTAIN)
    assert normal.state is (State.UNCERTAIN if normal.probability >= 0.5 else State.NEGATIVE)
    assert normal.operating_point == 0.5


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_states_are_those_of_the_rule(task: str, tmp_path: Path) -> None:
    labels = ("NORMAL", "CNV", "DME")
    bands = tuple(ConformalBand(label, 0.2, 0.45) for label in labels)
    points = tuple(OperatingPoint(label, 0.3, "youden", 0.9, 0.8) for label in labels)
    conformal = {"alpha": 0.1, "bands": bands}
    made = make_bundle(tmp_path / "b", labels, conformal=conformal, operating_points=points, task=task)
    frames = [make_frame(pixels=make_pixels(40 + seed, 50, seed)) for seed in range(12)]
    results = Predictor(made).predict(frames, heatmaps=False)
    chances = np.array([[one.probability for one in result.predictions] for result in results])
    expected = made.manifest.rule().states(chances).tolist()
    assert [[one.state for one in result.predictions] for result in results] == expected
