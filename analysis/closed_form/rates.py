"""Coverage, energy rates, extinction, and the bound on the collapse."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.inputs import Ranks, Samples, federation_of, per_direction
from analysis.closed_form.round_map import round_map
from analysis.cohorts.law import Array
from analysis.cohorts.moments import empty_probability
from fedlora_sim.errors import check_positive_int, expected


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
    return np.asarray(federation_of(ranks, num_samples, None, None).coverage(), dtype=np.float64)


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
    return empty_probability(federation_of(ranks, num_samples, cohort_size, sampling))


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
    federation = federation_of(ranks, num_samples, cohort_size, sampling)
    return round_map(rule, federation, empty_partition, gain_mean, gain_std, 0.0, 0.0).rate


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
