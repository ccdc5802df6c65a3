"""Gains and drifts of a run's clients, estimated from its first rounds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from analysis.real.least_squares import LinearFit, fit_linear
from analysis.real.updates import DIMS, describe_updates
from fedlora_sim.errors import check_choice, check_share, expected

Array = NDArray[np.float64]

POOLS = ("partition", "direction")
MOMENTS = {"gain": 0, "drift": 1}


@dataclass(frozen=True, eq=False)
class Draws:
    """Gains and drifts as they may be, given their estimates; each (samples, layer, direction).

    Args:
        gain_mean, gain_std: g and nu.
        drift_mean, drift_std: c and tau, in units of dW.
    """

    gain_mean: Array
    gain_std: Array
    drift_mean: Array
    drift_std: Array


@dataclass(frozen=True, eq=False)
class Calibration:
    """Law of what clients return, `s = a sigma + b`, per run, layer and pool of directions.

    Args:
        pool: which directions share a law, `partition` or `direction`.
        cells: pool of every direction, (r_max,), from 0.
        rounds: first and last round whose updates were used.
        estimates: `mean` (seed, layer, pool, moment): g and c; `variance`: nu^2 and tau^2;
            `mean_covariance` and `variance_covariance` (seed, layer, pool, moment, other) of their
            estimates; `observations`, `identified`, `least` and `greatest` amplitude that was met,
            (seed, layer, pool). The pool's dimension is called as it is; NaN where a pool has fewer
            than two observations. Where not `identified`, amplitudes spread too little to tell gain
            from drift, and c = tau = 0.
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
        """Whether amplitudes spread enough to tell gain from drift; if not, c = tau = 0."""
        return self.estimates.identified

    @property
    def observations(self) -> xr.DataArray:
        """How many (round, client, direction) each estimate rests on."""
        return self.estimates.observations

    def standard_error(self, quantity: str) -> xr.DataArray:
        """Standard error of an estimate; of a deviation by the delta method, NaN where it is 0.

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
        """Confidence interval of an estimate, for many observations; new dimension `end`.

        Means have Student's; a deviation has the root of its variance's, which may begin at 0.

        Args:
            quantity: `gain_mean`, `gain_std`, `drift_mean` or `drift_std`.
            confidence: of each interval for itself, in (0, 1).
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
        """The calibration of one run, without the dimension `seed`."""
        return replace(self, estimates=self.estimates.sel(seed=seed))

    def per_direction(self, values: xr.DataArray) -> xr.DataArray:
        """Values of the pools, one for every direction: `direction` in place of the pool."""
        spread = values.isel({self.pool: xr.DataArray(self.cells, dims="direction")})
        directions = np.arange(1, len(self.cells) + 1)
        return spread.drop_vars("partition", errors="ignore").assign_coords(direction=directions)

    def draw(self, samples: int, rng: np.random.Generator | None) -> Draws:
        """Draw laws from the sampling distribution of one run's estimates.

        Estimates are normal for many observations; variances are cut off at 0.

        Args:
            samples: how many.
            rng: source of randomness; None takes the estimates themselves, every time.

        Returns:
            Draws that are common to the directions of a pool.
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
    pool's directions; see `analysis.real.least_squares`. Observations count as independent: what
    lasts in a client, or turns with the basis, makes the standard errors too small. A residual is
    part of the next amplitude, which biases the gain towards less and the drift towards more where
    amplitudes move by noise more than of themselves, and no estimate holds far from the amplitudes
    that it was made at: `least` and `greatest` say where that is.

    Args:
        dataset: a training run.
        rounds: labels of the rounds whose updates are used, both ends included as in xarray;
            round t sets out from the amplitudes of round t-1.
        pool: directions that share a law: those of a `partition`, or each `direction` alone.

    Returns:
        One law per run (seed), layer and pool.

    Raises:
        ValueError: on a dataset without the clients' amplitudes, an unknown pool, or rounds in
            which no client returns anything on a direction that is there.

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
    estimates = _labelled(fit, kind).assign_coords(coords)
    return Calibration(kind, cells, (int(used[0]), int(used[-1])), estimates)


def pure_suppression(calibration: Calibration) -> Calibration:
    """The same calibration with clients who return what they were given: g = 1, and no spread."""
    moments = ("mean", "mean_covariance", "variance", "variance_covariance")
    certain = {name: xr.zeros_like(calibration.estimates[name]) for name in moments}
    certain["mean"] += xr.DataArray([1.0, 0.0], dims="moment")
    return replace(calibration, estimates=calibration.estimates.assign(certain))


def _labelled(fit: LinearFit, pool: str) -> xr.Dataset:
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
    """Cholesky factors of covariances (..., 2, 2), which may be zero or NaN."""
    first = np.sqrt(covariance[..., 0, 0])
    below = covariance[..., 1, 0] / np.where(first > 0, first, 1.0)
    rest = np.sqrt(np.maximum(covariance[..., 1, 1] - below**2, 0.0))
    zero = np.zeros_like(first)
    return np.stack([np.stack([first, zero], -1), np.stack([below, rest], -1)], -2)
