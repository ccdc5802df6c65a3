"""Labeled datasets: convert result arrays to `xarray.Dataset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fedlora_sim.federation import Federation
from fedlora_sim.metrics import effective_rank, energy_ratio
from fedlora_sim.scenario import Scenario
from fedlora_sim.version import versions

DIMS = ("seed", "round", "direction")

ACCOUNT = (
    "round_coverage",
    "round_multiplier",
    "idle_amplitude",
    "trained_amplitude",
    "server_amplitude",
)
"""Variables from which `analysis.ledger` accounts for each round; see `fedlora_sim.account`."""

LABELS = {
    "round_coverage": ("weight share of the round's clients that carry the direction", "1"),
    "round_multiplier": ("declared multiplier of the direction in the round", "1"),
    "idle_amplitude": (
        "declared amplitude after the round, had no client trained",
        "amplitude of dW",
    ),
    "trained_amplitude": ("declared amplitude after the round, as trained", "amplitude of dW"),
    "server_amplitude": ("new update on the old direction, u_i^T G' v_i", "amplitude of dW"),
    "energy": ("energy of the direction, sigma_i**2", "squared amplitude of dW"),
    "projected_energy": (
        "energy on the initial basis, (u_i^T dW v_i)**2",
        "squared amplitude of dW",
    ),
    "layer_energy": ("energy of the direction, per layer", "squared amplitude of dW"),
    "rho": ("energy ratio rho at the lowest rank level l_1", "1"),
    "effective_rank": ("effective rank (Roy and Vetterli 2007)", "directions"),
    "accuracy": ("test accuracy of the global model", "1"),
    "loss": ("test loss of the global model", "nat"),
    "client_rank": ("LoRA rank of the client", "1"),
    "preservation": ("direction-preservation index, mean over the cohort", "1"),
    "client_preservation": ("direction-preservation index of the client's update", "1"),
    "amplitude": ("client's update on the global basis, u_i^T dW_k v_i", "amplitude of dW"),
    "update_energy": ("energy of the client's update, ||dW_k||_F**2", "squared amplitude of dW"),
    "angle": ("principal angle between leading subspaces, to the round before", "rad"),
    "cohort": ("client in the slot of the cohort, -1 for none", "1"),
    "dropped": ("whether the client's update was not finite and left out", "1"),
    "client_weight": ("share of the client in the average", "1"),
    "counterfactual_energy": (
        "energy of the direction had the other rule aggregated the same cohort",
        "squared amplitude of dW",
    ),
    "counterfactual_accuracy": ("test accuracy had the other rule aggregated", "1"),
    "split_counts": ("samples of the client and class", "samples"),
}


def build_dataset(
    scenario: Scenario,
    rule: str,
    seeds: Sequence[int],
    energy: NDArray[np.float64],
    extra: Mapping[str, tuple[tuple[str, ...], NDArray[Any]]] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Label a run's energies and derive its energy ratio and effective rank.

    Args:
        scenario: the simulated scenario; becomes the attributes.
        rule: name of the server rule.
        seeds: the S seeds.
        energy: (S, T + 1, r_max), non-negative; round 0 is the initial state.
        extra: further variables by name, as (dims, values).
        coords: further coordinates.

    Returns:
        Dataset with dimensions (seed, round, direction). Directions count from 1, as in the paper,
            and
        have their partition and coverage as coordinates; attributes hold the full configuration.
    """
    federation = scenario.federation
    level = federation.levels[0]
    data = {
        "energy": (DIMS, energy),
        "rho": (DIMS[:2], energy_ratio(energy, level)),
        "effective_rank": (DIMS[:2], effective_rank(energy)),
        **(extra or {}),
    }
    variables = {
        name: xr.Variable(dims, values, {"long_name": LABELS[name][0], "units": LABELS[name][1]})
        for name, (dims, values) in data.items()
    }
    return xr.Dataset(
        variables,
        coords={
            "seed": np.asarray(seeds, dtype=np.int64),
            "round": np.arange(energy.shape[1]),
            **direction_coords(federation, scenario.allocation),
            **(coords or {}),
        },
        attrs={**scenario.to_attrs(), "rule": rule, **versions(), "rho_level": level},
    )


def direction_coords(federation: Federation, allocation: str = "svd") -> dict[str, Any]:
    """Return coordinates of the direction axis: number from 1, partition from 1, and coverage."""
    directions = np.arange(1, federation.r_max + 1)
    partition = np.searchsorted(federation.levels, directions) + 1
    return {
        "direction": directions,
        "partition": ("direction", partition),
        "coverage": ("direction", federation.coverage(allocation)),
    }
