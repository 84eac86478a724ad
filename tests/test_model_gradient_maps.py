"""Closed forms against `grad-cam`, and gradients where there is no closed form."""

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.model.export import check_feature_map, map_support
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


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_features_that_are_no_map_are_refused(name: str) -> None:
    network = create_network(name, 2)
    with pytest.raises(ConfigError, match="last features have shape"):
        check_feature_map(network, network.body.default_cfg["input_size"][-1])
