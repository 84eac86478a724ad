"""The network at run time: an ONNX graph in ONNX Runtime, without any deep learning framework."""

import os
from collections.abc import Iterable
from itertools import islice

import numpy as np
import onnxruntime

from pipeline.errors import BundleError, InputError, is_lack_of_memory, lack_of_memory
from pipeline.frames import FloatArray
from pipeline.workers.cores import usable_cores

INPUT = "pixels"
OUTPUTS = ("logits", "features")
ERRORS_ONLY = 3
_CPU = "CPUExecutionProvider"
A_CORE, ON_CUDA = 2, 32
"""Frames in one call: on processors few for each core, whose activations stay in its cache (DECISIONS.md); on a GPU many."""


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
        How many frames one call takes best.

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
            Where a logit is not a finite number.
        """
        logits, features = self._session.run(OUTPUTS, {INPUT: np.ascontiguousarray(pixels, dtype=np.float32)})
        if not np.isfinite(logits).all():
            raise BundleError("The inference graph returns logits that are not numbers. Train the bundle again.")
        return logits, features

    def calls(self, cores: int) -> int:
        """Return how many calls at a time keep so many cores at work; one, where a single call takes all there is."""
        return max(1, cores // self.threads) if self.threads and self.is_on_processor else 1

    def parts(self, count: int) -> list[slice]:
        """Return slices that cut so many frames into what one call takes best."""
        return [slice(start, start + self.frames_at_once) for start in range(0, count, self.frames_at_once)]

    def logits(self, frames: Iterable[FloatArray]) -> FloatArray:
        """Return the logits (n, labels) of frames of shape (1, size, size), run as many at a time as it takes best.

        Raises
        ------
        BundleError
            Where a logit is not a finite number.
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
    # A place that cannot hold files: every reference to weights outside the checked bytes fails.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return options


def _providers() -> list[str]:
    available = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", _CPU) if name in available]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rpartition(" : ")[2].strip().rstrip(".") + "."


def _describe(nodes: dict[str, onnxruntime.NodeArg]) -> str:
    return ", ".join(f"{name} {tuple(node.shape)}" for name, node in nodes.items())
