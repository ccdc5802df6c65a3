"""The typical run, when rare runs dominate the mean: survival, rate and spread.

Without drift and with a common gain the log energy of a direction is a random walk with steps
`2 log A`, A the round's multiplier, which ends in the first round without a contributor.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.setting import Setting, setting_of
from analysis.cohorts.law import Array
from fedlora_sim.errors import MOST_ROUNDS, check_count, check_numbers, expected
from fedlora_sim.scenario import Scenario
from fedlora_sim.tolerances import relative


def survival(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the probability that a direction is not lost after t rounds, without drift.

    `(1 - P0)**t`: a round without contributor sets the amplitude to exactly zero, which neither a
    gain nor training restores. It is 1 for raflora and rbla with `carry` and for flora. Under fedex
    the part that a round with `0 < W < 1` puts into the base remains:
    `1 - P0 (1 - P1**t) / (1 - P1)` with `P1 = P[W = 1]`.

    Args:
        scenario: the federation, its gain, and the number of rounds.
        rule: any of `RULES`, or an alias.
        **values: gains per direction, see `analysis.closed_form`.

    Returns:
        Probabilities, shape (rounds + 1, r_max), round 0 first.

    Raises:
        InputError: for a field that the form does not cover, such as drift; for a common gain of 0,
            under flora and fedex of at most 0; for training under flora and fedex; for `error`
            where P0 > 0.

    Reference:
        Our derivation.
    """
    setting = setting_of("survival", scenario, rule, values)
    in_base = setting.form.space in ("base", "residual")
    if in_base and scenario.local_loss == "quadratic":
        reason = "clients fit what the base does not hold yet: no closed form"
        raise expected("rule", setting.form.name, f"a rule that keeps the base as it is ({reason})")
    g, alike = setting.direction("gain_mean"), setting.direction("gain_std") == 0
    if (alike & ~(g > 0 if in_base else g != 0)).any():
        wanted = "a gain above 0" if in_base else "a gain other than 0"
        reason = "what the clients return may cancel what there is: no closed form"
        raise expected("gain_mean", g.tolist(), f"{wanted} ({reason})")
    times = np.arange(check_count("rounds", scenario.rounds, MOST_ROUNDS) + 1)[:, None]
    if setting.carries or setting.form.space == "base":
        return np.ones((times.size, setting.r_max))
    if setting.form.space != "residual":
        return np.asarray((1 - setting.empty) ** times, dtype=np.float64)
    undiluted = setting.expect(lambda share: (share >= 1 - relative("reduction")).astype(float))
    # 1 + P1 + ... + P1**(t - 1): rounds in which the adapter still holds everything
    exposed = np.cumsum(undiluted**times, axis=0) - undiluted**times
    # the probabilities sum to at most 1, up to rounding
    return np.maximum(1 - setting.empty * exposed, 0.0)


