"""Descriptions of networks: the counts of papers and of torchvision, shapes as they ran, and the table that is kept."""

import math
from dataclasses import asdict
from functools import cache

import pytest
import torch
import torchvision
from torch import nn

from pipeline.model.layer_table import (
    Architecture,
    describe_architecture,
    list_networks,
    output_size,
    size_formula,
)
from pipeline.model.networks import create_network, list_architectures
from tests.conftest import ROOT

COURSE = ["lenet5", "alexnet", "vgg16", "googlenet", "resnet50", "mobilenetv1_100", "efficientnet_b0", "mlp"]


@cache
def at(name: str, size: int | None = None) -> Architecture:
    return describe_architecture(name, size)


@pytest.mark.parametrize(
    ("name", "parameters"), [("lenet5", 61_706), ("mobilenetv1_100", 4_231_976), ("vit_tiny_patch16_224", 5_717_416)]
)
def test_the_counts_of_the_papers(name: str, parameters: int) -> None:
    assert at(name).parameters == parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "googlenet", "resnet50", "efficientnet_b0", "vgg16", "densenet121"])
def test_the_counts_of_torchvision(name: str) -> None:
    meta = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta
    found = at(name)
    assert (found.size, found.parameters) == (224, meta["num_params"])
    assert found.multiply_adds / 1e9 == pytest.approx(meta["_ops"], abs=0.0015 + 0.01 * meta["_ops"])


@pytest.mark.slow
def test_dense_layers_hold_most_of_vgg_and_little_of_others() -> None:
    shares = {
        name: (found := at(name)).dense_parameters / found.parameters for name in ("vgg16", "googlenet", "mlp", "resnet50")
    }
    assert shares["vgg16"] == pytest.approx(0.89, abs=0.005)
    assert shares["googlenet"] == pytest.approx(1_025_000 / 6_624_904)
    assert shares["resnet50"] == pytest.approx(2_049_000 / 25_557_032)
    assert shares["mlp"] == 1


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv1_100", "googlenet", "tf_efficientnet_lite0"])
def test_maps_are_halved_down_to_seven(name: str) -> None:
    found = at(name)
    assert found.halvings == (224, 112, 56, 28, 14, 7)
    assert found.map_rows == 7


def test_swin_halves_its_maps_between_stages() -> None:
    assert at("swin_tiny_patch4_window7_224", 128).halvings == (128, 32, 16, 8, 4)


def test_a_transformer_has_a_width_and_tokens() -> None:
    found = at("vit_tiny_patch16_224")
    assert (found.embedding_width, found.tokens, found.features, found.map_rows) == (192, 197, 192, 14)
    assert found.exact_heatmaps
    assert found.halvings == (224, 14)
    assert at("resnet18").embedding_width is None


@pytest.mark.parametrize(
    ("name", "family", "exact"),
    [
        ("resnet18", "ResNet", True),
        ("tf_efficientnet_lite0", "EfficientNet", True),
        ("mobilenetv2_050", "MobileNet", True),
        ("regnety_002", "RegNet", True),
        ("densenet121", "DenseNet", True),
        ("googlenet", "Inception", True),
        ("mobilenetv3_small_050", "MobileNet", False),
        ("convnext_atto", "ConvNeXt", False),
        ("lenet5", "LeNet", False),
        ("mlp", "MLP", False),
    ],
)
def test_the_closed_form_holds_where_the_head_is_a_mean_and_one_linear_layer(name: str, family: str, exact: bool) -> None:
    found = at(name, 64)
    assert (found.family, found.exact_heatmaps) == (family, exact)


@pytest.mark.parametrize("name", ["googlenet", "resnet18", "tf_efficientnet_lite0", "lenet5", "inception_v3", "alexnet"])
@pytest.mark.parametrize("size", [96, 117])
def test_the_formula_gives_the_sizes_that_run(name: str, size: int) -> None:
    network = create_network(name, 2, size).eval()
    seen = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        formula = size_formula(module, inputs[0].shape[-2]) if inputs[0].ndim == 4 else ""
        if formula:
            seen.append((formula, output.shape[-2]))

    for module in network.body.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, 1, size, size))
    assert len(seen) > 3
    assert [int(formula.rpartition(" = ")[2]) for formula, _ in seen] == [rows for _, rows in seen]


