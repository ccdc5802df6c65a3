"""What several splits need: checks, Dirichlet shares, a least number of samples, one order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlora_sim.errors import check_positive_int, expected


def check_split(name: str, values: object, num_clients: int, min_samples: int) -> np.ndarray:
    """Refuse values that are not one per sample, and clients that cannot all be served.

    Args:
        name: what the caller calls the values.
        values: one per sample, (n,).
        num_clients: number of clients K.
        min_samples: least number of samples per client.

    Returns:
        The values as an array.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """
    found = np.asarray(values)
    if found.ndim != 1:
        raise expected(name, f"shape {found.shape}", "one per sample, shape (n,)")
    clients = check_positive_int("num_clients", num_clients)
    least = check_positive_int("min_samples", min_samples)
    if clients * least > len(found):
        raise expected("num_clients", clients, f"at most {len(found)} samples / {least} each")
    return found


def check_smallest(clients: list[np.ndarray], min_samples: int) -> None:
    """Refuse a finished split in which some client has fewer than `min_samples` samples.

    Raises:
        ValueError: naming the smallest client's size.
    """
    smallest = min(len(own) for own in clients)
    if smallest < min_samples:
        raise expected("min_samples", min_samples, f"at most {smallest}, the smallest client here")


def dirichlet_cuts(
    samples: np.ndarray, alpha: float, num_clients: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Cut a row of samples into K pieces in symmetric Dirichlet(alpha) proportions."""
    shares = _dirichlet(alpha, num_clients, rng)
    cuts = np.rint(np.cumsum(shares)[:-1] * len(samples)).astype(np.int64)
    return np.split(samples, cuts)


def fill_up(clients: list[np.ndarray], min_samples: int, rng: np.random.Generator) -> None:
    """Move random samples from the largest client to those below `min_samples`, in place."""
    for receiver in range(len(clients)):
        while len(clients[receiver]) < min_samples:
            giver = int(np.argmax([len(own) for own in clients]))
            position = rng.integers(len(clients[giver]))
            moved = clients[giver][position]
            clients[giver] = np.delete(clients[giver], position)
            clients[receiver] = np.append(clients[receiver], moved)


def in_order(clients: list[np.ndarray]) -> list[NDArray[np.int64]]:
    """Every client's sample indices ascending, int64."""
    return [np.sort(own).astype(np.int64) for own in clients]


def _dirichlet(alpha: float, num_clients: int, rng: np.random.Generator) -> np.ndarray:
    """Symmetric Dirichlet shares, shape (K,), for any positive alpha."""
    shares = rng.dirichlet(np.full(num_clients, alpha))
    if np.isfinite(shares).all() and shares.sum() > 0.5:
        return shares
    # All gamma draws underflowed: the limit alpha -> 0, one client takes everything.
    return np.eye(num_clients)[rng.integers(num_clients)]
