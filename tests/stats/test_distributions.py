"""Distances between laws: against scipy's, with jumps, and the coverage of the band."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from interval_cases import coverage, slack
from scipy import stats

from analysis.stats import Prediction, Verdict, cdf_distance, judge
from analysis.stats.intervals import largest_gap
from fedlora_sim.errors import InputError
from fedlora_sim.tolerances import relative

CLOSE = relative("reduction")
LOSS = 0.2
GEOMETRIC = stats.geom(LOSS).cdf


def survival_formula(x: np.ndarray) -> np.ndarray:
    """Return the same law by a formula that is right at whole numbers only."""
    return 1 - (1 - LOSS) ** x


def test_gap_to_a_continuous_law_is_kolmogorovs() -> None:
    x = np.random.default_rng(1).lognormal(0.3, 0.8, 300)
    for law in (stats.lognorm(0.8).cdf, stats.expon().cdf):
        assert largest_gap(x, law) == pytest.approx(stats.ks_1samp(x, law).statistic, rel=CLOSE)


@pytest.mark.parametrize("horizon", [np.inf, 7, 7.5])
def test_gap_to_a_law_of_whole_numbers_is_that_at_whole_numbers(horizon: float) -> None:
    rng = np.random.default_rng(2)
    for n in (1, 5, 300):
        x = rng.geometric(0.3, n).astype(float)
        grid = np.arange(0, min(horizon, 60) + 1)[:60]
        grid = grid[grid <= horizon]
        exact = np.abs([(x <= t).mean() - GEOMETRIC(t) for t in grid]).max()
        assert largest_gap(x, GEOMETRIC, False, horizon) == pytest.approx(exact, rel=CLOSE)
        assert largest_gap(x, survival_formula, True, horizon) == pytest.approx(exact, rel=CLOSE)


def test_values_beyond_the_horizon_may_be_any_larger_number() -> None:
    x = np.random.default_rng(3).geometric(LOSS, 400).astype(float)
    gaps = {
        largest_gap(np.where(x > 10, late, x), survival_formula, True, 10)
        for late in (11.0, 10_000.0, np.inf)
    }
    assert gaps == {largest_gap(x, survival_formula, True, 10)}


def test_a_horizon_before_every_value_still_compares() -> None:
    assert largest_gap([9.0, 9.0], GEOMETRIC, True, 3) == pytest.approx(GEOMETRIC(3), rel=CLOSE)


def test_nan_has_no_gap() -> None:
    assert np.isnan(largest_gap([1.0, np.nan], GEOMETRIC))
    with pytest.raises(InputError, match="samples='fractions'"):
        largest_gap([1.0, 1.5], GEOMETRIC, integer=True)
    with pytest.raises(InputError, match="predicted=1"):
        cdf_distance([GEOMETRIC])(np.ones((3, 2)), 0.1)


def distance(p: float) -> float:
    """Return the true distance between the geometric laws of p and of `LOSS`."""
    t = np.arange(200)
    return float(np.abs(stats.geom(p).cdf(t) - GEOMETRIC(t)).max())


@pytest.mark.parametrize("p", [LOSS, 0.25, 0.5])
def test_the_band_contains_the_true_distance_at_least_at_the_nominal_rate(p: float) -> None:
    estimator, error, replicates = cdf_distance(survival_formula, integer=True), 0.1, 500
    share = coverage(
        estimator,
        lambda rng: rng.geometric(p, (100, 2)).astype(float),
        distance(p),
        error,
        replicates,
    )
    assert share > 1 - error - slack(error, replicates)


def test_the_band_is_tight_for_continuous_laws() -> None:
    """Under the law itself, the distance reaches the band at about the error."""
    error, replicates, rng = 0.2, 1000, np.random.default_rng(4)
    missed = 0
    for _ in range(replicates):
        m = cdf_distance(stats.norm.cdf)(rng.standard_normal((200, 1)), error)
        missed += m.low[0] > 0
    assert missed / replicates < error + slack(error, replicates)
    assert missed / replicates > error - slack(error, replicates) - 0.05


def test_verdicts_on_laws() -> None:
    x = np.random.default_rng(5).geometric(LOSS, (20_000, 1)).astype(float)
    margin = Prediction.at_most(0.03)
    for law, verdict in (
        (GEOMETRIC, Verdict.SUPPORTED),
        (stats.geom(0.3).cdf, Verdict.REFUTED),
        (stats.geom(0.217).cdf, Verdict.UNDECIDED),
    ):
        assert judge(cdf_distance(law)(x, 1e-3), margin) is verdict


def test_each_quantity_may_have_its_law() -> None:
    x = np.random.default_rng(6).standard_normal((500, 2)) * [1.0, 3.0]
    laws = [partial(stats.norm.cdf, scale=scale) for scale in (1.0, 3.0)]
    own, shared = cdf_distance(laws)(x, 0.1), cdf_distance(laws[0])(x, 0.1)
    assert own.value[0] == shared.value[0]
    assert own.value[1] < 0.1 < shared.value[1]
