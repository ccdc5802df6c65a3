"""Estimate gains and drifts of a run's clients from its first rounds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from fedlora_sim.errors import check_choice, check_share, expected
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.tolerances import relative

# Fit `s = a x + b` with random a and b to pooled observations.
#
# The mean is `g x + c`, the variance `nu^2 x^2 + tau^2`. The mean is fitted by least squares
# weighted by the inverse variance, and the variance by non-negative least squares of the squared
# residuals on `(x^2, 1)` weighted by its inverse square, alternately until both converge. This is
# the stationary point of the Gaussian likelihood, and consistent for every distribution with these
# two moments. Each residual is divided by one minus its leverage, because it is reduced by fitting.

Array = NDArray[np.float64]

# Gain and drift are identified only if the spread of x is at least this share of its root mean
# square and the standard error of the gain is at most this value. Amplitudes that only noise has
# moved bias the gain by as much, because the residual of one round is part of the amplitude of the
# next.
LEAST_SPREAD = 0.02
LARGEST_ERROR = 0.2
# Two parameters each for mean and variance: fewer observations would be fitted exactly.
LEAST_OBSERVATIONS = 5
# Full steps converge fast at first, but may then cycle; half steps do not.
WHOLE_STEPS, HALF_STEPS = 8, 20
# Variance below which residuals are rounding errors, for amplitudes of about one.
ROUNDING = relative("reduction") ** 2


@dataclass(frozen=True, eq=False)
class LinearFit:
    """Estimates for each pool; the last dimension holds gain and drift, NaN where unknown.

    Args:
        mean: g and c, (..., 2).
        mean_covariance: covariance of their estimates, (..., 2, 2).
        variance: nu^2 and tau^2, (..., 2).
        variance_covariance: covariance of their estimates without the constraint, (..., 2, 2).
        observations: number of observations, (...).
        identified: whether x spreads enough to distinguish gain from drift; otherwise c = tau = 0.
        least, greatest: range of the observed amplitudes x, (...); infinite if there are none.
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
    """Sums over the observations of each pool, and their inverse.

    Args:
        observed: which entries are observations, (S, T, L, m, r_max).
        cells: pool of each direction, (r_max,), from 0.
    """

    observed: NDArray[np.bool_]
    cells: NDArray[np.int64]

    def sum(self, values: Array) -> Array:
        """Return the sums over rounds, slots and the pool's directions, (S, L, pools)."""
        kept = np.where(self.observed, values, 0.0).sum((1, 3))
        return kept @ (self.cells[:, None] == np.arange(self.cells.max() + 1))

    def least(self, values: Array) -> Array:
        """Return the minimum of each pool, (S, L, pools); infinite if it is empty."""
        lowest = np.where(self.observed, values, np.inf).min((1, 3))
        each = [lowest[..., self.cells == j].min(-1) for j in range(self.cells.max() + 1)]
        return np.stack(each, axis=-1)

    def spread(self, values: Array) -> Array:
        """Return values of the pools (S, L, pools) for each observation, (S, 1, L, 1, r_max)."""
        return values[:, None, :, None, self.cells]


