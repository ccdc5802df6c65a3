"""Intervals of means, shares and proportions of independent runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from analysis.inference.measurement import Array, Estimator, Measurement
from fedlora_sim.errors import expected

# Runs from which their skewness is told from the noise of a normal sample's.
SKEWNESS_RUNS = 30
# Runs from which a verdict may rest on a mean: below it, and at the small errors that a family of
# claims leaves to each interval, intervals of skewed runs miss far more often than they say. More
# are needed for skewed runs: `skewness^2 t^2 / n` must stay below a half, t being Student's factor
# (`python -m analysis.calibration`).
MEAN_RUNS = 100


def mean_interval(samples: ArrayLike, error: float) -> Measurement:
    """Means of independent samples with Student intervals that hold together.

    Student's interval holds for normal runs and, by the central limit theorem, for many of any
    finite variance. Of skewed runs, such as products of random weights, a mean is too often too
    far from the side of their long tail: the interval is lengthened there (`standard_errors`).
    Fewer than `SKEWNESS_RUNS` runs have to be near normal, for they show too little of their
    skewness; of exponential runs, 8 miss 1.5 times as often as an error of 0.1 says, and 5 times as
    often as one of 0.01. No claim's verdict rests on fewer than `MEAN_RUNS`.

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
    below, above = standard_errors(x, error / (2 * q)) * x.std(0, ddof=1) / np.sqrt(n)
    return Measurement(value, value - below, value + above, n)


def standard_errors(samples: Array, tail: float) -> Array:
    """How many standard errors an interval of the mean of runs reaches below and above it.

    Student's factor, or Hall's for skewed runs where it is larger: his cubic transform takes the
    skewness out of Student's statistic.

    Args:
        samples: (n, q), n of at least 2.
        tail: probability of a miss, on each side and for each of the q means.

    Returns:
        Factors below and above, (2, q).

    Reference: Hall, On the removal of skewness by transformation.
    """
    n, q = samples.shape
    factor = float(stats.t.isf(tail, n - 1))
    if n < SKEWNESS_RUNS:
        return np.full((2, q), factor)
    spread = samples.std(0, ddof=1)
    centred = (samples - samples.mean(0)) / np.where(spread > 0, spread, 1.0)
    skewness = np.array([-1.0, 1.0])[:, None] * (centred**3).mean(0)
    return np.maximum(factor, _without_skewness(factor, skewness, n))


def _without_skewness(factor: float, skewness: Array, runs: int) -> Array:
    """Student's statistic of skewed runs that Hall's transform takes to `factor`, signs changed."""
    shifted = factor + skewness / (6 * np.sqrt(runs))
    root = np.cbrt(1 - skewness * shifted / np.sqrt(runs))
    # 3 sqrt(n) / skewness * (1 - root), written so that no skewness is no division by zero.
    return np.asarray(3 * shifted / (1 + root + root**2), dtype=np.float64)


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


def over_survivors(estimator: Estimator) -> Estimator:
    """An estimator of every quantity over the runs that have it, NaN where a run has not.

    Args:
        estimator: of samples (n, 1).

    Returns:
        An estimator of samples (n, q); its intervals hold together (Bonferroni), and its number of
        runs is that of the quantity with the fewest. NaN where fewer than two runs are left.
    """

    def estimate(samples: Array, error: float) -> Measurement:
        q = samples.shape[1]
        kept = [column[~np.isnan(column)][:, None] for column in samples.T]
        unknown = np.full(1, np.nan)
        parts = [
            estimator(column, error / q)
            if len(column) > 1
            else Measurement(unknown, unknown, unknown, len(column))
            for column in kept
        ]
        value, low, high = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("value", "low", "high")
        )
        return Measurement(value, low, high, min(part.samples for part in parts))

    return estimate


def mapped(estimator: Estimator, increasing: Callable[[Array], Array]) -> Estimator:
    """An estimator of an increasing function of what another one estimates, ends carried over."""

    def estimate(samples: Array, error: float) -> Measurement:
        m = estimator(samples, error)
        return Measurement(increasing(m.value), increasing(m.low), increasing(m.high), m.samples)

    return estimate


def root_of_mean(power: int) -> Estimator:
    """Estimator of a rate from energies after `power` rounds: the root of their mean.

    The mean energy after T rounds is the T-th power of the mean-energy rate.
    """
    return mapped(mean_interval, lambda mean: np.maximum(mean, 0.0) ** (1 / power))


def every_run(samples: ArrayLike, error: float) -> Measurement:
    """Estimator of what must hold in every single run: the median and the range of all runs.

    Nothing is inferred from a sample: one run outside the region refutes the statement (`judge`).
    Without any such run, runs that would refute it are rare (`rarer_than`).

    Args:
        samples: (n, q), one row per run.
        error: not used; a run is inside its region or it is not.
    """
    x = np.asarray(samples, dtype=np.float64)
    return Measurement(np.median(x, axis=0), x.min(0), x.max(0), len(x), every_run=True)


def rarer_than(runs: int, error: float) -> float:
    """Return the share of counterexamples that independent runs without one exclude.

    If more than this share of all runs were counterexamples, `runs` runs would hold at least one
    with probability 1 - error.
    """
    return float(1 - error ** (1 / runs))


def median_interval(samples: ArrayLike, error: float) -> Measurement:
    """Medians of independent runs with intervals between two order statistics.

    They hold for runs of any distribution: the median lies below the k-th smallest of n runs only
    if fewer than k runs lie below it, which has a binomial probability. At an error e at least
    1 + log2(1 / e) runs are needed; with fewer the interval is infinite.

    Args:
        samples: (n, q), one row per independent run.
        error: probability that any of the q intervals misses; shared equally (Bonferroni).

    Returns:
        Medians and intervals, (q,) each.
    """
    x = np.sort(np.asarray(samples, dtype=np.float64), axis=0)
    n, q = x.shape
    value = np.median(x, axis=0)
    # The number of runs that an interval may leave out on each side.
    left_out = int((stats.binom.cdf(np.arange((n + 1) // 2), n, 0.5) <= error / (2 * q)).sum())
    if left_out == 0:
        return Measurement(value, np.full(q, -np.inf), np.full(q, np.inf), n)
    return Measurement(value, x[left_out - 1], x[n - left_out], n)
