"""Energy above the lowest rank over rounds for every rule, beside the bound of the theory."""

from __future__ import annotations

import numpy as np
import xarray as xr

from analysis import closed_form
from analysis.claims.base import Context, simulated
from analysis.paper.recipe import Recipe, described, stacked
from fedlora_sim import Scenario, parse_ranks

RULES = ("zero_pad", "hetlora", "ffa", "fedavg", "fedex", "rbla", "flora", "raflora")
SCENARIO = Scenario(
    ranks=parse_ranks("4x5,8x5,16x5,32x5"), fidelity="matrix", rounds=20, spectrum_decay=0.9
)
RUNS = range(3)


def gather(context: Context, scenario: Scenario = SCENARIO, runs: range = RUNS) -> xr.Dataset:
    """`1 - rho` of every rule, predicted and measured (mean of the runs), and the bound.

    Returns:
        `predicted`, `measured` (rule, round), `bound` (round).
    """
    energy = scenario.initial_amplitudes**2
    bound = closed_form.collapse_bound(scenario.ranks, scenario.rounds, initial_energy=energy)
    found = stacked({rule: _of(rule, scenario, runs, context) for rule in RULES}, "rule")
    gamma = float(bound[1] / bound[0])
    return found.assign(bound=("round", bound)).assign_attrs(
        described(scenario),
        gamma=gamma,
        constant=float(bound[0]),
        level=scenario.federation.levels[0],
    )


def _of(rule: str, scenario: Scenario, runs: range, context: Context) -> xr.Dataset:
    predicted = closed_form.energy_trajectory(
        rule, scenario.ranks, scenario.rounds, initial_amplitude=scenario.initial_amplitudes
    )
    measured = simulated(scenario, rule, runs, context).energy.values
    lowest = scenario.federation.levels[0]
    values = {
        "predicted": ("round", _above(predicted, lowest)),
        "measured": ("round", _above(measured, lowest).mean(0)),
    }
    return xr.Dataset(values, {"round": np.arange(scenario.rounds + 1)})


def _above(energy: np.ndarray, level: int) -> np.ndarray:
    """Share of the energy above a rank, summed as such: 1 less the rest would lose its digits."""
    return np.asarray(energy[..., level:].sum(-1) / energy.sum(-1))


SHARE = "share of the energy above the lowest rank"
RECIPE = Recipe(
    name="energy_ratio",
    about="Share of the energy above the lowest rank, 1 - rho, over rounds under every rule.",
    make=gather,
    settings=described(SCENARIO) | {"rules": list(RULES)},
    units={
        **dict.fromkeys(("predicted", "measured", "bound"), SHARE),
        "rule": "name",
        "round": "rounds",
    },
    runs=RUNS,
)
