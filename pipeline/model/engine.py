"""The network at run time: an ONNX graph in ONNX Runtime, and heatmaps from what it returns; no deep learning framework."""

import os
from collections.abc import Iterable
from itertools import islice

import numpy as np
import onnxruntime

from pipeline.errors import BundleError, InputError, is_lack_of_memory, lack_of_memory
from pipeline.frames import FloatArray
from pipeline.predictions import HeatmapMethod
from pipeline.workers.cores import usable_cores

INPUT = "pixels"
OUTPUTS = ("logits", "features")
ERRORS_ONLY = 3
_CPU = "CPUExecutionProvider"
A_CORE, ON_CUDA = 2, 32
"""Frames in one call: few for each core, so that their activations stay in its cache (DECISIONS.md); many on a GPU."""


class Engine:
    """One loaded graph; may be called from several threads at once.

    Parameters
    ----------
    graph
        ONNX with the input `pixels`, float32 of shape (n, 1, size, size) in [0, 1], and the outputs `logits` (n, labels) and
        `features` (n, channels, map_rows, map_columns). Weights outside these bytes are refused.
    threads
        How many cores one call may use; 0 takes all that this process may use.

    Attributes
    ----------
    size
        Rows and columns of the input, in pixels.
    threads
        As given.
    provider
        Execution provider that runs the graph.
    frames_at_once
        Best number of frames for one call.

    Raises
    ------
    BundleError
        If ONNX Runtime cannot load the graph, or its input or outputs are others.
    InputError
        If there is not enough memory for it.
    """

    def __init__(self, graph: bytes, threads: int = 0) -> None:
        try:
            self._session = onnxruntime.InferenceSession(graph, _options(threads), providers=_providers())
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            if is_lack_of_memory(error):
                raise InputError(lack_of_memory()) from None
            raise BundleError(f"The inference graph cannot be loaded: {_first_line(error)} Train the bundle again.") from None
        self.size = self._checked_size()
        self.threads = threads
        self.provider = str(self._session.get_providers()[0])
        self.frames_at_once = A_CORE * (threads or usable_cores()) if self.is_on_processor else ON_CUDA

    @property
    def is_on_processor(self) -> bool:
        """Whether processor cores run the graph, and no GPU."""
        return self.provider == _CPU

    def run(self, pixels: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return logits (n, labels) and features (n, channels, map_rows, map_columns), both float32.

        Raises
        ------
        BundleError
            If a logit is not a finite number.
        """
        logits, features = self._session.run(OUTPUTS, {INPUT: np.ascontiguousarray(pixels, dtype=np.float32)})
        if not np.isfinite(logits).all():
            raise BundleError("The inference graph returns logits that are not numbers. Train the bundle again.")
        return logits, features

    def calls(self, cores: int) -> int:
        """Return how many calls at a time keep `cores` cores busy; one if a single call already uses all of them."""
        return max(1, cores // self.threads) if self.threads and self.is_on_processor else 1

    def parts(self, count: int) -> list[slice]:
        """Return slices that cut `count` frames into batches of the best size."""
        return [slice(start, start + self.frames_at_once) for start in range(0, count, self.frames_at_once)]

    def logits(self, frames: Iterable[FloatArray]) -> FloatArray:
        """Return the logits (n, labels) of frames of shape (1, size, size), run in batches of the best size.

        Raises
        ------
        BundleError
            If a logit is not a finite number.
        """
        rest = iter(frames)
        batches = iter(lambda: list(islice(rest, self.frames_at_once)), [])
        return np.concatenate([self.run(np.stack(batch))[0] for batch in batches])

    def _checked_size(self) -> int:
        inputs = {node.name: node for node in self._session.get_inputs()}
        outputs = {node.name: node for node in self._session.get_outputs()}
        shape = inputs[INPUT].shape if set(inputs) == {INPUT} else []
        ranks = [len(outputs[name].shape) for name in OUTPUTS if name in outputs]
        square = len(shape) == 4 and shape[1] == 1 and isinstance(shape[2], int) and shape[2] == shape[3]
        if not square or isinstance(shape[0], int) or ranks != [2, 4]:
            raise BundleError(
                f"The inference graph must take {INPUT} (batch, 1, size, size) and return logits (batch, labels) and features "
                f"(batch, channels, rows, columns). Got {_describe(inputs)} -> {_describe(outputs)} instead."
            )
        return int(shape[2])


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = ERRORS_ONLY
    # This place cannot hold files, so every reference to weights outside the checked bytes fails.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return options


def _providers() -> list[str]:
    available = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", _CPU) if name in available]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rpartition(" : ")[2].strip().rstrip(".") + "."


def _describe(nodes: dict[str, onnxruntime.NodeArg]) -> str:
    return ", ".join(f"{name} {tuple(node.shape)}" for name, node in nodes.items())


EPSILON = 1e-6
"""What `grad-cam` adds to the denominator of its alpha weights."""


def closed_form_maps(
    features: FloatArray, weights: FloatArray, method: HeatmapMethod, *, is_signed: bool = False
) -> FloatArray:
    """Return the map of every label in every frame.

    Parameters
    ----------
    features
        float32 array of shape (n, channels, map_rows, map_columns): what global average pooling takes.
    weights
        float32 array of shape (labels, channels): the linear classifier.
    method
        Which map.
    is_signed
        Whether to keep what speaks against a label, as negative values.

    Returns
    -------
    FloatArray
        float32 array of shape (n, labels, map_rows, map_columns), in logits, not scaled to its maximum.

    Notes
    -----
    Behind such a head the gradient of a logit is w_k / area at every cell. HiResCAM (Draelos and Carin 2020, arXiv 2011.08891)
    is then Grad-CAM itself; LayerCAM (Jiang et al. 2021, doi 10.1109/TIP.2021.3089943) leaves the negative weights out.
    Grad-CAM++ (Chattopadhay et al. 2018, doi 10.1109/WACV.2018.00097, equation 19) weighs the positive ones by
    alpha = 1 / (2 + w_k * mean of channel k), here with the epsilon of `grad-cam`. The paper sums over the cells; here the mean
    is taken, which puts the map on the scale of the others.
    """
    count, channels, rows, columns = features.shape
    cells = features.reshape(count, channels, rows * columns)
    seen = weights if method in ("grad-cam", "hirescam") else np.maximum(weights, 0)
    if method == "grad-cam++":
        seen = seen * _alpha(cells, weights)
    evidence: FloatArray = seen @ cells
    if not is_signed:
        np.maximum(evidence, 0, out=evidence)
    evidence /= rows * columns
    return evidence.reshape(count, -1, rows, columns)


def _alpha(cells: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the weights of Grad-CAM++, of shape (n, labels, channels)."""
    slope = weights / cells.shape[2]
    alpha: FloatArray = slope**2 / (2 * slope**2 + cells.sum(2)[:, None] * slope**3 + EPSILON)
    return alpha
