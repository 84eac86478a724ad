"""Networks: what the layers see, which heads give exact heatmaps, and which sizes are refused before anything is decoded."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.model.engine import closed_form_maps
from pipeline.model.export import check_graph, export_graph, map_support
from pipeline.model.networks import Network, create_network, list_architectures, pools_by_average
from pipeline.model.weights import load_weights


def test_a_misspelt_name_is_answered_with_near_ones() -> None:
    with pytest.raises(ConfigError, match="there is no network called resnett18. Did you mean resnet18"):
        create_network("resnett18", 2)
    with pytest.raises(ConfigError, match="Did you mean alexnet"):
        create_network("alexnett", 2)


def test_every_listed_name_exists_once_in_its_family() -> None:
    families = list_architectures()
    assert all(families.values())
    assert "resnet50" in families["ResNet"]
    names = [name for members in families.values() for name in members]
    assert len(names) == len(set(names))
    assert {"lenet5", "alexnet", "googlenet", "mlp", "vit_small_patch14_dinov2"} <= set(names)


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


def test_random_weights_are_those_that_timm_draws() -> None:
    torch.manual_seed(3)
    network = create_network("test_efficientnet", 2, 64)
    torch.manual_seed(3)
    expected = timm.create_model("test_efficientnet", num_classes=2).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.body.state_dict().items())


SMALL = [
    ("test_efficientnet", 64),
    ("test_convnext", 64),
    ("test_vit", 64),
    ("swin_tiny_patch4_window7_224", 64),
    ("lenet5", 32),
    ("mlp", 32),
    ("alexnet", 64),
    ("googlenet", 32),
]


@pytest.mark.parametrize(("name", "size"), SMALL)
def test_the_classifier_is_a_linear_map_of_the_pooled_features(name: str, size: int) -> None:
    network = create_network(name, 4, size).eval()
    with torch.no_grad():
        logits, features = network(torch.rand(2, 1, size, size))
        pooled = network.pooled(features)
        again = functional.linear(pooled, network.classifier.weight, network.classifier.bias)
    np.testing.assert_allclose(again, logits, atol=1e-5)
    assert (logits.shape, features.ndim) == ((2, 4), 4)
    assert network.body.state_dict()[network.classifier_name].shape == (4, pooled.shape[1])


@pytest.mark.parametrize(("name", "size"), SMALL)
def test_parameter_groups_hold_every_weight_but_the_classifiers_once(name: str, size: int) -> None:
    network = create_network(name, 2, size)
    names = [name for group in network.parameter_groups() for name in group]
    head = network.classifier_name.removesuffix("weight")
    assert len(names) == len(set(names))
    assert {name for name, _ in network.body.named_parameters()} - set(names) == {f"{head}weight", f"{head}bias"}


def test_parameter_groups_run_from_input_to_output() -> None:
    groups = create_network("tf_efficientnet_lite0", 2).parameter_groups()
    assert groups[0][0].startswith("conv_stem")
    assert "conv_head.weight" in groups[-1]
    groups = create_network("vit_tiny_patch16_224", 2).parameter_groups()
    assert len(groups) == 13
    assert "patch_embed.proj.weight" in groups[0]
    assert {name.split(".")[0] for name in groups[-1]} == {"blocks", "norm"}
    assert groups[-1][0].startswith("blocks.11.")
    groups = create_network("googlenet", 2, 64).parameter_groups()
    assert [group[0].split(".")[0] for group in (groups[0], groups[-1])] == ["conv1", "inception5b"]
    assert create_network("alexnet", 2).parameter_groups()[-1] == ["classifier.4.weight", "classifier.4.bias"]


# What is not timm's


def test_lenet_is_the_network_of_the_paper_at_32_pixels() -> None:
    torch.manual_seed(0)
    network = create_network("lenet5", 10).eval()
    plain = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip
    plain.load_state_dict(dict(zip(plain.state_dict(), network.body.state_dict().values(), strict=True)))
    pixels = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        np.testing.assert_allclose(network(pixels)[0], plain((pixels - 0.5) / 0.5), atol=1e-5)
    assert sum(parameter.numel() for parameter in network.parameters()) == 61_706


def test_the_flat_perceptron_is_dense_layers_on_all_pixels() -> None:
    torch.manual_seed(0)
    body = create_network("mlp", 2, 48).eval().body
    pixels = torch.rand(3, 1, 48, 48)
    cells = pixels.reshape(3, 16, 3, 16, 3).transpose(2, 3).reshape(3, -1)  # the order of the weights: cell by cell
    with torch.no_grad():
        hidden = torch.relu(functional.linear(cells, body.pixels.weight, body.pixels.bias))
        np.testing.assert_allclose(body(pixels), body.classifier(torch.relu(body.hidden(hidden))), atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "googlenet"])
def test_torchvisions_networks_are_its_own_with_its_names(name: str) -> None:
    torch.manual_seed(0)
    network = create_network(name, 5, 64).eval()
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    original = torchvision.models.get_model(name, num_classes=5, **options).eval()
    original.load_state_dict(network.body.state_dict())
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        np.testing.assert_allclose(network.body(pixels), original(pixels), atol=1e-6)


# Transformers


@pytest.mark.parametrize(
    ("name", "size", "cells"),
    [
        ("vit_tiny_patch16_224", 96, 6),
        ("vit_small_patch14_dinov2", 224, 16),
        ("vit_small_patch14_reg4_dinov2", 56, 4),
        ("swin_tiny_patch4_window7_224", 96, 3),
        ("vit_base_patch32_clip_224", 64, 2),
    ],
)
def test_the_logit_of_a_transformer_splits_over_its_patches(name: str, size: int, cells: int) -> None:
    torch.manual_seed(0)
    network = create_network(name, 3, size).eval()
    with torch.no_grad():
        logits, features = network(torch.rand(1, 1, size, size))
        parts = torch.einsum("lc,ncij->nlij", network.classifier.weight, features) / cells**2
    assert features.shape == (1, network.body.num_features, cells, cells)
    np.testing.assert_allclose(parts.sum((2, 3)) + network.classifier.bias.detach(), logits, atol=1e-4)
    assert pools_by_average(network, features)


def test_the_patches_lie_where_the_frame_has_them() -> None:
    torch.manual_seed(0)
    network = create_network("vit_tiny_patch16_224", 2, 96).eval()
    network.body.blocks = nn.Sequential()  # without attention a patch sees nothing but itself
    dark = torch.zeros(1, 1, 96, 96)
    bright = dark.clone()
    bright[..., 16:32, 64:80] = 1
    with torch.no_grad():
        changed = (network(bright)[1] - network(dark)[1]).abs().sum(1)[0]
    assert torch.argwhere(changed > 1e-4).tolist() == [[1, 4]]


# Global pooling


@pytest.mark.parametrize(
    ("name", "size"), [("vgg11", 64), ("alexnet", 64), ("lenet5", 32), ("mobilenetv3_small_050", 64), ("test_convnext", 64)]
)
def test_global_pooling_replaces_the_head_and_makes_heatmaps_exact(name: str, size: int) -> None:
    network, whole = create_network(name, 2, size, global_pool=True).eval(), create_network(name, 2, size)
    with torch.no_grad():
        logits, features = network(torch.rand(2, 1, size, size))
        expected = functional.linear(features.mean((2, 3)), network.classifier.weight, network.classifier.bias)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert network.classifier_name == "global_head.weight"
    assert set(whole.body.state_dict()) - set(network.body.state_dict())
    assert count(network) < count(whole)


def count(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_global_pooling_changes_nothing_where_the_head_does_it_already() -> None:
    torch.manual_seed(0)
    plain = create_network("test_resnet", 2)
    torch.manual_seed(0)
    pooled = create_network("test_resnet", 2, global_pool=True)
    assert pooled.classifier_name == plain.classifier_name
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), pooled.parameters(), strict=True))


def test_the_flat_perceptron_has_no_map_to_pool() -> None:
    with pytest.raises(ConfigError, match="model.global_pool: mlp has no feature map whose mean could be classified"):
        create_network("mlp", 2, 32, global_pool=True)


# What cannot work is said in one sentence


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("inception_v3", 64, "inception_v3 cannot read frames of 64 x 64 pixels; that is too small for it: use at least 75."),
        ("alexnet", 32, "alexnet cannot read frames of 32 x 32 pixels; that is too small for it: use at least 63."),
        ("vit_tiny_patch16_224", 100, "its patches have 16 pixels, which must divide the size: use 96 or 112."),
        ("vit_small_patch14_dinov2", 32, "its patches have 14 pixels, which must divide the size: use 42."),
        ("mlp", 97, "mlp cannot read frames of 97 x 97 pixels; its map needs a side that can be divided into 4 to 16 parts"),
    ],
)
def test_a_size_that_a_network_cannot_read_is_refused_with_one_that_it_can(name: str, size: int, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_network(name, 2, size)
    (fault,) = caught.value.faults
    assert fault.startswith("preprocessing.size: ")
    assert expected in fault


NAMES = [
    "beit_base_patch16_224", "cait_xxs24_224", "coatnet_0_224", "convmixer_768_32", "crossvit_tiny_240", "cspdarknet53",
    "davit_tiny", "deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224", "densenet121", "edgenext_xx_small",
    "efficientformer_l1", "fastvit_t8", "ghostnet_050", "hrnet_w18_small", "inception_v3", "inception_v4", "levit_128s",
    "maxvit_tiny_tf_224", "mixer_s32_224", "mnasnet_small", "mobilevit_xxs", "nest_tiny", "nfnet_f0", "pit_ti_224",
    "poolformer_s12", "pvt_v2_b0", "regnetx_002", "repvgg_a0", "resnest14d", "rexnet_100", "swinv2_tiny_window8_256",
    "tnt_s_patch16_224", "twins_svt_small", "vgg11", "visformer_tiny", "vit_tiny_patch16_224", "volo_d1_224", "xception41",
    "xcit_nano_12_p8_224",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_network_works_or_says_why_not(name: str) -> None:
    """Whatever is built maps frames to finite logits that depend on nothing but the feature map."""
    for size in (64, 224):
        try:
            network = create_network(name, 2, size).eval()
        except ConfigError as error:
            (fault,) = error.faults
            assert fault.endswith(".")
            assert fault.startswith(("preprocessing.size: ", "model.architecture: "))
            continue
        with torch.no_grad():
            frames = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0))
            logits, features = network(frames)
            expected = network.body((frames - network.mean) / network.std)
        assert features.ndim == 4
        assert torch.isfinite(logits).all()
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_timm_knows_the_networks_of_the_test() -> None:
    assert all(timm.is_model(name) for name in NAMES)


def test_the_blocks_of_a_transformer_are_read_together() -> None:
    """timm's own blocks, run one after the other, are the oracle."""
    torch.manual_seed(0)
    network = create_network("vit_tiny_patch16_224", 3, 64, blocks=(4, 6)).eval()
    body = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64).eval()
    own = {name: value for name, value in network.body.state_dict().items() if not name.startswith("global_head.")}
    assert body.load_state_dict(own, strict=False).unexpected_keys == []
    pixels = torch.rand(2, 1, 64, 64)
    expected = []
    with torch.no_grad():
        tokens = body._pos_embed(body.patch_embed((pixels - network.mean) / network.std))
        for number, block in enumerate(body.blocks, 1):
            tokens = block(tokens)
            expected += [body.norm(tokens)[:, 1:].mean(1)] if number in (4, 6) else []
        logits, features = network(pixels)
    assert features.shape == (2, 2 * 192, 4, 4)
    torch.testing.assert_close(network.pooled(features), torch.cat(expected, 1))
    torch.testing.assert_close(logits, network.classifier(torch.cat(expected, 1)))
    assert pools_by_average(network, features)
    assert check_graph(network, export_graph(network, 64), pixels.numpy()) < 1e-5
    assert len(network.body.blocks) == 6
    assert network.classifier_name == "global_head.weight"


