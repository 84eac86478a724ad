"""A network that reads another size than that of the frames: resizing against torch, and the same in torch and ONNX."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.model.engine import Engine
from pipeline.model.export import check_graph, export_graph
from pipeline.model.networks import create_network, resize_weights


@pytest.mark.parametrize(("size", "own_size"), [(224, 260), (224, 112), (96, 64), (64, 200)])
def test_resizing_is_that_of_torch_with_antialiasing(size: int, own_size: int) -> None:
    pixels = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    weights = resize_weights(size, own_size)
    expected = functional.interpolate(pixels, (own_size, own_size), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(weights @ pixels @ weights.T, expected, atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(weights.sum(1), torch.ones(own_size))


def test_frames_of_the_networks_own_size_are_left_as_they_are() -> None:
    network = create_network("test_resnet", 2, 64).eval()
    network.resize_frames(64, 64)
    assert network.resize is None


@pytest.mark.parametrize(("size", "own_size"), [(64, 96), (96, 64)])
def test_the_graph_takes_frames_of_the_bundle_and_gives_the_map_of_the_network(size: int, own_size: int) -> None:
    torch.manual_seed(0)
    network = create_network("test_resnet", 3, own_size).eval()
    network.resize_frames(size, own_size)
    pixels = np.random.default_rng(0).random((5, 1, size, size), np.float32)
    graph = export_graph(network, size)
    assert check_graph(network, graph, pixels) < 1e-4
    engine = Engine(graph, threads=1)
    assert engine.size == size
    logits, features = engine.run(pixels)
    small = functional.interpolate(
        torch.from_numpy(pixels), (own_size, own_size), mode="bilinear", align_corners=False, antialias=True
    )
    with torch.no_grad():
        plain = create_network("test_resnet", 3, own_size).eval()
        plain.body.load_state_dict(network.body.state_dict())
        expected_logits, expected_features = plain(small)
    np.testing.assert_allclose(logits, expected_logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(features, expected_features.numpy(), atol=1e-3)
    alone = np.concatenate([engine.run(frame[None])[0] for frame in pixels])
    np.testing.assert_array_equal(alone, logits)
    np.testing.assert_array_equal(Engine(graph, threads=3).run(pixels)[0], logits)
