"""From a trained network to the graph that scores: ONNX with two outputs, checked against the network it came from."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import TrainingError
from pipeline.model.architectures import Network, pools_by_average
from pipeline.model.bundle import HeatmapSupport
from pipeline.model.engine import Engine
from pipeline.records import FloatArray

HEATMAP_LAYER = "forward_features"
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's warnings, which speak of its own inner steps."""
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
        Where it is above `LOGIT_TOLERANCE` times the largest logit (or 1).
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


def heatmap_support(network: Network, pixels: FloatArray) -> HeatmapSupport:
    """Measure whether the closed form of Grad-CAM holds: logit gradient = classifier weight / area, at every cell.

    Parameters
    ----------
    network
        With its trained classifier.
    pixels
        Real input, float32 of shape (n, 1, size, size) in [0, 1].
    """
    network.eval()
    with torch.no_grad():
        _, features = network(torch.from_numpy(pixels))
        if not pools_by_average(network, features):
            return HeatmapSupport(layer=HEATMAP_LAYER, classifier=network.classifier_name, exact=False, max_difference=None)
    features = features.detach().requires_grad_()
    logits = network.body.forward_head(features)
    difference = 0.0
    for label, weight in enumerate(network.classifier.weight):
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), features, retain_graph=True)
        by_gradient = torch.relu((gradient.mean((2, 3), keepdim=True) * features).sum(1))
        closed_form = torch.relu((weight.view(1, -1, 1, 1) * features).sum(1) / features[0, 0].numel())
        difference = max(difference, float((by_gradient - closed_form).detach().abs().max()))
    return HeatmapSupport(
        layer=HEATMAP_LAYER,
        classifier=network.classifier_name,
        exact=difference <= HEATMAP_TOLERANCE,
        max_difference=difference,
    )
