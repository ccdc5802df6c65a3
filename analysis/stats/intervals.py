"""Estimators with confidence intervals for means, shares, ratios, medians and distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from fedlora_sim.errors import expected

# Estimators and their results

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """Point estimates with simultaneous confidence intervals.

    Args:
        value: estimates, (q,).
        low, high: ends of the intervals, (q,); infinite or NaN where nothing is known.
        samples: number of independent runs.
        every_run: the statement is about every single run, not about a mean over runs; `low` and
            `high` are then the smallest and the largest value of all runs.
    """

    value: Array
    low: Array
    high: Array
    samples: int
    every_run: bool = False


# An estimator maps samples (n, q, ...), one row per independent run, and the probability that any
# of the q intervals misses its quantity, to a measurement. A smaller probability never gives a
# shorter interval.
Estimator = Callable[[Array, float], Measurement]


# Means, shares and proportions

# Runs above which skewness can be distinguished from the noise of a normal sample.
SKEWNESS_RUNS = 30
# Least number of runs for a verdict on a mean. Below it, at the small error of each interval in a
# family of claims, intervals of skewed runs miss far more often than stated. Skewed runs require
# more: `skewness^2 t^2 / n` must be below a half, with Student's factor t
# (`python -m analysis.calibration`).
MEAN_RUNS = 100


def mean_interval(samples: ArrayLike, error: float) -> Measurement:
    """Return the means of independent samples with simultaneous Student intervals.

    Student's interval is exact for normal runs and, by the central limit theorem, approximate for
    many runs of finite variance. For skewed runs, such as products of random weights, it misses too
    often on the side of the long tail and is extended there (`standard_errors`). Fewer than
    `SKEWNESS_RUNS` runs must be almost normal, because they do not show their skewness: of
    exponential runs, 8 miss 1.5 times as often as an error of 0.1 states, and 5 times as often as
    one of 0.01. No verdict on a claim uses fewer than `MEAN_RUNS`.

    Args:
        samples: (n, q), one row per independent run; n of at least 2.
        error: probability that any of the q intervals misses; shared equally (Bonferroni).

    Returns:
        Means and intervals, (q,) each.

    Raises:
        InputError: for a single run, which does not show its spread.
    """
    x = np.asarray(samples, dtype=np.float64)
    n, q = x.shape
    if n < 2:
        raise expected("samples", n, "at least two runs")
    value = x.mean(0)
    below, above = standard_errors(x, error / (2 * q)) * x.std(0, ddof=1) / np.sqrt(n)
    return Measurement(value, value - below, value + above, n)


def standard_errors(samples: Array, tail: float) -> Array:
    """Return the distance of both ends of an interval from the mean, in standard errors.

    Student's factor, or Hall's for skewed runs if it is larger: his cubic transform removes the
    skewness of Student's statistic.

    Args:
        samples: (n, q), n of at least 2.
        tail: probability of a miss, on each side and for each of the q means.

    Returns:
        Factors below and above, (2, q).

    Reference: Hall, On the removal of skewness by transformation.
    """
    n, q = samples.shape
    # The same bits as `stats.t.isf`, whose checks of its arguments cost more than all the rest.
    factor = -float(special.stdtrit(n - 1, tail))
    if n < SKEWNESS_RUNS:
        return np.full((2, q), factor)
    spread = samples.std(0, ddof=1)
    centered = (samples - samples.mean(0)) / np.where(spread > 0, spread, 1.0)
    skewness = np.array([-1.0, 1.0])[:, None] * (centered**3).mean(0)
    return np.maximum(factor, _without_skewness(factor, skewness, n))


def _without_skewness(factor: float, skewness: Array, runs: int) -> Array:
    """Return Student's statistic that Hall's transform maps to `factor`, with the sign changed."""
    shifted = factor + skewness / (6 * np.sqrt(runs))
    root = np.cbrt(1 - skewness * shifted / np.sqrt(runs))
    # 3 sqrt(n) / skewness * (1 - root), written so that zero skewness is not a division by zero.
    return np.asarray(3 * shifted / (1 + root + root**2), dtype=np.float64)


def log_odds_interval(samples: ArrayLike, error: float) -> Measurement:
    """Return typical shares of independent runs: `mean_interval` of log-odds, transformed back.

    A share close to 0 or 1 is skewed, and a symmetric interval would exceed the range.

    Args:
        samples: (n, q), shares in [0, 1], one row per independent run; n of at least 2.
        error: as for `mean_interval`.

    Returns:
        Shares with the mean log-odds, and intervals within (0, 1).
    """
    tiny = np.finfo(np.float64).eps
    odds = mean_interval(special.logit(np.clip(samples, tiny, 1 - tiny)), error)
    low, value, high = (special.expit(x) for x in (odds.low, odds.value, odds.high))
    return Measurement(value, low, high, odds.samples)


def proportion_interval(samples: ArrayLike, error: float) -> Measurement:
    """Return shares of successes with exact (Clopper-Pearson) simultaneous intervals.

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
    """Return an estimator that uses for each quantity only the runs where it is not NaN.

    Args:
        estimator: estimator of samples (n, 1).

    Returns:
        An estimator of samples (n, q) with simultaneous intervals (Bonferroni); its number of runs
        is that of the quantity with the fewest. NaN where fewer than two runs remain.
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
    """Return an estimator of an increasing function of another estimator's quantity."""

    def estimate(samples: Array, error: float) -> Measurement:
        m = estimator(samples, error)
        return Measurement(increasing(m.value), increasing(m.low), increasing(m.high), m.samples)

    return estimate


