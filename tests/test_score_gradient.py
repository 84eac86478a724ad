"""Bundles without a closed form: the same maps as `grad-cam` gives for the network in memory."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from pipeline.errors import BundleError
from pipeline.evaluate.outliers import Reference
from pipeline.model.bundle import CONFIG, GRAPH, METRICS, MODEL_CARD, REFERENCE, WEIGHTS, Bundle, write_bundle
from pipeline.model.export import export_graph, map_support
from pipeline.model.gradient_maps import gradient_maps
from pipeline.model.networks import Network, create_network
from pipeline.predictions import FramePrediction
from pipeline.score.predictor import Predictor
from tests.builders import make_bundle, make_frame, make_member, make_support, score_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Bundle]:
    """A small ConvNeXt, and the bundle of it."""
    root = tmp_path_factory.mktemp("convnext")
    torch.manual_seed(0)
    network = create_network("test_convnext", 2).eval()
    support = map_support(network, np.random.default_rng(0).random((2, 1, 64, 64), dtype=np.float32), "hirescam")
    like = make_bundle(root / "like", size=64).manifest.model_dump(exclude={"schema_version", "bundle_id", "files"})
    weights = safetensors.torch.save(dict(network.body.state_dict()))
    contents = {GRAPH: export_graph(network, 64), WEIGHTS: weights, METRICS: b"{}", MODEL_CARD: b"#", CONFIG: b"name: a\n"}
    channels = network.classifier.in_features
    contents[REFERENCE] = Reference(np.zeros(channels), np.eye(channels), 2.0).to_bytes()
    member = make_member("test_convnext") | {"maps": support.model_dump(), "size": 64}
    fields = like | {"members": (member,), "heatmap": make_support(method="hirescam", exact=False, computed="gradient")}
    return network, write_bundle(root / "bundle", contents, **fields)


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


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    member = make_member("test_convnext", exact=False, max_difference=None, computed="gradient")
    bundle = make_bundle(tmp_path / "bundle", members=(member,), heatmap=make_support(exact=False, computed="gradient"))
    with pytest.raises(BundleError, match="do not fit the network test_convnext"):
        Predictor(bundle)
