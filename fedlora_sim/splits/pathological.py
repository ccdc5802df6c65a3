"""Pathological label skew: every client sees a few classes only."""

from __future__ import annotations

import numpy as np

from fedlora_sim.errors import check_positive_int, expected
from fedlora_sim.splits.common import check_smallest, check_split, in_order


def pathological_split(
    labels: np.ndarray,
    num_clients: int,
    classes_per_client: int,
    rng: np.random.Generator,
    *,
    min_samples: int = 1,
) -> list[np.ndarray]:
    """Give every client samples of exactly `classes_per_client` classes.

    Each client in turn takes the classes with the fewest owners so far, ties broken at random, so
    the numbers of owners differ by at most one; a class is then divided equally among its owners.
    (The shards of McMahan et al. can straddle two classes; these cannot.)

    Args:
        labels: class of every sample, shape (n,).
        num_clients: number of clients K.
        classes_per_client: number c of classes per client.
        rng: source of randomness.
        min_samples: least number of samples per client.

    Returns:
        K sorted arrays of sample indices, int64, disjoint and together 0..n-1.

    Raises:
        ValueError: if c exceeds the number of classes, if K * c is below it (a class would have no
            owner), or if a class has too few samples for its owners.

    Reference:
        McMahan et al. 2017 (arXiv 1602.05629), Sec. 3, "Pathological Non-IID".
    """
    labels = check_split("labels", labels, num_clients, min_samples)
    classes = np.unique(labels)
    per_client = check_positive_int("classes_per_client", classes_per_client)
    if per_client > len(classes) or per_client * num_clients < len(classes):
        least = -(-len(classes) // num_clients)
        bounds = f"{least} to {len(classes)}: {len(classes)} classes for {num_clients} clients"
        raise expected("classes_per_client", classes_per_client, bounds)
    owners = _deal_classes(len(classes), num_clients, per_client, rng)
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for label, clients in zip(classes, owners, strict=True):
        own = rng.permutation(np.flatnonzero(labels == label))
        if len(own) < len(clients):
            needed = f"at least {len(clients)} samples of class {label}, one per owner"
            raise expected("labels", f"{len(own)} of class {label}", needed)
        for client, piece in zip(clients, np.array_split(own, len(clients)), strict=True):
            parts[client].append(piece)
    split = [np.concatenate(part) for part in parts]
    check_smallest(split, min_samples)
    return in_order(split)


def _deal_classes(
    num_classes: int, num_clients: int, per_client: int, rng: np.random.Generator
) -> list[list[int]]:
    """The clients that own each class, in random order."""
    owners: list[list[int]] = [[] for _ in range(num_classes)]
    for client in range(num_clients):
        counts = np.array([len(clients) for clients in owners])
        # lexsort's last key comes first: fewest owners, then a random tie-break.
        for label in np.lexsort((rng.random(num_classes), counts))[:per_client]:
            owners[label].append(client)
    # array_split gives the earlier parts the spare samples: do not always favour client 0.
    return [rng.permutation(clients).tolist() for clients in owners]
