"""Networks: timm's, taken by name, in one module that takes one-channel frames."""

import difflib
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from pipeline.errors import ConfigError

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
