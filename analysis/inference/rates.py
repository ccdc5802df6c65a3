"""Rates of geometric decays from energies over rounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.inference.measurement import Array

# Energies below this share of their start are rounding noise in float64 (squared: 1e-16**2 times
# a margin for the sums that led there) and would bend a log-linear fit.
ROUNDING_FLOOR = 1e-26


def log_linear_rate(energy: ArrayLike, floor: float = ROUNDING_FLOOR) -> Array:
    """Factor per round of a geometric decay, by least squares on the logarithm.

    Args:
        energy: (..., T + 1), positive at round 0; rounds are the last axis.
        floor: points below this share of the initial energy are left out.

    Returns:
        Shape (...), `exp` of the slope; 0 where fewer than two points are left, NaN where an energy
        is not finite.
    """
    e = np.asarray(energy, dtype=np.float64)
    keep = np.isfinite(e) & (e > floor * e[..., :1])
    t = np.arange(e.shape[-1], dtype=np.float64)
    count = keep.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.where(keep, np.log(np.where(keep, e, 1.0)), 0.0)
        mean_t, mean_log = (keep * t).sum(-1) / count, log.sum(-1) / count
        centred = keep * (t - mean_t[..., None])
        slope = (centred * (log - mean_log[..., None])).sum(-1) / (centred * centred).sum(-1)
    rate = np.where(count >= 2, np.exp(slope), 0.0)
    return np.where(np.isfinite(e).all(-1), rate, np.nan)
