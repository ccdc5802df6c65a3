"""Datasets that figures are drawn from: runs beside their predictions."""

from __future__ import annotations

import numpy as np
import xarray as xr

from analysis import closed_form
from analysis.claims.base import Context
from fedlora_sim import Scenario, parse_ranks, simulate

RULES = ("fedavg", "zero_pad", "raflora")
ENERGIES = Scenario(
    ranks=parse_ranks("4x8,8x6,16x4"), fidelity="matrix", rounds=12, spectrum_decay=0.88
)
ENERGY_RUNS = 3


def gather(context: Context) -> xr.Dataset:
    """Energies over rounds under three rules with a closed form, at matrix fidelity, beside it.

    Returns:
        Dimensions (rule, seed, round, direction); `predicted_energy` (rule, round, direction).
    """
    scenario, runs = ENERGIES.replace(device=context.device), []
    for rule in RULES:
        run = simulate(scenario, rule=rule, seed=context.seeds(range(ENERGY_RUNS)))
        predicted = closed_form.energy_trajectory(
            rule, ENERGIES.ranks, ENERGIES.rounds, initial_amplitude=ENERGIES.initial_amplitudes
        )
        run["predicted_energy"] = (("round", "direction"), np.asarray(predicted))
        runs.append(run.expand_dims(rule=[rule]))
    return xr.concat(runs, dim="rule", combine_attrs="drop_conflicts")
