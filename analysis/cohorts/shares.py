"""The law of the weight share in one random cohort, by the cheapest exact route there is.

With `S` the round's cohort, `C_h` the clients that carry a direction and c_k how often client k is
drawn, the share is `W = sum_{k in S & C_h} w_k`. Normalisers:

    cohort        w_k = n_k c_k / sum_S n_j c_j: every rule that averages over the cohort
    contributors  w_k = n_k c_k / sum_{S & C_h} n_j c_j (Wu et al., arXiv 2602.13486, Eq. 8)
    federation    w_k = p_k c_k / E[c_k]: unbiased, nothing is renormalised, and W may exceed 1

Under `size_weighted` sampling each draw has weight 1 in the first two. Under `bernoulli` the first
two draw an empty cohort again, as the simulator does; without renormalisation it is a round of
W = 0. The laws are our derivation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from analysis.cohorts.clients import Clients, views
from analysis.cohorts.equal import equal_sums, is_equal
from analysis.cohorts.groups import count_cohorts, enumerate_sums, group_clients
from analysis.cohorts.integer_sums import plan_tables, tabulate_sums
from analysis.cohorts.law import Array, MonteCarloWarning, ShareLaw
from analysis.cohorts.sampled import sample_laws
from fedlora_sim.federation import Federation

ENUMERATION_LIMIT = 200_000
"""Most distinct cohorts per rank level that are summed one by one."""

CELL_LIMIT = 4_000_000
"""Most cells of one table of sums of whole weights; a table holds 64 MB at most."""

WORK_LIMIT = 500_000_000
"""Most cells touched while tables are filled: some seconds."""

MONTE_CARLO_DRAWS = 100_000
"""Cohorts drawn where no exact route is within its limit."""

_CELLS_PER_COHORT = 20  # one enumerated cohort takes as long as so many cells of a table, measured
_STACK_LEVEL = 3  # the caller of the public function


def share_laws(
    federation: Federation, normaliser: str = "cohort", allocation: str = "svd"
) -> list[ShareLaw]:
    """Laws of the contributors' weight share in one random cohort.

    Equal weights need the number of contributors' draws alone. Unequal ones take the sum over all
    cohorts or, for whole sample counts, the table of sums of weights, whichever is shorter and
    within its limit; else `MONTE_CARLO_DRAWS` random cohorts of a fixed seed.

    Args:
        federation: the clients and the cohort law.
        normaliser: `cohort`, `contributors` or `federation`.
        allocation: `svd` (client k carries the first r_k directions) or `random` (any direction
            with probability `r_k / r_max`, independently per client and round).

    Returns:
        One law per rank level (`svd`), or one that holds for every direction (`random`).

    Raises:
        ValueError: on an unknown normaliser or allocation; on `importance`, where who carries a
            direction depends on the state; where no random cohort holds a contributor.

    Warns:
        MonteCarloWarning: where laws are estimated; it states the largest relative standard error.

    Reference:
        Weights: Wu et al., arXiv 2602.13486, Sec. 3 and Eq. 8. Laws: our derivation.
    """
    return list(announced(federation, normaliser, allocation, _STACK_LEVEL))


def expect(
    federation: Federation,
    normaliser: str,
    function: Callable[[Array], Array],
    allocation: str = "svd",
) -> Array:
    """Mean of a function of the share W.

    Args:
        federation: the clients and the cohort law.
        normaliser: `cohort`, `contributors` or `federation`.
        function: maps shares of shape (n,) to values of shape (n,); finite at 0 where a cohort can
            be without a contributor.
        allocation: `svd` or `random`.

    Returns:
        `E[function(W)]` per direction, shape (r_max,).

    Raises:
        ValueError: as `share_laws`.

    Warns:
        MonteCarloWarning: as `share_laws`.

    Reference:
        Our derivation.
    """
    laws = announced(federation, normaliser, allocation, _STACK_LEVEL)
    return per_direction(federation, np.array([law.expect(function(law.share)) for law in laws]))


def per_direction(federation: Federation, by_law: Array) -> Array:
    """Values per law, shape (..., levels) or (..., 1), repeated to shape (..., r_max)."""
    if by_law.shape[-1] == 1:
        return np.repeat(by_law, federation.r_max, axis=-1)
    return np.repeat(by_law, np.diff((0, *federation.levels)), axis=-1)


def announced(
    federation: Federation, normaliser: str, allocation: str, stack_level: int
) -> tuple[ShareLaw, ...]:
    """The laws, after a warning at the caller's line if some are estimated."""
    limits = Limits(ENUMERATION_LIMIT, CELL_LIMIT, WORK_LIMIT, MONTE_CARLO_DRAWS)
    laws = _laws(federation, normaliser, allocation, limits)
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
    """How far exact routes may go, and how many cohorts are drawn beyond."""

    cohorts: int
    cells: int
    work: int
    draws: int


@lru_cache(maxsize=4)  # a law may hold millions of outcomes
def _laws(
    federation: Federation, normaliser: str, allocation: str, limits: Limits
) -> tuple[ShareLaw, ...]:
    levels = views(federation, normaliser, allocation)
    laws = [_exact(level, limits) for level in levels]
    missing = [h for h, law in enumerate(laws) if law is None]
    if missing:
        sampled = sample_laws(federation, [levels[h] for h in missing], limits.draws, seed=0)
        for h, law in zip(missing, sampled, strict=True):
            laws[h] = law
    return tuple(law for law in laws if law is not None)


def _exact(clients: Clients, limits: Limits) -> ShareLaw | None:
    """The law by the cheapest exact route, None where each exceeds its limit."""
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
    """Largest relative standard error among the moments of a law."""
    values = [law.share, law.share**2, law.share**4, law.squares]
    return max(law.standard_error(v) / law.expect(v) for v in values)
