"""The round loop of the matrix fidelity, batched over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.aggregation import AggregationRule, Cohort, State
from fedlora_sim.allocation import carried_directions, leading_directions
from fedlora_sim.draws import (
    allocation_scores,
    basis_rotation,
    client_draws,
    cohort_counts,
    initial_basis,
    subspace_mixing,
)
from fedlora_sim.errors import InputError, expected
from fedlora_sim.federation import cohort_slots
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.matrix.clients import local_factors, split_directions
from fedlora_sim.matrix.descent import Targets, descend
from fedlora_sim.metrics import projected_amplitudes
from fedlora_sim.runtime import DTYPES, leaves_range, one_thread, resolve_device
from fedlora_sim.scenario import Scenario

# Numbers held at once by the largest arrays of a batch: 40 MB in float64.
BATCH_ELEMENTS = 5_000_000


@dataclass(frozen=True, eq=False)
class MatrixResult:
    """Amplitudes of every seed and round.

    Args:
        singular_values: of the global update, (S, T + 1, r_max), descending.
        projected: amplitudes on the initial basis, (S, T + 1, r_max), signed.
    """

    singular_values: NDArray[np.float64]
    projected: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Sequence[MatrixResult]) -> MatrixResult:
        """Results of several batches as one."""
        return cls(
            np.concatenate([p.singular_values for p in parts]),
            np.concatenate([p.projected for p in parts]),
        )


def run_matrix(
    scenario: Scenario,
    rule: AggregationRule,
    seeds: Sequence[int],
    on_progress: Callable[[float], object] = lambda runs: None,
) -> MatrixResult:
    """Run real factors through real aggregation.

    Args:
        scenario: a scenario; `d_in`, `d_out`, `subspace_noise` and `basis_drift` apply.
        rule: the server rule.
        seeds: one run per seed; batching never changes a run.
        on_progress: called with the number of runs finished since the last call.

    Returns:
        Singular values and amplitudes projected on the initial basis.
    """
    # Local factors, or, in a long run of small layers, the gains and drifts of all rounds.
    widest = max(scenario.d_in + scenario.d_out, 2 * scenario.rounds)
    per_run = scenario.federation.num_clients * max(scenario.ranks) * widest
    size = max(1, BATCH_ELEMENTS // per_run)
    parts = []
    with one_thread():
        for start in range(0, len(seeds), size):
            chunk = seeds[start : start + size]
            parts.append(_in_range(scenario, rule, chunk))
            on_progress(len(chunk))
    return MatrixResult(
        np.concatenate([p.singular_values for p in parts]),
        np.concatenate([p.projected for p in parts]),
    )


def _in_range(scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]) -> MatrixResult:
    """One batch; runs whose amplitudes leave the range of float32 are computed in float64."""
    try:
        found = _Batch(scenario, rule, seeds).run()
    except (InputError, torch.linalg.LinAlgError) as error:
        if len(seeds) > 1:  # which run it was shows when each is alone
            return MatrixResult.joined([_in_range(scenario, rule, [seed]) for seed in seeds])
        if scenario.dtype == "float64":
            if isinstance(error, InputError):
                raise
            wanted = f"a run whose amplitudes are numbers; those of seed {seeds[0]} leave float64"
            raise expected("rounds", scenario.rounds, wanted) from None
        return _in_range(scenario.replace(dtype="float64"), rule, seeds)
    lost = np.flatnonzero(leaves_range(found.singular_values)).tolist()
    if scenario.dtype == "float64" or not lost:
        return found
    again = _in_range(scenario.replace(dtype="float64"), rule, [seeds[k] for k in lost])
    found.singular_values[lost], found.projected[lost] = again.singular_values, again.projected
    return found


@dataclass(frozen=True, eq=False)
class _State:
    """The global update: the adapter, and what the base has absorbed, (S, d_out, d_in).

    And what the rule keeps, every tensor led by the seeds.
    """

    adapter: LoRAFactors
    base: Tensor | None = None
    kept: State = field(default_factory=dict)

    def on(self, u: Tensor, v: Tensor) -> Tensor:
        """Amplitudes of the base's correction, `u_i^T Z v_i`, (S, r)."""
        if self.base is None:
            return torch.zeros_like(u[:, 0])
        return (u * (self.base @ v)).sum(-2)


