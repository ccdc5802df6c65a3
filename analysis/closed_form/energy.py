"""Coverage, energy rates, floors, trajectories and noise of one direction in closed form."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.nonlinear_rules import (
    hetlora_floors,
    hetlora_trajectory,
    need_no_drift,
    pair_map,
)
from analysis.closed_form.persistent import persistent_floor, persistent_trajectory, stays
from analysis.closed_form.round_map import (
    NO_SPREAD,
    Clients,
    MomentMap,
    clients_of,
    follow,
    round_map,
)
from analysis.closed_form.setting import Setting, federation_of, need_full, setting_of
from analysis.cohorts.law import Array
from analysis.cohorts.shares import empty_probability
from fedlora_sim.errors import MOST_ROUNDS, check_count, expected
from fedlora_sim.scenario import Scenario

# The moment recursion of a rule: of one pair, of two pairs, or of all directions together


def moment_map(setting: Setting, clients: Clients) -> MomentMap:
    """Return the moment map of one round with fresh clients; for hetlora, with uniform weights."""
    if setting.form.space == "residual":
        return pair_map(setting, clients)
    return round_map(setting, clients)


def trajectory(setting: Setting) -> tuple[Array, Array]:
    """Return the mean amplitudes and energies for t = 0..rounds, each (rounds + 1, r_max)."""
    clients = clients_of(setting)
    count = check_count("rounds", setting.scenario.rounds, MOST_ROUNDS)
    start = setting.direction("initial_amplitude")
    if stays(setting, clients):
        schedule = setting.scenario.learning_rate_schedule
        if schedule != "constant":
            reason = "the gains of a client then differ from round to round: no closed form"
            wanted = f"'constant' with heterogeneity='persistent' ({reason})"
            raise expected("learning_rate_schedule", schedule, wanted)
        return persistent_trajectory(setting, clients, start, count)
    scales = setting.scenario.training_scales.tolist()
    if setting.form.norm_weighted:
        return hetlora_trajectory(setting, [clients.scaled(scale) for scale in scales], start)
    maps = {scale: moment_map(setting, clients.scaled(scale)) for scale in set(scales)}
    return follow([maps[scale] for scale in scales], start)


# Floors: the energy at which drift holds a direction


def energy_floor(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the energy at which drift holds a direction.

    `tau^2 E[sum w^2] / (1 - q')` at zero mean drift. With a mean drift c the mean converges to
    `m = c E[sum w] / (1 - g E[sum w])`, and the floor is `((tau^2 E[sum w^2] + c^2 E[(sum w)^2]) +
    2 g c E[(sum w)^2] m) / (1 - q')`. Where `q' >= 1` there is no floor and the value is `inf`,
    even without drift; where `q' < 1` and there is no drift it is 0. Persistent gains with a spread
    (`gain_std` above 0) have no floor of the mean: `inf`, because normal gains are unbounded;
    persistent drifts alone have one. hetlora: see `drift_floor`.

    Args:
        scenario: the federation and what its clients return.
        rule: any of `RULES`, or an alias.
        **values: gains and drifts per direction, see `analysis.closed_form`.

    Returns:
        Floors in units of energy, shape (r_max,).

    Raises:
        InputError: as `energy_trajectory`; hetlora does not require full participation without
            drift, or where shared directions grow without end.

    Reference:
        Wu et al., arXiv 2602.13486, App. B (order of magnitude); constants: our derivation.
    """
    setting = setting_of("energy_floor", scenario, rule, values)
    clients = clients_of(setting)
    if stays(setting, clients):
        return persistent_floor(setting, clients)
    if setting.form.norm_weighted:
        return hetlora_floors(setting, clients, setting.direction("initial_amplitude"))[1]
    return moment_map(setting, clients).floor()


# Trajectories: mean amplitude and mean energy of each direction after each round


