"""Laws of a round's cohort: draws of contributors, sums over all cohorts, samples of cohorts.

Nothing here depends on the simulator's aggregation: the weights are written down from their
definition (Wu et al., arXiv 2602.13486, Sec. 3 and Eq. 8). Per rank level, clients that cannot be
told apart (same weight, both contributors or both not) form a group, and a cohort is described by
how many draws fall in each group. Under every law without data-dependent probabilities those
numbers are independent counts conditioned on their total: binomials on a total of `m` (without
replacement) or of at least one (Bernoulli), Poissons on a total of `m` (with replacement).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, poisson

from fedlora_sim.federation import Federation, draw_cohorts
from fedlora_sim.randomness import stream

ENUMERATION_LIMIT = 200_000
"""Most cohort descriptions per rank level that are summed exactly."""

MONTE_CARLO_DRAWS = 100_000
"""Cohorts drawn where there are more than `ENUMERATION_LIMIT`."""

_CHUNK_CELLS = 2_000_000  # cohorts times clients held in memory at once
_COUNT_CAP = 1e15  # far above the limit, far below overflow

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ClientGroup:
    """Clients of one rank level that cannot be told apart.

    Args:
        size: number of clients.
        weight: unnormalised aggregation weight of one draw of such a client, in samples.
        contributes: whether these clients carry the rank level.
    """

    size: int
    weight: float
    contributes: bool


def level_members(federation: Federation) -> NDArray[np.bool_]:
    """Which client contributes to which rank level, `r_k >= l_h`: boolean, shape (K, levels)."""
    return np.asarray(federation.ranks)[:, None] >= np.asarray(federation.levels)


def cohort_size(federation: Federation) -> int:
    """The federation's (expected) number of draws per round m."""
    assert federation.cohort_size is not None  # resolved by Federation
    return federation.cohort_size


def draw_law(federation: Federation) -> Array:
    """Probability that one draw with replacement picks each client, shape (K,)."""
    if federation.sampling == "size_weighted":
        return np.asarray(federation.weights, dtype=np.float64)
    return np.full(federation.num_clients, 1.0 / federation.num_clients)


def draw_weights(federation: Federation) -> Array:
    """Unnormalised weight of one draw of each client: `n_k`, or 1 under `size_weighted`."""
    if federation.sampling == "size_weighted":
        return np.ones(federation.num_clients)
    return np.asarray(federation.num_samples, dtype=np.float64)


def empty_by_level(federation: Federation) -> Array:
    """Probability that a cohort holds no contributor, per rank level, shape (levels,)."""
    K, m = federation.num_clients, cohort_size(federation)
    members = level_members(federation)
    sizes = [int(n) for n in members.sum(axis=0)]
    if federation.sampling in ("with_replacement", "size_weighted"):
        # summed over non-contributors: exactly zero when there are none
        others = draw_law(federation) @ ~members
        return np.asarray(others**m, dtype=np.float64)
    if federation.sampling == "bernoulli":
        skip = 1.0 - m / K
        none = np.array([skip**n * (1.0 - skip ** (K - n)) for n in sizes])
        return np.asarray(none / (1.0 - skip**K), dtype=np.float64)
    return np.array([math.comb(K - n, m) / math.comb(K, m) for n in sizes])


def _contributor_law(federation: Federation, level: int, share: float) -> Array:
    """Probabilities of 0, 1, ... draws of contributors in one cohort of equal weights."""
    K, m = federation.num_clients, cohort_size(federation)
    size = int(level_members(federation)[:, level].sum())
    if federation.sampling in ("with_replacement", "size_weighted"):
        return np.asarray(binom.pmf(np.arange(m + 1), m, min(share, 1.0)), dtype=np.float64)
    if federation.sampling == "bernoulli":
        mass = binom.pmf(np.arange(size + 1), size, m / K) / (1.0 - (1.0 - m / K) ** K)
        return np.asarray(mass, dtype=np.float64)
    # whole-number arithmetic: no loss of digits in large federations
    ways = [math.comb(size, d) * math.comb(K - size, m - d) for d in range(min(size, m) + 1)]
    return np.array([way / math.comb(K, m) for way in ways])


def contributor_moments(federation: Federation, share: Array, repeat: Array) -> Array:
    """Moments of weights normalised over contributors: `E[sum c^2 / D^2; D > 0]` in the last row.

    `E[sum c^2 | D] = D (1 - repeat) + D^2 repeat`; with no client drawn twice, `1 / D` remains.
    """
    values = np.zeros((4, share.size))
    for level in range(share.size):
        mass = _contributor_law(federation, level, float(share[level]))
        draws = np.arange(1, mass.size)
        values[:3, level] = mass[1:].sum()
        values[3, level] = mass[1:] @ ((1 - repeat[level]) / draws + repeat[level])
    return values


def client_groups(
    rule: str, federation: Federation, contributors: NDArray[np.bool_]
) -> list[ClientGroup]:
    """Group the clients of one rank level by weight and contribution.

    raFLoRA normalises over contributors only, which is the same as a weight of zero for all
    others; both rules then share one formula.

    Args:
        rule: `fedavg` or `raflora`.
        federation: the clients; not `size_weighted`.
        contributors: who carries the level, boolean of shape (K,).

    Returns:
        The groups, largest first: early groups with many values keep the recursion short.
    """
    weights = draw_weights(federation)
    if rule == "raflora":
        weights = weights * contributors
    keys = np.stack([weights, contributors.astype(np.float64)], axis=1)
    kinds, sizes = np.unique(keys, axis=0, return_counts=True)
    groups = [
        ClientGroup(int(size), float(weight), bool(flag))
        for (weight, flag), size in zip(kinds, sizes, strict=True)
    ]
    return sorted(groups, key=lambda group: -group.size)


