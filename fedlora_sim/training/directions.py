"""Which directions every client of a cohort receives, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.allocation import carried_directions, leading_directions
from fedlora_sim.draws import allocation_scores
from fedlora_sim.factors import LoRAFactors
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.task import Task
from fedlora_sim.training.attach import attach
from fedlora_sim.training.stack import client_losses
from fedlora_sim.training.stacked import Frozen, Heads, StackedLoRALinear

Positions = dict[str, list[Tensor]]
"""Module name -> for every client of the cohort the rank indices that it receives, (r_k,)."""


class Directions:
    """The scenario's allocation for one run."""

    def __init__(self, scenario: Scenario, seed: int, r_max: int) -> None:
        self.scenario, self.seed, self.r_max = scenario, seed, r_max

    @cached_property
    def _scores(self) -> NDArray[np.float32]:
        return allocation_scores(self.scenario, self.seed)

    def of(
        self,
        t: int,
        clients: NDArray[np.int64],
        ranks: Sequence[int],
        task: Task,
        received: Mapping[str, LoRAFactors],
        samples: Sequence[NDArray[np.int64]],
        frozen: Mapping[str, Frozen],
        heads: Heads,
    ) -> Positions:
        """Rank indices of every client, ascending.

        Args:
            t: the round.
            clients: the cohort, (m,).
            ranks: their ranks.
            task: model and data, for `importance`.
            received: the global adapter of every module, all r_max components, as a client would
                start from it.
            samples: sample indices of every client.
            frozen: what does not train.
            heads: of every client, as it starts.
        """
        own = torch.tensor(ranks)
        if self.scenario.allocation == "svd":
            held = dict.fromkeys(received, leading_directions(own, self.r_max))
        elif self.scenario.allocation == "random":
            scores = torch.from_numpy(self._scores[t, clients])
            held = dict.fromkeys(received, carried_directions(own, scores))
        else:
            norms = gradient_norms(task, received, samples, frozen, heads)
            held = {name: carried_directions(own, score.cpu()) for name, score in norms.items()}
        device = task.device
        return {
            name: [row.nonzero().flatten().to(device) for row in mask]
            for name, mask in held.items()
        }


def gradient_norms(
    task: Task,
    received: Mapping[str, LoRAFactors],
    samples: Sequence[NDArray[np.int64]],
    frozen: Mapping[str, Frozen],
    heads: Heads,
) -> dict[str, Tensor]:
    """Norm of every client's gradient along every direction of the global adapter.

    A direction is the pair `(b_i, a_i)`: its gradient is that of the client's mean loss over all
    of its samples with respect to the two vectors together.

    Args:
        task: model and data.
        received: the global adapter of every module, rank r_max.
        samples: sample indices of the K clients.
        frozen: what does not train, and therefore has no gradient.
        heads: of every client, weight (K, d_out, d_in) and bias (K, d_out).

    Returns:
        Module name to (K, r_max).
    """
    clients = len(samples)
    stacked = {
        name: (f.lora_A.expand(clients, -1, -1), f.lora_B.expand(clients, -1, -1))
        for name, f in received.items()
    }
    scaling = [next(iter(received.values())).scaling] * clients
    model = attach(task.model, stacked, scaling, frozen, heads)
    width = max(len(own) for own in samples)
    index = np.stack([np.resize(own, width) for own in samples])
    real = np.arange(width) < np.array([[len(own)] for own in samples])
    losses = client_losses(
        task,
        model,
        torch.as_tensor(index, device=task.device),
        torch.as_tensor(real, device=task.device),
    )
    losses.sum().backward()
    return {name: _norms(model.get_submodule(name)) for name in received}


def _norms(layer: torch.nn.Module) -> Tensor:
    assert isinstance(layer, StackedLoRALinear)  # attach put it there
    assert layer.lora_B.grad is not None  # always trained
    square = layer.lora_B.grad.square().sum(1)
    if layer.lora_A.grad is not None:
        square = square + layer.lora_A.grad.square().sum(2)
    return square.sqrt()
