"""The federation: client ranks, sample counts, rank levels, partitions, coverage and cohorts.

Notation follows Wu et al., arXiv 2602.13486, Sec. 3-4: client `k` has LoRA rank `r_k` and `n_k`
samples; the rank levels `l_1 < ... < l_M` are the distinct ranks of the federation; partition `h`
holds the rank indices `(l_{h-1}, l_h]`, and only clients with `r_k >= l_h` contribute to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from fedlora_sim.errors import (
    MOST_ITEMS,
    check_choice,
    check_count,
    check_finite,
    check_positive_int,
    check_sequence,
    expected,
)
from fedlora_sim.shares import normalized, share

SAMPLINGS = ("full", "without_replacement", "with_replacement", "bernoulli", "size_weighted")
EMPTY_PARTITION = ("zero", "carry", "error")
ALLOCATIONS = ("svd", "random", "importance")
HETEROGENEITY = ("fresh", "persistent")
MOST_RANK = 65_536
MOST_CARRIED = 1 << 28
"""Highest rank of a client, and maximum of clients times the highest rank."""


def parse_ranks(ranks: str | Sequence[int]) -> tuple[int, ...]:
    """Return the client ranks, one per client, from a sequence or from text.

    In text, `4x8` means "rank 4, 8 clients"; `4x8,8x6,16x4` is a federation of 18 clients.

    Args:
        ranks: text, or a sequence of whole numbers of at least 1.

    Returns:
        One rank per client, in the given order.

    Raises:
        InputError: if the federation is empty, a rank is below 1 or the text cannot be read.
    """
    if isinstance(ranks, str):
        clients: list[int] = []
        for part in ranks.replace(" ", "").split(","):
            match = re.fullmatch(r"(\d+)(?:x(\d+))?", part)
            if match is None:
                raise expected("ranks", ranks, "text like '4x8,8x6' (rank 4, 8 clients; ...)")
            count = check_positive_int("ranks", match[2] or "1")
            rank = check_count("ranks", match[1], MOST_RANK)
            if len(clients) + count > MOST_ITEMS:
                raise expected("ranks", ranks, f"at most {MOST_ITEMS:,} clients")
            clients.extend([rank] * count)
        return tuple(clients)
    expectation = "one rank per client, or text like '4x8,8x6'"
    given = check_sequence("ranks", ranks, expectation)
    values = tuple(check_count("ranks", rank, MOST_RANK) for rank in given)
    if not values:
        raise expected("ranks", ranks, "at least one client")
    return values


def check_num_samples(num_samples: Sequence[float], num_clients: int) -> tuple[float, ...]:
    """Return the sample counts as floats: one per client, finite, non-negative and not all zero."""
    given = check_sequence("num_samples", num_samples)
    values = tuple(check_finite("num_samples", n, minimum=0.0) for n in given)
    if len(values) != num_clients:
        raise expected("num_samples", list(values), f"{num_clients} values, one per client")
    if not sum(values) > 0:
        raise expected("num_samples", list(values), "at least one positive value")
    if not math.isfinite(sum(values)):
        raise expected("num_samples", list(values), "values whose sum is finite")
    return values


@dataclass(frozen=True)
class Federation:
    """Clients with their LoRA ranks and sample counts, and the sampling of cohorts.

    Args:
        ranks: rank `r_k` of each client, as a sequence or as text (`"4x8,8x6"`).
        num_samples: sample count `n_k` of each client; equal when None.
        cohort_size: clients `m` per round; all when None. Under `bernoulli` it is the expected
            number: each client takes part with probability `m / K`.
        sampling: `full`, `without_replacement` (uniform), `with_replacement` (uniform; a client
            drawn twice counts twice), `bernoulli` (independent; an empty draw is repeated) or
            `size_weighted` (`m` draws with replacement, probability `p_k`, each of equal weight:
            scheme II of Li et al. 2020, arXiv 1907.02189). Default: `full` without a
            `cohort_size`, else `without_replacement`.

    Raises:
        InputError: if an argument is invalid; names the argument, its value and what was expected.
    """

    ranks: tuple[int, ...]
    num_samples: tuple[float, ...] | None = None
    cohort_size: int | None = None
    sampling: str | None = None
    levels: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ranks = parse_ranks(self.ranks)
        if len(ranks) * max(ranks) > MOST_CARRIED:
            wanted = f"clients times the highest rank of at most {MOST_CARRIED:,}"
            raise expected("ranks", f"{len(ranks):,} clients, rank {max(ranks):,}", wanted)
        samples = (1.0,) * len(ranks) if self.num_samples is None else self.num_samples
        samples = check_num_samples(samples, len(ranks))
        if min(samples) == 0:
            raise expected("num_samples", list(samples), "every client to have some samples")
        default = "full" if self.cohort_size is None else "without_replacement"
        sampling = default if self.sampling is None else self.sampling
        sampling = check_choice("sampling", sampling, SAMPLINGS)
        size = len(ranks) if self.cohort_size is None else self.cohort_size
        size = check_positive_int("cohort_size", size)
        if size > len(ranks):
            raise expected("cohort_size", size, f"at most the federation's {len(ranks)} clients")
        if sampling == "full" and size != len(ranks):
            raise expected("cohort_size", size, f"{len(ranks)} (all clients) when sampling='full'")
        object.__setattr__(self, "ranks", ranks)
        object.__setattr__(self, "num_samples", samples)
        object.__setattr__(self, "cohort_size", size)
        object.__setattr__(self, "sampling", sampling)
        object.__setattr__(self, "levels", tuple(sorted(set(ranks))))

    @property
    def num_clients(self) -> int:
        """Number of clients K."""
        return len(self.ranks)

    @property
    def max_cohort(self) -> int:
        """Largest number of distinct clients in a cohort."""
        assert self.cohort_size is not None  # resolved in __post_init__
        return self.num_clients if self.sampling == "bernoulli" else self.cohort_size

    @property
    def r_max(self) -> int:
        """Highest rank level `l_M`: the rank of the global update."""
        return self.levels[-1]

    @property
    def partitions(self) -> tuple[slice, ...]:
        """Rank indices of partition h as the half-open slice `l_{h-1}:l_h`, one per level."""
        return partition_slices(self.levels)

    @property
    def weights(self) -> np.ndarray:
        """Data weights `p_k = n_k / sum n`, shape (K,)."""
        return normalized(self._samples)

    @property
    def _samples(self) -> tuple[float, ...]:
        assert self.num_samples is not None  # resolved in __post_init__
        return self.num_samples

    @property
    def members(self) -> np.ndarray:
        """Which directions each client carries, `r_k > i`: boolean, shape (K, r_max)."""
        return np.asarray(self.ranks)[:, None] > np.arange(self.r_max)

    def coverage(self, allocation: str = "svd") -> np.ndarray:
        """Return the coverage of each direction, the expected weight share of its carriers.

        The values are in [0, 1] and do not increase with the direction. They are exactly 1 where
        every client carries the direction, and do not depend on the machine or on the order of the
        clients (see `fedlora_sim.shares`).

        Args:
            allocation: `svd`: `pi_h = sum_{k in C_h} p_k`; `random`: `sum_k p_k r_k / r_max`, equal
                for all directions; `importance`: NaN, because it depends on the state.

        Returns:
            Coverages, shape (r_max,).
        """
        if allocation == "importance":
            return np.full(self.r_max, np.nan)
        if allocation == "random":
            carried = share(self._samples, np.asarray(self.ranks) / self.r_max)
            return np.full(self.r_max, carried)
        return self.carried_shares(self._samples)

    def carried_shares(self, weights: ArrayLike) -> np.ndarray:
        """Return the weight share of the carriers of each direction for the given weights.

        Args:
            weights: weights of all clients, finite, non-negative, not all zero, shape (K,).

        Returns:
            Shares in [0, 1], shape (r_max,); see `fedlora_sim.shares`.
        """
        ranks = np.asarray(self.ranks)
        by_level = [share(weights, ranks >= level) for level in self.levels]
        return np.repeat(by_level, np.diff((0, *self.levels)))

    def cohort_weights(self, clients: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the unnormalized aggregation weights of drawn clients.

        Args:
            clients: client numbers, any shape.
            counts: how often each client was drawn, same shape.

        Returns:
            `n_k` times the count. Under `size_weighted` only the count, because the sample counts
            already determine the drawing probabilities.
        """
        if self.sampling == "size_weighted":
            return counts.astype(np.float64)
        return counts * np.asarray(self._samples)[clients]


