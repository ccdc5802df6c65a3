"""Exact distributions of the sums of weights in a random cohort, by three routes.

Equal weights reduce to numbers of draws; few distinct kinds of clients allow a sum over all
cohorts; whole-number weights allow tables of sums, filled client by client. Our derivations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.cohorts.law import Array, DirectionClients, Sums, binomial_pmf, poisson_pmf
from fedlora_sim.shares import share

# Unequal weights of few kinds: the sum over all cohorts, with equal clients counted together.
#
# Indistinguishable clients form a group, and a cohort is described by the number of draws in each
# group. These numbers are independent counts conditioned on their total: binomials on a total of m
# (without replacement) or of any size (Bernoulli), Poissons on a total of m (with replacement). Our
# derivation.

_COUNT_CAP = 1e15  # far above every limit, far below overflow


@dataclass(frozen=True, eq=False)
class Group:
    """Indistinguishable clients, and the possible draws of a cohort from them.

    Args:
        size: number of clients.
        weight: weight of one draw of such a client, not normalized.
        starts: first row of each number of draws, shape (most draws + 2,); the last is the end.
        draws: number of draws, ascending, one per row.
        carried: number of draws that contribute.
        probability: probability of the row, before conditioning on the total.
        squares: expected sum of squared draw counts of the contributors.
    """

    size: int
    weight: float
    starts: NDArray[np.int64]
    draws: NDArray[np.int64]
    carried: NDArray[np.int64]
    probability: Array
    squares: Array


def group_clients(clients: DirectionClients) -> list[Group]:
    """Group the clients by weight, sampling law and probability of carrying the direction.

    Returns:
        The groups, largest first, so that early groups with many values keep the recursion short.
    """
    keys = np.stack([clients.relevant_weight, clients.carry, clients.law], axis=1)
    kinds, sizes = np.unique(keys, axis=0, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    return [_group(clients, int(sizes[i]), *(float(x) for x in kinds[i])) for i in order]


def _group(clients: DirectionClients, size: int, weight: float, carry: float, law: float) -> Group:
    repeated = clients.sampling == "with_replacement"
    most = clients.size if repeated else size
    # all pairs 0 <= carried <= draws or, without randomness, the only possible one
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
    """Return probabilities and squares with replacement, summed over the number of carriers.

    For draws that fall uniformly on n clients, `E[sum c^2 | d] = d + d (d - 1) / n`.
    """
    number = np.arange(size + 1)[:, None]
    mass = binomial_pmf(number, size, carry) * poisson_pmf(carried, mean * number)
    mass = mass * poisson_pmf(draws - carried, mean * (size - number))
    squares = carried + carried * (carried - 1) / np.maximum(number, 1)
    total = mass.sum(axis=0)
    safe = np.where(total > 0, total, 1.0)
    return total, (mass * squares).sum(axis=0) / safe


def count_cohorts(clients: DirectionClients, groups: list[Group]) -> float:
    """Return the number of rows that `enumerate_sums` adds up.

    Args:
        clients: the clients from the view of one direction.
        groups: their groups.

    Returns:
        The number; exact below 1e15, a lower bound above.
    """
    if clients.sampling == "bernoulli":
        return float(min(_COUNT_CAP, math.prod(group.draws.size for group in groups)))
    ways = np.ones(1)
    for group in groups:
        # capping is safe: each coefficient is a sum of earlier non-negative ones
        ways = np.convolve(ways, np.diff(group.starts))[: clients.size + 1]
        ways = np.minimum(ways, _COUNT_CAP)
    return float(ways[clients.size])


def enumerate_sums(clients: DirectionClients, groups: list[Group]) -> Sums:
    """Return all cohorts of one direction.

    Args:
        clients: the clients from the view of one direction.
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
    clients: DirectionClients, total: NDArray[np.int64], group: Group, room: int, *, last: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return fewest and most draws from a group, given the earlier draws and the remaining room."""
    zero = np.zeros_like(total)
    if clients.sampling == "bernoulli":
        return zero, zero + group.size
    left = clients.size - total
    if clients.sampling == "with_replacement":
        return (left if last else zero), left
    return np.maximum(0, left - room), np.minimum(group.size, left)


# Equal weights: a share is determined by a number of draws. Our derivation.
#
# The number N of carriers of the direction is fixed (SVD allocation) or a sum of independent
# indicators (random allocation, the coefficients of `prod_k (1 - c_k + y c_k)`). Uniform cohorts
# then draw from N carriers and K - N others.

_NEGLIGIBLE_SHARE = 1e-60  # relative to the most probable: negligible in double precision


def is_equal(clients: DirectionClients) -> bool:
    """Return True if this route applies: equal weights, and carriers fixed or equally probable."""
    weight = clients.relevant_weight[clients.relevant_weight > 0]
    alike = clients.sure or bool(np.all(clients.law == clients.law[0]))
    return bool(np.all(weight == weight[0])) and alike


def equal_sums(clients: DirectionClients) -> Sums:
    """Return the distribution of the numbers of draws, in units of the common weight.

    Args:
        clients: the clients from the view of one direction, of equal weights.

    Returns:
        Draws of contributors and of others; the squares are those of draw counts.
    """
    if clients.sampling == "with_replacement":
        sums = _repeated_equal(clients)
    elif clients.sampling == "bernoulli":
        sums = _bernoulli(clients)
    else:
        sums = _fixed(clients)
    unit = float(clients.relevant_weight.max())
    return Sums(
        sums.probability, unit * sums.contributing, unit * sums.other, unit**2 * sums.squares
    )


def carriers(carry: Array) -> Array:
    """Return the distribution of the number of carriers of the direction, shape (K + 1,)."""
    law = np.ones(1)
    for chance in carry:
        law = np.append(law * (1.0 - chance), 0.0) + np.append(0.0, law * chance)
    return law


def hypergeometric(total: int, marked: int, size: int) -> Array:
    """Return the probabilities of 0..size marked ones among `size` drawn, in integer arithmetic."""
    others = total - marked
    low, high = max(0, size - others), min(marked, size)
    ways, whole = math.comb(marked, low) * math.comb(others, size - low), math.comb(total, size)
    law = np.zeros(size + 1)
    for d in range(low, high + 1):
        law[d] = ways / whole
        # exact, and much shorter than two new binomial coefficients
        ways = ways * (marked - d) * (size - d) // ((d + 1) * (others - size + d + 1))
    return law


def _fixed(clients: DirectionClients) -> Sums:
    """Return the outcomes for cohorts of m different clients."""
    if clients.sure:
        law = hypergeometric(clients.number, int(clients.carry.sum()), clients.size)
    else:
        law = carriers(clients.carry)
        for left in range(clients.number, clients.size, -1):
            law = _leave_one_out(law, left)
    draws = np.arange(clients.size + 1, dtype=np.float64)
    return Sums(law, draws, clients.size - draws, draws)


def _leave_one_out(law: Array, left: int) -> Array:
    """Return the distribution of the number of carriers after removing one of `left` clients."""
    number = np.arange(left)
    return np.asarray((law[:-1] * (left - number) + law[1:] * (number + 1)) / left)


def _bernoulli(clients: DirectionClients) -> Sums:
    """Return the outcomes for independent participation; the empty cohort needs no row."""
    K, p = clients.number, clients.size / clients.number
    if clients.sure:
        marked = int(clients.carry.sum())
        drawn = _trimmed(binomial_pmf(np.arange(marked + 1), marked, p))
        rest = _trimmed(binomial_pmf(np.arange(K - marked + 1), K - marked, p))
        if clients.normalizer != "cohort":
            rest = np.zeros(1, dtype=np.int64), np.ones(1)
        mass = np.outer(drawn[1], rest[1]).ravel()
        own = np.repeat(drawn[0], rest[0].size).astype(np.float64)
        return Sums(mass, own, np.tile(rest[0], drawn[0].size).astype(np.float64), own)
    size_law, law = binomial_pmf(np.arange(K + 1), K, p), carriers(clients.carry)
    rows = []
    for size in range(K, 0, -1):
        if size < K:
            law = _leave_one_out(law, size + 1)
        if size_law[size] > _NEGLIGIBLE_SHARE * size_law.max():
            number, mass = _trimmed(law)
            rows.append(np.stack([size_law[size] * mass, number, size - number]))
    mass, own, other = np.concatenate(rows, axis=1)
    return Sums(mass, own, other, own)


def _repeated_equal(clients: DirectionClients) -> Sums:
    """Return the outcomes with replacement: a client drawn c times trains once and has weight c."""
    size, draws = clients.size, np.arange(clients.size + 1, dtype=np.float64)
    if clients.sure:
        chance = np.array([share(clients.law, clients.carry > 0)])
        # probability that two contributor draws are the same client
        repeat = np.array([float(clients.law**2 @ clients.carry)]) / chance**2
        mass = np.ones(1)
    else:
        number, mass = _trimmed(carriers(clients.carry))
        chance, repeat = number / clients.number, 1.0 / np.maximum(number, 1)
    table = mass[:, None] * binomial_pmf(draws, size, chance[:, None])
    squares = draws + draws * (draws - 1) * repeat[:, None]
    own = np.tile(draws, mass.size)
    return Sums(table.ravel(), own, size - own, squares.ravel())


def _trimmed(law: Array) -> tuple[np.ndarray, Array]:
    """Return the numbers with non-negligible probability, and their probabilities."""
    number = np.flatnonzero(law > _NEGLIGIBLE_SHARE * law.max())
    return number, law[number]


# Unequal whole-number weights: tables of sums of weights, filled client by client. Our derivation.
#
# `P[j, a]` is the probability that, of j draws on the first clients, the weights of the carriers
# add up to a; `Q[j, a]` is the expectation of their sum of squared weights on the same event.
# Adding a client that is drawn c times with weight v shifts both by c draws and `c v`. The cohort
# normalizer also needs the sum b of the others. If the carriers are fixed, the others have their
# own table, and the two are combined at j and m - j draws; if the carriers are random, tables have
# a third axis.

_WHOLE = 2.0**53  # above this, not every whole number is a double

_NEGLIGIBLE = 1e-60  # negligible in double precision


@dataclass(frozen=True, eq=False)
class Plan:
    """Tables that give the distribution for one direction, and their cost.

    Args:
        weight: whole-number weights in units of their common divisor, shape (K,).
        unit: that divisor.
        kind: `single` (the sum of the others is not needed, or is the rest of a fixed total),
            `split` (a table for each side) or `joint` (one with a third axis).
        cells: cells of the largest table.
        work: total number of cell updates.
    """

    weight: NDArray[np.int64]
    unit: float
    kind: str
    cells: int
    work: int


def plan_tables(clients: DirectionClients) -> Plan | None:
    """Return the tables to fill for a direction; None if weights are not whole numbers.

    Args:
        clients: the clients from the view of one direction.

    Returns:
        The plan, with its cost.
    """
    asked = clients.relevant_weight
    if np.any(asked != np.floor(asked)) or asked.max() >= _WHOLE:
        return None
    unit = math.gcd(*(int(w) for w in asked))
    weight = np.array([int(w) // unit for w in asked], dtype=np.int64)
    known_total = clients.sampling == "full" or (
        clients.sampling != "bernoulli" and bool(np.all(weight == weight[0]))
    )
    kind = "joint"
    if clients.normalizer != "cohort" or known_total:
        kind = "single"
    elif clients.sure:
        kind = "split"
    rows, carriers = _rows(clients), clients.carry > 0
    own = 1 + _most(clients, weight[carriers])
    other = {"single": 1, "joint": own, "split": 1 + _most(clients, weight[~carriers])}[kind]
    steps = clients.number * 2
    if clients.sampling == "with_replacement":
        counts = _draws_of(clients, 1, float(clients.law.max())).shape[1]
        # c more draws reach only the rows from c on
        steps = clients.number * (counts - counts * (counts - 1) // (2 * rows))
    if kind == "split":
        cells = max(rows * own, rows * other, own * other)
        work = steps * rows * max(own, other) + 2 * rows * own * other
    else:
        cells = rows * own * other
        work = steps * cells
    return Plan(weight, float(unit), kind, cells, work)


def tabulate_sums(clients: DirectionClients, plan: Plan) -> Sums:
    """Fill the tables.

    Args:
        clients: the clients from the view of one direction.
        plan: from `plan_tables`.

    Returns:
        One outcome per possible pair of sums.
    """
    if plan.kind == "split":
        mass, squares = _meet(clients, plan)
    else:
        everyone = np.ones(clients.number, dtype=bool)
        # all m draws are used
        mass, squares = (table[-1] for table in _fill(clients, plan, everyone))
    where = np.nonzero(mass)
    own = where[0].astype(np.float64)
    if plan.kind == "single":
        total = plan.weight.sum() if clients.sampling == "full" else clients.size * plan.weight[0]
        other = float(total) - own
    else:
        other = where[1].astype(np.float64)
    mass, squares = mass[where], squares[where]
    return Sums(mass, plan.unit * own, plan.unit * other, plan.unit**2 * squares / mass)


def _rows(clients: DirectionClients) -> int:
    """Return the length of the axis of draws: 1 if their total is not conditioned on."""
    return 1 if clients.sampling in ("full", "bernoulli") else clients.size + 1


def _most(clients: DirectionClients, weight: NDArray[np.int64]) -> int:
    """Return the largest sum of weights that a cohort can draw from these clients."""
    if not weight.size:
        return 0
    if clients.sampling == "with_replacement":
        return int(clients.size * weight.max())
    most = clients.size if clients.sampling == "without_replacement" else weight.size
    return int(np.sort(weight)[::-1][:most].sum())


def _meet(clients: DirectionClients, plan: Plan) -> tuple[Array, Array]:
    """Return P and Q over (a, b): tables of carriers and others, joined at m draws in total."""
    carriers = clients.carry > 0
    mass, squares = _fill(clients, plan, carriers)
    others = _fill(clients, plan, ~carriers, own=False)[0]
    if clients.sampling == "without_replacement":
        split = hypergeometric(clients.number, int(carriers.sum()), clients.size)[:, None]
        mass, squares = split * mass, split * squares
    return mass.T @ others[::-1], squares.T @ others[::-1]


def _fill(
    clients: DirectionClients, plan: Plan, chosen: NDArray[np.bool_], *, own: bool = True
) -> tuple[Array, Array]:
    """Return the tables P and Q of the chosen clients.

    `own` selects the weights that they carry, instead of all.
    """
    weight = plan.weight[chosen]
    carry = clients.carry[chosen] if own else np.ones(weight.size)
    size = 1 + _most(clients, weight[carry > 0])
    mass = np.zeros((_rows(clients), size, *([size] if plan.kind == "joint" else [])))
    mass.flat[0] = 1.0
    squares = np.zeros_like(mass)
    for k, (v, chance, law) in enumerate(zip(weight, carry, clients.law[chosen], strict=True)):
        draws = _draws_of(clients, k + 1, float(law))
        mass, squares = _add_client(mass, squares, draws, int(v), float(chance))
    return mass, squares


def _draws_of(clients: DirectionClients, k: int, law: float) -> Array:
    """Return the probability of c draws of the k-th client given j draws on the first k, [j, c].

    With replacement it is joint instead of conditional: counts are Poisson, and the total is
    conditioned on at the end.
    """
    if clients.sampling == "full":
        return np.array([[0.0, 1.0]])
    if clients.sampling == "bernoulli":
        p = clients.size / clients.number
        return np.array([[1.0 - p, p]])
    j = np.arange(clients.size + 1)
    if clients.sampling == "without_replacement":
        possible = j <= k
        return np.stack([np.where(possible, k - j, 0), np.where(possible, j, 0)], axis=1) / k
    mass = poisson_pmf(j, clients.size * law)
    return np.tile(mass[: 1 + np.flatnonzero(mass > _NEGLIGIBLE).max()], (j.size, 1))


def _add_client(
    mass: Array, squares: Array, draws: Array, v: int, carry: float
) -> tuple[Array, Array]:
    """Return the tables after adding a client of weight v that carries with a given probability."""
    tables = np.stack([mass, squares])
    chances = draws.reshape(*draws.shape, *[1] * (mass.ndim - 1))
    new = tables * chances[:, 0]
    rows, size = mass.shape[:2]
    for c in range(1, draws.shape[1]):
        down, move = (c if rows > 1 else 0), c * v
        drawn = tables[:, : rows - down] * chances[down:, c]
        if carry > 0:
            moved = carry * drawn[:, :, : size - move]
            moved[1] += float(move) ** 2 * moved[0]
            new[:, down:, move:] += moved
        if carry < 1 and mass.ndim == 3:
            new[:, down:, :, move:] += (1.0 - carry) * drawn[:, :, :, : size - move]
        elif carry < 1:
            new[:, down:] += (1.0 - carry) * drawn
    return new[0], new[1]
