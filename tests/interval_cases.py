"""Coverage of intervals, by simulation with a fixed seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from analysis.stats import Estimator

SIGMAS = 4.0


def coverage(
    estimator: Estimator,
    draw: Callable[[np.random.Generator], np.ndarray],
    truth: ArrayLike,
    error: float,
    replicates: int = 2000,
) -> float:
    """Return share of replicates in which all q intervals hold their quantity."""
    rng = np.random.default_rng(20)
    hits = 0
    for _ in range(replicates):
        m = estimator(draw(rng), error)
        hits += bool(((m.low <= truth) & (truth <= m.high)).all())
    return hits / replicates


def slack(error: float, replicates: int = 2000) -> float:
    return float(SIGMAS * np.sqrt(error * (1 - error) / replicates))
