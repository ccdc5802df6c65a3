"""What other rules would have made of the same trained cohort, in one step."""

from __future__ import annotations

import xarray as xr

from analysis.real.updates import (
    by_partition,
    check_has,
    resolved,
    slot_ranks,
    slot_weights,
)
from fedlora_sim.errors import check_choice

COUNTERFACTUALS = ("counterfactual_energy", "counterfactual_accuracy")


def one_step_energy(dataset: xr.Dataset) -> xr.DataArray:
    """Energy that each rule would have left in every partition.

    Args:
        dataset: a training run with counterfactuals.

    Returns:
        (seed, round, compared_rule, layer, partition).

    Raises:
        ValueError: if it has none.
    """
    check_has(dataset, COUNTERFACTUALS)
    energy = dataset.counterfactual_energy
    return by_partition(resolved(energy, dataset)).transpose(
        "seed", "round", "compared_rule", "layer", "partition"
    )


def relative_to_rule(dataset: xr.Dataset, reference: str = "raflora") -> xr.DataArray:
    """One-step energies over the reference rule's, layers together.

    Args:
        dataset: a training run with counterfactuals.
        reference: a rule of the dataset.

    Returns:
        Ratios (seed, round, compared_rule, partition); NaN where the reference leaves nothing.

    Raises:
        ValueError: if the dataset lacks counterfactuals, or the reference among them.
    """
    energy = one_step_energy(dataset).sum("layer")
    base = energy.sel(compared_rule=_rule(dataset, reference), drop=True)
    return energy / base.where(base > 0)


def accuracy_gain(dataset: xr.Dataset, reference: str = "raflora") -> xr.DataArray:
    """One-step accuracy above the reference rule's.

    Args:
        dataset: a training run with counterfactuals.
        reference: a rule of the dataset.

    Returns:
        (seed, round, compared_rule); NaN in rounds that were not evaluated.

    Raises:
        ValueError: if the dataset lacks counterfactuals, or the reference among them.
    """
    check_has(dataset, COUNTERFACTUALS)
    accuracy = dataset.counterfactual_accuracy
    return accuracy - accuracy.sel(compared_rule=_rule(dataset, reference), drop=True)


def coverage_shares(dataset: xr.Dataset) -> xr.DataArray:
    """Weight `W_h(S)` of those who hold each partition in the round's cohort.

    Partition h of raFLoRA *is* that of product-space FedAvg divided by `W_h(S)`, as sums of
    columns, with no assumption on the basis. Energies follow it, as `W_h(S)^2`, exactly where the
    partitions' columns are orthogonal, so that each is a singular subspace of its own; what is left
    is how much partitions overlap.

    Args:
        dataset: a training run.

    Returns:
        (seed, round, partition), in [0, 1].

    Reference:
        Wu et al., arXiv 2602.13486, Eq. 8.
    """
    weight, rank = slot_weights(dataset), slot_ranks(dataset)
    last = dataset.direction.groupby(dataset.partition).max()
    return weight.where(rank >= last, 0.0).sum("slot")


def _rule(dataset: xr.Dataset, name: str) -> str:
    return check_choice(
        "reference", name, [str(label) for label in dataset["compared_rule"].values]
    )
