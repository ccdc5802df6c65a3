"""Spectral fidelity: one amplitude per direction; many seeds and scenarios in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from fedlora_sim.account import Account, Carriers, over_rounds
from fedlora_sim.engines.cohort_draws import places
from fedlora_sim.engines.cohorts import (
    Cohorts,
    CohortShares,
    ShareSums,
    counts_carriers,
    draw,
    empty_direction,
    place_of,
)
from fedlora_sim.engines.draws import (
    ClientDraws,
    are_persistent,
    carried_directions,
    client_draws,
    client_targets,
    is_noisy,
)
from fedlora_sim.errors import expected
from fedlora_sim.lowrank import LowRankProduct
from fedlora_sim.randomness import normals
from fedlora_sim.rules import AggregationRule
from fedlora_sim.runtime import in_parts, leaves_range
from fedlora_sim.scenario import Scenario

T = TypeVar("T")

# Local training under the quadratic loss: its exact gradient flow.
#
# A client that fits the amplitude m from balanced factors of amplitude x, `B = sqrt(x) u` and
# `A = sqrt(x) v^T`, follows `dx/dt = 2 x (m - x)` and reaches after time T
#
#     f(x) = m G x / (m + x (G - 1)), G = exp(2 m T) (m = 0: x / (1 + 2 T x)).
#
# With A frozen at unit rows the flow is `dx/dt = m - x`, `f(x) = m + (x - m) exp(-T)`. Both are
# Moebius maps. Clients with equal targets have the same map, so that the server's round is this map
# times a factor of the cohort. Our derivation.


@dataclass(frozen=True, eq=False)
class LocalMap:
    """Effect of local training on an amplitude, `f(x) = (scale x + shift) / (rise x + decay)`.

    Args:
        scale, shift, rise, decay: coefficients of one shape (...) that broadcasts against the
            amplitudes; for x >= 0 the denominator is positive.
    """

    scale: Tensor
    shift: Tensor
    rise: Tensor
    decay: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the amplitudes after the round's local training."""
        return (self.scale * x + self.shift) / (self.rise * x + self.decay)

    def of(self, runs: Tensor, clients: Tensor) -> LocalMap:
        """Return the maps of selected clients, (S, m, r_max), from maps (S, K, r_max)."""
        return LocalMap(*(c[runs, clients] for c in self._coefficients()))

    def _coefficients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.scale, self.shift, self.rise, self.decay

    @classmethod
    def fitting(cls, target: Tensor, local_time: float, *, frozen_a: bool) -> LocalMap:
        """Return the map of a client that fits these amplitudes for the given time.

        Args:
            target: signed amplitudes m, (...).
            local_time: T > 0.
            frozen_a: train B only.
        """
        one, zero = torch.ones_like(target), torch.zeros_like(target)
        if frozen_a:
            scale = one * math.exp(-local_time)
            return cls(scale, -math.expm1(-local_time) * target, zero, one)
        # Divided by G, which may overflow. Its inverse is kept above zero, so that an amplitude of
        # zero stays zero. A small G (a target far below zero) has an inverse that is kept finite;
        # the result is close to zero in that case.
        limit = math.log(torch.finfo(target.dtype).max) / 2
        exponent = (2 * local_time * target).clamp_min(-limit)
        safe = torch.where(exponent == 0, 1.0, exponent)
        ratio = torch.where(exponent == 0, 1.0, -torch.expm1(-safe) / safe)
        decay = torch.exp(-exponent).clamp_min(torch.finfo(target.dtype).tiny)
        return cls(one, zero, 2 * local_time * ratio, decay)


@dataclass(frozen=True, eq=False)
class FlowRecursion:
    """Recursion `x' = factor f(x)`, or x where the amplitude is kept.

    Args:
        initial: amplitudes at round 0, (S, r_max).
        local: the map of all clients, coefficients (r_max,).
        factor: factor of each run, round and direction, (S or 1, T or 1, r_max).
        kept: where the last amplitude is kept, boolean of the same shape; None keeps nothing.
        rounds: T.
    """

    initial: Tensor
    local: LocalMap
    factor: Tensor
    kept: Tensor | None
    rounds: int

    def run(self) -> Tensor:
        """Return the amplitudes of each round, (S, T + 1, r_max)."""
        x = self.initial
        states = [x]
        for t in range(self.rounds):
            row = t % self.factor.shape[1]
            moved = self.factor[:, row] * self.local(x)
            x = moved if self.kept is None else torch.where(self.kept[:, row], x, moved)
            states.append(x)
        return torch.stack(states, dim=1)


