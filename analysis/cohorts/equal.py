"""Equal weights: a share is a number of draws, and only that number needs a law. Our derivation.

The number N of clients who carry the direction is fixed (SVD allocation) or a sum of independent
indicators (random allocation, the coefficients of `prod_k (1 - c_k + y c_k)`). Uniform cohorts then
draw from N carriers and K - N others.
"""

from __future__ import annotations

import math

import numpy as np

from analysis.cohorts.clients import Clients
from analysis.cohorts.law import Array
from analysis.cohorts.pmf import binomial_pmf
from analysis.cohorts.sums import Sums
from fedlora_sim.shares import share

_NEGLIGIBLE = 1e-60  # relative to the most probable: nothing that a double could notice


def is_equal(clients: Clients) -> bool:
    """Whether this route applies: equal weights, and carriers that are fixed or drawn alike."""
    weight = clients.relevant_weight[clients.relevant_weight > 0]
    alike = clients.sure or bool(np.all(clients.law == clients.law[0]))
    return bool(np.all(weight == weight[0])) and alike


def equal_sums(clients: Clients) -> Sums:
    """The law of the numbers of draws, in units of the common weight.

    Args:
        clients: the clients as one direction sees them, of equal weights.

    Returns:
        Contributors' and others' draws; the squares are those of draw counts.
    """
    if clients.sampling == "with_replacement":
        sums = _repeated(clients)
    elif clients.sampling == "bernoulli":
        sums = _bernoulli(clients)
    else:
        sums = _fixed(clients)
    unit = float(clients.relevant_weight.max())
    return Sums(
        sums.probability, unit * sums.contributing, unit * sums.other, unit**2 * sums.squares
    )


def carriers(carry: Array) -> Array:
    """Law of the number of clients that carry the direction, shape (K + 1,)."""
    law = np.ones(1)
    for chance in carry:
        law = np.append(law * (1.0 - chance), 0.0) + np.append(0.0, law * chance)
    return law


def hypergeometric(total: int, marked: int, size: int) -> Array:
    """Probabilities of 0..size marked ones among `size` drawn; whole-number arithmetic."""
    others = total - marked
    low, high = max(0, size - others), min(marked, size)
    ways, whole = math.comb(marked, low) * math.comb(others, size - low), math.comb(total, size)
    law = np.zeros(size + 1)
    for d in range(low, high + 1):
        law[d] = ways / whole
        # exact, and far shorter than two binomial coefficients anew
        ways = ways * (marked - d) * (size - d) // ((d + 1) * (others - size + d + 1))
    return law


def _fixed(clients: Clients) -> Sums:
    """Cohorts of m different clients."""
    if clients.sure:
        law = hypergeometric(clients.number, int(clients.carry.sum()), clients.size)
    else:
        law = carriers(clients.carry)
        for left in range(clients.number, clients.size, -1):
            law = _leave_one_out(law, left)
    draws = np.arange(clients.size + 1, dtype=np.float64)
    return Sums(law, draws, clients.size - draws, draws)


def _leave_one_out(law: Array, left: int) -> Array:
    """Law of the number of carriers after one of `left` clients, any one, has gone."""
    number = np.arange(left)
    return np.asarray((law[:-1] * (left - number) + law[1:] * (number + 1)) / left)


def _bernoulli(clients: Clients) -> Sums:
    """Independent participation; the empty cohort carries nothing and needs no row."""
    K, p = clients.number, clients.size / clients.number
    if clients.sure:
        marked = int(clients.carry.sum())
        drawn = _trimmed(binomial_pmf(np.arange(marked + 1), marked, p))
        rest = _trimmed(binomial_pmf(np.arange(K - marked + 1), K - marked, p))
        if clients.normaliser != "cohort":
            rest = np.zeros(1, dtype=np.int64), np.ones(1)
        mass = np.outer(drawn[1], rest[1]).ravel()
        own = np.repeat(drawn[0], rest[0].size).astype(np.float64)
        return Sums(mass, own, np.tile(rest[0], drawn[0].size).astype(np.float64), own)
    size_law, law = binomial_pmf(np.arange(K + 1), K, p), carriers(clients.carry)
    rows = []
    for size in range(K, 0, -1):
        if size < K:
            law = _leave_one_out(law, size + 1)
        if size_law[size] > _NEGLIGIBLE * size_law.max():
            number, mass = _trimmed(law)
            rows.append(np.stack([size_law[size] * mass, number, size - number]))
    mass, own, other = np.concatenate(rows, axis=1)
    return Sums(mass, own, other, own)


def _repeated(clients: Clients) -> Sums:
    """Draws with replacement: a client drawn c times trains once and weighs c."""
    size, draws = clients.size, np.arange(clients.size + 1, dtype=np.float64)
    if clients.sure:
        chance = np.array([share(clients.law, clients.carry > 0)])
        # chance that two contributor draws are the same client
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
    """Numbers of non-negligible probability, and their probabilities."""
    number = np.flatnonzero(law > _NEGLIGIBLE * law.max())
    return number, law[number]
