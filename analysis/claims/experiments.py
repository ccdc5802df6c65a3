"""Experiments that several claims share: a scenario and a rule in, one row per run out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.claim import Context, Experiment
from analysis.stats.series import log_linear_rate
from fedlora_sim import Scenario, simulate

Array = NDArray[np.float64]


def simulated(
    scenario: Scenario, rule: str, numbers: Sequence[int], context: Context
) -> xr.Dataset:
    """Runs of these numbers, on the context's device."""
    return simulate(
        scenario.replace(device=context.device),
        rule=rule,
        seed=context.seeds(numbers),
        on_progress=context.on_progress,
    )


def by_partition(values: xr.DataArray) -> xr.DataArray:
    """Mean over the directions of each partition, dimension `partition` last."""
    return values.groupby("partition").mean().transpose(..., "partition")


def fitted_rates(scenario: Scenario, rule: str) -> Experiment:
    """Energy factor per round of each partition, relative to the shared one, by log-linear fit."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        energy = by_partition(simulated(scenario, rule, numbers, context).energy)
        rates = log_linear_rate(energy.transpose("seed", "partition", "round").values)
        return rates[:, 1:] / rates[:, :1]

    return experiment


def energy_left(scenario: Scenario, rule: str, numbers: Sequence[int], context: Context) -> Array:
    """Final over initial energy of every partition, (n, M)."""
    energy = by_partition(simulated(scenario, rule, numbers, context).energy).values
    return np.asarray(energy[:, -1] / energy[:, 0])


def higher_energy_left(
    scenario: Scenario, rule: str, numbers: Sequence[int], context: Context
) -> Array:
    """The same without the shared partition."""
    return energy_left(scenario, rule, numbers, context)[:, 1:]


def energy_series(scenario: Scenario, rule: str) -> Experiment:
    """Energy of each partition at every round, the start included, (n, M, T + 1)."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        energy = by_partition(simulated(scenario, rule, numbers, context).energy)
        return energy.transpose("seed", "partition", "round").values

    return experiment


def relative_trajectory(scenario: Scenario, rule: str, predicted: Array) -> Experiment:
    """Energy of every partition at every round from the first on, over its prediction (T, M)."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        energy = by_partition(simulated(scenario, rule, numbers, context).energy)
        return (energy.values[:, 1:] / predicted).reshape(len(numbers), -1)

    return experiment
