"""Non-IID floors: the energy at which drift holds a direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.inputs import Ranks, Samples, federation_of
from analysis.closed_form.round_map import round_map
from analysis.cohorts.law import Array


def energy_floor(
    rule: str,
    ranks: Ranks,
    *,
    cohort_size: int | None = None,
    num_samples: Samples = None,
    gain_mean: ArrayLike,
    gain_std: ArrayLike,
    drift_std: ArrayLike,
    empty_partition: str = "zero",
    sampling: str | None = None,
) -> Array:
    """Energy at which zero-mean drift holds a direction: `tau^2 E[sum w^2] / (1 - q')`.

    Where `q' >= 1` there is no floor and the value is `inf`, also when `drift_std` is 0; where
    `q' < 1` and `drift_std` is 0 it is 0.

    Args:
        rule: `fedavg`, `zero_pad` or `raflora`.
        ranks: client ranks.
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        gain_mean: mean g of the client gains, scalar or (r_max,).
        gain_std: standard deviation nu of the client gains, scalar or (r_max,).
        drift_std: standard deviation tau of the client drifts, scalar or (r_max,).
        empty_partition: what raFLoRA does without a contributor, `zero`, `carry` or `error`.
        sampling: cohort law, see `Federation`.

    Returns:
        Floors in units of energy, shape (r_max,).

    Raises:
        ValueError: as `energy_rate`; also on `zero_pad` with `drift_std` above 0.

    Reference:
        Wu et al., arXiv 2602.13486, App. B (order of magnitude); constants: our derivation.
    """
    federation = federation_of(ranks, num_samples, cohort_size, sampling)
    step = round_map(rule, federation, empty_partition, gain_mean, gain_std, 0.0, drift_std)
    floor = np.full_like(step.rate, np.inf)
    return np.divide(step.noise, 1.0 - step.rate, out=floor, where=step.rate < 1.0)
