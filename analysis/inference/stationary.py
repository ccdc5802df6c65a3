"""Means of the stationary part of autocorrelated series, with errors that know of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.inference.intervals import mean_interval
from analysis.inference.measurement import Array, Estimator, Measurement
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
    centred = x - x.mean()
    spectrum = np.abs(np.fft.rfft(centred, 2 * rounds)) ** 2
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
