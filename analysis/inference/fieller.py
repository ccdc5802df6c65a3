"""Ratios of means, with Fieller's intervals: no linearisation, and none where the ratio is open."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.inference.measurement import Measurement
from fedlora_sim.errors import expected


def fieller_ratio(samples: ArrayLike, error: float) -> Measurement:
    """Ratios of two means of independent runs, which may be paired, with Fieller's intervals.

    The interval holds every ratio R for which Student's interval of the mean of `y - R x` holds 0:
    as certain as that interval, however far from normal the ratio itself is.

    Args:
        samples: (n, q, 2), numerator y and denominator x of every run; n of at least 2.
        error: probability that any of the q intervals misses; shared equally (Bonferroni).

    Returns:
        Ratios of the means and intervals, (q,) each; infinite where the denominator's mean is not
        told from 0, for then no ratio is excluded on some side.

    Reference: Fieller, Some problems in interval estimation.
    """
    z = np.asarray(samples, dtype=np.float64)
    if z.ndim != 3 or z.shape[-1] != 2 or len(z) < 2:
        raise expected("samples", z.shape, "the shape (runs, quantities, 2), at least two runs")
    n, q = z.shape[:2]
    x = z[..., 1].mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = z[..., 0].mean(0) / x
        rest = z[..., 0] - value * z[..., 1]
        centred = z[..., 1] - x
        width = stats.t.isf(error / (2 * q), n - 1) ** 2 / (n * (n - 1))
        # With R = value + d: d^2 x^2 <= width Var[rest - d x], a parabola in d, not above 0 at 0.
        a, b = x**2 - width * (centred**2).sum(0), width * (rest * centred).sum(0)
        root = np.sqrt(b**2 + np.maximum(a, 0.0) * width * (rest**2).sum(0))
        low, high = value - (b + root) / a, value - (b - root) / a
    told = a > 0
    return Measurement(value, np.where(told, low, -np.inf), np.where(told, high, np.inf), n)
