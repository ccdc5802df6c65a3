"""The distribution of the weight share in one random cohort, by the cheapest exact route.

With `S` the round's cohort, `C_h` the clients that carry a direction and c_k how often client k is
drawn, the share is `W = sum_{k in S & C_h} w_k`. Normalizers:

    cohort        w_k = n_k c_k / sum_S n_j c_j: every rule that averages over the cohort
    contributors  w_k = n_k c_k / sum_{S & C_h} n_j c_j (Wu et al., arXiv 2602.13486, Eq. 8)
    federation    w_k = p_k c_k / E[c_k]: unbiased, nothing is renormalized, and W may exceed 1

Under `size_weighted` sampling each draw has weight 1 in the first two. Under `bernoulli` the first
two draw an empty cohort again, as the simulator does; without renormalization it is a round with W
= 0. The distributions are our derivation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from analysis.cohorts.exact import (
    count_cohorts,
    enumerate_sums,
    equal_sums,
    group_clients,
    is_equal,
    plan_tables,
    tabulate_sums,
)
from analysis.cohorts.law import (
    Array,
    DirectionClients,
    MonteCarloWarning,
    ShareLaw,
    empty_cohort,
    sampled_law,
    views,
)
from fedlora_sim.errors import expected
from fedlora_sim.federation import Federation, draw_cohorts
from fedlora_sim.randomness import stream
from fedlora_sim.scenario import Scenario
from fedlora_sim.shares import normalized, share

# Monte Carlo: distributions estimated from random cohorts, if no exact route is short enough

_CHUNK_CELLS = 2_000_000  # cohorts times clients in memory at once


def sample_laws(
    federation: Federation, levels: list[DirectionClients], draws: int, seed: int
) -> list[ShareLaw]:
    """Return the distributions for several rank levels, estimated from one set of random cohorts.

    Args:
        federation: the clients and the cohort law.
        levels: the clients from the view of each level.
        draws: number of cohorts, at least 2.
        seed: non-negative; equal seeds give equal cohorts.

    Returns:
        One distribution per level; the probability of an empty cohort is exact in each.

    Raises:
        InputError: if no random cohort has a contributor.
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
    federation: Federation, level: DirectionClients, rounds: int, rng: np.random.Generator
) -> np.ndarray:
    """Return how often each client is drawn, shape (rounds, K)."""
    if level.sampling == "bernoulli" and not level.redrawn:
        return rng.random((rounds, level.number)) < level.size / level.number
    return draw_cohorts(federation, rounds, rng)


def _shares(level: DirectionClients, counts: np.ndarray, rng: np.random.Generator) -> Array:
    """Return share and sum of squared weights of the cohorts with a contributor, shape (2, n)."""
    # contributors and others separately, so that full coverage gives exactly own / (own + 0) = 1
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


def drawn_shares(scenario: Scenario, seed: int) -> Array:
    """Return the weight share of the carriers in the cohorts of a run.

    Args:
        scenario: a scenario whose clients carry the first directions, `allocation="svd"`.
        seed: seed of the run, as for `simulate`.

    Returns:
        Shares W with weights over the cohort, shape (rounds, r_max).

    Raises:
        InputError: for another allocation.
    """
    from fedlora_sim.engines.cohort_draws import cohort_counts  # with torch, which takes seconds

    if scenario.allocation != "svd":
        wanted = "'svd', with which the cohort decides who carries a direction"
        raise expected("allocation", scenario.allocation, wanted)
    federation = scenario.federation
    weights = federation.cohort_weights(
        np.arange(federation.num_clients), cohort_counts(scenario, seed)
    )
    carried = weights @ federation.members
    whole = federation.members.all(axis=0)
    return np.where(whole, 1.0, carried / weights.sum(axis=1, keepdims=True))


# Exact distributions with a fallback to Monte Carlo

ENUMERATION_LIMIT = 200_000
"""Largest number of distinct cohorts per rank level that are summed one by one."""

CELL_LIMIT = 4_000_000
"""Largest number of cells of one table of sums of whole weights; a table has at most 64 MB."""

WORK_LIMIT = 500_000_000
"""Largest number of cell updates to fill tables: a few seconds."""

MONTE_CARLO_DRAWS = 100_000
"""Number of random cohorts if no exact route is within its limit."""

_CELLS_PER_COHORT = 20  # cost of an enumerated cohort in cells of a table (measured)
_STACK_LEVEL = 3  # caller of the public function


