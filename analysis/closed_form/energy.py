"""Coverage, energy rates, extinction, and the bound on the collapse."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.nonlinear_rules import hetlora_floor, hetlora_trajectory, pair_map
from analysis.closed_form.persistent import persistent_floor, persistent_trajectory, stays
from analysis.closed_form.round_map import NO_SPREAD, Clients, MomentMap, clients_of, round_map
from analysis.closed_form.setting import (
    Ranks,
    Samples,
    Setting,
    each_direction,
    federation_of,
    setting_of,
)
from analysis.cohorts.law import Array, allocation_of
from analysis.cohorts.shares import empty_probability
from fedlora_sim.errors import MOST_ROUNDS, check_count, expected

# Which recursion of the energies is a rule's: one pair of moments, two, or all directions


def moment_map(setting: Setting, clients: Clients) -> MomentMap:
    """The moments' map of one round with fresh clients; hetlora in its limit of uniform weights."""
    if setting.form.space == "residual":
        return pair_map(setting, clients)
    return round_map(setting, clients)


def floor(setting: Setting, clients: Clients, heterogeneity: str) -> Array:
    """Energies at which drift holds the directions, (r_max,); `inf` where nothing does."""
    if stays(heterogeneity, clients):
        return persistent_floor(setting, clients)
    if setting.form.norm_weighted:
        return hetlora_floor(round_map(setting, clients), clients)
    return moment_map(setting, clients).floor()


def trajectory(
    setting: Setting,
    clients: Clients,
    heterogeneity: str,
    rounds: int,
    initial_amplitude: ArrayLike,
) -> tuple[Array, Array]:
    """Mean amplitudes and energies for t = 0..rounds, each (rounds + 1, r_max)."""
    count = check_count("rounds", rounds, MOST_ROUNDS)
    start = each_direction("initial_amplitude", initial_amplitude, setting.r_max)
    if stays(heterogeneity, clients):
        return persistent_trajectory(setting, clients, start, count)
    if setting.form.norm_weighted:
        return hetlora_trajectory(setting, clients, start, count)
    return moment_map(setting, clients).trajectory(start, count)


# Non-IID floors: the energy at which drift holds a direction


