"""Reference of federated fine-tuning: one client and one step at a time, with dense updates.

Only the draws (split, cohorts, initial factors, allocation, batches, masks) and the pretrained
model are the simulator's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.engines.draws import allocation_scores
from fedlora_sim.federation import Federation, draw_cohorts
from fedlora_sim.finetune.batches import (
    initial_lora_a,
    sparse_batches_seed,
    sparse_entries,
    split_clients,
)
from fedlora_sim.randomness import stream
from fedlora_sim.reference.aggregation import (
    Array,
    Factors,
    aggregate_reference,
    held_reference,
    split_reference,
)
from fedlora_sim.reference.simulators import (
    Descent,
    Weights,
    importance_reference,
    local_batches,
    loss_of,
    train_client,
)
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.digits import DigitsTask

# SLoRA's first stage, one client at a time: dense weights of which selected entries are trained


def sparse_start_reference(
    scenario: Scenario,
    task: DigitsTask,
    weights: Weights,
    federation: Federation,
    samples: list[NDArray[np.int64]],
    seed: int,
) -> dict[str, Factors]:
    """Return the adapters of rank r_max after the sparse rounds, at scaling 1."""
    masks = {name: _mask(w, scenario.slora_density, seed, name) for name, w in weights.items()}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    counts = draw_cohorts(federation, scenario.slora_rounds, stream(seed, "slora cohorts"))
    for t in range(scenario.slora_rounds):
        cohort = np.flatnonzero(counts[t])
        shares = federation.cohort_weights(cohort, counts[t, cohort])
        average = {name: torch.zeros_like(w) for name, w in weights.items()}
        for k, share in zip(cohort.tolist(), shares / shares.sum(), strict=True):
            batches = local_batches(scenario, samples[k], sparse_batches_seed(seed), t, k)
            local = _train(scenario, task, weights, total, masks, batches)
            average = {name: average[name] + share * local[name] for name in average}
        total = average
    return {name: split_reference(dw.numpy(), federation.r_max) for name, dw in total.items()}


def _mask(weight: Tensor, density: float, seed: int, name: str) -> Tensor:
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[torch.from_numpy(sparse_entries(seed, name, weight.numel(), density))] = True
    return mask.view_as(weight)


def _train(
    scenario: Scenario,
    task: DigitsTask,
    weights: Weights,
    total: Weights,
    masks: dict[str, Tensor],
    batches: list[NDArray[np.int64]],
) -> Weights:
    """Return one client's change of the accumulated dW; gradients outside the mask are dropped."""
    descent, dense = Descent(scenario), total
    for batch in batches:
        leaves = {name: dw.clone().requires_grad_(True) for name, dw in dense.items()}
        loss = loss_of(task, {name: weights[name] + dw for name, dw in leaves.items()}, batch)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        pairs = zip(leaves, gradients, strict=True)
        masked = {(name, "W"): torch.where(masks[name], g, 0.0) for name, g in pairs}
        moved = descent.step({(name, "W"): dw for name, dw in dense.items()}, masked)
        dense = {name: moved[name, "W"] for name in dense}
    return dense


# The round loop

Held = dict[str, list[int]]


@dataclass(frozen=True, eq=False)
class ReferenceState:
    """The global update after a round.

    Args:
        adapters: module name to lora_A (r_max, d_in) and lora_B (d_out, r_max), at scaling 1.
        base: module name to the accumulated correction of its weight, (d_out, d_in).
        ranks: rank of each client.
    """

    adapters: dict[str, Factors]
    base: dict[str, Array]
    ranks: tuple[int, ...]

    def delta(self, name: str) -> Array:
        """Return the whole update of a module."""
        lora_a, lora_b = self.adapters[name]
        return np.asarray(lora_b @ lora_a + self.base[name])


def training_reference(
    scenario: Scenario, task: DigitsTask, rule: str, seed: int
) -> list[ReferenceState]:
    """Return the global update at the start and after each round, for Adam and plain SGD.

    Args:
        scenario: a training scenario of dtype float64 with `local_steps`.
        task: its task, in float64 on the CPU.
        rule: as for `aggregate_reference`.
        seed: the run's seed.

    Returns:
        T + 1 states.
    """
    return _Run(scenario, task, rule, seed).states()


