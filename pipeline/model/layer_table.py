"""What networks are made of: a table of well-known ones, and the layers of any network, counted as it runs."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError
from pipeline.model.bodies import DensePixels
from pipeline.model.networks import Network, create_network, designed_size, list_architectures, pools_by_average
from pipeline.model.weights import available_weights

LABELS = 1000
"""Outputs of a described network: those of ImageNet. LeNet-5 has the ten digits that it was made for."""
_LABELS = {"lenet5": 10}
TABLE = "networks.csv"
TABLE_SIZE = 224
"""Side of the input for which the table states multiply-adds."""


@dataclass(frozen=True, slots=True)
class ListedNetwork:
    """One row of the table of networks.

    Parameters
    ----------
    name
        For `model.architecture`.
    title
        Its usual name.
    year
        Of the paper.
    idea
        What was new, in a few words.
    parameters
        Number of weights, with the outputs that it was made for.
    multiply_adds
        Of one frame of 224 x 224 pixels.
    weights
        What `model.weights` can be, besides the path of a file and `none`.
    exact_heatmaps
        Whether heatmaps are parts of the logit, from the forward pass; otherwise they are made by gradient.
    """

    name: str
    title: str
    year: int
    idea: str
    parameters: int
    multiply_adds: int
    weights: tuple[str, ...]
    exact_heatmaps: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a network, as it ran.

    Parameters
    ----------
    name
        In the body of the network.
    kind
        `convolution`, `pooling`, `dense` (it reads a whole feature map or all pixels) or `linear` (each place by itself).
    output
        Shape of its output without the batch: channels, rows, columns; or tokens, width.
    formula
        How the rows of the output follow from those of the input; empty for a layer without a kernel.
    parameters
        Its own number of weights; 0 if the layer has run before.
    receptive_field
        Side of the square of input pixels that a value depends on, without gates such as squeeze-and-excitation; it may be
        larger than the frame. Infinite behind attention and behind a mean over the whole map.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    formula: str
    parameters: int
    receptive_field: float


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is known of a network before it is trained.

    Parameters
    ----------
    name, family
        The family is one of `FAMILIES`, or `other`.
    size
        Side of the input in pixels, for which everything below holds.
    designed_size
        Side of the input that the network, or its pretrained weights, was made for.
    parameters, multiply_adds
        Number of weights with 1,000 outputs (LeNet-5: ten), and of multiplications with an addition for one frame.
    features, map_rows
        Channels and rows of the last feature map.
    halvings
        Sides of the feature maps from the input to the last map.
    exact_heatmaps
        Whether it ends in global average pooling and one linear layer, so that Grad-CAM has a closed form.
    dense_parameters
        Weights of dense layers: those behind the last feature map, or that read all pixels at once.
    embedding_width, tokens
        Of a transformer with tokens: numbers for each token, and how many tokens there are, those without a place included.
    layers
        Convolutions, pooling, dense and other linear layers, in the order in which they run.
    """

    name: str
    family: str
    size: int
    designed_size: int
    parameters: int
    multiply_adds: int
    features: int
    map_rows: int
    halvings: tuple[int, ...]
    exact_heatmaps: bool
    dense_parameters: int
    embedding_width: int | None
    tokens: int | None
    layers: tuple[Layer, ...]


@cache
def list_networks() -> tuple[ListedNetwork, ...]:
    """Return the table of networks; its figures are kept with the program, since building all of them takes a while."""
    text = (resources.files("pipeline.model") / TABLE).read_text(encoding="utf-8")
    return tuple(
        ListedNetwork(
            name=row["name"],
            title=row["title"],
            year=int(row["year"]),
            idea=row["idea"],
            parameters=int(row["parameters"]),
            multiply_adds=int(row["multiply_adds"]),
            weights=tuple(available_weights(row["name"])),
            exact_heatmaps=row["heatmaps"] == "exact",
        )
        for row in csv.DictReader(text.splitlines())
    )


