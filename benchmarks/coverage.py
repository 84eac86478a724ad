"""How often 95 % intervals hold the truth, and conformal bands miss it: `python -m benchmarks.coverage`.

Simulated patients with a finding and without it have 1 to 30 frames each, or one. The score of a frame is normal with variance
1, of which the patient has the part `correlation`; with the finding its mean is so much higher that the area under the curve is
the wanted one, and the threshold is so placed that the sensitivity is the wanted one. How many frames a patient has does not
depend on its score, so the figure of frames and that of patients have the same expectation, which is the truth here. Patients
are drawn again for each repetition.
"""

import argparse
import sys
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipeline.evaluate.calibration import Float64, fit_temperature, probabilities
from pipeline.evaluate.decisions import choose_operating_points, conformal_bands, expected_rates
from pipeline.evaluate.intervals import LowHigh, auroc_limits, bootstrap, proportion_limits
from pipeline.evaluate.metrics import auroc, curve
from pipeline.predictions import Activation, patients_needed

POSITIVES = (3, 5, 10, 20)
NEGATIVES = 40
CLUSTERS = ((1, 0.0), (30, 0.2), (30, 0.5), (30, 0.9))
"""The most frames of a patient, and the correlation of their scores."""
ALPHA = 0.1
TRUTHS = (0.8, 0.9, 0.95, 0.99)


def simulated(
    rng: np.random.Generator, patients: int, most: int, correlation: float, mean: float, sizes: NDArray[np.int64] | None = None
) -> tuple[Float64, NDArray[np.int64]]:
    """Return the scores of the frames of some patients, and the number of the patient of each frame."""
    counts = rng.integers(1, most + 1, patients) if sizes is None else sizes
    members = np.repeat(np.arange(patients), counts)
    own, shared = rng.normal(size=len(members)), rng.normal(size=patients)[members]
    return mean + np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own, members


def sensitivity_limits(rng: np.random.Generator, positives: int, most: int, correlation: float, truth: float) -> LowHigh:
    """Return the interval of the sensitivity of one draw of patients."""
    scores, members = simulated(rng, positives, most, correlation, float(special.ndtri(truth)))
    return proportion_limits(scores > 0, members)


def area_limits(rng: np.random.Generator, positives: int, most: int, correlation: float, truth: float) -> LowHigh:
    """Return the interval of the area under the curve of one draw of patients."""
    scores, targets, members = _both(rng, positives, most, correlation, truth)
    return auroc_limits(scores, targets, members)


def resampled_area_limits(rng: np.random.Generator, positives: int, most: int, correlation: float, truth: float) -> LowHigh:
    """Return what resampled patients give instead, as a comparison."""
    scores, targets, members = _both(rng, positives, most, correlation, truth)
    found = bootstrap(lambda weights: {0: auroc(curve(scores, targets, weights))}, [*map(str, members)], 200, 0)[0]
    return None if found.low is None or found.high is None else (found.low, found.high)


def resampled_sensitivity_limits(
    rng: np.random.Generator, positives: int, most: int, correlation: float, truth: float
) -> LowHigh:
    """Return what resampled patients give instead, as a comparison."""
    scores, members = simulated(rng, positives, most, correlation, float(special.ndtri(truth)))
    hits = (scores > 0).astype(np.float64)
    found = bootstrap(lambda weights: {0: weights @ hits / weights.sum(axis=1)}, [*map(str, members)], 200, 0)[0]
    return None if found.low is None or found.high is None else (found.low, found.high)


def _both(
    rng: np.random.Generator, positives: int, most: int, correlation: float, truth: float
) -> tuple[Float64, Float64, NDArray[np.int64]]:
    found, own = simulated(rng, positives, most, correlation, float(np.sqrt(2) * special.ndtri(truth)))
    others, theirs = simulated(rng, NEGATIVES, most, correlation, 0.0)
    targets = np.concatenate([np.ones(len(found)), np.zeros(len(others))])
    return np.concatenate([found, others]), targets, np.concatenate([own, positives + theirs])


METHODS = {
    "sensitivity": sensitivity_limits,
    "sensitivity, resampled": resampled_sensitivity_limits,
    "AUROC": area_limits,
    "AUROC, resampled": resampled_area_limits,
}


def coverage(method: str, positives: int, most: int, correlation: float, truth: float, times: int) -> tuple[float, float]:
    """Return how often the interval holds the truth, and its mean width; no interval holds nothing."""
    rng = np.random.default_rng(0)
    found = [METHODS[method](rng, positives, most, correlation, truth) for _ in range(times)]
    held = [limits is not None and limits[0] <= truth <= limits[1] for limits in found]
    return float(np.mean(held)), float(np.mean([high - low for low, high in (one for one in found if one)] or [np.nan]))


class Misses(NamedTuple):
    """How often bands miss the truth in new patients, with the label and without it.

    `frames` are parts of the frames, each patient counted once; `patients` are patients of whom any frame is missed; `open` is
    the part of the frames that is uncertain, also by patient; `promised` is how often there was a band with a promise.
    """

    frames: tuple[float, float]
    patients: tuple[float, float]
    open: float
    promised: float


