"""95 % intervals of figures, for frames that come in groups: the patients. What no interval would be honest for has none.

Figures count frames; intervals count patients, since the frames of one patient resemble each other. Proportions and areas under
the receiver operating characteristic have intervals in closed form, which hold with few patients and at 1.000 as well.
Everything else is resampled. `benchmarks/coverage.py` simulates how often they hold.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from pipeline.evaluate.calibration import Float64
from pipeline.predictions import Interval

Key = TypeVar("Key", bound=Hashable)
LowHigh = tuple[float, float] | None
"""The limits of an interval; None if none is honest."""

TAIL = 0.025
"""The chance to lie beyond either limit of an interval of 95 %."""
FEWEST_RESAMPLES = 100
"""From fewer, a percentile says nothing."""
FEWEST = 2
"""Patients of each kind that an interval needs: one does not show how patients differ."""
LEAST_SPREAD = 1e-12
"""Of resamples: if it is less, they differ by rounding only."""
CELLS = 2**18
_TYPICAL = 1.0
"""How many patients the assumption counts for that all frames of a patient are alike."""


@dataclass(frozen=True, slots=True)
class Estimate(Interval):
    """A figure with its 95 % interval; None instead of limits if no interval is honest.

    Parameters
    ----------
    left_out
        In how many resamples the figure is not defined, for example because none of the drawn patients has the finding; 0 if
        its interval does not come from resamples.
    """

    left_out: int = 0

    @classmethod
    def of(cls, value: float, limits: LowHigh, left_out: int = 0) -> "Estimate":
        """Return a figure with its limits; nan is a figure that is not defined."""
        if np.isnan(value):
            return cls(None, None, None, left_out)
        low, high = limits or (None, None)
        return cls(float(value), low, high, left_out)


def proportion_limits(hits: ArrayLike, groups: ArrayLike, weights: ArrayLike | None = None, tail: float = TAIL) -> LowHigh:
    """Return the 95 % interval of a part of some frames, which come in groups.

    It is that of Clopper and Pearson (1934) for the effective number of frames, n / (1 + (m - 1) r): m is the mean size of the
    groups as a frame sees it (Kish 1965), and r the correlation within groups, as the variance between groups tells it
    (Rao and Scott, "A simple method for the analysis of clustered binary data", Biometrics 1992). Few groups tell r badly,
    above all if hardly any frame is a miss, and then the interval would be too narrow. So r counts as much as the groups that
    the misses (or the hits, if these are fewer) come from, and r = 1 as one group more. If there is no miss at all, or no hit,
    r is 1: only patients count. With one frame in each group it is the exact interval of Clopper and Pearson.

    Parameters
    ----------
    hits
        Shape (n,): 1 for a frame that counts, 0 for another.
    groups
        Shape (n,): the patient of each frame.
    weights
        Shape (n,), positive: how much each frame counts; None: all alike.
    tail
        The chance to lie beyond either limit.

    Returns
    -------
    tuple of float
        In [0, 1]; None with fewer than two patients.
    """
    counted, members = np.asarray(hits, np.float64), np.unique(np.asarray(groups), return_inverse=True)[1]
    masses = np.ones(len(counted)) if weights is None else np.asarray(weights, np.float64)
    if members.max(initial=-1) + 1 < FEWEST:
        return None
    is_mixed = counted.min() < counted.max()
    part = float(masses @ counted / masses.sum()) if is_mixed else float(counted[0])
    frames, patients = _effective(masses), _effective(_sums(members, masses))
    if is_mixed:
        variance = part * (1 - part) / frames
        between, _ = _variances(counted, masses, members)
        rarer = counted if part <= 0.5 else 1 - counted
        size = 1 + (frames / patients - 1) * _correlation(between / variance, frames / patients, masses * rarer, members)
        frames = min(frames, frames / size)
    else:
        frames = patients
    return binomial_limits(part * frames, frames, tail)


def binomial_limits(hits: float, frames: float, tail: float = TAIL) -> tuple[float, float]:
    """Return the interval of Clopper and Pearson (1934) of a proportion; neither number needs to be whole."""
    low = special.betaincinv(hits, frames - hits + 1, tail) if hits > 0 else 0.0
    high = special.betaincinv(hits + 1, frames - hits, 1 - tail) if hits < frames else 1.0
    return float(low), float(high)


def clustered_auroc(probabilities: Float64, targets: Float64, groups: ArrayLike) -> tuple[float, float]:
    """Return the area under the receiver operating characteristic and its variance, with frames in groups.

    Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 1997. With one frame in each group it is the
    variance of DeLong, DeLong and Clarke-Pearson (Biometrics 1988).

    Parameters
    ----------
    probabilities
        Shape (n,).
    targets
        Shape (n,) of 1 and 0; there must be two groups with frames of either.
    groups
        Shape (n,): the patient of each frame.
    """
    found = _Area(probabilities, targets, groups)
    return found.value, found.between[0] + found.between[1] + 2 * found.covariance


def auroc_limits(probabilities: Float64, targets: Float64, groups: ArrayLike) -> LowHigh:
    """Return the 95 % interval of the area under the receiver operating characteristic, with frames in groups.

    It is `clustered_auroc` on the logit scale with Student's t, with one degree of freedom less than there are groups with
    positive frames, or with negative ones if these are fewer. As in `proportion_limits`, the correlation within groups counts
    as much as the groups that the misplaced frames come from, and full correlation as one group more: the variance between few
    groups, hardly any of which has a misplaced frame, is mostly too small. An area of exactly 1 has an upper limit of 1, and
    the lower one of so many hits without a miss as there are effective patients of the rarer kind; each pair of patients would
    be one trial.

    Parameters are those of `clustered_auroc`.

    Returns
    -------
    tuple of float
        In [0, 1]; None with fewer than two patients with positive frames, or with negative ones, or if all frames have the same
        probability.
    """
    present = targets == 1
    if min(len(np.unique(np.asarray(groups)[kind])) for kind in (present, ~present)) < FEWEST:
        return None
    found = _Area(probabilities, targets, groups)
    if found.value in (0.0, 1.0):
        pairs = min(found.patients)
        return binomial_limits(found.value * pairs, pairs)
    parts = np.maximum(found.between, found.cautious)
    if not parts.sum() > 0:  # all frames have the same probability
        return None
    variance = parts.sum() + 2 * found.covariance
    reach = float(special.stdtrit(min(found.groups) - 1, 1 - TAIL)) * np.sqrt(variance if variance > 0 else parts.sum())
    middle, scale = special.logit(found.value), found.value * (1 - found.value)
    low, high = special.expit([middle - reach / scale, middle + reach / scale])
    return float(low), float(high)


class _Area:
    """What the variance of an area under the curve is made of; pairs are (frames with the label, frames without it).

    Attributes
    ----------
    value
        The area.
    between
        The variance that the groups show, for either kind of frames.
    cautious
        The same with the correlation within groups drawn towards 1.
    covariance
        Of both, from groups that have frames of either kind.
    groups, patients
        How many groups have such frames, and how many that is effectively, since some have more frames than others.
    """

    def __init__(self, probabilities: Float64, targets: Float64, groups: ArrayLike) -> None:
        members = np.unique(np.asarray(groups), return_inverse=True)[1]
        kinds = [np.flatnonzero(targets == value) for value in (1, 0)]
        with_label, without = (np.sort(probabilities[rows]) for rows in kinds)
        places = [_below(without, probabilities[kinds[0]]), 1 - _below(with_label, probabilities[kinds[1]])]
        self.value = float(places[0].mean())
        self.between, self.cautious, self.groups, self.patients = np.empty(2), np.empty(2), [0, 0], [0.0, 0.0]
        sums = np.zeros((2, members.max() + 1))
        for kind, (rows, place) in enumerate(zip(kinds, places, strict=True)):
            own = np.unique(members[rows], return_inverse=True)[1]
            ones = np.ones(len(rows))
            self.groups[kind], self.patients[kind] = own.max() + 1, _effective(_sums(own, ones))
            self.between[kind], single = _variances(place, ones, own)
            size = len(rows) / self.patients[kind]
            misses = 1 - place if self.value >= 0.5 else place
            found = _correlation(self.between[kind] / single, size, misses, own) if single > 0 else 0.0
            self.cautious[kind] = single * (1 + (size - 1) * found)
            sums[kind] = np.bincount(members[rows], place - place.mean(), minlength=sums.shape[1]) / len(rows)
        count = sums.shape[1]
        self.covariance = float(sums[0] @ sums[1]) * count / (count - 1)


def _below(ordered: Float64, values: Float64) -> Float64:
    """Return which part of some ordered numbers lies below each value, equal ones counted half."""
    sides = [np.searchsorted(ordered, values, side) for side in ("left", "right")]
    return np.asarray((sides[0] + sides[1]) / (2 * len(ordered)), np.float64)


def _effective(weights: Float64) -> float:
    """Return how many equal weights tell as much as these (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _sums(members: NDArray[np.intp], values: Float64) -> Float64:
    """Return the sum of each group."""
    return np.bincount(members, values).astype(np.float64)


def _variances(values: Float64, weights: Float64, members: NDArray[np.intp]) -> tuple[float, float]:
    """Return the variance of a weighted mean as groups show it, and as single frames would, were they independent."""
    total, away = weights.sum(), values - weights @ values / weights.sum()
    groups, frames = members.max() + 1, len(values)
    sums = _sums(members, weights * away)
    between = groups / (groups - 1) * (sums @ sums)
    single = frames / (frames - 1) * ((weights * away) @ (weights * away))
    return float(between / total**2), float(single / total**2)


def _correlation(design: float, size: float, misses: Float64, members: NDArray[np.intp]) -> float:
    """Return the correlation within groups, in [0, 1], drawn towards 1.

    Parameters
    ----------
    design
        How much larger the variance between groups is than if frames were independent.
    size
        Of a group, as a frame sees it.
    misses
        How much each frame misses; the groups that these come from, effectively, are what is known of the correlation.
    members
        The group of each.
    """
    if size <= 1 + 1e-9:
        return 0.0
    known = _effective(_sums(members, misses))
    return float((known * np.clip((design - 1) / (size - 1), 0, 1) + _TYPICAL) / (known + _TYPICAL))


def bootstrap(
    statistic: Callable[[Float64], Mapping[Key, Float64]],
    groups: Sequence[str],
    resamples: int,
    seed: int,
    patients: Mapping[Key, int] | None = None,
) -> dict[Key, Estimate]:
    """Estimate figures with percentile intervals over resamples of whole patients (Efron and Tibshirani 1993, chapter 13).

    Percentiles of few patients are too narrow, as if the normal distribution stood for Student's t and the variance were
    divided by n instead of n - 1. So they are taken farther out, as Hesterberg corrects it ("What teachers should know about
    the bootstrap", The American Statistician 2015, section 3.2). If all resamples are alike, as they are if no frame was a
    miss, they show nothing of how the figure would vary, and there is no interval.

    Parameters
    ----------
    statistic
        Takes weights of shape (r, n) and returns figures of shape (r,), nan if one is not defined.
    groups
        The patient of each of the n frames.
    resamples
        How often as many patients as there are, are drawn.
    seed
        Equal seeds give equal intervals, whatever the order of the frames.
    patients
        On how many patients a figure rests, for example those with the finding if they are fewer than those without it; of
        figures that are not named, all. With fewer than two there is no interval.
    """
    values, drawn = resampled(statistic, groups, resamples, seed)
    everyone, rests = len(set(groups)), patients or {}
    return {key: estimate(values[key], drawn[key], rests.get(key, everyone)) for key in values}


def resampled(
    statistic: Callable[[Float64], Mapping[Key, Float64]], groups: Sequence[str], resamples: int, seed: int
) -> tuple[dict[Key, float], dict[Key, Float64]]:
    """Return the figures themselves, and those of each resample of patients; parameters as in `bootstrap`."""
    names, members = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    values = statistic(np.ones((1, len(members))))
    drawn: dict[Key, list[Float64]] = {key: [np.empty(0)] for key in values}
    for counts in _draw(len(names), resamples, max(1, CELLS // len(members)), seed):
        for key, figures in statistic(counts[:, members]).items():
            drawn[key].append(figures)
    return (
        {key: float(value[0]) for key, value in values.items()},
        {key: np.concatenate(parts) for key, parts in drawn.items()},
    )


def estimate(value: float, figures: Float64, patients: int) -> Estimate:
    """Return a figure with the interval that its resamples give, as `bootstrap` describes it."""
    defined = figures[~np.isnan(figures)]
    limits = None
    if patients >= FEWEST and len(defined):
        tail = special.ndtr(special.stdtrit(patients - 1, TAIL) * np.sqrt(patients / (patients - 1)))
        low, high = map(float, np.quantile(defined, (tail, 1 - tail)))
        limits = (low, high) if high - low > LEAST_SPREAD else None
    return Estimate.of(value, limits, len(figures) - len(defined))


def _draw(patients: int, resamples: int, at_once: int, seed: int) -> Iterator[Float64]:
    """Yield how often each patient was drawn, in parts of shape (at most at_once, patients)."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        yield rng.multinomial(patients, np.full(patients, 1 / patients), size=size).astype(np.float64)
