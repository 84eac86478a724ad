"""Closed forms against `grad-cam`, and gradients where there is no closed form."""

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from pipeline.model.export import finer_map_support, map_support
from pipeline.model.gradient_maps import gradient_maps
from pipeline.model.networks import create_network

METHODS = ["grad-cam", "grad-cam++", "layercam", "hirescam"]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).random((2, 1, 64, 64), dtype=np.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "densenet121", "regnetx_002", "mobilenetv2_050"])
def test_the_closed_form_equals_the_library(name: str, method, pixels: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    support = map_support(create_network(name, 2), pixels, method)
    assert (support.computed, support.exact) == ("closed_form", True)
    assert support.max_difference is not None
    assert support.max_difference < 1e-4


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "vgg11"])
def test_other_heads_need_the_gradient(name: str, pixels: np.ndarray) -> None:
    support = map_support(create_network(name, 2), pixels)
    assert (support.computed, support.max_difference) == ("gradient", None)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_by_gradient_grows_with_the_logit(method, pixels: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    network = create_network("test_convnext", 2).eval()
    with torch.no_grad():
        features = network(torch.from_numpy(pixels))[1].numpy()
        small = gradient_maps(network, features, "layercam")
        network.classifier.weight.mul_(3)
    found = gradient_maps(network, features, method)
    assert (found.shape, found.dtype) == (small.shape, np.float32)
    assert found.min() >= 0
    if method == "layercam":
        assert small.max() > 0
        np.testing.assert_allclose(found, 3 * small, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "size"), [("test_vit", 64), ("test_vit4", 160), ("swin_tiny_patch4_window7_224", 64)])
def test_transformers_have_the_closed_form(name: str, size: int, method) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).random((2, 1, size, size), dtype=np.float32)
    support = map_support(create_network(name, 2, size), pixels, method)
    assert (support.computed, support.exact) == ("closed_form", True)


@pytest.mark.parametrize("method", ["grad-cam", "hirescam"])
def test_the_map_of_the_flat_perceptron_is_input_times_gradient(method, pixels: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    network = create_network("mlp", 3, 64).eval()
    frames = torch.from_numpy(pixels).requires_grad_()
    logits, features = network(frames)
    assert features.shape == (2, 256, 16, 16)
    normalised = (frames - network.mean) / network.std
    for label in range(3):
        (slope,) = torch.autograd.grad(logits[:, label].sum(), frames, retain_graph=True)
        parts = (normalised * slope * network.std).reshape(2, 16, 4, 16, 4).sum((2, 4))
        expected = torch.relu(parts.detach()).numpy()
        found = gradient_maps(network, features.detach().numpy(), method)[:, label]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_dense_heads_have_maps_on_their_last_feature_map(pixels: np.ndarray) -> None:
    torch.manual_seed(0)
    for name, cells in (("lenet5", 13), ("alexnet", 1)):
        network = create_network(name, 2, 64).eval()
        with torch.no_grad():
            features = network(torch.from_numpy(pixels))[1].numpy()
        assert gradient_maps(network, features, "grad-cam").shape == (2, 2, cells, cells)
        assert map_support(network, pixels).computed == "gradient"


# Inner layers


@pytest.mark.parametrize(
    ("name", "size", "rows", "layer", "cells"),
    [
        ("resnet18", 128, 8, "layer3", 8),
        ("resnet18", 128, 5, "layer3", 8),
        ("tf_efficientnet_lite0", 128, 8, "blocks.4", 8),
        ("vgg11", 128, 8, "features.19", 8),
        ("googlenet", 128, 8, "inception4e", 8),
        ("resnet50", 128, 8, "layer3", 8),
        ("resnet18", 128, 65, None, 0),
        ("test_vit", 64, 8, None, 0),
    ],
)
def test_the_inner_layer_is_the_last_with_so_many_rows(name: str, size: int, rows: int, layer: str | None, cells: int) -> None:
    torch.manual_seed(0)
    network = create_network(name, 2, size).eval()
    frames = np.random.default_rng(0).random((2, 1, size, size), dtype=np.float32)
    support = finer_map_support(network, frames, rows)
    assert (support and support.layer) == layer
    if layer:
        with torch.no_grad():
            features = network(torch.from_numpy(frames))[1].numpy()
        found = gradient_maps(network, features, "hirescam", layer=layer, pixels=frames)
        assert found.shape == (2, 2, cells, cells)
        assert found.max() > 0


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_an_inner_layer_are_the_librarys(method) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    network = create_network("resnet18", 2, 64).eval()
    frames = np.random.default_rng(0).random((2, 1, 64, 64), dtype=np.float32)
    with torch.no_grad():
        features = network(torch.from_numpy(frames))[1].numpy()
    maps = gradient_maps(network, features, method, layer="layer3", pixels=frames, is_signed=True)

    class Colour(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network.body

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.body(pixels)
            return logits

    colours = (torch.from_numpy(frames) - network.mean) / network.std
    kind = {"grad-cam": GradCAM, "grad-cam++": GradCAMPlusPlus, "layercam": LayerCAM, "hirescam": HiResCAM}[method]
    with kind(Colour(), [network.body.layer3]) as library:
        for label in range(2):
            expected = library(colours, [ClassifierOutputTarget(label)] * 2)  # enlarged, and scaled to 1
            for one, scaled in zip(maps[:, label], expected, strict=True):
                large = np.asarray(Image.fromarray(np.maximum(one, 0)).resize((64, 64), Image.Resampling.BILINEAR))
                if one.max() > 0:
                    assert np.corrcoef(large.ravel(), scaled.ravel())[0, 1] > 0.95
