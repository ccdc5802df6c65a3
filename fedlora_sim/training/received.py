"""What the clients of a round receive: their directions of the global adapter, and the heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.aggregation import AggregationRule
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import pad_last
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.targets import linear_shape
from fedlora_sim.tasks.task import Task
from fedlora_sim.training.attach import find_linear
from fedlora_sim.training.directions import Directions, Positions
from fedlora_sim.training.draws import initial_lora_a
from fedlora_sim.training.stack import Stack
from fedlora_sim.training.stacked import Adapters, Frozen, Heads
from fedlora_sim.training.state import GlobalUpdate


class Received:
    """The server's side of a download, for one run.

    Args:
        scenario: allocation and scalings.
        rule: the server rule.
        task: the frozen model.
        seed: of the run.
        r_max: rank of the global adapter.
    """

    def __init__(
        self, scenario: Scenario, rule: AggregationRule, task: Task, seed: int, r_max: int
    ) -> None:
        self.scenario, self.rule, self.task, self.seed = scenario, rule, task, seed
        self.r_max = r_max
        self.directions = Directions(scenario, seed, r_max)
        self.frozen = {name: Frozen(lora_a=rule.frozen_a) for name in task.target_modules}
        self.fresh = self._fresh_factors(0)

    def start_round(self, t: int) -> None:
        """Draw the adapters of round t (from 0) where clients start every round afresh."""
        if self.rule.space == "none":
            self.fresh = self._fresh_factors(t)

    def keep_frozen_a(self, state: GlobalUpdate) -> None:
        """Under a rule that freezes A, a row that nobody sent back is still everybody's."""
        if self.rule.frozen_a:
            self.fresh = self.whole(state)

    def whole(self, state: GlobalUpdate, scaling: float = 1.0) -> dict[str, LoRAFactors]:
        """The global adapter with all of its components, as a client would start from it.

        Args:
            state: the global update.
            scaling: of that client; the product is the same at all.
        """
        every = torch.arange(self.r_max, device=self.task.device)
        return {name: self.of_module(state, name, every, scaling) for name in state.adapters}

    def of_module(
        self, state: GlobalUpdate, name: str, held: Tensor, scaling: float
    ) -> LoRAFactors:
        """These components of a module's global adapter, in a client's scaling.

        A direction of no energy would have both factors zero, where no gradient ever leads out; it
        is sent as LoRA starts every direction, A random and B zero: the update stays as it is.
        """
        whole = state.adapters[name]
        own, lost = whole.select(held), whole.lost_columns()[held]
        received = self.rule.rescale(own, scaling)
        lora_a = torch.where(lost.unsqueeze(-1), self.fresh[name].lora_A[held], received.lora_A)
        return LoRAFactors(lora_a, received.lora_B * ~lost, scaling)

    def positions(
        self,
        t: int,
        clients: NDArray[np.int64],
        ranks: Sequence[int],
        samples: Sequence[NDArray[np.int64]],
        state: GlobalUpdate,
        task: Task,
    ) -> Positions:
        """Rank indices that every client of the cohort receives, per layer.

        Args:
            t: the round, from 0.
            clients: the cohort, (m,).
            ranks: their ranks.
            samples: their samples.
            state: the global update.
            task: with the state's corrections in its weights.
        """
        start = self.everything(state, len(clients))
        return self.directions.of(t, clients, ranks, task, start, samples)

    def everything(self, state: GlobalUpdate, clients: int) -> Stack:
        """All components of the global adapter at scaling 1, once per client."""
        adapters: Adapters = {
            name: (f.lora_A.expand(clients, -1, -1), f.lora_B.expand(clients, -1, -1))
            for name, f in self.whole(state).items()
        }
        ones = torch.ones(clients, dtype=torch.float64)
        return Stack(adapters, ones, self.heads(state, clients), self.frozen)

    def stack(self, state: GlobalUpdate, positions: Positions, scalings: Sequence[float]) -> Stack:
        """What a cohort starts from, padded to its highest rank.

        Args:
            state: the global update.
            positions: rank indices of every client, per layer.
            scalings: LoRA scaling of every client.
        """
        adapters: Adapters = {}
        for name, held in positions.items():
            pairs = zip(held, scalings, strict=True)
            sent = [self.of_module(state, name, own, s) for own, s in pairs]
            width = max(f.rank for f in sent)
            adapters[name] = (
                torch.stack([pad_last(f.lora_A.mT, width).mT for f in sent]),
                torch.stack([pad_last(f.lora_B, width) for f in sent]),
            )
        scaling = torch.tensor(scalings, dtype=torch.float64)
        return Stack(adapters, scaling, self.heads(state, len(scalings)), self.frozen)

    def heads(self, state: GlobalUpdate, clients: int) -> Heads:
        """The server's heads, one copy per client."""
        return {
            name: tuple(x.expand(clients, *x.shape) for x in own)
            for name, own in state.heads.items()
        }

    def _fresh_factors(self, t: int) -> dict[str, LoRAFactors]:
        """What LoRA starts from, A random and B zero, per layer; its draw in round t."""
        fresh = {}
        for name in self.task.target_modules:
            d_out, d_in = linear_shape(find_linear(self.task.model, name))
            drawn = initial_lora_a(self.seed, name, self.r_max, d_in, t)
            lora_a = torch.from_numpy(drawn).to(self.task.device, self.task.dtype)
            fresh[name] = LoRAFactors(lora_a, lora_a.new_zeros(d_out, self.r_max))
        return fresh


def initial_heads(task: Task) -> Heads:
    """The model's own heads, before anybody has trained them."""
    modules = {name: find_linear(task.model, name, "head_modules") for name in task.head_modules}
    return {name: tuple(p.detach() for p in m.parameters()) for name, m in modules.items()}


def averaged_heads(trained: Heads, weights: NDArray[np.float64]) -> Heads:
    """Mean of the clients' heads, weighted as their updates are.

    Args:
        trained: of the clients that take part, first axis K.
        weights: unnormalised, (K,).
    """
    share = torch.as_tensor(weights / weights.sum())
    return {
        name: tuple(torch.einsum("k,k...->...", share.to(x), x) for x in own)
        for name, own in trained.items()
    }
