"""Networks: timm's, torchvision's, octray's own and those of plug-ins, by name, in one module that takes one-channel frames."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.model.bodies import BODIES, unfit_size
from pipeline.plugins import find_plugin, plugin_names

FAMILIES: dict[str, tuple[str, ...]] = {
    "AlexNet": ("alexnet",),
    "ConvNeXt": ("convnext*",),
    "DenseNet": ("densenet*",),
    "EfficientNet": ("efficientnet*", "tf_efficientnet*"),
    "Inception": ("googlenet", "inception_v*"),
    "LeNet": ("lenet5",),
    "MLP": ("mlp",),
    "MnasNet": ("mnasnet*",),
    "MobileNet": ("mobilenet*",),
    "RegNet": ("regnetx_*", "regnety_*"),
    "ResNet": ("resnet*", "resnext*", "wide_resnet*", "seresnet*"),
    "Swin": ("swin_*", "swinv2_[tsbl]*"),
    "VGG": ("vgg*",),
    "ViT": ("vit_*", "deit_tiny_patch*", "deit_small_patch*", "deit_base_patch*", "deit3_*"),
    "Xception": ("xception*",),
}
_MODULES = {"ViT": ["vision_transformer", "deit"]}
"""Families of which only the networks of one module of timm are listed: the others read a class token."""
_PATCH_MEAN = {"global_pool": "avg", "fc_norm": False}
"""Makes the head of a vision transformer read the mean of its patches after the norm, so that the logit splits over them."""
LAST_LAYER = "forward_features"
"""Stands for the last feature map among the layers of a network."""
GLOBAL_HEAD = "global_head"
"""Name of the linear layer that takes the place of a head of dense layers."""


class Network(nn.Module):
    """A network for frames: normalises the pixels of one channel itself and repeats them for every input channel.

    Parameters
    ----------
    body
        A network with timm's methods `forward_features`, `forward_head` and `get_classifier`.
    mean, std
        One number for each input channel of `body`.
    is_averaged
        Whether the classifier `body.global_head` reads the mean of each channel, whatever head the body has.
    blocks
        Numbers of the transformer blocks, from 0, whose patches are the feature map together; empty for the body's own output.
    left_out
        Beginnings of the names of tensors of the architecture that the body no longer has.
    """

    def __init__(
        self,
        body: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        is_averaged: bool = False,
        blocks: tuple[int, ...] = (),
        left_out: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.body: Any = body  # timm's methods are not known to nn.Module
        self.is_averaged = is_averaged
        self.blocks = blocks
        self.left_out = left_out
        self.has_tokens = False
        """Whether the body's features are a list of tokens, with those of the patches last; `create_network` finds out."""
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.resize: Tensor | None
        self.register_buffer("resize", None, persistent=False)

    def resize_frames(self, size: int, own_size: int) -> None:
        """Let the network take frames of `size` pixels a side, and resize them to `own_size` before all else.

        It is the bilinear interpolation of torch with antialiasing, written as one matrix product for rows and one for columns:
        so torch and every ONNX runtime do the same, whatever they make of an operator for resizing.
        """
        self.register_buffer("resize", None if size == own_size else resize_weights(size, own_size), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (batch, labels) and the last feature map (batch, channels, rows, columns).

        `pixels` is float32 of shape (batch, 1, size, size) in [0, 1]. The feature map of a transformer consists of its
        patches after the norm; of several blocks, those of each block are further channels.
        """
        if self.resize is not None:
            pixels = self.resize @ pixels @ self.resize.T
        inputs = (pixels - self.mean) / self.std
        if self.blocks:
            maps = self.body.forward_intermediates(inputs, self.blocks, norm=True, output_fmt="NCHW", intermediates_only=True)
            features = torch.cat(maps, dim=1)
        else:
            features = self.as_map(self.body.forward_features(inputs))
        return self.head(features), features

    def head(self, features: Tensor) -> Tensor:
        """Return logits (batch, labels) for a feature map."""
        if self.is_averaged:
            averaged: Tensor = self.classifier(features.mean((2, 3)))
            return averaged
        logits: Tensor = self.body.forward_head(self._as_output(features))
        return logits

    def pooled(self, features: Tensor) -> Tensor:
        """Return the input of the linear classifier for a feature map, of shape (batch, classifier inputs)."""
        if self.is_averaged:
            return features.mean((2, 3))
        pooled: Tensor = self.body.forward_head(self._as_output(features), pre_logits=True)
        return pooled

    def as_map(self, output: Tensor) -> Tensor:
        """Return what the body's `forward_features` returned as a feature map (batch, channels, rows, columns)."""
        if self.has_tokens:
            patches = output[:, self._prefix :].transpose(1, 2)
            return patches.reshape(patches.shape[0], -1, *self._grid)  # `len` would fix the size of batches in the graph
        return output.permute(0, 3, 1, 2) if self._is_channels_last else output

    def _as_output(self, features: Tensor) -> Tensor:
        """Return a feature map in the body's own layout; tokens other than patches, which no head here reads, are zero."""
        if self.has_tokens:
            tokens = features.flatten(2).transpose(1, 2)
            return torch.nn.functional.pad(tokens, (0, 0, self._prefix, 0)) if self._prefix else tokens
        return features.permute(0, 2, 3, 1) if self._is_channels_last else features

    @property
    def _prefix(self) -> int:
        return int(getattr(self.body, "num_prefix_tokens", 0))

    @property
    def _grid(self) -> tuple[int, int]:
        rows, columns = self.body.patch_embed.grid_size
        return int(rows), int(columns)

    @property
    def _is_channels_last(self) -> bool:
        return str(getattr(self.body, "output_fmt", "NCHW")) == "NHWC"

    def inner_layer(self, pixels: Tensor, rows: int) -> str | None:
        """Return the name of the last module of the body whose output is a finer map than the last one, of so many rows.

        Modules inside a block are left out, since the block's shortcuts and other branches pass them by.

        Parameters
        ----------
        pixels
            Frames of shape (batch, 1, size, size) in [0, 1].
        rows
            The fewest rows that the map may have.

        Returns
        -------
        str or None
            None if no module has such a map before the last one, as in transformers, whose tokens stay as many.
        """
        if self.has_tokens or self._is_channels_last:
            return None
        found: list[tuple[str, int]] = []

        def note(name: str, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                found.append((name, output.shape[2]))

        hooks = [
            module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
            for name, module in self.body.named_modules()
            if name and self._passes_all(name)
        ]
        try:
            with torch.no_grad():
                last = self(pixels)[1].shape[2]
        finally:
            for hook in hooks:
                hook.remove()
        finer = [name for name, count in found if count >= rows and count > last]
        return finer[-1] if finer else None

    def _passes_all(self, name: str) -> bool:
        """Return whether whatever reaches the head passes a module: it is a part of nothing but sequences."""
        parts = name.split(".")
        around = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        return all(isinstance(self.body.get_submodule(one), nn.Sequential) for one in around)

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer."""
        layer = getattr(self.body, GLOBAL_HEAD) if self.is_averaged else self.body.get_classifier()
        assert isinstance(layer, nn.Linear)  # noqa: S101 - `create_network` refuses other heads
        return layer

    @property
    def classifier_name(self) -> str:
        """Name of the classifier's weight in the state of `body`."""
        weight = self.classifier.weight
        return next(str(name) for name, value in self.body.named_parameters() if value is weight)

    def parameter_groups(self) -> list[list[str]]:
        """Return the names of the body's parameters in groups from the input to the output, the classifier left out.

        A body that does not say what its groups are has one for each of its layers.
        """
        named = dict(self.body.named_parameters())
        if hasattr(self.body, "group_matcher"):
            found = group_parameters(self.body, self.body.group_matcher(coarse=True))
            groups = [found[key] for key in sorted(found)]
        else:
            layers = dict.fromkeys(name.partition(".")[0] for name in named)
            groups = [[name for name in named if name.partition(".")[0] == layer] for layer in layers]
        head = {id(parameter) for parameter in self.classifier.parameters()}
        kept = ([name for name in names if id(named[name]) not in head] for names in groups)
        return [names for names in kept if names]


def resize_weights(size: int, own_size: int) -> Tensor:
    """Return how much each of `size` pixels in a row adds to each of `own_size`, of shape (own_size, size).

    Those of torch's bilinear interpolation with antialiasing, which are those of Pillow; each row sums to one.
    """
    columns = torch.eye(size, dtype=torch.float64)[None, None]
    one_way = functional.interpolate(columns, (own_size, size), mode="bilinear", align_corners=False, antialias=True)
    return one_way[0, 0].float()


def create_network(
    architecture: str, labels: int, size: int | None = None, *, global_pool: bool = False, blocks: Sequence[int] = ()
) -> Network:
    """Create a network with random weights, and try it on an empty frame.

    Parameters
    ----------
    architecture
        A name of timm, of `BODIES`, or of a plug-in.
    labels
        Number of outputs.
    size
        Side of the input in pixels; by default that for which the network was designed.
    global_pool
        Whether the head becomes the mean of each channel of the last feature map and one linear layer, whatever it was.
    blocks
        Which blocks of a vision transformer the head reads, from 1, in rising order: the mean of the patches of each after the
        last norm, one after the other. The logit then splits exactly over the patches; the class token, which has no place
        in the frame, is not read. Later blocks are removed. Empty for the last block.

    Raises
    ------
    ConfigError
        If there is no such network, if it cannot read frames of that size, or if it does not end in one linear layer that
        depends on nothing but a feature map.
    """
    known_size = designed_size(architecture)
    size = size or known_size
    body = _create_body(architecture, labels, size, known_size)
    config = getattr(body, "default_cfg", None) or {}
    mean, std = (tuple(config.get(name, (0.5,))) for name in ("mean", "std"))
    if not all(hasattr(body, method) for method in ("forward_features", "forward_head", "get_classifier")):
        raise ConfigError([f"model.architecture: {architecture} has no separate features and head; octray cannot explain it."])
    if not isinstance(body.get_classifier(), nn.Linear):
        raise ConfigError(
            [f"model.architecture: {architecture} does not end in one linear layer; octray cannot train its head."]
        )
    network = Network(body, mean, std)
    is_training = network.training
    features, ran = _try(network, architecture, size)
    if blocks:
        network = _read_blocks(network, architecture, labels, blocks)
    elif global_pool and not pools_by_average(network, features):
        network = _average(network, architecture, labels, features.shape[1], ran)
    return network.train(is_training)


def designed_size(architecture: str) -> int:
    """Return the side of the input for which a network was designed, in pixels.

    Raises
    ------
    ConfigError
        If there is no such network.
    """
    if architecture in BODIES:
        return int(BODIES[architecture].default_cfg["input_size"][-1])
    maker = find_plugin("network", architecture)
    if maker is not None:
        return int(getattr(maker, "default_cfg", {}).get("input_size", (224,))[-1])
    if not timm.is_model(architecture):
        names = [*timm.list_models(), *BODIES, *plugin_names("network")]
        near = difflib.get_close_matches(architecture, names, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else " `octray models list` shows the names."
        raise ConfigError([f"model.architecture: there is no network called {architecture}.{hint}"])
    config = timm.get_pretrained_cfg(architecture)
    return int(config.input_size[-1]) if config is not None else 224


def is_known(architecture: str) -> bool:
    """Return whether there is a network of that name, the plug-ins that are loaded included."""
    return architecture in BODIES or find_plugin("network", architecture) is not None or bool(timm.is_model(architecture))


def list_architectures() -> dict[str, list[str]]:
    """Return the names of the networks of every family, in alphabetical order; those of plug-ins are not among them."""
    found = {}
    for family, patterns in FAMILIES.items():
        names = timm.list_models(module=_MODULES.get(family, "")) + sorted(BODIES)
        found[family] = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    return found


def pools_by_average(network: Network, features: Tensor) -> bool:
    """Return whether the classifier's input is the mean of each channel of the feature map."""
    with torch.no_grad():
        pooled, mean = network.pooled(features), features.mean((2, 3))
    if pooled.shape != mean.shape:
        return False
    return bool(torch.allclose(pooled, mean, rtol=1e-4, atol=1e-5))


def _create_body(architecture: str, labels: int, size: int, known_size: int) -> Any:
    maker = find_plugin("network", architecture)
    if architecture in BODIES:
        if reason := unfit_size(architecture, size):
            raise _refused(architecture, size, f"{reason}.")
        return BODIES[architecture](labels, size)
    if maker is not None:
        try:
            return maker(labels, size)
        except Exception as error:  # whatever the code of others raises
            raise ConfigError(
                [f"model.architecture: the plug-in's network {architecture} cannot be made: {_first_line(error)}"]
            ) from error
    config = timm.get_pretrained_cfg(architecture)
    options: dict[str, Any] = {}
    if timm.model_entrypoint(architecture).__module__ in ("timm.models.vision_transformer", "timm.models.deit"):
        options |= _PATCH_MEAN
    if config is not None and config.fixed_input_size and size != known_size:
        options["img_size"] = size
    try:
        return timm.create_model(architecture, pretrained=False, num_classes=labels, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise _refused(architecture, size, f"{_first_line(error)} It was made for {known_size} pixels.") from error


def _try(network: Network, architecture: str, size: int) -> tuple[Tensor, set[nn.Module]]:
    """Run the body on an empty frame; return the feature map, and the modules that have run for it.

    Parameters
    ----------
    network
        Its `has_tokens` is set.
    architecture, size
        Its name, and the side of the frame.
    """
    body, ran = network.body, set[nn.Module]()
    embed = getattr(body, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if isinstance(patch, tuple) and hasattr(embed, "grid_size") and size % patch[0]:
        below = size // patch[0] * patch[0]
        sizes = " or ".join(str(one) for one in (below, below + patch[0]) if one >= 32)
        raise _refused(architecture, size, f"its patches have {patch[0]} pixels, which must divide the size: use {sizes}.")
    hooks = [module.register_forward_pre_hook(lambda module, _: ran.add(module)) for module in body.modules()]
    try:
        with torch.no_grad():
            frame = torch.zeros_like(network.mean).expand(1, -1, size, size)
            output = network.eval().body.forward_features((frame - network.mean) / network.std)
    except (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise _too_small(network, architecture, size, error) from error
    finally:
        for hook in hooks:
            hook.remove()
    is_tensor = isinstance(output, Tensor)
    network.has_tokens = (
        is_tensor and output.ndim == 3 and getattr(getattr(body, "patch_embed", None), "grid_size", None) is not None
    )
    if not is_tensor or not (network.has_tokens or output.ndim == 4) or not _reads_map_alone(network, output):
        raise ConfigError(
            [
                f"model.architecture: {architecture} does not answer from a feature map alone, so that heatmaps would not "
                "explain it. Choose a network of a family that `octray models list` shows."
            ]
        )
    features = network.as_map(output)
    if not features.numel():
        raise _too_small(network, architecture, size, None)
    return features, ran


def _reads_map_alone(network: Network, output: Tensor) -> bool:
    """Return whether the head gives the same answer for a feature map as for the whole output of the body."""
    expected_tokens = network._prefix + network._grid[0] * network._grid[1] if network.has_tokens else 0
    if network.has_tokens and output.shape[1] != expected_tokens:
        return False
    if not network.has_tokens or output.is_meta:
        return True
    with torch.no_grad():
        seen = network.body.forward_head(output, pre_logits=True)
        return bool(torch.allclose(network.pooled(network.as_map(output)), seen, rtol=1e-4, atol=1e-5))


def _average(network: Network, architecture: str, labels: int, channels: int, ran: set[nn.Module]) -> Network:
    """Return the network with a linear layer on the mean of each channel, and without the layers of its own head."""
    body = network.body
    if architecture == "mlp":
        raise ConfigError(["model.global_pool: mlp has no feature map whose mean could be classified. Leave the key out."])
    replaced = [name for name, child in body.named_children() if not any(module in ran for module in child.modules())]
    for name in replaced:
        setattr(body, name, nn.Identity())
    body.add_module(GLOBAL_HEAD, nn.Linear(channels, labels))
    mean, std = (tuple(values.flatten().tolist()) for values in (network.mean, network.std))
    averaged = Network(body, mean, std, is_averaged=True)
    averaged.has_tokens = network.has_tokens
    return averaged


def _read_blocks(network: Network, architecture: str, labels: int, blocks: Sequence[int]) -> Network:
    """Return the network with a linear layer on the mean of the patches of some blocks, and without what comes after them."""
    body, count = network.body, len(getattr(network.body, "blocks", ()))
    if not network.has_tokens or not hasattr(body, "forward_intermediates"):
        raise ConfigError([f"model.blocks: {architecture} is not a transformer whose blocks can be read. Leave the key out."])
    if blocks[-1] > count:
        raise ConfigError([f"model.blocks: {architecture} has the blocks 1 to {count}. Got {list(blocks)} instead."])
    places = tuple(number - 1 for number in blocks)
    body.prune_intermediate_layers(list(places), prune_norm=False, prune_head=True)
    body.add_module(GLOBAL_HEAD, nn.Linear(len(blocks) * body.num_features, labels))
    mean, std = (tuple(values.flatten().tolist()) for values in (network.mean, network.std))
    removed = tuple(f"blocks.{place}." for place in range(blocks[-1], count))
    found = Network(body, mean, std, is_averaged=True, blocks=places, left_out=removed)
    found.has_tokens = True
    return found


def _too_small(network: Network, architecture: str, size: int, error: Exception | None) -> ConfigError:
    """Return what to say of a network that cannot read frames of a size; looks for the smallest size that it can read."""
    smallest = _smallest_size(network, size)
    if smallest:
        return _refused(architecture, size, f"that is too small for it: use at least {smallest}.")
    why = f": {_first_line(error)}" if error else "."
    return _refused(architecture, size, f"it fails{why} It was made for {designed_size(architecture)} pixels.")


def _smallest_size(network: Network, size: int) -> int:
    """Return the smallest larger size, up to 512 pixels, at which the body has a feature map; 0 if there is none.

    Nothing is computed: the shapes alone are, on torch's device `meta`.
    """
    body = network.body.to("meta")

    def works(side: int) -> bool:
        try:
            with torch.no_grad():
                return bool(body.forward_features(torch.zeros(1, network.mean.shape[1], side, side, device="meta")).numel())
        except (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError, NotImplementedError):
            return False

    low, high = size, next((side for side in range(size + 32, 513, 32) if works(side)), 0)
    while high and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high


def _refused(architecture: str, size: int, why: str) -> ConfigError:
    return ConfigError([f"preprocessing.size: {architecture} cannot read frames of {size} x {size} pixels; {why}"])


def _first_line(error: Exception) -> str:
    lines: Sequence[str] = str(error).splitlines()
    return f"{lines[0].rstrip('.') if lines else type(error).__name__}."
