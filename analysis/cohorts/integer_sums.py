"""Unequal whole weights: tables of sums of weights, filled client by client. Our derivation.

`P[j, a]` is the probability that, of j draws on the clients so far, those who carry the direction
add up to a; `Q[j, a]` is the expectation of their sum of squared weights on the same event. One
more client, drawn c times with weight v, moves both by c draws and `c v`. The cohort normaliser
also needs the sum b of the others. Where it is fixed who carries the direction, they have a table
of their own, and the two meet at j and m - j draws; where it is random, tables get a third axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.cohorts.clients import Clients
from analysis.cohorts.equal import hypergeometric
from analysis.cohorts.law import Array
from analysis.cohorts.pmf import poisson_pmf
from analysis.cohorts.sums import Sums

_WHOLE = 2.0**53  # from here on not every whole number is a double

_NEGLIGIBLE = 1e-60  # a client drawn so often that no double could notice


@dataclass(frozen=True, eq=False)
class Plan:
    """Tables that would give the law of one direction, and what they would cost.

    Args:
        weight: whole weights in units of their common divisor, shape (K,).
        unit: that divisor.
        kind: `single` (the sum of the others is not asked for, or the rest of a fixed total),
            `split` (a table for each side) or `joint` (one with a third axis).
        cells: cells of the largest table.
        work: cells touched in all.
    """

    weight: NDArray[np.int64]
    unit: float
    kind: str
    cells: int
    work: int


def plan_tables(clients: Clients) -> Plan | None:
    """The tables to fill for a direction, None where weights are not whole numbers.

    Args:
        clients: the clients as one direction sees them.

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
    if clients.normaliser != "cohort" or known_total:
        kind = "single"
    elif clients.sure:
        kind = "split"
    rows, carriers = _rows(clients), clients.carry > 0
    own = 1 + _most(clients, weight[carriers])
    other = {"single": 1, "joint": own, "split": 1 + _most(clients, weight[~carriers])}[kind]
    steps = clients.number * 2
    if clients.sampling == "with_replacement":
        counts = _draws_of(clients, 1, float(clients.law.max())).shape[1]
        # c more draws reach the rows from c on only
        steps = clients.number * (counts - counts * (counts - 1) // (2 * rows))
    if kind == "split":
        cells = max(rows * own, rows * other, own * other)
        work = steps * rows * max(own, other) + 2 * rows * own * other
    else:
        cells = rows * own * other
        work = steps * cells
    return Plan(weight, float(unit), kind, cells, work)


def tabulate_sums(clients: Clients, plan: Plan) -> Sums:
    """Fill the tables.

    Args:
        clients: the clients as one direction sees them.
        plan: from `plan_tables`.

    Returns:
        One outcome per possible pair of sums.
    """
    if plan.kind == "split":
        mass, squares = _meet(clients, plan)
    else:
        everyone = np.ones(clients.number, dtype=bool)
        # all m draws are spent
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


def _rows(clients: Clients) -> int:
    """Length of the axis of draws: 1 where their total is not conditioned."""
    return 1 if clients.sampling in ("full", "bernoulli") else clients.size + 1


def _most(clients: Clients, weight: NDArray[np.int64]) -> int:
    """Largest sum of weights that a cohort can draw from these clients."""
    if not weight.size:
        return 0
    if clients.sampling == "with_replacement":
        return int(clients.size * weight.max())
    most = clients.size if clients.sampling == "without_replacement" else weight.size
    return int(np.sort(weight)[::-1][:most].sum())


def _meet(clients: Clients, plan: Plan) -> tuple[Array, Array]:
    """Tables of carriers and others, joined where their draws add up to m: P and Q over (a, b)."""
    carriers = clients.carry > 0
    mass, squares = _fill(clients, plan, carriers)
    others = _fill(clients, plan, ~carriers, own=False)[0]
    if clients.sampling == "without_replacement":
        split = hypergeometric(clients.number, int(carriers.sum()), clients.size)[:, None]
        mass, squares = split * mass, split * squares
    return mass.T @ others[::-1], squares.T @ others[::-1]


def _fill(
    clients: Clients, plan: Plan, chosen: NDArray[np.bool_], *, own: bool = True
) -> tuple[Array, Array]:
    """Tables P and Q of the chosen clients; `own` says whether what they carry counts, or all."""
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


def _draws_of(clients: Clients, k: int, law: float) -> Array:
    """Probability that the k-th client is drawn c times given j draws on the first k: [j, c].

    With replacement not given but jointly: counts are Poisson, and the total is conditioned last.
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
    """Tables after one more client of weight v, who carries the direction with a probability."""
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