def share_laws(
    federation: Federation, normalizer: str = "cohort", allocation: str = "svd"
) -> list[ShareLaw]:
    """Return the distributions of the contributors' weight share in one random cohort.

    Equal weights require only the number of contributors' draws. Unequal ones use the sum over all
    cohorts or, for whole sample counts, the table of sums of weights, whichever is cheaper and
    within its limit; otherwise `MONTE_CARLO_DRAWS` random cohorts with a fixed seed.

    Args:
        federation: the clients and the cohort law.
        normalizer: `cohort`, `contributors` or `federation`.
        allocation: `svd` (client k carries the first r_k directions) or `random` (any direction
            with probability `r_k / r_max`, independently per client and round).

    Returns:
        One distribution per rank level (`svd`), or one for all directions (`random`).

    Raises:
        InputError: for an unknown normalizer or allocation; for `importance`, where carried
            directions depend on the state; if no random cohort has a contributor.

    Warns:
        MonteCarloWarning: if distributions are estimated; states the largest relative standard
            error.

    Reference:
        Weights: Wu et al., arXiv 2602.13486, Sec. 3 and Eq. 8. Distributions: our derivation.
    """
    return list(announced(federation, normalizer, allocation, _STACK_LEVEL))


def expect(
    federation: Federation,
    normalizer: str,
    function: Callable[[Array], Array],
    allocation: str = "svd",
) -> Array:
    """Return the mean of a function of the share W.

    Args:
        federation: the clients and the cohort law.
        normalizer: `cohort`, `contributors` or `federation`.
        function: maps shares of shape (n,) to values of shape (n,); finite at 0 if a cohort can
            have no contributor.
        allocation: `svd` or `random`.

    Returns:
        `E[function(W)]` per direction, shape (r_max,).

    Raises:
        InputError: as `share_laws`.

    Warns:
        MonteCarloWarning: as `share_laws`.

    Reference:
        Our derivation.
    """
    laws = announced(federation, normalizer, allocation, _STACK_LEVEL)
    return per_direction(federation, np.array([law.expect(function(law.share)) for law in laws]))


def per_direction(federation: Federation, by_law: Array) -> Array:
    """Return values per law, shape (..., levels) or (..., 1), repeated to shape (..., r_max)."""
    if by_law.shape[-1] == 1:
        return np.repeat(by_law, federation.r_max, axis=-1)
    return np.repeat(by_law, np.diff((0, *federation.levels)), axis=-1)


def announced(
    federation: Federation, normalizer: str, allocation: str, stack_level: int
) -> tuple[ShareLaw, ...]:
    """Return the distributions, and warn at the caller's line if some are estimated."""
    limits = Limits(ENUMERATION_LIMIT, CELL_LIMIT, WORK_LIMIT, MONTE_CARLO_DRAWS)
    laws = _laws(federation, normalizer, allocation, limits)
    if any(law.draws is not None for law in laws):
        warnings.warn(
            f"weights estimated from {limits.draws} random cohorts (unequal num_samples; the sums "
            f"over all cohorts exceed their limits); largest relative standard error "
            f"{max(_relative_error(law) for law in laws):.2e}",
            MonteCarloWarning,
            stacklevel=stack_level,
        )
    return laws


class Limits(NamedTuple):
    """Limits of the exact routes, and the number of random cohorts beyond them."""

    cohorts: int
    cells: int
    work: int
    draws: int


@lru_cache(maxsize=4)  # a distribution may have millions of outcomes
def _laws(
    federation: Federation, normalizer: str, allocation: str, limits: Limits
) -> tuple[ShareLaw, ...]:
    levels = views(federation, normalizer, allocation)
    laws = [_exact(level, limits) for level in levels]
    missing = [h for h, law in enumerate(laws) if law is None]
    if missing:
        sampled = sample_laws(federation, [levels[h] for h in missing], limits.draws, seed=0)
        for h, law in zip(missing, sampled, strict=True):
            laws[h] = law
    return tuple(law for law in laws if law is not None)


def _exact(clients: DirectionClients, limits: Limits) -> ShareLaw | None:
    """Return the distribution by the cheapest exact route; None if each exceeds its limit."""
    if is_equal(clients):
        return equal_sums(clients).law(clients)
    groups, plan = group_clients(clients), plan_tables(clients)
    cohorts = count_cohorts(clients, groups)
    if cohorts > limits.cohorts:
        cohorts = math.inf
    longest = min(float(limits.work), _CELLS_PER_COHORT * cohorts)
    if plan is not None and plan.cells <= limits.cells and plan.work <= longest:
        return tabulate_sums(clients, plan).law(clients)
    return enumerate_sums(clients, groups).law(clients) if cohorts < math.inf else None


def _relative_error(law: ShareLaw) -> float:
    """Return the largest relative standard error among the moments of a distribution."""
    values = [law.share, law.share**2, law.share**4, law.squares]
    return max(law.standard_error(v) / law.expect(v) for v in values)


# Moments of the aggregation weights over random cohorts, per direction.
#
# These are all that the energy recursion of Wu et al., arXiv 2602.13486, App. B requires of a
# cohort, and the logarithms that describe a typical run. See `analysis.cohorts.shares` for the
# weights.


