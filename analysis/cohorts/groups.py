"""Unequal weights, few kinds of clients: the sum over all cohorts, each kind counted together.

Clients that cannot be told apart form a group, and a cohort is described by how many draws fall in
each group. Those numbers are independent counts conditioned on their total: binomials on a total of
m (without replacement) or of any size (Bernoulli), Poissons on a total of m (with replacement).
Our derivation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.cohorts.clients import Clients
from analysis.cohorts.law import Array
from analysis.cohorts.pmf import binomial_pmf, poisson_pmf
from analysis.cohorts.sums import Sums

_COUNT_CAP = 1e15  # far above every limit, far below overflow


@dataclass(frozen=True, eq=False)
class Group:
    """Clients that cannot be told apart, and what a cohort may draw from them.

    Args:
        size: number of clients.
        weight: of one draw of such a client, not normalised.
        starts: first row of each number of draws, shape (most draws + 2,); the last is the end.
        draws: number of draws, ascending, one per row.
        carried: how many of the draws contribute.
        probability: of the row, before the total is conditioned.
        squares: expected sum of squared draw counts of those who contribute.
    """

    size: int
    weight: float
    starts: NDArray[np.int64]
    draws: NDArray[np.int64]
    carried: NDArray[np.int64]
    probability: Array
    squares: Array


def group_clients(clients: Clients) -> list[Group]:
    """Group the clients by weight, drawing law and chance to carry the direction.

    Returns:
        The groups, largest first: early groups with many values keep the recursion short.
    """
    keys = np.stack([clients.relevant_weight, clients.carry, clients.law], axis=1)
    kinds, sizes = np.unique(keys, axis=0, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    return [_group(clients, int(sizes[i]), *(float(x) for x in kinds[i])) for i in order]


def _group(clients: Clients, size: int, weight: float, carry: float, law: float) -> Group:
    repeated = clients.sampling == "with_replacement"
    most = clients.size if repeated else size
    # all pairs 0 <= carried <= draws, or, where nothing is random, the only possible one
    draws, carried = np.nonzero(np.tri(most + 1, dtype=bool))
    if carry in (0.0, 1.0):
        draws = np.arange(most + 1)
        carried = draws if carry else np.zeros_like(draws)
    if repeated:
        probability, squares = _repeated(draws, carried, size, carry, clients.size * law)
    else:
        share = clients.size / clients.number
        probability = binomial_pmf(draws, size, share) * binomial_pmf(carried, draws, carry)
        squares = carried.astype(np.float64)
    starts = np.searchsorted(draws, np.arange(most + 2))
    return Group(size, weight, starts, draws, carried, probability, squares)


def _repeated(
    draws: NDArray[np.int64], carried: NDArray[np.int64], size: int, carry: float, mean: float
) -> tuple[Array, Array]:
    """Probabilities and squares with replacement, summed over the number of carriers.

    Draws that fall on n clients alike: `E[sum c^2 | d] = d + d (d - 1) / n`.
    """
    number = np.arange(size + 1)[:, None]
    mass = binomial_pmf(number, size, carry) * poisson_pmf(carried, mean * number)
    mass = mass * poisson_pmf(draws - carried, mean * (size - number))
    squares = carried + carried * (carried - 1) / np.maximum(number, 1)
    total = mass.sum(axis=0)
    safe = np.where(total > 0, total, 1.0)
    return total, (mass * squares).sum(axis=0) / safe


def count_cohorts(clients: Clients, groups: list[Group]) -> float:
    """Number of rows that `enumerate_sums` adds up.

    Args:
        clients: the clients as one direction sees them.
        groups: their groups.

    Returns:
        The number; exact below 1e15, a lower bound from there on.
    """
    if clients.sampling == "bernoulli":
        return float(min(_COUNT_CAP, math.prod(group.draws.size for group in groups)))
    ways = np.ones(1)
    for group in groups:
        # capping is safe: each coefficient is a sum of non-negative earlier ones
        ways = np.convolve(ways, np.diff(group.starts))[: clients.size + 1]
        ways = np.minimum(ways, _COUNT_CAP)
    return float(ways[clients.size])


def enumerate_sums(clients: Clients, groups: list[Group]) -> Sums:
    """All cohorts of one direction.

    Args:
        clients: the clients as one direction sees them.
        groups: their groups, from `group_clients`.

    Returns:
        One outcome per distinct cohort.
    """
    total, empty = np.zeros(1, dtype=np.int64), np.zeros(1)
    sums = Sums(np.ones(1), empty, empty, empty)
    for index, group in enumerate(groups):
        later = groups[index + 1 :]
        room = sum(other.size for other in later)
        low, high = _allowed(clients, total, group, room, last=not later)
        widths = group.starts[high + 1] - group.starts[low]
        rows = np.repeat(np.arange(widths.size), widths)
        ends = np.cumsum(widths) - widths
        choice = np.arange(rows.size) - ends[rows] + group.starts[low][rows]
        total = total[rows] + group.draws[choice]
        carried, others = group.carried[choice], (group.draws - group.carried)[choice]
        sums = Sums(
            sums.probability[rows] * group.probability[choice],
            sums.contributing[rows] + group.weight * carried,
            sums.other[rows] + group.weight * others,
            sums.squares[rows] + group.weight**2 * group.squares[choice],
        )
    return sums


def _allowed(
    clients: Clients, total: NDArray[np.int64], group: Group, room: int, *, last: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fewest and most draws from a group, given those before it and the room after it."""
    zero = np.zeros_like(total)
    if clients.sampling == "bernoulli":
        return zero, zero + group.size
    left = clients.size - total
    if clients.sampling == "with_replacement":
        return (left if last else zero), left
    return np.maximum(0, left - room), np.minimum(group.size, left)
