"""Bootstrap over runs: intervals for any statistic of their samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from analysis.inference.measurement import Array, Estimator, Measurement
from fedlora_sim.errors import expected

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
    centred = left_out.mean(0) - left_out
    square = (centred**2).sum(0)
    return (centred**3).sum(0) / (6 * np.where(square > 0, square, np.inf) ** 1.5)
