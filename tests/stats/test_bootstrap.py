"""Bootstrap over runs: coverage of ratios and quantiles, and unknown far tails."""

from __future__ import annotations

import numpy as np
import pytest
from interval_cases import coverage, slack
from scipy import stats

from analysis.stats import bootstrap_interval, intervals, mean_interval
from fedlora_sim.errors import InputError

ERROR = 0.1
REPLICATES = 200


def ratio(x: np.ndarray) -> np.ndarray:
    return x[:, 0].mean() / x[:, 1].mean()


@pytest.mark.slow
# Intervals of 12 runs are the harder ones; those of 60 run the same code.
@pytest.mark.parametrize("runs", [12, pytest.param(60, marks=pytest.mark.deep)])
def test_a_ratio_of_means_is_covered_at_the_nominal_rate(runs: int) -> None:
    def draw(rng: np.random.Generator) -> np.ndarray:
        base = rng.lognormal(0.0, 0.5, runs)
        return np.stack([2 * base * rng.lognormal(0.0, 0.3, runs), base], axis=-1)

    estimator = bootstrap_interval(ratio, seed=3)
    share = coverage(estimator, draw, 2 * np.exp(0.045), ERROR, REPLICATES)
    assert abs(share - (1 - ERROR)) < slack(ERROR, REPLICATES) + 0.02


def test_of_a_mean_it_is_close_to_students() -> None:
    x = np.random.default_rng(1).normal(3.0, 1.0, (400, 2))
    found = bootstrap_interval(lambda s: s.mean(0), seed=0)(x, 0.05)
    exact = mean_interval(x, 0.05)
    width = (exact.high - exact.low).max()
    np.testing.assert_allclose(found.value, exact.value)
    np.testing.assert_allclose([found.low, found.high], [exact.low, exact.high], atol=width / 10)
    assert found.samples == 400


@pytest.mark.slow
def test_agrees_with_scipys_bca_for_many_runs() -> None:
    x = np.random.default_rng(2).exponential(1.0, (300, 1))

    def skewed(s: np.ndarray) -> np.ndarray:
        return np.log((s**2).mean(0))

    found = bootstrap_interval(skewed, seed=0)(x, ERROR)
    theirs = stats.bootstrap(
        (x[:, 0],),
        lambda s, axis: np.log((s**2).mean(axis)),
        confidence_level=1 - ERROR,
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found.low[0] == pytest.approx(theirs.low, abs=0.07 * width)
    assert found.high[0] == pytest.approx(theirs.high, abs=0.07 * width)
    # The long side of the skewed law is above; plain percentiles would reverse it.
    assert found.high[0] - found.value[0] > found.value[0] - found.low[0]


def test_the_seed_fixes_the_interval() -> None:
    x = np.random.default_rng(4).lognormal(size=(30, 2))
    first, again, other = (bootstrap_interval(ratio, seed)(x, ERROR) for seed in (0, 0, 1))
    assert (first.low, first.high) == (again.low, again.high)
    assert first.low != other.low


def test_smaller_errors_take_more_resamples_once() -> None:
    calls = []

    def counted(s: np.ndarray) -> np.ndarray:
        calls.append(len(s))
        return s.mean(0)

    x = np.random.default_rng(5).normal(size=(100, 1))
    estimator = bootstrap_interval(counted, seed=0)
    errors = (0.1, 0.02, 0.01)
    measured, made = [], []
    for error in errors:
        measured.append(estimator(x, error))
        made.append(calls.count(100))
    assert made[0] < made[1] < made[2] < 2 * intervals.BEYOND / (errors[-1] / 2) * 2
    before = calls.count(100)
    estimator(x, 0.1)
    assert calls.count(100) == before + 1  # the statistic of the runs themselves
    widths = [m.high[0] - m.low[0] for m in measured]
    assert widths == sorted(widths)


def test_ends_further_out_than_resampling_can_show_are_infinite() -> None:
    x = np.random.default_rng(6).normal(size=(50, 1))
    m = bootstrap_interval(lambda s: s.mean(0), seed=0)(x, 1e-6)
    assert (m.low[0], m.high[0]) == (-np.inf, np.inf)
    few = bootstrap_interval(lambda s: s.mean(0), seed=0)(x[:4], 0.01)
    assert (few.low[0], few.high[0]) == (-np.inf, np.inf)


def test_an_estimate_outside_all_resamples_has_no_interval() -> None:
    x = np.random.default_rng(7).normal(size=(50, 1))
    m = bootstrap_interval(lambda s: float(len(np.unique(s))), seed=0)(x, ERROR)
    assert (m.low[0], m.value[0], m.high[0]) == (-np.inf, 50.0, np.inf)


def test_runs_that_agree_are_known_exactly_and_one_run_not() -> None:
    m = bootstrap_interval(lambda s: s.mean(0), seed=0)(np.full((20, 1), 0.5), ERROR)
    assert (m.low[0], m.value[0], m.high[0]) == (0.5, 0.5, 0.5)
    with pytest.raises(InputError, match="samples=1"):
        bootstrap_interval(ratio, seed=0)(np.ones((1, 2)), ERROR)
