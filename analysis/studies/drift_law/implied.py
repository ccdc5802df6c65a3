"""The drift that the rounds of a run imply, and what the law predicts from it.

A round maps the amplitude X of a partition, the root of its energy in one layer, to
`X' = mu (X + c)`, with mu the rule's multiplier for the coverage of the round's cohort.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.ledger import ledger
from fedlora_sim import Scenario
from fedlora_sim.tolerances import relative

Array = NDArray[np.float64]

# The law of one run: amplitudes, multipliers, and the drift that they imply

FIRST_UPDATE = 2
"""The first round starts from zero, where an amplitude and its multiplier say nothing."""


def drift_law(dataset: xr.Dataset) -> xr.Dataset:
    """Return the amplitudes of a run's partitions and the drift that each round implies.

    Args:
        dataset: a run with the account of its rounds, see `analysis.ledger`.

    Returns:
        `amplitude`, X after each round, the root of the partition's energy, in units of dW, and
        the ledger's `coverage` W, `multiplier` mu, `drift` c and `change`, all (seed, round, layer,
        partition), `change` also by term; all but the amplitude are NaN before the second round.
        `rate`, the learning rate relative to that of the first round, (round,).

    Raises:
        InputError: if the run lacks the account of its rounds.
    """
    known = ledger(dataset)
    later = known["round"] >= FIRST_UPDATE
    names = ("coverage", "multiplier", "drift", "change")
    measured = {name: known[name].where(later) for name in names}
    law = xr.Dataset({"amplitude": known.energy**0.5, **measured}, attrs=dataset.attrs)
    return law.assign(rate=_relative_rate(law))


def _relative_rate(law: xr.Dataset) -> xr.DataArray:
    """Return the learning rate of each round relative to the first one, (round,)."""
    schedule = str(law.attrs.get("learning_rate_schedule", "constant"))
    rounds = _rounds(law)
    scenario = Scenario((1,), rounds=rounds, local_loss="drift", learning_rate_schedule=schedule)
    scales = np.concatenate([[np.nan], scenario.training_scales])  # round 0 is the start
    return xr.DataArray(scales[law["round"].values], {"round": law["round"]}, ["round"])


# Quantities of one run. Layers are pooled: sums over layers follow the law as each layer does.


def early(law: xr.Dataset) -> xr.Dataset:
    """Return the first third of the rounds, without the first one."""
    return law.sel(round=slice(FIRST_UPDATE, max(FIRST_UPDATE, _rounds(law) // 3)))


def middle(law: xr.Dataset) -> xr.Dataset:
    """Return the rounds between the first and the last third."""
    return law.sel(round=slice(int(early(law)["round"][-1]) + 1, int(late(law)["round"][0]) - 1))


def late(law: xr.Dataset) -> xr.Dataset:
    """Return the last third of the rounds."""
    return law.sel(round=slice(_rounds(law) - max(_rounds(law) // 3, 1) + 1, None))


def _rounds(law: xr.Dataset) -> int:
    return int(law["round"][-1])


def pooled(values: xr.DataArray) -> Array:
    """Return the mean over rounds and layers of each partition of one run, (M,)."""
    mean = values.isel(seed=0).mean(["round", "layer"])
    return np.asarray(mean.transpose("partition").values, dtype=np.float64)


def drift_of(part: xr.Dataset) -> Array:
    """Return c of some rounds of one run, (M,): `sum (X' - I) / sum mu` over rounds and layers.

    I is the ledger's idle amplitude, mu X without a base correction. This is the mean of the
    ledger's drift weighted by mu. It is unbiased under `X' = mu (X + c) + noise`, as the plain mean
    is, but the plain mean divides the noise by mu, and rounds of small coverage dominate it.

    Args:
        part: some rounds of the law of one run. Those without a carrier have no drift.
    """
    weight = part.multiplier.where(part.drift.notnull())
    return np.asarray(pooled(weight * part.drift) / pooled(weight))


def early_drift(law: xr.Dataset) -> Array:
    """Return c of the early rounds, (M,)."""
    return drift_of(early(law))


def steadiness(law: xr.Dataset) -> Array:
    """Return the drift of the late rounds over that of the early ones, (M,); 1 if c is constant."""
    return np.asarray(drift_of(late(law)) / early_drift(law))


def floor_of(multiplier: Array, drift: Array) -> Array:
    """Return `mu c / (1 - mu)`; NaN where mu is 1 to rounding, without a floor."""
    left = 1 - multiplier
    settles = left > relative("reduction")
    return np.where(settles, multiplier * drift / np.where(settles, left, 1.0), np.nan)


def floor_ratio(law: xr.Dataset, factor: Callable[[Array], Array] = lambda mu: mu) -> Array:
    """Return the late amplitudes over the floor of the early drift, (M,); 1 under the law.

    The floor of a constant multiplier is `mu c / (1 - mu)`. For the multipliers of the actual
    cohorts it is the late mean of `Y' = mu_t (Y + c)`, which starts from `mean(mu) c / (1 -
    mean(mu))` after the early rounds: the same in expectation, without the chance of the cohorts.

    Args:
        law: the law of one run.
        factor: replaces the multipliers, for a control.
    """
    one = law.isel(seed=0)
    own = one.multiplier.mean("layer").transpose("round", "partition").values
    mu = np.asarray(factor(own), dtype=np.float64)
    drift = early_drift(law)
    floor = floor_of(np.nanmean(mu, axis=0), drift)
    known = dict(zip(one["round"].values.tolist(), mu, strict=True))
    kept, wanted = [], set(late(law)["round"].values.tolist())
    for t in range(int(early(law)["round"][-1]) + 1, _rounds(law) + 1):
        floor = known[t] * (floor + drift)
        kept += [floor] if t in wanted else []
    # Infinite where no client of the late cohorts carries the partition: its floor is zero.
    with np.errstate(divide="ignore"):
        return np.asarray(pooled(late(law).amplitude) / np.mean(kept, axis=0))


def curvature(law: xr.Dataset, power: float = 1.0) -> Array:
    """Return the curvature of the amplitude over the rounds, (M,).

    The coefficient of the second Legendre polynomial over that of the first, fitted to rounds 1 to
    T: 0 for a line, 1/3 for a square, -0.24 for a root.

    Args:
        law: the law of one run.
        power: the amplitude is raised to it first, for a control.
    """
    path = law.amplitude.isel(seed=0).mean("layer").transpose("round", "partition").values[1:]
    time = np.linspace(-1.0, 1.0, len(path))
    fitted = np.polynomial.legendre.legfit(time, path**power, 2)
    return np.asarray(fitted[2] / fitted[1])
