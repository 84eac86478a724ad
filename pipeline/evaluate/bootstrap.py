"""Intervals of 95 % by drawing patients, not frames, with replacement: the frames of one patient resemble each other."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.evaluate.calibration import Float64

Key = TypeVar("Key", bound=Hashable)

PERCENTILES = (2.5, 97.5)
CELLS = 2**18


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; nan where it is not defined.

    Parameters
    ----------
    value
        On the frames themselves.
    low, high
        Percentiles 2.5 and 97.5 over the resamples in which the figure is defined.
    left_out
        In how many resamples it is not, for example because none of the drawn patients has the finding.
    """

    value: float
    low: float
    high: float
    left_out: int

    def to_json(self) -> dict[str, float | int | None]:
        """Return the figure for a JSON file, nan as None."""
        figures = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if np.isnan(figure) else figure for name, figure in figures.items()} | {"left_out": self.left_out}


def bootstrap(
    statistic: Callable[[Float64], Mapping[Key, Float64]], groups: Sequence[str], resamples: int, seed: int
) -> dict[Key, Estimate]:
    """Estimate figures with percentile intervals over resamples of whole patients (Efron and Tibshirani 1993, chapter 13).

    Parameters
    ----------
    statistic
        Takes weights of shape (r, n) and returns figures of shape (r,), nan where one is not defined.
    groups
        The patient of each of the n frames. With fewer than two patients there is no interval: it is nan.
    resamples
        How often as many patients as there are, are drawn.
    seed
        Equal seeds give equal intervals, whatever the order of the frames.
    """
    names, members = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    values = statistic(np.ones((1, len(members))))
    drawn: dict[Key, list[Float64]] = {key: [np.empty(0)] for key in values}
    for counts in _draw(len(names), resamples, max(1, CELLS // len(members)), seed):
        for key, figures in statistic(counts[:, members]).items():
            drawn[key].append(figures)
    enough = len(names) > 1
    return {key: _estimate(float(values[key][0]), np.concatenate(parts), enough) for key, parts in drawn.items()}


def _draw(patients: int, resamples: int, at_once: int, seed: int) -> Iterator[Float64]:
    """Yield how often each patient was drawn, in parts of shape (at most at_once, patients)."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        yield rng.multinomial(patients, np.full(patients, 1 / patients), size=size).astype(np.float64)


def _estimate(value: float, figures: Float64, enough: bool) -> Estimate:
    defined = figures[~np.isnan(figures)]
    low, high = np.percentile(defined, PERCENTILES) if enough and len(defined) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), len(figures) - len(defined))
