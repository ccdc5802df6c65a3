"""Probability that a cohort holds nobody who carries a direction. Our derivation."""

from __future__ import annotations

import math

import numpy as np

from analysis.cohorts.clients import Clients
from analysis.cohorts.pmf import poisson_pmf
from fedlora_sim.shares import share


def empty_cohort(clients: Clients) -> float:
    """Probability that no drawn client carries the direction.

    Without replacement `C(K-n, m) / C(K, m)` with n carriers; with replacement
    `(1 - P[one draw picks a carrier])^m`; Bernoulli `(s^n - s^K) / (1 - s^K)` with `s = 1 - m/K`,
    or `s^n` where the cohort without anybody counts. Where carriers are random, the mean of the
    product of `1 - c_k` over the drawn clients.

    Args:
        clients: the clients as one direction sees them.

    Returns:
        The probability; exactly 0 where every client carries the direction.
    """
    missing = 1.0 - clients.carry
    if clients.sampling == "full":
        return float(np.prod(missing))
    if clients.sampling == "bernoulli":
        return _bernoulli(clients)
    if clients.sampling == "without_replacement":
        if clients.sure:
            others = int(missing.sum())
            return math.comb(others, clients.size) / math.comb(clients.number, clients.size)
        return _mean_product(missing, clients.size)
    if clients.sure:
        return share(clients.law, missing == 1) ** clients.size
    return _repeated(clients)


def _bernoulli(clients: Clients) -> float:
    p = clients.size / clients.number
    none = float(np.log1p(-p * clients.carry).sum())
    if not clients.redrawn:
        return math.exp(none)
    nobody = float(np.log1p(np.full(clients.number, -p)).sum())
    # (e^none - e^nobody) / (1 - e^nobody) without the difference of two close numbers
    return max(0.0, -math.exp(none) * math.expm1(nobody - none) / -math.expm1(nobody))


def _mean_product(factors: np.ndarray, size: int) -> float:
    """Mean over all subsets of `size` clients of the product of their factors."""
    means, steps = np.zeros(size + 1), np.arange(1, size + 1)
    means[0] = 1.0
    for k, factor in enumerate(factors, start=1):
        # a subset of j of the first k clients holds the k-th one with probability j / k
        stays, takes = np.maximum(k - steps, 0) / k, np.minimum(steps, k) / k
        means[1:] = stays * means[1:] + takes * factor * means[:-1]
    return float(means[size])


def _repeated(clients: Clients) -> float:
    """Draws with replacement are independent Poisson counts, given their sum m."""
    size, counts = clients.size, np.arange(clients.size + 1)
    chance = np.zeros(size + 1)
    chance[0] = 1.0
    for law, carry in zip(clients.law, clients.carry, strict=True):
        factor = poisson_pmf(counts, size * law)
        factor[1:] *= 1.0 - carry
        chance = np.convolve(chance, factor)[: size + 1]
    return float(chance[size] / poisson_pmf(size, size))