def count_cohorts(federation: Federation, groups: list[ClientGroup]) -> float:
    """Number of distinct cohort descriptions that `enumerate_moments` would sum.

    Args:
        federation: gives the cohort law and its size.
        groups: the groups of one rank level.

    Returns:
        The number; exact below 1e15, a lower bound from there on.
    """
    size = cohort_size(federation)
    if federation.sampling == "bernoulli":
        log_count = sum(math.log(group.size + 1) for group in groups)
        return min(_COUNT_CAP, math.exp(min(log_count, math.log(_COUNT_CAP))))
    if federation.sampling == "with_replacement":
        return float(min(_COUNT_CAP, math.comb(size + len(groups) - 1, size)))
    ways = np.ones(1)
    for group in groups:
        # capping is safe: each coefficient is a sum of non-negative earlier ones
        ways = np.minimum(np.convolve(ways, np.ones(group.size + 1))[: size + 1], _COUNT_CAP)
    return float(ways[size])


@dataclass(frozen=True)
class _Table:
    """Partial cohorts, one per row: draws so far, probability and additive weight statistics."""

    draws: NDArray[np.int64]
    probability: Array
    contributing: Array  # sum of weights of contributors
    other: Array  # sum of weights of all others
    squares: Array  # expected sum of squared contributor weights


def enumerate_moments(federation: Federation, groups: list[ClientGroup]) -> Array:
    """Exact moments of one rank level's weights by summing over all cohorts.

    Args:
        federation: gives the cohort law and its size; not `size_weighted`.
        groups: the groups of one rank level, from `client_groups`.

    Returns:
        `E[sum w], E[(sum w)^2], E[(sum w)^4], E[sum w^2]`, shape (4,), dimensionless.
    """
    size = cohort_size(federation)
    ones = np.ones(1)
    table = _Table(np.zeros(1, dtype=np.int64), ones, 0 * ones, 0 * ones, 0 * ones)
    for index, group in enumerate(groups):
        room = sum(later.size for later in groups[index + 1 :])
        table = _extend(table, federation, group, size, room, last=index == len(groups) - 1)
    total = table.contributing + table.other
    # `total` is zero for the empty cohort (excluded) and where raFLoRA finds no contributor
    drawn = (table.draws > 0).astype(np.float64) * table.probability
    safe = np.where(total > 0, total, 1.0)
    share, squares = table.contributing / safe, table.squares / safe**2
    moments = np.stack([share, share**2, share**4, squares])
    return np.asarray(moments @ drawn / drawn.sum(), dtype=np.float64)


def _extend(
    table: _Table, federation: Federation, group: ClientGroup, size: int, room: int, *, last: bool
) -> _Table:
    """Add one group to all partial cohorts: one row per feasible number of its draws."""
    repeated = federation.sampling == "with_replacement"
    if federation.sampling == "bernoulli":
        low = np.zeros_like(table.draws)
        high = np.full_like(table.draws, group.size)
    elif repeated:
        high = size - table.draws
        low = high if last else np.zeros_like(high)
    else:
        high = np.minimum(group.size, size - table.draws)
        low = np.maximum(0, size - table.draws - room)
    widths = high - low + 1
    rows = np.repeat(np.arange(widths.size), widths)
    starts = np.cumsum(widths) - widths
    draws = np.arange(rows.size) - starts[rows] + low[rows]
    mass = _draw_probabilities(federation, group, size)
    # a client drawn c times trains once and weighs c: E[sum c^2 | d] = d + d (d - 1) / size
    squares = draws + (draws * (draws - 1) / group.size if repeated else 0.0)
    member = float(group.contributes)
    return _Table(
        table.draws[rows] + draws,
        table.probability[rows] * mass[draws],
        table.contributing[rows] + member * group.weight * draws,
        table.other[rows] + (1 - member) * group.weight * draws,
        table.squares[rows] + member * group.weight**2 * squares,
    )


def _draw_probabilities(federation: Federation, group: ClientGroup, size: int) -> Array:
    """Unconditional probabilities of 0, 1, ... draws from a group."""
    share = size / federation.num_clients
    if federation.sampling == "with_replacement":
        mass = poisson.pmf(np.arange(size + 1), share * group.size)
    else:
        mass = binom.pmf(np.arange(group.size + 1), group.size, share)
    return np.asarray(mass, dtype=np.float64)


def sample_moments(rule: str, federation: Federation, draws: int, seed: int) -> tuple[Array, Array]:
    """Estimate the moments of all rank levels from one set of random cohorts.

    Args:
        rule: `fedavg` or `raflora`.
        federation: the clients and the cohort law.
        draws: number of cohorts, at least 2.
        seed: non-negative; the same seed gives the same cohorts.

    Returns:
        Estimates and their standard errors, both of shape (4, levels), in the order of
        `enumerate_moments`.
    """
    rng = stream(seed, "weight_moments")
    members = level_members(federation).astype(np.float64)
    sums = np.zeros((2, 4, members.shape[1]))
    chunk = max(1, _CHUNK_CELLS // federation.num_clients)
    for start in range(0, draws, chunk):
        counts = draw_cohorts(federation, min(chunk, draws - start), rng)
        weights = counts * draw_weights(federation)
        contributing = weights @ members
        # by difference, so that full coverage gives exactly contributing / total = 1
        total = contributing + (0 if rule == "raflora" else weights @ (1 - members))
        safe = np.where(total > 0, total, 1.0)
        share = contributing / safe
        values = np.stack([share, share**2, share**4, weights**2 @ members / safe**2])
        sums += np.stack([values, values**2]).sum(axis=2)
    mean = sums[0] / draws
    variance = np.maximum(sums[1] / draws - mean**2, 0.0)
    return mean, np.sqrt(variance / (draws - 1))
