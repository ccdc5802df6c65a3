"""Which directions every client of a cohort receives, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.engines.draws import allocation_scores, carried_directions, leading_directions
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.task import Task
from fedlora_sim.training.batches import BatchPlan, every_sample
from fedlora_sim.training.config import LocalConfig
from fedlora_sim.training.memory import stacks_of
from fedlora_sim.training.stack import Stack, client_totals
from fedlora_sim.training.stacked import StackedLoRALinear

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
        start: Stack,
        samples: Sequence[NDArray[np.int64]],
    ) -> Positions:
        """Rank indices of every client, ascending.

        Args:
            t: the round.
            clients: the cohort, (m,).
            ranks: their ranks.
            task: model and data, for `importance`.
            start: what they would start from with all r_max components.
            samples: sample indices of every client.
        """
        own = torch.tensor(ranks)
        if self.scenario.allocation == "svd":
            held = dict.fromkeys(start.adapters, leading_directions(own, self.r_max))
        elif self.scenario.allocation == "random":
            scores = torch.from_numpy(self._scores[t, clients])
            held = dict.fromkeys(start.adapters, carried_directions(own, scores))
        else:
            norms = gradient_norms(task, start, samples, LocalConfig.of(self.scenario))
            held = {name: carried_directions(own, score.cpu()) for name, score in norms.items()}
        device = task.device
        return {
            name: [row.nonzero().flatten().to(device) for row in mask]
            for name, mask in held.items()
        }


def gradient_norms(
    task: Task, start: Stack, samples: Sequence[NDArray[np.int64]], config: LocalConfig
) -> dict[str, Tensor]:
    """Norm of every client's gradient along every direction of the global adapter.

    A direction is the pair `(b_i, a_i)`: its gradient is that of the client's mean loss over all
    of its samples with respect to the two vectors together.

    Args:
        task: model and data.
        start: the global adapter of every module, all r_max components, once per client.
        samples: sample indices of the K clients.
        config: no more samples and clients at a time than in training.

    Returns:
        Module name to (K, r_max).
    """
    plan = every_sample(samples, config.batch_size)
    chunks = stacks_of(task, start, plan, config)
    parts = [_stack_norms(task, start.take(own), plan.take(own), config) for own in chunks]
    back = torch.as_tensor(np.argsort(np.concatenate(chunks)))
    return {name: torch.cat([part[name] for part in parts])[back] for name in start.adapters}


def _stack_norms(
    task: Task, start: Stack, plan: BatchPlan, config: LocalConfig
) -> dict[str, Tensor]:
    model = start.on(task.model, gradient_checkpointing=config.gradient_checkpointing)
    counts = torch.zeros((), device=task.device)
    for index, real in zip(plan.index, plan.real, strict=True):
        batch = (torch.as_tensor(x, device=task.device) for x in (index, real))
        total, count = client_totals(task, model, *batch)
        total.sum().backward()
        counts = counts + count
    return {n: _norms(model.get_submodule(n)) / counts.unsqueeze(1) for n in start.adapters}


def _norms(layer: torch.nn.Module) -> Tensor:
    assert isinstance(layer, StackedLoRALinear)  # attach put it there
    assert layer.lora_B.grad is not None  # always trained
    square = layer.lora_B.grad.square().sum(1)
    if layer.lora_A.grad is not None:
        square = square + layer.lora_A.grad.square().sum(2)
    return square.sqrt()
