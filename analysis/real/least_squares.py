"""`s = a x + b` with random a and b, fitted to observations that come in pools.

Mean `g x + c`, variance `nu^2 x^2 + tau^2`. The mean is fitted by least squares with the inverse
variance as weight, the variance by non-negative least squares of the squared residuals on
`(x^2, 1)` with its inverse square as weight, in turns until both rest: the stationary point of the
Gaussian likelihood, and consistent for every law with these two moments. A residual is divided by
one less its leverage, for the fitted line follows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora_sim.tolerances import relative

Array = NDArray[np.float64]

# Gain and drift are told apart only where x spreads by this share of its root mean square, and
# where the gain is known to this error: amplitudes that only noise has moved bias it by as much,
# for the residual of one round is part of the amplitude of the next.
LEAST_SPREAD = 0.02
LARGEST_ERROR = 0.2
# Two of the mean, two of the variance: fewer observations would be fitted exactly.
LEAST_OBSERVATIONS = 5
# Whole steps come close fast, but may then go round in a circle; half steps do not.
WHOLE_STEPS, HALF_STEPS = 8, 20
# Variance below which residuals are rounding, of amplitudes of about one.
ROUNDING = relative("reduction") ** 2


@dataclass(frozen=True, eq=False)
class LinearFit:
    """Estimates of every pool; the last dimension holds gain and drift, NaN where unknown.

    Args:
        mean: g and c, (..., 2).
        mean_covariance: of their estimates, (..., 2, 2).
        variance: nu^2 and tau^2, (..., 2).
        variance_covariance: of their estimates were they free to be negative, (..., 2, 2).
        observations: (...).
        identified: whether x spreads enough to tell gain from drift; where not, c = tau = 0.
        least, greatest: amplitudes x that were met, (...); infinite where there was none.
    """

    mean: Array
    mean_covariance: Array
    variance: Array
    variance_covariance: Array
    observations: NDArray[np.int64]
    identified: NDArray[np.bool_]
    least: Array
    greatest: Array


@dataclass(frozen=True, eq=False)
class Pools:
    """Sums over the observations of every pool, and back.

    Args:
        observed: which entries are observations, (S, T, L, m, r_max).
        cells: pool of every direction, (r_max,), from 0.
    """

    observed: NDArray[np.bool_]
    cells: NDArray[np.int64]

    def sum(self, values: Array) -> Array:
        """Sums over rounds, slots and the pool's directions, (S, L, pools)."""
        kept = np.where(self.observed, values, 0.0).sum((1, 3))
        return kept @ (self.cells[:, None] == np.arange(self.cells.max() + 1))

    def least(self, values: Array) -> Array:
        """Least value of every pool, (S, L, pools); infinite where there is none."""
        lowest = np.where(self.observed, values, np.inf).min((1, 3))
        each = [lowest[..., self.cells == j].min(-1) for j in range(self.cells.max() + 1)]
        return np.stack(each, axis=-1)

    def spread(self, values: Array) -> Array:
        """Values of the pools (S, L, pools) at every observation, (S, 1, L, 1, r_max)."""
        return values[:, None, :, None, self.cells]


def fit_linear(x: Array, s: Array, cells: NDArray[np.int64]) -> LinearFit:
    """Fit every run, layer and pool.

    Args:
        x: amplitudes that clients start from, (S, T, L, 1, r_max).
        s: what they return, (S, T, L, m, r_max); NaN where there is no observation.
        cells: pool of every direction, (r_max,), from 0.

    Returns:
        Estimates (S, L, pools), NaN where a pool has fewer than two observations.
    """
    pools = Pools(np.isfinite(s) & np.isfinite(x), cells)
    s = np.where(pools.observed, s, np.nan)
    count = pools.sum(np.ones_like(s))
    number = np.maximum(count, 1)
    square = pools.sum(x**2 + 0 * s) / number
    unit = np.sqrt(np.where(square > 0, square, 1.0))  # amplitudes of about one keep their digits
    x, s = x / pools.spread(unit), s / pools.spread(unit)
    spread = 1 - (pools.sum(x + 0 * s) / number) ** 2
    identified = (spread > LEAST_SPREAD**2) & (count >= LEAST_OBSERVATIONS)
    found = _settle(pools, x, s, identified)
    uncertain = found[1][..., 0, 0] > LARGEST_ERROR**2
    if (identified & uncertain).any():
        identified &= ~uncertain
        found = _settle(pools, x, s, identified)
    mean, mean_covariance, variance, variance_covariance = found
    known = (count >= 2)[..., None]
    scale = np.stack([np.ones_like(unit), unit], axis=-1)
    pairs = scale[..., :, None] * scale[..., None, :]
    return LinearFit(
        np.where(known, mean * scale, np.nan),
        np.where(known[..., None], mean_covariance * pairs, np.nan),
        np.where(known, variance * scale**2, np.nan),
        np.where(known[..., None], variance_covariance * pairs**2, np.nan),
        count.astype(np.int64),
        identified,
        pools.least(x) * unit,
        -pools.least(-x) * unit,
    )


