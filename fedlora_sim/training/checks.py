"""What local training refuses: arguments that do not fit each other, and clients that diverge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlora_sim.errors import InputError, expected
from fedlora_sim.training.stacked import Adapters


class DivergedError(InputError):
    """A client's loss or adapters stopped being finite.

    Args:
        client: identifier of the client.
        step: its local step, counted from 0.
        learning_rate: of the run that diverged.
    """

    def __init__(self, client: int, step: int, learning_rate: float) -> None:
        self.client, self.step, self.learning_rate = client, step, learning_rate
        reason = f"a rate at which training stays finite (client {client} diverged at step {step})"
        super().__init__(str(expected("learning_rate", learning_rate, reason)))


def check_samples(samples: Sequence[np.ndarray], num_samples: int) -> None:
    """Refuse an empty cohort, empty clients, and indices that are not indices."""
    if not len(samples):
        raise expected("samples", samples, "at least one client")
    for client, own in enumerate(samples):
        own = np.asarray(own)
        if own.ndim != 1 or not own.size or not np.issubdtype(own.dtype, np.integer):
            given = f"{own.dtype} of shape {own.shape}"
            raise expected(f"samples[{client}]", given, "a non-empty row of integer indices")
        if own.min() < 0 or own.max() >= num_samples:
            span = (int(own.min()), int(own.max()))
            raise expected(f"samples[{client}]", span, f"indices in 0..{num_samples - 1}")


def check_sizes(num_clients: int, adapters: Adapters, **others: Sequence[Any] | Tensor) -> None:
    """Refuse arguments that speak of more or fewer clients than `samples` does."""
    sizes = {argument: len(value) for argument, value in others.items()}
    sizes |= {f"adapters[{name!r}]": len(lora_A) for name, (lora_A, _) in adapters.items()}
    for argument, size in sizes.items():
        if size != num_clients:
            raise expected(argument, f"{size} clients", f"{num_clients}, as many as samples")


def check_trained(
    losses: Tensor,
    trained: Adapters,
    num_steps: np.ndarray,
    clients: Sequence[int],
    learning_rate: float,
) -> None:
    """Refuse a diverged client: the first step, then the first client, that is not finite."""
    bad = ~torch.isfinite(losses)
    if bad.any():
        step, client = (int(i) for i in bad.nonzero()[0])
        raise DivergedError(clients[client], step, learning_rate)
    # The last step's update has no later loss to show in.
    for factors in trained.values():
        for factor in factors:
            bad = ~torch.isfinite(factor).all(dim=(1, 2))
            if bad.any():
                client = int(bad.nonzero()[0])
                last = int(num_steps[client]) - 1
                raise DivergedError(clients[client], last, learning_rate)
