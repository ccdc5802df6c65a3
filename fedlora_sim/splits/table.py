"""A split as a table: who holds how many samples of what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedlora_sim.errors import check_positive_int, expected


def split_table(
    samples: Sequence[NDArray[np.int64]], classes: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """Count every client's samples of every class.

    Args:
        samples: sample indices of every client, K arrays.
        classes: class of every sample, 0 to C - 1, shape (n,).
        num_classes: number of classes C.

    Returns:
        Counts, shape (K, C).

    Raises:
        ValueError: if a class is out of range.
    """
    limit = check_positive_int("num_classes", num_classes)
    classes = np.asarray(classes)
    if classes.size and not 0 <= classes.min() <= classes.max() < limit:
        found = f"{classes.min()} to {classes.max()}"
        raise expected("classes", found, f"0 to {limit - 1}, of {limit} classes")
    return np.stack([np.bincount(classes[own], minlength=limit) for own in samples])
