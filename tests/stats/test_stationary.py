"""Means of autocorrelated series: the true time, and intervals with the nominal coverage."""

from __future__ import annotations

import numpy as np
import pytest
from interval_cases import coverage, slack
from scipy.signal import lfilter

from analysis.stats import (
    Estimator,
    Measurement,
    integrated_time,
    mean_interval,
    mser_burn_in,
    stationary_mean,
)
from analysis.stats.series import WINDOW
from fedlora_sim.errors import InputError

ERROR = 0.1
REPLICATES = 500


def autoregressive(
    rng: np.random.Generator, shape: tuple[int, ...], phi: float, start: float | None = None
) -> np.ndarray:
    """Return AR(1) series of variance 1 and mean 0; stationary unless a start is given."""
    noise = rng.standard_normal(shape) * np.sqrt(1 - phi**2)
    first = rng.standard_normal(shape[:-1]) if start is None else np.full(shape[:-1], start)
    return lfilter([1.0], [1.0, -phi], noise, axis=-1, zi=phi * first[..., None])[0]


def one_round_each(samples: np.ndarray, error: float) -> Measurement:
    """Estimate a mean as if every round were an independent run."""
    return mean_interval(samples.transpose(0, 2, 1).reshape(-1, samples.shape[1]), error)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("runs", "rounds"), [(1, 40_000), (200, 200)])
def test_integrated_time_of_ar1(phi: float, runs: int, rounds: int) -> None:
    found = integrated_time(autoregressive(np.random.default_rng(1), (runs, rounds), phi))
    exact = (1 + phi) / (1 - phi)
    size = runs * rounds
    spread = exact * np.sqrt(2 * (2 * found.window + 1) / size)  # Madras and Sokal
    assert abs(found.time - exact) < 4 * spread + exact * np.exp(-WINDOW)
    assert found.window >= WINDOW * exact / 2


@pytest.mark.slow
def test_the_sum_is_not_cut_before_the_correlation_has_ended() -> None:
    """A window of one integrated time would leave out exp(-2), 13% of the sum."""
    found = integrated_time(autoregressive(np.random.default_rng(4), (1_000, 2_000), 0.9))
    assert found.time == pytest.approx(19.0, rel=0.05)


def test_anticorrelation_is_not_information() -> None:
    series = autoregressive(np.random.default_rng(2), (1, 5_000), -0.9)
    assert 1.0 <= integrated_time(series).time < 1.01


def test_a_series_that_is_too_short_has_no_time() -> None:
    assert integrated_time(autoregressive(np.random.default_rng(3), (50, 20), 0.95)).time == np.inf


@pytest.mark.slow
@pytest.mark.parametrize("phi", [0.0, 0.8, 0.95])
@pytest.mark.parametrize(("runs", "rounds"), [(1, 4_000), (8, 500)])
def test_intervals_of_stationary_series_cover_at_the_nominal_rate(
    phi: float, runs: int, rounds: int
) -> None:
    share = coverage(
        stationary_mean(0),
        lambda rng: autoregressive(rng, (runs, 1, rounds), phi),
        0.0,
        ERROR,
        REPLICATES,
    )
    assert abs(share - (1 - ERROR)) < slack(ERROR, REPLICATES)


def test_taking_rounds_for_independent_runs_fails_the_same_test() -> None:
    share = coverage(
        one_round_each, lambda rng: autoregressive(rng, (8, 1, 500), 0.8), 0.0, ERROR, REPLICATES
    )
    assert share < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [stationary_mean(60), stationary_mean()], ids=["told", "found"]
)
def test_the_start_is_left_out(estimator: Estimator) -> None:
    share = coverage(
        estimator,
        lambda rng: autoregressive(rng, (8, 2, 400), 0.8, start=20.0),
        0.0,
        ERROR,
        REPLICATES,
    )
    assert share > 1 - ERROR - slack(ERROR, REPLICATES)


def test_a_start_that_is_kept_fails_the_same_test() -> None:
    share = coverage(
        stationary_mean(0),
        lambda rng: autoregressive(rng, (8, 2, 400), 0.8, start=20.0),
        0.0,
        ERROR,
        REPLICATES,
    )
    assert share < 0.5


@pytest.mark.parametrize("spread", [0.0, 1.0], ids=["short", "each its own mean"])
def test_if_rounds_are_too_correlated_runs_are_used(spread: float) -> None:
    rng = np.random.default_rng(5)
    x = autoregressive(rng, (12, 2, 30), 0.95) + spread * rng.standard_normal((12, 2, 1))
    m, runs = stationary_mean(0)(x, ERROR), mean_interval(x.mean(-1), ERROR)
    np.testing.assert_allclose([m.low, m.value, m.high], [runs.low, runs.value, runs.high])
    assert m.samples == 12


def test_one_short_run_decides_nothing() -> None:
    m = stationary_mean(0)(autoregressive(np.random.default_rng(6), (1, 1, 30), 0.95), ERROR)
    assert (m.low[0], m.high[0]) == (-np.inf, np.inf)


def test_a_single_number_has_no_error_estimate() -> None:
    m = stationary_mean(burn_in=5)(np.arange(6.0).reshape(1, 1, 6), 0.1)
    assert (m.low[0], m.value[0], m.high[0]) == (-np.inf, 5.0, np.inf)
    assert np.isfinite(m.value).all()


def test_constant_series_are_exact_and_diverged_ones_unknown() -> None:
    x = np.full((3, 2, 50), 0.25)
    x[0, 1, -1] = np.inf
    m = stationary_mean(10)(x, ERROR)
    assert (m.low[0], m.value[0], m.high[0]) == (0.25, 0.25, 0.25)
    assert np.isnan([m.low[1], m.value[1], m.high[1]]).all()


def test_burn_in_ends_where_the_start_is_forgotten() -> None:
    x = np.random.default_rng(7).standard_normal((4, 3, 300))
    x[:, 1] += 30 * 0.8 ** np.arange(300)
    found = mser_burn_in(x + 1e6)
    assert 10 <= found <= 60
    assert mser_burn_in(np.zeros((2, 1, 10))) == 0


@pytest.mark.parametrize("burn_in", [-1, 30])
def test_a_burn_in_without_rounds_left_is_refused(burn_in: int) -> None:
    with pytest.raises(InputError, match=f"burn_in={burn_in}"):
        stationary_mean(burn_in)(np.zeros((2, 1, 30)), ERROR)


def test_samples_without_rounds_are_refused() -> None:
    with pytest.raises(InputError, match="samples="):
        stationary_mean(0)(np.zeros((2, 30)), ERROR)