def root_of_mean(power: int) -> Estimator:
    """Return the estimator of a rate from energies after `power` rounds: the root of their mean.

    The mean energy after T rounds is the T-th power of the mean-energy rate.
    """
    return mapped(mean_interval, lambda mean: np.maximum(mean, 0.0) ** (1 / power))


def every_run(samples: ArrayLike, error: float) -> Measurement:
    """Return the median and the range of all runs, for statements about every single run.

    Nothing is inferred from a sample: one run outside the region refutes the statement (`judge`).
    Without such a run, counterexamples are rare (`rarer_than`).

    Args:
        samples: (n, q), one row per run.
        error: not used.
    """
    x = np.asarray(samples, dtype=np.float64)
    return Measurement(np.median(x, axis=0), x.min(0), x.max(0), len(x), every_run=True)


def rarer_than(runs: int, error: float) -> float:
    """Return the share of counterexamples that independent runs without one exclude.

    If more than this share of all runs were counterexamples, `runs` runs would contain at least one
    with probability 1 - error.
    """
    return float(1 - error ** (1 / runs))


def median_interval(samples: ArrayLike, error: float) -> Measurement:
    """Return the medians of independent runs with intervals between two order statistics.

    They are valid for any distribution: the median lies below the k-th smallest of n runs only if
    fewer than k runs lie below it, which has a binomial probability. An error e requires at least 1
    + log2(1 / e) runs; with fewer the interval is infinite.

    Args:
        samples: (n, q), one row per independent run.
        error: probability that any of the q intervals misses; shared equally (Bonferroni).

    Returns:
        Medians and intervals, (q,) each.
    """
    x = np.sort(np.asarray(samples, dtype=np.float64), axis=0)
    n, q = x.shape
    value = np.median(x, axis=0)
    # Number of runs that an interval may leave out on each side.
    left_out = int((stats.binom.cdf(np.arange((n + 1) // 2), n, 0.5) <= error / (2 * q)).sum())
    if left_out == 0:
        return Measurement(value, np.full(q, -np.inf), np.full(q, np.inf), n)
    return Measurement(value, x[left_out - 1], x[n - left_out], n)


# Ratios of means with Fieller's intervals, which need no linearization


def fieller_ratio(samples: ArrayLike, error: float) -> Measurement:
    """Return the ratios of two means of independent runs with Fieller's intervals.

    The two means may be paired. The interval contains every ratio R for which Student's interval of
    the mean of `y - R x` contains 0, so that it has the same coverage as that interval, even if the
    ratio itself is far from normal. If the remainders `y - R x` are skewed at the estimated R, the
    interval is extended as in `mean_interval`.

    Args:
        samples: (n, q, 2), numerator y and denominator x of each run; n of at least 2.
        error: probability that any of the q intervals misses; shared equally (Bonferroni).

    Returns:
        Ratios of the means and intervals, (q,) each; infinite if the denominator's mean does not
        differ significantly from 0, because then no ratio is excluded on some side.

    Reference: Fieller, Some problems in interval estimation.
    """
    z = np.asarray(samples, dtype=np.float64)
    if z.ndim != 3 or z.shape[-1] != 2 or len(z) < 2:
        raise expected("samples", z.shape, "the shape (runs, quantities, 2), at least two runs")
    n, q = z.shape[:2]
    x = z[..., 1].mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = z[..., 0].mean(0) / x
        rest = z[..., 0] - value * z[..., 1]
        centered = z[..., 1] - x
        below, above = standard_errors(rest, error / (2 * q))
        # A ratio that is too high gives a remainder that is too low, if the denominator is
        # positive.
        factors = np.where(x > 0, [below, above], [above, below])
        width = factors**2 / (n * (n - 1))
        # With R = value + d: d^2 x^2 <= width Var[rest - d x], a parabola in d, not above 0 at 0.
        a, b = x**2 - width * (centered**2).sum(0), width * (rest * centered).sum(0)
        root = np.sqrt(b**2 + np.maximum(a, 0.0) * width * (rest**2).sum(0))
        low, high = value - (b[0] + root[0]) / a[0], value - (b[1] - root[1]) / a[1]
    told = a > 0
    return Measurement(value, np.where(told[0], low, -np.inf), np.where(told[1], high, np.inf), n)


# Bootstrap intervals of any statistic of independent runs

Statistic = Callable[[Array], Array]

# An end of an interval is a quantile of the resampled statistics. This many of them must lie beyond
# it; otherwise the tail probability is known to worse than 20%.
BEYOND = 25
RESAMPLES, MOST_RESAMPLES = 2_000, 200_000
JACKKNIFE_GROUPS = 200


def bootstrap_interval(statistic: Statistic, seed: int) -> Estimator:
    """Return an estimator of any statistic of independent runs, with BCa bootstrap intervals.

    Bias-corrected and accelerated, with Student's factors instead of normal ones, because the plain
    bootstrap is too short for few runs. Resamples are added until `BEYOND` of them lie outside both
    ends; an end that `MOST_RESAMPLES` cannot resolve is infinite.

    Args:
        statistic: maps samples (n, ...), for any n, to q numbers, (q,), or a single one.
        seed: seed of the resampling; equal samples give equal intervals.

    Returns:
        The estimator, with simultaneous intervals over the q numbers (Bonferroni). It requires n
        large enough that the statistic's distribution is close to a transformed normal one.

    Reference: Efron, Better bootstrap confidence intervals; Hesterberg, What teachers should know
    about the bootstrap, Sec. 5 (Student's factors).
    """
    # Small errors, which p-values need, reuse the resamples of the same runs.
    kept: dict[bytes, Array] = {}

    def estimate(samples: Array, error: float) -> Measurement:
        x = np.asarray(samples, dtype=np.float64)
        if len(x) < 2:
            raise expected("samples", len(x), "at least two runs")
        value, key = np.atleast_1d(np.asarray(statistic(x), dtype=np.float64)), x.tobytes()
        if key not in kept:
            kept.clear()
            kept[key] = _resample(statistic, x, seed, 0, RESAMPLES)
        speed, tail = _acceleration(statistic, x), error / (2 * len(value))
        while True:
            outside = _outside(kept[key], value, speed, tail, len(x))
            count, reachable = len(kept[key]), outside * MOST_RESAMPLES >= BEYOND
            if not (reachable & (outside * count < BEYOND)).any():
                break
            more = _resample(statistic, x, seed, count, min(2 * count, MOST_RESAMPLES))
            kept[key] = np.concatenate([kept[key], more])
        found = [
            [np.quantile(kept[key][:, j], end) for end in (low, 1 - high)]
            for j, (low, high) in enumerate(outside)
        ]
        low, high = np.where(reachable, found, [-np.inf, np.inf]).T
        return Measurement(value, low, high, len(x))

    return estimate


def _resample(statistic: Statistic, x: Array, seed: int, first: int, last: int) -> Array:
    """Return the statistics (last - first, q) of the resamples of these numbers."""
    rng = np.random.default_rng([seed, first])
    n = len(x)
    return np.array(
        [np.atleast_1d(statistic(x[rng.integers(n, size=n)])) for _ in range(first, last)]
    )


def _outside(resampled: Array, value: Array, speed: Array, tail: float, runs: int) -> Array:
    """Return the shares (q, 2) of resampled statistics below the low end and above the high end.

    Zero if an end cannot be resolved.
    """
    ties = (resampled == value).mean(0)
    bias = stats.norm.ppf((resampled < value).mean(0) + ties / 2)
    known = np.isfinite(bias)
    bias = np.where(known, bias, 0.0)
    normal = stats.t.isf(tail, runs - 1) * np.sqrt(runs / (runs - 1))
    # The high end is the low one of the negative statistic: bias and acceleration change their
    # signs.
    shares = []
    for sign in (1.0, -1.0):
        distance = normal - sign * bias
        stretch = 1 + sign * speed * distance
        safe = np.where(stretch > 0, stretch, np.inf)
        share = stats.norm.sf(distance / safe - sign * bias)
        shares.append(np.where((stretch > 0) & known, share, 0.0))
    return np.stack(shares, axis=-1)


def _acceleration(statistic: Statistic, x: Array) -> Array:
    """Return skewness of the runs' influence on the statistic, from leaving out groups, (q,)."""
    groups = np.array_split(np.arange(len(x)), min(len(x), JACKKNIFE_GROUPS))
    left_out = np.array([np.atleast_1d(statistic(np.delete(x, g, axis=0))) for g in groups])
    centered = left_out.mean(0) - left_out
    square = (centered**2).sum(0)
    return (centered**3).sum(0) / (6 * np.where(square > 0, square, np.inf) ** 1.5)


# Distances of distributions, with a confidence band

Cdf = Callable[[Array], Array]


def cdf_distance(
    predicted: Cdf | Sequence[Cdf], *, integer: bool = False, horizon: float = np.inf
) -> Estimator:
    """Return an estimator of `sup_x |F(x) - predicted(x)|`, F the distribution of samples (n, q).

    The empirical distribution is within `sqrt(log(2 / error) / (2 n))` of F everywhere with
    probability 1 - error, for every n and every F (Dvoretzky-Kiefer-Wolfowitz with Massart's
    constant), so the measured distance is within it of the true one. A claim predicts an upper
    bound on the distance.

    Args:
        predicted: the predicted cumulative distribution function, or one for each quantity;
            vectorized. Distributions with jumps must be right-continuous.
        integer: samples are whole numbers, and `predicted` must be valid only there: the step below
            x is at x - 1.
        horizon: distributions are compared up to here; larger values (survivors of all rounds) may
            be any larger number, including infinity.

    Returns:
        The estimator; intervals within [0, 1], simultaneous over the q quantities (Bonferroni).

    Raises:
        InputError: raised by the estimator if integer samples are not whole numbers.

    Reference: Massart, The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality.
    """

    def estimate(samples: Array, error: float) -> Measurement:
        x = np.asarray(samples, dtype=np.float64)
        n, q = x.shape
        laws = [predicted] * q if callable(predicted) else list(predicted)
        if len(laws) != q:
            raise expected("predicted", len(laws), f"a law for each of the {q} quantities")
        value = np.array(
            [largest_gap(x[:, j], law, integer, horizon) for j, law in enumerate(laws)]
        )
        band = np.sqrt(np.log(2 * q / error) / (2 * n))
        return Measurement(value, np.maximum(value - band, 0.0), np.minimum(value + band, 1.0), n)

    return estimate


def largest_gap(
    values: ArrayLike, predicted: Cdf, integer: bool = False, horizon: float = np.inf
) -> float:
    """Return largest distance of the empirical distribution of values (n,) from a predicted one.

    The distance is taken up to the horizon. Between two values the empirical distribution is
    constant and the predicted one increases, so the largest distance is at a value or just below
    one; for the arguments see `cdf_distance`.

    Returns:
        The distance in [0, 1]; NaN if a value is NaN.
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    if np.isnan(x).any():
        return np.nan
    inside = x[x <= horizon]
    if integer and not (inside[np.isfinite(inside)] % 1 == 0).all():
        raise expected("samples", "fractions", "whole numbers")
    points = np.unique(inside)
    if np.isfinite(horizon):
        points = np.union1d(points, [np.floor(horizon) if integer else horizon])
    below = points - 1 if integer else np.nextafter(points, -np.inf)
    at, before = (np.searchsorted(x, points, side) / len(x) for side in ("right", "left"))
    return float(
        np.maximum(np.abs(at - predicted(points)), np.abs(before - predicted(below))).max()
    )
