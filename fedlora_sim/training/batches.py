"""The batches of a cohort's local training, drawn before it starts.

A client shuffles its samples anew every epoch, with its own generator, and cuts each epoch into
batches; the last one may be short. The plan of a cohort is rectangular: a short batch is filled
up with a sample of its own that does not count. Another client's would not do: were it not finite,
zero times infinity would reach this one's gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fedlora_sim.errors import expected
from fedlora_sim.randomness import stream


@dataclass(frozen=True)
class BatchPlan:
    """Which samples every client sees at every step.

    Args:
        index: sample indices, int64 of shape (steps, K, b).
        real: whether a sample is one of its client's batch, or a filler; boolean (steps, K, b).
        num_steps: steps of every client, int64 of shape (K,); beyond it everything is filler.
    """

    index: np.ndarray
    real: np.ndarray
    num_steps: np.ndarray

    def take(self, order: np.ndarray) -> BatchPlan:
        """The plan of the clients `order`, in that order, without steps and places that none has.

        Args:
            order: their places, (K',).
        """
        num_steps = self.num_steps[order]
        steps = int(num_steps.max())
        real = self.real[:steps, order]
        width = int(real.sum(axis=2).max())
        return BatchPlan(self.index[:steps, order, :width], real[..., :width], num_steps)


def client_streams(
    seed: int, round_index: int, clients: Sequence[int]
) -> tuple[np.random.Generator, ...]:
    """One generator per client of a round, the same whoever else takes part.

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
        samples: for every client, its sample indices, shape (n_k,), not empty.
        rngs: one generator per client; advanced by whole epochs.
        batch_size: samples per batch.
        local_steps: steps of every client, over as many epochs as that takes; or
        local_epochs: epochs of every client. Exactly one of the two is given.

    Returns:
        The plan; b is the longest batch that occurs.

    Raises:
        ValueError: unless exactly one of `local_steps` and `local_epochs` is given, or if there is
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
    """A plan that meets every sample once, in order.

    Args:
        samples: for every client, its sample indices, shape (n_k,), not empty.
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
    """One client's batches: whole epochs of them, or the first `local_steps`."""
    per_epoch = -(-len(samples) // batch_size)
    epochs = -(-local_steps // per_epoch) if local_steps is not None else local_epochs or 0
    cuts = range(batch_size, len(samples), batch_size)
    shuffled = (np.split(rng.permutation(samples), cuts) for _ in range(epochs))
    return islice((batch for epoch in shuffled for batch in epoch), local_steps)
