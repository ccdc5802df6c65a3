"""Draws of cohorts: first how many clients of each group, then which.

Clients of one rank and equal sample numbers are exchangeable, and many sums over a cohort then need
the numbers alone. These take one draw a round. Which clients are drawn takes one draw for each
place of the cohort. Neither depends on the number of clients outside the cohort.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaln, xlog1py, xlogy
from torch import Tensor

from fedlora_sim.federation import Federation
from fedlora_sim.randomness import uniforms
from fedlora_sim.scenario import Scenario

MOST_COMBINATIONS = 1_000_000
"""Numbers of clients per group that a table holds."""

_COHORTS = 1 << 13  # drawn at a time, so that they stay in the cache


def places(federation: Federation) -> int:
    """Return the number of places of a drawn cohort, at least the number of its clients.

    Under `bernoulli`, whose cohorts vary in size, larger ones have a probability below 2**-53: by
    Chernoff's bound, `exp(-d**2 / (2 m + 2 d / 3))` for `m + d` clients.
    """
    size = _size(federation)
    if federation.sampling != "bernoulli":
        return size
    return min(federation.num_clients, size + 40 + math.ceil(9 * math.sqrt(size)))


def _size(federation: Federation) -> int:
    assert federation.cohort_size is not None  # resolved by the federation
    return federation.cohort_size


# How many clients of each group


@dataclass(frozen=True, eq=False)
class NumbersLaw:
    """Law of the numbers of clients that a cohort has of each group.

    Args:
        by_rank: whether a group has the clients of one rank, in ascending order of the ranks. There
            is one group of all clients where the table would be too long.
        order: clients sorted by group, (K,).
        sizes: clients of each group, (G,).
        numbers: clients drawn of each group, (U, G), every possibility once.
        cumulative: probability of a possibility or one before it, (U,).
    """

    by_rank: bool
    order: NDArray[np.int64]
    sizes: NDArray[np.int64]
    numbers: NDArray[np.int64]
    cumulative: NDArray[np.float64]


@lru_cache(maxsize=64)
def numbers_law(federation: Federation) -> NumbersLaw:
    """Return the law of the numbers of clients, each of whom is drawn at most once."""
    ranks = np.asarray(federation.ranks)
    by_rank = [int((ranks == level).sum()) for level in federation.levels]
    found = _possibilities(federation, by_rank)
    sizes = np.array(by_rank if found is not None else [len(ranks)])
    if found is None:
        found = _possibilities(federation, [len(ranks)])
        assert found is not None  # at most as many as clients
    # Binomial coefficients, by an expansion that stays accurate for large numbers.
    log = -betaln(1 + sizes - found, 1 + found) - np.log1p(sizes)
    if federation.sampling == "bernoulli":
        chance = _size(federation) / len(ranks)
        log += xlogy(found, chance) + xlog1py(sizes - found, -chance)
    weight = np.exp(log.sum(1) - log.sum(1).max())
    cumulative = np.cumsum(weight)
    order = np.argsort(ranks, kind="stable")
    return NumbersLaw(len(sizes) == len(by_rank), order, sizes, found, cumulative / cumulative[-1])


def _possibilities(federation: Federation, sizes: Sequence[int]) -> NDArray[np.int64] | None:
    """Return the numbers that a cohort can have of groups of these sizes, (U, G), unless many."""
    size, most = _size(federation), places(federation)
    if size == federation.num_clients:
        return np.array([sizes])
    varies = federation.sampling == "bernoulli"
    # In a cohort of a given size, the number of the last group follows from the others.
    limits = [min(n, most) + 1 for n in (sizes if varies else sizes[:-1])]
    if math.prod(limits) > MOST_COMBINATIONS:
        return None
    numbers = np.indices(limits).reshape(len(limits), math.prod(limits)).T
    if varies:
        total = numbers.sum(1)
        return numbers[(total > 0) & (total <= most)]
    last = size - numbers.sum(1)
    possible = (last >= 0) & (last <= sizes[-1])
    return np.column_stack([numbers, last])[possible]


def draw_numbers(
    federation: Federation, rounds: int, seeds: Sequence[int], device: torch.device
) -> Tensor:
    """Return which possibility of `numbers_law` each cohort has, (S or 1, T or 1)."""
    law = numbers_law(federation)
    if len(law.numbers) == 1:
        return torch.zeros(1, 1, dtype=torch.int64, device=device)
    drawn = uniforms(seeds, "numbers of clients", rounds, device).contiguous()
    return torch.searchsorted(torch.from_numpy(law.cumulative).to(drawn.device), drawn).to(device)


def distinct(codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the distinct numbers below `size`, and the position of each one among them.

    As `torch.unique`, without sorting millions of numbers.
    """
    occurs = torch.zeros(size, dtype=torch.bool, device=codes.device)
    occurs[codes.reshape(-1)] = True
    return occurs.nonzero().squeeze(1), (occurs.cumsum(0) - 1)[codes]


# Which clients


