"""Brute force for closed forms: complete distributions of amplitudes, round by round."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
from cohort_cases import carriers, cohorts, weights_of

from fedlora_sim.federation import Federation

RANKS = (1, 2, 2)
SAMPLES = (2, 1, 3)
NORMALIZER = {"raflora": "contributors", "rbla": "contributors"}
FACTOR = ("zero_pad", "rbla", "hetlora")
SPREAD_RULES = ("fedavg", "ffa", "raflora", "flora")
COMMON_RULES = ("zero_pad", "rbla", "fedex", "fedavg", "raflora", "flora")


def federation_keywords(sampling: str, samples=SAMPLES, size: int = 2) -> dict:
    size = len(RANKS) if sampling == "full" else size
    return {"cohort_size": size, "num_samples": samples, "sampling": sampling}


def outcomes(rule: str, fed: Federation, allocation: str, i: int):
    """Yield probability and weights of direction i's contributors for every cohort."""
    members = [Fraction(int(r > i)) for r in fed.ranks]
    carry = [Fraction(r, fed.r_max) for r in fed.ranks] if allocation == "random" else members
    for chance, counts in cohorts(fed):
        for mass, flags in carriers(fed, counts, carry):
            weights = weights_of(fed, NORMALIZER.get(rule, "cohort"), counts, flags)
            yield float(chance * mass), np.array([float(w) for w in weights if w])


def server(rule: str, policy: str, x, z, weights, reached):
    """Return the new adapter and base from the contributors' totals (clients, states)."""
    y = reached - z
    w = weights[:, None]
    exact = (w * y).sum(axis=0)
    if rule == "flora":  # the adapter restarts, so it learns only the increment
        return np.zeros_like(x), z + (w * (reached - (x + z))).sum(axis=0) + x
    if rule == "fedex" or rule in FACTOR:
        root = np.sqrt(np.abs(y))
        adapter = (w * root).sum(axis=0) * (w * root * np.sign(y)).sum(axis=0)
        if rule == "fedex":
            return adapter, z + exact - adapter
        exact = adapter
    if policy == "carry" and rule in NORMALIZER and not len(weights):
        exact = x
    return exact, z


def evolve(rule, fed, i, start, rounds, *, policy="zero", allocation="svd", gains, drifts):
    """Return all values of the total after some rounds and their probabilities.

    `gains` and `drifts` are lists of (probability, value), drawn for every contributor and round.
    """
    x, z, p = np.array([float(start)]), np.zeros(1), np.ones(1)
    table = list(outcomes(rule, fed, allocation, i))
    for _ in range(rounds):
        new = []
        for chance, weights in table:
            returns = itertools.product(itertools.product(gains, drifts), repeat=len(weights))
            for choice in returns:
                mass = chance * math.prod(pa * pb for (pa, _), (pb, _) in choice)
                a = np.array([value for (_, value), _ in choice])[:, None]
                b = np.array([value for _, (_, value) in choice])[:, None]
                adapter, base = server(rule, policy, x, z, weights, a * (x + z) + b)
                new.append((adapter, base, mass * p))
        x, z, p = (np.concatenate(parts) for parts in zip(*new, strict=True))
    return x + z, p


def two_points(mean: float, std: float) -> list[tuple[float, float]]:
    """Return a law with this mean and deviation."""
    return [(1.0, mean)] if std == 0 else [(0.5, mean - std), (0.5, mean + std)]
