"""The federated round loop on a real task: allocate, train the cohort, aggregate, measure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.aggregation import Aggregated, AggregationRule, aggregate
from fedlora_sim.devices import DTYPES, resolve_device
from fedlora_sim.factors import LoRAFactors
from fedlora_sim.federation import Federation, cohort_slots, draw_cohorts
from fedlora_sim.lowrank import pad_last
from fedlora_sim.metrics import direction_preservation
from fedlora_sim.randomness import stream
from fedlora_sim.scenario import Scenario
from fedlora_sim.threads import one_thread
from fedlora_sim.training.batches import client_streams
from fedlora_sim.training.digits import DigitsTask, load_digits_task
from fedlora_sim.training.directions import Directions, Positions
from fedlora_sim.training.draws import initial_lora_a, split_clients
from fedlora_sim.training.local import LocalConfig, evaluate, train_cohort
from fedlora_sim.training.pruning import TailPenalty, pruned_rank
from fedlora_sim.training.slora import sparse_stage, sparse_start
from fedlora_sim.training.stacked import Adapters, Frozen, find_linear
from fedlora_sim.training.state import GlobalUpdate

SVD = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What one federated fine-tuning run leaves behind, round 0 being the untouched model.

    Args:
        layers: names of the adapted modules, L of them.
        singular_values: of the global update, (T + 1, L, r_max).
        accuracy: of the global model on the test part, (T + 1,).
        loss: its cross-entropy there in nats, (T + 1,).
        preservation: direction-preservation index of the cohort's updates on the basis of the
            global update that they started from, mean over clients, (T + 1, L); NaN while that
            update is zero.
        coverage: data coverage of every direction under this run's split, (r_max,).
        client_ranks: rank of every client, (T + 1, K); falls where clients prune themselves.
    """

    layers: tuple[str, ...]
    singular_values: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    loss: NDArray[np.float64]
    preservation: NDArray[np.float64]
    coverage: NDArray[np.float64]
    client_ranks: NDArray[np.int64]


def run_training(
    scenario: Scenario,
    rule: AggregationRule,
    seeds: Sequence[int],
    on_progress: Callable[[float], object] = lambda runs: None,
) -> list[TrainingResult]:
    """Federated LoRA fine-tuning, one run per seed.

    Args:
        scenario: a scenario; its training fields apply. Sample counts come from the split.
        rule: the server rule.
        seeds: split, cohorts, initial adapters and batches of a run follow from its seed; the
            pretrained model is that of the scenario's `task_seed` in every run.
        on_progress: called after every round with the fraction of a run that it makes.

    Returns:
        One result per seed.
    """
    with one_thread():
        return [FederatedRun(scenario, rule, seed).run(on_progress) for seed in seeds]


def local_config(scenario: Scenario) -> LocalConfig:
    """Local training as the scenario has it: `local_steps` where given, else `local_epochs`."""
    return LocalConfig(
        optimizer=str(scenario.optimizer),
        learning_rate=scenario.learning_rate,
        momentum=scenario.momentum,
        weight_decay=scenario.weight_decay,
        batch_size=scenario.batch_size,
        local_steps=scenario.local_steps,
        local_epochs=scenario.local_epochs if scenario.local_steps is None else None,
    )


def load_task(scenario: Scenario) -> DigitsTask:
    """The scenario's task, on its device."""
    dtype = DTYPES[str(scenario.dtype)]
    device = resolve_device(scenario.device, dtype)
    task = load_digits_task(scenario.task_seed, dtype=dtype)
    if device.type == "cpu":
        return task
    names = ("train_x", "train_y", "test_x", "test_y")
    moved = {name: getattr(task, name).to(device) for name in names}
    return replace(task, model=copy.deepcopy(task.model).to(device), **moved)


