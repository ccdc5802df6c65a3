"""Matrix fidelity: real factors, trained or perturbed and aggregated, batched over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.account import Account, Carriers, over_rounds
from fedlora_sim.engines.cohort_draws import draw_slots, places
from fedlora_sim.engines.draws import (
    allocation_scores,
    basis_draws,
    carried_directions,
    client_draws,
    client_targets,
    initial_bases,
    leading_directions,
    subspace_mixing,
    target_rotation,
    turned,
)
from fedlora_sim.errors import InputError, expected
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import SVD, StartingDirections, svd_near
from fedlora_sim.metrics import projected_amplitudes
from fedlora_sim.rules import AggregationRule, Cohort, State
from fedlora_sim.rules.cohort import StackedUpdates
from fedlora_sim.rules.external import ExternalRule
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

    def of(self, clients: Tensor) -> Targets:
        """Return the targets of a cohort's clients (S, m), (S, m, ...)."""
        runs = torch.arange(len(clients), device=clients.device).unsqueeze(1)
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
    norm_b, norm_a = state.lora_B.norm(dim=-2), state.lora_A.norm(dim=-1)
    x = abs(state.scaling) * norm_b * norm_a
    lost = state.lost_columns(x)
    if not bool(lost.any()):
        return state.lora_B / norm_b.unsqueeze(-2), state.lora_A.mT / norm_a.unsqueeze(-2), x
    gone = lost.unsqueeze(-2)
    u = state.lora_B / torch.where(lost, 1.0, norm_b).unsqueeze(-2)
    v = state.lora_A.mT / torch.where(lost, 1.0, norm_a).unsqueeze(-2)
    if sorted_columns:
        taken = (u0.mT @ torch.where(gone, 0.0, u)).square().sum(-1)
        free = carried_directions(lost.sum(-1), -taken)
        source = _matched(lost, free).unsqueeze(-2)
        u0, v0 = (side.gather(-1, source.expand_as(side)) for side in (u0, v0))
    u, v = torch.where(gone, u0, u), torch.where(gone, v0, v)
    return u, v, torch.where(lost, 0.0, x)


def _matched(lost: Tensor, free: Tensor) -> Tensor:
    """Return, for the n-th true entry of `lost`, the index of the n-th of `free`, (S, r)."""
    one, other = ((~mask).to(torch.int8).argsort(dim=-1, stable=True) for mask in (lost, free))
    return torch.empty_like(one).scatter_(-1, one, other)