def energy_trajectory(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the mean energy `E[x_t^2]` of each direction after each round, exact for every t.

    `E[x'^2] = q' E[x^2] + 2 g c E[(sum w)^2] E[x] + tau^2 E[sum w^2] + c^2 E[(sum w)^2]`, iterated
    with `E[x'] = (g E[x] + c) E[sum w]`; for other rules see `RULES`. Persistent gains and drifts
    are normal; see `analysis.closed_form.persistent`.

    Args:
        scenario: the federation, what its clients return, and where a run starts.
        rule: any of `RULES`, or an alias.
        **values: gains, drifts and the start per direction, see `analysis.closed_form`.

    Returns:
        Energies, shape (rounds + 1, r_max), round 0 first; `inf` on overflow.

    Raises:
        InputError: for a field that the form does not cover; for spread under zero_pad, rbla,
            hetlora and fedex (their factors contain square roots of client amplitudes: no closed
            form); for hetlora without full participation; for `error` where P0 > 0; for persistent
            spread with unequal samples or random allocation without full participation, or with
            more than 500 rounds of random cohorts.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; the closed moment maps: our derivation.
    """
    return trajectory(setting_of("energy_trajectory", scenario, rule, values))[1]


def mean_trajectory(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the mean amplitude `E[x_t]` of each direction after each round, exact for every t.

    `E[x'] = (g E[x] + c) E[sum w]`. Arguments, errors and reference as for `energy_trajectory`.

    Returns:
        Amplitudes, shape (rounds + 1, r_max), round 0 first; `inf` on overflow.
    """
    return trajectory(setting_of("mean_trajectory", scenario, rule, values))[0]


# Noise of one round, relative to the signal


def noise_gain(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the share of one client's variance that reaches the global update: `E[sum w^2]`.

    `pi / m` for fedavg with equal samples, without replacement or with all clients; `E[1/H; H > 0]`
    for raflora, with H contributors in the cohort: it amplifies noise along with the signal.

    Args:
        scenario: the federation.
        rule: fedavg, ffa, raflora or flora.
        **values: accepted as everywhere; none has an effect.

    Returns:
        Variance factors, shape (r_max,).

    Raises:
        InputError: for a field that the form does not cover; for rules in factor space, where
            spread has no closed form.

    Reference:
        Our derivation.
    """
    setting = setting_of("noise_gain", scenario, rule, values)
    need_spread(setting)
    return setting.moments.sum_of_squares.copy()


def noise_to_signal(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return noise of one round over its signal given a contributor, `sqrt(E[noise^2 / signal^2])`.

    This is the first round: x are the initial amplitudes. Given the cohort the signal is
    `g x sum w` and the noise has variance `(nu^2 x^2 + tau^2) sum w^2`. Both scale with the
    weights, so the ratio is equal for fedavg, ffa and raflora. For flora the signal is the whole
    direction, `x (1 + (g - 1) sum w)`.

    Args:
        scenario: the federation, what its clients return, and the amplitudes before the round.
        rule: fedavg, ffa, raflora or flora.
        **values: gains, drifts and amplitudes per direction, see `analysis.closed_form`.

    Returns:
        Ratios of amplitudes, shape (r_max,): 0 without noise, else `inf` without signal.

    Raises:
        InputError: for a field that the form does not cover, such as `drift_mean`; for rules in
            factor space, where spread has no closed form.

    Reference:
        Our derivation.
    """
    setting = setting_of("noise_to_signal", scenario, rule, values)
    need_spread(setting)
    clients = clients_of(setting)
    x = setting.direction("initial_amplitude")
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
    """Refuse rules without a closed form for clients that differ."""
    if not setting.form.takes_spread:
        raise expected("rule", setting.form.name, f"fedavg, ffa, raflora or flora ({NO_SPREAD})")


# Coverage, rates, extinction, and the collapse bound


def coverage(scenario: Scenario) -> Array:
    """Return the coverage of every direction: `pi_h = sum of p_k over clients with r_k >= l_h`.

    Under random allocation `sum_k p_k r_k / r_max` for every direction.

    Args:
        scenario: the federation.

    Returns:
        Coverages in (0, 1], shape (r_max,).

    Raises:
        InputError: on `importance` and at fidelity `training`.

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 4; random allocation: our derivation.
    """
    federation = federation_of("coverage", scenario)
    return np.asarray(federation.coverage(scenario.allocation), dtype=np.float64)


def extinction_probability(scenario: Scenario) -> Array:
    """Return the probability P0 per round that no client of the cohort carries a direction.

    Without replacement `P0 = C(K-n, m) / C(K, m)` with `n` contributors. Under raFLoRA with
    `empty_partition="zero"` a direction survives `t` rounds with probability `(1 - P0)^t`.

    Args:
        scenario: the federation.

    Returns:
        Probabilities, shape (r_max,).

    Raises:
        InputError: on `importance` and at fidelity `training`.

    Reference:
        Our derivation.
    """
    federation = federation_of("extinction_probability", scenario)
    return empty_probability(federation, scenario.allocation)


def energy_rate(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the factor q' of the mean energy of a direction per round, without drift.

    `q' = g^2 E[(sum w)^2] + nu^2 E[sum w^2]`, plus P0 for raflora and rbla with `carry`;
    `g^2 E[(sum w)^4]` for zero_pad, which dilutes both factors; for hetlora the same with uniform
    weights, the limit in a collapsing federation; for flora, with `d = g - 1`,
    `1 + 2 d E[sum w] + d^2 E[(sum w)^2] + nu^2 E[sum w^2]`; for fedex the spectral radius of the
    map of adapter and base, 1 where g = 1.

    Args:
        scenario: the federation and what its clients return; drift has no effect.
        rule: any of `RULES`, or an alias.
        **values: gains and drifts per direction, see `analysis.closed_form`.

    Returns:
        Rates, shape (r_max,).

    Raises:
        InputError: for a field that the form does not cover; for `gain_std` above 0 in factor space
            (the factors contain square roots of client amplitudes: no closed form) and with
            persistent gains (no rate of the mean: see `energy_floor`); for drift under hetlora; for
            `error` where P0 > 0.

    Reference:
        Wu et al., arXiv 2602.13486, App. A and B; cohorts and other rules: our derivation.
    """
    setting = setting_of("energy_rate", scenario, rule, values)
    clients = clients_of(setting)
    if stays(setting, clients) and clients.gain_std.any():
        reason = "the mean energy of clients that keep their gains grows without a rate"
        raise expected("heterogeneity", scenario.heterogeneity, f"'fresh' ({reason})")
    if setting.form.norm_weighted:
        need_no_drift(clients)
    return moment_map(setting, clients).rate


def critical_gain_std(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the standard deviation nu of gains at which `q' = 1`, which stops the suppression.

    `nu = sqrt((1 - q'(nu = 0)) / E[sum w^2])`: 0 if nothing is suppressed without it.

    Args:
        scenario: the federation and its gain; `gain_std` and drift have no effect.
        rule: fedavg, ffa, raflora or flora.
        **values: gains per direction, see `analysis.closed_form`.

    Returns:
        Standard deviations, shape (r_max,); `inf` where no finite value is sufficient.

    Raises:
        InputError: for a field that the form does not cover, such as persistent heterogeneity; for
            rules in factor space, where spread has no closed form.

    Reference:
        Our derivation.
    """
    setting = setting_of("critical_gain_std", scenario, rule, values)
    need_spread(setting)
    need_fresh(setting)
    g, none = setting.direction("gain_mean"), np.zeros(setting.r_max)
    rate = moment_map(setting, Clients(g, none, none, none)).rate
    squares, missing = setting.moments.sum_of_squares, np.maximum(1 - rate, 0.0)
    never = np.where(missing > 0, np.inf, 0.0)
    with np.errstate(over="ignore"):
        return np.sqrt(np.divide(missing, squares, out=never, where=squares > 0))


def need_fresh(setting: Setting) -> None:
    """Refuse persistent clients in forms that ask for their allowed spread."""
    if setting.scenario.heterogeneity == "persistent":
        reason = "clients that keep their gains have no rate in the mean"
        raise expected("heterogeneity", "persistent", f"'fresh' ({reason})")


def collapse_bound(scenario: Scenario, **values: ArrayLike) -> Array:
    """Return the upper bound `C gamma^t` on `1 - rho_{l_1}(t)` for FedAvg.

    It assumes full participation and a common gain. `gamma = pi_2^2`, the squared coverage of the
    second-lowest level, and `C = E_high(0) / E_shared(0)`, energies above and up to `l_1`. Zero if
    there is one level.

    Args:
        scenario: the federation, the number of rounds, and where a run starts.
        **values: initial amplitudes per direction, see `analysis.closed_form`.

    Returns:
        The bound for t = 0..rounds, shape (rounds + 1,).

    Raises:
        InputError: for a field that the form does not cover, such as cohorts; if the shared
            directions have no energy.

    Reference:
        Wu et al., arXiv 2602.13486, App. A; the constants: our derivation.
    """
    setting = setting_of("collapse_bound", scenario, "fedavg", values)
    need_full(setting, "the bound is one on rounds that are all alike")
    federation = setting.federation
    times = np.arange(check_count("rounds", scenario.rounds, MOST_ROUNDS) + 1)
    start = setting.direction("initial_amplitude")
    energy, lowest = start**2, federation.levels[0]
    shared, high = float(energy[:lowest].sum()), float(energy[lowest:].sum())
    if not shared > 0:
        wanted = f"energy in the first {lowest} directions"
        raise expected("initial_amplitude", start.tolist(), wanted)
    if len(federation.levels) == 1:
        return np.zeros(times.size)
    gamma = float(federation.coverage()[lowest]) ** 2
    return np.asarray(high / shared * gamma**times, dtype=np.float64)
