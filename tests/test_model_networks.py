"""Networks: which end in a head that gives exact heatmaps, and what the first layers see."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.model.networks import create_network, describe_architecture, list_architectures


@pytest.mark.parametrize(
    ("name", "family", "exact"),
    [
        ("resnet18", "ResNet", True),
        ("tf_efficientnet_lite0", "EfficientNet", True),
        ("mobilenetv2_050", "MobileNet", True),
        ("regnety_002", "RegNet", True),
        ("densenet121", "DenseNet", True),
        ("mobilenetv3_small_050", "MobileNet", False),
        ("convnext_atto", "ConvNeXt", False),
    ],
)
def test_the_closed_form_holds_where_the_head_is_a_mean_and_one_linear_layer(name: str, family: str, exact: bool) -> None:
    found = describe_architecture(name)
    assert (found.family, found.exact_heatmaps) == (family, exact)


def test_a_misspelt_name_is_answered_with_near_ones() -> None:
    with pytest.raises(ConfigError, match="there is no network called resnett18. Did you mean resnet18"):
        create_network("resnett18", 2)


def test_every_listed_name_exists_once_in_its_family() -> None:
    families = list_architectures()
    assert all(families.values())
    assert "resnet50" in families["ResNet"]


def test_the_network_normalises_and_repeats_the_one_channel() -> None:
    torch.manual_seed(0)
    network = create_network("test_resnet", 3).eval()
    pixels = torch.rand(2, 1, 64, 64)
    by_hand = (pixels.repeat(1, 3, 1, 1) - network.mean) / network.std
    with torch.no_grad():
        logits, features = network(pixels)
        expected = network.body(by_hand)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert features.shape[0] == 2


def test_the_classifier_is_a_linear_map_of_the_pooled_features() -> None:
    network = create_network("test_efficientnet", 4).eval()
    with torch.no_grad():
        logits, features = network(torch.rand(2, 1, 64, 64))
        pooled = network.pooled(features)
        again = functional.linear(pooled, network.classifier.weight, network.classifier.bias)
    np.testing.assert_allclose(again, logits, atol=1e-6)
    assert network.body.state_dict()[network.classifier_name].shape == (4, pooled.shape[1])


def test_parameter_groups_run_from_input_to_output_and_leave_the_classifier_out() -> None:
    network = create_network("tf_efficientnet_lite0", 2)
    groups = network.parameter_groups()
    names = [name for group in groups for name in group]
    assert groups[0][0].startswith("conv_stem")
    assert "conv_head.weight" in groups[-1]
    assert {name for name, _ in network.body.named_parameters()} - set(names) == {"classifier.weight", "classifier.bias"}
