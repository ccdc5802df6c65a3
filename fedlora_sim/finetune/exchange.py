"""Exchange between clients and server: received adapters, uploads and the global update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.engines.draws import allocation_scores, carried_directions, leading_directions
from fedlora_sim.finetune.batches import BatchPlan, every_sample, initial_lora_a
from fedlora_sim.finetune.local import Stack, Trained, client_totals, stacks_of
from fedlora_sim.finetune.stacked import (
    Adapters,
    Frozen,
    Heads,
    StackedLoRALinear,
    find_linear,
    merged_copy,
)
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import pad_last, sign_fixed_svd
from fedlora_sim.metrics import projected_amplitudes
from fedlora_sim.rules import NO_STATE, Aggregated, AggregationRule, State
from fedlora_sim.runtime import in_parts
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.targets import linear_shape
from fedlora_sim.tasks.task import Task

SVD = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class GlobalUpdate:
    """`dW = adapter + base` of all adapted modules; all tensors are contiguous.

    Args:
        adapters: module name to the global adapter, rank r_max.
        base: module name to the accumulated correction of the frozen weight, (d_out, d_in); empty
            under rules without a base correction.
        heads: name of each module that clients train as a whole to its weight and bias.
        kept: module name to the rule's state for it.
    """

    adapters: Mapping[str, LoRAFactors]
    base: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Heads = field(default_factory=dict)
    kept: Mapping[str, State] = field(default_factory=dict)
    _svds: dict[int, dict[str, SVD]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        # Contiguous, as when read from a file: other strides change the order of sums, hence the
        # last bits.
        adapters = {
            name: LoRAFactors(f.lora_A.contiguous(), f.lora_B.contiguous(), f.scaling)
            for name, f in self.adapters.items()
        }
        base = {name: x.contiguous() for name, x in self.base.items()}
        heads = {name: tuple(x.contiguous() for x in own) for name, own in self.heads.items()}
        kept = {
            name: {key: x.contiguous() for key, x in own.items()}
            for name, own in self.kept.items()
            if own
        }
        held = {"adapters": adapters, "base": base, "heads": heads, "kept": kept}
        for name, values in held.items():
            object.__setattr__(self, name, values)

    def rule_state(self, module: str) -> State:
        """Return the rule's state for a module."""
        return self.kept.get(module, NO_STATE)

    def after(
        self,
        results: Mapping[str, Aggregated],
        heads: Heads | None = None,
    ) -> GlobalUpdate:
        """Return the global update after a round with these results and heads."""
        base = dict(self.base)
        for name, result in results.items():
            if result.base is not None:
                more = result.base.dense()
                base[name] = base[name] + more if name in base else more
        adapters = {name: r.adapter for name, r in results.items()}
        kept = {name: r.state for name, r in results.items()}
        return GlobalUpdate(adapters, base, self.heads if heads is None else heads, kept)

    def deltas(self) -> dict[str, Tensor]:
        """Return the whole update of each module as a dense matrix."""
        return {
            name: f.delta() + self.base[name] if name in self.base else f.delta()
            for name, f in self.adapters.items()
        }

    def svd(self, r: int) -> dict[str, SVD]:
        """Return the leading r triplets of the whole update of each module."""
        if r not in self._svds:
            self._svds[r] = self._solve(r)
        return self._svds[r]

    def _solve(self, r: int) -> dict[str, SVD]:
        found = {}
        for name, factors in self.adapters.items():
            if name in self.base:
                u, s, vh = sign_fixed_svd(factors.delta() + self.base[name])
                found[name] = (u[:, :r], s[:r], vh[:r])
            else:
                found[name] = factors.svd()
        return found

    def base_on(self, name: str, u: Tensor, vh: Tensor) -> Tensor:
        """Return the amplitudes of a module's base correction, `u_i^T Z v_i`, (r,)."""
        if name not in self.base:
            return u.new_zeros(u.shape[-1])
        return (u * (self.base[name] @ vh.mT)).sum(0)

    def on(self, name: str, u: Tensor, vh: Tensor) -> Tensor:
        """Return the amplitudes of a module's whole update on given directions, (r,)."""
        return projected_amplitudes(u, vh, self.adapters[name]) + self.base_on(name, u, vh)

    def merged(self, task: Task) -> Task:
        """Return the task with the base corrections merged, on which clients train."""
        if not self.base:
            return task
        model = merged_copy(task.model, self.base)
        return replace(task, model=model)


# Allocation: the directions that each client receives, layer by layer

Positions = dict[str, list[Tensor]]
"""Module name -> rank indices that each client of the cohort receives, (r_k,)."""


