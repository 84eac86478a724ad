"""Bundles without a closed form: the same maps as `grad-cam` gives for the network in memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from pipeline import plugins
from pipeline.config import load_config
from pipeline.errors import BundleError
from pipeline.evaluate.outliers import Reference
from pipeline.model.bodies import LeNet
from pipeline.model.bundle import (
    CONFIG,
    GRAPH,
    HOME,
    METRICS,
    MODEL_CARD,
    REFERENCE,
    WEIGHTS,
    Bundle,
    MapSupport,
    StartingWeights,
    write_bundle,
)
from pipeline.model.export import export_graph, map_support
from pipeline.model.gradient_maps import GradientMaps, gradient_maps
from pipeline.model.networks import LAST_LAYER, Network, create_network
from pipeline.plugins import register_plugin
from pipeline.predictions import FramePrediction
from pipeline.score.predictor import Predictor
from pipeline.train.fit import Fitted, start_network
from pipeline.train.run import _member
from pipeline.train.trainer import Course
from tests.builders import make_bundle, make_frame, make_graph, make_member, make_support, score_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Bundle]:
    """A small ConvNeXt, and the bundle of it."""
    root = tmp_path_factory.mktemp("convnext")
    torch.manual_seed(0)
    network = create_network("test_convnext", 2).eval()
    support = map_support(network, np.random.default_rng(0).random((2, 1, 64, 64), dtype=np.float32), "hirescam")
    fitted = Fitted("test_convnext", 64, StartingWeights(name="none"), network, export_graph(network, 64), Course())
    return network, bundle_of(fitted, support, root)


def bundle_of(fitted: Fitted, support: MapSupport, root: Path) -> Bundle:
    """A bundle for frames of 64 pixels of one network, whose maps are made by gradient, as training writes it."""
    network, channels = fitted.network, fitted.network.classifier.in_features
    small = make_bundle(root / "like", size=64)
    like = small.manifest.model_dump(exclude={"schema_version", "bundle_id", "files"})
    weights = safetensors.torch.save(dict(network.body.state_dict()))
    contents = {GRAPH: fitted.graph, WEIGHTS: weights, METRICS: b"{}", MODEL_CARD: b"#", CONFIG: b"name: a\n"}
    contents[HOME] = small.read(HOME)
    contents[REFERENCE] = Reference(np.zeros(channels), np.eye(channels), 2.0).to_bytes()
    heatmap = make_support(method="hirescam", exact=False, computed="gradient")
    return write_bundle(root / "bundle", contents, **like | {"members": (_member(1, (fitted, support)),), "heatmap": heatmap})


def expected_maps(network: Network, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        features = network(torch.from_numpy(pixels)[None])[1].numpy()
    maps: np.ndarray = gradient_maps(network, features, "hirescam")[0]
    return maps


@pytest.mark.slow
def test_a_bundle_without_closed_form_has_the_maps_of_the_library(made: tuple[Network, Bundle]) -> None:
    network, bundle = made
    frame = make_frame(pixels=np.random.default_rng(1).random((64, 64), dtype=np.float32))
    (found,) = Predictor(bundle).predict([frame])
    expected = expected_maps(network, frame.pixels[None])
    assert expected.max() > 0
    np.testing.assert_allclose([heatmap.values for heatmap in found.heatmaps], expected, atol=1e-4)


@pytest.mark.slow
def test_calls_at_a_time_give_each_frame_its_own_maps(made: tuple[Network, Bundle], tmp_path: Path) -> None:
    network, bundle = made
    rng = np.random.default_rng(2)
    for number in range(12):
        Image.fromarray(rng.integers(0, 255, (64, 64), np.uint8)).save(tmp_path / f"{number:02}.png")
    found = list(score_folder(tmp_path, Predictor(bundle, threads=1), cores=3))
    assert len(found) == 12
    for number, item in enumerate(found):
        assert isinstance(item, FramePrediction)
        pixels = np.asarray(Image.open(tmp_path / f"{number:02}.png"), np.float32)[None] / 255
        maps = [heatmap.values for heatmap in item.heatmaps]
        np.testing.assert_allclose(maps, expected_maps(network, pixels), atol=1e-4)


@pytest.fixture
def _plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of a plug-in, registered while the test runs."""
    monkeypatch.setattr(plugins, "_REGISTERED", {kind: dict(known) for kind, known in plugins._REGISTERED.items()})
    register_plugin("network", "of_another_package")(LeNet)


@pytest.mark.usefixtures("_plugged")
@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ({"architecture": "test_vit", "blocks": [2, 4]}, LAST_LAYER),
        ({"architecture": "test_vit", "size": 96}, LAST_LAYER),
        ({"architecture": "swin_tiny_patch4_window7_224"}, LAST_LAYER),
        ({"architecture": "lenet5"}, LAST_LAYER),
        ({"architecture": "lenet5", "global_pool": True}, LAST_LAYER),
        ({"architecture": "mlp"}, LAST_LAYER),
        ({"architecture": "of_another_package"}, LAST_LAYER),
        ({"architecture": "test_convnext"}, "stages.1"),
        ({"architecture": "test_resnet", "size": 96}, "layer3"),
        ({"architecture": "test_resnet", "input_range": [-1024, 1024]}, "layer3"),
        ({"architecture": "test_resnet", "mean": [0.2], "std": [0.1, 0.2, 0.3], "global_pool": True}, "layer3"),
    ],
)
def test_a_network_is_built_again_with_all_that_its_maps_depend_on(
    model: dict[str, object], layer: str, tmp_path: Path
) -> None:
    values = json.dumps({"weights": "none", **model})
    network, start = start_network(load_config("smoke", [f"model={values}", "preprocessing.size=64"]), ["NORMAL", "PNEUMONIA"])
    support = MapSupport(layer=layer, classifier=network.classifier_name, exact=False, max_difference=None, computed="gradient")
    fitted = Fitted(str(model["architecture"]), int(str(model.get("size", 64))), start, network, make_graph(size=64), Course())
    bundle = bundle_of(fitted, support, tmp_path)
    pixels = np.random.default_rng(0).random((2, 1, 64, 64), dtype=np.float32)
    with torch.no_grad():
        features = network(torch.from_numpy(pixels))[1].numpy()
    found = GradientMaps(bundle, bundle.manifest.members[0])(features, pixels)
    assert found.any()
    expected = gradient_maps(network, features, "hirescam", layer=layer, pixels=pixels, is_signed=True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("layer", [LAST_LAYER, "layer9"])
def test_weights_of_another_network_are_refused(layer: str, tmp_path: Path) -> None:
    member = make_member("test_convnext", layer=layer, exact=False, max_difference=None, computed="gradient")
    bundle = make_bundle(tmp_path / "bundle", members=(member,), heatmap=make_support(exact=False, computed="gradient"))
    with pytest.raises(BundleError, match="do not fit the network test_convnext"):
        Predictor(bundle)