@dataclass(frozen=True)
class WeightMoments:
    """Moments of aggregation weights, `W = sum_k w_k`; every array is (r_max,) without a unit.

    Args:
        mean: `E[W]`.
        second: `E[W^2]`.
        fourth: `E[W^4]`.
        sum_of_squares: `E[sum_k w_k^2]`.
        log_mean: `E[log W | W > 0]`.
        log_variance: `Var[log W | W > 0]`.
        inverse: `E[1 / W | W > 0]`.
        empty: probability that a cohort has no contributor; always exact.
        standard_error: standard errors of all of them, or None if all are exact.
    """

    mean: Array
    second: Array
    fourth: Array
    sum_of_squares: Array
    log_mean: Array
    log_variance: Array
    inverse: Array
    empty: Array
    standard_error: WeightMoments | None = None


def weight_moments(
    normalizer: str, federation: Federation, allocation: str = "svd"
) -> WeightMoments:
    """Return the moments of the weights under the federation's cohort law.

    Args:
        normalizer: `cohort`, `contributors` or `federation`, see `analysis.cohorts.shares`.
        federation: the clients and the cohort law.
        allocation: `svd` or `random`.

    Returns:
        The moments per direction, read-only; exact, or estimated with standard errors.

    Raises:
        InputError: on an unknown normalizer or allocation; on `importance`.

    Warns:
        MonteCarloWarning: when estimated; it states the largest relative standard error.

    Reference:
        Weights: Wu et al., arXiv 2602.13486, Sec. 3 and Eq. 8. Moments: our derivation.
    """
    laws = announced(federation, normalizer, allocation, stack_level=3)
    return _moments(laws, federation, normalizer, allocation)


@lru_cache(maxsize=4)  # as many as cached distributions, which are compared by identity
def _moments(
    laws: tuple[ShareLaw, ...], federation: Federation, normalizer: str, allocation: str
) -> WeightMoments:
    levels = views(federation, normalizer, allocation)
    pairs = [_law_moments(law, level) for law, level in zip(laws, levels, strict=True)]
    values, errors = per_direction(federation, np.stack(pairs, axis=-1))
    for array in (values, errors):
        array.setflags(write=False)
    exact = all(law.draws is None for law in laws)
    moments = WeightMoments(*values)
    return moments if exact else replace(moments, standard_error=WeightMoments(*errors))


def empty_probability(
    federation: Federation, allocation: str = "svd", normalizer: str = "cohort"
) -> Array:
    """Return the probability per round that no client of the cohort carries a direction.

    Args:
        federation: the clients and the cohort law.
        allocation: `svd` or `random`.
        normalizer: matters under `bernoulli` only: without renormalization (`federation`) an empty
            cohort counts, otherwise it is drawn again.

    Returns:
        Probabilities, shape (r_max,); always exact.

    Raises:
        InputError: for an unknown allocation or normalizer, and for `importance`.

    Reference:
        Our derivation.
    """
    return _empty(federation, allocation, normalizer).copy()


@lru_cache(maxsize=16)  # used by every rule
def _empty(federation: Federation, allocation: str, normalizer: str) -> Array:
    levels = views(federation, normalizer, allocation)
    return per_direction(federation, np.array([empty_cohort(level) for level in levels]))


def _law_moments(law: ShareLaw, clients: DirectionClients) -> Array:
    """Return moments in the order of `WeightMoments` and their standard errors, shape (2, 8)."""
    given = law.given_contributor()
    logs = np.log(given.share)
    log_mean = given.expect(logs)
    plain = [law.share, law.share**2, law.share**4, law.squares]
    conditional = [logs, (logs - log_mean) ** 2, 1.0 / given.share]
    values = [law.expect(v) for v in plain] + [given.expect(v) for v in conditional]
    errors = [law.standard_error(v) for v in plain]
    errors += [given.standard_error(v) for v in conditional]
    if law.draws is not None and clients.normalizer == "federation":
        for place, value in zip((0, 1, 3), _unbiased(clients), strict=True):
            values[place], errors[place] = value, 0.0
    return np.array([[*values, law.empty], [*errors, 0.0]])


def _unbiased(clients: DirectionClients) -> tuple[float, float, float]:
    """Return `E[W]`, `E[W^2]`, `E[sum w^2]` of `w_k = p_k c_k / E[c_k]` in closed form."""
    K, m = clients.number, clients.size
    p = normalized(clients.weight * clients.law)
    mean = share(p, clients.carry)
    # E[c_k^2] / E[c_k]^2 and E[c_j c_k] / (E[c_j] E[c_k])
    own, pair = np.full(K, K / m), 1.0
    if clients.sampling == "without_replacement":
        pair = (m - 1) / m * K / (K - 1)
    elif clients.sampling == "with_replacement":
        pair = (m - 1) / m
        own = pair + 1.0 / (m * clients.law)
    squares = (p**2 * own) @ clients.carry
    second = squares + pair * (mean**2 - p**2 @ clients.carry**2)
    return float(mean), float(second), float(squares)
