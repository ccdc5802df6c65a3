"""Quantity skew: clients of very different sizes, each a fair sample of the data."""

from __future__ import annotations

import numpy as np

from fedlora_sim.errors import check_positive
from fedlora_sim.splits.common import check_split, dirichlet_cuts, fill_up, in_order


def quantity_split(
    labels: np.ndarray,
    num_clients: int,
    alpha: float,
    rng: np.random.Generator,
    *,
    min_samples: int = 1,
) -> list[np.ndarray]:
    """Draw the clients' sizes from Dirichlet(alpha) and fill them with samples at random.

    alpha -> infinity is equal sizes, alpha -> 0 gives all samples to one client. A client left
    with fewer than `min_samples` receives random samples from whichever has most at that moment.

    Args:
        labels: class of every sample, shape (n,); only their number matters.
        num_clients: number of clients K.
        alpha: concentration, positive.
        rng: source of randomness.
        min_samples: least number of samples per client.

    Returns:
        K sorted arrays of sample indices, int64, disjoint and together 0..n-1.

    Raises:
        ValueError: if alpha is not positive, or there are fewer than K * min_samples samples.

    Reference:
        Li et al. 2022 (arXiv 2102.02079), Sec. IV, "Quantity Skew".
    """
    labels = check_split("labels", labels, num_clients, min_samples)
    check_positive("alpha", alpha)
    clients = dirichlet_cuts(rng.permutation(len(labels)), alpha, num_clients, rng)
    fill_up(clients, min_samples, rng)
    return in_order(clients)