def local_factors(
    u: Tensor,
    v: Tensor,
    amplitude: Tensor,
    carried: Tensor,
    *,
    frozen_a: bool,
    out: Sequence[Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """Return local factors with given amplitudes, zero in directions that are not carried.

    Args:
        u: left directions, (S, 1, d_out, r).
        v: right directions, (S, 1, d_in, r).
        amplitude: signed local amplitudes, (S, m, r).
        carried: which directions each client slot carries, boolean (S, m, r).
        frozen_a: A is the unit directions, common to all clients, and B has the amplitude;
            otherwise the amplitude is split evenly.
        out: memory for A and B, (S, r, m, d) each; new if None.

    Returns:
        lora_A (S, m, r, d_in) and lora_B (S, m, d_out, r), with the sign in B.
    """
    if frozen_a:
        on_a = carried.to(amplitude.dtype)
        on_b = on_a * amplitude
    else:
        on_a = torch.where(carried, amplitude.abs().sqrt(), 0.0)
        on_b = on_a * amplitude.sign()
    # In memory (S, r, m, d), as `StackedUpdates` sums it.
    rows_a, rows_b = (
        torch.mul(
            side.mT.contiguous().transpose(1, 2), on.mT.contiguous().unsqueeze(-1), out=memory
        ).transpose(1, 2)
        for side, on, memory in zip((v, u), (on_a, on_b), out, strict=True)
    )
    return rows_a, rows_b.mT


# The round loop of the matrix fidelity, batched over seeds

BATCH_ELEMENTS = 2_500_000
"""Most numbers in the local factors of a batch on a CPU.

Enough to make the fixed cost of an operation small; more would gain little.
"""
ARRAYS = 8
"""Arrays of the size of the local factors that a round holds at a time."""


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
    size = _batch_size(scenario)
    parts = []
    with one_thread():
        for chunk in _chunks(seeds, size):
            parts += in_parts(lambda part: _in_range(scenario, rule, part, account), chunk)
            on_progress(len(chunk))
    return MatrixResult.joined(parts)


def _chunks(seeds: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield batches of nearly equal length, at most `size`."""
    count = -(-len(seeds) // size)
    edges = [k * len(seeds) // count for k in range(count + 1)]
    for start, end in pairwise(edges):
        yield seeds[start:end]


def _batch_size(scenario: Scenario) -> int:
    """Return the number of seeds that advance together, from the sizes of their arrays."""
    cohort = places(scenario.federation) * scenario.federation.r_max
    factors = cohort * (scenario.d_in + scenario.d_out)
    device = resolve_device(scenario.device, torch_dtype(scenario.dtype), "matrix")
    if device.type != "cuda":
        return max(1, BATCH_ELEMENTS // factors)
    free, _ = torch.cuda.mem_get_info(device)
    drawn = 2 * cohort * scenario.rounds
    numbers = ARRAYS * (factors + scenario.d_in * scenario.d_out) + drawn
    return max(1, free // 2 // (8 * numbers))


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


@dataclass(frozen=True, eq=False)
class _Seen:
    """A state and what is computed from it once: its directions, amplitudes and triplets.

    Args:
        state: the state.
        near: unit directions u and v of the adapter's columns, (S, d, r).
        x: amplitudes of the adapter on them, (S, r).
        values: leading singular values of the whole update, (S, r), descending.
        svd: returns the triplets.
    """

    state: _State
    near: StartingDirections
    x: Tensor
    values: Tensor
    svd: Callable[[], SVD]


class _Batch:
    """Seeds that advance together; every tensor has the leading seed dimension S."""

    def __init__(self, scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]) -> None:
        self.scenario, self.rule, self.seeds = scenario, rule, seeds
        self.dtype = torch_dtype(scenario.dtype)
        self.device = resolve_device(scenario.device, self.dtype, "matrix")
        # Whether clients keep the directions of the global update, from which SVDs can then start.
        disturbed = scenario.subspace_noise, scenario.basis_drift, scenario.target_angle
        self.stays = not any(disturbed)
        # Client in each place of the cohorts, its weight (zero if empty) and rank, (S, T, m).
        self.clients, self.weights, self.ranks = self._cohorts()
        self.draws = client_draws(scenario, seeds, self.dtype, self.device)
        self.memory: list[Tensor] = []
        if scenario.allocation == "random":
            self.scores = allocation_scores(scenario, seeds, self.device)
        u0, v0 = (basis.numpy() for basis in initial_bases(scenario, seeds))
        self.u0, self.v0 = self._tensor(u0), self._tensor(v0)
        if scenario.local_loss == "quadratic":
            self.targets = Targets.draw(scenario, seeds, u0, v0).to(self.u0)

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(self.dtype).to(self.device)

    def run(self, *, account: bool = False) -> MatrixResult:
        seen = self._seen(self._initial_state())
        rows, accounts = [self._measure(seen)], []
        for t in range(self.scenario.rounds):
            before, (state, cohort) = seen, self._round(t, seen)
            seen = self._seen(state)
            rows.append(self._measure(seen))
            if account:
                accounts.append(self._account(before, cohort, state))
        values, projected = (torch.stack(x, 1).cpu().double() for x in zip(*rows, strict=True))
        found = over_rounds(accounts) if account else {}
        return MatrixResult(values.numpy(), projected.numpy(), found)

    def _seen(self, state: _State) -> _Seen:
        """Return a state with its triplets.

        Columns of the adapter that are orthogonal on both sides need no further decomposition. They
        are after an SVD, and where clients change only the amplitudes of given directions.
        """
        by_svd = self.rule.space == "product"
        u, v, x = split_directions(state.adapter, self.u0, self.v0, sorted_columns=by_svd)
        near = StartingDirections.of(u, v)
        if state.base is not None:
            whole = state.adapter.delta() + state.base
            svd = svd_near(whole, near if self.stays else None, x.shape[-1])
            return _Seen(state, near, x, svd[1], lambda: svd)
        if bool(near.have_values.all()):
            values = x.sort(dim=-1, descending=True).values
            return _Seen(state, near, x, values, lambda: near.sorted(x))
        svd = near.sorted(x)
        other = ~near.have_values
        again = LoRAFactors(state.adapter.lora_A[other], state.adapter.lora_B[other]).svd()
        for found, part in zip(svd, again, strict=True):
            found[other] = part
        return _Seen(state, near, x, svd[1], lambda: svd)

    def _account(self, before: _Seen, cohort: Cohort, after: _State) -> Account:
        """Return the account of a round on the singular directions of the update before it."""
        u, s, vh = before.svd()
        v = vh.mT
        updates = cohort.updates
        assert isinstance(updates, StackedUpdates)
        returned = projected_amplitudes(u.unsqueeze(1), vh.unsqueeze(1), updates.factors)
        norms = None if self.rule.properties.coverage == "weights" else cohort.norms()
        policy = self.scenario.empty_partition
        carriers = Carriers.of(self.rule, policy, cohort.weights, cohort.members, norms)
        now = projected_amplitudes(u, vh, after.adapter) + after.on(u, v)
        return carriers.account_of_svd(s, before.state.on(u, v), returned, now, s.dtype)

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

    def _measure(self, seen: _Seen) -> tuple[Tensor, Tensor]:
        """Return singular values of the whole update and its amplitudes on the initial basis."""
        projected = projected_amplitudes(self.u0, self.v0.mT, seen.state.adapter)
        if seen.state.base is not None:
            projected = projected + seen.state.on(self.u0, self.v0)
        return seen.values, projected

    def _round(self, t: int, seen: _Seen) -> tuple[_State, Cohort]:
        state, u, v, x = seen.state, seen.near.u, seen.near.v, seen.x
        slots = self.clients[:, t]
        train = self._fitted if self.scenario.local_loss == "quadratic" else self._returned
        carried, lora_a, lora_b = train(t, slots, state, u, v, x)
        lora_a, lora_b = self._disturb(t, carried, lora_a, lora_b)
        cohort = _cohort(
            StackedUpdates(LoRAFactors(lora_a, lora_b)),
            self.weights[:, t],
            carried,
            self.scenario.federation.levels,
            seen.near if self.stays else None,
        )
        result = self.rule.aggregate(
            cohort, state.adapter, self.scenario.empty_partition, state=state.kept
        )
        if result.base is None:
            return _State(result.adapter, state.base, result.state), cohort
        more = result.base.dense()
        base = more if state.base is None else state.base + more
        return _State(result.adapter, base, result.state), cohort

    def _returned(
        self, t: int, slots: Tensor, state: _State, u: Tensor, v: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return carried directions, A and B of clients that change each amplitude to `a x + b`."""
        z = state.on(u, v)
        total = (x + z).unsqueeze(1)
        gain, drift = self.draws.round(t, slots)
        reached = (gain * total + drift).expand(*slots.shape, -1)
        carried = self._carried(t, (reached - total).abs())
        y, (u, v) = reached - z.unsqueeze(1), (u.unsqueeze(1), v.unsqueeze(1))
        factors = local_factors(u, v, y, carried, frozen_a=self.rule.frozen_a, out=self._memory())
        return carried, *factors

    def _memory(self) -> Sequence[Tensor | None]:
        """Return the memory of a cohort's factors, the same in every round: new pages cost time.

        An external rule may keep views of the factors.
        """
        if isinstance(self.rule, ExternalRule):
            return None, None
        if not self.memory:
            shape = (len(self.seeds), self.u0.shape[-1], self.clients.shape[-1])
            sizes = self.scenario.d_in, self.scenario.d_out
            self.memory = [self.u0.new_empty(*shape, size) for size in sizes]
        return self.memory

    def _fitted(
        self, t: int, slots: Tensor, state: _State, u: Tensor, v: Tensor, x: Tensor
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
        carried = self._carried(t, movement)
        return carried, *descended(carried)

    def _carried(self, t: int, movement: Tensor) -> Tensor:
        """Return which directions each client slot carries, boolean (S, m, r_max)."""
        ranks = self.ranks[:, t]
        if self.scenario.allocation == "svd":
            return leading_directions(ranks, movement.shape[-1])
        if self.scenario.allocation == "importance":
            return carried_directions(ranks, movement)
        return carried_directions(ranks, self.scores[:, t])

    def _cohorts(self) -> tuple[Tensor, Tensor, Tensor]:
        federation, rounds = self.scenario.federation, self.scenario.rounds
        drawn = draw_slots(federation, rounds, self.seeds, torch.device("cpu"))
        clients, times = (x.expand(len(self.seeds), rounds, -1) for x in drawn)
        weights = federation.cohort_weights(clients.numpy(), times.numpy())
        ranks = torch.tensor(federation.ranks)[clients]
        return clients.to(self.device), self._tensor(weights), ranks.to(self.device)

    def _disturb(
        self,
        t: int,
        carried: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mix directions within each client's subspace, then rotate its basis.

        A only if it is trained.
        """
        scenario, moves_a = self.scenario, not self.rule.frozen_a
        span_b, span_a = lora_b, lora_a.mT
        if scenario.subspace_noise > 0:
            drawn = subspace_mixing(scenario, self.seeds, t, carried)
            on_b, on_a = (x.to(self.dtype) for x in drawn)
            lora_b = (on_b.mT @ lora_b.mT).mT
            lora_a = on_a @ lora_a if moves_a else lora_a
        if scenario.basis_drift != 0:
            drawn = basis_draws(scenario, self.seeds, t, self.device)
            out, inner = (x.to(self.dtype) for x in drawn)
            lora_b = turned(lora_b, span_b, out, scenario.basis_drift)
            if moves_a:
                lora_a = turned(lora_a.mT, span_a, inner, scenario.basis_drift).mT
        return lora_a, lora_b


def _cohort(
    updates: StackedUpdates,
    weights: Tensor,
    carried: Tensor,
    rank_levels: tuple[int, ...],
    near: StartingDirections | None,
) -> Cohort:
    """Return client slots (S, m, ...), each padded to rank r_max, as the cohorts of S servers."""
    factors, slots = updates.factors, len(updates)
    return Cohort(
        updates=updates,
        weights=weights,
        members=carried,
        positions=[torch.arange(factors.rank, device=factors.device)] * slots,
        scaling=torch.ones(slots, dtype=factors.dtype, device=factors.device),
        rank_levels=rank_levels,
        near=near,
    )
