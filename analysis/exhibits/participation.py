"""How participation splits the mean from the typical run: factors measured and predicted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claims.base import Context
from analysis.claims.participation import LONG_WALK, RANKS, log_energy
from analysis.stats.intervals import (
    Measurement,
    mapped,
    mean_interval,
    over_survivors,
    root_of_mean,
)
from fedlora_sim import Scenario

Array = NDArray[np.float64]

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 20)
FACTORS = ("mean energy", "typical surviving run", "survival")
RUNS, ROUNDS = 4_000, 4
ERROR = 0.05  # of each interval of the figure
TOP = -1  # the highest partition


def gather(context: Context) -> xr.Dataset:
    """Factors per round of the highest partition over the cohort's size, under FedAvg.

    Returns:
        `predicted` (factor, every_size), `measured`, `low` and `high` (factor, cohort_size), each
        interval at 95% on its own, and `log_energy` (run): natural logarithm of final over initial
        energy after `walk_rounds` rounds with `walk_cohort` clients, NaN where it is lost.
    """
    walk = log_energy(LONG_WALK, "fedavg", range(RUNS), context)[:, TOP]
    measured = [_measure(size, context) for size in SIZES]
    every = range(1, len(RANKS) + 1)
    coords = {"factor": list(FACTORS), "cohort_size": list(SIZES), "every_size": list(every)}
    attrs = {
        "seed": context.seed,
        "runs": RUNS,
        "coverage": closed_form.coverage(RANKS)[TOP],
        "walk_rounds": LONG_WALK.rounds,
        "walk_cohort": LONG_WALK.federation.max_cohort,
    }
    data = {
        "predicted": (("factor", "every_size"), np.stack([_predict(m) for m in every], axis=-1)),
        "log_energy": (("run",), walk),
    }
    for name in ("value", "low", "high"):
        values = np.array([[getattr(m, name)[0] for m in factors] for factors in measured])
        key = "measured" if name == "value" else name
        data[key] = (("factor", "cohort_size"), values.T)
    return xr.Dataset(data, coords, attrs)


def _predict(size: int) -> Array:
    forms: tuple[Callable[..., Array], ...] = (closed_form.energy_rate, closed_form.typical_rate)
    rates = [form("fedavg", RANKS, cohort_size=size)[TOP] for form in forms]
    return np.array([*rates, 1 - closed_form.extinction_probability(RANKS, size)[TOP]])


def _measure(size: int, context: Context) -> tuple[Measurement, ...]:
    """The three factors from runs of a few rounds, where the mean over runs still converges."""
    scenario = Scenario(ranks=RANKS, cohort_size=size, rounds=ROUNDS)
    walk = log_energy(scenario, "fedavg", range(RUNS), context)[:, TOP:]
    alive = (~np.isnan(walk)).astype(np.float64)
    energy = np.exp(np.where(alive > 0, walk, -np.inf))
    typical = mapped(over_survivors(mean_interval), np.exp)
    rate = root_of_mean(ROUNDS)
    return rate(energy, ERROR), typical(walk / ROUNDS, ERROR), rate(alive, ERROR)
