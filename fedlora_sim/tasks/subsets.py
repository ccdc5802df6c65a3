"""Smaller data sets with the classes of the whole one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stratified_sample(
    classes: NDArray[np.int64], size: int | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw samples so that every class keeps its share, to within one sample.

    Args:
        classes: of every sample, (n,).
        size: samples to draw; all n when None or above n.
        rng: draws which ones.

    Returns:
        Indices of the samples, ascending, (min(size, n),).
    """
    total = len(classes)
    if size is None or size >= total:
        return np.arange(total)
    names, counts = np.unique(classes, return_counts=True)
    quota, rest = np.divmod(counts * size, total)
    # What the division leaves goes to the classes that it cut most (largest remainders).
    quota[np.argsort(-rest, kind="stable")[: size - quota.sum()]] += 1
    drawn = [
        rng.choice(np.flatnonzero(classes == name), number, replace=False)
        for name, number in zip(names, quota, strict=True)
    ]
    return np.sort(np.concatenate(drawn))
