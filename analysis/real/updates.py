"""What every client's update does on the singular directions that it started from.

Row t of a training run holds `s_{k,i} = u_i^T dW_k v_i` on the singular vectors (U, V) of the
global update of row t-1, whose amplitudes are `sigma_i`. In the linear model `s = a sigma + b`.
Singular vectors are in the order of their amplitudes and have no other name: two directions whose
amplitudes cross change their numbers, and a direction of one round may be turned in the next.
Nothing here follows a direction from round to round; what the basis loses is `leakage`.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fedlora_sim.errors import expected
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.tolerances import relative

UPDATES = (
    "layer_energy",
    "client_rank",
    "cohort",
    "dropped",
    "amplitude",
    "update_energy",
    "client_preservation",
    "client_weight",
)
"""Variables of a training dataset that describe its clients' updates."""

DIMS = ("seed", "round", "layer", "slot", "direction")


def describe_updates(dataset: xr.Dataset) -> xr.Dataset:
    """Gains, leakage and weights of every client, round, layer and direction.

    A client holds the directions `i <= r_k`. What it returns on them is `reached = s`, or
    `sigma + s` under rules whose clients start every round with a fresh adapter beside the whole
    update (flora): gains are those of the whole update under every rule. A direction whose
    amplitude is lost in rounding has no singular vectors, and nothing is said of it.

    Args:
        dataset: a training run, dimensions (seed, round, layer, slot, direction).

    Returns:
        `sigma` (seed, round, layer, direction), the amplitude that the round starts from; `reached`
        and `gain = reached / sigma`, (seed, round, layer, slot, direction), NaN where the client
        does not hold the direction; `leakage`, the share of the update's energy outside the basis,
        and `leaked_energy`, (seed, round, layer, slot); `weight`, the client's share of the cohort,
        (seed, round, slot), zero where the slot is empty or its client was dropped.

    Raises:
        ValueError: if a variable is missing; on an allocation other than `svd`, whose held
            directions the dataset does not tell.
    """
    check_has(dataset, UPDATES)
    allocation = dataset.attrs.get("allocation", "svd")
    if allocation != "svd":
        raise expected("allocation", allocation, "svd: of others it is not known who holds what")
    weight = slot_weights(dataset)
    sigma = amplitudes(dataset).shift(round=1)
    held = (dataset.direction <= slot_ranks(dataset)) & (weight > 0) & (sigma > 0)
    reached = dataset.amplitude.where(held)
    if rule_of(dataset).space == "none":
        reached = reached + sigma
    leakage = (1 - dataset.client_preservation).clip(min=0).where(weight > 0)
    return xr.Dataset(
        {
            "sigma": sigma,
            "reached": reached.transpose(*DIMS),
            "gain": (reached / sigma).transpose(*DIMS),
            "leakage": leakage.transpose(*DIMS[:-1]),
            "leaked_energy": (leakage * dataset.update_energy).transpose(*DIMS[:-1]),
            "weight": weight,
        },
        attrs=dataset.attrs,
    )


def drifts(updates: xr.Dataset, gain_mean: xr.DataArray | float) -> xr.DataArray:
    """What clients return beyond the mean gain, `reached - g sigma`.

    Args:
        updates: what `describe_updates` returns.
        gain_mean: g, a number or labelled by any of (seed, layer, direction).

    Returns:
        In units of dW, (seed, round, layer, slot, direction), NaN where nothing is held.
    """
    return (updates.reached - gain_mean * updates.sigma).transpose(*DIMS)


def mean_leakage(updates: xr.Dataset) -> xr.DataArray:
    """Leakage of a round's cohort, each client by its weight, (seed, round, layer)."""
    return updates.leakage.weighted(updates.weight).mean("slot")


def by_partition(energy: xr.DataArray) -> xr.DataArray:
    """Energies summed over the directions of every partition; `direction` becomes `partition`.

    Args:
        energy: labelled by `direction`, which carries the coordinate `partition`; NaN counts.
    """
    numbers = np.unique(energy.partition)
    parts = [
        energy.isel(direction=energy.partition.values == h).sum("direction", skipna=False)
        for h in numbers
    ]
    return xr.concat(parts, dim="partition").assign_coords(partition=numbers)


def amplitudes(dataset: xr.Dataset) -> xr.DataArray:
    """Amplitudes of the global update after every round, zero where they are lost in rounding."""
    return resolved(dataset.layer_energy, dataset) ** 0.5


def resolved(energy: xr.DataArray, dataset: xr.Dataset) -> xr.DataArray:
    """Energies, zero where the amplitude is below what the run's arithmetic resolves."""
    return energy.where(energy > rounding_floor(energy, dataset), 0.0)


def rounding_floor(energy: xr.DataArray, dataset: xr.Dataset) -> xr.DataArray:
    """Energy below which a direction is rounding, which goes by the largest singular value.

    Args:
        energy: labelled by `direction`.
        dataset: the run, whose dtype it is.

    Returns:
        Shape of `energy` without `direction`.
    """
    return energy_floor(str(dataset.attrs["dtype"])) * energy.max("direction")


def energy_floor(dtype: str) -> float:
    """Share of the largest direction's energy below which another's is rounding.

    Factorizations resolve amplitudes, and energies are their squares.
    """
    return relative("factorization", dtype) ** 2


def slot_weights(dataset: xr.Dataset) -> xr.DataArray:
    """Share of every slot in its cohort, zero where nobody returned anything."""
    present = (dataset.cohort >= 0) & ~dataset.dropped.astype(bool)
    return dataset.client_weight.where(present, 0.0).fillna(0.0)


def slot_ranks(dataset: xr.Dataset) -> xr.DataArray:
    """Rank of the client in every slot, (seed, round, slot); 0 where it is empty."""
    cohort = dataset.cohort.transpose("seed", "round", "slot")
    ranks = dataset.client_rank.transpose("seed", "round", "client").values
    numbers: NDArray[np.int64] = cohort.values.astype(np.int64)
    picked = np.take_along_axis(ranks, numbers.clip(min=0), axis=-1)
    return cohort.copy(data=np.where(numbers >= 0, picked, 0))


def rule_of(dataset: xr.Dataset) -> AggregationRule:
    """The server rule of a run."""
    return get_rule(dataset.attrs["rule"])


def check_has(dataset: xr.Dataset, names: tuple[str, ...]) -> None:
    """Refuse a dataset that lacks a variable.

    Raises:
        ValueError: naming what is missing.
    """
    missing = [name for name in names if name not in dataset]
    if missing:
        raise expected("dataset", list(dataset.data_vars), f"a training run with {missing}")
