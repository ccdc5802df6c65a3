"""Intervals of means, shares and proportions of independent runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from analysis.inference.measurement import Array, Estimator, Measurement
from fedlora_sim.errors import expected


def mean_interval(samples: ArrayLike, error: float) -> Measurement:
    """Means of independent samples with Student intervals that hold together.

    Args:
        samples: (n, q), one row per independent run; n of at least 2.
        error: probability that any of the q intervals misses; shared equally (Bonferroni).

    Returns:
        Means and intervals, (q,) each.

    Raises:
        ValueError: for a single run, which says nothing of its own spread.
    """
    x = np.asarray(samples, dtype=np.float64)
    n, q = x.shape
    if n < 2:
        raise expected("samples", n, "at least two runs")
    value = x.mean(0)
    half = stats.t.isf(error / (2 * q), n - 1) * x.std(0, ddof=1) / np.sqrt(n)
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
    high = np.where(hits < n, stats.beta.isf(tail, hits + 1, np.maximum(n - hits, 1)), 1.0)
    return Measurement(hits / n, low, high, n)


def root_of_mean(power: int) -> Estimator:
    """Estimator of a rate from energies after `power` rounds: the root of their mean.

    The mean energy after T rounds is the T-th power of the mean-energy rate; the root, being
    monotone, carries the interval's ends over.
    """

    def estimate(samples: Array, error: float) -> Measurement:
        mean = mean_interval(samples, error)
        low, high = np.maximum(mean.low, 0.0), np.maximum(mean.high, 0.0)
        return Measurement(
            mean.value ** (1 / power), low ** (1 / power), high ** (1 / power), mean.samples
        )

    return estimate
