"""Moments of the aggregation weights over random cohorts, per direction.

All that the energy recursion of Wu et al., arXiv 2602.13486, App. B needs of a cohort, and the
logarithms that say what a typical run does. See `analysis.cohorts.shares` for the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from analysis.cohorts.clients import Clients, views
from analysis.cohorts.empty import empty_cohort
from analysis.cohorts.law import Array
from analysis.cohorts.law import MonteCarloWarning as MonteCarloWarning
from analysis.cohorts.law import ShareLaw as ShareLaw
from analysis.cohorts.shares import announced, per_direction
from analysis.cohorts.shares import expect as expect
from analysis.cohorts.shares import share_laws as share_laws
from fedlora_sim.federation import Federation
from fedlora_sim.shares import normalized, share


@dataclass(frozen=True)
class WeightMoments:
    """Moments of aggregation weights, `W = sum_k w_k`; every array is (r_max,) without a unit.

    Args:
        mean: `E[W]`.
        second: `E[W^2]`.
        fourth: `E[W^4]`.
        sum_of_squares: `E[sum_k w_k^2]`.
        log_mean: `E[log W | W > 0]`.
        log_variance: `Var[log W | W > 0]`.
        inverse: `E[1 / W | W > 0]`.
        empty: probability that a cohort holds no contributor; always exact.
        standard_error: standard errors of all of them, or None when all are exact.
    """

    mean: Array
    second: Array
    fourth: Array
    sum_of_squares: Array
    log_mean: Array
    log_variance: Array
    inverse: Array
    empty: Array
    standard_error: WeightMoments | None = None


def weight_moments(
    normaliser: str, federation: Federation, allocation: str = "svd"
) -> WeightMoments:
    """Moments of the weights under the federation's cohort law.

    Args:
        normaliser: `cohort`, `contributors` or `federation`, see `analysis.cohorts.shares`.
        federation: the clients and the cohort law.
        allocation: `svd` or `random`.

    Returns:
        The moments per direction, read-only; exact, or estimated with standard errors.

    Raises:
        ValueError: on an unknown normaliser or allocation; on `importance`.

    Warns:
        MonteCarloWarning: when estimated; it states the largest relative standard error.

    Reference:
        Weights: Wu et al., arXiv 2602.13486, Sec. 3 and Eq. 8. Moments: our derivation.
    """
    laws = announced(federation, normaliser, allocation, stack_level=3)
    return _moments(laws, federation, normaliser, allocation)


@lru_cache(maxsize=4)  # as many as there are laws kept; laws are compared by identity
def _moments(
    laws: tuple[ShareLaw, ...], federation: Federation, normaliser: str, allocation: str
) -> WeightMoments:
    levels = views(federation, normaliser, allocation)
    pairs = [_law_moments(law, level) for law, level in zip(laws, levels, strict=True)]
    values, errors = per_direction(federation, np.stack(pairs, axis=-1))
    for array in (values, errors):
        array.setflags(write=False)
    exact = all(law.draws is None for law in laws)
    moments = WeightMoments(*values)
    return moments if exact else replace(moments, standard_error=WeightMoments(*errors))


def empty_probability(
    federation: Federation, allocation: str = "svd", normaliser: str = "cohort"
) -> Array:
    """Probability per round that no client of the cohort carries a direction.

    Args:
        federation: the clients and the cohort law.
        allocation: `svd` or `random`.
        normaliser: matters under `bernoulli` only: without renormalisation (`federation`) a cohort
            without anybody counts, else it is drawn again.

    Returns:
        Probabilities, shape (r_max,); always exact.

    Raises:
        ValueError: on an unknown allocation or normaliser; on `importance`.

    Reference:
        Our derivation.
    """
    return _empty(federation, allocation, normaliser).copy()


@lru_cache(maxsize=16)  # every rule asks
def _empty(federation: Federation, allocation: str, normaliser: str) -> Array:
    levels = views(federation, normaliser, allocation)
    return per_direction(federation, np.array([empty_cohort(level) for level in levels]))


def _law_moments(law: ShareLaw, clients: Clients) -> Array:
    """Moments in the order of `WeightMoments` and their standard errors, shape (2, 8)."""
    given = law.given_contributor()
    logs = np.log(given.share)
    log_mean = given.expect(logs)
    plain = [law.share, law.share**2, law.share**4, law.squares]
    conditional = [logs, (logs - log_mean) ** 2, 1.0 / given.share]
    values = [law.expect(v) for v in plain] + [given.expect(v) for v in conditional]
    errors = [law.standard_error(v) for v in plain]
    errors += [given.standard_error(v) for v in conditional]
    if law.draws is not None and clients.normaliser == "federation":
        for place, value in zip((0, 1, 3), _unbiased(clients), strict=True):
            values[place], errors[place] = value, 0.0
    return np.array([[*values, law.empty], [*errors, 0.0]])


def _unbiased(clients: Clients) -> tuple[float, float, float]:
    """`E[W]`, `E[W^2]`, `E[sum w^2]` of `w_k = p_k c_k / E[c_k]`, which need no law of W."""
    K, m = clients.number, clients.size
    p = normalized(clients.weight * clients.law)
    mean = share(p, clients.carry)
    # E[c_k^2] / E[c_k]^2 and E[c_j c_k] / (E[c_j] E[c_k])
    own, pair = np.full(K, K / m), 1.0
    if clients.sampling == "without_replacement":
        pair = (m - 1) / m * K / (K - 1)
    elif clients.sampling == "with_replacement":
        pair = (m - 1) / m
        own = pair + 1.0 / (m * clients.law)
    squares = (p**2 * own) @ clients.carry
    second = squares + pair * (mean**2 - p**2 @ clients.carry**2)
    return float(mean), float(second), float(squares)