def fit_linear(x: Array, s: Array, cells: NDArray[np.int64]) -> LinearFit:
    """Fit all runs, layers and pools.

    Args:
        x: amplitudes at the start, (S, T, L, 1, r_max).
        s: returned amplitudes, (S, T, L, m, r_max); NaN where there is no observation.
        cells: pool of each direction, (r_max,), from 0.

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
    """Return mean and variance with their covariances, fitted alternately."""
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
    # Two is the value of the normal distribution; heavier tails make squared residuals less
    # certain.
    return mean, mean_covariance, variance, covariance * np.maximum(kurtosis, 2.0)[..., None, None]


def _variance(pools: Pools, variance: Array, x: Array) -> Array:
    """Return `nu^2 x^2 + tau^2` at every observation."""
    gain, drift = (pools.spread(variance[..., j]) for j in (0, 1))
    return np.asarray(np.maximum(gain * x**2 + drift, ROUNDING))


def _squared_residuals(
    pools: Pools, weight: Array, x: Array, s: Array, mean: Array, covariance: Array
) -> Array:
    """Return the squared residuals, corrected for their leverage."""
    gain, drift = (pools.spread(mean[..., j]) for j in (0, 1))
    slope, both, level = (pools.spread(covariance[..., i, j]) for i, j in ((0, 0), (0, 1), (1, 1)))
    leverage = weight * (slope * x**2 + 2 * both * x + level)
    # A single observation of its kind is fitted exactly and does not show the spread.
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
    """Return weighted least squares of the target on `(basis, 1)`, or `basis` if not identified.

    Returns:
        Coefficients (S, L, pools, 2) and the inverse of the normal matrix (S, L, pools, 2, 2).
    """
    weight = weight + 0 * target
    a, b, d = (pools.sum(weight * basis**p) for p in (2, 1, 0))
    first, second = pools.sum(weight * basis * target), pools.sum(weight * target)
    a = np.where(a > 0, a, 1.0)  # an empty pool: any number
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
    """Return the best non-negative pair of coefficients: the free one, or one of them zero."""
    zero = np.zeros_like(a)
    alone = np.stack([np.maximum(first / a, 0.0), zero], -1)
    other = np.stack([zero, np.maximum(second / d, 0.0)], -1)
    # A single coefficient at its optimum reduces the sum of squares by its square times a or d.
    better = (a * alone[..., 0] ** 2 >= d * other[..., 1] ** 2)[..., None]
    inside = (free >= 0).all(-1, keepdims=True)
    return np.where(inside, free, np.where(better, alone, other))


# Updates of clients on the singular directions at the start of the round.
#
# Row t of a training run holds `s_{k,i} = u_i^T dW_k v_i` on the singular vectors (U, V) of the
# global update of row t-1, whose amplitudes are `sigma_i`. In the linear model `s = a sigma + b`.
# Singular vectors are numbered by their amplitudes: two directions whose amplitudes cross exchange
# their numbers, and a direction may be rotated in the next round. No direction is followed from
# round to round; what the basis loses is `leakage`.

UPDATES = (
    "layer_energy",
    "client_rank",
    "cohort",
    "dropped",
    "amplitude",
    "update_energy",
    "client_preservation",
    "client_weight",
)
"""Variables of a training dataset that describe its clients' updates."""

DIMS = ("seed", "round", "layer", "slot", "direction")


def describe_updates(dataset: xr.Dataset) -> xr.Dataset:
    """Return gains, leakage and weights of each client, round, layer and direction.

    A client carries the directions `i <= r_k`. It returns `reached = s` on them, or `sigma + s`
    under rules whose clients start every round with a fresh adapter (flora), so that gains always
    refer to the whole update. A direction whose amplitude is lost in rounding has no singular
    vectors and gets NaN.

    Args:
        dataset: a training run, dimensions (seed, round, layer, slot, direction).

    Returns:
        `sigma` (seed, round, layer, direction), the amplitude at the start of the round; `reached`
        and `gain = reached / sigma`, (seed, round, layer, slot, direction), NaN where the client
        does not carry the direction; `leakage`, the share of the update's energy outside the basis,
        and `leaked_energy`, (seed, round, layer, slot); `weight`, the client's share of the cohort,
        (seed, round, slot), zero where the slot is empty or its client was dropped.

    Raises:
        InputError: if a variable is missing; for an allocation other than `svd`, whose carried
            directions are not in the dataset.
    """
    check_has(dataset, UPDATES)
    allocation = dataset.attrs.get("allocation", "svd")
    if allocation != "svd":
        raise expected("allocation", allocation, "svd: of others it is not known who holds what")
    weight = slot_weights(dataset)
    sigma = amplitudes(dataset).shift(round=1)
    held = (dataset.direction <= slot_ranks(dataset)) & (weight > 0) & (sigma > 0)
    reached = dataset.amplitude.where(held)
    if rule_of(dataset).space == "none":
        reached = reached + sigma
    leakage = (1 - dataset.client_preservation).clip(min=0).where(weight > 0)
    return xr.Dataset(
        {
            "sigma": sigma,
            "reached": reached.transpose(*DIMS),
            "gain": (reached / sigma).transpose(*DIMS),
            "leakage": leakage.transpose(*DIMS[:-1]),
            "leaked_energy": (leakage * dataset.update_energy).transpose(*DIMS[:-1]),
            "weight": weight,
        },
        attrs=dataset.attrs,
    )


def drifts(updates: xr.Dataset, gain_mean: xr.DataArray | float) -> xr.DataArray:
    """Return the part of the returned amplitudes beyond the mean gain, `reached - g sigma`.

    Args:
        updates: result of `describe_updates`.
        gain_mean: g, a number or labeled by any of (seed, layer, direction).

    Returns:
        In units of dW, (seed, round, layer, slot, direction), NaN where not carried.
    """
    return (updates.reached - gain_mean * updates.sigma).transpose(*DIMS)


