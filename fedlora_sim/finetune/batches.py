"""Batches of local training, and the other random draws of a training run.

A client shuffles its samples every epoch with its own generator and divides each epoch into
batches; the last one may be short. The plan of a cohort is rectangular: short batches are padded
with one of the client's own samples, which does not count. A sample of another client could be
non-finite, and zero times infinity would reach this client's gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.errors import check_positive, expected
from fedlora_sim.randomness import stream
from fedlora_sim.scenario import Scenario
from fedlora_sim.splits import (
    dirichlet_split,
    iid_split,
    pathological_split,
    quantity_split,
    writer_split,
)
from fedlora_sim.tasks.task import Examples


@dataclass(frozen=True)
class BatchPlan:
    """The samples of each client at each step.

    Args:
        index: sample indices, int64 of shape (steps, K, b).
        real: whether a sample belongs to its client's batch or is padding; boolean (steps, K, b).
        num_steps: steps of each client, int64 of shape (K,); later entries are padding.
    """

    index: np.ndarray
    real: np.ndarray
    num_steps: np.ndarray

    def take(self, order: np.ndarray) -> BatchPlan:
        """Return the plan of the clients `order`, in that order, without unused steps and places.

        Args:
            order: positions of the clients, (K',).
        """
        num_steps = self.num_steps[order]
        steps = int(num_steps.max())
        real = self.real[:steps, order]
        width = int(real.sum(axis=2).max())
        return BatchPlan(self.index[:steps, order, :width], real[..., :width], num_steps)


def client_streams(
    seed: int, round_index: int, clients: Sequence[int]
) -> tuple[np.random.Generator, ...]:
    """Return one generator per client of a round, independent of the other participants.

    Args:
        seed: the run's seed.
        round_index: the round, counted from 0.
        clients: identifiers of the clients.

    Returns:
        One generator per client.
    """
    return tuple(stream(seed, "local batches", round_index, client) for client in clients)


def plan_batches(
    samples: Sequence[np.ndarray],
    rngs: Sequence[np.random.Generator],
    *,
    batch_size: int,
    local_steps: int | None = None,
    local_epochs: int | None = None,
) -> BatchPlan:
    """Draw the batches of one round.

    Args:
        samples: sample indices of each client, shape (n_k,), not empty.
        rngs: one generator per client; advanced by whole epochs.
        batch_size: samples per batch.
        local_steps: steps of each client, over as many epochs as necessary; or
        local_epochs: epochs of each client. Exactly one of the two is given.

    Returns:
        The plan; b is the length of the longest batch.

    Raises:
        InputError: unless exactly one of `local_steps` and `local_epochs` is given, or if there is
            not one generator per client.
    """
    if (local_steps is None) == (local_epochs is None):
        given = (local_steps, local_epochs)
        raise expected("(local_steps, local_epochs)", given, "exactly one of the two")
    if len(samples) != len(rngs):
        raise expected("rngs", len(rngs), f"{len(samples)} generators, one per client")
    batches = [
        list(_batches(own, rng, batch_size, local_steps, local_epochs))
        for own, rng in zip(samples, rngs, strict=True)
    ]
    num_steps = np.array([len(own) for own in batches], dtype=np.int64)
    width = max(len(batch) for own in batches for batch in own)
    shape = (int(num_steps.max()), len(batches), width)
    index, real = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for client, own in enumerate(batches):
        for step, batch in enumerate(own):
            index[step, client] = batch[0]
            index[step, client, : len(batch)] = batch
            real[step, client, : len(batch)] = True
    return BatchPlan(index, real, num_steps)


def every_sample(samples: Sequence[np.ndarray], batch_size: int) -> BatchPlan:
    """Return a plan that visits each sample once, in order.

    Args:
        samples: sample indices of each client, shape (n_k,), not empty.
        batch_size: samples per batch.
    """
    sizes = np.array([len(own) for own in samples])
    width = min(batch_size, int(sizes.max()))
    steps = -(-sizes // width)
    places = int(steps.max()) * width
    index = np.stack([np.resize(own, places) for own in samples])
    real = np.arange(places) < sizes[:, None]
    index, real = (x.reshape(len(samples), -1, width).swapaxes(0, 1) for x in (index, real))
    return BatchPlan(index, real, steps)


def _batches(
    samples: np.ndarray,
    rng: np.random.Generator,
    batch_size: int,
    local_steps: int | None,
    local_epochs: int | None,
) -> Iterator[np.ndarray]:
    """Yield one client's batches: of whole epochs, or the first `local_steps`."""
    per_epoch = -(-len(samples) // batch_size)
    epochs = -(-local_steps // per_epoch) if local_steps is not None else local_epochs or 0
    cuts = range(batch_size, len(samples), batch_size)
    shuffled = (np.split(rng.permutation(samples), cuts) for _ in range(epochs))
    return islice((batch for epoch in shuffled for batch in epoch), local_steps)


# What the scenario says of local training


def plan_round(
    scenario: Scenario,
    samples: Sequence[NDArray[np.int64]],
    rngs: Sequence[np.random.Generator],
) -> BatchPlan:
    """Draw the batches of one round: `local_steps` steps where given, else `local_epochs` epochs.

    Args:
        scenario: `batch_size`, `local_steps` and `local_epochs` apply.
        samples: for every client, its sample indices, shape (n_k,), not empty.
        rngs: one generator per client; advanced by whole epochs.
    """
    steps = scenario.local_steps
    return plan_batches(
        samples,
        rngs,
        batch_size=scenario.batch_size,
        local_steps=steps,
        local_epochs=scenario.local_epochs if steps is None else None,
    )


def highest_rate(scenario: Scenario) -> float:
    """Return the learning rate of the optimizer, the highest of any client.

    Steps of clients with a lower rate are shortened from it, which loses no digits.
    """
    return max(scenario.client_learning_rates or (scenario.learning_rate,))


def client_rates(scenario: Scenario, clients: NDArray[np.int64]) -> Tensor | None:
    """Return the learning rates of these clients, (m,), if the scenario sets them per client."""
    rates = scenario.client_learning_rates
    if rates is None:
        return None
    return torch.tensor([rates[k] for k in clients], dtype=torch.float64)


def check_rates(rates: Sequence[float], num_clients: int) -> tuple[float, ...]:
    """Return the learning rates per client: one per client, positive and finite."""
    values = tuple(check_positive("learning_rates", rate) for rate in rates)
    if len(values) != num_clients:
        raise expected("learning_rates", list(values), f"{num_clients} rates, one per client")
    return values


# Other random draws of a training run: split, initial A, masks


def split_clients(scenario: Scenario, examples: Examples, seed: int) -> list[np.ndarray]:
    """Return the sample indices of each client."""
    rng, clients = stream(seed, "split"), len(scenario.ranks)
    if scenario.split == "dirichlet":
        return dirichlet_split(examples.skew_classes, clients, scenario.dirichlet_alpha, rng)
    if scenario.split == "pathological":
        return pathological_split(examples.skew_classes, clients, scenario.classes_per_client, rng)
    if scenario.split == "by_writer":
        return writer_split(examples.groups, clients, rng)
    any_class = np.zeros(len(examples), dtype=np.int64)  # these two ignore classes
    if scenario.split == "quantity":
        return quantity_split(any_class, clients, scenario.quantity_alpha, rng)
    return iid_split(any_class, clients, rng)


def initial_lora_a(seed: int, layer: str, rank: int, d_in: int, t: int = 0) -> NDArray[np.float64]:
    """Return LoRA's initial A, (rank, d_in), uniform within 1/sqrt(d_in) as PEFT's Kaiming draw.

    Rounds t after the first give other draws, for rules whose clients start every round with a
    fresh adapter.
    """
    bound = d_in**-0.5
    purpose = ("lora_A", layer, t) if t else ("lora_A", layer)
    return stream(seed, *purpose).uniform(-bound, bound, size=(rank, d_in))


def sparse_entries(seed: int, layer: str, size: int, density: float) -> NDArray[np.int64]:
    """Return the entries of a flattened weight that SLoRA's first stage trains.

    Exactly the given share of them, at least one.
    """
    count = max(1, round(density * size))
    return stream(seed, "slora mask", layer).permutation(size)[:count]


def sparse_batches_seed(seed: int) -> int:
    """Return the seed of the sparse stage's batches, which differs from that of the LoRA rounds."""
    return int(stream(seed, "slora batches").integers(2**62))
