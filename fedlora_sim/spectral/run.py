"""Runs of the spectral fidelity: many seeds and many scenarios in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fedlora_sim.aggregation import AggregationRule
from fedlora_sim.draws import client_draws, client_targets
from fedlora_sim.randomness import stream
from fedlora_sim.runtime import DTYPES, leaves_range, resolve_device
from fedlora_sim.scenario import Scenario
from fedlora_sim.spectral.clients import AffineClients, FittingClients, Local, run_clients
from fedlora_sim.spectral.cohorts import Cohorts, draw
from fedlora_sim.spectral.flow import FlowRecursion, LocalMap, refuse_flow
from fedlora_sim.spectral.recursion import CohortShares, Recursion

# Numbers held at once by the largest array of a batch: 160 MB in float64.
BATCH_ELEMENTS = 20_000_000


def run_spectral(
    scenarios: Sequence[Scenario],
    rule: AggregationRule,
    seeds: Sequence[int],
    on_progress: Callable[[float], object] = lambda runs: None,
) -> list[NDArray[np.float64]]:
    """Amplitudes of every scenario, seed, round and direction.

    A run whose amplitudes leave the range of float32 is computed in float64.

    Runs that share rounds, r_max, dtype and device advance together; batching never changes a
    run, whose draws come from its own seed.

    Args:
        scenarios: any number of spectral scenarios.
        rule: the server rule.
        seeds: one run per scenario and seed.
        on_progress: called with the number of runs finished since the last call.

    Returns:
        For each scenario an array (S, T + 1, r_max), signed amplitudes.

    Raises:
        ValueError: for the quadratic loss under a rule that has no exact map.
    """
    found = _run_all(scenarios, rule, seeds, on_progress)
    for index, scenario in enumerate(scenarios):
        if scenario.dtype == "float64":
            continue
        lost = np.flatnonzero(leaves_range(found[index])).tolist()
        if lost:  # those runs again, in a dtype that holds them
            again = [seeds[k] for k in lost]
            (found[index][lost],) = _run_all([scenario.replace(dtype="float64")], rule, again)
    return found


def _run_all(
    scenarios: Sequence[Scenario],
    rule: AggregationRule,
    seeds: Sequence[int],
    on_progress: Callable[[float], object] = lambda runs: None,
) -> list[NDArray[np.float64]]:
    """All runs, each in its scenario's dtype."""
    if any(map(_fits, scenarios)):
        refuse_flow(rule)
    results: list[list[NDArray[np.float64]]] = [[] for _ in scenarios]
    waiting: list[tuple[int, Recursion]] = []

    def flush() -> None:
        if not waiting:
            return
        states = Recursion.concatenate([part for _, part in waiting]).run().cpu().double().numpy()
        sizes = [len(part.initial) for _, part in waiting]
        for (index, _), block in zip(waiting, np.split(states, np.cumsum(sizes)[:-1]), strict=True):
            results[index].append(block)
        on_progress(len(states))
        waiting.clear()

    held, key = 0, None
    for index, scenario in enumerate(scenarios):
        for chunk in _chunks(scenario, rule, seeds):
            if _fits(scenario) or _needs_clients(scenario, rule):
                alone = _run_flow if _has_common_flow(scenario, rule) else _run_clients
                results[index].append(alone(scenario, rule, chunk).cpu().double().numpy())
                on_progress(len(chunk))
                continue
            part = _recursion(scenario, rule, chunk)
            this_key = (part.alpha.shape[1:], part.alpha.dtype, part.alpha.device)
            if waiting and (this_key != key or held + part.alpha.numel() > BATCH_ELEMENTS):
                flush()
                held = 0
            waiting.append((index, part))
            held, key = held + part.alpha.numel(), this_key
    flush()
    return [np.concatenate(blocks) for blocks in results]


