"""The server rules on dense matrices, client by client, directly from their formulas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlora_sim.errors import expected
from fedlora_sim.scenario import Scenario

Array = NDArray[np.float64]
Factors = tuple[Array, Array]  # lora_A (r, d_in), lora_B (d_out, r), scaling 1
Client = tuple[Array, Array, float, NDArray[np.bool_], float]  # padded A and B, s, held indices, n

FACTOR_AVERAGES = ("fedex", "hetlora", "rbla", "zero_pad")
"""Rules that average A and B apart."""
AMONG_CONTRIBUTORS = ("raflora", "rbla")
"""Rules whose weights are shares among the clients that carry a direction; of all others they are
shares of the whole cohort."""


def aggregate_reference(
    updates: Sequence[tuple[Array, Array, float]],
    num_samples: Sequence[float],
    rule: str,
    rank_levels: Sequence[int],
    previous: Factors | None = None,
    empty_partition: str = "carry",
    positions: Sequence[Sequence[int]] | None = None,
) -> tuple[Array, Array, Array]:
    """Aggregate one round.

    Args:
        updates: `(lora_A, lora_B, scaling)` of each client, shapes (r_k, d_in) and (d_out, r_k).
        num_samples: `n_k` of each client.
        rule: name of a rule, with one option at most, as in `raflora:canonicalize=true`.
        rank_levels: distinct ranks of the federation.
        previous: last global factors at scaling 1, of rank max(rank_levels).
        empty_partition: `zero` or `carry`.
        positions: rank indices of each client's columns; the first r_k when None.

    Returns:
        Global lora_A (r_max, d_in) and lora_B (d_out, r_max) at scaling 1, and the dense
        correction of the base, (d_out, d_in), zero for rules that have none.
    """
    name, _, option = rule.partition(":")
    r_max = max(rank_levels)
    if option == "canonicalize=true":
        updates = [_canonical(*update) for update in updates]
    if positions is None:
        positions = [range(len(a)) for a, _, _ in updates]
    clients = [
        _padded(*update, list(held), n, r_max)
        for update, held, n in zip(updates, positions, num_samples, strict=True)
        if n > 0
    ]
    kept = previous if empty_partition == "carry" else None
    nothing = np.zeros((len(clients[0][1]), clients[0][0].shape[1]))
    match name:
        case "fedavg":
            return (*split_reference(_exact(clients), r_max), nothing)
        case "flora":
            return np.zeros_like(clients[0][0]), np.zeros_like(clients[0][1]), _exact(clients)
        case "raflora":
            return (*split_reference(_partitioned(clients, kept), r_max), nothing)
        case "zero_pad":
            return (*_averages(clients, _data_weights(clients)), nothing)
        case "hetlora":
            weights = _norm_weights(clients, with_samples=option == "data_weighted=true")
            return (*_averages(clients, weights), nothing)
        case "fedex":
            a, b = _averages(clients, _data_weights(clients))
            residual = _exact(clients) - b @ a
            if option:
                residual = _best(residual, int(option.removeprefix("residual_rank=")))
            return a, b, residual
        case "ffa":
            return (*_common_a(clients), nothing)
        case "rbla":
            return (*_owners(clients, kept), nothing)
    raise expected("rule", rule, "a rule that the reference writes out")


def _padded(a: Array, b: Array, s: float, held: list[int], n: float, r_max: int) -> Client:
    lora_a, lora_b = np.zeros((r_max, a.shape[1])), np.zeros((b.shape[0], r_max))
    lora_a[held], lora_b[:, held] = a, b
    return lora_a, lora_b, s, np.isin(np.arange(r_max), held), n


def _canonical(a: Array, b: Array, s: float) -> tuple[Array, Array, float]:
    """Return the same update, `B = U sqrt(S)`, `A = sqrt(S) V^T`."""
    return (*split_reference(s * b @ a, len(a)), 1.0)


def _data_weights(clients: Sequence[Client]) -> list[float]:
    """Return `p_k = n_k / sum n`."""
    total = sum(n for *_, n in clients)
    return [n / total for *_, n in clients]


def _norm_weights(clients: Sequence[Client], with_samples: bool) -> list[float]:
    """Return `w_k = ||s_k B_k A_k||_F / sum_l ||s_l B_l A_l||_F`; equal if all updates are zero."""
    counts = [n if with_samples else 1.0 for *_, n in clients]
    norms = [float(np.linalg.norm(s * b @ a)) for a, b, s, _, _ in clients]
    sizes = [c * x for c, x in zip(counts, norms, strict=True)]
    sizes = sizes if sum(sizes) > 0 else counts
    return [size / sum(sizes) for size in sizes]


def _exact(clients: Sequence[Client]) -> Array:
    """Return `sum_k p_k s_k B_k A_k`."""
    dense = np.zeros((len(clients[0][1]), clients[0][0].shape[1]))
    for p, (a, b, s, _, _) in zip(_data_weights(clients), clients, strict=True):
        dense += p * s * (b @ a)
    return dense


def _averages(clients: Sequence[Client], weights: Sequence[float]) -> Factors:
    """Return `A = sum_k w_k sqrt(s_k) [A_k; 0]`, `B = sum_k w_k sqrt(s_k) [B_k, 0]`."""
    lora_a, lora_b = np.zeros_like(clients[0][0]), np.zeros_like(clients[0][1])
    for w, (a, b, s, _, _) in zip(weights, clients, strict=True):
        lora_a += w * np.sqrt(s) * a
        lora_b += w * np.sqrt(s) * b
    return lora_a, lora_b


def _common_a(clients: Sequence[Client]) -> Factors:
    """Return each row of A from the first client that has it, and `B = sum_k p_k s_k [B_k, 0]`."""
    lora_a, lora_b = np.zeros_like(clients[0][0]), np.zeros_like(clients[0][1])
    for i in range(len(lora_a)):
        owners = [a[i] for a, _, _, held, _ in clients if held[i]]
        lora_a[i] = owners[0] if owners else 0.0
    for p, (_, b, s, _, _) in zip(_data_weights(clients), clients, strict=True):
        lora_b += p * s * b
    return lora_a, lora_b


def _owners(clients: Sequence[Client], kept: Factors | None) -> Factors:
    """Return each row of A and column of B averaged by n_k over the clients that have it."""
    lora_a, lora_b = np.zeros_like(clients[0][0]), np.zeros_like(clients[0][1])
    for i in range(len(lora_a)):
        owners = [client for client in clients if client[3][i]]
        total = sum(n for *_, n in owners)
        for a, b, s, _, n in owners:
            lora_a[i] += n / total * np.sqrt(s) * a[i]
            lora_b[:, i] += n / total * np.sqrt(s) * b[:, i]
        if not owners and kept is not None:
            lora_a[i], lora_b[:, i] = kept[0][i], kept[1][:, i]
    return lora_a, lora_b


def _partitioned(clients: Sequence[Client], kept: Factors | None) -> Array:
    """Return each direction's `sum_k (n_k / N_i) s_k b_ki a_ki` over the clients that carry it."""
    dense = np.zeros((len(clients[0][1]), clients[0][0].shape[1]))
    for i in range(len(clients[0][0])):
        contributors = [client for client in clients if client[3][i]]
        total = sum(n for *_, n in contributors)
        for a, b, s, _, n in contributors:
            dense += n / total * s * np.outer(b[:, i], a[i])
        if not contributors and kept is not None:
            dense += np.outer(kept[1][:, i], kept[0][i])
    return dense


