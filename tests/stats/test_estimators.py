"""Estimators: exact for exact data, and intervals with the nominal coverage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from designs import each_value
from interval_cases import coverage, slack
from scipy import special, stats

from analysis.stats import (
    Estimator,
    every_run,
    log_linear_rate,
    log_odds_interval,
    mean_interval,
    median_interval,
    proportion_interval,
    root_of_mean,
)
from analysis.stats.intervals import SKEWNESS_RUNS, fieller_ratio, rarer_than
from analysis.stats.series import ROUNDING_FLOOR
from fedlora_sim.errors import InputError
from fedlora_sim.tolerances import relative

CLOSE = relative("iteration")


def geometric(rate: float, rounds: int = 12) -> np.ndarray:
    return 3.0 * rate ** np.arange(rounds + 1)


@pytest.mark.parametrize("rate", [0.04, 0.5, 0.999, 1.0, 1.3])
def test_rate_of_geometric_data_is_exact(rate: float) -> None:
    assert log_linear_rate(geometric(rate)) == pytest.approx(rate, rel=CLOSE)


def test_rates_of_a_batch_keep_its_shape() -> None:
    rates = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    energy = rates[..., None] ** np.arange(8)
    np.testing.assert_allclose(log_linear_rate(energy), rates, rtol=CLOSE)


def test_points_under_the_rounding_floor_do_not_bend_the_rate() -> None:
    clean = geometric(0.01, rounds=20)
    noisy = np.where(clean > ROUNDING_FLOOR * clean[0], clean, 1e-31)
    assert (noisy != clean).sum() >= 5
    assert log_linear_rate(noisy) == pytest.approx(0.01, rel=CLOSE)


def test_floor_is_relative_to_the_start() -> None:
    assert log_linear_rate(1e-40 * geometric(0.3)) == pytest.approx(0.3, rel=CLOSE)


@pytest.mark.parametrize("energy", [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1e-30, 1e-31]])
def test_energy_lost_after_one_round_has_rate_zero(energy: list[float]) -> None:
    assert log_linear_rate(energy) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_run_has_no_finite_rate(bad: float) -> None:
    assert not np.isfinite(log_linear_rate([1.0, 0.5, bad, bad]))


@pytest.mark.parametrize("q", [1, 3])
def test_mean_interval_is_student_with_bonferroni(q: int) -> None:
    x = np.random.default_rng(1).normal(2.0, 3.0, (9, q))
    m = mean_interval(x, 0.05)
    exact = stats.ttest_1samp(x, 0.0).confidence_interval(1 - 0.05 / q)
    np.testing.assert_allclose(m.low, exact.low, rtol=CLOSE)
    np.testing.assert_allclose(m.high, exact.high, rtol=CLOSE)
    np.testing.assert_allclose(m.value, x.mean(0), rtol=CLOSE)
    assert m.samples == 9


WEIGHTS = np.arange(7) / 8
MEAN_SQUARE = float(stats.hypergeom(20, 6, 8).pmf(np.arange(7)) @ WEIGHTS**2)


def products(rng: np.random.Generator, runs: int = 1_000) -> np.ndarray:
    """Return energies after four rounds of random cohorts, over their mean: skewness 10."""
    weights = rng.hypergeometric(6, 14, 8, (runs, 4)) / 8
    return np.asarray((weights**2 / MEAN_SQUARE).prod(1)[:, None])


def quotients(rng: np.random.Generator) -> np.ndarray:
    """Return the same over what varies little."""
    return np.stack([products(rng, 300), 1 + 0.2 * rng.standard_normal((300, 1))], axis=-1)


@pytest.mark.slow
@each_value(
    case=[(mean_interval, products), (fieller_ratio, quotients)],
    miss=[(0.1, 0.1), (0.01, 0.01), (0.001, 0.002)],
)
def test_means_of_products_of_random_weights_are_held(
    case: tuple[Estimator, Callable[[np.random.Generator], np.ndarray]],
    miss: tuple[float, float],
) -> None:
    (estimator, draw), (error, miss_at_most) = case, miss
    assert 1 - coverage(estimator, draw, 1.0, error, 4_000) <= miss_at_most


def test_skewness_makes_intervals_longer_on_one_side_and_longer_still_for_small_errors() -> None:
    x = np.random.default_rng(2).exponential(size=(400, 1)) * [[1.0, -1.0]]
    below, above = [], []
    for error in (0.5, 0.1, 1e-3, 1e-6, 1e-12):
        m = mean_interval(x, error)
        below.append(m.value - m.low)
        above.append(m.high - m.value)
        student = stats.t.isf(error / 4, len(x) - 1) * x.std(0, ddof=1) / np.sqrt(len(x))
        assert above[-1][0] > student[0]
        assert below[-1][0] == pytest.approx(student[0])
    np.testing.assert_allclose(above, np.array(below)[:, ::-1])
    assert (np.diff(above, axis=0) > 0).all()
    assert (np.diff(below, axis=0) > 0).all()


@pytest.mark.parametrize("runs", [SKEWNESS_RUNS - 1, SKEWNESS_RUNS])
def test_runs_that_agree_have_a_mean_without_error(runs: int) -> None:
    m = mean_interval(np.full((runs, 1), 0.5), 0.01)
    assert (m.low, m.value, m.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("q", [1, 3])
def test_proportion_interval_is_clopper_pearson_with_bonferroni(q: int) -> None:
    n = 25
    for hits in range(n + 1):
        x = np.tile((np.arange(n) < hits)[:, None], (1, q))
        m = proportion_interval(x, 0.05)
        exact = stats.binomtest(hits, n).proportion_ci(1 - 0.05 / q, method="exact")
        assert m.low == pytest.approx([exact.low] * q, rel=CLOSE)
        assert m.high == pytest.approx([exact.high] * q, rel=CLOSE)
        assert m.value == pytest.approx([hits / n] * q)


@pytest.mark.slow
@pytest.mark.parametrize("q", [1, 4])
def test_mean_intervals_cover_together_at_the_nominal_rate(q: int) -> None:
    error = 0.1
    share = coverage(mean_interval, lambda rng: rng.normal(5.0, 2.0, (6, q)), 5.0, error)
    # For independent quantities Bonferroni differs from the nominal rate by at most error**2 / 2.
    assert abs(share - (1 - error)) < slack(error) + error**2 / 2


def test_mean_intervals_cover_when_quantities_move_together() -> None:
    error = 0.1
    share = coverage(
        mean_interval, lambda rng: rng.normal(5.0, 2.0, (6, 1)) * np.ones(4), 5.0, error
    )
    assert share > 1 - error - slack(error)


@pytest.mark.slow
@pytest.mark.parametrize("q", [1, 4])
@pytest.mark.parametrize("p", [0.02, 0.5, 0.97])
def test_proportion_intervals_cover_together_at_least_at_the_nominal_rate(p: float, q: int) -> None:
    error = 0.1
    share = coverage(proportion_interval, lambda rng: rng.random((40, q)) < p, p, error, 1000)
    assert share > 1 - error - slack(error, 1000)


def test_all_successes_or_none_end_at_the_boundary() -> None:
    every, none = (proportion_interval(np.full((50, 1), x), 0.01) for x in (1.0, 0.0))
    assert every.high == 1.0
    assert every.low == pytest.approx(0.005 ** (1 / 50))
    assert none.low == 0.0
    assert none.high == pytest.approx(1 - 0.005 ** (1 / 50))


def test_log_odds_interval_is_student_on_the_log_odds() -> None:
    shares = np.random.default_rng(3).uniform(0.6, 0.99, (7, 2))
    m = log_odds_interval(shares, 0.05)
    exact = stats.ttest_1samp(special.logit(shares), 0.0).confidence_interval(1 - 0.05 / 2)
    np.testing.assert_allclose(m.low, special.expit(exact.low), rtol=CLOSE)
    np.testing.assert_allclose(m.high, special.expit(exact.high), rtol=CLOSE)
    assert m.samples == 7


@pytest.mark.parametrize(
    "shares",
    [[1.0, 1.0, 1.0], [0.0, 0.0, 1e-9], [1 - 1e-6, 1 - 1e-3, 0.98], [0.5, 1.0, 0.0]],
)
def test_log_odds_interval_stays_between_zero_and_one(shares: list[float]) -> None:
    m = log_odds_interval(np.array(shares)[:, None], 0.01)
    assert (m.low >= 0).all()
    assert (m.low <= m.value).all()
    assert (m.value <= m.high).all()
    assert (m.high <= 1).all()


def test_log_odds_interval_covers_the_median_at_the_nominal_rate() -> None:
    error, center = 0.1, 0.995
    share = coverage(
        log_odds_interval,
        lambda rng: special.expit(special.logit(center) + rng.normal(0.0, 1.0, (4, 1))),
        center,
        error,
    )
    assert abs(share - (1 - error)) < slack(error)


def test_log_odds_of_nan_have_no_interval() -> None:
    m = log_odds_interval(np.array([[0.9], [np.nan], [0.8]]), 0.01)
    assert np.isnan([m.low, m.value, m.high]).all()


def test_root_of_mean_carries_the_interval_over() -> None:
    samples = 0.5**3 * np.random.default_rng(0).uniform(0.9, 1.1, (50, 2))
    m = root_of_mean(3)(samples, 0.01)
    assert (m.low < m.value).all()
    assert (m.value < m.high).all()
    np.testing.assert_allclose(m.value**3, samples.mean(0), rtol=CLOSE)


def test_root_of_mean_stays_a_rate_where_the_interval_passes_zero() -> None:
    m = root_of_mean(4)(np.array([[0.0], [0.0], [1.0]]), 0.01)
    assert m.low == 0.0
    assert np.isfinite(m.high)


def test_one_run_has_no_estimate_of_spread() -> None:
    with pytest.raises(InputError, match="samples=1"):
        mean_interval(np.ones((1, 3)), 0.05)


@pytest.mark.parametrize("estimator", [mean_interval, log_odds_interval, proportion_interval])
def test_a_smaller_error_makes_a_longer_interval_however_small(estimator: Estimator) -> None:
    x = np.random.default_rng(8).random((40, 2)).round()
    x = x if estimator is proportion_interval else 0.2 + 0.5 * x
    errors = [1e-1, 1e-4, 1e-10, 1e-15, 1e-20]
    widths = np.array([m.high - m.low for m in (estimator(x, error) for error in errors)])
    assert np.isfinite(widths).all()
    assert (np.diff(widths, axis=0) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("runs", [12, 16, 40])
@pytest.mark.parametrize("power", [1, 9])
def test_medians_are_covered_for_any_law(runs: int, power: int) -> None:
    error = 0.01

    def draw(rng: np.random.Generator) -> np.ndarray:
        return rng.standard_normal((runs, 2)) ** power + [0.0, 5.0]

    assert coverage(median_interval, draw, [0.0, 5.0], error) >= 1 - error - slack(error)


def test_ends_of_a_median_interval_are_order_statistics() -> None:
    x = np.arange(1.0, 13.0)[:, None]
    for error, ends in (
        (2 * 2**-12, (1, 12)),
        (2 * 13 * 2**-12, (2, 11)),
        (1e-4, (-np.inf, np.inf)),
    ):
        m = median_interval(x, error)
        assert (m.low[0], m.value[0], m.high[0]) == (ends[0], 6.5, ends[1])


def test_every_run_is_the_range_and_its_error_changes_nothing() -> None:
    x = np.array([[1.0, 5.0], [3.0, 4.0], [2.0, 9.0]])
    for error in (0.5, 1e-9):
        m = every_run(x, error)
        assert (m.low.tolist(), m.high.tolist()) == ([1.0, 4.0], [3.0, 9.0])
        assert (m.value.tolist(), m.samples, m.every_run) == ([2.0, 5.0], 3, True)


def test_events_absent_in_many_runs_are_rare() -> None:
    assert (1 - rarer_than(300, 0.01)) ** 300 == pytest.approx(0.01)