class FederatedRun:
    """One run: its clients, its global update and what is measured of it."""

    def __init__(self, scenario: Scenario, rule: AggregationRule, seed: int) -> None:
        self.scenario, self.rule, self.seed = scenario, rule, seed
        self.task, self.config = load_task(scenario), local_config(scenario)
        self.samples = split_clients(scenario, self.task.train_y.cpu().numpy(), seed)
        sizes = tuple(len(own) for own in self.samples)
        self.federation = Federation(scenario.ranks, sizes, scenario.cohort_size, scenario.sampling)
        counts = draw_cohorts(self.federation, scenario.rounds, stream(seed, "cohorts"))
        self.cohorts = [cohort_slots(row, int(np.count_nonzero(row))) for row in counts]
        self.ranks = list(self.federation.ranks)
        self.directions = Directions(scenario, seed, self.federation.r_max)
        self.frozen = {name: Frozen(lora_a=rule.frozen_a) for name in self.task.target_modules}
        self.fresh = self._fresh_factors(0)
        self.state = self._initial_state()
        if rule.frozen_a:  # a row that nobody sent back is still everybody's
            every = torch.arange(self.federation.r_max, device=self.task.train_x.device)
            self.fresh = {name: self._received(name, every, 1.0) for name in self.fresh}

    def _fresh_factors(self, t: int) -> dict[str, LoRAFactors]:
        """What LoRA starts from, A random and B zero, per layer; its draw in round t."""
        fresh, rank = {}, self.federation.r_max
        for name in self.task.target_modules:
            weight = find_linear(self.task.model, name).weight
            drawn = initial_lora_a(self.seed, name, rank, weight.shape[1], t)
            zero = weight.new_zeros(weight.shape[0], rank)
            fresh[name] = LoRAFactors(torch.from_numpy(drawn).to(weight), zero)
        return fresh

    def _initial_state(self) -> GlobalUpdate:
        """Nothing, or what SLoRA's stage has learned, where the rule keeps it."""
        if self.scenario.initializer == "lora":
            return GlobalUpdate(self.fresh)
        total = sparse_stage(
            self.scenario, self.task, self.federation, self.samples, self.config, self.seed
        )
        start = sparse_start(total, self.federation.r_max)
        if self.rule.space == "none":
            return GlobalUpdate(self.fresh, {name: f.delta() for name, f in start.items()})
        return GlobalUpdate(start)

    def run(self, on_progress: Callable[[float], object] = lambda runs: None) -> TrainingResult:
        """Run all rounds."""
        layers = self.task.target_modules
        bases = self.state.svd(self.federation.r_max)
        rows = [self._measure(bases, dict.fromkeys(layers, float("nan")))]
        for t, (clients, drawn) in enumerate(self.cohorts):
            if self.rule.space == "none":  # clients start every round afresh
                self.fresh = self._fresh_factors(t)
            positions = self._positions(t, clients)
            updates = self._train(t, clients, positions)
            preserved = {name: _mean_preservation(bases[name], updates[name]) for name in layers}
            weights = self.federation.cohort_weights(clients, drawn)
            self.state = self.state.after(
                {
                    name: self._aggregate(name, updates[name], positions[name], weights)
                    for name in layers
                }
            )
            bases = self.state.svd(self.federation.r_max)
            rows.append(self._measure(bases, preserved))
            on_progress(1 / self.scenario.rounds)
        values, accuracy, loss, preservation, ranks = (np.stack(x) for x in zip(*rows, strict=True))
        coverage = self.federation.coverage(self.scenario.allocation)
        return TrainingResult(layers, values, accuracy, loss, preservation, coverage, ranks)

    def _positions(self, t: int, clients: NDArray[np.int64]) -> Positions:
        """Rank indices that every client of the cohort receives, per layer."""
        every = torch.arange(self.federation.r_max, device=self.task.train_x.device)
        received = {name: self._received(name, every, 1.0) for name in self.task.target_modules}
        return self.directions.of(
            t,
            clients,
            [self.ranks[k] for k in clients],
            self.state.merged(self.task),
            received,
            [self.samples[k] for k in clients],
            self.frozen,
        )

    def _train(
        self, t: int, clients: NDArray[np.int64], positions: Positions
    ) -> dict[str, list[LoRAFactors]]:
        """Local updates of the cohort, per layer; clients that prune themselves prune here."""
        ranks = [self.ranks[k] for k in clients]
        # A client that has pruned itself keeps its scaling: its update must not jump.
        scalings = [self.scenario.client_scaling(self.federation.ranks[k]) for k in clients]
        adapters: Adapters = {}
        for name in self.task.target_modules:
            pairs = zip(positions[name], scalings, strict=True)
            sent = [self._received(name, held, s) for held, s in pairs]
            adapters[name] = (
                torch.stack([pad_last(f.lora_A.mT, max(ranks)).mT for f in sent]),
                torch.stack([pad_last(f.lora_B, max(ranks)) for f in sent]),
            )
        scenario, tail = self.scenario, None
        if scenario.pruning_decay is not None:
            like = self.task.train_x
            tail = TailPenalty.of(ranks, scenario.pruning_decay, scenario.pruning_penalty, like)
        trained = train_cohort(
            self.state.merged(self.task),
            adapters,
            scalings,
            [self.samples[k] for k in clients],
            client_streams(self.seed, t, clients.tolist()),
            self.config,
            clients=clients.tolist(),
            frozen=self.frozen,
            tail=tail,
        )
        if tail is not None:
            ranks = self._prune(clients, ranks, tail.shrank(adapters, trained))
            for held in positions.values():
                held[:] = [own[:r] for own, r in zip(held, ranks, strict=True)]
        return {
            name: [
                LoRAFactors(a[:r], b[:, :r], s)
                for a, b, r, s in zip(lora_a, lora_b, ranks, scalings, strict=True)
            ]
            for name, (lora_a, lora_b) in trained.items()
        }

    def _prune(self, clients: NDArray[np.int64], ranks: list[int], shrank: list[bool]) -> list[int]:
        """New ranks of the cohort, for this round's update and from now on."""
        assert self.scenario.pruning_decay is not None  # only then is anything pruned
        decay = self.scenario.pruning_decay
        new = [pruned_rank(r, decay) if less else r for r, less in zip(ranks, shrank, strict=True)]
        for k, rank in zip(clients.tolist(), new, strict=True):
            self.ranks[k] = rank
        return new

    def _received(self, name: str, held: Tensor, scaling: float) -> LoRAFactors:
        """What a client starts from: these components of the global adapter, in its scaling.

        A direction of no energy would have both factors zero, where no gradient ever leads out; it
        is sent as LoRA starts every direction, A random and B zero: the update stays as it is.
        """
        whole = self.state.adapters[name]
        state, lost = whole.select(held), whole.lost_columns()[held]
        received = self.rule.rescale(state, scaling)
        fresh = self.fresh[name].lora_A[held]
        lora_a = torch.where(lost.unsqueeze(-1), fresh, received.lora_A)
        return LoRAFactors(lora_a, received.lora_B * ~lost, scaling)

    def _aggregate(
        self,
        name: str,
        updates: list[LoRAFactors],
        positions: list[Tensor],
        weights: NDArray[np.float64],
    ) -> Aggregated:
        subset = self.scenario.allocation != "svd"
        return aggregate(
            updates,
            weights.tolist(),
            self.rule,
            rank_levels=sorted({*self.ranks, self.federation.r_max}),
            positions=[held.tolist() for held in positions] if subset else None,
            previous=self.state.adapters[name],
            empty_partition=self.scenario.empty_partition,
            scaling=1.0,
        )

    def _measure(
        self, bases: dict[str, SVD], preserved: dict[str, float]
    ) -> tuple[NDArray[np.float64], float, float, NDArray[np.float64], NDArray[np.int64]]:
        accuracy, loss = evaluate(self.task, self.state.deltas())
        values = torch.stack([s for _, s, _ in bases.values()]).cpu().double().numpy()
        kept = np.array(list(preserved.values()))
        return values, accuracy, loss, kept, np.array(self.ranks)


def _mean_preservation(basis: SVD, updates: list[LoRAFactors]) -> float:
    """Mean direction-preservation index over the cohort; NaN while the global update is zero."""
    u, s, vh = basis
    if not bool(s.any()):
        return float("nan")
    return float(torch.stack([direction_preservation(u, vh, update) for update in updates]).mean())