def partition_slices(levels: Sequence[int]) -> tuple[slice, ...]:
    """Return half-open slices of the rank axis between consecutive levels, `l_0 = 0`."""
    edges = (0, *levels)
    return tuple(slice(low, high) for low, high in pairwise(edges))


def draw_cohorts(federation: Federation, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the cohorts of a run.

    Args:
        federation: the clients and the sampling scheme.
        rounds: number of rounds T.
        rng: source of randomness.

    Returns:
        How often each client was drawn in each round, int64, shape (T, K); no row is zero.
    """
    num_clients, size = federation.num_clients, federation.cohort_size
    assert size is not None  # resolved in __post_init__
    shape = (rounds, num_clients)
    match federation.sampling:
        case "full":
            return np.ones(shape, dtype=np.int64)
        case "without_replacement":
            return smallest_keys(rng.random(shape), size).astype(np.int64)
        case "with_replacement":
            return rng.multinomial(size, np.full(num_clients, 1.0 / num_clients), size=rounds)
        case "size_weighted":
            return rng.multinomial(size, federation.weights, size=rounds)
        case _:
            return _bernoulli(rng, shape, size / num_clients)


def smallest_keys(keys: np.ndarray, size: int) -> np.ndarray:
    """Return which clients have the `size` smallest of K keys: a uniform subset if the keys are.

    Args:
        keys: uniform draws, shape (..., K).
        size: clients of a subset, at most K.

    Returns:
        Whether a client is chosen, boolean, same shape.
    """
    if size == keys.shape[-1]:
        return np.ones(keys.shape, dtype=bool)
    last = np.partition(keys, size - 1, axis=-1)[..., size - 1 : size]
    chosen = keys <= last
    if np.count_nonzero(chosen) == size * (chosen.size // chosen.shape[-1]):
        return chosen
    chosen[...] = False  # some keys are equal
    np.put_along_axis(chosen, np.argpartition(keys, size)[..., :size], True, axis=-1)
    return chosen


def _bernoulli(rng: np.random.Generator, shape: tuple[int, int], probability: float) -> np.ndarray:
    """Return independent participation; rounds without a participant are drawn again."""
    counts = (rng.random(shape) < probability).astype(np.int64)
    while (empty := np.flatnonzero(counts.sum(axis=1) == 0)).size:
        counts[empty] = rng.random((empty.size, shape[1])) < probability
    return counts


def cohort_slots(counts: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the clients of each cohort as slots of equal number.

    Args:
        counts: how often each client was drawn, shape (..., K).
        size: number of slots m, at least the size of the largest cohort.

    Returns:
        Client numbers in ascending order and their counts, both (..., m). Smaller cohorts are
        padded with client 0 at count 0, which has no weight.
    """
    rows = counts.reshape(-1, counts.shape[-1])
    row, client = np.nonzero(rows)
    sizes = np.bincount(row, minlength=len(rows))
    slot = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    clients = np.zeros((len(rows), size), dtype=np.int64)
    drawn = np.zeros_like(clients)
    clients[row, slot], drawn[row, slot] = client, rows[row, client]
    shape = (*counts.shape[:-1], -1)
    return clients.reshape(shape), drawn.reshape(shape)
