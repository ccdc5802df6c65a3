"""Thresholds: brackets by bisection, and intervals that hold the brackets' width."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from analysis.inference.measurement import Measurement
from fedlora_sim.errors import expected


def bisect(
    is_above: Callable[[float], bool], low: float, high: float, tolerance: float
) -> tuple[float, float]:
    """Bracket of the threshold of a deterministic predicate, false below it and true above.

    Args:
        is_above: the predicate, monotone; noise must be fixed by its seed.
        low: a value below the threshold.
        high: a value above it.
        tolerance: width of the bracket at most, in the same unit.

    Returns:
        The bracket: false at its low end, true at its high end.

    Raises:
        ValueError: if the ends do not hold the threshold between them.
    """
    if not low < high:
        raise expected("high", high, f"a value above low={low}")
    if not tolerance > 0:
        raise expected("tolerance", tolerance, "a positive width")
    if is_above(low):
        raise expected("low", low, "a value below the threshold")
    if not is_above(high):
        raise expected("high", high, "a value above the threshold")
    while high - low > tolerance:
        middle = low + (high - low) / 2
        if not low < middle < high:  # no float lies between them
            break
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return low, high


def bracketed(samples: ArrayLike, error: float) -> Measurement:
    """Estimator of a threshold in every single run, of which a bracket is known.

    The range of all runs reaches from the lowest low end to the highest high end, so it holds the
    brackets' width too; one run outside the region refutes the statement, as for `every_run`.

    Args:
        samples: (n, q, 2), the low and the high end for every run and quantity.
        error: not used; a run is inside its region or it is not.

    Returns:
        Medians of the mid-points and ranges, (q,) each.
    """
    x = np.asarray(samples, dtype=np.float64)
    if x.ndim != 3 or x.shape[-1] != 2:
        raise expected("samples", x.shape, "the shape (runs, quantities, 2)")
    low, high = x[..., 0], x[..., 1]
    middle = np.median((low + high) / 2, axis=0)
    return Measurement(middle, low.min(0), high.max(0), len(x), every_run=True)
