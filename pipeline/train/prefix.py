"""The frozen first part of a network: found by tracing, and computed once for a set number of views of each frame."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import _fx
from torch import Tensor, fx, nn

from pipeline.errors import ConfigError, TrainingError
from pipeline.model.networks import Network
from pipeline.progress import Progress
from pipeline.train.devices import Compute
from pipeline.train.workspace import stored_array

IndexRows = NDArray[np.int64]
Batch = tuple[tuple[Tensor, ...], Tensor]
"""What a network, or a part of one, takes of n frames, and their targets of shape (n, labels)."""


class _Tracer(fx.Tracer):
    """Looks into every module but those that torch and timm declare to be whole."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(_fx.get_notrace_functions()))  # type: ignore[no-untyped-call]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = tuple(_fx.get_notrace_modules())  # type: ignore[no-untyped-call]
        return isinstance(m, whole) or super().is_leaf_module(m, module_qualified_name)


def cut(network: Network) -> tuple[nn.Module, nn.Module]:
    """Return the part of a network that no trained parameter has an effect on, and the rest; both share its parameters.

    Parameters
    ----------
    network
        In the mode, train or eval, in which the parts will be used.

    Returns
    -------
    tuple
        The first part takes pixels and returns a tuple of tensors; the second takes these and returns what the network returns.

    Raises
    ------
    ConfigError
        If the network cannot be traced.
    """
    try:
        traced = _Tracer().trace(network)
    except Exception:  # tracing runs the network's own code with stand-ins for tensors: anything can happen
        raise ConfigError(
            ["train.finetune.views: this network cannot be divided into a frozen and a trained part. Set it to 0."]
        ) from None
    frozen: set[fx.Node] = set()
    for node in traced.nodes:
        if _is_frozen(node, network) and all(one in frozen for one in node.all_input_nodes):
            frozen.add(node)
    crossing = [node for node in frozen if node.op != "get_attr" and any(user not in frozen for user in node.users)]
    crossing.sort(key=list(traced.nodes).index)
    first, second = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.nodes:
        if node in frozen:
            copies[node] = first.node_copy(node, copies.__getitem__)
    first.output(tuple(copies[node] for node in crossing))
    copies = {node: second.placeholder(node.name) for node in crossing}
    for node in traced.nodes:
        if node not in copies and (node not in frozen or node.op == "get_attr"):
            copies[node] = second.node_copy(node, copies.__getitem__)
    return tuple(_module(network, graph) for graph in (first, second))  # type: ignore[return-value]


def _is_frozen(node: fx.Node, network: Network) -> bool:
    if node.op == "output":
        return False
    if node.op == "get_attr":
        return not getattr(_attribute(network, str(node.target)), "requires_grad", False)
    if node.op == "call_module":
        return not any(parameter.requires_grad for parameter in network.get_submodule(str(node.target)).parameters())
    return True


def _attribute(network: nn.Module, name: str) -> Any:
    parent, _, last = name.rpartition(".")
    return getattr(network.get_submodule(parent), last)


def _module(network: Network, graph: fx.Graph) -> nn.Module:
    module = fx.GraphModule(network, graph)
    module.training = network.training
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


class Batches(Protocol):
    """Makes batches; the same key gives the same batch."""

    def __getitem__(self, key: tuple[int, IndexRows, IndexRows]) -> Batch:
        """Return a batch for an epoch (0: frames as they are), rows of the index, and the numbers to draw changes from."""


class CachedPrefix:
    """Batches of what the frozen part of a network makes of each frame, kept on disk as 16-bit floating-point numbers.

    Training frames are kept in a set number of views, each changed at random in another way, and tune frames unchanged. An
    epoch then runs the trained part only. The file has views x training frames + tune frames rows; each holds all numbers that
    cross from one part to the other. It is allocated before the first one is computed.

    Parameters
    ----------
    network
        In eval mode, on the device; `requires_grad` says what will be trained.
    frames, targets
        Makes batches of pixels, and gives the targets of rows of the index.
    train, tune
        Rows of the index.
    views, batch_size
        How many views to keep, and how many frames to compute at a time.
    path
        The file; if it exists, nothing is computed.

    Raises
    ------
    ConfigError
        If the network cannot be divided, or numbers do not fit in 16 bits.
    InputError
        If the disk has too little room.
    """

    def __init__(
        self,
        network: Network,
        frames: Batches,
        targets: Callable[[IndexRows], Tensor],
        train: IndexRows,
        tune: IndexRows,
        *,
        views: int,
        batch_size: int,
        compute: Compute,
        path: Path,
        progress: Progress,
    ) -> None:
        self._frames, self._targets, self._views, self._compute = frames, targets, views, compute
        self._first, _ = cut(network)
        self._shapes = [part.shape[1:] for part in self._run(0, train[:1])]
        sets = [*((view, train) for view in range(1, views + 1)), (0, tune)]
        parts = [(epoch, rows[start : start + batch_size]) for epoch, rows in sets for start in range(0, len(rows), batch_size)]
        shape = views * len(train) + len(tune), sum(map(math.prod, self._shapes))
        size = f"{2 * math.prod(shape) / 1e9:,.2f} GB"
        rows = self._rows(progress(parts, f"caching the frozen layers, {size}", len(parts)))
        self._numbers = stored_array(path, rows, shape, np.float16)
        self._places = np.zeros(1 + max(train.max(), tune.max()), np.int64)
        self._places[train] = np.arange(len(train))
        self._places[tune] = views * len(train) + np.arange(len(tune))
        self._count = len(train)

    def __getitem__(self, key: tuple[int, IndexRows, IndexRows]) -> Batch:
        """Return the cached numbers for an epoch; each frame's views take turns."""
        epoch, rows, _ = key
        views = (epoch + rows) % self._views if epoch else np.zeros_like(rows)
        numbers = torch.from_numpy(self._numbers[views * self._count + self._places[rows]].astype(np.float32))
        parts = numbers.split_with_sizes([math.prod(shape) for shape in self._shapes], dim=1)
        inputs = [part.reshape(len(rows), *shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return tuple(map(_channels_last, inputs)), self._targets(rows)

    def _rows(self, parts: Iterable[tuple[int, IndexRows]]) -> Iterator[NDArray[np.float16]]:
        for epoch, rows in parts:
            numbers = torch.cat([part.float().flatten(1) for part in self._run(epoch, rows)], dim=1).cpu().numpy()
            if np.abs(numbers).max() > np.finfo(np.float16).max:
                raise TrainingError("The frozen layers give numbers that are too large to cache. Set train.finetune.views=0.")
            yield from numbers.astype(np.float16)

    def _run(self, epoch: int, rows: IndexRows) -> tuple[Tensor, ...]:
        (pixels,), _ = self._frames[epoch, rows, rows]
        with torch.no_grad(), self._compute.autocast():
            parts: tuple[Tensor, ...] = self._first(self._compute.load(pixels))
        if not all(isinstance(part, Tensor) and len(part) == len(rows) for part in parts):
            raise ConfigError(
                ["train.finetune.views: the frozen part of this network does not give numbers for each frame. Set it to 0."]
            )
        return parts


def _channels_last(part: Tensor) -> Tensor:
    return part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part
