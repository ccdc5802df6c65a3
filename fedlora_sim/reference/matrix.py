"""The matrix fidelity, one client at a time, on dense matrices."""

from __future__ import annotations

import numpy as np

from fedlora_sim.engines.draws import (
    allocation_scores,
    basis_rotation,
    client_draws,
    client_targets,
    cohort_counts,
    initial_basis,
    subspace_mixing,
    target_rotation,
)
from fedlora_sim.reference.aggregation import Array, Factors, aggregate_reference
from fedlora_sim.reference.allocation import held_reference
from fedlora_sim.reference.client import BETA_1, BETA_2, EPSILON
from fedlora_sim.scenario import Scenario

Direction = tuple[Array, Array, float, float]  # u, v, amplitude in the adapter, and in the base


def matrix_reference(scenario: Scenario, rule: str, seed: int) -> tuple[Array, Array]:
    """Singular values and amplitudes on the initial basis of one run, each (T + 1, r_max)."""
    federation, counts = scenario.federation, cohort_counts(scenario, seed)
    draws, basis = client_draws(scenario, seed), initial_basis(scenario, seed)
    scores = allocation_scores(scenario, seed)
    state, base = _initial(scenario, rule, basis)
    rows = [_measure(state, base, basis)]
    for t in range(scenario.rounds):
        gain, drift = draws.round(t)
        directions = _directions(state, base, basis, rule)
        cohort, updates, positions = np.flatnonzero(counts[t]), [], []
        for k in cohort.tolist():
            if scenario.local_loss == "quadratic":
                target = _target(scenario, seed, k, basis)
                held, factors = _fitted(
                    scenario, federation.ranks[k], scores[t, k], directions, target - base, rule
                )
            else:
                held, factors = _returned(
                    scenario, federation.ranks[k], scores[t, k], directions, gain[k], drift[k], rule
                )
            updates.append((*_disturbed(scenario, seed, t, k, factors, rule), 1.0))
            positions.append(held)
        weights = federation.cohort_weights(cohort, counts[t, cohort]).tolist()
        lora_a, lora_b, more = aggregate_reference(
            updates, weights, rule, federation.levels, state, scenario.empty_partition, positions
        )
        state, base = (lora_a, lora_b), base + more
        rows.append(_measure(state, base, basis))
    values, projected = zip(*rows, strict=True)
    return np.stack(values), np.stack(projected)


def _initial(scenario: Scenario, rule: str, basis: tuple[Array, Array]) -> tuple[Factors, Array]:
    """Adapter and base at round 0: FLoRA has merged everything, FFA-LoRA's A is a basis."""
    (u0, v0), x = basis, scenario.initial_amplitudes
    nothing = np.zeros((scenario.d_out, scenario.d_in))
    if rule == "flora":
        return (np.zeros_like(v0.T), np.zeros_like(u0)), u0 * x @ v0.T
    if rule == "ffa":
        return (v0.T.copy(), u0 * x), nothing
    return ((v0 * np.sqrt(x)).T, u0 * np.sqrt(x)), nothing


def _directions(
    state: Factors, base: Array, basis: tuple[Array, Array], rule: str
) -> list[Direction]:
    """Every column pair. A lost one stands for an initial direction that no other one has taken.

    Columns that an SVD has sorted are no longer at the place of their initial direction; those of
    the other rules are.
    """
    lora_a, lora_b = state
    amplitudes = np.linalg.norm(lora_b, axis=0) * np.linalg.norm(lora_a, axis=1)
    rounding = np.finfo(float).eps * max(base.shape)
    living = [i for i, x in enumerate(amplitudes) if x > rounding * amplitudes.max()]
    free = [i for i in range(len(amplitudes)) if i not in living]
    if rule.startswith(("fedavg", "raflora")):
        units = [lora_b[:, i] / np.linalg.norm(lora_b[:, i]) for i in living]
        taken = [sum(float(u0 @ u) ** 2 for u in units) for u0 in basis[0].T]
        free = sorted(sorted(range(len(taken)), key=lambda j: taken[j])[: len(free)])
    found = []
    for i, x in enumerate(amplitudes):
        if i in living:
            u = lora_b[:, i] / np.linalg.norm(lora_b[:, i])
            v = lora_a[i] / np.linalg.norm(lora_a[i])
        else:
            place = free.pop(0)
            u, v = basis[0][:, place], basis[1][:, place]
        found.append((u, v, float(x) if i in living else 0.0, float(u @ base @ v)))
    return found