def misses(count: int, most: int, correlation: float, times: int, separation: float = 1.5) -> Misses:
    """Fit calibration, operating point and band on `count` patients of each kind, and measure them on 100 others of each.

    The operating point is not resampled: that would only widen the band.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(times):
        scores, members = (np.concatenate(two) for two in zip(*_kinds(rng, count, most, correlation, separation), strict=True))
        targets = (members < count).astype(np.float64)[:, None]
        temperature = fit_temperature(scores[:, None], targets, Activation.SIGMOID)
        chances = probabilities(scores[:, None], Activation.SIGMOID, temperature)
        points = choose_operating_points(chances, targets, ["A"], "youden")
        (band,) = conformal_bands(chances, targets, [*map(str, members)], points, ALPHA, 0, 0)
        rows = []
        for (new, theirs), is_positive in zip(_kinds(rng, 100, most, correlation, separation), (True, False), strict=True):
            chance = probabilities(new[:, None], Activation.SIGMOID, temperature)[:, 0]
            below, above = chance < band.present_from, chance >= band.absent_below
            own = np.unique(theirs, return_inverse=True)[1]
            frames = [np.bincount(own, one) / np.bincount(own) for one in (below if is_positive else above, ~below & ~above)]
            rows.append((frames[0].mean(), (frames[0] > 0).mean(), frames[1].mean()))
        found.append((*zip(*rows, strict=True), min(band.present_patients, band.absent_patients) >= patients_needed(ALPHA)))
    frames, patients, unsure, promised = zip(*found, strict=True)
    means = [tuple(map(float, np.mean(one, axis=0))) for one in (frames, patients)]
    return Misses((means[0][0], means[0][1]), (means[1][0], means[1][1]), float(np.mean(unsure)), float(np.mean(promised)))


def _kinds(
    rng: np.random.Generator, count: int, most: int, correlation: float, separation: float
) -> list[tuple[Float64, NDArray[np.int64]]]:
    found, own = simulated(rng, count, most, correlation, separation)
    others, theirs = simulated(rng, count, most, correlation, 0.0)
    return [(found, own), (others, count + theirs)]


def promises(positives: int, most: int, correlation: float, criterion: str, times: int) -> tuple[float, float, float, float]:
    """Choose an operating point on few positive patients: what it promises, what it keeps, and what is expected of it.

    Returns
    -------
    tuple of float
        Means of the sensitivity where it was chosen, in all patients, and as expected, and how often its interval holds that in
        all.
    """
    rng, found = np.random.default_rng(0), []
    for _ in range(times):
        scores, targets, members = _both(rng, positives, most, correlation, 0.95)
        chances, groups = special.expit(scores), members.astype(str)
        (point,) = choose_operating_points(chances[:, None], targets[:, None], ["A"], criterion)
        kept = float(special.ndtr(np.sqrt(2) * special.ndtri(0.95) - special.logit(point.threshold)))
        expected, _ = expected_rates(chances, targets, groups, criterion)
        held = expected.low is not None and expected.high is not None and expected.low <= kept <= expected.high
        found.append((point.sensitivity, kept, expected.value, held))
    promised, kept, value, held = np.mean(np.array(found, np.float64), axis=0)
    return float(promised), float(kept), float(value), float(held)


def main() -> int:
    """Print, for each method and number of patients, coverage and mean width by cluster and truth; then the misses of bands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=1000, help="repetitions of each cell (standard error at 0.95: 0.007)")
    times = parser.parse_args().times
    for method in METHODS:
        print(f"\n{method}: coverage (mean width), {NEGATIVES} negative patients, {times} repetitions")
        print(f"{'frames, correlation':22}" + "".join(f"{f'truth {truth}':>16}" for truth in TRUTHS))
        for positives, (most, correlation) in product(POSITIVES, CLUSTERS):
            cells = [coverage(method, positives, most, correlation, truth, times) for truth in TRUTHS]
            row = f"{positives:2} patients, 1-{most}, {correlation}"
            print(f"{row:22}" + "".join(f"{f'{held:.3f} ({width:.2f})':>16}" for held, width in cells), flush=True)
    print(f"\nbands at alpha {ALPHA}: missed with and without the label, {times // 4} repetitions, 100 new patients of each")
    headings = ("frames, by patient", "patients with any", "uncertain", "promised")
    print(f"{'patients of each kind':34}{headings[0]:>20}{headings[1]:>20}{headings[2]:>11}{headings[3]:>10}")
    for count, (most, correlation) in product((5, 8, 9, 15, 25, 40), CLUSTERS):
        one = misses(count, most, correlation, times // 4)
        parts = [f"{with_label:.3f} / {without:.3f}" for with_label, without in (one.frames, one.patients)]
        row = f"{count:2} with 1-{most} frames, correlation {correlation}"
        print(f"{row:34}{parts[0]:>20}{parts[1]:>20}{one.open:11.3f}{one.promised:10.0%}", flush=True)
    print(f"\noperating points: sensitivity, AUROC 0.95, {NEGATIVES} negative patients, {times // 4} repetitions")
    print(f"{'':48}{'promised':>10}{'kept':>8}{'expected':>10}{'interval holds':>16}")
    for criterion, positives, (most, correlation) in product(("youden", "sensitivity>=0.95"), POSITIVES, CLUSTERS):
        values = promises(positives, most, correlation, criterion, times // 4)
        row = f"{criterion}, {positives} patients, 1-{most}, {correlation}"
        print(f"{row:48}{values[0]:10.3f}{values[1]:8.3f}{values[2]:10.3f}{values[3]:16.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
