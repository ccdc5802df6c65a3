"""The matrix fidelity, one client at a time, on dense matrices."""

from __future__ import annotations

import numpy as np

from fedlora_sim.draws import (
    basis_rotation,
    client_draws,
    cohort_counts,
    initial_basis,
    subspace_mixing,
)
from fedlora_sim.reference.aggregation import Array, Factors, aggregate_reference
from fedlora_sim.scenario import Scenario


def matrix_reference(scenario: Scenario, rule: str, seed: int) -> tuple[Array, Array]:
    """Singular values and amplitudes on the initial basis of one run, each (T + 1, r_max)."""
    federation, counts = scenario.federation, cohort_counts(scenario, seed)
    draws, (u0, v0) = client_draws(scenario, seed), initial_basis(scenario, seed)
    root = np.sqrt(scenario.initial_amplitudes)
    state: Factors = ((v0 * root).T, u0 * root)
    values, projected = [_singular_values(state)], [_project(state, u0, v0)]
    for t in range(scenario.rounds):
        gain, drift = draws.round(t)
        cohort = [k for k in range(federation.num_clients) if counts[t, k] > 0]
        updates = [
            (*_client(scenario, seed, t, k, state, gain[k], drift[k], (u0, v0)), 1.0)
            for k in cohort
        ]
        clients = np.array(cohort)
        weights = federation.cohort_weights(clients, counts[t, clients]).tolist()
        lora_a, lora_b, _ = aggregate_reference(
            updates, weights, rule, federation.levels, state, scenario.empty_partition
        )
        state = lora_a, lora_b
        values.append(_singular_values(state))
        projected.append(_project(state, u0, v0))
    return np.stack(values), np.stack(projected)


def _client(
    scenario: Scenario,
    seed: int,
    t: int,
    k: int,
    state: Factors,
    gain: Array,
    drift: Array,
    basis: tuple[Array, Array],
) -> Factors:
    rank = scenario.ranks[k]
    lora_a, lora_b = np.zeros((rank, scenario.d_in)), np.zeros((scenario.d_out, rank))
    amplitudes = np.linalg.norm(state[1], axis=0) * np.linalg.norm(state[0], axis=1)
    for i in range(rank):
        x = amplitudes[i]
        if x <= np.finfo(float).eps * max(scenario.d_in, scenario.d_out) * amplitudes.max():
            x, u, v = 0.0, basis[0][:, i], basis[1][:, i]
        else:
            u = state[1][:, i] / np.linalg.norm(state[1][:, i])
            v = state[0][i] / np.linalg.norm(state[0][i])
        y = gain[i] * x + drift[i]
        lora_b[:, i] = np.sign(y) * np.sqrt(abs(y)) * u
        lora_a[i] = np.sqrt(abs(y)) * v
    if scenario.subspace_noise > 0:
        on_b, on_a = subspace_mixing(scenario, seed, t, rank, k)
        lora_a, lora_b = on_a @ lora_a, lora_b @ on_b
    if scenario.basis_drift != 0:
        out, inner = basis_rotation(scenario, seed, t, k)
        lora_a, lora_b = lora_a @ inner.T, out @ lora_b
    return lora_a, lora_b


def _singular_values(state: Factors) -> Array:
    values = np.linalg.svd(state[1] @ state[0], compute_uv=False)
    return np.asarray(values[: state[0].shape[0]], dtype=np.float64)


def _project(state: Factors, u0: Array, v0: Array) -> Array:
    return np.diag(u0.T @ (state[1] @ state[0]) @ v0).copy()