def _returned(
    scenario: Scenario,
    rank: int,
    scores: Array,
    directions: list[Direction],
    gain: Array,
    drift: Array,
    rule: str,
) -> tuple[list[int], Factors]:
    """What a client carries who brings every amplitude to `a x + b`, and its factors."""
    reached = [gain[i] * (x + z) + drift[i] for i, (*_, x, z) in enumerate(directions)]
    moved = [abs(y - x - z) for y, (*_, x, z) in zip(reached, directions, strict=True)]
    held = held_reference(scenario, rank, scores, moved)
    return held, _factors([directions[i] for i in held], [reached[i] for i in held], rule)


def _target(scenario: Scenario, seed: int, k: int, basis: tuple[Array, Array]) -> Array:
    """`M_k`, dense: the common directions, turned by the client's own rotations."""
    out, inner = target_rotation(scenario, seed, k)
    dense = np.zeros((scenario.d_out, scenario.d_in))
    for i, m in enumerate(client_targets(scenario, seed)[k]):
        dense += m * np.outer(out @ basis[0][:, i], inner @ basis[1][:, i])
    return dense


def _fitted(
    scenario: Scenario,
    rank: int,
    scores: Array,
    directions: list[Direction],
    target: Array,
    rule: str,
) -> tuple[list[int], Factors]:
    """What a client carries who descends to a dense target, and its factors."""
    moved = []
    if scenario.allocation == "importance":
        lora_a, lora_b = _descent(scenario, directions, target, rule)
        moved = [abs(float(u @ lora_b @ lora_a @ v) - x) for u, v, x, _ in directions]
    held = held_reference(scenario, rank, scores, moved)
    return held, _descent(scenario, [directions[i] for i in held], target, rule)


def _descent(scenario: Scenario, received: list[Direction], target: Array, rule: str) -> Factors:
    """Gradient descent on `0.5 ||B A - target||_F**2`, the residual formed in every step."""
    rows = [v if rule in ("ffa", "flora") else np.sqrt(x) * v for _, v, x, _ in received]
    columns = [(x if rule in ("ffa", "flora") else np.sqrt(x)) * u for u, _, x, _ in received]
    lora_a, lora_b = np.stack(rows), np.stack(columns, axis=1)
    assert scenario.local_steps is not None  # the scenario's own check
    history_a, history_b = [], []
    for _ in range(scenario.local_steps):
        residual = lora_b @ lora_a - target
        history_a.append(lora_b.T @ residual)
        history_b.append(residual @ lora_a.T)
        if rule != "ffa":
            lora_a = lora_a - _step(scenario, history_a)
        lora_b = lora_b - _step(scenario, history_b)
    return lora_a, lora_b


def _step(scenario: Scenario, gradients: list[Array]) -> Array:
    """SGD's or Adam's step after these gradients; Adam's moments are sums over all of them."""
    assert scenario.local_steps is not None
    rate, count = scenario.local_time / scenario.local_steps, len(gradients)
    if scenario.optimizer == "sgd":
        return rate * gradients[-1]
    ages = np.arange(count - 1, -1, -1)
    past = np.stack(gradients)
    first = np.tensordot((1 - BETA_1) * BETA_1**ages, past, 1) / (1 - BETA_1**count)
    second = np.tensordot((1 - BETA_2) * BETA_2**ages, past**2, 1) / (1 - BETA_2**count)
    return np.asarray(rate * first / (np.sqrt(second) + EPSILON))


def _factors(held: list[Direction], reached: list[float], rule: str) -> Factors:
    """What the client returns: all that it has reached, less what the base has already."""
    rows, columns = [], []
    for (u, v, _, z), total in zip(held, reached, strict=True):
        y = total - z
        rows.append(v if rule == "ffa" else np.sqrt(abs(y)) * v)
        columns.append(y * u if rule == "ffa" else np.sign(y) * np.sqrt(abs(y)) * u)
    return np.stack(rows), np.stack(columns, axis=1)


def _disturbed(
    scenario: Scenario, seed: int, t: int, k: int, factors: Factors, rule: str
) -> Factors:
    """Directions mixed within the client's subspace, then the basis turned; a frozen A stays."""
    lora_a, lora_b = factors
    if scenario.subspace_noise > 0:
        on_b, on_a = subspace_mixing(scenario, seed, t, scenario.ranks[k], k)
        lora_a, lora_b = on_a @ lora_a, lora_b @ on_b
    if scenario.basis_drift != 0:
        out, inner = basis_rotation(scenario, seed, t, k)
        lora_a, lora_b = lora_a @ inner.T, out @ lora_b
    return (factors[0] if rule == "ffa" else lora_a), lora_b


def _measure(state: Factors, base: Array, basis: tuple[Array, Array]) -> tuple[Array, Array]:
    dense = state[1] @ state[0] + base
    values = np.linalg.svd(dense, compute_uv=False)[: len(state[0])]
    return np.asarray(values, dtype=np.float64), np.diag(basis[0].T @ dense @ basis[1]).copy()
