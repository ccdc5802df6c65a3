"""Natural skew: all that one writer wrote stays with one client."""

from __future__ import annotations

import numpy as np

from fedlora_sim.errors import expected
from fedlora_sim.splits.common import check_smallest, check_split, in_order


def writer_split(
    groups: np.ndarray | None,
    num_clients: int,
    rng: np.random.Generator,
    *,
    min_samples: int = 1,
) -> list[np.ndarray]:
    """Give every group of samples whole to one client, and the clients sizes as equal as that lets.

    The largest group goes first, each to the client with the fewest samples so far; groups and
    clients that tie are taken in random order. With as many clients as groups, each has one.

    Args:
        groups: who wrote every sample, any integers, shape (n,).
        num_clients: number of clients K, at most the number of groups.
        rng: source of randomness.
        min_samples: least number of samples per client.

    Returns:
        K sorted arrays of sample indices, int64, disjoint and together 0..n-1.

    Raises:
        ValueError: if the data do not say who wrote what, if there are fewer groups than clients,
            or if a client is left with fewer than `min_samples` samples.

    Reference:
        Li et al. 2022 (arXiv 2102.02079), Sec. IV, "Real-world Feature Imbalance" (FEMNIST by
        writers); Graham 1969, SIAM J. Appl. Math. 17(2), for the order.
    """
    if groups is None:
        raise expected("groups", None, "the writer of every sample for split='by_writer'")
    groups = check_split("groups", groups, num_clients, min_samples)
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if num_clients > len(sizes):
        whole = f"at most {len(sizes)}, the number of groups: split='by_writer' parts none"
        raise expected("num_clients", num_clients, whole)
    owner, held = np.empty(len(sizes), dtype=np.int64), np.zeros(num_clients, dtype=np.int64)
    # lexsort's last key comes first; the other breaks ties at random.
    for group in np.lexsort((rng.random(len(sizes)), -sizes)):
        owner[group] = np.lexsort((rng.random(num_clients), held))[0]
        held[owner[group]] += sizes[group]
    split = [np.flatnonzero(owner[member] == client) for client in range(num_clients)]
    check_smallest(split, min_samples)
    return in_order(split)