class Directions:
    """Allocation of directions in one run."""

    def __init__(self, scenario: Scenario, seed: int, r_max: int) -> None:
        self.scenario, self.seed, self.r_max = scenario, seed, r_max

    @cached_property
    def _scores(self) -> Tensor:
        return allocation_scores(self.scenario, [self.seed])[0]

    def of(
        self,
        t: int,
        clients: NDArray[np.int64],
        ranks: Sequence[int],
        task: Task,
        start: Stack,
        samples: Sequence[NDArray[np.int64]],
    ) -> Positions:
        """Return the rank indices of each client, ascending.

        Args:
            t: the round.
            clients: the cohort, (m,).
            ranks: their ranks.
            task: model and data, for `importance`.
            start: starting point of the clients with all r_max components.
            samples: sample indices of each client.
        """
        own = torch.tensor(ranks)
        if self.scenario.allocation == "svd":
            held = dict.fromkeys(start.adapters, leading_directions(own, self.r_max))
        elif self.scenario.allocation == "random":
            scores = self._scores[t, : len(clients)]
            held = dict.fromkeys(start.adapters, carried_directions(own, scores))
        else:
            norms = gradient_norms(task, start, samples, self.scenario)
            held = {name: carried_directions(own, score.cpu()) for name, score in norms.items()}
        device = task.device
        return {
            name: [row.nonzero().flatten().to(device) for row in mask]
            for name, mask in held.items()
        }


def gradient_norms(
    task: Task, start: Stack, samples: Sequence[NDArray[np.int64]], scenario: Scenario
) -> dict[str, Tensor]:
    """Return the norm of each client's gradient along each direction of the global adapter.

    A direction is the pair `(b_i, a_i)`. Its gradient is that of the client's mean loss over all of
    its samples with respect to both vectors together.

    Args:
        task: model and data.
        start: the global adapter of each module, all r_max components, once per client.
        samples: sample indices of the K clients.
        scenario: limits samples and clients in memory, as in training.

    Returns:
        Module name to (K, r_max).
    """
    plan = every_sample(samples, scenario.batch_size)
    chunks = stacks_of(task, start, plan, scenario)

    def measure(own: NDArray[np.int64]) -> dict[str, Tensor]:
        return _stack_norms(task, start.take(own), plan.take(own), scenario)

    parts = [part for chunk in chunks for part in in_parts(measure, chunk)]
    back = torch.as_tensor(np.argsort(np.concatenate(chunks)))
    return {name: torch.cat([part[name] for part in parts])[back] for name in start.adapters}


def _stack_norms(
    task: Task, start: Stack, plan: BatchPlan, scenario: Scenario
) -> dict[str, Tensor]:
    model = start.on(task.model, gradient_checkpointing=scenario.gradient_checkpointing)
    counts = torch.zeros((), device=task.device)
    for index, real in zip(plan.index, plan.real, strict=True):
        batch = (torch.as_tensor(x, device=task.device) for x in (index, real))
        total, count = client_totals(task, model, *batch)
        total.sum().backward()
        counts = counts + count
    return {n: _norms(model.get_submodule(n)) / counts.unsqueeze(1) for n in start.adapters}


def _norms(layer: torch.nn.Module) -> Tensor:
    assert isinstance(layer, StackedLoRALinear)  # placed there by attach
    assert layer.lora_B.grad is not None  # always trained
    square = layer.lora_B.grad.square().sum(1)
    if layer.lora_A.grad is not None:
        square = square + layer.lora_A.grad.square().sum(2)
    return square.sqrt()


# Download: the clients' directions of the global adapter, and the heads


