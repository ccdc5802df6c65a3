"""What the clients of a cohort start local training from, and the loss of every one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_sim.tasks.task import Task, logits_of
from fedlora_sim.training.attach import attach
from fedlora_sim.training.pruning import TailPenalty
from fedlora_sim.training.stacked import Adapters, Frozen, Heads


@dataclass(frozen=True, eq=False)
class Stack:
    """What a cohort starts local training from, one slice of every tensor per client.

    Args:
        adapters: for every target module, `lora_A` (K, r, d_in) and `lora_B` (K, d_out, r),
            zero-padded to the cohort's highest rank r.
        scaling: LoRA scaling of every client, (K,).
        heads: for every head module, weight (K, d_out, d_in) and bias (K, d_out), if any.
        frozen: for modules of whose adapters something stays as it is, what.
        tail: penalty on the clients' last rank components, added to their losses.
        rates: learning rate of every client, (K,); None takes the configuration's for all.
    """

    adapters: Adapters
    scaling: Tensor
    heads: Heads = field(default_factory=dict)
    frozen: Mapping[str, Frozen] = field(default_factory=dict)
    tail: TailPenalty | None = None
    rates: Tensor | None = None

    def take(self, order: np.ndarray) -> Stack:
        """The clients `order`, in that order."""
        at = torch.as_tensor(order)
        return replace(
            self,
            adapters={name: (A[at], B[at]) for name, (A, B) in self.adapters.items()},
            scaling=self.scaling[at],
            heads={name: tuple(x[at] for x in own) for name, own in self.heads.items()},
            tail=None if self.tail is None else self.tail.take(order),
            rates=None if self.rates is None else self.rates[at],
        )

    def on(self, model: nn.Module, *, gradient_checkpointing: bool = False) -> nn.Module:
        """The model with all of this in place; see `attach`."""
        return attach(
            model,
            self.adapters,
            self.scaling,
            self.frozen,
            self.heads,
            gradient_checkpointing=gradient_checkpointing,
        )


def client_losses(task: Task, model: nn.Module, index: Tensor, real: Tensor) -> Tensor:
    """Mean loss of every client on its own batch, (K,), in nats; arguments as `client_totals`."""
    total, count = client_totals(task, model, index, real)
    return total / count


def client_totals(
    task: Task, model: nn.Module, index: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """Summed loss of every client on its own batch, and what it is a sum over.

    Args:
        task: data and objective.
        model: takes the K clients' samples client-major.
        index: samples of every client, (K, b).
        real: which of them count, boolean (K, b).

    Returns:
        Loss in nats, and samples or tokens, each (K,).
    """
    batch = task.train.take(index.flatten())
    total, count = task.objective.losses(logits_of(model, batch.inputs), batch.labels)
    # A filler is a sample too: `where` keeps it out even when its loss is not finite.
    total, count = (torch.where(real, x.view(real.shape), 0.0).sum(1) for x in (total, count))
    return total, count