def mean_leakage(updates: xr.Dataset) -> xr.DataArray:
    """Return the weighted mean leakage of a round's cohort, (seed, round, layer)."""
    return updates.leakage.weighted(updates.weight).mean("slot")


def by_partition(energy: xr.DataArray) -> xr.DataArray:
    """Return the energies summed over the directions of each partition.

    `direction` becomes `partition`.

    Args:
        energy: labeled by `direction` with the coordinate `partition`; NaN propagates.
    """
    numbers = np.unique(energy.partition)
    parts = [
        energy.isel(direction=energy.partition.values == h).sum("direction", skipna=False)
        for h in numbers
    ]
    return xr.concat(parts, dim="partition").assign_coords(partition=numbers)


def amplitudes(dataset: xr.Dataset) -> xr.DataArray:
    """Return the amplitudes of the global update after each round, zero where lost in rounding."""
    return resolved(dataset.layer_energy, dataset) ** 0.5


def resolved(energy: xr.DataArray, dataset: xr.Dataset) -> xr.DataArray:
    """Return the energies, zero where the run's arithmetic does not resolve the amplitude."""
    return energy.where(energy > rounding_floor(energy, dataset), 0.0)


def rounding_floor(energy: xr.DataArray, dataset: xr.Dataset) -> xr.DataArray:
    """Return the energy below which a direction is rounding, relative to the largest one.

    Args:
        energy: labeled by `direction`.
        dataset: the run, which gives the dtype.

    Returns:
        Shape of `energy` without `direction`.
    """
    return energy_floor(str(dataset.attrs["dtype"])) * energy.max("direction")


def energy_floor(dtype: str) -> float:
    """Return the share of the largest direction's energy below which another's is rounding.

    Factorizations resolve amplitudes, whose squares are the energies.
    """
    return relative("factorization", dtype) ** 2


def slot_weights(dataset: xr.Dataset) -> xr.DataArray:
    """Return the share of each slot in its cohort, zero in rounds without an update."""
    present = (dataset.cohort >= 0) & ~dataset.dropped.astype(bool)
    return dataset.client_weight.where(present, 0.0).fillna(0.0)


def slot_ranks(dataset: xr.Dataset) -> xr.DataArray:
    """Return the rank of the client in each slot, (seed, round, slot); 0 if it is empty."""
    cohort = dataset.cohort.transpose("seed", "round", "slot")
    ranks = dataset.client_rank.transpose("seed", "round", "client").values
    numbers: NDArray[np.int64] = cohort.values.astype(np.int64)
    picked = np.take_along_axis(ranks, numbers.clip(min=0), axis=-1)
    return cohort.copy(data=np.where(numbers >= 0, picked, 0))


def rule_of(dataset: xr.Dataset) -> AggregationRule:
    """Return the server rule of a run."""
    return get_rule(dataset.attrs["rule"])


def check_has(dataset: xr.Dataset, names: tuple[str, ...]) -> None:
    """Refuse a dataset that lacks a variable.

    Raises:
        InputError: names the missing variables.
    """
    missing = [name for name in names if name not in dataset]
    if missing:
        raise expected("dataset", list(dataset.data_vars), f"a training run with {missing}")


# Calibration of gains and drifts

