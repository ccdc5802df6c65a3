"""Energies of all directions over rounds: real factors, FedAvg beside raFLoRA."""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr

from analysis import closed_form
from analysis.claims.base import Context, simulated
from analysis.paper.recipe import Recipe, described, stacked
from fedlora_sim import Scenario, parse_ranks

RULES = ("fedavg", "raflora")
SCENARIO = Scenario(
    ranks=parse_ranks("4x5,8x5,16x5,32x5"), fidelity="matrix", rounds=20, spectrum_decay=0.96
)
RUNS = range(3)


def gather(context: Context, scenario: Scenario = SCENARIO, runs: range = RUNS) -> xr.Dataset:
    """Energies measured (mean of the runs) and predicted, (rule, round, direction).

    The prediction is made first, and takes nothing from the runs.
    """
    parts = {}
    for rule in RULES:
        predicted = closed_form.energy_trajectory(
            rule, scenario.ranks, scenario.rounds, initial_amplitude=scenario.initial_amplitudes
        )
        run = simulated(scenario, rule, runs, context)
        dims = ("round", "direction")
        values = {
            "predicted": (dims, predicted),
            "measured": (dims, run.energy.mean("seed").values),
        }
        parts[rule] = xr.Dataset(values, {name: run[name].values for name in dims})
    found = stacked(parts, "rule")
    federation = scenario.federation
    partition = np.repeat(range(1, len(federation.levels) + 1), np.diff([0, *federation.levels]))
    return found.assign_coords(
        partition=("direction", partition), coverage=("direction", federation.coverage())
    ).assign_attrs(described(scenario))


RECIPE = Recipe(
    name="spectrum",
    about="Energy of every direction of the global update over rounds, measured and predicted.",
    make=partial(gather),
    settings=described(SCENARIO) | {"rules": list(RULES)},
    units={
        "measured": "squared amplitude of the update",
        "predicted": "squared amplitude of the update",
        "rule": "name",
        "round": "rounds",
        "direction": "number, largest first",
        "partition": "number, shared by all clients first",
        "coverage": "share of the clients' weight",
    },
    runs=RUNS,
)
