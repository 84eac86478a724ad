"""The exported graph: the same numbers as the network, for any batch size, and heatmaps that equal Grad-CAM."""

import numpy as np
import pytest
import torch

from pipeline.errors import TrainingError
from pipeline.model.engine import Engine
from pipeline.model.export import check_graph, export_graph, map_support, with_classifier
from pipeline.model.networks import create_network


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).random((3, 1, 64, 64), dtype=np.float32)


@pytest.fixture(scope="module")
def network():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return create_network("test_resnet", 2).eval()


@pytest.fixture(scope="module")
def graph(network) -> bytes:  # type: ignore[no-untyped-def]
    return export_graph(network, 64)


@pytest.mark.parametrize("count", [1, 3])
def test_graph_and_network_agree_for_any_batch(network, graph: bytes, pixels: np.ndarray, count: int) -> None:  # type: ignore[no-untyped-def]
    logits, features = Engine(graph).run(pixels[:count])
    with torch.no_grad():
        expected_logits, expected_features = network(torch.from_numpy(pixels[:count]))
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    np.testing.assert_allclose(features, expected_features, atol=1e-4)


def test_a_graph_of_other_weights_is_refused(graph: bytes, pixels: np.ndarray) -> None:
    with pytest.raises(TrainingError, match="The exported graph differs from the network"):
        check_graph(create_network("test_resnet", 2).eval(), graph, pixels)


def test_the_closed_form_is_measured(network, pixels: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    support = map_support(network, pixels)
    assert support.exact
    assert support.max_difference is not None
    assert support.max_difference < 1e-6


def test_a_head_with_a_norm_has_no_closed_form(pixels: np.ndarray) -> None:
    support = map_support(create_network("test_convnext", 2).eval(), pixels)
    assert (support.exact, support.max_difference) == (False, None)


@pytest.mark.parametrize("architecture", ["tf_efficientnet_lite0", "resnet18"])
def test_logits_depend_neither_on_the_batch_nor_on_the_threads(architecture: str) -> None:
    graph = export_graph(create_network(architecture, 2).eval(), 96)
    frames = np.random.default_rng(0).random((16, 1, 96, 96), dtype=np.float32)
    expected = np.concatenate([Engine(graph, 1).run(frame[None])[0] for frame in frames])
    for threads in (1, 2):
        engine = Engine(graph, threads)
        for size in (2, 3, 8, 16):
            found = [engine.run(frames[start : start + size])[0] for start in range(0, 16, size)]
            np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_vit"])
def test_a_graph_with_another_classifier_is_that_of_the_network_with_it(architecture: str) -> None:
    size = 160 if architecture == "test_vit" else 64
    network = create_network(architecture, 3, size).eval()
    with torch.no_grad():
        network.classifier.bias.copy_(torch.arange(1, 4))  # one of zeros is left out of the graph
    graph = export_graph(network, size)
    before, after = (
        (rng.normal(size=network.classifier.weight.shape).astype(np.float32), rng.normal(size=3).astype(np.float32))
        for rng in map(np.random.default_rng, (0, 1))
    )
    old = network.classifier.weight.detach().numpy().copy(), network.classifier.bias.detach().numpy().copy()
    changed = with_classifier(graph, old, after)
    assert changed is not None
    with torch.no_grad():
        network.classifier.weight.copy_(torch.from_numpy(after[0]))
        network.classifier.bias.copy_(torch.from_numpy(after[1]))
    assert check_graph(network, changed, np.random.default_rng(2).random((2, 1, size, size), np.float32)) < 1e-4
    assert with_classifier(graph, before, after) is None
