"""Statistics of series: stationary means, decay rates and thresholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.stats.intervals import Array, Estimator, Measurement, mean_interval
from fedlora_sim.errors import expected

# Length of the window in integrated times. exp(-2 * 5) of an exponential correlation lies beyond
# it, and the noise of longer lags is excluded.
WINDOW = 5.0
# If all runs together contain fewer integrated times than this, their common mean hides a part of
# the correlation, and the time appears too short.
SHORTEST = 50.0


@dataclass(frozen=True)
class IntegratedTime:
    """Integrated autocorrelation time of a series.

    Args:
        time: 1 + 2 * sum of the autocorrelations, in rounds, at least 1; infinite if the series is
            too short.
        window: number of lags in the sum.
    """

    time: float
    window: int


def integrated_time(series: ArrayLike) -> IntegratedTime:
    """Return the integrated autocorrelation time of runs with a common mean, with Sokal's window.

    The sum `1 + 2 sum_{t=1}^{M} rho(t)` ends at the first lag M of at least `WINDOW` times itself;
    longer lags contain only noise. Correlations are those of all runs about their common mean,
    scaled by 1 + (2M + 1) / N to correct for the estimated mean. Anticorrelation does not count as
    information: the time is never below 1.

    Args:
        series: (n, T), n independent runs of T rounds.

    Returns:
        The time in rounds; infinite if no lag below T ends the sum or if all runs together contain
        fewer than `SHORTEST` times.

    Reference: Sokal, Monte Carlo methods in statistical mechanics, Sec. 3; Wolff, Monte Carlo
    errors with less errors, Sec. 3.
    """
    x = np.asarray(series, dtype=np.float64)
    n, rounds = x.shape
    centered = x - x.mean()
    spectrum = np.abs(np.fft.rfft(centered, 2 * rounds)) ** 2
    covariance = np.fft.irfft(spectrum.sum(0))[:rounds] / (n * (rounds - np.arange(rounds)))
    if not covariance[0] > 0:
        return IntegratedTime(1.0 if x.size > 1 else np.inf, 0)
    times = np.maximum(2 * np.cumsum(covariance / covariance[0]) - 1, 1.0)
    closed = np.flatnonzero(np.arange(rounds) >= WINDOW * times)
    if not len(closed):
        return IntegratedTime(np.inf, rounds)
    window = int(closed[0])
    time = float(times[window] * (1 + (2 * window + 1) / x.size))
    return IntegratedTime(time if x.size >= SHORTEST * time else np.inf, window)


def mser_burn_in(series: ArrayLike) -> int:
    """Return the burn-in that minimizes the error of the remaining mean (MSER).

    Minimizes `Var[x_d, ..., x_T] / (T - d)` of the mean over runs, over d up to half the series.

    Args:
        series: (n, q, T).

    Returns:
        The largest of the q quantities' burn-ins, in rounds.

    Reference: White, An effective truncation heuristic for bias reduction in simulation output.
    """
    x = np.asarray(series, dtype=np.float64).mean(0)
    rounds = x.shape[-1]
    left = np.arange(rounds, 0, -1)
    x = x - x.mean(-1, keepdims=True)  # sums of squares of large means would lose digits
    first, second = (np.cumsum(x[:, ::-1] ** k, axis=-1)[:, ::-1] / left for k in (1, 2))
    badness = (second - first**2) / left
    return int(badness[:, : rounds // 2 + 1].argmin(-1).max())


def stationary_mean(burn_in: int | None = None) -> Estimator:
    """Return an estimator of stationary means from few long or many short runs, samples (n, q, T).

    The variance of the mean of N = n T' rounds is that of one round times the integrated time over
    N. It is estimated as if from N / (2M + 1) independent blocks (M the window), which gives the
    degrees of freedom of Student's factor. If runs are too short for the sum to end, or differ
    significantly in their means, only whole runs count as independent and their means are used
    (`mean_interval`); a single such run has an infinite interval. A few runs are assumed to have a
    common mean, because a difference may not be visible.

    Args:
        burn_in: rounds left out at the start; None uses `mser_burn_in`.

    Returns:
        The estimator, with simultaneous intervals over the q quantities (Bonferroni).
    """

    def estimate(samples: Array, error: float) -> Measurement:
        x = np.asarray(samples, dtype=np.float64)
        if x.ndim != 3:
            raise expected("samples", x.shape, "the shape (runs, quantities, rounds)")
        start = mser_burn_in(x) if burn_in is None else burn_in
        if not 0 <= start < x.shape[-1]:
            raise expected("burn_in", start, f"0 to {x.shape[-1] - 1}, rounds that the series has")
        q = x.shape[1]
        parts = [_series_mean(x[:, j, start:], error / q) for j in range(q)]
        value, low, high = np.array(parts).T
        return Measurement(value, low, high, len(x))

    return estimate


def _series_mean(series: Array, error: float) -> tuple[float, float, float]:
    """Return the mean of the series (n, T), and the ends of its interval."""
    if not np.isfinite(series).all():
        return np.nan, np.nan, np.nan
    value, found = float(series.mean()), integrated_time(series)
    if np.isfinite(found.time):
        freedom = max(1.0, series.size / (2 * found.window + 1))
        half = stats.t.isf(error / 2, freedom) * np.sqrt(series.var() * found.time / series.size)
        return value, value - half, value + half
    if len(series) == 1:
        return value, -np.inf, np.inf
    runs = mean_interval(series.mean(-1)[:, None], error)
    return value, float(runs.low[0]), float(runs.high[0])


# Rates of geometric decays

# Energies below this share of their initial value are rounding noise in float64 (1e-16**2 times a
# margin for the preceding sums) and would distort a log-linear fit.
ROUNDING_FLOOR = 1e-26


def log_linear_rate(energy: ArrayLike, floor: float = ROUNDING_FLOOR) -> Array:
    """Return the factor per round of a geometric decay, by least squares on the logarithm.

    Args:
        energy: (..., T + 1), positive at round 0; rounds are the last axis.
        floor: points below this share of the initial energy are left out.

    Returns:
        Shape (...), `exp` of the slope; 0 if fewer than two points remain, NaN if an energy is not
        finite.
    """
    e = np.asarray(energy, dtype=np.float64)
    keep = np.isfinite(e) & (e > floor * e[..., :1])
    t = np.arange(e.shape[-1], dtype=np.float64)
    count = keep.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.where(keep, np.log(np.where(keep, e, 1.0)), 0.0)
        mean_t, mean_log = (keep * t).sum(-1) / count, log.sum(-1) / count
        centered = keep * (t - mean_t[..., None])
        slope = (centered * (log - mean_log[..., None])).sum(-1) / (centered * centered).sum(-1)
    rate = np.where(count >= 2, np.exp(slope), 0.0)
    return np.where(np.isfinite(e).all(-1), rate, np.nan)


# Thresholds: bisection, and intervals that include the width of the brackets


def bisect(
    is_above: Callable[[float], bool], low: float, high: float, tolerance: float
) -> tuple[float, float]:
    """Return a bracket of the threshold of a deterministic predicate, false below and true above.

    Args:
        is_above: the predicate, monotone; noise must be fixed by a seed.
        low: a value below the threshold.
        high: a value above it.
        tolerance: largest width of the bracket, in the same unit.

    Returns:
        The bracket: false at its low end, true at its high end.

    Raises:
        InputError: if the threshold is not between the ends.
    """
    if not low < high:
        raise expected("high", high, f"a value above low={low}")
    if not tolerance > 0:
        raise expected("tolerance", tolerance, "a positive width")
    if is_above(low):
        raise expected("low", low, "a value below the threshold")
    if not is_above(high):
        raise expected("high", high, "a value above the threshold")
    while high - low > tolerance:
        middle = low + (high - low) / 2
        if not low < middle < high:  # no float lies between
            break
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return low, high


def bracketed(samples: ArrayLike, error: float) -> Measurement:
    """Return the median and the range of a threshold in every single run, known by brackets.

    The range extends from the lowest low end to the highest high end, so that it includes the width
    of the brackets; one run outside the region refutes the statement, as for `every_run`.

    Args:
        samples: (n, q, 2), the low and the high end for each run and quantity.
        error: not used.

    Returns:
        Medians of the mid-points and ranges, (q,) each.
    """
    x = np.asarray(samples, dtype=np.float64)
    if x.ndim != 3 or x.shape[-1] != 2:
        raise expected("samples", x.shape, "the shape (runs, quantities, 2)")
    low, high = x[..., 0], x[..., 1]
    middle = np.median((low + high) / 2, axis=0)
    return Measurement(middle, low.min(0), high.max(0), len(x), every_run=True)
