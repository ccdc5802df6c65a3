"""IID: samples at random, in equal parts."""

from __future__ import annotations

import numpy as np

from fedlora_sim.splits.common import check_split, in_order


def iid_split(
    labels: np.ndarray, num_clients: int, rng: np.random.Generator, *, min_samples: int = 1
) -> list[np.ndarray]:
    """Hand the samples out at random, in parts that differ by at most one sample.

    Args:
        labels: class of every sample, shape (n,); only their number matters.
        num_clients: number of clients K.
        rng: source of randomness.
        min_samples: least number of samples per client.

    Returns:
        K sorted arrays of sample indices, int64, disjoint and together 0..n-1.

    Raises:
        ValueError: if there are fewer than K * min_samples samples.
    """
    labels = check_split("labels", labels, num_clients, min_samples)
    return in_order(np.array_split(rng.permutation(len(labels)), num_clients))