POOLS = ("partition", "direction")
MOMENTS = {"gain": 0, "drift": 1}


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of gains and drifts from the distribution of their estimates.

    Args:
        gain_mean, gain_std: g and nu, (samples, layer, direction).
        drift_mean, drift_std: c and tau, same shape, in units of dW.
    """

    gain_mean: Array
    gain_std: Array
    drift_mean: Array
    drift_std: Array


@dataclass(frozen=True, eq=False)
class Calibration:
    """Linear model of the clients, `s = a sigma + b`, per run, layer and pool of directions.

    Args:
        pool: the directions that share parameters, `partition` or `direction`.
        cells: pool of each direction, (r_max,), from 0.
        rounds: first and last round whose updates were used.
        estimates: `mean` (seed, layer, pool, moment): g and c; `variance`: nu^2 and tau^2;
            `mean_covariance` and `variance_covariance` (seed, layer, pool, moment, other) of their
            estimates; `observations`, `identified`, and `least` and `greatest` observed amplitude,
            (seed, layer, pool). The pool's dimension has the name of the pool; NaN where a pool has
            fewer than two observations. Where not `identified`, amplitudes spread too little to
            distinguish gain from drift, and c = tau = 0.
    """

    pool: str
    cells: NDArray[np.int64]
    rounds: tuple[int, int]
    estimates: xr.Dataset

    @property
    def gain_mean(self) -> xr.DataArray:
        """Mean gain g."""
        return self._mean("gain")

    @property
    def gain_std(self) -> xr.DataArray:
        """Standard deviation nu of the gains."""
        return self._variance("gain") ** 0.5

    @property
    def drift_mean(self) -> xr.DataArray:
        """Mean drift c, in units of dW."""
        return self._mean("drift")

    @property
    def drift_std(self) -> xr.DataArray:
        """Standard deviation tau of the drifts, in units of dW."""
        return self._variance("drift") ** 0.5

    @property
    def identified(self) -> xr.DataArray:
        """True if amplitudes spread enough to distinguish gain from drift.

        Otherwise c = tau = 0.
        """
        return self.estimates.identified

    @property
    def observations(self) -> xr.DataArray:
        """Number of observations (round, client, direction) of each estimate."""
        return self.estimates.observations

    def standard_error(self, quantity: str) -> xr.DataArray:
        """Return the standard error of an estimate, by the delta method for standard deviations.

        NaN where a standard deviation is 0.

        Args:
            quantity: `gain_mean`, `gain_std`, `drift_mean` or `drift_std`.
        """
        moment, kind = self._quantity(quantity)
        error = self._error(kind, moment)
        if kind == "mean":
            return error
        deviation = self._variance(moment) ** 0.5
        return error / (2 * deviation.where(deviation > 0))

    def interval(self, quantity: str, confidence: float = 0.95) -> xr.DataArray:
        """Return the confidence interval of an estimate for many observations; new dimension `end`.

        Means have Student's interval. The interval of a standard deviation is the root of that of
        its variance, which may begin at 0.

        Args:
            quantity: `gain_mean`, `gain_std`, `drift_mean` or `drift_std`.
            confidence: confidence of each single interval, in (0, 1).
        """
        moment, kind = self._quantity(quantity)
        tail = (1 - check_share("confidence", confidence)) / 2
        freedom = np.maximum(self.observations - self.identified - 1, 1)
        factor = self.observations.copy(data=stats.t.isf(tail, freedom))
        sides = xr.DataArray([-1.0, 1.0], dims="end", coords={"end": ["low", "high"]})
        reach = factor * self._error(kind, moment)
        if kind == "mean":
            return self._mean(moment) + sides * reach
        return (self._variance(moment) + sides * reach).clip(min=0) ** 0.5

    def of_run(self, seed: int) -> Calibration:
        """Return the calibration of one run, without the dimension `seed`."""
        return replace(self, estimates=self.estimates.sel(seed=seed))

    def per_direction(self, values: xr.DataArray) -> xr.DataArray:
        """Return values of the pools for each direction: `direction` replaces the pool."""
        spread = values.isel({self.pool: xr.DataArray(self.cells, dims="direction")})
        directions = np.arange(1, len(self.cells) + 1)
        return spread.drop_vars("partition", errors="ignore").assign_coords(direction=directions)

    def draw(self, samples: int, rng: np.random.Generator | None) -> Draws:
        """Draw parameters from the sampling distribution of one run's estimates.

        Estimates are normal for many observations; variances are clipped at 0.

        Args:
            samples: number of draws.
            rng: source of randomness; None returns the estimates themselves every time.

        Returns:
            Draws that the directions of a pool share.
        """
        means, variances = (self._sample(kind, samples, rng) for kind in ("mean", "variance"))
        deviations = np.sqrt(np.maximum(variances, 0.0))
        return Draws(means[..., 0], deviations[..., 0], means[..., 1], deviations[..., 1])

    def _sample(self, kind: str, samples: int, rng: np.random.Generator | None) -> Array:
        value = self.estimates[kind].transpose("layer", self.pool, "moment").values
        if rng is None:
            drawn = np.broadcast_to(value, (samples, *value.shape))
        else:
            covariance = self.estimates[f"{kind}_covariance"]
            root = _root(covariance.transpose("layer", self.pool, "moment", "other").values)
            normal = rng.standard_normal((samples, *value.shape))
            drawn = value + (root @ normal[..., None])[..., 0]
        return np.asarray(drawn[:, :, self.cells])

    def _mean(self, moment: str) -> xr.DataArray:
        return self.estimates["mean"].isel(moment=MOMENTS[moment])

    def _variance(self, moment: str) -> xr.DataArray:
        return self.estimates["variance"].isel(moment=MOMENTS[moment])

    def _error(self, kind: str, moment: str) -> xr.DataArray:
        j = MOMENTS[moment]
        return self.estimates[f"{kind}_covariance"].isel(moment=j, other=j) ** 0.5

    def _quantity(self, quantity: str) -> tuple[str, str]:
        names = [f"{moment}_{of}" for moment in MOMENTS for of in ("mean", "std")]
        moment, _, of = check_choice("quantity", quantity, names).partition("_")
        return moment, "mean" if of == "mean" else "variance"


def calibrate(dataset: xr.Dataset, rounds: slice, pool: str = "partition") -> Calibration:
    """Estimate gains and drifts from some rounds of a training run.

    `E[s] = g sigma + c`, `Var[s] = nu^2 sigma^2 + tau^2`, over the rounds, the clients and the
    pool's directions. Observations count as independent: persistent differences between clients,
    and rotation of the basis, make the standard errors too small. A residual is part of the next
    amplitude. If noise moves the amplitudes more than gains do, this biases the gain downwards and
    the drift upwards. Estimates are valid near the observed amplitudes only, which `least` and
    `greatest` bound.

    Args:
        dataset: a training run.
        rounds: labels of the rounds whose updates are used, both ends included as in xarray;
            round t starts from the amplitudes of round t-1.
        pool: directions that share parameters: those of a `partition`, or each `direction` alone.

    Returns:
        Parameters per run (seed), layer and pool.

    Raises:
        InputError: for a dataset without the clients' amplitudes, an unknown pool, or rounds in
            which no client returns anything on a nonzero direction.

    Reference:
        The model: Wu et al., arXiv 2602.13486, App. B. The estimators: our derivation.
    """
    kind = check_choice("pool", pool, POOLS)
    updates = describe_updates(dataset).sel(round=rounds)
    reached = updates.reached
    if not bool(np.isfinite(reached).any()):
        raise expected(
            "rounds", rounds, "rounds in which clients move a global update that is not zero"
        )
    labels = updates[kind].values
    names, cells = np.unique(labels, return_inverse=True)
    x = updates.sigma.transpose(*(d for d in DIMS if d != "slot")).values[:, :, :, None]
    fit = fit_linear(x, reached.values, cells)
    used = updates["round"].values
    coords = {"seed": updates.seed, "layer": updates.layer, kind: names}
    estimates = _labeled(fit, kind).assign_coords(coords)
    return Calibration(kind, cells, (int(used[0]), int(used[-1])), estimates)


def pure_suppression(calibration: Calibration) -> Calibration:
    """Return the calibration of clients that return what they received: g = 1, without spread."""
    moments = ("mean", "mean_covariance", "variance", "variance_covariance")
    certain = {name: xr.zeros_like(calibration.estimates[name]) for name in moments}
    certain["mean"] += xr.DataArray([1.0, 0.0], dims="moment")
    return replace(calibration, estimates=calibration.estimates.assign(certain))


def _labeled(fit: LinearFit, pool: str) -> xr.Dataset:
    dims = ("seed", "layer", pool)
    data = {
        "mean": ((*dims, "moment"), fit.mean),
        "mean_covariance": ((*dims, "moment", "other"), fit.mean_covariance),
        "variance": ((*dims, "moment"), fit.variance),
        "variance_covariance": ((*dims, "moment", "other"), fit.variance_covariance),
        "observations": (dims, fit.observations),
        "identified": (dims, fit.identified),
        "least": (dims, fit.least),
        "greatest": (dims, fit.greatest),
    }
    return xr.Dataset(data)


def _root(covariance: Array) -> Array:
    """Return the Cholesky factors of covariances (..., 2, 2), which may be zero or NaN."""
    first = np.sqrt(covariance[..., 0, 0])
    below = covariance[..., 1, 0] / np.where(first > 0, first, 1.0)
    rest = np.sqrt(np.maximum(covariance[..., 1, 1] - below**2, 0.0))
    zero = np.zeros_like(first)
    return np.stack([np.stack([first, zero], -1), np.stack([below, rest], -1)], -2)