@pytest.mark.parametrize("rounds_up", [False, True])
def test_output_sizes_are_those_of_torch(rounds_up: bool) -> None:
    for size in range(7, 20):
        for kernel, stride, padding, dilation in ((3, 2, 1, 1), (2, 2, 0, 1), (3, 3, 1, 1), (3, 1, 0, 2), (2, 3, 1, 1)):
            layer = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=rounds_up)
            expected = layer(torch.zeros(1, 1, size, size)).shape[-1]
            options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
            assert output_size(size, **options, rounds_up=rounds_up) == expected


def test_receptive_fields_are_what_a_pixel_changes() -> None:
    """The formula of the layers against gradients: AlexNet's last map sees 195 pixels, LeNet's 16."""
    for name, size, expected in (("alexnet", 416, 195), ("lenet5", 64, 16)):
        last = [layer for layer in at(name, size).layers if layer.kind == "pooling"][-1]
        network = create_network(name, 2, size).double().eval()
        for parameter in network.parameters():
            nn.init.constant_(parameter, 0.01)
        for module in network.modules():
            if isinstance(module, nn.MaxPool2d):  # its gradient reaches one pixel alone
                module.forward = nn.AvgPool2d(module.kernel_size, module.stride, module.padding).forward  # type: ignore[method-assign]
        pixels = torch.full((1, 1, size, size), 0.6, dtype=torch.double, requires_grad=True)
        features = network(pixels)[1]
        middle = features.shape[2] // 2
        features[0, :, middle, middle].sum().backward()
        assert pixels.grad is not None
        touched = torch.argwhere(pixels.grad[0, 0].abs().sum(1) > 0).flatten()
        assert last.receptive_field == expected == int(touched.max() - touched.min()) + 1


def test_gates_do_not_widen_the_field_and_attention_does() -> None:
    fields = {name: at(name, 64).layers for name in ("efficientnet_b0", "vit_tiny_patch16_224")}
    last = next(layer for layer in fields["efficientnet_b0"] if layer.name == "conv_head")
    assert 300 < last.receptive_field < 1000
    assert fields["vit_tiny_patch16_224"][0].receptive_field == 16
    assert math.isinf(fields["vit_tiny_patch16_224"][-2].receptive_field)


def test_the_weights_of_the_layers_add_up() -> None:
    for name in ("lenet5", "alexnet", "googlenet"):
        found = at(name)
        norms = sum(
            parameter.numel()
            for module in create_network(name, 1000).body.modules()
            if isinstance(module, nn.BatchNorm2d)
            for parameter in module.parameters()
        )
        assert sum(layer.parameters for layer in found.layers) + norms == found.parameters


# The table


def test_the_table_has_the_networks_of_the_course_and_the_families() -> None:
    names = [network.name for network in list_networks()]
    assert names[: len(COURSE)] == COURSE
    assert {"vit_tiny_patch16_224", "vit_small_patch14_dinov2", "swin_tiny_patch4_window7_224", "tf_efficientnet_lite0"} <= set(
        names
    )
    known = {name for members in list_architectures().values() for name in members}
    assert set(names) <= known
    assert all(network.idea and 1950 < network.year < 2026 for network in list_networks())


QUICK = {"lenet5", "alexnet", "mobilenetv1_100", "efficientnet_b0", "vit_tiny_patch16_224", "tf_efficientnet_lite0"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(network.name, marks=() if network.name in QUICK else pytest.mark.slow) for network in list_networks()],
)
def test_the_figures_of_the_table_are_those_of_the_network(name: str) -> None:
    (row,) = (network for network in list_networks() if network.name == name)
    found = at(name)
    at_224 = found if found.size == 224 else at(name, 224)
    expected = asdict(row) | {"parameters": found.parameters, "multiply_adds": at_224.multiply_adds}
    assert asdict(row) == expected | {"exact_heatmaps": found.exact_heatmaps}


def test_the_documentation_shows_the_table() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    for network in list_networks():
        assert f"\n| `{network.name}` | {network.title} | {network.year} | {network.idea} |" in text
