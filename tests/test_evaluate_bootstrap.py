from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import norm

from pipeline.evaluate.intervals import Estimate, bootstrap


def mean_of(values):
    def statistic(weights):
        with np.errstate(invalid="ignore"):
            return {"mean": weights @ values / weights.sum(axis=1)}

    return statistic


def patients(n, frames=1):
    return [f"p{number // frames:04d}" for number in range(n)]


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap(mean_of(values), patients(400), 4000, 1)["mean"]
    reach = norm.ppf(0.975) * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - reach, abs=0.01)
    assert found.high == pytest.approx(values.mean() + reach, abs=0.01)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    found = [bootstrap(mean_of(rng.normal(size=60)), patients(60), 200, seed)["mean"] for seed in range(300)]
    assert 0.90 <= np.mean([estimate.low <= 0 <= estimate.high for estimate in found]) <= 0.98


def test_patients_are_drawn_and_not_frames():
    values = np.repeat(np.random.default_rng(3).normal(size=50), 20)
    grouped = bootstrap(mean_of(values), patients(1000, 20), 2000, 0)["mean"]
    alone = bootstrap(mean_of(values[::20]), patients(50), 2000, 0)["mean"]
    single = bootstrap(mean_of(values), patients(1000), 2000, 0)["mean"]
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
    assert grouped.high - grouped.low > 3 * (single.high - single.low)


def test_each_resample_holds_as_many_patients_as_there_are():
    seen = []

    def statistic(weights):
        seen.append(weights)
        return {"sum": weights.sum(axis=1)}

    bootstrap(statistic, patients(12, 3), 50, 0)
    drawn = np.vstack(seen[1:])
    assert drawn.shape == (50, 12)
    assert np.all(drawn[:, ::3] == drawn[:, 2::3])
    assert np.all(drawn[:, ::3].sum(axis=1) == 4)


def test_the_order_of_the_frames_changes_nothing():
    rng = np.random.default_rng(4)
    values, groups, order = rng.normal(size=90), np.array(patients(90, 3)), rng.permutation(90)
    one, other = (bootstrap(mean_of(values[rows]), groups[rows], 300, 7)["mean"] for rows in (np.arange(90), order))
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_undefined_resamples_are_left_out_and_counted():
    values = np.array([1.0, *[np.nan] * 3])

    def statistic(weights):
        known = weights * ~np.isnan(values)
        drawn = np.nansum(known * values, axis=1)
        return {"mean": np.divide(drawn, known.sum(axis=1), out=np.full(len(weights), np.nan), where=known.sum(axis=1) > 0)}

    found = bootstrap(statistic, patients(4), 1000, 0)["mean"]
    assert (found.value, found.low, found.high) == (1, None, None)  # all resamples in which it is defined are alike
    assert found.left_out / 1000 == pytest.approx(0.75**4, abs=0.05)


def test_one_patient_gives_no_interval():
    found = bootstrap(mean_of(np.arange(5.0)), ["p"] * 5, 100, 0)["mean"]
    assert found.value == 2
    assert (found.low, found.high) == (None, None)


def test_few_patients_have_percentiles_farther_out():
    """Of a normal mean over 5 patients the interval has the length of Student's, which percentiles alone would not reach."""
    values = np.random.default_rng(5).normal(size=5)
    found = bootstrap(mean_of(values), patients(5), 20000, 0, {"mean": 5})["mean"]
    plain = np.percentile(np.random.default_rng(6).choice(values, (20000, 5)).mean(axis=1), (2.5, 97.5))
    assert found.high - found.low > 1.2 * (plain[1] - plain[0])
    assert bootstrap(mean_of(values), patients(5), 100, 0, {"mean": 1})["mean"].low is None


def test_no_resamples_give_no_interval():
    found = bootstrap(mean_of(np.arange(5.0)), patients(5), 0, 0)["mean"]
    assert (found.low, found.high) == (None, None)


def test_json_has_null_where_a_figure_is_not_defined():
    assert asdict(Estimate(0.5, 0.4, 0.6, 2)) == {"value": 0.5, "low": 0.4, "high": 0.6, "left_out": 2}
