"""Random allocation against SVD allocation: what each keeps of every partition's energy."""

from __future__ import annotations

import numpy as np
import xarray as xr

from analysis import closed_form
from analysis.claims.allocation import SVD
from analysis.claims.base import Context, simulated
from analysis.paper.recipe import Recipe, described, stacked
from analysis.stats.intervals import mean_interval

ROUNDS = 8
ALLOCATIONS = ("svd", "random")
RUNS = range(4_000)
CONFIDENCE = 0.95  # of each interval for itself
SCENARIO = SVD.replace(rounds=ROUNDS)
WHOLE = 0
"""Number of the part that is the whole update."""


def gather(context: Context, runs: range = RUNS) -> xr.Dataset:
    """Mean energy left under FedAvg, over that at the start, of every partition and of the whole.

    Returns:
        `predicted`, `measured`, `low`, `high` (allocation, part, round); part 0 is the whole
        update, the others are the partitions.
    """
    found = stacked({name: _of(name, runs, context) for name in ALLOCATIONS}, "allocation")
    levels = [0, *SCENARIO.federation.levels]
    return found.assign_coords(level=("part", np.array(levels))).assign_attrs(
        described(SCENARIO), confidence=CONFIDENCE
    )


def _of(allocation: str, runs: range, context: Context) -> xr.Dataset:
    scenario = SCENARIO.replace(allocation=allocation)
    predicted = closed_form.energy_trajectory(
        "fedavg",
        scenario.ranks,
        scenario.rounds,
        initial_amplitude=scenario.initial_amplitudes,
        allocation=allocation,
    )
    left = _left(simulated(scenario, "fedavg", runs, context).energy.values)
    flat = left.reshape(len(left), -1)
    m = mean_interval(flat, (1 - CONFIDENCE) * flat.shape[1])
    values = {"predicted": _left(predicted), "measured": m.value, "low": m.low, "high": m.high}
    shape, dims = left.shape[1:], ("round", "part")
    return xr.Dataset(
        {name: (dims, value.reshape(shape)) for name, value in values.items()},
        {"round": np.arange(shape[0]), "part": np.arange(shape[1])},
    )


def _left(energy: np.ndarray) -> np.ndarray:
    """Energies (..., round, direction) to what is left of the whole and of each partition."""
    parts = [energy.sum(-1)]
    parts += [energy[..., part].sum(-1) for part in SCENARIO.federation.partitions]
    stack = np.stack(parts, axis=-1)
    return np.asarray(stack / stack[..., :1, :])


LEFT = "share of the energy at the start"
RECIPE = Recipe(
    name="allocation",
    about="Energy left under FedAvg with SVD and with random rank allocation.",
    make=gather,
    settings=described(SCENARIO) | {"allocations": list(ALLOCATIONS)},
    units={
        **dict.fromkeys(("predicted", "measured", "low", "high"), LEFT),
        "allocation": "name",
        "round": "rounds",
        "part": "0: the whole update; else number of the partition",
        "level": "highest direction of the partition",
    },
    runs=RUNS,
)