def refuse_flow(rule: AggregationRule) -> None:
    """Refuse rules whose round under the quadratic loss is not a map of balanced amplitudes.

    Raises:
        InputError: names the rule and the reason.
    """
    reason = None
    if rule.space == "none":
        reason = "clients start from a fresh adapter, whose factors are not balanced"
    elif rule.residual_in_base:
        reason = "the base moves, and with it what is left to fit"
    if reason is not None:
        options = f"a rule other than {rule.label} at fidelity='spectral' with"
        raise expected("rule", rule.label, f"{options} local_loss='quadratic': {reason}")


# The round client by client, for rules that are not a function of the cohort's sum.
#
# The global update is `x + z` in every direction: x in the adapter, z in the base. A client changes
# the total to `a (x + z) + b`, or to the result of its training, and returns y, that value minus z.
# Product-space averaging of the adapters gives `sum w y`. Factor-space averaging, where A holds
# `sqrt|y|` and B holds `sgn(y) sqrt|y|`, gives the product of the two averages.

# Local change of the total. Arguments: round, runs (S, 1), clients (S or 1, m), total (S, 1,
# r_max); result: (S, m, r_max).
Local = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class AffineClients:
    """Clients that change the total to `a x + b`."""

    draws: ClientDraws

    def __call__(self, t: int, runs: Tensor, clients: Tensor, total: Tensor) -> Tensor:
        """Return the amplitudes that the clients of round t reach."""
        gain, drift = self.draws.round(t, clients)
        return (gain * total + drift).expand(len(runs), clients.shape[1], -1)


@dataclass(frozen=True, eq=False)
class FittingClients:
    """Clients that follow the flow to their own targets, the same in every round.

    Args:
        local: coefficients (S, K, r_max).
    """

    local: LocalMap

    def __call__(self, t: int, runs: Tensor, clients: Tensor, total: Tensor) -> Tensor:
        """Return the amplitudes that the clients of round t reach."""
        return self.local.of(runs, clients)(total)


def run_clients(
    scenario: Scenario,
    rule: AggregationRule,
    initial: Tensor,
    cohorts: Cohorts,
    local: Local,
    rows: list[Account] | None = None,
) -> Tensor:
    """Return the amplitudes of the whole update, computed client by client.

    Args:
        scenario: the federation, its allocation and its policy.
        rule: the server rule.
        initial: (S, r_max).
        cohorts: participants with their weights and directions.
        local: the local change of each client.
        rows: receives the account of each round, unless None.

    Returns:
        (S, T + 1, r_max).

    Raises:
        InputError: if a direction has no contributors under `empty_partition='error'`.
    """
    zero = torch.zeros_like(initial)
    x, z = (zero, initial) if rule.space == "none" else (initial, zero)
    states = [initial]
    runs = torch.arange(len(initial), device=initial.device).unsqueeze(1)
    for t in range(scenario.rounds):
        clients, weights, members = cohorts.round(t)
        total = (x + z).unsqueeze(1)
        reached = local(t, runs, clients, total)
        if scenario.allocation == "importance":
            members = carried_directions(cohorts.ranks[clients], (reached - total).abs())
        y = (reached - z.unsqueeze(1)) * members
        norms = y.square().sum(-1).sqrt() if rule.weights_from_norms else None
        shares = rule.direction_weights(weights, members, norms)
        new_x, more = average_amplitudes(rule, y, shares)
        if rule.has_empty_partition_policy:
            empty = ~(members & (weights > 0).unsqueeze(-1)).any(-2)
            _refuse_empty(scenario, empty, t)
            new_x = torch.where(empty & (scenario.empty_partition == "carry"), x, new_x)
        if rows is not None:
            carriers = Carriers.of(rule, scenario.empty_partition, weights, members, norms)
            rows.append(carriers.account(x + z, z, y, new_x + (z + more)))
        x, z = new_x, z + more
        states.append(x + z)
    return torch.stack(states, dim=1)


