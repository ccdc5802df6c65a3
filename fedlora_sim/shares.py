"""Shares of a total weight, the same on every machine and in every order of the items.

Each sum is rounded once (`math.fsum`) and divided last. So a share is exactly 1 if everything is
chosen, exactly 0 if nothing is, never outside [0, 1], and never smaller for a larger choice. A
matrix product of normalised weights has none of these properties: its rounding depends on the BLAS
kernel.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def normalized(weights: ArrayLike) -> NDArray[np.float64]:
    """Return weights divided by their sum.

    Args:
        weights: finite, not negative, not all zero, shape (n,); any scale, subnormal included.

    Returns:
        Shares in [0, 1], shape (n,); each is off by at most two roundings.
    """
    scaled = _scaled(weights)
    return scaled / math.fsum(scaled)


def share(weights: ArrayLike, chosen: ArrayLike) -> float:
    """Return the share of the chosen items in the total weight.

    Args:
        weights: finite, not negative, not all zero, shape (n,).
        chosen: which items count, shape (n,): boolean, or the fraction of each item, in [0, 1].

    Returns:
        `sum w * chosen / sum w`, in [0, 1]; exactly 1 where all of every item is chosen.
    """
    scaled = _scaled(weights)
    return math.fsum(scaled * np.asarray(chosen, dtype=np.float64)) / math.fsum(scaled)


def _scaled(weights: ArrayLike) -> NDArray[np.float64]:
    """Weights times a power of two, which rounds nothing and keeps sums in range."""
    array = np.asarray(weights, dtype=np.float64)
    return np.ldexp(array, -math.frexp(float(array.max()))[1])
