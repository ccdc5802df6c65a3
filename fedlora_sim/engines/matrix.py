"""Matrix fidelity: real factors, trained or perturbed and aggregated, batched over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.account import Account, Carriers, over_rounds
from fedlora_sim.engines.cohort_draws import draw_slots, places
from fedlora_sim.engines.draws import (
    allocation_scores,
    basis_rotation,
    carried_directions,
    client_draws,
    client_targets,
    initial_bases,
    leading_directions,
    subspace_mixing,
    target_rotation,
)
from fedlora_sim.errors import InputError, expected
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.metrics import projected_amplitudes
from fedlora_sim.rules import AggregationRule, Cohort, State
from fedlora_sim.runtime import in_parts, leaves_range, one_thread, resolve_device, torch_dtype
from fedlora_sim.scenario import Scenario

# Local training under the quadratic loss: gradient descent of each client on its two factors.
#
# Client k minimizes `0.5 ||B A + Z - M_k||_F**2`, where Z is the part of the update in the base and
#
#     M_k = (R_k U0) diag(m_k) (Q_k V0)^T,
#
# the initial basis rotated by the client's own rotations. With `E = B A + Z - M_k` the gradients
# are `E A^T` for B and `B^T E` for A, both computed before either factor changes. The products are
# small because M_k has low rank; no (d_out, d_in) matrix is formed. A component whose factors are
# both zero has no gradient and stays zero.
#
# Adam is Kingma and Ba 2015 (arXiv 1412.6980), with bias correction; its moments are reset every
# round. Our derivation; for small steps the amplitudes follow the flow of `engines.spectral`.

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of a batch's clients, `M = left right^T`, with the amplitudes in `left`.

    Args:
        left: (S, K, d_out, r_max).
        right: (S, K, d_in, r_max).
    """

    left: Tensor
    right: Tensor

    @classmethod
    def draw(
        cls,
        scenario: Scenario,
        seeds: Sequence[int],
        u0: NDArray[np.float64],
        v0: NDArray[np.float64],
    ) -> Targets:
        """Return float64 targets on the initial bases u0 (S, d_out, r_max), v0 (S, d_in, r_max)."""
        amplitudes = np.stack([client_targets(scenario, seed) for seed in seeds])
        shape = amplitudes.shape[:2]
        left, right = (
            np.broadcast_to(side[:, None], (*shape, *side.shape[1:])).copy() for side in (u0, v0)
        )
        if scenario.target_angle != 0:
            for s, k in np.ndindex(shape):
                out, inner = target_rotation(scenario, seeds[s], k)
                left[s, k], right[s, k] = out @ left[s, k], inner @ right[s, k]
        return cls(torch.from_numpy(left * amplitudes[:, :, None]), torch.from_numpy(right))

    def to(self, like: Tensor) -> Targets:
        """Return the same targets in the dtype and on the device of a tensor."""
        return Targets(*(x.to(like.dtype).to(like.device) for x in (self.left, self.right)))

    def of(self, slots: NDArray[np.int64]) -> Targets:
        """Return the targets of a cohort with slots (S, m), (S, m, ...)."""
        runs, clients = np.arange(len(slots))[:, None], torch.from_numpy(slots)
        return Targets(self.left[runs, clients], self.right[runs, clients])

    def on(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the amplitudes on given directions (S, 1, d, r), `u_i^T M v_i`, (S, m, r)."""
        return ((u.mT @ self.left) * (v.mT @ self.right)).sum(-1)


def descend(
    scenario: Scenario,
    lora_a: Tensor,
    lora_b: Tensor,
    targets: Targets,
    base: Tensor | None,
    *,
    frozen_a: bool,
) -> tuple[Tensor, Tensor]:
    """Return the factors of each client after its local steps.

    Args:
        scenario: `local_time`, `local_steps` and `optimizer` apply.
        lora_a: (S, m, r, d_in).
        lora_b: (S, m, d_out, r).
        targets: targets of the cohort.
        base: part of the update in the base, Z (S, d_out, d_in); None if there is none.
        frozen_a: train B only.

    Returns:
        lora_A and lora_B of the same shapes.

    Raises:
        InputError: if the steps are too long and the factors diverge.
    """
    assert scenario.local_steps is not None  # checked by the scenario
    rate = scenario.local_time / scenario.local_steps
    move = _adam if scenario.optimizer == "adam" else _sgd
    batch = lora_a.shape[:2]
    b, a, left, right = (
        x.flatten(0, 1) for x in (lora_b, lora_a.mT, targets.left, targets.right)
    )  # all (S m, d, r)
    base_t = None if base is None else base.mT
    on_b, on_a = _moments(b), _moments(a)
    for step in range(1, scenario.local_steps + 1):
        gradient_b = _gradient(b, a, left, right, base)
        if not frozen_a:
            gradient_a = _gradient(a, b, right, left, base_t)
            a = a.add(move(gradient_a, on_a, step), alpha=-rate)
        b = b.add(move(gradient_b, on_b, step), alpha=-rate)
    if not bool(torch.isfinite(a.sum() + b.sum())):
        bound = "a step local_time / local_steps that descent survives (take more local_steps)"
        raise expected("local_time", scenario.local_time, bound)
    return a.mT.unflatten(0, batch), b.unflatten(0, batch)


def _gradient(
    own: Tensor, other: Tensor, own_side: Tensor, other_side: Tensor, base: Tensor | None
) -> Tensor:
    """Return the gradient for one factor, `(own other^T + Z - M) other`, (S m, d, r)."""
    gradient = torch.bmm(own, torch.bmm(other.mT, other))
    gradient.baddbmm_(own_side, torch.bmm(other_side.mT, other), alpha=-1)
    if base is None:
        return gradient
    several = other.unflatten(0, (len(base), -1))
    return gradient + torch.einsum("spd,smdr->smpr", base, several).flatten(0, 1)


Moments = list[Tensor]


def _moments(factor: Tensor) -> Moments:
    return [torch.zeros_like(factor), torch.zeros_like(factor)]


def _sgd(gradient: Tensor, moments: Moments, step: int) -> Tensor:
    return gradient


def _adam(gradient: Tensor, moments: Moments, step: int) -> Tensor:
    """Return Adam's direction and update the moments."""
    first, second = moments
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    spread = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
    return first / (1 - BETAS[0] ** step) / spread


# The client model: how a client changes the factors that it received.
#
# A received column pair is one direction `(u_i, v_i)` with amplitude `x_i = |b_i| |a_i|` in the
# adapter and `z_i = u_i^T Z v_i` in a base that the server corrected by Z. The client changes the
# total to `a_{k,i} (x_i + z_i) + b_{k,i}`, so that its adapter has that value minus z_i. Optionally
# it mixes directions within its subspace and rotates its basis.


def split_directions(
    state: LoRAFactors, u0: Tensor, v0: Tensor, *, sorted_columns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the unit directions and amplitudes of factor columns.

    A lost column has zero factors and no direction on which a drift could act, so it takes an
    initial direction. If columns keep their position, it takes its own. If an SVD sorts the
    columns, it takes one that no nonzero column occupies: the initial directions with the smallest
    projection on the nonzero columns, in order.

    Args:
        state: global factors, batch dimension S.
        u0: initial left basis, (S, d_out, r).
        v0: initial right basis, (S, d_in, r).
        sorted_columns: whether aggregation sorts the columns.

    Returns:
        u (S, d_out, r), v (S, d_in, r) and amplitudes x (S, r), non-negative.
    """
    lost = state.lost_columns()
    norm_b = torch.where(lost, 1.0, state.lora_B.norm(dim=-2))
    norm_a = torch.where(lost, 1.0, state.lora_A.norm(dim=-1))
    u, v = state.lora_B / norm_b.unsqueeze(-2), state.lora_A.mT / norm_a.unsqueeze(-2)
    gone = lost.unsqueeze(-2)
    if sorted_columns and bool(lost.any()):
        taken = (u0.mT @ torch.where(gone, 0.0, u)).square().sum(-1)
        free = carried_directions(lost.sum(-1), -taken)
        source = _matched(lost, free).unsqueeze(-2)
        u0, v0 = (side.gather(-1, source.expand_as(side)) for side in (u0, v0))
    u, v = torch.where(gone, u0, u), torch.where(gone, v0, v)
    return u, v, torch.where(lost, 0.0, state.column_amplitudes())


def _matched(lost: Tensor, free: Tensor) -> Tensor:
    """Return, for the n-th true entry of `lost`, the index of the n-th of `free`, (S, r)."""
    one, other = ((~mask).to(torch.int8).argsort(dim=-1, stable=True) for mask in (lost, free))
    return torch.empty_like(one).scatter_(-1, one, other)


def local_factors(
    u: Tensor, v: Tensor, amplitude: Tensor, carried: Tensor, *, frozen_a: bool
) -> tuple[Tensor, Tensor]:
    """Return local factors with given amplitudes, zero in directions that are not carried.

    Args:
        u: left directions, (S, 1, d_out, r).
        v: right directions, (S, 1, d_in, r).
        amplitude: signed local amplitudes, (S, m, r).
        carried: which directions each client slot carries, boolean (S, m, r).
        frozen_a: A is the unit directions, common to all clients, and B has the amplitude;
            otherwise the amplitude is split evenly.

    Returns:
        lora_A (S, m, r, d_in) and lora_B (S, m, d_out, r), with the sign in B.
    """
    if frozen_a:
        own = carried.to(amplitude.dtype)
        return (v * own.unsqueeze(-2)).mT, u * (own * amplitude).unsqueeze(-2)
    root = torch.where(carried, amplitude.abs().sqrt(), 0.0)
    lora_b = u * (root * amplitude.sign()).unsqueeze(-2)
    lora_a = (v * root.unsqueeze(-2)).mT
    return lora_a, lora_b


# The round loop of the matrix fidelity, batched over seeds

# Most numbers in the largest arrays of a batch: 40 MB in float64.
BATCH_ELEMENTS = 5_000_000


@dataclass(frozen=True, eq=False)
class MatrixResult:
    """Amplitudes of each seed and round.

    Args:
        singular_values: singular values of the global update, (S, T + 1, r_max), descending.
        projected: amplitudes on the initial basis, (S, T + 1, r_max), signed.
        account: arrays of the same shape by the names in `ACCOUNT`; empty unless asked for.
    """

    singular_values: NDArray[np.float64]
    projected: NDArray[np.float64]
    account: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[MatrixResult]) -> MatrixResult:
        """Return the results of several batches as one."""
        return cls(
            np.concatenate([p.singular_values for p in parts]),
            np.concatenate([p.projected for p in parts]),
            {name: np.concatenate([p.account[name] for p in parts]) for name in parts[0].account},
        )

    def replace(self, runs: Sequence[int], others: MatrixResult) -> None:
        """Replace the results of some runs."""
        self.singular_values[runs], self.projected[runs] = others.singular_values, others.projected
        for name, values in others.account.items():
            self.account[name][runs] = values


def run_matrix(
    scenario: Scenario,
    rule: AggregationRule,
    seeds: Sequence[int],
    on_progress: Callable[[float], object] = lambda runs: None,
    *,
    account: bool = False,
) -> MatrixResult:
    """Simulate real factors under real aggregation.

    Args:
        scenario: a scenario; `d_in`, `d_out`, `subspace_noise` and `basis_drift` apply.
        rule: the server rule.
        seeds: one run per seed; the result of a run does not depend on batching.
        on_progress: called with the number of runs finished since the last call.
        account: whether to account for each round.

    Returns:
        Singular values and amplitudes projected on the initial basis.
    """
    # Local factors or, in a long run of small layers, gains and drifts of all rounds.
    widest = max(scenario.d_in + scenario.d_out, 2 * scenario.rounds)
    per_run = places(scenario.federation) * max(scenario.ranks) * widest
    size = max(1, BATCH_ELEMENTS // per_run)
    parts = []
    with one_thread():
        for start in range(0, len(seeds), size):
            chunk = seeds[start : start + size]
            parts += in_parts(lambda part: _in_range(scenario, rule, part, account), chunk)
            on_progress(len(chunk))
    return MatrixResult.joined(parts)


def _in_range(
    scenario: Scenario, rule: AggregationRule, seeds: Sequence[int], account: bool
) -> MatrixResult:
    """Run one batch; runs whose amplitudes leave the range of float32 are repeated in float64."""
    try:
        found = _Batch(scenario, rule, seeds).run(account=account)
    except (InputError, torch.linalg.LinAlgError) as error:
        if len(seeds) > 1:  # run each seed alone to find the failing one
            alone = [_in_range(scenario, rule, [seed], account) for seed in seeds]
            return MatrixResult.joined(alone)
        if scenario.dtype == "float64":
            if isinstance(error, InputError):
                raise
            wanted = f"a run whose amplitudes are numbers; those of seed {seeds[0]} leave float64"
            raise expected("rounds", scenario.rounds, wanted) from None
        return _in_range(scenario.replace(dtype="float64"), rule, seeds, account)
    lost = np.flatnonzero(leaves_range(found.singular_values)).tolist()
    if scenario.dtype == "float64" or not lost:
        return found
    wide = scenario.replace(dtype="float64")
    found.replace(lost, _in_range(wide, rule, [seeds[k] for k in lost], account))
    return found


@dataclass(frozen=True, eq=False)
class _State:
    """State of the global update: the adapter, and the base correction (S, d_out, d_in).

    It also holds the rule's own state. Every tensor has a leading seed dimension.
    """

    adapter: LoRAFactors
    base: Tensor | None = None
    kept: State = field(default_factory=dict)

    def on(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the amplitudes of the base correction, `u_i^T Z v_i`, (S, r)."""
        if self.base is None:
            return torch.zeros_like(u[:, 0])
        return (u * (self.base @ v)).sum(-2)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the leading triplets of the whole update, as many as the adapter has columns."""
        if self.base is None:
            return self.adapter.svd()
        u, s, vh = torch.linalg.svd(self.adapter.delta() + self.base, full_matrices=False)
        r = self.adapter.rank
        return u[..., :r], s[..., :r], vh[..., :r, :]


class _Batch:
    """Seeds that advance together; every tensor has the leading seed dimension S."""

    def __init__(self, scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]) -> None:
        self.scenario, self.rule, self.seeds = scenario, rule, seeds
        self.dtype = torch_dtype(scenario.dtype)
        self.device = resolve_device(scenario.device, self.dtype, "matrix")
        self.slots, self.times = self._cohorts()
        self.draws = client_draws(scenario, seeds, self.dtype, self.device)
        if scenario.allocation == "random":
            self.scores = allocation_scores(scenario, seeds, self.device)
        u0, v0 = (basis.numpy() for basis in initial_bases(scenario, seeds))
        self.u0, self.v0 = self._tensor(u0), self._tensor(v0)
        if scenario.local_loss == "quadratic":
            self.targets = Targets.draw(scenario, seeds, u0, v0).to(self.u0)

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(self.dtype).to(self.device)

    def run(self, *, account: bool = False) -> MatrixResult:
        state = self._initial_state()
        rows, accounts = [self._measure(state)], []
        for t in range(self.scenario.rounds):
            before, (state, cohort) = state, self._round(t, state)
            rows.append(self._measure(state))
            if account:
                accounts.append(self._account(before, cohort, state))
        values, projected = (torch.stack(x, 1).cpu().double() for x in zip(*rows, strict=True))
        found = over_rounds(accounts) if account else {}
        return MatrixResult(values.numpy(), projected.numpy(), found)

    def _account(self, before: _State, cohort: Cohort, after: _State) -> Account:
        """Return the account of a round on the singular directions of the update before it."""
        u, s, vh = before.svd()
        v = vh.mT
        parts = [projected_amplitudes(u, vh, update) for update in cohort.updates]
        norms = None if self.rule.properties.coverage == "weights" else cohort.norms()
        policy = self.scenario.empty_partition
        carriers = Carriers.of(self.rule, policy, cohort.weights, cohort.members, norms)
        now = projected_amplitudes(u, vh, after.adapter) + after.on(u, v)
        return carriers.account_of_svd(s, before.on(u, v), torch.stack(parts, 1), now, s.dtype)

    def _initial_state(self) -> _State:
        """Return the initial update, in the adapter or in the base, depending on the rule."""
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
        """Return singular values of the whole update and its amplitudes on the initial basis."""
        projected = projected_amplitudes(self.u0, self.v0.mT, state.adapter)
        if state.base is None:
            return state.adapter.product.singular_values(state.adapter.rank), projected
        values = torch.linalg.svdvals(state.adapter.delta() + state.base)
        return values[..., : projected.shape[-1]], projected + state.on(self.u0, self.v0)

    def _round(self, t: int, state: _State) -> tuple[_State, Cohort]:
        slots, weights = self._slots(t)
        by_svd = self.rule.space == "product"
        u, v, x = split_directions(state.adapter, self.u0, self.v0, sorted_columns=by_svd)
        train = self._fitted if self.scenario.local_loss == "quadratic" else self._returned
        carried, lora_a, lora_b = train(t, slots, state, u, v, x)
        lora_a, lora_b = self._disturb(t, slots, carried, lora_a, lora_b)
        cohort = _cohort(lora_a, lora_b, weights, carried, self.scenario.federation.levels)
        result = self.rule.aggregate(
            cohort, state.adapter, self.scenario.empty_partition, state=state.kept
        )
        if result.base is None:
            return _State(result.adapter, state.base, result.state), cohort
        more = result.base.dense()
        base = more if state.base is None else state.base + more
        return _State(result.adapter, base, result.state), cohort

    def _returned(
        self, t: int, slots: NDArray[np.int64], state: _State, u: Tensor, v: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return carried directions, A and B of clients that change each amplitude to `a x + b`."""
        z = state.on(u, v)
        total = (x + z).unsqueeze(1)
        gain, drift = self.draws.round(t, torch.from_numpy(slots).to(self.device))
        reached = (gain * total + drift).expand(*slots.shape, -1)
        carried = self._carried(t, slots, (reached - total).abs())
        y, (u, v) = reached - z.unsqueeze(1), (u.unsqueeze(1), v.unsqueeze(1))
        return carried, *local_factors(u, v, y, carried, frozen_a=self.rule.frozen_a)

    def _fitted(
        self, t: int, slots: NDArray[np.int64], state: _State, u: Tensor, v: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return carried directions, A and B of clients that descend to their own targets."""
        u, v, x = (y.unsqueeze(1) for y in (u, v, x))
        x = x.expand(-1, slots.shape[1], -1)
        targets = self.targets.of(slots)
        # A fresh adapter is like one with a frozen A: A holds the directions, and B is zero where x
        # is.
        fresh = self.rule.frozen_a or self.rule.space == "none"

        def descended(carried: Tensor) -> tuple[Tensor, Tensor]:
            lora_a, lora_b = local_factors(u, v, x, carried, frozen_a=fresh)
            frozen = self.rule.frozen_a
            return descend(self.scenario, lora_a, lora_b, targets, state.base, frozen_a=frozen)

        movement = x
        if self.scenario.allocation == "importance":  # the movement of all directions decides
            lora_a, lora_b = descended(torch.ones_like(x, dtype=torch.bool))
            movement = (((u.mT @ lora_b) * (lora_a @ v).mT).sum(-1) - x).abs()
        carried = self._carried(t, slots, movement)
        return carried, *descended(carried)

    def _carried(self, t: int, slots: NDArray[np.int64], movement: Tensor) -> Tensor:
        """Return which directions each client slot carries, boolean (S, m, r_max)."""
        ranks = torch.tensor(self.scenario.ranks, device=self.device)[torch.from_numpy(slots)]
        if self.scenario.allocation == "svd":
            return leading_directions(ranks, movement.shape[-1])
        if self.scenario.allocation == "importance":
            return carried_directions(ranks, movement)
        return carried_directions(ranks, self.scores[:, t])

    def _cohorts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the client in each place of the cohorts, and how often it is in it, (S, T, m)."""
        federation, rounds = self.scenario.federation, self.scenario.rounds
        drawn = draw_slots(federation, rounds, self.seeds, torch.device("cpu"))
        clients, times = (x.expand(len(self.seeds), rounds, -1).numpy() for x in drawn)
        return clients, times

    def _slots(self, t: int) -> tuple[NDArray[np.int64], Tensor]:
        """Return each seed's cohort, padded to one length with zero-weight clients."""
        slots, times = self.slots[:, t], self.times[:, t]
        return slots, self._tensor(self.scenario.federation.cohort_weights(slots, times))

    def _disturb(
        self,
        t: int,
        slots: NDArray[np.int64],
        carried: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mix directions within each client's subspace, then rotate its basis.

        A only if it is trained.
        """
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
    """Return client slots (S, m, ...), each padded to rank r_max, as the cohorts of S servers."""
    slots, rank = lora_a.shape[1:3]
    return Cohort(
        updates=[LoRAFactors(lora_a[:, k], lora_b[:, k]) for k in range(slots)],
        weights=weights,
        members=carried,
        positions=[torch.arange(rank, device=lora_a.device)] * slots,
        scaling=torch.ones(slots, dtype=lora_a.dtype, device=lora_a.device),
        rank_levels=rank_levels,
    )
