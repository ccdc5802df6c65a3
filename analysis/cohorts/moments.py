"""Moments of a rule's aggregation weights over random cohorts, per direction.

With `S` the round's cohort, `C_h` the clients that carry a direction's rank level and
`v_k = n_k * (times drawn)`: FedAvg weighs client k with `w_k = v_k / sum_S v`, raFLoRA (Wu et al.,
arXiv 2602.13486, Eq. 8) with `v_k / sum_{S & C_h} v`; only contributors add to a sum over k. These
moments are all that the energy recursion of its App. B needs. The cohort laws are our derivation.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from analysis.cohorts.laws import (
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
from fedlora_sim.errors import check_choice
from fedlora_sim.federation import Federation

RULES = ("fedavg", "zero_pad", "raflora")

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
