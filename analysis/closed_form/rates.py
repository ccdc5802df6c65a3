"""Coverage, energy rates, extinction, and the bound on the collapse."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.energies import moment_map
from analysis.closed_form.inputs import (
    Ranks,
    Samples,
    federation_of,
    per_direction,
)
from analysis.closed_form.noise import need_spread
from analysis.closed_form.round_map import clients_of
from analysis.closed_form.setting import setting_of
from analysis.cohorts.clients import allocation_of
from analysis.cohorts.law import Array
from analysis.cohorts.moments import empty_probability
from fedlora_sim.errors import MOST_ROUNDS, check_count, expected


def coverage(ranks: Ranks, num_samples: Samples = None, *, allocation: str = "svd") -> Array:
    """Coverage of every direction: `pi_h = sum of p_k over clients with r_k >= l_h`.

    Under random allocation `sum_k p_k r_k / r_max` for every direction.

    Args:
        ranks: client ranks.
        num_samples: samples per client; equal when not given.
        allocation: which directions clients carry, `svd` or `random`.

    Returns:
        Coverages in (0, 1], shape (r_max,).

    Raises:
        ValueError: on bad ranks or sample counts; on `importance`.

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 4; random allocation: our derivation.
    """
    federation = federation_of(ranks, num_samples, None, None)
    return np.asarray(federation.coverage(allocation_of(allocation)), dtype=np.float64)


def extinction_probability(
    ranks: Ranks,
    cohort_size: int | None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
) -> Array:
    """Probability P0 per round that no client of the cohort carries a direction.

    Without replacement `P0 = C(K-n, m) / C(K, m)` with `n` contributors. Under raFLoRA with
    `empty_partition="zero"` a direction survives `t` rounds with probability `(1 - P0)^t`.

    Args:
        ranks: client ranks.
        cohort_size: clients per round; all when None.
        num_samples: samples per client; they matter under `size_weighted` only.
        sampling: cohort law, see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.

    Returns:
        Probabilities, shape (r_max,).

    Raises:
        ValueError: on a bad federation, e.g. a cohort larger than it; on `importance`.

    Reference:
        Our derivation.
    """
    federation = federation_of(ranks, num_samples, cohort_size, sampling)
    return empty_probability(federation, allocation_of(allocation))


def energy_rate(
    rule: str,
    ranks: Ranks,
    *,
    gain_mean: ArrayLike = 1.0,
    gain_std: ArrayLike = 0.0,
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Factor q' by which the mean energy of a direction changes per round, drift apart.

    `q' = g^2 E[(sum w)^2] + nu^2 E[sum w^2]`, plus P0 for raflora and rbla with `carry`;
    `g^2 E[(sum w)^4]` for zero_pad, which dilutes both factors; for hetlora the same with uniform
    weights, the limit in a collapsing federation; for flora, with `d = g - 1`,
    `1 + 2 d E[sum w] + d^2 E[(sum w)^2] + nu^2 E[sum w^2]`; for fedex the spectral radius of the
    map of adapter and base, 1 where g = 1. Clients drawn once and for all have no rate in the mean:
    see `energy_floor`.

    Args:
        rule: any of `RULES`, or an alias.
        ranks: client ranks.
        gain_mean: mean g of the client gains, scalar or (r_max,).
        gain_std: standard deviation nu of the client gains, scalar or (r_max,).
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        sampling: cohort law, see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.
        empty_partition: what raflora and rbla do without a contributor, `zero`, `carry` or `error`.

    Returns:
        Rates, shape (r_max,).

    Raises:
        ValueError: on a bad argument; on `gain_std` above 0 in factor space (the factors hold
            square roots of client amplitudes: no closed form); on `error` where P0 > 0.

    Reference:
        Wu et al., arXiv 2602.13486, App. A and B; cohorts and other rules: our derivation.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    return moment_map(setting, clients_of(setting, gain_mean, gain_std, 0.0, 0.0)).rate


def critical_gain_std(
    rule: str,
    ranks: Ranks,
    *,
    gain_mean: ArrayLike = 1.0,
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Deviation nu of the gains at which `q' = 1`: heterogeneity that stops the suppression.

    `nu = sqrt((1 - q'(nu = 0)) / E[sum w^2])`: 0 where nothing is suppressed even without it.

    Args:
        rule: fedavg, ffa, raflora or flora.
        ranks: client ranks.
        gain_mean: mean g of the client gains, scalar or (r_max,).
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        sampling: cohort law, see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.
        empty_partition: what raflora and rbla do without a contributor, `zero`, `carry` or `error`.

    Returns:
        Deviations, shape (r_max,); `inf` where no finite one is enough.

    Raises:
        ValueError: on a bad argument; on rules in factor space, where spread has no closed form.

    Reference:
        Our derivation.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    need_spread(setting)
    rate = moment_map(setting, clients_of(setting, gain_mean, 0.0, 0.0, 0.0)).rate
    squares, missing = setting.moments.sum_of_squares, np.maximum(1 - rate, 0.0)
    never = np.where(missing > 0, np.inf, 0.0)
    with np.errstate(over="ignore"):
        return np.sqrt(np.divide(missing, squares, out=never, where=squares > 0))


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
    federation = federation_of(ranks, num_samples, None, None)
    times = np.arange(check_count("rounds", rounds, MOST_ROUNDS) + 1)
    energy = per_direction("initial_energy", initial_energy, federation.r_max, minimum=0.0)
    lowest = federation.levels[0]
    shared, high = float(energy[:lowest].sum()), float(energy[lowest:].sum())
    if not shared > 0:
        raise expected("initial_energy", initial_energy, f"energy in the first {lowest} directions")
    if len(federation.levels) == 1:
        return np.zeros(times.size)
    gamma = float(federation.coverage()[lowest]) ** 2
    return np.asarray(high / shared * gamma**times, dtype=np.float64)
