"""The three server rules on dense matrices, client by client, straight from their formulas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Factors = tuple[Array, Array]  # lora_A (r, d_in), lora_B (d_out, r), scaling 1


def aggregate_reference(
    updates: Sequence[tuple[Array, Array, float]],
    num_samples: Sequence[float],
    rule: str,
    rank_levels: Sequence[int],
    previous: Factors | None = None,
    empty_partition: str = "carry",
) -> Factors:
    """Aggregate one round.

    Args:
        updates: `(lora_A, lora_B, scaling)` of every client, shapes (r_k, d_in) and (d_out, r_k).
        num_samples: `n_k` of every client.
        rule: `fedavg`, `zero_pad` or `raflora`.
        rank_levels: distinct ranks of the federation.
        previous: last global factors at scaling 1, of rank max(rank_levels).
        empty_partition: `zero` or `carry`.

    Returns:
        Global lora_A (r_max, d_in) and lora_B (d_out, r_max) at scaling 1.
    """
    levels = sorted(rank_levels)
    if rule == "zero_pad":
        return _zero_pad(updates, num_samples, levels[-1])
    if rule == "fedavg":
        total = sum(num_samples)
        dense = sum(
            n / total * s * (b @ a) for (a, b, s), n in zip(updates, num_samples, strict=True)
        )
    else:
        dense = _partitioned(updates, num_samples, levels, previous, empty_partition)
    return split_reference(np.asarray(dense), levels[-1])


def _zero_pad(
    updates: Sequence[tuple[Array, Array, float]], num_samples: Sequence[float], r_max: int
) -> Factors:
    d_in, d_out = updates[0][0].shape[1], updates[0][1].shape[0]
    lora_a, lora_b = np.zeros((r_max, d_in)), np.zeros((d_out, r_max))
    for (a, b, s), n in zip(updates, num_samples, strict=True):
        share, r = n / sum(num_samples), a.shape[0]
        lora_a[:r] += share * np.sqrt(s) * a
        lora_b[:, :r] += share * np.sqrt(s) * b
    return lora_a, lora_b


def _partitioned(
    updates: Sequence[tuple[Array, Array, float]],
    num_samples: Sequence[float],
    levels: Sequence[int],
    previous: Factors | None,
    empty_partition: str,
) -> Array:
    dense = np.zeros((updates[0][1].shape[0], updates[0][0].shape[1]))
    low = 0
    for level in levels:
        pairs = list(zip(updates, num_samples, strict=True))
        contributors = [(u, n) for u, n in pairs if u[0].shape[0] >= level and n > 0]
        total = sum(n for _, n in contributors)
        for (a, b, s), n in contributors:
            dense += n / total * s * (b[:, low:level] @ a[low:level])
        if not contributors and empty_partition == "carry":
            assert previous is not None
            dense += previous[1][:, low:level] @ previous[0][low:level]
        low = level
    return dense


def split_reference(dense: Array, r: int) -> Factors:
    """Balanced split of the best rank-r approximation, the largest entry of every u_i positive."""
    u, s, vh = np.linalg.svd(dense, full_matrices=False)
    lora_a, lora_b = np.zeros((r, dense.shape[1])), np.zeros((dense.shape[0], r))
    for i in range(min(r, len(s))):
        sign = 1.0 if u[np.argmax(np.abs(u[:, i])), i] >= 0 else -1.0
        lora_b[:, i] = sign * np.sqrt(s[i]) * u[:, i]
        lora_a[i] = sign * np.sqrt(s[i]) * vh[i]
    return lora_a, lora_b
