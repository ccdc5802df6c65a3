"""Intervals of means, shares and proportions of independent runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from fedlora_sim.errors import expected

# What an estimator returns, and what an estimator is

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """Point estimates with simultaneous confidence intervals.

    Args:
        value: estimates, (q,).
        low, high: ends of the intervals, (q,); infinite or NaN where nothing can be said.
        samples: independent runs behind them.
        every_run: the statement is about every single run, not about a mean over runs; `low` and
            `high` are then the smallest and the largest value of all runs.
    """

    value: Array
    low: Array
    high: Array
    samples: int
    every_run: bool = False


# Samples (n, q, ...), one row per independent run, and the probability that any of the q intervals
# misses its quantity, to a measurement. A smaller probability never makes an interval shorter.
Estimator = Callable[[Array, float], Measurement]


# Intervals of means, shares and proportions of independent runs

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
        InputError: for a single run, which says nothing of its own spread.
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
    centered = (samples - samples.mean(0)) / np.where(spread > 0, spread, 1.0)
    skewness = np.array([-1.0, 1.0])[:, None] * (centered**3).mean(0)
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


# Ratios of means, with Fieller's intervals: no linearisation, and none where the ratio is open


def fieller_ratio(samples: ArrayLike, error: float) -> Measurement:
    """Ratios of two means of independent runs, which may be paired, with Fieller's intervals.

    The interval holds every ratio R for which Student's interval of the mean of `y - R x` holds 0:
    as certain as that interval, however far from normal the ratio itself is. Remainders
    `y - R x` that are skewed, at the estimated R, make it longer as they do in `mean_interval`.

    Args:
        samples: (n, q, 2), numerator y and denominator x of every run; n of at least 2.
        error: probability that any of the q intervals misses; shared equally (Bonferroni).

    Returns:
        Ratios of the means and intervals, (q,) each; infinite where the denominator's mean is not
        told from 0, for then no ratio is excluded on some side.

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
        # Too high a ratio leaves too low a remainder, if the denominator is positive.
        factors = np.where(x > 0, [below, above], [above, below])
        width = factors**2 / (n * (n - 1))
        # With R = value + d: d^2 x^2 <= width Var[rest - d x], a parabola in d, not above 0 at 0.
        a, b = x**2 - width * (centered**2).sum(0), width * (rest * centered).sum(0)
        root = np.sqrt(b**2 + np.maximum(a, 0.0) * width * (rest**2).sum(0))
        low, high = value - (b[0] + root[0]) / a[0], value - (b[1] - root[1]) / a[1]
    told = a > 0
    return Measurement(value, np.where(told[0], low, -np.inf), np.where(told[1], high, np.inf), n)


# Bootstrap over runs: intervals for any statistic of their samples

Statistic = Callable[[Array], Array]

# An end of an interval is a quantile of the resampled statistics; this many of them must lie
# beyond it, or the quantile is known too badly (its tail to 20%).
BEYOND = 25
RESAMPLES, MOST_RESAMPLES = 2_000, 200_000
JACKKNIFE_GROUPS = 200


def bootstrap_interval(statistic: Statistic, seed: int) -> Estimator:
    """Estimator of any statistic of independent runs: BCa intervals by resampling the runs.

    Bias-corrected and accelerated, with Student's factors in place of the normal ones, for the
    plain bootstrap is too short for few runs. Resamples are added until `BEYOND` of them lie
    outside both ends; an end further out than `MOST_RESAMPLES` can show is infinite.

    Args:
        statistic: samples (n, ...) of any n to q numbers, (q,) or a single one.
        seed: of the resampling; the same samples give the same interval.

    Returns:
        The estimator; intervals hold together over the q numbers (Bonferroni), for n large enough
        that the statistic's law is near one family of a normal's transforms.

    Reference: Efron, Better bootstrap confidence intervals; Hesterberg, What teachers should know
    about the bootstrap, Sec. 5 (Student's factors).
    """
    # Small errors, as asked for by p-values, reuse the resamples of the same runs.
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
    """Statistics (last - first, q) of the resamples of these numbers."""
    rng = np.random.default_rng([seed, first])
    n = len(x)
    return np.array(
        [np.atleast_1d(statistic(x[rng.integers(n, size=n)])) for _ in range(first, last)]
    )


def _outside(resampled: Array, value: Array, speed: Array, tail: float, runs: int) -> Array:
    """Shares (q, 2) of the resampled statistics below the low end and above the high end.

    Zero where an end lies beyond all that resampling can tell.
    """
    ties = (resampled == value).mean(0)
    bias = stats.norm.ppf((resampled < value).mean(0) + ties / 2)
    known = np.isfinite(bias)
    bias = np.where(known, bias, 0.0)
    normal = stats.t.isf(tail, runs - 1) * np.sqrt(runs / (runs - 1))
    # The high end is the low one of the statistic's negative: bias and speed change their signs.
    shares = []
    for sign in (1.0, -1.0):
        distance = normal - sign * bias
        stretch = 1 + sign * speed * distance
        safe = np.where(stretch > 0, stretch, np.inf)
        share = stats.norm.sf(distance / safe - sign * bias)
        shares.append(np.where((stretch > 0) & known, share, 0.0))
    return np.stack(shares, axis=-1)


def _acceleration(statistic: Statistic, x: Array) -> Array:
    """Skewness of the influence of runs on the statistic, from leaving groups of them out (q,)."""
    groups = np.array_split(np.arange(len(x)), min(len(x), JACKKNIFE_GROUPS))
    left_out = np.array([np.atleast_1d(statistic(np.delete(x, g, axis=0))) for g in groups])
    centered = left_out.mean(0) - left_out
    square = (centered**2).sum(0)
    return (centered**3).sum(0) / (6 * np.where(square > 0, square, np.inf) ** 1.5)


# Distribution tests: how far a measured law is from a predicted one, with a certain band

Cdf = Callable[[Array], Array]


def cdf_distance(
    predicted: Cdf | Sequence[Cdf], *, integer: bool = False, horizon: float = np.inf
) -> Estimator:
    """Estimator of `sup_x |F(x) - predicted(x)|` from samples (n, q), F their true law.

    The empirical law is within `sqrt(log(2 / error) / (2 n))` of F everywhere with probability
    1 - error, for every n and every F (Dvoretzky-Kiefer-Wolfowitz with Massart's constant), so the
    measured distance is within it of the true one. A claim predicts it to be at most a margin.

    Args:
        predicted: the predicted cumulative distribution function, or one for each quantity;
            vectorised. A law with jumps must be right-continuous.
        integer: samples are whole numbers, and `predicted` need be right only there: the step
            below x is at x - 1.
        horizon: laws are compared up to here only; what lies beyond (a survivor of all rounds) may
            be written as any larger number, infinity included.

    Returns:
        The estimator; intervals within [0, 1], together over the q quantities (Bonferroni).

    Raises:
        InputError: by the estimator, if samples said to be whole numbers are not.

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
    """Largest distance of the empirical law of values (n,) from a predicted one, up to a horizon.

    Between two values the empirical law is flat and the predicted one rises, so the distance is
    largest at a value, or just below one; see `cdf_distance` for the arguments.

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
