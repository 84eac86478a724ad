"""Exports a trained network as the graph that scores: ONNX with two outputs, compared with the network itself."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import torch

from pipeline.errors import TrainingError
from pipeline.frames import FloatArray
from pipeline.model.bundle import MapSupport
from pipeline.model.engine import Engine, closed_form_maps
from pipeline.model.gradient_maps import gradient_maps
from pipeline.model.networks import LAST_LAYER, Network, pools_by_average
from pipeline.predictions import HeatmapMethod

LOGIT_TOLERANCE = 1e-3
HEATMAP_TOLERANCE = 1e-4


def export_graph(network: Network, size: int) -> bytes:
    """Return the network as ONNX: `pixels` (batch, 1, size, size) in, `logits` and `features` out, any batch size."""
    network.eval()
    batch = torch.export.Dim("batch", min=1)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 1, size, size),),
            dynamo=True,
            input_names=["pixels"],
            output_names=["logits", "features"],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
        assert program is not None  # noqa: S101 - only None without dynamo
        path = Path(folder) / "model.onnx"
        program.save(path, external_data=False)
        return path.read_bytes()


def with_classifier(graph: bytes, before: tuple[FloatArray, FloatArray], after: tuple[FloatArray, FloatArray]) -> bytes | None:
    """Return a graph with another classifier, which is much quicker than to export the network again.

    Parameters
    ----------
    graph
        As from `export_graph`.
    before, after
        Weight (labels, channels) and bias (labels,) of the classifier with which it was exported, and of the other one.

    Returns
    -------
    bytes or None
        None if the graph does not hold exactly one tensor with the values of each.
    """
    model = onnx.load_from_string(graph)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for old, new in zip(before, after, strict=True):
        places = [
            (name, is_turned)
            for name, values in held.items()
            for is_turned in ([False, True] if old.ndim == 2 else [False])
            if values.dtype == old.dtype and np.array_equal(values, old.T if is_turned else old)
        ]
        if len(places) != 1:
            return None
        ((name, is_turned),) = places
        (tensor,) = (one for one in model.graph.initializer if one.name == name)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(new.T if is_turned else new), name))
    return bytes(model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings, which are about its own inner steps."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def check_graph(network: Network, graph: bytes, pixels: FloatArray) -> float:
    """Compare a graph with the network it was exported from.

    Parameters
    ----------
    network, graph
        The two.
    pixels
        Real input, float32 of shape (n, 1, size, size) in [0, 1].

    Returns
    -------
    float
        The largest absolute difference between their logits.

    Raises
    ------
    TrainingError
        If it is above `LOGIT_TOLERANCE` times the largest logit (or 1).
    """
    logits, _ = Engine(graph).run(pixels)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(pixels))[0].numpy()
    difference = float(np.abs(logits - expected).max())
    if not difference <= LOGIT_TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise TrainingError(
            f"The exported graph differs from the network by {difference:.2g} in its logits; nothing was written."
        )
    return difference


def map_support(network: Network, pixels: FloatArray, method: HeatmapMethod = "grad-cam") -> MapSupport:
    """Measure whether the closed form holds: whether it gives the same map as `grad-cam`, before the library scales it.

    Parameters
    ----------
    network
        With its trained classifier.
    pixels
        Real input, float32 of shape (n, 1, size, size) in [0, 1].
    method
        Which map.
    """
    network.eval()
    with torch.no_grad():
        _, features = network(torch.from_numpy(pixels))
        pools = pools_by_average(network, features)
    difference = _difference(network, features.numpy(), method) if pools else None
    exact = difference is not None and difference <= HEATMAP_TOLERANCE
    return MapSupport(
        layer=LAST_LAYER,
        classifier=network.classifier_name,
        exact=exact,
        max_difference=difference,
        computed="closed_form" if exact else "gradient",
    )


def finer_map_support(network: Network, pixels: FloatArray, rows: int) -> MapSupport | None:
    """Return how maps of at least so many rows are made: by gradient, at an inner layer; None if the network has no such layer.

    Parameters
    ----------
    network
        With its trained classifier.
    pixels
        Real input, float32 of shape (n, 1, size, size) in [0, 1].
    rows
        The fewest rows of a map.
    """
    layer = network.eval().inner_layer(torch.from_numpy(pixels), rows)
    if layer is None:
        return None
    return MapSupport(layer=layer, classifier=network.classifier_name, exact=False, max_difference=None, computed="gradient")


def _difference(network: Network, features: FloatArray, method: HeatmapMethod) -> float:
    closed_form = closed_form_maps(features, network.classifier.weight.detach().numpy(), method)
    return float(np.abs(closed_form - gradient_maps(network, features, method)).max())
