"""Clients' updates on the singular directions at the start of the round, from a training run.

Row t of a training run holds `s_{k,i} = u_i^T dW_k v_i` on the singular vectors (U, V) of the
global update of row t-1, whose amplitudes are `sigma_i`. Singular vectors are numbered by their
amplitudes: two directions whose amplitudes cross exchange their numbers, and a direction may be
rotated in the next round. No direction is followed from round to round; what the basis loses is
`leakage`.
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
    """Return gains, leakage and weights of each client, round, layer and direction.

    A client carries the directions `i <= r_k`. It returns `reached = s` on them, or `sigma + s`
    under rules whose clients start every round with a fresh adapter (flora), so that gains always
    refer to the whole update. A direction whose amplitude is lost in rounding has no singular
    vectors and gets NaN.

    Args:
        dataset: a training run, dimensions (seed, round, layer, slot, direction).

    Returns:
        `sigma` (seed, round, layer, direction), the amplitude at the start of the round; `reached`
        and `gain = reached / sigma`, (seed, round, layer, slot, direction), NaN where the client
        does not carry the direction; `leakage`, the share of the update's energy outside the basis,
        and `leaked_energy`, (seed, round, layer, slot); `weight`, the client's share of the cohort,
        (seed, round, slot), zero where the slot is empty or its client was dropped.

    Raises:
        InputError: if a variable is missing; for an allocation other than `svd`, whose carried
            directions are not in the dataset.
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


def by_partition(energy: xr.DataArray) -> xr.DataArray:
    """Return the energies summed over the directions of each partition.

    `direction` becomes `partition`.

    Args:
        energy: labeled by `direction` with the coordinate `partition`; NaN propagates.
    """
    numbers = np.unique(energy.partition)
    parts = [
        energy.isel(direction=energy.partition.values == h).sum("direction", skipna=False)
        for h in numbers
    ]
    return xr.concat(parts, dim="partition").assign_coords(partition=numbers)


def amplitudes(dataset: xr.Dataset) -> xr.DataArray:
    """Return the amplitudes of the global update after each round, zero where lost in rounding."""
    return resolved(dataset.layer_energy, dataset) ** 0.5


def resolved(energy: xr.DataArray, dataset: xr.Dataset) -> xr.DataArray:
    """Return the energies, zero where the run's arithmetic does not resolve the amplitude."""
    return energy.where(energy > rounding_floor(energy, dataset), 0.0)


def rounding_floor(energy: xr.DataArray, dataset: xr.Dataset) -> xr.DataArray:
    """Return the energy below which a direction is rounding, relative to the largest one.

    Args:
        energy: labeled by `direction`.
        dataset: the run, which gives the dtype.

    Returns:
        Shape of `energy` without `direction`.
    """
    return energy_floor(str(dataset.attrs["dtype"])) * energy.max("direction")


def energy_floor(dtype: str) -> float:
    """Return the share of the largest direction's energy below which another's is rounding.

    Factorizations resolve amplitudes, whose squares are the energies.
    """
    return relative("factorization", dtype) ** 2


def slot_weights(dataset: xr.Dataset) -> xr.DataArray:
    """Return the share of each slot in its cohort, zero in rounds without an update."""
    present = (dataset.cohort >= 0) & ~dataset.dropped.astype(bool)
    return dataset.client_weight.where(present, 0.0).fillna(0.0)


def slot_ranks(dataset: xr.Dataset) -> xr.DataArray:
    """Return the rank of the client in each slot, (seed, round, slot); 0 if it is empty."""
    cohort = dataset.cohort.transpose("seed", "round", "slot")
    ranks = dataset.client_rank.transpose("seed", "round", "client").values
    numbers: NDArray[np.int64] = cohort.values.astype(np.int64)
    picked = np.take_along_axis(ranks, numbers.clip(min=0), axis=-1)
    return cohort.copy(data=np.where(numbers >= 0, picked, 0))


def rule_of(dataset: xr.Dataset) -> AggregationRule:
    """Return the server rule of a run."""
    return get_rule(dataset.attrs["rule"])


def check_has(dataset: xr.Dataset, names: tuple[str, ...]) -> None:
    """Refuse a dataset that lacks a variable.

    Raises:
        InputError: names the missing variables.
    """
    missing = [name for name in names if name not in dataset]
    if missing:
        raise expected("dataset", list(dataset.data_vars), f"a training run with {missing}")
