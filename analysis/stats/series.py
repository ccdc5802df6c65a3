"""Means of the stationary part of autocorrelated series, with errors that know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.stats.intervals import Array, Estimator, Measurement, mean_interval
from fedlora_sim.errors import expected

# The window of the sum is this many integrated times long: exp(-2 * 5) of an exponential
# correlation lies beyond it, and the noise of longer lags stays out.
WINDOW = 5.0
# Fewer integrated times than this in all runs together, and their common mean hides a part of the
# correlation: the time looks shorter than it is.
SHORTEST = 50.0


@dataclass(frozen=True)
class IntegratedTime:
    """Integrated autocorrelation time of a series.

    Args:
        time: 1 + 2 * sum of the autocorrelations, in rounds, at least 1; infinite where the series
            is too short to tell.
        window: lags in the sum.
    """

    time: float
    window: int


def integrated_time(series: ArrayLike) -> IntegratedTime:
    """Integrated autocorrelation time of runs that share one mean, with Sokal's window.

    The sum `1 + 2 sum_{t=1}^{M} rho(t)` ends at the first lag M of at least `WINDOW` times itself;
    longer lags hold noise only. Correlations are those of all runs about their common mean, scaled
    up by 1 + (2M + 1) / N for what the estimated mean takes from them. Anticorrelation is not
    counted as information: the time is never below 1.

    Args:
        series: (n, T), n independent runs of T rounds.

    Returns:
        The time in rounds, infinite if no lag below T ends the sum or if all runs together hold
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
    """Rounds to leave out at the start so that the mean of the rest is known best (MSER).

    Minimises `Var[x_d, ..., x_T] / (T - d)` of the mean over runs, over d up to half the series.

    Args:
        series: (n, q, T).

    Returns:
        The largest of the q quantities' burn-ins, in rounds.

    Reference: White, An effective truncation heuristic for bias reduction in simulation output.
    """
    x = np.asarray(series, dtype=np.float64).mean(0)
    rounds = x.shape[-1]
    left = np.arange(rounds, 0, -1)
    x = x - x.mean(-1, keepdims=True)  # sums of squares of large means would lose their digits
    first, second = (np.cumsum(x[:, ::-1] ** k, axis=-1)[:, ::-1] / left for k in (1, 2))
    badness = (second - first**2) / left
    return int(badness[:, : rounds // 2 + 1].argmin(-1).max())


def stationary_mean(burn_in: int | None = None) -> Estimator:
    """Estimator of stationary means from few long or many short runs, samples (n, q, T).

    The variance of the mean of N = n T' rounds is that of a round times the integrated time over
    N. That variance is itself estimated, as if from N / (2M + 1) independent blocks (M the window),
    so Student's factor has that many degrees of freedom. Where runs are too short for the sum to
    end, or are seen not to share one mean, only whole runs count as independent: their means are
    taken (`mean_interval`); one such run alone decides nothing and has an infinite interval. That
    few runs share one mean is assumed: a handful may look alike by chance and differ.

    Args:
        burn_in: rounds left out at the start; None finds them by `mser_burn_in`.

    Returns:
        The estimator; intervals hold together over the q quantities (Bonferroni).
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
    """Mean of the series (n, T), and the ends of its interval."""
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


# Rates of geometric decays from energies over rounds

# Energies below this share of their start are rounding noise in float64 (squared: 1e-16**2 times
# a margin for the sums that led there) and would bend a log-linear fit.
ROUNDING_FLOOR = 1e-26


def log_linear_rate(energy: ArrayLike, floor: float = ROUNDING_FLOOR) -> Array:
    """Factor per round of a geometric decay, by least squares on the logarithm.

    Args:
        energy: (..., T + 1), positive at round 0; rounds are the last axis.
        floor: points below this share of the initial energy are left out.

    Returns:
        Shape (...), `exp` of the slope; 0 where fewer than two points are left, NaN where an energy
        is not finite.
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


# Thresholds: brackets by bisection, and intervals that hold the brackets' width


def bisect(
    is_above: Callable[[float], bool], low: float, high: float, tolerance: float
) -> tuple[float, float]:
    """Bracket of the threshold of a deterministic predicate, false below it and true above.

    Args:
        is_above: the predicate, monotone; noise must be fixed by its seed.
        low: a value below the threshold.
        high: a value above it.
        tolerance: width of the bracket at most, in the same unit.

    Returns:
        The bracket: false at its low end, true at its high end.

    Raises:
        InputError: if the ends do not hold the threshold between them.
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
        if not low < middle < high:  # no float lies between them
            break
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return low, high


def bracketed(samples: ArrayLike, error: float) -> Measurement:
    """Estimator of a threshold in every single run, of which a bracket is known.

    The range of all runs reaches from the lowest low end to the highest high end, so it holds the
    brackets' width too; one run outside the region refutes the statement, as for `every_run`.

    Args:
        samples: (n, q, 2), the low and the high end for every run and quantity.
        error: not used; a run is inside its region or it is not.

    Returns:
        Medians of the mid-points and ranges, (q,) each.
    """
    x = np.asarray(samples, dtype=np.float64)
    if x.ndim != 3 or x.shape[-1] != 2:
        raise expected("samples", x.shape, "the shape (runs, quantities, 2)")
    low, high = x[..., 0], x[..., 1]
    middle = np.median((low + high) / 2, axis=0)
    return Measurement(middle, low.min(0), high.max(0), len(x), every_run=True)
