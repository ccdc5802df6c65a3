"""Binomial and Poisson probabilities, from a library that is imported when it is first needed.

`scipy.stats` takes longer to import than most closed forms to compute, and uniform cohorts of
clients that weigh alike need no more than whole numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.cohorts.law import Array

Numbers = float | NDArray[np.floating] | NDArray[np.int64]


def binomial_pmf(count: Numbers, size: Numbers, chance: Numbers) -> Array:
    """Probability of `count` successes in `size` trials; arguments broadcast."""
    from scipy.stats import binom

    return np.asarray(binom.pmf(count, size, chance), dtype=np.float64)


def poisson_pmf(count: Numbers, mean: Numbers) -> Array:
    """Probability of `count` events where `mean` are expected; arguments broadcast."""
    from scipy.stats import poisson

    return np.asarray(poisson.pmf(count, mean), dtype=np.float64)
