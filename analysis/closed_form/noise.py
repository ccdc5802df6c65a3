"""Noise of one round: what clients' differences do to a direction, against its signal."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.inputs import Ranks, Samples, per_direction
from analysis.closed_form.round_map import NO_SPREAD, clients_of
from analysis.closed_form.setting import Setting, setting_of
from analysis.cohorts.law import Array
from fedlora_sim.errors import expected


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
    x = per_direction("amplitude", amplitude, setting.r_max)
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
