"""The networks of a bundle at run time: their graphs run on the same frames, their logits averaged, their maps on one grid.

The average of several networks is usually more accurate than any one of them, and their spread shows how certain it is
(Lakshminarayanan, Pritzel and Blundell, "Simple and scalable predictive uncertainty estimation using deep ensembles", 2017).
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BundleError
from pipeline.frames import FloatArray
from pipeline.model.bundle import Bundle
from pipeline.model.engine import Engine
from pipeline.predictions import Activation, Average


class NetworkOutputs(NamedTuple):
    """What the networks of a bundle say of n frames.

    Parameters
    ----------
    logits
        Averaged, float32 of shape (n, labels).
    members
        Logits of each network, float32 of shape (networks, n, labels).
    features
        The last feature map of each network, float32 of shape (n, channels, map_rows, map_columns).
    """

    logits: FloatArray
    members: FloatArray
    features: tuple[FloatArray, ...]


class Ensemble:
    """Several loaded graphs, or one, that take the same frames; may be called from several threads at once.

    Parameters
    ----------
    engines
        One for each network, with the same size and number of threads.
    average
        Of what the mean is taken.
    activation
        As in `averaged_logits`.

    Attributes
    ----------
    size, threads, provider, frames_at_once
        As of one `Engine`: the networks run one after the other, each with all threads.

    Raises
    ------
    BundleError
        If the graphs take frames of different sizes.
    """

    def __init__(self, engines: Sequence[Engine], average: Average, activation: Activation) -> None:
        self._engines, self._average, self._activation = tuple(engines), average, activation
        first = self._engines[0]
        if {engine.size for engine in self._engines} != {first.size}:
            sizes = ", ".join(str(engine.size) for engine in self._engines)
            raise BundleError(f"The inference graphs take frames of different sizes ({sizes} pixels). Train the bundle again.")
        self.size, self.threads, self.provider, self.frames_at_once = (
            first.size,
            first.threads,
            first.provider,
            first.frames_at_once,
        )

    @classmethod
    def of(cls, bundle: Bundle, threads: int = 0) -> "Ensemble":
        """Load the graphs of a bundle, for calls on so many cores; 0 takes all that this process may use."""
        manifest = bundle.manifest
        engines = [Engine(bundle.read(member.graph), threads) for member in manifest.members]
        return cls(engines, manifest.average, manifest.activation)

    @property
    def is_on_processor(self) -> bool:
        """Whether processor cores run the graphs, and no GPU."""
        return self._engines[0].is_on_processor

    def calls(self, cores: int) -> int:
        """Return how many calls at a time keep `cores` cores busy; one if a single call already uses all of them."""
        return self._engines[0].calls(cores)

    def parts(self, count: int) -> list[slice]:
        """Return slices that cut `count` frames into batches of the best size."""
        return [slice(start, start + self.frames_at_once) for start in range(0, count, self.frames_at_once)]

    def run(self, pixels: FloatArray) -> NetworkOutputs:
        """Return what the networks say of frames of shape (n, 1, size, size).

        Raises
        ------
        BundleError
            If a logit is not a finite number, or the networks have different numbers of labels.
        """
        frames = np.ascontiguousarray(pixels, dtype=np.float32)
        logits, features = zip(*(engine.run(frames) for engine in self._engines), strict=True)
        if len({one.shape for one in logits}) > 1:
            counts = ", ".join(str(one.shape[1]) for one in logits)
            raise BundleError(f"The inference graphs return different numbers of logits ({counts}). Train the bundle again.")
        members = np.stack(logits)
        return NetworkOutputs(averaged_logits(members, self._average, self._activation), members, tuple(features))

    def logits(self, frames: Iterable[FloatArray]) -> FloatArray:
        """Return the averaged logits (n, labels) of frames of shape (1, size, size), run in batches of the best size.

        Raises
        ------
        BundleError
            As `run`.
        """
        rest = iter(frames)
        batches = iter(lambda: list(islice(rest, self.frames_at_once)), [])
        return np.concatenate([self.run(np.stack(batch)).logits for batch in batches])


def averaged_logits(members: FloatArray, average: Average, activation: Activation) -> FloatArray:
    """Return logits whose activation is the answer of several networks together.

    Parameters
    ----------
    members
        Logits of each network, of shape (networks, n, labels).
    average
        `logit` takes the mean of the logits, the normalised geometric mean of the probabilities; `probability` returns logits
        whose activation is the arithmetic mean of the probabilities.
    activation
        How logits become probabilities.

    Returns
    -------
    FloatArray
        float32 of shape (n, labels); the logits themselves if there is one network.
    """
    if len(members) == 1:
        return np.asarray(members[0], np.float32)
    logits = members.astype(np.float64)
    if average is Average.LOGIT:
        return np.asarray(logits.mean(axis=0), np.float32)
    if activation is Activation.SOFTMAX:
        logs = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
        mean = np.logaddexp.reduce(logs, axis=0) - np.log(len(members))
    else:
        mean = np.logaddexp.reduce(-np.logaddexp(0, -logits), axis=0) - np.logaddexp.reduce(-np.logaddexp(0, logits), axis=0)
    return np.asarray(mean, np.float32)


def mean_maps(maps: Sequence[FloatArray]) -> FloatArray:
    """Return the mean of the maps of several networks, on the finest of their grids, without what speaks against the label.

    What a cell says is divided among the cells that it covers in proportion to their area, so that each map keeps its sum: if
    the values of each map add up to the evidence of one network, those of the mean add up to the mean evidence.

    Parameters
    ----------
    maps
        One for each network, float32 of shape (n, labels, map_rows, map_columns), with negative values.

    Returns
    -------
    FloatArray
        float32 of shape (n, labels, rows, columns), not negative.
    """
    rows, columns = (max(one.shape[axis] for one in maps) for axis in (2, 3))
    if len(maps) == 1:
        return np.asarray(np.maximum(maps[0], 0), np.float32)
    mean = np.mean([_shares(one.shape[2], rows) @ one @ _shares(one.shape[3], columns).T for one in maps], axis=0)
    return np.asarray(np.maximum(mean, 0), np.float32)


def _shares(cells: int, finer: int) -> NDArray[np.float64]:
    """Return which part of each of `cells` equal cells lies in each of `finer` ones, of shape (finer, cells)."""
    edges, old = np.arange(finer + 1) / finer, np.arange(cells + 1) / cells
    low, high = np.maximum(edges[:-1, None], old[None, :-1]), np.minimum(edges[1:, None], old[None, 1:])
    return np.asarray(np.maximum(high - low, 0) * cells, np.float64)
