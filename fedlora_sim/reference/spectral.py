"""The spectral fidelity, one client and one direction at a time."""

from __future__ import annotations

import math

import numpy as np

from fedlora_sim.draws import client_draws, cohort_counts
from fedlora_sim.reference.aggregation import Array
from fedlora_sim.scenario import Scenario


def spectral_reference(scenario: Scenario, rule: str, seed: int) -> Array:
    """Amplitudes of one run, (T + 1, r_max).

    Gains and drifts are drawn client by client; where the fast path draws their sum instead (fresh
    noise in product space) the two agree in law, elsewhere number by number.
    """
    federation, counts = scenario.federation, cohort_counts(scenario, seed)
    draws, x = client_draws(scenario, seed), scenario.initial_amplitudes.copy()
    states = [x]
    for t in range(scenario.rounds):
        gain, drift = draws.round(t)
        x = np.array(
            [
                _direction(scenario, rule, counts[t], gain[:, i], drift[:, i], i, x[i])
                for i in range(federation.r_max)
            ]
        )
        states.append(x)
    return np.stack(states)


def _direction(
    scenario: Scenario, rule: str, counts: Array, gain: Array, drift: Array, i: int, x: float
) -> float:
    federation = scenario.federation
    assert federation.num_samples is not None  # resolved when the federation was made
    total, carried, product, left, right = 0.0, 0.0, 0.0, 0.0, 0.0
    for k, rank in enumerate(federation.ranks):
        n = 1.0 if federation.sampling == "size_weighted" else federation.num_samples[k]
        weight = n * float(counts[k])
        total += weight
        if rank <= i or weight == 0:
            continue
        carried += weight
        y = gain[k] * x + drift[k]
        product += weight * y
        left += weight * math.sqrt(abs(y))
        right += weight * math.copysign(math.sqrt(abs(y)), y)
    if rule == "fedavg":
        return product / total
    if rule == "zero_pad":
        return left * right / total**2
    if carried > 0:
        return product / carried
    return x if scenario.empty_partition == "carry" else 0.0