def draw_slots(
    federation: Federation, rounds: int, seeds: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw the cohorts of one run per seed.

    Args:
        federation: the clients and the sampling scheme.
        rounds: number of rounds T.
        seeds: seeds of the S runs; a run's draws do not depend on the other seeds.
        device: where the result is.

    Returns:
        Client in each place of the cohort, and how often it takes part, both int64 and
        (S or 1, T or 1, m); 0 times in places without a client.
    """
    if are_all(federation):
        clients = torch.arange(federation.num_clients, device=device).view(1, 1, -1)
        return clients, torch.ones_like(clients)
    parts = zip(*draw_parts(federation, rounds, seeds, device), strict=True)
    shape = (len(seeds), rounds, places(federation))
    # One order in memory for any number of runs, on which the rounding of sums depends.
    clients, times = (torch.cat(side, dim=1).T.reshape(shape).contiguous() for side in parts)
    return clients, times


def are_all(federation: Federation) -> bool:
    """Return True if every cohort has all clients, each once."""
    once = federation.sampling in ("full", "without_replacement", "bernoulli")
    return once and _size(federation) == federation.num_clients


def draw_parts(
    federation: Federation, rounds: int, seeds: Sequence[int], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw the cohorts of `draw_slots`, some at a time, run by run and round by round.

    Yields:
        Client in each place, and how often it takes part, both int64, (m, n).
    """
    most = places(federation)
    drawn = uniforms(seeds, "clients of cohorts", rounds * most, device).reshape(-1, most)
    parts = drawn.to(device).split(_COHORTS)
    if federation.sampling in ("with_replacement", "size_weighted"):
        yield from (_repeated(federation, part) for part in parts)
        return
    law, index = numbers_law(federation), draw_numbers(federation, rounds, seeds, device)
    index = index.expand(len(seeds), rounds).reshape(-1)
    for own, part in zip(index.split(_COHORTS), parts, strict=True):
        yield _subsets(law, own, part)


def _repeated(federation: Federation, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Draw with replacement, from uniform draws (n, m); a repeated client stays in one place."""
    if federation.sampling == "size_weighted":
        cumulative = torch.from_numpy(np.cumsum(federation.weights)).to(drawn)
        clients = torch.searchsorted(cumulative / cumulative[-1], drawn.contiguous())
    else:
        clients = (drawn * federation.num_clients).long()
    clients = clients.T.contiguous()
    times = torch.ones_like(clients)
    for j in range(1, len(clients)):
        first = (clients[:j] == clients[j]) & (times[:j] > 0)
        times[:j] += first
        times[j] -= first.any(0).long()
    return clients, times


def _subsets(law: NumbersLaw, index: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the given numbers of clients, uniformly within their groups, by Floyd's algorithm.

    Reference: Bentley and Floyd 1987, "A sample of brilliance", CACM 30(9).

    Args:
        law: the groups.
        index: possibility of each cohort, (n,).
        drawn: uniform draws, (n, m).
    """
    found, own = distinct(index, len(law.numbers))
    numbers = law.numbers[found.cpu().numpy()]
    place = np.arange(drawn.shape[1])
    # The first places are for the first group. Place by place, one of the clients of the group up
    # to `last` is drawn; if it is in the cohort already, `last` is taken instead.
    ends, groups_end = numbers.cumsum(1), law.sizes.cumsum()
    group = (place[:, None] >= ends[:, None]).sum(2).clip(max=len(law.sizes) - 1)
    first = (groups_end - law.sizes)[group]
    last = np.take_along_axis(groups_end - ends, group, axis=1) + place
    is_taken = place < ends[:, -1:]

    def of_each(table: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(table).to(index.device, dtype)[own]

    width = of_each(last - first + 1, torch.float64)
    chosen = (of_each(first, torch.float64) + drawn * width).int().T.contiguous()
    ceiling, times = (of_each(x, torch.int32).T.contiguous() for x in (last, is_taken))
    chosen = torch.minimum(chosen, ceiling)
    for j in range(1, int(ends[:, -1].max())):
        repeats = (chosen[:j] == chosen[j]).any(0)
        chosen[j] = torch.where(repeats, ceiling[j], chosen[j])
    order = torch.from_numpy(law.order).to(index.device)
    return order.take((chosen * times).long()), times.long()


def cohort_counts(scenario: Scenario, seed: int) -> NDArray[np.int64]:
    """Return how often each client takes part in each round of a run, (T, K)."""
    found: NDArray[np.int64] = counts_of_runs(scenario, [seed])[0]
    return found


def counts_of_runs(scenario: Scenario, seeds: Sequence[int]) -> NDArray[np.int64]:
    """Return how often each client takes part in each round of several runs, (S, T, K)."""
    federation, shape = scenario.federation, (len(seeds), scenario.rounds, -1)
    drawn = draw_slots(federation, scenario.rounds, seeds, torch.device("cpu"))
    clients, times = (x.expand(shape) for x in drawn)
    counts = torch.zeros((*shape[:2], federation.num_clients), dtype=torch.int64)
    return counts.scatter_add_(2, clients, times).numpy()