def test_the_map_of_several_blocks_splits_the_logit_over_the_patches() -> None:
    network = create_network("vit_tiny_patch16_224", 3, 64, blocks=(4, 6)).eval()
    pixels = torch.rand(2, 1, 64, 64)
    support = map_support(network, pixels.numpy())
    assert (support.exact, support.classifier) == (True, "global_head.weight")
    with torch.no_grad():
        logits, features = network(pixels)
    maps = closed_form_maps(features.numpy(), network.classifier.weight.detach().numpy(), "grad-cam", is_signed=True)
    sums = torch.from_numpy(maps).sum((2, 3)) + network.classifier.bias.detach()
    torch.testing.assert_close(sums, logits, rtol=1e-4, atol=1e-5)


def test_weights_of_the_whole_transformer_fit_the_blocks_that_are_read(tmp_path: Path) -> None:
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    network = create_network("vit_tiny_patch16_224", 3, 64, blocks=(4, 6))
    origin = load_weights(network, "vit_tiny_patch16_224", str(tmp_path / "whole.pth"))
    assert {name.split(".")[1] for name in origin.unused if name.startswith("blocks.")} == {"6", "7", "8", "9", "10", "11"}
    for number in range(6):
        assert torch.equal(network.body.blocks[number].attn.qkv.weight, whole.blocks[number].attn.qkv.weight)


@pytest.mark.parametrize(
    ("name", "blocks", "expected"),
    [
        ("vit_tiny_patch16_224", (2, 13), r"model.blocks: vit_tiny_patch16_224 has the blocks 1 to 12. Got \[2, 13\] instead"),
        ("resnet18", (2,), "model.blocks: resnet18 is not a transformer whose blocks can be read. Leave the key out"),
        ("swin_tiny_patch4_window7_224", (2,), "is not a transformer whose blocks can be read"),
    ],
)
def test_blocks_that_a_network_does_not_have(name: str, blocks: tuple[int, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        create_network(name, 2, 224, blocks=blocks)