def _chunks(scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]) -> list[Sequence[int]]:
    federation, r_max = scenario.federation, scenario.federation.r_max
    if scenario.allocation == "random":  # scores of every client, the cohort's sorted
        per_round = (federation.num_clients + 6 * federation.max_cohort) * r_max
    else:
        per_round = max(federation.max_cohort * r_max, federation.num_clients)
    per_run = scenario.rounds * per_round
    if _needs_clients(scenario, rule):  # gains and drifts, drawn, stacked and moved
        fresh = _is_noisy(scenario) and scenario.heterogeneity == "fresh"
        per_run += 6 * (scenario.rounds if fresh else 1) * federation.num_clients * r_max
    size = max(1, BATCH_ELEMENTS // per_run)
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def _needs_clients(scenario: Scenario, rule: AggregationRule) -> bool:
    """Whether a round is no affine map of the amplitude that the cohort's sum would give.

    Factor averages of unlike clients are nonlinear in them; weights from norms and clients' own
    choice of directions depend on the state; and a residual in the base is a state of its own.
    """
    if _fits(scenario):
        return not _has_common_flow(scenario, rule)
    if rule.is_linear or scenario.allocation == "importance":
        return scenario.allocation == "importance"
    return rule.weights_from_norms or rule.residual_in_base or _is_noisy(scenario)


def _fits(scenario: Scenario) -> bool:
    """Whether clients train on a target, which makes them no affine map."""
    return scenario.local_loss == "quadratic"


def _has_common_flow(scenario: Scenario, rule: AggregationRule) -> bool:
    """Whether all clients of a round return one amplitude, and only weights tell them apart."""
    alike = scenario.target_std == 0 and scenario.allocation != "importance"
    return _fits(scenario) and alike and not rule.weights_from_norms


def _is_noisy(scenario: Scenario) -> bool:
    return scenario.gain_std > 0 or scenario.drift_std > 0


def _put(scenario: Scenario, values: ArrayLike) -> Tensor:
    """Arrays stacked, in the run's dtype and on its device, which may know no float64."""
    dtype = DTYPES[str(scenario.dtype)]
    return torch.from_numpy(np.asarray(values)).to(dtype).to(resolve_device(scenario.device, dtype))


def _draws(scenario: Scenario, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Gains and drifts of every client, each (S, T or 1, K, r_max)."""
    draws = [client_draws(scenario, seed) for seed in seeds]
    return _put(scenario, [d.gain for d in draws]), _put(scenario, [d.drift for d in draws])


def _cohorts(scenario: Scenario, seeds: Sequence[int]) -> Cohorts:
    dtype = DTYPES[str(scenario.dtype)]
    return draw(scenario, seeds, dtype, resolve_device(scenario.device, dtype))


def _recursion(scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]) -> Recursion:
    shares = CohortShares.of(scenario, rule, _cohorts(scenario, seeds))
    total = shares.total()
    zero = torch.zeros((), dtype=total.dtype, device=total.device)
    noise = zero
    if scenario.heterogeneity == "persistent" and _is_noisy(scenario):
        gains, drifts = (draw[:, 0] for draw in _draws(scenario, seeds))
        alpha, beta, gamma, delta = shares.mean_of(gains), shares.mean_of(drifts), zero, zero
    else:
        multiplier = total if rule.is_linear else total.square()
        norm = shares.squares().sqrt()
        alpha, beta = scenario.gain_mean * multiplier, scenario.drift_mean * multiplier
        gamma, delta = scenario.gain_std * norm, scenario.drift_std * norm
        if _is_noisy(scenario):
            size = (scenario.rounds, max(scenario.ranks))
            draws = [stream(seed, "aggregate_noise").standard_normal(size) for seed in seeds]
            noise = _put(scenario, draws)
    if rule.space == "none":  # the base keeps what it has, and only the increment is averaged
        alpha = alpha + (1 - total)
    if rule.has_empty_partition_policy and scenario.empty_partition == "carry":
        empty = total == 0
        alpha, beta = torch.where(empty, 1.0, alpha), torch.where(empty, 0.0, beta)
    shape = (len(seeds), scenario.rounds, max(scenario.ranks))
    initial = _initial(scenario, seeds)
    return Recursion(initial, *(c.expand(shape) for c in (alpha, beta, gamma, delta, noise)))


def _initial(scenario: Scenario, seeds: Sequence[int]) -> Tensor:
    return _put(scenario, [scenario.initial_amplitudes]).expand(len(seeds), -1)


def _run_clients(scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]) -> Tensor:
    local: Local
    if _fits(scenario):
        targets = _put(scenario, [client_targets(scenario, seed) for seed in seeds])
        local = FittingClients(_local_map(scenario, rule, targets))
    else:
        local = AffineClients(*_draws(scenario, seeds))
    cohorts = _cohorts(scenario, seeds)
    return run_clients(scenario, rule, _initial(scenario, seeds), cohorts, local)


def _run_flow(scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]) -> Tensor:
    """Runs of clients with equal targets."""
    total = CohortShares.of(scenario, rule, _cohorts(scenario, seeds)).total()
    carries = rule.has_empty_partition_policy and scenario.empty_partition == "carry"
    local = _local_map(scenario, rule, _put(scenario, scenario.target_amplitudes))
    factor = total if rule.is_linear else total.square()
    kept = total == 0 if carries else None
    return FlowRecursion(_initial(scenario, seeds), local, factor, kept, scenario.rounds).run()


def _local_map(scenario: Scenario, rule: AggregationRule, targets: Tensor) -> LocalMap:
    return LocalMap.fitting(targets, scenario.local_time, frozen_a=rule.frozen_a)
