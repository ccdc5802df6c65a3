"""What an estimator returns, and what an estimator is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """Point estimates with simultaneous confidence intervals.

    Args:
        value: estimates, (q,).
        low, high: ends of the intervals, (q,); infinite or NaN where nothing can be said.
        samples: independent runs behind them.
        every_run: the statement is about every single run, not about a mean over runs; `low` and
            `high` are then the smallest and the largest value of all runs.
    """

    value: Array
    low: Array
    high: Array
    samples: int
    every_run: bool = False


# Samples (n, q, ...), one row per independent run, and the probability that any of the q intervals
# misses its quantity, to a measurement. A smaller probability never makes an interval shorter.
Estimator = Callable[[Array, float], Measurement]
