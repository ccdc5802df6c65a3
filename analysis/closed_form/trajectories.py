"""Mean amplitude and mean energy of every direction after every round."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.inputs import Ranks, Samples, federation_of, per_direction
from analysis.closed_form.round_map import RoundMap, round_map
from analysis.cohorts.law import Array
from fedlora_sim.errors import check_positive_int


def energy_trajectory(
    rule: str,
    ranks: Ranks,
    rounds: int,
    *,
    initial_amplitude: ArrayLike,
    cohort_size: int | None = None,
    num_samples: Samples = None,
    gain_mean: ArrayLike = 1.0,
    gain_std: ArrayLike = 0.0,
    drift_mean: ArrayLike = 0.0,
    drift_std: ArrayLike = 0.0,
    empty_partition: str = "zero",
    sampling: str | None = None,
) -> Array:
    """Mean energy `E[x_t^2]` of every direction after every round, exact for every t.

    `E[x'^2] = q' E[x^2] + 2 g c E[(sum w)^2] E[x] + tau^2 E[sum w^2] + c^2 E[(sum w)^2]`, iterated
    with `E[x'] = (g E[x] + c) E[sum w]`. Gains and drifts are drawn afresh every round.

    Args:
        rule: `fedavg`, `zero_pad` or `raflora`.
        ranks: client ranks.
        rounds: number of rounds T, at least 1.
        initial_amplitude: amplitudes x_0, not random, scalar or (r_max,).
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        gain_mean: mean g of the client gains, scalar or (r_max,).
        gain_std: standard deviation nu of the client gains, scalar or (r_max,).
        drift_mean: mean c of the client drifts, scalar or (r_max,).
        drift_std: standard deviation tau of the client drifts, scalar or (r_max,).
        empty_partition: what raFLoRA does without a contributor, `zero`, `carry` or `error`.
        sampling: cohort law, see `Federation`.

    Returns:
        Energies, shape (rounds + 1, r_max), round 0 first.

    Raises:
        ValueError: as `energy_floor`; also on bad `rounds` or `initial_amplitude`.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; the closed moment map: our derivation.
    """
    federation = federation_of(ranks, num_samples, cohort_size, sampling)
    step = round_map(rule, federation, empty_partition, gain_mean, gain_std, drift_mean, drift_std)
    return _iterate(step, rounds, initial_amplitude)[1]


def mean_trajectory(
    rule: str,
    ranks: Ranks,
    rounds: int,
    *,
    initial_amplitude: ArrayLike,
    cohort_size: int | None = None,
    num_samples: Samples = None,
    gain_mean: ArrayLike = 1.0,
    gain_std: ArrayLike = 0.0,
    drift_mean: ArrayLike = 0.0,
    drift_std: ArrayLike = 0.0,
    empty_partition: str = "zero",
    sampling: str | None = None,
) -> Array:
    """Mean amplitude `E[x_t]` of every direction after every round, exact for every t.

    `E[x'] = (g E[x] + c) E[sum w]`. Args, errors and reference are those of `energy_trajectory`.

    Returns:
        Amplitudes, shape (rounds + 1, r_max), round 0 first.
    """
    federation = federation_of(ranks, num_samples, cohort_size, sampling)
    step = round_map(rule, federation, empty_partition, gain_mean, gain_std, drift_mean, drift_std)
    return _iterate(step, rounds, initial_amplitude)[0]


def _iterate(step: RoundMap, rounds: int, initial_amplitude: ArrayLike) -> tuple[Array, Array]:
    """Means and energies for t = 0..rounds, each of shape (rounds + 1, r_max)."""
    count = check_positive_int("rounds", rounds)
    mean = np.empty((count + 1, step.rate.size))
    energy = np.empty_like(mean)
    mean[0] = per_direction("initial_amplitude", initial_amplitude, step.rate.size)
    energy[0] = mean[0] ** 2
    for t in range(count):
        mean[t + 1] = step.gain * mean[t] + step.shift
        energy[t + 1] = step.rate * energy[t] + step.cross * mean[t] + step.noise
    return mean, energy
