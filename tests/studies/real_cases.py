"""Training datasets of clients that follow the linear model exactly."""

from __future__ import annotations

import numpy as np
import xarray as xr

from fedlora_sim.datasets import direction_coords
from fedlora_sim.federation import cohort_slots, draw_cohorts
from fedlora_sim.randomness import stream
from fedlora_sim.scenario import Scenario

RANKS = "1x4,3x4"
LAW = {"gain_mean": 0.95, "gain_std": 0.2, "drift_mean": 0.05, "drift_std": 0.03}
EXACT = {"gain_mean": 1.0, "gain_std": 0.0, "drift_mean": 0.0, "drift_std": 0.0}


def scenario_of(ranks=RANKS, **changes) -> Scenario:
    options = {"fidelity": "training", "rounds": 12, "dtype": "float64", "empty_partition": "carry"}
    return Scenario(ranks, **{**options, **changes})


def linear_run(
    rule: str,
    scenario: Scenario | None = None,
    *,
    law=LAW,
    seeds: int = 1,
    layers: int = 2,
    start=None,
    base: int = 0,
) -> xr.Dataset:
    """Return runs under fedavg, raflora or flora, written out as the definitions have them."""
    scenario = scenario or scenario_of()
    fed = scenario.federation
    rng = stream(base, "real cases", rule)
    counts = np.stack([draw_cohorts(fed, scenario.rounds, rng) for _ in range(seeds)])
    slots, drawn = cohort_slots(counts, fed.max_cohort)
    weight = fed.cohort_weights(slots, drawn)
    weight = weight / weight.sum(-1, keepdims=True)
    held = fed.members[slots]
    x = np.empty((seeds, scenario.rounds + 1, layers, fed.r_max))
    x[:, 0] = 2.0 * 0.7 ** np.arange(fed.r_max) if start is None else start
    returned = np.full((*x.shape[:3], slots.shape[-1], fed.r_max), np.nan)
    for t in range(scenario.rounds):
        now, size = x[:, t, :, None], returned[:, 0].shape
        gain = law["gain_mean"] + law["gain_std"] * rng.standard_normal(size)
        drift = law["drift_mean"] + law["drift_std"] * rng.standard_normal(size)
        s = (gain * now + drift) * held[:, t, None]
        shares = weight[:, t, :, None] * held[:, t]
        if rule == "raflora":
            shares = shares / np.maximum(shares.sum(1, keepdims=True), np.finfo(float).tiny)
        if rule == "flora":
            s = (s - now) * held[:, t, None]
        average = (shares[:, None] * s).sum(2)
        nobody = (shares.sum(1) == 0)[:, None]
        kept = (rule == "flora") | (nobody & (rule == "raflora"))
        x[:, t + 1] = average + kept * x[:, t]
        returned[:, t + 1] = s * np.sign(now)  # a singular vector changes sign with its amplitude
    return dataset_of(rule, scenario, x, returned, np.where(drawn > 0, slots, -1), weight)


def dataset_of(rule, scenario, x, returned, slots, weight) -> xr.Dataset:
    """Label amplitudes (S, T+1, L, r_max) and returns (S, T+1, L, m, r_max) as a training run."""
    fed = scenario.federation
    seeds, rounds, layers, r_max = x.shape
    first = np.zeros((seeds, 1, slots.shape[-1]))
    cohort = np.concatenate([first.astype(int) - 1, slots], axis=1)
    there = (cohort >= 0)[:, :, None]
    update = np.where(there, np.square(returned).sum(-1), np.nan)
    levels = np.array(fed.levels)
    angle = np.zeros((seeds, rounds, layers, 2, len(levels), r_max))
    angle[..., levels[:, None] <= np.arange(r_max)] = np.nan
    angle[:, 0] = np.nan
    dims = ("seed", "round")
    coords = direction_coords(fed)
    coords["coverage"] = (("seed", "direction"), np.tile(coords["coverage"][1], (seeds, 1)))
    return xr.Dataset(
        {
            "energy": ((*dims, "direction"), (x**2).sum(2)),
            "layer_energy": ((*dims, "layer", "direction"), x**2),
            "client_rank": (
                (*dims, "client"),
                np.tile(np.array(fed.ranks), (seeds, rounds, 1)),
            ),
            "cohort": ((*dims, "slot"), cohort),
            "dropped": ((*dims, "slot"), np.zeros(cohort.shape, dtype=bool)),
            "amplitude": (
                (*dims, "layer", "slot", "direction"),
                np.where(there[..., None], returned, np.nan),
            ),
            "update_energy": ((*dims, "layer", "slot"), update),
            "client_preservation": (
                (*dims, "layer", "slot"),
                np.where(there, 1.0, np.nan * update),
            ),
            "client_weight": ((*dims, "slot"), np.concatenate([first, weight], axis=1)),
            "angle": ((*dims, "layer", "side", "level", "direction"), angle),
            "split_counts": (
                ("seed", "client", "class"),
                np.tile(np.array(fed.num_samples)[:, None], (seeds, 1, 1)),
            ),
        },
        coords={
            "seed": np.arange(seeds),
            "round": np.arange(rounds),
            "layer": [f"block{j}" for j in range(layers)],
            "side": ["left", "right"],
            "level": levels,
            **coords,
        },
        attrs={**scenario.to_attrs(), "rule": rule},
    )


def with_counterfactuals(run: xr.Dataset) -> xr.Dataset:
    """Add results of fedavg and raflora on the run's cohorts, in a fixed basis."""
    returned, weight = run.amplitude.fillna(0.0), run.client_weight
    ranks = run.client_rank.isel(seed=0, round=0, drop=True)
    held = run.direction <= ranks.isel(client=run.cohort.clip(min=0))
    total = (weight * held).sum("slot")
    average = (weight * returned).sum("slot")
    energies = [average**2, (average / total.where(total > 0)) ** 2]
    energy = xr.concat(energies, dim="compared_rule").assign_coords(
        compared_rule=["fedavg", "raflora"]
    )
    accuracy = energy.mean(("layer", "direction"))
    return run.assign(
        counterfactual_energy=energy.transpose(
            "seed", "round", "compared_rule", "layer", "direction"
        ),
        counterfactual_accuracy=accuracy.transpose("seed", "round", "compared_rule"),
    )