class Download:
    """The server's download in one run.

    Args:
        scenario: allocation and scalings.
        rule: the server rule.
        task: the frozen model.
        seed: seed of the run.
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
        """Draw fresh adapters for round t (from 0) if clients start every round with them."""
        if self.rule.space == "none":
            self.fresh = self._fresh_factors(t)

    def keep_frozen_a(self, state: GlobalUpdate) -> None:
        """Keep rows of A that no client returned, under a rule that freezes A."""
        if self.rule.frozen_a:
            self.fresh = self.whole(state)

    def whole(self, state: GlobalUpdate, scaling: float = 1.0) -> dict[str, LoRAFactors]:
        """Return the global adapter with all components, as a client would start from it.

        Args:
            state: the global update.
            scaling: scaling of that client; the product does not depend on the scaling.
        """
        return {name: self.of_module(state, name, scaling) for name in state.adapters}

    def of_module(self, state: GlobalUpdate, name: str, scaling: float) -> LoRAFactors:
        """Return a module's global adapter with all components, in a client's scaling.

        A direction without energy has two zero factors and therefore no gradient. It is sent as
        LoRA initializes directions, A random and B zero, which does not change the update.
        """
        lost = state.adapters[name].lost_columns()
        received = self.rule.rescale(state.adapters[name], scaling)
        lora_a = torch.where(lost.unsqueeze(-1), self.fresh[name].lora_A, received.lora_A)
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
        """Return the rank indices that each client of the cohort receives, per layer.

        Args:
            t: the round, from 0.
            clients: the cohort, (m,).
            ranks: their ranks.
            samples: their samples.
            state: the global update.
            task: model with the state's base corrections merged.
        """
        start = self.everything(state, len(clients))
        return self.directions.of(t, clients, ranks, task, start, samples)

    def everything(self, state: GlobalUpdate, clients: int) -> Stack:
        """Return all components of the global adapter at scaling 1, once per client."""
        adapters: Adapters = {
            name: (f.lora_A.expand(clients, -1, -1), f.lora_B.expand(clients, -1, -1))
            for name, f in self.whole(state).items()
        }
        ones = torch.ones(clients, dtype=torch.float64)
        return Stack(adapters, ones, self.heads(state, clients), self.frozen)

    def stack(self, state: GlobalUpdate, positions: Positions, scalings: Sequence[float]) -> Stack:
        """Return the starting point of a cohort, padded to its highest rank.

        Args:
            state: the global update.
            positions: rank indices of each client, per layer.
            scalings: LoRA scaling of each client.
        """
        adapters: Adapters = {}
        for name, held in positions.items():
            # Scalings are few: clients take parts of the whole adapter in theirs.
            whole = {s: self.of_module(state, name, s) for s in dict.fromkeys(scalings)}
            sent = [whole[s].select(own) for own, s in zip(held, scalings, strict=True)]
            width = max(f.rank for f in sent)
            adapters[name] = (
                torch.stack([pad_last(f.lora_A.mT, width).mT for f in sent]),
                torch.stack([pad_last(f.lora_B, width) for f in sent]),
            )
        scaling = torch.tensor(scalings, dtype=torch.float64)
        return Stack(adapters, scaling, self.heads(state, len(scalings)), self.frozen)

    def heads(self, state: GlobalUpdate, clients: int) -> Heads:
        """Return the server's heads, one copy per client."""
        return {
            name: tuple(x.expand(clients, *x.shape) for x in own)
            for name, own in state.heads.items()
        }

    def _fresh_factors(self, t: int) -> dict[str, LoRAFactors]:
        """Return LoRA's initial factors, A random and B zero, per layer, as drawn in round t."""
        fresh = {}
        for name in self.task.target_modules:
            d_out, d_in = linear_shape(find_linear(self.task.model, name))
            drawn = initial_lora_a(self.seed, name, self.r_max, d_in, t)
            lora_a = torch.from_numpy(drawn).to(self.task.device, self.task.dtype)
            fresh[name] = LoRAFactors(lora_a, lora_a.new_zeros(d_out, self.r_max))
        return fresh


def initial_heads(task: Task) -> Heads:
    """Return the model's own heads before training."""
    modules = {name: find_linear(task.model, name, "head_modules") for name in task.head_modules}
    return {name: tuple(p.detach() for p in m.parameters()) for name, m in modules.items()}


def averaged_heads(trained: Heads, weights: NDArray[np.float64]) -> Heads:
    """Return the mean of the clients' heads with the weights of their updates.

    Args:
        trained: heads of the participating clients, first axis K.
        weights: unnormalized, (K,).
    """
    share = torch.as_tensor(weights / weights.sum())
    return {
        name: tuple(torch.einsum("k,k...->...", share.to(x), x) for x in own)
        for name, own in trained.items()
    }


# Upload: the clients' updates


@dataclass(frozen=True, eq=False)
class Upload:
    """Updates of a cohort of m clients, of which some may have been dropped.

    Args:
        clients: the cohort, (m,).
        weights: unnormalized aggregation weights, (m,); zero for dropped clients.
        kept: which clients were not dropped, boolean (m,).
        updates: module name to the updates of the remaining clients.
        positions: module name to the rank indices of their columns.
        heads: their heads, first axis the remaining clients.
    """

    clients: NDArray[np.int64]
    weights: NDArray[np.float64]
    kept: NDArray[np.bool_]
    updates: Mapping[str, Sequence[LoRAFactors]]
    positions: Positions = field(default_factory=dict)
    heads: Heads = field(default_factory=dict)

    @classmethod
    def empty(cls, layers: Sequence[str]) -> Upload:
        """Return the empty upload of the state before the first round."""
        none = np.zeros(0)
        return cls(none.astype(np.int64), none, none.astype(bool), {name: [] for name in layers})

    @classmethod
    def of(
        cls,
        clients: NDArray[np.int64],
        weights: NDArray[np.float64],
        trained: Trained,
        ranks: Sequence[int],
        scalings: Sequence[float],
        positions: Positions,
    ) -> Upload:
        """Return the finite updates of local training, truncated to their clients' ranks.

        Args:
            clients: the cohort, (m,).
            weights: unnormalized aggregation weights, (m,).
            trained: result of local training.
            ranks: ranks with which the clients continue.
            scalings: their LoRA scalings.
            positions: rank indices that they received, per layer.
        """
        kept = trained.finite.cpu().numpy()
        taken = np.flatnonzero(kept).tolist()
        updates = {
            name: [LoRAFactors(a[k, : ranks[k]], b[k, :, : ranks[k]], scalings[k]) for k in taken]
            for name, (a, b) in trained.adapters.items()
        }
        held = {name: [own[k][: ranks[k]] for k in taken] for name, own in positions.items()}
        at = torch.tensor(taken, dtype=torch.long)
        heads = {name: tuple(x[at] for x in own) for name, own in trained.heads.items()}
        return cls(clients, weights * kept, kept, updates, held, heads)
