"""Ratios of means, with Fieller's intervals: no linearisation, and none where the ratio is open."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.inference.intervals import standard_errors
from analysis.inference.measurement import Measurement
from fedlora_sim.errors import expected


def fieller_ratio(samples: ArrayLike, error: float) -> Measurement:
    """Ratios of two means of independent runs, which may be paired, with Fieller's intervals.

    The interval holds every ratio R for which Student's interval of the mean of `y - R x` holds 0:
    as certain as that interval, however far from normal the ratio itself is. Remainders
    `y - R x` that are skewed, at the estimated R, make it longer as they do in `mean_interval`.

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
        below, above = standard_errors(rest, error / (2 * q))
        # Too high a ratio leaves too low a remainder, if the denominator is positive.
        factors = np.where(x > 0, [below, above], [above, below])
        width = factors**2 / (n * (n - 1))
        # With R = value + d: d^2 x^2 <= width Var[rest - d x], a parabola in d, not above 0 at 0.
        a, b = x**2 - width * (centred**2).sum(0), width * (rest * centred).sum(0)
        root = np.sqrt(b**2 + np.maximum(a, 0.0) * width * (rest**2).sum(0))
        low, high = value - (b[0] + root[0]) / a[0], value - (b[1] - root[1]) / a[1]
    told = a > 0
    return Measurement(value, np.where(told[0], low, -np.inf), np.where(told[1], high, np.inf), n)
