"""Bundles without a closed form: the same maps as `grad-cam` gives for the network in memory."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.errors import BundleError
from pipeline.model.architectures import create_network
from pipeline.model.bundle import CONFIG, GRAPH, METRICS, MODEL_CARD, WEIGHTS, write_bundle
from pipeline.model.export import export_graph, heatmap_support
from pipeline.model.library import library_maps
from pipeline.score.predictor import Predictor
from tests.builders import make_bundle, make_frame

GRADIENT = {"layer": "forward_features", "classifier": "head.fc.weight", "exact": False, "max_difference": None}


@pytest.mark.slow
def test_a_bundle_without_closed_form_has_the_maps_of_the_library(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_network("test_convnext", 2).eval()
    support = heatmap_support(network, np.random.default_rng(0).random((2, 1, 64, 64), dtype=np.float32), "hirescam")
    like = make_bundle(tmp_path / "like", size=64).manifest.model_dump(exclude={"schema_version", "bundle_id", "files"})
    weights = safetensors.torch.save(dict(network.body.state_dict()))
    contents = {GRAPH: export_graph(network, 64), WEIGHTS: weights, METRICS: b"{}", MODEL_CARD: b"#", CONFIG: b"name: a\n"}
    fields = like | {"architecture": "test_convnext", "heatmap": support.model_dump()}
    predictor = Predictor(write_bundle(tmp_path / "bundle", contents, **fields))
    frame = make_frame(pixels=np.random.default_rng(1).random((64, 64), dtype=np.float32))
    (found,) = predictor.predict([frame])
    with torch.no_grad():
        features = network(torch.from_numpy(frame.pixels)[None, None])[1].numpy()
    expected = library_maps(network, features, "hirescam")[0]
    assert expected.max() > 0
    np.testing.assert_allclose([heatmap.values for heatmap in found.heatmaps], expected, atol=1e-4)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    heatmap = GRADIENT | {"computed": "gradient"}
    bundle = make_bundle(tmp_path / "bundle", architecture="test_convnext", heatmap=heatmap)
    with pytest.raises(BundleError, match="do not fit the network test_convnext"):
        Predictor(bundle)
