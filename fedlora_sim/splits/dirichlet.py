"""Label skew: every class in Dirichlet proportions."""

from __future__ import annotations

import numpy as np

from fedlora_sim.errors import check_positive
from fedlora_sim.splits.common import check_split, dirichlet_cuts, fill_up, in_order


def dirichlet_split(
    labels: np.ndarray,
    num_clients: int,
    alpha: float,
    rng: np.random.Generator,
    *,
    min_samples: int = 1,
) -> list[np.ndarray]:
    """Hand every class out in Dirichlet(alpha) proportions: label skew and unequal sizes.

    For each class the shares of the K clients are drawn from a symmetric Dirichlet distribution;
    alpha -> infinity is IID, alpha -> 0 gives each class to one client. A client left with fewer
    than `min_samples` then receives random samples from whichever client has most at that moment;
    no draw is repeated, so the call always ends and the other clients' shares stay as drawn.

    Args:
        labels: class of every sample, shape (n,).
        num_clients: number of clients K.
        alpha: concentration, positive.
        rng: source of randomness.
        min_samples: least number of samples per client.

    Returns:
        K sorted arrays of sample indices, int64, disjoint and together 0..n-1.

    Raises:
        ValueError: if alpha is not positive, or there are fewer than K * min_samples samples.

    Reference:
        Yurochkin et al. 2019 (arXiv 1905.12022), Sec. 4; Li et al. 2022 (arXiv 2102.02079).
    """
    labels = check_split("labels", labels, num_clients, min_samples)
    check_positive("alpha", alpha)
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(parts, dirichlet_cuts(own, alpha, num_clients, rng), strict=True):
            part.append(piece)
    clients = [np.concatenate(part) for part in parts]
    fill_up(clients, min_samples, rng)
    return in_order(clients)
