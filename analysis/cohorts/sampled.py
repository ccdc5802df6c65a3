"""Laws estimated from random cohorts, where no exact route is short enough."""

from __future__ import annotations

import numpy as np

from analysis.cohorts.clients import Clients
from analysis.cohorts.empty import empty_cohort
from analysis.cohorts.law import Array, ShareLaw, sampled_law
from fedlora_sim.errors import expected
from fedlora_sim.federation import Federation, draw_cohorts
from fedlora_sim.randomness import stream

_CHUNK_CELLS = 2_000_000  # cohorts times clients held in memory at once


def sample_laws(
    federation: Federation, levels: list[Clients], draws: int, seed: int
) -> list[ShareLaw]:
    """Estimate the laws of several rank levels from one set of random cohorts.

    Args:
        federation: the clients and the cohort law.
        levels: the clients as each level sees them.
        draws: number of cohorts, at least 2.
        seed: non-negative; the same seed gives the same cohorts.

    Returns:
        One law per level; the probability of an empty cohort is exact in each.

    Raises:
        ValueError: where no random cohort holds a contributor.
    """
    rng = stream(seed, "weight_moments")
    parts: list[list[Array]] = [[] for _ in levels]
    chunk = max(1, _CHUNK_CELLS // federation.num_clients)
    for start in range(0, draws, chunk):
        counts = _counts(federation, levels[0], min(chunk, draws - start), rng)
        for part, level in zip(parts, levels, strict=True):
            part.append(_shares(level, counts, rng))
    laws = []
    for part, level in zip(parts, levels, strict=True):
        share, squares = np.concatenate(part, axis=1)
        if not share.size:
            raise expected("cohort_size", level.size, f"a contributor in {draws} random cohorts")
        laws.append(sampled_law(share, squares, empty_cohort(level)))
    return laws


def _counts(
    federation: Federation, level: Clients, rounds: int, rng: np.random.Generator
) -> np.ndarray:
    """How often each client is drawn, shape (rounds, K)."""
    if level.sampling == "bernoulli" and not level.redrawn:
        return rng.random((rounds, level.number)) < level.size / level.number
    return draw_cohorts(federation, rounds, rng)


def _shares(level: Clients, counts: np.ndarray, rng: np.random.Generator) -> Array:
    """Share and sum of squared weights of the cohorts with a contributor, shape (2, n)."""
    # contributors and others apart, so that full coverage gives exactly own / (own + 0) = 1
    if level.sure:
        draws, carried = counts.astype(np.float64), level.weight * level.carry
        sides = draws @ np.stack([carried, level.weight - carried], axis=1)
        contributing, other = sides.T
        squares = draws**2 @ carried**2
    else:
        weights = counts * level.weight
        own = np.where(rng.random(weights.shape) < level.carry, weights, 0.0)
        contributing, other = own.sum(axis=1), (weights - own).sum(axis=1)
        squares = (own**2).sum(axis=1)
    keep = contributing > 0
    norm = level.norm(contributing[keep], other[keep])
    return np.stack([contributing[keep] / norm, squares[keep] / norm**2])