class _Run:
    def __init__(self, scenario: Scenario, task: DigitsTask, rule: str, seed: int) -> None:
        self.scenario, self.task, self.rule, self.seed = scenario, task, rule, seed
        self.frozen_a = rule == "ffa"
        self.samples = split_clients(scenario, task.train, seed)
        sizes = tuple(len(own) for own in self.samples)
        self.federation = Federation(scenario.ranks, sizes, scenario.cohort_size, scenario.sampling)
        self.counts = draw_cohorts(self.federation, scenario.rounds, stream(seed, "cohorts"))
        self.scores = allocation_scores(scenario, [seed])[0].numpy()
        self.weights: Weights = {
            name: task.model.get_parameter(f"{name}.weight").detach()
            for name in task.target_modules
        }
        self.fresh = {name: self._lora_start(name, 0) for name in self.weights}

    def _lora_start(self, name: str, t: int) -> Factors:
        d_out, d_in = self.weights[name].shape
        rank = self.federation.r_max
        return initial_lora_a(self.seed, name, rank, d_in, t), np.zeros((d_out, rank))

    def states(self) -> list[ReferenceState]:
        adapters = self.fresh
        if self.scenario.initializer == "slora":
            adapters = sparse_start_reference(
                self.scenario, self.task, self.weights, self.federation, self.samples, self.seed
            )
        if self.frozen_a:  # a lost direction takes the common A
            self.fresh = {name: self._received(adapters[name], name, 1.0) for name in adapters}
        base = {name: np.zeros(tuple(w.shape)) for name, w in self.weights.items()}
        if self.rule == "flora":  # the base holds the whole update, and adapters are fresh
            base = {name: b @ a for name, (a, b) in adapters.items()}
            adapters = {name: self._lora_start(name, 0) for name in self.weights}
        found = [ReferenceState(adapters, base, self.federation.ranks)]
        for t in range(self.scenario.rounds):
            found.append(self._round(t, found[-1]))
        return found

    def _round(self, t: int, state: ReferenceState) -> ReferenceState:
        cohort, ranks = np.flatnonzero(self.counts[t]), list(state.ranks)
        if self.rule == "flora":
            self.fresh = {name: self._lora_start(name, t) for name in self.weights}
        weights = {name: w + torch.from_numpy(state.base[name]) for name, w in self.weights.items()}
        updates, positions = [], []
        for k in cohort.tolist():
            held = self._held(t, k, ranks[k], weights, state)
            scaling = self.scenario.client_scaling(self.federation.ranks[k])
            received = {}
            for name, own in held.items():
                a, b = self._received(state.adapters[name], name, scaling)
                received[name] = (a[own], b[:, own])
            batches = local_batches(self.scenario, self.samples[k], self.seed, t, k)
            sent, ranks[k] = train_client(
                self.scenario,
                self.task,
                weights,
                received,
                scaling,
                batches,
                frozen_a=self.frozen_a,
                t=t,
            )
            updates.append((sent, scaling))
            positions.append({name: own[: ranks[k]] for name, own in held.items()})
        shares = self.federation.cohort_weights(cohort, self.counts[t, cohort]).tolist()
        adapters, base = {}, {}
        for name in self.weights:
            lora_a, lora_b, more = aggregate_reference(
                [(*sent[name], scaling) for sent, scaling in updates],
                shares,
                self.rule,
                [self.federation.r_max],
                state.adapters[name],
                self.scenario.empty_partition,
                [own[name] for own in positions],
            )
            adapters[name], base[name] = (lora_a, lora_b), state.base[name] + more
        return ReferenceState(adapters, base, tuple(ranks))

    def _held(self, t: int, k: int, rank: int, weights: Weights, state: ReferenceState) -> Held:
        """Return the rank indices that client k receives of each module."""
        r_max = self.federation.r_max
        norms: dict[str, NDArray[np.float64]] = dict.fromkeys(weights, np.zeros(r_max))
        if self.scenario.allocation == "importance":
            received = {name: self._received(state.adapters[name], name, 1.0) for name in weights}
            norms = importance_reference(
                self.task, weights, received, self.samples[k], frozen_a=self.frozen_a
            )
        place = np.flatnonzero(self.counts[t]).tolist().index(k)
        return {
            name: held_reference(self.scenario, rank, self.scores[t, place], norms[name])
            for name in weights
        }

    def _received(self, adapter: Factors, name: str, scaling: float) -> Factors:
        """Return the global factors in a client's scaling; lost directions are reinitialized."""
        share = 1.0 if self.frozen_a else np.sqrt(scaling)
        lora_a, lora_b = adapter[0] / share, adapter[1] / (scaling / share)
        amplitudes = np.linalg.norm(adapter[1], axis=0) * np.linalg.norm(adapter[0], axis=1)
        rounding = np.finfo(float).eps * max(len(adapter[1]), adapter[0].shape[1])
        for i in range(len(lora_a)):
            if amplitudes[i] <= rounding * amplitudes.max():
                lora_a[i], lora_b[:, i] = self.fresh[name][0][i], 0.0
        return lora_a, lora_b
