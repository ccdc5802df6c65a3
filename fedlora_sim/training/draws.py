"""The random draws of a training run besides cohorts and batches: split, initial A, masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlora_sim.randomness import stream
from fedlora_sim.scenario import Scenario
from fedlora_sim.splits import (
    dirichlet_split,
    iid_split,
    pathological_split,
    quantity_split,
    writer_split,
)
from fedlora_sim.tasks.examples import Examples


def split_clients(scenario: Scenario, examples: Examples, seed: int) -> list[np.ndarray]:
    """Sample indices of every client."""
    rng, clients = stream(seed, "split"), len(scenario.ranks)
    if scenario.split == "dirichlet":
        return dirichlet_split(examples.skew_classes, clients, scenario.dirichlet_alpha, rng)
    if scenario.split == "pathological":
        return pathological_split(examples.skew_classes, clients, scenario.classes_per_client, rng)
    if scenario.split == "by_writer":
        return writer_split(examples.groups, clients, rng)
    any_class = np.zeros(len(examples), dtype=np.int64)  # these two look at no class
    if scenario.split == "quantity":
        return quantity_split(any_class, clients, scenario.quantity_alpha, rng)
    return iid_split(any_class, clients, rng)


def initial_lora_a(seed: int, layer: str, rank: int, d_in: int, t: int = 0) -> NDArray[np.float64]:
    """LoRA's initial A, (rank, d_in): uniform within 1/sqrt(d_in), as PEFT's Kaiming draw is.

    Rounds t beyond the first draw another one, for rules whose clients start afresh every round.
    """
    bound = d_in**-0.5
    purpose = ("lora_A", layer, t) if t else ("lora_A", layer)
    return stream(seed, *purpose).uniform(-bound, bound, size=(rank, d_in))


def sparse_entries(seed: int, layer: str, size: int, density: float) -> NDArray[np.int64]:
    """Entries of a flattened weight that SLoRA's first stage trains: exactly the share, or one."""
    count = max(1, round(density * size))
    return stream(seed, "slora mask", layer).permutation(size)[:count]


def sparse_batches_seed(seed: int) -> int:
    """Seed of the sparse stage's batches, which must not be those of the LoRA rounds."""
    return int(stream(seed, "slora batches").integers(2**62))