def _settle(
    pools: Pools, x: Array, s: Array, identified: NDArray[np.bool_]
) -> tuple[Array, Array, Array, Array]:
    """Mean and its covariance, variance and its covariance, fitted in turns."""
    shape = pools.sum(s).shape
    variance = np.broadcast_to([0.0, 1.0], (*shape, 2))
    for step in [1.0] * WHOLE_STEPS + [0.5] * HALF_STEPS:
        weight = 1 / _variance(pools, variance, x)
        mean, mean_covariance = _solve(pools, weight, x, s, identified)
        squares = _squared_residuals(pools, weight, x, s, mean, mean_covariance)
        found, covariance = _solve(pools, weight**2, x**2, squares, identified, positive=True)
        variance = variance + step * (found - variance)
    surprise = (squares / _variance(pools, variance, x) - 1) ** 2
    kurtosis = pools.sum(surprise) / np.maximum(pools.sum(np.ones_like(s)), 1)
    # Two is a normal law's; heavier tails make squared residuals less certain.
    return mean, mean_covariance, variance, covariance * np.maximum(kurtosis, 2.0)[..., None, None]


def _variance(pools: Pools, variance: Array, x: Array) -> Array:
    """`nu^2 x^2 + tau^2` at every observation."""
    gain, drift = (pools.spread(variance[..., j]) for j in (0, 1))
    return np.asarray(np.maximum(gain * x**2 + drift, ROUNDING))


def _squared_residuals(
    pools: Pools, weight: Array, x: Array, s: Array, mean: Array, covariance: Array
) -> Array:
    """Squared residuals, unbiased for the leverage of each."""
    gain, drift = (pools.spread(mean[..., j]) for j in (0, 1))
    slope, both, level = (pools.spread(covariance[..., i, j]) for i, j in ((0, 0), (0, 1), (1, 1)))
    leverage = weight * (slope * x**2 + 2 * both * x + level)
    # A lone observation of its kind is followed exactly, and says nothing of the spread.
    free = np.maximum(1 - leverage, np.sqrt(ROUNDING))
    return np.asarray((s - gain * x - drift) ** 2 / free)


def _solve(
    pools: Pools,
    weight: Array,
    basis: Array,
    target: Array,
    identified: NDArray[np.bool_],
    *,
    positive: bool = False,
) -> tuple[Array, Array]:
    """Weighted least squares of the target on `(basis, 1)`, on `basis` alone where not identified.

    Returns:
        Coefficients (S, L, pools, 2) and the inverse of the normal matrix (S, L, pools, 2, 2).
    """
    weight = weight + 0 * target
    a, b, d = (pools.sum(weight * basis**p) for p in (2, 1, 0))
    first, second = pools.sum(weight * basis * target), pools.sum(weight * target)
    a = np.where(a > 0, a, 1.0)  # an empty pool: any number will do
    both = identified & (a * d - b * b > 0)
    b, d = np.where(both, b, 0.0), np.where(both, d, 1.0)
    second = np.where(both, second, 0.0)
    determinant = a * d - b * b
    inverse = np.stack([d, -b, -b, a], -1).reshape(*a.shape, 2, 2) / determinant[..., None, None]
    inverse[..., 1, 1] *= both
    found = np.stack([d * first - b * second, a * second - b * first], -1) / determinant[..., None]
    if positive:
        found = _non_negative(found, a, b, d, first, second)
    return found, inverse


def _non_negative(free: Array, a: Array, b: Array, d: Array, first: Array, second: Array) -> Array:
    """The best of two coefficients that may not be negative: free, or one of them zero."""
    zero = np.zeros_like(a)
    alone = np.stack([np.maximum(first / a, 0.0), zero], -1)
    other = np.stack([zero, np.maximum(second / d, 0.0)], -1)
    # A coefficient that is alone at its best lowers the sum of squares by its square times a or d.
    better = (a * alone[..., 0] ** 2 >= d * other[..., 1] ** 2)[..., None]
    inside = (free >= 0).all(-1, keepdims=True)
    return np.where(inside, free, np.where(better, alone, other))