def energy_floor(
    rule: str,
    ranks: Ranks,
    *,
    gain_mean: ArrayLike = 1.0,
    gain_std: ArrayLike = 0.0,
    drift_mean: ArrayLike = 0.0,
    drift_std: ArrayLike = 0.0,
    heterogeneity: str = "fresh",
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Energy at which drift holds a direction: `tau^2 E[sum w^2] / (1 - q')` at zero mean drift.

    With a mean drift c the mean settles at `m = c E[sum w] / (1 - g E[sum w])`, and the floor is
    `((tau^2 E[sum w^2] + c^2 E[(sum w)^2]) + 2 g c E[(sum w)^2] m) / (1 - q')`. Where `q' >= 1`
    there is no floor and the value is `inf`, also without any drift; where `q' < 1` and there is
    no drift it is 0. Persistent gains that differ (`gain_std` above 0) have no floor in the mean:
    `inf`, since normal gains have no bound; persistent drifts alone have one.

    Args:
        rule: any of `RULES`, or an alias.
        ranks: client ranks.
        gain_mean: mean g of the client gains, scalar or (r_max,).
        gain_std: standard deviation nu of the client gains, scalar or (r_max,).
        drift_mean: mean c of the client drifts, scalar or (r_max,).
        drift_std: standard deviation tau of the client drifts, scalar or (r_max,).
        heterogeneity: gains and drifts drawn every round (`fresh`) or once (`persistent`).
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        sampling: cohort law, see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.
        empty_partition: what raflora and rbla do without a contributor, `zero`, `carry` or `error`.

    Returns:
        Floors in units of energy, shape (r_max,).

    Raises:
        ValueError: as `energy_trajectory`; also on drift under hetlora.

    Reference:
        Wu et al., arXiv 2602.13486, App. B (order of magnitude); constants: our derivation.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    clients = clients_of(setting, gain_mean, gain_std, drift_mean, drift_std)
    return floor(setting, clients, heterogeneity)


# Mean amplitude and mean energy of every direction after every round


def energy_trajectory(
    rule: str,
    ranks: Ranks,
    rounds: int,
    *,
    initial_amplitude: ArrayLike,
    gain_mean: ArrayLike = 1.0,
    gain_std: ArrayLike = 0.0,
    drift_mean: ArrayLike = 0.0,
    drift_std: ArrayLike = 0.0,
    heterogeneity: str = "fresh",
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Mean energy `E[x_t^2]` of every direction after every round, exact for every t.

    `E[x'^2] = q' E[x^2] + 2 g c E[(sum w)^2] E[x] + tau^2 E[sum w^2] + c^2 E[(sum w)^2]`, iterated
    with `E[x'] = (g E[x] + c) E[sum w]`; for other rules see `RULES`. Persistent gains and drifts
    are normal; see `analysis.closed_form.persistent`.

    Args:
        rule: any of `RULES`, or an alias.
        ranks: client ranks.
        rounds: number of rounds T, at least 1.
        initial_amplitude: amplitudes x_0, not random, scalar or (r_max,).
        gain_mean: mean g of the client gains, scalar or (r_max,).
        gain_std: standard deviation nu of the client gains, scalar or (r_max,).
        drift_mean: mean c of the client drifts, scalar or (r_max,).
        drift_std: standard deviation tau of the client drifts, scalar or (r_max,).
        heterogeneity: gains and drifts drawn every round (`fresh`) or once (`persistent`).
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        sampling: cohort law, see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.
        empty_partition: what raflora and rbla do without a contributor, `zero`, `carry` or `error`.

    Returns:
        Energies, shape (rounds + 1, r_max), round 0 first; `inf` beyond floating point.

    Raises:
        ValueError: on a bad argument; on spread under zero_pad, rbla, hetlora and fedex (their
            factors hold square roots of client amplitudes: no closed form); on hetlora without
            full participation; on `error` where P0 > 0; on persistent spread with unequal samples
            or random allocation without full participation, or with more than 500 rounds of
            random cohorts.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; the closed moment maps: our derivation.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    clients = clients_of(setting, gain_mean, gain_std, drift_mean, drift_std)
    return trajectory(setting, clients, heterogeneity, rounds, initial_amplitude)[1]


def mean_trajectory(
    rule: str,
    ranks: Ranks,
    rounds: int,
    *,
    initial_amplitude: ArrayLike,
    gain_mean: ArrayLike = 1.0,
    gain_std: ArrayLike = 0.0,
    drift_mean: ArrayLike = 0.0,
    drift_std: ArrayLike = 0.0,
    heterogeneity: str = "fresh",
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Mean amplitude `E[x_t]` of every direction after every round, exact for every t.

    `E[x'] = (g E[x] + c) E[sum w]`. Args, errors and reference are those of `energy_trajectory`.

    Returns:
        Amplitudes, shape (rounds + 1, r_max), round 0 first; `inf` beyond floating point.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    clients = clients_of(setting, gain_mean, gain_std, drift_mean, drift_std)
    return trajectory(setting, clients, heterogeneity, rounds, initial_amplitude)[0]


# Noise of one round: what clients' differences do to a direction, against its signal


def noise_gain(
    rule: str,
    ranks: Ranks,
    *,
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Share of one client's variance that reaches the global update: `E[sum w^2]`.

    `pi / m` for fedavg with equal samples, without replacement or with all clients; `E[1/H; H > 0]`
    for raflora, H the contributors in the cohort: it amplifies the noise that it keeps alive.

    Args:
        rule: fedavg, ffa, raflora or flora.
        ranks: client ranks.
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        sampling: cohort law, see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.
        empty_partition: what raflora and rbla do without a contributor, `zero`, `carry` or `error`.

    Returns:
        Variance factors, shape (r_max,).

    Raises:
        ValueError: on a bad argument; on rules in factor space, where spread has no closed form.

    Reference:
        Our derivation.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    need_spread(setting)
    return setting.moments.sum_of_squares.copy()


def noise_to_signal(
    rule: str,
    ranks: Ranks,
    *,
    amplitude: ArrayLike = 1.0,
    gain_mean: ArrayLike = 1.0,
    gain_std: ArrayLike = 0.0,
    drift_std: ArrayLike = 0.0,
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Noise of one round over its signal, given a contributor: `sqrt(E[noise^2 / signal^2])`.

    Given the cohort the signal is `g x sum w` and the noise has variance
    `(nu^2 x^2 + tau^2) sum w^2`. Both scale with the weights, so the ratio is the same for fedavg,
    ffa and raflora. For flora the signal is the whole direction, `x (1 + (g - 1) sum w)`.

    Args:
        rule: fedavg, ffa, raflora or flora.
        ranks: client ranks.
        amplitude: x before the round, scalar or (r_max,).
        gain_mean: mean g of the client gains, scalar or (r_max,).
        gain_std: standard deviation nu of the client gains, scalar or (r_max,).
        drift_std: standard deviation tau of the client drifts, scalar or (r_max,).
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        sampling: cohort law, see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.
        empty_partition: what raflora and rbla do without a contributor, `zero`, `carry` or `error`.

    Returns:
        Ratios of amplitudes, shape (r_max,): 0 without noise, else `inf` without signal.

    Raises:
        ValueError: on a bad argument; on rules in factor space, where spread has no closed form.

    Reference:
        Our derivation.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    need_spread(setting)
    clients = clients_of(setting, gain_mean, gain_std, 0.0, drift_std)
    x = each_direction("amplitude", amplitude, setting.r_max)
    noise = np.hypot(clients.gain_std * x, clients.drift_std)
    result = np.zeros(setting.r_max)
    for i in np.flatnonzero(noise):
        law = setting.laws[i].given_contributor()
        g = clients.gain_mean[i]
        kept = 1 + (g - 1) * law.share if setting.form.space == "base" else g * law.share
        signal = np.abs(kept * x[i])
        if (signal == 0).any():
            result[i] = np.inf
            continue
        with np.errstate(over="ignore"):
            result[i] = noise[i] * np.sqrt(law.expect(law.squares / signal**2))
    return result


def need_spread(setting: Setting) -> None:
    """Refuse rules for which clients that differ have no closed form."""
    if not setting.form.takes_spread:
        raise expected("rule", setting.form.name, f"fedavg, ffa, raflora or flora ({NO_SPREAD})")


# Coverage, energy rates, extinction, and the bound on the collapse


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
    energy = each_direction("initial_energy", initial_energy, federation.r_max, minimum=0.0)
    lowest = federation.levels[0]
    shared, high = float(energy[:lowest].sum()), float(energy[lowest:].sum())
    if not shared > 0:
        raise expected("initial_energy", initial_energy, f"energy in the first {lowest} directions")
    if len(federation.levels) == 1:
        return np.zeros(times.size)
    gamma = float(federation.coverage()[lowest]) ** 2
    return np.asarray(high / shared * gamma**times, dtype=np.float64)
