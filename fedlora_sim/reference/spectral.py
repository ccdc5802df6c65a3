"""The spectral fidelity, one client and one direction at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedlora_sim.engines.draws import allocation_scores, client_draws, client_targets, cohort_counts
from fedlora_sim.reference.aggregation import Array
from fedlora_sim.reference.allocation import held_reference
from fedlora_sim.scenario import Scenario

DILUTED = ("fedavg", "ffa", "flora", "fedex", "zero_pad")


@dataclass(frozen=True, eq=False)
class _Client:
    """Amplitudes that a client returns, which directions those are, its weight and draws."""

    y: Array
    held: list[int]
    weight: float


def spectral_reference(scenario: Scenario, rule: str, seed: int) -> Array:
    """Amplitudes of one run, (T + 1, r_max).

    Gains and drifts are drawn client by client; where the fast path draws their sum instead (fresh
    noise in product space) the two agree in law, elsewhere number by number.
    """
    counts, draws = cohort_counts(scenario, seed), client_draws(scenario, seed)
    scores = allocation_scores(scenario, seed)
    nothing, targets = np.zeros(scenario.federation.r_max), client_targets(scenario, seed)
    adapter, base = scenario.initial_amplitudes.copy(), nothing
    if rule == "flora":
        adapter, base = base, adapter
    states = [adapter + base]
    for t in range(scenario.rounds):
        gain, drift = draws.round(t)
        cohort = []
        for k in np.flatnonzero(counts[t]).tolist():
            reached = [
                _trained(scenario, rule, adapter[i], targets[k, i])
                if scenario.local_loss == "quadratic"
                else gain[k, i] * (adapter[i] + base[i]) + drift[k, i]
                for i in range(len(nothing))
            ]
            cohort.append(_client(scenario, k, counts[t, k], reached, scores[t, k], adapter, base))
        adapter, more = _server(rule, cohort, adapter, scenario.empty_partition)
        base = base + more
        states.append(adapter + base)
    return np.stack(states)


def _trained(scenario: Scenario, rule: str, x: float, m: float) -> float:
    """The flow of `0.5 (b a - m)**2`, from balanced factors or with a = 1 frozen."""
    time = scenario.local_time
    if rule == "ffa":
        return m + (x - m) * math.exp(-time)
    if m == 0:
        return x / (1 + 2 * time * x)
    growth = math.exp(2 * m * time)
    return m * growth * x / (m + x * (growth - 1))


def _client(
    scenario: Scenario,
    k: int,
    count: int,
    reached: list[float],
    scores: Array,
    adapter: Array,
    base: Array,
) -> _Client:
    federation, y = scenario.federation, np.zeros(len(adapter))
    assert federation.num_samples is not None  # resolved when the federation was made
    samples = 1.0 if federation.sampling == "size_weighted" else federation.num_samples[k]
    moved = [abs(reached[i] - (adapter[i] + base[i])) for i in range(len(y))]
    held = held_reference(scenario, federation.ranks[k], scores, moved)
    for i in held:
        y[i] = reached[i] - base[i]
    return _Client(y, held, samples * count)


def _server(
    rule: str, cohort: list[_Client], last: Array, empty_partition: str
) -> tuple[Array, Array]:
    """The new adapter, and what goes into the base."""
    name, _, option = rule.partition(":")
    adapter, exact = np.zeros(len(last)), np.zeros(len(last))
    for i in range(len(last)):
        shares = _shares(name, option, cohort, i)
        exact[i] = sum(share * c.y[i] for share, c in zip(shares, cohort, strict=True))
        left, right = 0.0, 0.0
        for share, c in zip(shares, cohort, strict=True):
            left += share * math.sqrt(abs(c.y[i]))
            right += share * math.copysign(math.sqrt(abs(c.y[i])), c.y[i])
        adapter[i] = left * right if name in ("fedex", "hetlora", "rbla", "zero_pad") else exact[i]
        if name in ("raflora", "rbla") and not any(i in c.held for c in cohort):
            adapter[i] = last[i] if empty_partition == "carry" else 0.0
    if name == "flora":
        return np.zeros(len(last)), exact
    if name != "fedex":
        return adapter, np.zeros(len(last))
    residual = exact - adapter
    if option:
        weakest_first = np.argsort(np.abs(residual), kind="stable")
        residual[weakest_first[: -int(option.removeprefix("residual_rank="))]] = 0.0
    return adapter, residual


def _shares(name: str, option: str, cohort: list[_Client], i: int) -> list[float]:
    """Weight of every client's amplitude in direction i; of those without it, zero."""
    weights = [c.weight for c in cohort]
    if name == "hetlora":
        counted = weights if option == "data_weighted=true" else [1.0] * len(cohort)
        norms = [math.sqrt(sum(y * y for y in c.y)) for c in cohort]
        weights = [n * norm for n, norm in zip(counted, norms, strict=True)]
        weights = weights if sum(weights) > 0 else counted
    elif name in ("raflora", "rbla"):
        weights = [w if i in c.held else 0.0 for w, c in zip(weights, cohort, strict=True)]
    else:
        assert name in DILUTED
    total = sum(weights)
    return [w / total if i in c.held else 0.0 for w, c in zip(weights, cohort, strict=True)]
