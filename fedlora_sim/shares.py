"""Shares of a total weight that do not depend on the machine or on the order of the items.

Each sum is rounded once (`math.fsum`) and divided last. A share is therefore exactly 1 if
everything is chosen, exactly 0 if nothing is, always in [0, 1], and monotone in the chosen set. A
matrix product of normalized weights has none of these properties, because its rounding depends on
the BLAS kernel.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def normalized(weights: ArrayLike) -> NDArray[np.float64]:
    """Return weights divided by their sum.

    Args:
        weights: finite, non-negative, not all zero, shape (n,); any scale, including subnormal.

    Returns:
        Shares in [0, 1], shape (n,); each is accurate to two roundings.
    """
    scaled = _scaled(weights)
    return scaled / math.fsum(scaled)


def share(weights: ArrayLike, chosen: ArrayLike) -> float:
    """Return the share of the chosen items in the total weight.

    Args:
        weights: finite, non-negative, not all zero, shape (n,).
        chosen: which items count, shape (n,): boolean, or the fraction of each item, in [0, 1].

    Returns:
        `sum w * chosen / sum w`, in [0, 1]; exactly 1 if all of every item is chosen.
    """
    scaled = _scaled(weights)
    return math.fsum(scaled * np.asarray(chosen, dtype=np.float64)) / math.fsum(scaled)


def _scaled(weights: ArrayLike) -> NDArray[np.float64]:
    """Return the weights times a power of two, which keeps sums in range without rounding."""
    array = np.asarray(weights, dtype=np.float64)
    return np.ldexp(array, -math.frexp(float(array.max()))[1])