def _best(dense: Array, r: int) -> Array:
    """Return the best rank-r approximation (Eckart-Young)."""
    u, s, vh = np.linalg.svd(dense, full_matrices=False)
    return np.asarray(u[:, :r] * s[:r] @ vh[:r])


def split_reference(dense: Array, r: int) -> Factors:
    """Return the balanced split of the best rank-r approximation.

    The largest entry of each u_i is positive.
    """
    u, s, vh = np.linalg.svd(dense, full_matrices=False)
    lora_a, lora_b = np.zeros((r, dense.shape[1])), np.zeros((dense.shape[0], r))
    for i in range(min(r, len(s))):
        sign = 1.0 if u[np.argmax(np.abs(u[:, i])), i] >= 0 else -1.0
        lora_b[:, i] = sign * np.sqrt(s[i]) * u[:, i]
        lora_a[i] = sign * np.sqrt(s[i]) * vh[i]
    return lora_a, lora_b


# Rank allocation by sorting


def held_reference(
    scenario: Scenario, rank: int, random: ArrayLike, importance: ArrayLike
) -> list[int]:
    """Return the rank indices of one client in one round, ascending.

    Args:
        scenario: its `allocation` decides which scores count.
        rank: number of directions that the client receives.
        random: its uniform scores, (r_max,).
        importance: its importance of each direction, (r_max,).
    """
    if scenario.allocation == "svd":
        return list(range(rank))
    given = random if scenario.allocation == "random" else importance
    scores: Sequence[float] | NDArray[np.float64] = np.asarray(given, dtype=np.float64)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(order[:rank])