def describe_architecture(architecture: str, size: int | None = None) -> Architecture:
    """Return what is known of a network; builds it with random weights and runs it once.

    Parameters
    ----------
    architecture
        Any name for `model.architecture`.
    size
        Side of the input in pixels; by default what it was made for.

    Raises
    ------
    ConfigError
        If there is no such network, or it cannot read frames of that size.
    """
    known_size = designed_size(architecture)
    if size is not None and size < 1:
        raise ConfigError([f"The size must be a positive number of pixels. Got {size} instead."])
    size = size or known_size
    network = create_network(architecture, _LABELS.get(architecture, LABELS), size).eval()
    layers, features, multiply_adds = _run(network, size)
    body = network.body
    family = next((name for name, members in list_architectures().items() if architecture in members), "other")
    sides = [size, *(_rows(layer) for layer in layers), features.shape[2]]
    return Architecture(
        name=architecture,
        family=family,
        size=size,
        designed_size=known_size,
        parameters=sum(parameter.numel() for parameter in body.parameters()),
        multiply_adds=multiply_adds,
        features=features.shape[1],
        map_rows=features.shape[2],
        halvings=tuple(_falling(sides, features.shape[2])),
        exact_heatmaps=pools_by_average(network, torch.rand(features.shape, generator=torch.Generator().manual_seed(0))),
        dense_parameters=sum(layer.parameters for layer in layers if layer.kind == "dense"),
        embedding_width=int(body.embed_dim) if network.has_tokens else None,
        tokens=int(features[0, 0].numel()) + int(getattr(body, "num_prefix_tokens", 0)) if network.has_tokens else None,
        layers=layers,
    )


def _rows(layer: Layer) -> int:
    """Return the rows of a layer's output; a linear layer has rows if it works on a map whose channels come last."""
    if len(layer.output) != 3:
        return 0
    return layer.output[0] if layer.kind == "linear" else layer.output[1]


def _falling(sides: Sequence[int], last: int) -> Iterator[int]:
    """Yield the sides from the first on, each smaller than the one before, down to the last."""
    smallest = math.inf
    for side in sides:
        if last <= side < smallest:
            smallest = side
            yield side


def _run(network: Network, size: int) -> tuple[tuple[Layer, ...], Tensor, int]:
    """Run a network on an empty frame; return its layers, its last feature map and the number of multiply-adds."""
    layers: list[Layer] = []
    names = {module: name for name, module in network.body.named_modules() if not any(True for _ in module.children())}
    fields, behind, seen = _ReceptiveFields(), [False], set[nn.Module]()

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        kind = _kind(module, behind[0])
        if not kind or not isinstance(output, Tensor):
            return
        own = 0 if module in seen else sum(parameter.numel() for parameter in module.parameters(recurse=False))
        seen.add(module)
        rows = inputs[0].shape[-2] if inputs and inputs[0].ndim == 4 else 0
        formula = size_formula(module, rows) if rows else ""
        layers.append(Layer(names[module], kind, tuple(output.shape[1:]), formula, own, fields.of(output)))

    hooks = [module.register_forward_hook(note) for module in names]
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), fields, counter:
            frame = fields.start(torch.zeros(1, network.mean.shape[1], size, size))
            features = network.as_map(network.body.forward_features(frame))
            behind[0] = True
            network.head(features)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(layers), features, counter.get_total_flops() // 2


def _kind(module: nn.Module, is_behind: bool) -> str:
    if isinstance(module, nn.Conv2d | nn.Linear) and (is_behind or isinstance(module, DensePixels)):
        return "dense"
    if isinstance(module, nn.Conv2d):
        return "convolution"
    if isinstance(module, nn.Linear):
        return "linear"
    return "pooling" if isinstance(module, _MaxPoolNd | _AvgPoolNd) else ""


