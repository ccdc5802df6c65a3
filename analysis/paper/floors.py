"""Floors over heterogeneity: the energy at which drift holds every partition."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from analysis import closed_form
from analysis.claims.base import (
    Context,
    client_arguments,
    energy_series,
    federation_arguments,
    per_partition,
)
from analysis.claims.rates import BURN_IN, NON_IID
from analysis.paper.recipe import Recipe, described, stacked
from analysis.stats.series import stationary_mean
from fedlora_sim import Scenario

RULES = ("fedavg", "raflora")
FINE = np.linspace(0.0, 0.7, 71)
SPREADS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
RUNS = range(1_000)
CONFIDENCE = 0.95  # of each interval for itself


def gather(
    context: Context, spreads: tuple[float, ...] = SPREADS, runs: range = RUNS
) -> xr.Dataset:
    """Stationary energies over the spread of the clients' gains.

    Returns:
        `predicted` (rule, gain_std, partition); `measured`, `low`, `high` (rule, measured_std,
        partition).
    """
    predicted = stacked({rule: _predicted(rule) for rule in RULES}, "rule")
    measured = stacked({rule: _measured(rule, spreads, runs, context) for rule in RULES}, "rule")
    level = ("partition", np.array(NON_IID.federation.levels))
    attrs = described(NON_IID) | {"burn_in": BURN_IN, "confidence": CONFIDENCE}
    attrs.pop("gain_std")  # it is what varies
    return xr.merge([predicted, measured]).assign_coords(level=level).assign_attrs(attrs)


def _scenario(spread: float) -> Scenario:
    return NON_IID.replace(gain_std=spread)


def _predicted(rule: str) -> xr.Dataset:
    floors = []
    for spread in FINE:
        scenario = _scenario(float(spread))
        arguments: dict[str, Any] = client_arguments(scenario) | federation_arguments(scenario)
        floor = closed_form.energy_floor(rule, scenario.ranks, **arguments)
        floors.append(per_partition(floor, scenario))
    dims = ("gain_std", "partition")
    return xr.Dataset({"predicted": (dims, np.array(floors))}, _coords("gain_std", FINE))


def _measured(rule: str, spreads: tuple[float, ...], runs: range, context: Context) -> xr.Dataset:
    rows = []
    for spread in spreads:
        samples = energy_series(_scenario(spread), rule)(runs, context)
        m = stationary_mean(BURN_IN)(samples, (1 - CONFIDENCE) * samples.shape[1])
        rows.append((m.value, m.low, m.high))
    values = np.array(rows).transpose(1, 0, 2)
    dims = ("measured_std", "partition")
    data = {n: (dims, v) for n, v in zip(("measured", "low", "high"), values, strict=True)}
    return xr.Dataset(data, _coords("measured_std", np.array(spreads)))


def _coords(name: str, values: np.ndarray) -> dict[str, Any]:
    return {name: values, "partition": np.arange(1, len(NON_IID.federation.levels) + 1)}


ENERGY = "squared amplitude of the update"
RECIPE = Recipe(
    name="floors",
    about="Stationary energy of every partition over the spread of the clients' gains.",
    make=gather,
    settings=described(NON_IID) | {"gain_std": list(SPREADS), "burn_in": BURN_IN},
    units={
        **dict.fromkeys(("predicted", "measured", "low", "high"), ENERGY),
        "rule": "name",
        "gain_std": "deviation of a client's gain, predicted",
        "measured_std": "deviation of a client's gain, measured",
        "partition": "number, shared by all clients first",
        "level": "highest direction of the partition",
    },
    runs=RUNS,
)
