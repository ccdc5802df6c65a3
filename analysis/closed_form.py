"""Closed forms: coverage, energy rates, floors and trajectories of one direction.

A round maps the amplitude `x` of a direction to `x' = sum_k w_k (a_k x + b_k)`, with aggregation
weights `w`, client gains `a` (mean g, standard deviation nu) and drifts `b` (mean c, standard
deviation tau), independent over clients and rounds. The pair `(E[x], E[x^2])` then follows an
affine map. Wu et al., arXiv 2602.13486, App. A (no drift, full participation) and App. B
(mean-field recursion with floors); cohorts, exact constants and all rules but FedAvg and raFLoRA
are our derivation. Every function takes ranks as a sequence or as text such as `"4x8,8x6"`; all
values are dimensionless but amplitudes, drifts (unit of `x`) and energies (that unit squared).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from analysis.cohort_laws import Array
from analysis.moments import empty_probability
from analysis.round_map import RoundMap, per_direction, round_map
from fedlora_sim.errors import check_positive_int, expected
from fedlora_sim.federation import Federation, parse_ranks

Ranks = str | Sequence[int]
Samples = Sequence[float] | None


def coverage(ranks: Ranks, num_samples: Samples = None) -> Array:
    """Coverage of every direction: `pi_h = sum of p_k over clients with r_k >= l_h`.

    Args:
        ranks: client ranks.
        num_samples: samples per client; equal when not given.

    Returns:
        Coverages in (0, 1], shape (r_max,).

    Raises:
        ValueError: on bad ranks or sample counts.

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 4.
    """
    return np.asarray(_federation(ranks, num_samples, None, None).coverage(), dtype=np.float64)


def extinction_probability(
    ranks: Ranks, cohort_size: int | None, num_samples: Samples = None, sampling: str | None = None
) -> Array:
    """Probability P0 per round that no client of the cohort carries a direction.

    Without replacement `P0 = C(K-n, m) / C(K, m)` with `n` contributors. Under raFLoRA with
    `empty_partition="zero"` a direction survives `t` rounds with probability `(1 - P0)^t`.

    Args:
        ranks: client ranks.
        cohort_size: clients per round; all when None.
        num_samples: samples per client; they matter under `size_weighted` only.
        sampling: cohort law, see `Federation`.

    Returns:
        Probabilities, shape (r_max,).

    Raises:
        ValueError: on a bad federation, e.g. a cohort larger than it.

    Reference:
        Our derivation.
    """
    return empty_probability(_federation(ranks, num_samples, cohort_size, sampling))


def energy_rate(
    rule: str,
    ranks: Ranks,
    *,
    cohort_size: int | None = None,
    num_samples: Samples = None,
    gain_mean: ArrayLike = 1.0,
    gain_std: ArrayLike = 0.0,
    empty_partition: str = "zero",
    sampling: str | None = None,
) -> Array:
    """Factor q' by which the mean energy of a direction changes per round, drift apart.

    `q' = g^2 E[(sum w)^2] + nu^2 E[sum w^2]`, plus P0 for raFLoRA with `carry`;
    `g^2 E[(sum w)^4]` for `zero_pad`, which dilutes both factors.

    Args:
        rule: `fedavg`, `zero_pad` or `raflora`.
        ranks: client ranks.
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        gain_mean: mean g of the client gains, scalar or (r_max,).
        gain_std: standard deviation nu of the client gains, scalar or (r_max,).
        empty_partition: what raFLoRA does without a contributor, `zero`, `carry` or `error`.
        sampling: cohort law, see `Federation`.

    Returns:
        Rates, shape (r_max,).

    Raises:
        ValueError: on a bad argument; on `zero_pad` with `gain_std` above 0 (the factors hold
            square roots of client amplitudes: no closed form); on `error` where P0 > 0.

    Reference:
        Wu et al., arXiv 2602.13486, App. A and B; cohorts and `zero_pad`: our derivation.
    """
    federation = _federation(ranks, num_samples, cohort_size, sampling)
    return round_map(rule, federation, empty_partition, gain_mean, gain_std, 0.0, 0.0).rate


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
    federation = _federation(ranks, num_samples, cohort_size, sampling)
    step = round_map(rule, federation, empty_partition, gain_mean, gain_std, 0.0, drift_std)
    floor = np.full_like(step.rate, np.inf)
    return np.divide(step.noise, 1.0 - step.rate, out=floor, where=step.rate < 1.0)


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
    federation = _federation(ranks, num_samples, cohort_size, sampling)
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
    federation = _federation(ranks, num_samples, cohort_size, sampling)
    step = round_map(rule, federation, empty_partition, gain_mean, gain_std, drift_mean, drift_std)
    return _iterate(step, rounds, initial_amplitude)[0]


def collapse_bound(
    ranks: Ranks, rounds: int, *, num_samples: Samples = None, initial_energy: ArrayLike
) -> Array:
    """Upper bound `C gamma^t` on `1 - rho_{l_1}(t)` for FedAvg, full participation, common gain.

    `gamma = pi_2^2`, the squared coverage of the second-lowest level, and
    `C = E_high(0) / E_shared(0)`, energies above and up to `l_1`. Zero if there is one level.

    Args:
        ranks: client ranks.
        rounds: number of rounds T, at least 1.
        num_samples: samples per client; equal when None.
        initial_energy: energies `sigma_i(0)^2`, not negative, scalar or (r_max,).

    Returns:
        The bound for t = 0..rounds, shape (rounds + 1,).

    Raises:
        ValueError: on a bad argument, or no energy in the shared directions.

    Reference:
        Wu et al., arXiv 2602.13486, App. A; the constants: our derivation.
    """
    federation = _federation(ranks, num_samples, None, None)
    times = np.arange(check_positive_int("rounds", rounds) + 1)
    energy = per_direction("initial_energy", initial_energy, federation.r_max, minimum=0.0)
    lowest = federation.levels[0]
    shared, high = float(energy[:lowest].sum()), float(energy[lowest:].sum())
    if not shared > 0:
        raise expected("initial_energy", initial_energy, f"energy in the first {lowest} directions")
    if len(federation.levels) == 1:
        return np.zeros(times.size)
    gamma = float(federation.coverage()[lowest]) ** 2
    return np.asarray(high / shared * gamma**times, dtype=np.float64)


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


def _federation(
    ranks: Ranks, num_samples: Samples, cohort_size: int | None, sampling: str | None
) -> Federation:
    samples = None if num_samples is None else tuple(num_samples)
    return Federation(parse_ranks(ranks), samples, cohort_size, sampling)
