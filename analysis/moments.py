"""Moments of a rule's aggregation weights over random cohorts, and of one round, per direction.

With `S` the round's cohort, `C_h` the clients that carry a direction's rank level and
`v_k = n_k * (times drawn)`: FedAvg weighs client k with `w_k = v_k / sum_S v`, raFLoRA (Wu et al.,
arXiv 2602.13486, Eq. 8) with `v_k / sum_{S & C_h} v`; only contributors add to a sum over k. These
moments are all that the energy recursion of its App. B needs. The cohort laws are our derivation.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from analysis.cohort_laws import (
    ENUMERATION_LIMIT,
    MONTE_CARLO_DRAWS,
    Array,
    client_groups,
    cohort_size,
    contributor_moments,
    count_cohorts,
    draw_law,
    empty_by_level,
    enumerate_moments,
    level_members,
    sample_moments,
)
from fedlora_sim.errors import check_choice, expected
from fedlora_sim.federation import Federation

RULES = ("fedavg", "zero_pad", "raflora")
EMPTY_PARTITIONS = ("zero", "carry", "error")

# Stirling numbers of the second kind: E[D], E[D^2], E[D^4] from factorial moments 1..4
_RAW_FROM_FACTORIAL = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 7, 6, 1]], dtype=np.float64)
_POWERS = np.array([1, 2, 4])


class MonteCarloWarning(UserWarning):
    """The moments have no closed form here and were estimated from random cohorts."""


@dataclass(frozen=True)
class WeightMoments:
    """Moments of aggregation weights; every array has shape (r_max,) and no unit.

    Args:
        mean: `E[sum_k w_k]`.
        second: `E[(sum_k w_k)^2]`.
        fourth: `E[(sum_k w_k)^4]`.
        sum_of_squares: `E[sum_k w_k^2]`.
        empty: probability that a cohort holds no contributor; always exact.
        standard_error: standard errors of the five, or None when all are exact.
    """

    mean: Array
    second: Array
    fourth: Array
    sum_of_squares: Array
    empty: Array
    standard_error: WeightMoments | None = None


def weight_moments(rule: str, federation: Federation) -> WeightMoments:
    """Moments of a rule's weights under the federation's cohort law.

    Closed form for equal `n_k` and for `size_weighted`; for unequal `n_k` the sum over all cohorts
    (clients that cannot be told apart counted together) if a rank level has at most
    `ENUMERATION_LIMIT` of them; else the mean over `MONTE_CARLO_DRAWS` cohorts of a fixed seed.

    Args:
        rule: `fedavg`, `zero_pad` (the same weights, used on factors) or `raflora`.
        federation: the clients and the cohort law.

    Returns:
        The moments per direction.

    Raises:
        ValueError: on an unknown rule.

    Warns:
        MonteCarloWarning: when estimated; it states the largest relative standard error.

    Reference:
        Weights: Wu et al., arXiv 2602.13486, Sec. 3 and Eq. 8. Moments: our derivation.
    """
    name = check_choice("rule", rule, RULES)
    name = "raflora" if name == "raflora" else "fedavg"
    errors = None
    if federation.sampling == "size_weighted" or len(set(federation.num_samples or ())) == 1:
        values = _equal_weights(name, federation)
    else:
        values, errors = _unequal_weights(name, federation)
    empty = empty_by_level(federation)
    if name == "raflora":
        # sum w is 1 or 0: the first three moments need no sum over cohorts
        values[:3] = 1.0 - empty
    values[:3, level_members(federation).all(axis=0)] = 1.0
    standard_error = None
    if errors is not None:
        errors[:3] *= name == "fedavg"
        _warn(values, errors)
        standard_error = _per_direction(federation, errors, np.zeros_like(empty))
    return _per_direction(federation, values, empty, standard_error)


def empty_probability(federation: Federation) -> Array:
    """Probability per round that no client of the cohort carries a direction.

    Without replacement `C(K-n, m) / C(K, m)` with `n = |C_h|`; draws with replacement
    `(1 - P[one draw contributes])^m`; Bernoulli `(s^n - s^K) / (1 - s^K)` with `s = 1 - m/K`.

    Args:
        federation: the clients and the cohort law.

    Returns:
        Probabilities, shape (r_max,).

    Reference:
        Our derivation.
    """
    return _expand(federation, empty_by_level(federation))


def _equal_weights(rule: str, federation: Federation) -> Array:
    """Closed forms where one draw weighs as much as any other, shape (4, levels)."""
    K, m = federation.num_clients, cohort_size(federation)
    members = level_members(federation)
    sizes = members.sum(axis=0)
    if federation.sampling in ("with_replacement", "size_weighted"):
        law = draw_law(federation)
        share = law @ members
        ratios = np.stack([share**j for j in range(1, 5)])
        # chance that two contributor draws are the same client
        repeat = law**2 @ members / share**2
    else:
        steps = [(sizes - j) / max(K - j, 1) for j in range(4)]
        ratios = np.cumprod(np.stack(steps), axis=0)
        repeat = np.zeros(sizes.size)
    if rule == "raflora":
        return contributor_moments(federation, ratios[0], repeat)
    totals, mass = np.array([m], dtype=np.float64), np.ones(1)
    if federation.sampling == "bernoulli":
        totals = np.arange(1, K + 1, dtype=np.float64)
        mass = binom.pmf(totals, K, m / K)
        mass = mass / mass.sum()
    falling = np.cumprod(np.stack([totals - j for j in range(4)]), axis=0)
    # factorial moments of the contributors' draws given the total: (4, levels, totals)
    factorial = ratios[:, :, None] * falling[:, None, :]
    raw = np.tensordot(_RAW_FROM_FACTORIAL, factorial, axes=1) / totals ** _POWERS[:, None, None]
    squares = raw[0] / totals * (1 - repeat)[:, None] + raw[1] * repeat[:, None]
    return np.asarray(np.concatenate([raw, squares[None]]) @ mass, dtype=np.float64)


def _unequal_weights(rule: str, federation: Federation) -> tuple[Array, Array | None]:
    """Sum over all cohorts, or over a sample of them if one level has too many."""
    members = level_members(federation)
    groups = [client_groups(rule, federation, members[:, h]) for h in range(members.shape[1])]
    if max(count_cohorts(federation, g) for g in groups) > ENUMERATION_LIMIT:
        return sample_moments(rule, federation, MONTE_CARLO_DRAWS, seed=0)
    return np.stack([enumerate_moments(federation, g) for g in groups], axis=1), None


def _warn(values: Array, errors: Array) -> None:
    relative = np.divide(errors, values, out=np.zeros_like(errors), where=values > 0)
    warnings.warn(
        f"weight moments estimated from {MONTE_CARLO_DRAWS} random cohorts (unequal num_samples, "
        f"more than {ENUMERATION_LIMIT} cohorts); largest relative standard error "
        f"{relative.max():.2e}",
        MonteCarloWarning,
        stacklevel=3,
    )


def _expand(federation: Federation, by_level: Array) -> Array:
    """Repeat values per rank level over the directions of its partition."""
    widths = np.diff((0, *federation.levels))
    return np.repeat(by_level, widths, axis=-1)


def _per_direction(
    federation: Federation, values: Array, empty: Array, standard_error: WeightMoments | None = None
) -> WeightMoments:
    mean, second, fourth, squares = _expand(federation, values)
    return WeightMoments(mean, second, fourth, squares, _expand(federation, empty), standard_error)


@dataclass(frozen=True)
class RoundMap:
    """One round as an affine map of `(E[x], E[x^2])`; every array has shape (r_max,).

    `E[x'] = gain E[x] + shift`, `E[x'^2] = rate E[x^2] + cross E[x] + noise`, where
    `x' = sum_k w_k (a_k x + b_k)`; shift and cross have the unit of x, noise its square.
    """

    gain: Array
    shift: Array
    rate: Array
    cross: Array
    noise: Array


def round_map(
    rule: str,
    federation: Federation,
    empty_partition: str,
    gain_mean: ArrayLike,
    gain_std: ArrayLike,
    drift_mean: ArrayLike,
    drift_std: ArrayLike,
) -> RoundMap:
    """The affine map that one round applies to the first two moments of every amplitude.

    Args:
        rule: `fedavg`, `zero_pad` or `raflora`.
        federation: the clients and the cohort law.
        empty_partition: what raFLoRA does without a contributor, `zero`, `carry` or `error`.
        gain_mean: mean g of the client gains a_k, scalar or (r_max,).
        gain_std: their standard deviation nu.
        drift_mean: mean c of the client drifts b_k, in units of x.
        drift_std: their standard deviation tau.

    Returns:
        The map's coefficients.

    Raises:
        ValueError: on a bad argument; on spread under `zero_pad`; on `error` where P0 > 0.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; the coefficients: our derivation.
    """
    name = check_choice("rule", rule, RULES)
    policy = check_choice("empty_partition", empty_partition, EMPTY_PARTITIONS)
    r_max = federation.r_max
    g = per_direction("gain_mean", gain_mean, r_max)
    c = per_direction("drift_mean", drift_mean, r_max)
    nu = _spread("gain_std", gain_std, name, r_max)
    tau = _spread("drift_std", drift_std, name, r_max)
    moments = _needed_moments(name, policy, federation, random=bool(nu.any() or tau.any()))
    mean, second = moments.mean, moments.second
    if name == "zero_pad":
        # both factors are diluted: the product's amplitude is multiplied by W^2
        mean, second = moments.second, moments.fourth
    spread = nu**2 * moments.sum_of_squares
    gain, rate = g * mean, g**2 * second + spread
    if name == "raflora" and policy == "carry":
        # P0 + g (1 - P0), written so that g = 1 gives exactly 1
        gain, rate = 1 + (g - 1) * mean, 1 + (g**2 - 1) * second + spread
    noise = tau**2 * moments.sum_of_squares + c**2 * second
    return RoundMap(gain, c * mean, rate, 2 * g * c * second, noise)


def per_direction(
    argument: str, value: ArrayLike, r_max: int, minimum: float | None = None
) -> Array:
    """`value` as finite floats of at least `minimum`, broadcast to shape (r_max,).

    Raises:
        ValueError: naming the argument.
    """
    bound = "" if minimum is None else f" of at least {minimum:g}"
    expectation = f"finite numbers{bound}, a scalar or one per direction ({r_max})"
    try:
        array = np.broadcast_to(np.asarray(value, dtype=np.float64), (r_max,))
    except (TypeError, ValueError):
        raise expected(argument, value, expectation) from None
    if not np.isfinite(array).all() or (minimum is not None and array.min() < minimum):
        raise expected(argument, value, expectation)
    return array


def _spread(argument: str, value: ArrayLike, name: str, r_max: int) -> Array:
    """A standard deviation per direction; zero for `zero_pad`."""
    array = per_direction(argument, value, r_max, minimum=0.0)
    if name == "zero_pad" and array.any():
        reason = "the factors hold square roots of client amplitudes, so there is no closed form"
        raise expected(argument, value, f"0 for rule='zero_pad' ({reason})")
    return array


def _needed_moments(
    name: str, policy: str, federation: Federation, *, random: bool
) -> WeightMoments:
    """The rule's weight moments, refusing `error` where a partition can be empty."""
    if name != "raflora":
        return weight_moments(name, federation)
    empty = empty_probability(federation)
    if policy == "error" and empty.max() > 0:
        chance = f"a partition is empty with probability up to {empty.max():.3g}"
        raise expected("empty_partition", policy, f"'zero' or 'carry' ({chance})")
    if random:
        return weight_moments(name, federation)
    # sum w is 0 or 1 and E[sum w^2] will meet zero variances only: nothing to enumerate or sample
    kept = 1.0 - empty
    return WeightMoments(kept, kept, kept, np.zeros_like(kept), empty)