class _Batch:
    """The seeds that advance together; every tensor leads with the seed dimension S."""

    def __init__(self, scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]) -> None:
        self.scenario, self.rule, self.seeds = scenario, rule, seeds
        self.dtype = DTYPES[str(scenario.dtype)]
        self.device = resolve_device(scenario.device, self.dtype)
        self.counts = np.stack([cohort_counts(scenario, s) for s in seeds])
        self.draws = [client_draws(scenario, s) for s in seeds]
        if scenario.allocation == "random":
            self.scores = [allocation_scores(scenario, s) for s in seeds]
        bases = [initial_basis(scenario, s) for s in seeds]
        u0, v0 = (np.stack(side) for side in zip(*bases, strict=True))
        self.u0, self.v0 = self._tensor(u0), self._tensor(v0)
        if scenario.local_loss == "quadratic":
            self.targets = Targets.draw(scenario, seeds, u0, v0).to(self.u0)

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(self.dtype).to(self.device)

    def run(self) -> MatrixResult:
        state = self._initial_state()
        rows = [self._measure(state)]
        for t in range(self.scenario.rounds):
            state = self._round(t, state)
            rows.append(self._measure(state))
        values, projected = (torch.stack(x, 1).cpu().double() for x in zip(*rows, strict=True))
        return MatrixResult(values.numpy(), projected.numpy())

    def _initial_state(self) -> _State:
        """The initial update, where the rule keeps it: in the adapter, or all of it in the base."""
        x = self._tensor(self.scenario.initial_amplitudes)
        if self.rule.frozen_a:
            return _State(LoRAFactors(self.v0.mT.clone(), self.u0 * x))
        root = x.sqrt()
        adapter = LoRAFactors((self.v0 * root).mT, self.u0 * root)
        if self.rule.space != "none":
            return _State(adapter)
        empty = LoRAFactors(torch.zeros_like(adapter.lora_A), torch.zeros_like(adapter.lora_B))
        return _State(empty, adapter.delta())

    def _measure(self, state: _State) -> tuple[Tensor, Tensor]:
        """Singular values of the whole update, and its amplitudes on the initial basis."""
        projected = projected_amplitudes(self.u0, self.v0.mT, state.adapter)
        if state.base is None:
            return state.adapter.svd()[1], projected
        values = torch.linalg.svdvals(state.adapter.delta() + state.base)
        return values[..., : projected.shape[-1]], projected + state.on(self.u0, self.v0)

    def _round(self, t: int, state: _State) -> _State:
        slots, weights = self._slots(t)
        by_svd = self.rule.space == "product"
        u, v, x = split_directions(state.adapter, self.u0, self.v0, sorted_columns=by_svd)
        train = self._fitted if self.scenario.local_loss == "quadratic" else self._returned
        carried, lora_a, lora_b = train(t, slots, state, u, v, x)
        lora_a, lora_b = self._disturb(t, slots, carried, lora_a, lora_b)
        result = self.rule.aggregate(
            _cohort(lora_a, lora_b, weights, carried, self.scenario.federation.levels),
            state.adapter,
            self.scenario.empty_partition,
            state=state.kept,
        )
        if result.base is None:
            return _State(result.adapter, state.base, result.state)
        more = result.base.dense()
        base = more if state.base is None else state.base + more
        return _State(result.adapter, base, result.state)

    def _returned(
        self, t: int, slots: NDArray[np.int64], state: _State, u: Tensor, v: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What clients carry, and their A and B, who bring every amplitude to `a x + b`."""
        z = state.on(u, v)
        total = (x + z).unsqueeze(1)
        gain, drift = self._local_draws(t, slots)
        reached = gain * total + drift
        carried = self._carried(t, slots, (reached - total).abs())
        y, (u, v) = reached - z.unsqueeze(1), (u.unsqueeze(1), v.unsqueeze(1))
        return carried, *local_factors(u, v, y, carried, frozen_a=self.rule.frozen_a)

    def _fitted(
        self, t: int, slots: NDArray[np.int64], state: _State, u: Tensor, v: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What clients carry, and their A and B, who descend to targets of their own."""
        u, v, x = (y.unsqueeze(1) for y in (u, v, x))
        x = x.expand(-1, slots.shape[1], -1)
        targets = self.targets.of(slots)
        # A fresh adapter is as a frozen A has it: A is the directions, and B zero where x is.
        fresh = self.rule.frozen_a or self.rule.space == "none"

        def descended(carried: Tensor) -> tuple[Tensor, Tensor]:
            lora_a, lora_b = local_factors(u, v, x, carried, frozen_a=fresh)
            frozen = self.rule.frozen_a
            return descend(self.scenario, lora_a, lora_b, targets, state.base, frozen_a=frozen)

        movement = x
        if self.scenario.allocation == "importance":  # what all directions would do decides
            lora_a, lora_b = descended(torch.ones_like(x, dtype=torch.bool))
            movement = (((u.mT @ lora_b) * (lora_a @ v).mT).sum(-1) - x).abs()
        carried = self._carried(t, slots, movement)
        return carried, *descended(carried)

    def _carried(self, t: int, slots: NDArray[np.int64], movement: Tensor) -> Tensor:
        """Which directions each client slot carries, boolean (S, m, r_max)."""
        ranks = torch.tensor(self.scenario.ranks, device=self.device)[torch.from_numpy(slots)]
        if self.scenario.allocation == "svd":
            return leading_directions(ranks, movement.shape[-1])
        if self.scenario.allocation == "importance":
            return carried_directions(ranks, movement)
        pairs = zip(self.scores, slots, strict=True)
        scores = np.stack([own[t][clients] for own, clients in pairs])
        return carried_directions(ranks, torch.from_numpy(scores).to(self.device))

    def _slots(self, t: int) -> tuple[NDArray[np.int64], Tensor]:
        """Clients of each seed's cohort, padded to one length with clients of weight zero."""
        slots, drawn = cohort_slots(self.counts[:, t], self.scenario.federation.max_cohort)
        return slots, self._tensor(self.scenario.federation.cohort_weights(slots, drawn))

    def _local_draws(self, t: int, slots: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        rounds = [draws.round(t) for draws in self.draws]
        gain, drift = (
            np.stack([r[side][index] for r, index in zip(rounds, slots, strict=True)])
            for side in (0, 1)
        )
        return self._tensor(gain), self._tensor(drift)

    def _disturb(
        self,
        t: int,
        slots: NDArray[np.int64],
        carried: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mix directions within each client's subspace, then turn its basis; A if it may move."""
        scenario, moves_a = self.scenario, not self.rule.frozen_a
        if scenario.subspace_noise > 0:
            on_b = np.tile(np.eye(lora_a.shape[-2]), (*slots.shape, 1, 1))
            on_a = on_b.copy()
            for s, j in np.ndindex(slots.shape):
                k, held = int(slots[s, j]), np.flatnonzero(carried[s, j].cpu().numpy())
                own = np.ix_(held, held)
                on_b[s, j][own], on_a[s, j][own] = subspace_mixing(
                    scenario, self.seeds[s], t, len(held), k
                )
            lora_b = lora_b @ self._tensor(on_b)
            lora_a = self._tensor(on_a) @ lora_a if moves_a else lora_a
        if scenario.basis_drift != 0:
            turns = [
                [basis_rotation(scenario, seed, t, int(k)) for k in row]
                for seed, row in zip(self.seeds, slots, strict=True)
            ]
            out, inner = (
                self._tensor(np.stack([np.stack([pair[i] for pair in row]) for row in turns]))
                for i in (0, 1)
            )
            lora_b = out @ lora_b
            lora_a = lora_a @ inner.mT if moves_a else lora_a
        return lora_a, lora_b


def _cohort(
    lora_a: Tensor, lora_b: Tensor, weights: Tensor, carried: Tensor, rank_levels: tuple[int, ...]
) -> Cohort:
    """Client slots (S, m, ...), each padded to rank r_max, as the cohorts of S servers."""
    slots, rank = lora_a.shape[1:3]
    return Cohort(
        updates=[LoRAFactors(lora_a[:, k], lora_b[:, k]) for k in range(slots)],
        weights=weights,
        members=carried,
        positions=[torch.arange(rank, device=lora_a.device)] * slots,
        scaling=torch.ones(slots, dtype=lora_a.dtype, device=lora_a.device),
        rank_levels=rank_levels,
    )
