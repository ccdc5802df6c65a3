"""Estimators: from simulated runs to a number with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Array = NDArray[np.float64]

# Energies below this share of their start are rounding noise in float64 (squared: 1e-16**2 times
# a margin for the sums that led there) and would bend a log-linear fit.
ROUNDING_FLOOR = 1e-26


@dataclass(frozen=True)
class Measurement:
    """Point estimates with simultaneous confidence intervals.

    Args:
        value: estimates, (q,).
        low, high: ends of the intervals, (q,).
        samples: independent runs behind them.
    """

    value: Array
    low: Array
    high: Array
    samples: int


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
        centred = keep * (t - mean_t[..., None])
        slope = (centred * (log - mean_log[..., None])).sum(-1) / (centred * centred).sum(-1)
    rate = np.where(count >= 2, np.exp(slope), 0.0)
    return np.where(np.isfinite(e).all(-1), rate, np.nan)


def mean_interval(samples: ArrayLike, error: float) -> Measurement:
    """Means of independent samples with Student intervals that hold together.

    Args:
        samples: (n, q), one row per independent run; n of at least 2.
        error: probability that any of the q intervals misses; shared equally (Bonferroni).

    Returns:
        Means and intervals, (q,) each.
    """
    x = np.asarray(samples, dtype=np.float64)
    n, q = x.shape
    value = x.mean(0)
    half = stats.t.ppf(1 - error / (2 * q), n - 1) * x.std(0, ddof=1) / np.sqrt(n)
    return Measurement(value, value - half, value + half, n)


def log_odds_interval(samples: ArrayLike, error: float) -> Measurement:
    """Typical shares of independent runs: `mean_interval` of their log-odds, taken back.

    A share close to 0 or 1 is skewed, and a symmetric interval would reach beyond both.

    Args:
        samples: (n, q), shares in [0, 1], one row per independent run; n of at least 2.
        error: as for `mean_interval`.

    Returns:
        Shares whose log-odds are the mean ones, and intervals within (0, 1).
    """
    tiny = np.finfo(np.float64).eps
    odds = mean_interval(special.logit(np.clip(samples, tiny, 1 - tiny)), error)
    low, value, high = (special.expit(x) for x in (odds.low, odds.value, odds.high))
    return Measurement(value, low, high, odds.samples)


def proportion_interval(samples: ArrayLike, error: float) -> Measurement:
    """Shares of successes with exact (Clopper-Pearson) intervals that hold together.

    Args:
        samples: (n, q) of zeros and ones, one row per independent trial.
        error: as for `mean_interval`.

    Returns:
        Shares and intervals, (q,) each.
    """
    x = np.asarray(samples, dtype=np.float64)
    n, q = x.shape
    hits, tail = x.sum(0), error / (2 * q)
    low = np.where(hits > 0, stats.beta.ppf(tail, np.maximum(hits, 1), n - hits + 1), 0.0)
    high = np.where(hits < n, stats.beta.ppf(1 - tail, hits + 1, np.maximum(n - hits, 1)), 1.0)
    return Measurement(hits / n, low, high, n)
