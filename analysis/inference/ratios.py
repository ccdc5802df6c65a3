"""Ratios of two means over the same runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.inference.intervals import mean_interval
from analysis.inference.measurement import Measurement
from fedlora_sim.errors import expected


def ratio_of_means(samples: ArrayLike, error: float) -> Measurement:
    """Mean numerator over mean denominator, with intervals of the ratio's linear part.

    `R = mean(a) / mean(b)` varies over samples like the mean of `(a - R b) / mean(b)` (delta
    method): right for many runs, in which mean(b) is well known.

    Args:
        samples: (n, q, 2), numerator and denominator of every run and quantity; n of at least 2.
        error: probability that any of the q intervals misses; shared equally (Bonferroni).

    Returns:
        Ratios and intervals, (q,) each; not finite where a mean denominator is zero.
    """
    x = np.asarray(samples, dtype=np.float64)
    if x.ndim != 3 or x.shape[-1] != 2:
        raise expected("samples", x.shape, "the shape (runs, quantities, 2)")
    top, bottom = x[..., 0], x[..., 1].mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = top.mean(0) / bottom
        rest = mean_interval((top - ratio * x[..., 1]) / bottom, error)
    return Measurement(ratio, ratio + rest.low, ratio + rest.high, len(x))