def average_amplitudes(rule: AggregationRule, y: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the server's average of adapters that share a basis.

    Args:
        rule: the server rule.
        y: amplitudes of the clients' adapters, (S, m, r_max), zero where not carried.
        shares: the rule's weights, (S, m, r_max).

    Returns:
        The new adapter and the increment of the base, each (S, r_max).
    """
    exact = (shares * y).sum(1)
    adapter = exact
    if rule.space == "none":
        adapter = torch.zeros_like(exact)
    elif rule.space == "factor" and not rule.frozen_a:
        root = y.abs().sqrt()
        adapter = (shares * root).sum(1) * (shares * root * y.sign()).sum(1)
    if not rule.residual_in_base:
        return adapter, torch.zeros_like(exact)
    return adapter, _kept_residual(rule, exact - adapter)


def _kept_residual(rule: AggregationRule, residual: Tensor) -> Tensor:
    """Return the part of a residual, diagonal in the basis, that the rule keeps, (S, r_max)."""
    ones = torch.ones_like(residual)
    exact = LowRankProduct([(torch.diag_embed(residual), torch.diag_embed(ones))], ones)
    kept = rule.compress(exact)
    return residual if kept is exact else kept.dense().diagonal(dim1=-2, dim2=-1)


def _refuse_empty(scenario: Scenario, empty: Tensor, t: int) -> None:
    if scenario.empty_partition == "error" and bool(empty.any()):
        run, direction = empty.nonzero()[0].tolist()
        raise empty_direction(run, t, direction)


# The round as a random affine map of each amplitude, and the loop that applies it to a batch.
#
# The clients of a cohort return `a_k x + b_k`; in product space the server forms their weighted
# sum. With fresh independent Gaussian gains and drifts that sum is itself Gaussian given the
# cohort, with mean `(g x + c) sum w` and variance `(nu**2 x**2 + tau**2) sum w**2`. One normal draw
# per direction therefore replaces one per client: the distribution is exact, at 1/K of the cost.


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a new tensor; on the CPU one of NumPy's, which uses freed memory again."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(shape, dtype=str(like.dtype).removeprefix("torch.")))


@dataclass(frozen=True, eq=False)
class Recursion:
    """Recursion `x' = (kept + s trained) x + s (shift + norm hypot(gain_std x, drift_std) z)`.

    The coefficients of a cohort are a row for each run and round, with an entry for each group of
    directions, or, where few cohorts differ, a row of a table.

    Args:
        initial: amplitudes at round 0, (S, r_max).
        kept, norm: coefficients, (S or 1, T or 1, groups), or (U, r_max) with an index.
        trained, shift: the same, or None for zero.
        scales: learning rate s of each round relative to the first one, T numbers.
        gain_std, drift_std: spread of gains and drifts, (S or 1, 1).
        noise: standard normal z, (S, T, r_max), or None for zero.
        index: row of each run and round, (S or 1, T or 1); None if there is no table.
        groups: 1 where a direction is in a group, else 0, (groups, r_max); None if coefficients
            have an entry for each direction.
    """

    initial: Tensor
    kept: Tensor
    norm: Tensor
    trained: Tensor | None
    shift: Tensor | None
    scales: Sequence[float]
    gain_std: Tensor
    drift_std: Tensor
    noise: Tensor | None
    index: Tensor | None = None
    groups: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Runs S, rounds T and directions r_max."""
        return (len(self.initial), len(self.scales), self.initial.shape[1])

    def run(self) -> Tensor:
        """Return the amplitudes of each round, (S, T + 1, r_max)."""
        runs, rounds, directions = self.shape
        states = _empty((runs, rounds + 1, directions), self.initial)
        states[:, 0] = self.initial
        added = torch.zeros_like(self.initial)
        for t, scale in enumerate(self.scales):
            x, factor = states[:, t], self._of_runs(self.kept, t)
            if self.trained is not None:
                factor = factor + scale * self._of_runs(self.trained, t)
            if self.noise is not None:
                added = self._spread(x).mul_(self._of_runs(self.norm, t)).mul_(self.noise[:, t])
            if self.shift is not None:
                shift = self._of_runs(self.shift, t)
                added = shift if self.noise is None else added.add_(shift)
            if scale != 1:
                added = added * scale
            torch.addcmul(added, x, factor, out=states[:, t + 1])
        return states

    def _of_runs(self, coefficients: Tensor, t: int) -> Tensor:
        """Return the coefficients of each run and direction in round t, (S or 1, r_max)."""
        if self.index is not None:
            return coefficients.index_select(0, self.index[:, t % self.index.shape[1]])
        rows = coefficients[:, t % coefficients.shape[1]]
        # Each direction takes the value of its group: a product with zeros and ones is exact.
        return rows if self.groups is None else rows @ self.groups

    def _spread(self, x: Tensor) -> Tensor:
        """Return `hypot(gain_std x, drift_std)`, (S, r_max)."""
        if x.dtype == torch.float32 or x.device.type != "cpu":  # where it is as fast
            return torch.hypot(self.gain_std * x, self.drift_std)
        # An amplitude whose square float64 cannot hold has an energy that it cannot hold.
        return torch.addcmul(self.drift_std.square(), self.gain_std.square(), x.square()).sqrt_()

    @classmethod
    def concatenate(cls, parts: Sequence[Recursion]) -> Recursion:
        """Return batches with the same numbers of rounds and directions as one."""
        # A table saves memory; on an accelerator, rows for all runs save launches.
        if len(parts) == 1 and parts[0].initial.device.type == "cpu":
            return parts[0]
        columns: list[Any] = [
            torch.cat(column) for column in zip(*(p._dense() for p in parts), strict=True)
        ]
        initial, kept, norm, shift, *rest = columns
        if all(part.shift is None for part in parts):
            shift = None
        return cls(initial, kept, norm, None, shift, [1.0] * kept.shape[1], *rest)

    def _dense(self) -> tuple[Tensor, ...]:
        """Return the initial amplitudes, the coefficients of each run and round, and the noise."""
        scales = self.initial.new_tensor(self.scales)[:, None]
        nothing = self.initial.new_zeros(1, 1, 1).expand(self.shape)
        kept, norm, trained, shift = (
            0.0 if c is None else self._of_rounds(c)
            for c in (self.kept, self.norm, self.trained, self.shift)
        )
        return (
            self.initial,
            *(
                (nothing + rows)
                for rows in (kept + scales * trained, scales * norm, scales * shift)
            ),
            *(std.expand(len(self.initial), 1) for std in (self.gain_std, self.drift_std)),
            nothing if self.noise is None else self.noise,
        )

    def _of_rounds(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients of all runs and rounds, (S or 1, T or 1, r_max)."""
        if self.index is not None:
            return coefficients[self.index]
        return coefficients if self.groups is None else coefficients @ self.groups


# Batched runs

BATCH_ELEMENTS = 20_000_000
"""Most numbers in the largest array of a batch: 160 MB in float64."""


def run_spectral(
    scenarios: Sequence[Scenario],
    rule: AggregationRule,
    seeds: Sequence[int],
    on_progress: Callable[[float], object] = lambda runs: None,
) -> list[NDArray[np.float64]]:
    """Return the amplitudes of each scenario, seed, round and direction.

    A run whose amplitudes leave the range of float32 is computed in float64.

    Runs with equal rounds, r_max, dtype and device advance together. Batching does not change the
    result of a run, whose draws follow from its own seed.

    Args:
        scenarios: any number of spectral scenarios.
        rule: the server rule.
        seeds: one run per scenario and seed.
        on_progress: called with the number of runs finished since the last call.

    Returns:
        For each scenario an array (S, T + 1, r_max) of signed amplitudes.

    Raises:
        InputError: for the quadratic loss under a rule without an exact map.
    """
    found = _run_all(scenarios, rule, seeds, on_progress)
    for index, scenario in enumerate(scenarios):
        if scenario.dtype == "float64":
            continue
        lost = np.flatnonzero(leaves_range(found[index])).tolist()
        if lost:  # repeat those runs in float64
            again = [seeds[k] for k in lost]
            (found[index][lost],) = _run_all([scenario.replace(dtype="float64")], rule, again)
    return found


def _run_all(
    scenarios: Sequence[Scenario],
    rule: AggregationRule,
    seeds: Sequence[int],
    on_progress: Callable[[float], object] = lambda runs: None,
) -> list[NDArray[np.float64]]:
    """Return the amplitudes of all runs, each in its scenario's dtype."""
    if any(map(_fits, scenarios)):
        refuse_flow(rule)
    results: list[list[NDArray[np.float64]]] = [[] for _ in scenarios]
    waiting: list[tuple[int, Recursion]] = []

    def flush() -> None:
        if not waiting:
            return
        states = _joined(in_parts(_run_together, [part for _, part in waiting]))
        for index, part in waiting:
            own, states = np.split(states, [len(part.initial)])
            results[index].append(own)
            on_progress(len(own))
        waiting.clear()

    held, key = 0, None
    for index, scenario in enumerate(scenarios):
        for chunk in _chunks(scenario, rule, seeds):
            if _fits(scenario) or _needs_clients(scenario, rule):
                alone = _run_flow if _has_common_flow(scenario, rule) else _run_clients
                solve = partial(_on_host, partial(alone, scenario, rule))
                results[index] += in_parts(solve, chunk)
                on_progress(len(chunk))
                continue
            for part in in_parts(partial(_recursion, scenario, rule), chunk):
                size, x = math.prod(part.shape), part.initial
                this_key = (part.shape[1:], x.dtype, x.device)
                if waiting and (this_key != key or held + size > BATCH_ELEMENTS):
                    flush()
                    held = 0
                waiting.append((index, part))
                held, key = held + size, this_key
    flush()
    return [_joined(blocks) for blocks in results]


def _joined(blocks: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _run_together(parts: Sequence[Recursion]) -> NDArray[np.float64]:
    """Return the amplitudes of several batches of one shape, one after the other."""
    return _on_host(Recursion.run, Recursion.concatenate(parts))


def _on_host(run: Callable[[T], Tensor], runs: T) -> NDArray[np.float64]:
    """Return the amplitudes of runs as an array on the host."""
    found: NDArray[np.float64] = run(runs).cpu().double().numpy()
    return found


def _chunks(
    scenario: Scenario,
    rule: AggregationRule,
    seeds: Sequence[int],
    *,
    sums_only: bool = True,
) -> list[Sequence[int]]:
    """Return the seeds in batches whose largest array has at most `BATCH_ELEMENTS` numbers.

    Args:
        scenario: the scenario.
        rule: the server rule.
        seeds: one run per seed.
        sums_only: where sums over cohorts suffice, no array has a direction for each cohort slot.
            False for accounts, which have one.
    """
    federation, r_max = scenario.federation, scenario.federation.r_max
    slots = places(federation)
    if scenario.allocation == "random":  # scores are drawn and sorted
        per_round = 7 * slots * r_max
    elif sums_only and not _needs_clients(scenario, rule) and not are_persistent(scenario):
        drawn = 0 if counts_carriers(scenario) else slots
        per_round = max(r_max, drawn)
    else:
        per_round = slots * r_max
    per_run = scenario.rounds * per_round
    if are_persistent(scenario):
        per_run += 2 * federation.num_clients * r_max
    elif _needs_clients(scenario, rule):  # gains and drifts
        per_run += 2 * scenario.rounds * slots * r_max
    size = max(1, BATCH_ELEMENTS // per_run)
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def _needs_clients(scenario: Scenario, rule: AggregationRule) -> bool:
    """Return True if a round is not an affine map of the amplitude of the cohort's sum.

    Factor-space averages of unequal clients are nonlinear. Weights from norms, and directions that
    the clients choose, depend on the state. A residual in the base is a further state.
    """
    if _fits(scenario):
        return not _has_common_flow(scenario, rule)
    if rule.is_linear or scenario.allocation == "importance":
        return scenario.allocation == "importance"
    return rule.weights_from_norms or rule.residual_in_base or is_noisy(scenario)


def _fits(scenario: Scenario) -> bool:
    """Return True if clients train on a target, so that they are not an affine map."""
    return scenario.local_loss == "quadratic"


def _has_common_flow(scenario: Scenario, rule: AggregationRule) -> bool:
    """Return True if all clients of a round return the same amplitude and differ in weight only."""
    alike = scenario.target_std == 0 and scenario.allocation != "importance"
    return _fits(scenario) and alike and not rule.weights_from_norms


def _put(scenario: Scenario, values: ArrayLike) -> Tensor:
    """Return stacked arrays in the dtype and on the device of the run."""
    dtype, device = place_of(scenario)
    return torch.from_numpy(np.asarray(values)).to(dtype).to(device)


def _recursion(scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]) -> Recursion:
    (dtype, device), federation = place_of(scenario), scenario.federation
    persist, index, groups, noise = are_persistent(scenario), None, None, None
    means = _put(scenario, scenario.drift_means)
    if persist:
        each = CohortShares.of(scenario, rule, draw(scenario, seeds))
        # Sums over clients that differ are of each direction.
        total, squares = (x[..., each.groups] for x in each.sums())
        draws = client_draws(scenario, seeds, dtype, device)
        everyone = (len(seeds), federation.num_clients, federation.r_max)
        gain, shift = (each.mean_of(x[:, 0].expand(everyone)) for x in (draws.gain, draws.drift))
        multiplier = total if rule.is_linear else total.square()
    else:
        sums = ShareSums.of(scenario, rule, seeds)
        total, squares, index = sums.total, sums.squares, sums.index
        if index is not None:  # a table is short
            total, squares = total[:, sums.groups], squares[:, sums.groups]
        else:
            groups = functional.one_hot(sums.groups).T.to(dtype)
            means = means[groups.argmax(1)]
        multiplier = total if rule.is_linear else total.square()
        gain, shift = scenario.gain_mean * multiplier, means * multiplier
        if is_noisy(scenario):
            shape = (scenario.rounds, federation.r_max)
            drawn = normals(seeds, "aggregate noise", math.prod(shape), device)
            noise = drawn.reshape(-1, *shape).to(dtype).to(device)
    kept, trained = multiplier, gain - multiplier
    if rule.space == "none":  # the base keeps its value; only the increment is averaged
        kept = kept + (1 - total)
    if rule.has_empty_partition_policy and scenario.empty_partition == "carry":
        empty = total == 0
        kept = torch.where(empty, 1.0, kept)
        trained, shift = torch.where(empty, 0.0, trained), torch.where(empty, 0.0, shift)
    steady = scenario.learning_rate_schedule == "constant"
    return Recursion(
        initial=_initial(scenario, seeds),
        kept=kept + trained if steady else kept,
        norm=squares.sqrt(),
        trained=None if steady else trained,
        shift=shift if persist or scenario.drift_means.any() else None,
        scales=scenario.training_scales.tolist(),
        gain_std=_put(scenario, [[scenario.gain_std]]),
        drift_std=_put(scenario, [[scenario.drift_std]]),
        noise=noise,
        index=index,
        groups=groups,
    )


def _initial(scenario: Scenario, seeds: Sequence[int]) -> Tensor:
    return _put(scenario, [scenario.initial_amplitudes]).expand(len(seeds), -1)


def _run_clients(
    scenario: Scenario,
    rule: AggregationRule,
    seeds: Sequence[int],
    rows: list[Account] | None = None,
) -> Tensor:
    local: Local
    if _fits(scenario):
        targets = _put(scenario, [client_targets(scenario, seed) for seed in seeds])
        local = FittingClients(_local_map(scenario, rule, targets))
    else:
        local = AffineClients(client_draws(scenario, seeds, *place_of(scenario)))
    cohorts = draw(scenario, seeds)
    return run_clients(scenario, rule, _initial(scenario, seeds), cohorts, local, rows)


def _run_flow(scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]) -> Tensor:
    """Return the amplitudes of runs whose clients have equal targets."""
    total = ShareSums.of(scenario, rule, seeds).totals()
    carries = rule.has_empty_partition_policy and scenario.empty_partition == "carry"
    local = _local_map(scenario, rule, _put(scenario, scenario.target_amplitudes))
    factor = total if rule.is_linear else total.square()
    kept = total == 0 if carries else None
    return FlowRecursion(_initial(scenario, seeds), local, factor, kept, scenario.rounds).run()


def _local_map(scenario: Scenario, rule: AggregationRule, targets: Tensor) -> LocalMap:
    return LocalMap.fitting(targets, scenario.local_time, frozen_a=rule.frozen_a)


# Runs with their accounts, one scenario at a time

AccountOfRuns = dict[str, NDArray[np.float64]]


def run_spectral_account(
    scenario: Scenario,
    rule: AggregationRule,
    seeds: Sequence[int],
    on_progress: Callable[[float], object] = lambda runs: None,
) -> tuple[NDArray[np.float64], AccountOfRuns]:
    """Return the amplitudes of `run_spectral` with the account of each round.

    Where the engine has no single clients, the carriers' mean is taken with the rule's weights.

    Args:
        scenario: a spectral scenario.
        rule: the server rule.
        seeds: one run per seed.
        on_progress: called with the number of runs finished since the last call.

    Returns:
        Amplitudes (S, T + 1, r_max), and arrays of the same shape by the names in `ACCOUNT`.

    Raises:
        InputError: as `run_spectral`.
    """
    if _fits(scenario):
        refuse_flow(rule)
    parts = []
    for chunk in _chunks(scenario, rule, seeds, sums_only=False):
        parts += in_parts(partial(_accounted, scenario, rule), chunk)
        on_progress(len(chunk))
    found = np.concatenate([states for states, _ in parts])
    account = {name: np.concatenate([own[name] for _, own in parts]) for name in parts[0][1]}
    lost = np.flatnonzero(leaves_range(found)).tolist() if scenario.dtype != "float64" else []
    if lost:  # repeat those runs in float64
        wide, again = scenario.replace(dtype="float64"), [seeds[k] for k in lost]
        found[lost], more = run_spectral_account(wide, rule, again)
        for name, values in more.items():
            account[name][lost] = values
    return found, account


def _accounted(
    scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]
) -> tuple[NDArray[np.float64], AccountOfRuns]:
    """Return the amplitudes and the account of one chunk of runs."""
    rows: list[Account] = []
    if _has_common_flow(scenario, rule):
        states = _run_flow(scenario, rule, seeds)
    elif _needs_clients(scenario, rule):
        states = _run_clients(scenario, rule, seeds, rows)
    else:
        states = _recursion(scenario, rule, seeds).run()
    rows = rows or _account_of_sums(scenario, rule, seeds, states)
    return states.cpu().double().numpy(), over_rounds(rows)


def _account_of_sums(
    scenario: Scenario, rule: AggregationRule, seeds: Sequence[int], states: Tensor
) -> list[Account]:
    """Return the account of each round from the amplitudes, where the cohort's sum decides."""
    cohorts = draw(scenario, seeds)
    total = CohortShares.of(scenario, rule, cohorts).sums()[0][..., cohorts.groups]
    factor = (total if rule.is_linear else total.square()).expand(states[:, 1:].shape)
    carriers = Carriers.of(
        rule, scenario.empty_partition, cohorts.weights, cohorts.members[..., cohorts.groups]
    )
    before, after = states[:, :-1], states[:, 1:]
    base = before if rule.space == "none" else torch.zeros_like(before)
    carried = factor > 0
    mean = torch.where(carried, (after - base) / torch.where(carried, factor, 1.0), 0.0)
    account = carriers.account_of_mean(before, base, mean, after)
    return [{name: x[:, t] for name, x in account.items()} for t in range(scenario.rounds)]