def typical_rate(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the factor per round of the energy of a typical surviving run: `exp(2 E[log A])`.

    A is `g W` given W > 0 (fedavg, ffa), `g W**2` (zero_pad; hetlora with uniform weights), g given
    a contributor (raflora, rbla; with `carry` 1 with probability P0), `1 + (g - 1) W` (flora). By
    Jensen it never exceeds `energy_rate` over the probability of survival. fedex: 1 where g = 1,
    because the base keeps its value; otherwise the squared spectral radius of its round, if all
    rounds are equal.

    Args:
        scenario: the federation, and the gain that all clients share.
        rule: any of `RULES`, or an alias.
        **values: gains per direction, see `analysis.closed_form`.

    Returns:
        Rates, shape (r_max,); 0 where no run survives.

    Raises:
        InputError: for a field that the form does not cover, such as drift or gains that differ;
            for fedex with g other than 1 and random cohorts (a product of random matrices that do
            not commute: no closed form).

    Reference:
        Our derivation.
    """
    setting = setting_of("typical_rate", scenario, rule, values)
    g = setting.direction("gain_mean")
    if setting.form.space == "residual":
        return _fedex_rate(setting, g)
    with np.errstate(divide="ignore"):  # zero gain: exp(-inf) = 0
        return np.asarray(np.exp(2 * log_multiplier(setting, g)[0]), dtype=np.float64)


def log_energy_std(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the standard deviation of the log energy over surviving runs: `2 sqrt(t Var[log A])`.

    A is as in `typical_rate`. By the central limit theorem the energy is approximately log-normal.

    Args:
        scenario: the federation, the gain that all clients share, and the number of rounds.
        rule: any of `RULES`, or an alias.
        **values: gains per direction, see `analysis.closed_form`.

    Returns:
        Standard deviations of the natural logarithm, shape (rounds + 1, r_max), round 0 first.

    Raises:
        InputError: for a field that the form does not cover; for fedex with random cohorts (its
            total is not a random walk).

    Reference:
        Our derivation.
    """
    setting = setting_of("log_energy_std", scenario, rule, values)
    g = setting.direction("gain_mean")
    times = np.arange(check_count("rounds", scenario.rounds, MOST_ROUNDS) + 1)[:, None]
    if setting.form.space == "residual":
        if not setting.is_full:
            raise _needs_full(setting, "the log of its total is no random walk")
        return np.zeros((times.size, setting.r_max))
    with np.errstate(divide="ignore"):
        variance = log_multiplier(setting, g)[1]
    return np.asarray(2 * np.sqrt(times * variance), dtype=np.float64)


def half_life(rate: ArrayLike) -> Array:
    """Return the number of rounds in which a quantity halves: `log(1/2) / log(rate)`.

    Args:
        rate: factors per round, non-negative, any shape.

    Returns:
        Rounds, shape of `rate`: `inf` at 1 and above, 0 at 0.

    Raises:
        InputError: for a negative or undefined rate.
    """
    factor: Array = check_numbers("rate", rate, "numbers of at least 0")
    if not (factor >= 0).all():
        raise expected("rate", rate, "numbers of at least 0")
    falls = (factor > 0) & (factor < 1)
    rounds = np.where(factor >= 1, np.inf, 0.0)
    return np.divide(-math.log(2), np.log(np.where(falls, factor, 0.5)), out=rounds, where=falls)


def log_multiplier(setting: Setting, gain: Array) -> tuple[Array, Array]:
    """Return the mean and variance of `log |A|` given survival, A the round's multiplier, (r_max,).

    The mean is -inf where g = 0, and the variance is that of the share.
    """
    size = np.log(np.abs(gain))
    if setting.form.space == "base":
        return _increment_log(setting, gain)
    if setting.carries:
        some = 1 - setting.empty
        finite = np.where(gain == 0, 0.0, size)
        return np.where(gain == 0, size, some * finite), some * setting.empty * finite**2
    if setting.form.normalizer == "contributors":
        return size, np.zeros_like(size)
    power, moments = setting.form.power, setting.moments
    return size + power * moments.log_mean, power**2 * moments.log_variance


def _increment_log(setting: Setting, gain: Array) -> tuple[Array, Array]:
    """Return the mean and variance of `log |1 + (g - 1) W|` where nonzero.

    -inf where it is always zero.
    """
    mean, variance = np.full_like(gain, -np.inf), np.zeros_like(gain)
    for i, law in enumerate(setting.laws):
        factor = np.abs(1 + (gain[i] - 1) * law.share)
        alive = (factor > 0) & (law.probability > 0)
        if alive.any():
            chance, logs = law.probability[alive], np.log(factor[alive])
            mean[i] = chance @ logs / chance.sum()
            variance[i] = chance @ (logs - mean[i]) ** 2 / chance.sum()
    return mean, variance


def _fedex_rate(setting: Setting, gain: Array) -> Array:
    if (gain == 1).all():
        return np.ones_like(gain)
    if not setting.is_full:
        raise _needs_full(setting, "a product of random matrices that do not commute")
    share = setting.moments.mean
    # x' = W**2 y, z' = z + (W - W**2) y with y = g x + (g - 1) z
    trace = share**2 * gain + 1 + (share - share**2) * (gain - 1)
    # of the terms in (W - W**2)(g - 1) g W**2 only g W**2 remains
    determinant = gain * share**2
    root = np.sqrt(np.asarray(trace**2 / 4 - determinant, dtype=np.complex128))
    radius = np.maximum(np.abs(trace / 2 + root), np.abs(trace / 2 - root))
    # where W = 1 the base gains nothing: the adapter holds everything
    return np.where(share == 1, gain**2, radius**2)


def _needs_full(setting: Setting, reason: str) -> Exception:
    return expected(
        "cohort_size",
        setting.federation.cohort_size,
        f"full participation for rule={setting.form.name!r} ({reason}: no closed form)",
    )