def output_size(
    size: int, *, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, rounds_up: bool = False
) -> int:
    """Return the rows that a convolution or a pooling layer makes of `size` rows.

    (size + 2 padding - dilation (kernel - 1) - 1) / stride + 1, rounded down; rounded up, a last window that would begin
    behind the frame is left out, as in torch.
    """
    reach = size + 2 * padding - dilation * (kernel - 1) - 1
    if not rounds_up:
        return reach // stride + 1
    rows = -(-reach // stride) + 1
    return rows - 1 if (rows - 1) * stride >= size + padding else rows


def size_formula(module: nn.Module, rows: int) -> str:
    """Return the formula of `output_size` with the numbers of a layer, and what comes out; empty if it has no kernel."""
    if not isinstance(module, nn.Conv2d | _MaxPoolNd | _AvgPoolNd):
        return ""
    kernel, stride, padding, dilation = (
        _side(getattr(module, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    if type(module).__name__.endswith("Same") or padding is None:  # TensorFlow's padding, which timm adds before the layer
        return f"ceil({rows} / {stride}) = {-(-rows // (stride or 1))}"
    assert kernel is not None  # noqa: S101 - only padding can be a word
    assert stride is not None  # noqa: S101
    rounds_up = bool(getattr(module, "ceil_mode", False))
    found = output_size(rows, kernel=kernel, stride=stride, padding=padding, dilation=dilation or 1, rounds_up=rounds_up)
    reach = (dilation or 1) * (kernel - 1) + 1
    return f"({rows} + {2 * padding} - {reach}) {'/^' if rounds_up else '//'} {stride} + 1 = {found}"


def _side(value: Any) -> int | None:
    """Return the rows of a kernel, stride, padding or dilation; None for a word such as `same`."""
    if isinstance(value, str):
        return None
    return int(value[0] if isinstance(value, Sequence) else value)


class _ReceptiveFields(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every operation of torch, and notes of each tensor how many input pixels its values see.

    Each tensor has the side of the field and the distance of neighbouring values, in pixels (Araujo et al. 2019, doi
    10.23915/distill.00021). If a value comes from several tensors, the largest field counts; those that are spread over the
    others, as the gates of squeeze-and-excitation are, do not.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, tuple[Tensor, float, float]] = {}

    def start(self, frame: Tensor) -> Tensor:
        """Note that the values of a frame are pixels, and return it."""
        self._known[id(frame)] = frame, 1.0, 1.0
        return frame

    def of(self, tensor: Tensor) -> float:
        """Return the receptive field of a tensor; infinite if it is not known."""
        return self._known.get(id(tensor), (tensor, math.inf, 1.0))[1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self._note(str(func.overloadpacket).rpartition(".")[2], args, output)
        return output

    def _note(self, name: str, args: Sequence[Any], output: Any) -> None:
        given = [one for arg in args for one in (arg if isinstance(arg, list | tuple) else (arg,))]
        known = [self._known[id(one)] for one in given if isinstance(one, Tensor) and id(one) in self._known]
        if not known:
            return
        most = max(tensor.numel() for tensor, _, _ in known)
        spread = known if name == "cat" else [one for one in known if one[0].numel() == most]
        field, jump = max(one[1] for one in spread), max(one[2] for one in spread)
        source, first = known[0][0], output[0] if isinstance(output, list | tuple) else output
        if name == "convolution":
            kernel, stride, dilation = args[1].shape[2], args[3][0], args[5][0]
            field, jump = field + dilation * (kernel - 1) * jump, jump * stride
        elif name in ("max_pool2d_with_indices", "avg_pool2d"):
            kernel, stride = args[1][0], (args[2] if len(args) > 2 and args[2] else args[1])[0]
            field, jump = field + (kernel - 1) * jump, jump * stride
        elif name in ("bmm", "mean") or "softmax" in name or "attention" in name:
            field = math.inf
        elif name in ("mm", "addmm"):
            field = math.inf if len(first) == 1 else field
        elif "adaptive" in name and source.shape != first.shape:
            field = math.inf
        for one in output if isinstance(output, list | tuple) else (output,):
            if isinstance(one, Tensor):
                self._known[id(one)] = one, field, jump
