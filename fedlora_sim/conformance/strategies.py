"""Hypothesis strategies for cohorts, public for use in other tests.

This module imports Hypothesis; no other module does so before a check runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fedlora_sim.conformance.case import Case, lie_apart
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.rules import Properties

UNIT, STEPS = 4, 8
"""Entries of factors are multiples of 1/4 up to 2: short in code, exact in every dtype."""
CLIENTS, DIMENSION, LEVELS = 5, 7, 3
"""Maximum numbers in a small case, which runs fast and is short in code."""
MANY_CLIENTS, MANY_DIMENSIONS, MANY_LEVELS = 12, 48, 6
"""Maximum numbers in a large case, beyond what code expects that was tested on a few clients."""
MOST_RANK = 40
"""Highest rank of a large case."""
LARGE_IN, POSITIONS_IN, SILENT_IN = 5, 4, 8
"""One in this number of cases is large, has positions, or has a client that sends a zero."""
DECADES = 6
"""Weights of one case differ by up to 9 times 10 to this power."""
MOST_EARLIER = 3
"""Maximum number of rounds before the one that is checked."""
MANY = 99
"""Hypothesis mixes its draws with larger numbers that it finds in loaded modules.

Below a hundred the same seed gives the same cases everywhere.
"""


@st.composite
def cases(
    draw: Callable[..., Any],
    *,
    full_rank: bool = True,
    min_clients: int = 1,
    min_levels: int = 1,
    equal_ranks: bool = False,
    common_a: bool = False,
    gap: bool = False,
    tilted: bool = False,
    decades: bool = True,
    positions: bool = False,
    earlier: bool = False,
) -> Case:
    """Draw rounds of one to twelve clients of unequal ranks, with levels without a client.

    Four of five cases are small (up to 5 clients, 3 levels and rank 7), one is large (up to 12
    clients, 6 levels and rank 40). Scalings are arbitrary. Half of the layers are square. In a
    quarter of the rounds no client has the highest level; in half of them the weights differ by
    orders of magnitude; in an eighth of them one client returns a zero A or B.

    Args:
        draw: Hypothesis's draw function.
        full_rank: the highest level is min(d_in, d_out), so that no rule truncates.
        min_clients: smallest cohort.
        min_levels: smallest number of rank levels.
        equal_ranks: all clients have the highest rank, the only level.
        common_a: clients share the rows of one A, that of the last adapter.
        gap: the singular values of every update are separated, see `tolerances.SPECTRAL_GAP`.
        tilted: A is scaled by up to 4 or 1/4 and B by the inverse; the first client may outweigh
            the others.
        decades: weights may differ by up to six orders of magnitude.
        positions: in some cases clients carry arbitrary directions, in any order.
        earlier: in some cases up to three rounds precede this one.
    """
    whole = st.integers
    large = draw(whole(0, LARGE_IN - 1)) == LARGE_IN - 1
    most_clients, most_dims, most_levels = (
        (MANY_CLIENTS, MANY_DIMENSIONS, MANY_LEVELS) if large else (CLIENTS, DIMENSION, LEVELS)
    )

    def number(least: int, most: int) -> int:
        """Draw a number that is usually high in a large case and shrinks to the minimum."""
        return max(draw(whole(least, most)) for _ in range(3 if large else 1))

    side = max(2, min_levels)
    d_out, d_in = number(side, most_dims), number(side, most_dims)
    d_in = d_out if draw(st.booleans()) else d_in  # A and B cannot be distinguished by shape
    limit = min(d_in, d_out, MOST_RANK)
    if full_rank and limit == MOST_RANK:
        d_in = MOST_RANK
    many = min(number(min_levels, max(most_levels, min_levels)), limit)
    levels = draw(st.sets(whole(1, limit), min_size=many, max_size=many))
    if full_rank:
        levels = {*sorted(levels)[: -1 if len(levels) > 1 else None], limit}
    levels = tuple(sorted(levels))
    levels = levels[-1:] if equal_ranks else levels
    present = levels[:-1] if len(levels) > 1 and draw(whole(0, 3)) == 3 else levels
    count = number(min_clients, most_clients)
    ranks = draw(st.lists(st.sampled_from(present), min_size=count, max_size=count))
    weights = draw(st.lists(whole(0, 9), min_size=count, max_size=count).filter(any))
    if decades and draw(st.booleans()):
        powers = draw(st.lists(whole(0, DECADES), min_size=count, max_size=count))
        weights = [w * 10**power for w, power in zip(weights, powers, strict=True)]
    weights[0] *= 4 ** draw(whole(0, 5)) if tilted else 1
    alpha, law = 2.0 ** draw(whole(-1, 4)), draw(st.sampled_from(["one", "alpha/r", "rslora"]))
    steps = draw(whole(2 if gap else 1, STEPS))
    seed = draw(whole(0, MANY)) * (MANY + 1) + draw(whole(0, MANY))
    generator = torch.Generator().manual_seed(seed)

    def factors(r: int, scaling: float = 1.0, lora_A: Tensor | None = None) -> LoRAFactors:
        if gap and large:
            return factors_with_gaps(generator, d_out, d_in, r, scaling)
        while True:
            own = random_factors(generator, d_out, d_in, r, scaling, steps)
            own = own if lora_A is None else LoRAFactors(lora_A, own.lora_B, scaling)
            if not gap or lie_apart(own):
                return own

    previous = factors(levels[-1])
    held = [list(range(r)) for r in ranks]
    anywhere = positions and draw(whole(0, POSITIONS_IN - 1)) == POSITIONS_IN - 1
    if anywhere:
        held = [torch.randperm(levels[-1], generator=generator)[:r].tolist() for r in ranks]

    def update(own: list[int]) -> LoRAFactors:
        r = len(own)
        scaling = {"one": 1.0, "alpha/r": alpha / r, "rslora": alpha / r**0.5}[law]
        made = factors(r, scaling, previous.lora_A[own] if common_a else None)
        tilt = 2.0 ** draw(whole(-2, 2)) if tilted and not common_a else 1.0
        return LoRAFactors(made.lora_A * tilt, made.lora_B / tilt, scaling)

    updates = list(map(update, held))
    if not gap and draw(whole(0, SILENT_IN - 1)) == SILENT_IN - 1:
        a, b, scaling = updates[-1].lora_A, updates[-1].lora_B, updates[-1].scaling
        only_b = common_a or draw(st.booleans())
        a, b = (a, torch.zeros_like(b)) if only_b else (torch.zeros_like(a), b)
        updates[-1] = LoRAFactors(a, b, scaling)
    return Case(
        updates=tuple(updates),
        weights=tuple(map(float, weights)),
        rank_levels=levels,
        previous=previous,
        empty_partition=draw(st.sampled_from(["carry", "zero"])),
        seed=draw(whole(0, MANY)),
        positions=tuple(map(tuple, held)) if anywhere else None,
        earlier=draw(whole(0, MOST_EARLIER)) if earlier else 0,
    )


def suitable(properties: Properties, **options: Any) -> st.SearchStrategy[Case]:
    """Return the strategy of cases that a rule with these properties accepts.

    Args:
        properties: the rule's declarations.
        **options: options of `cases`. `positions` is on by default and `earlier` is off; both are
            limited to what the rule declares.
    """
    own = {
        "equal_ranks": properties.equal_ranks_only,
        "common_a": properties.common_a,
        "gap": properties.gap_needed,
    }
    met = {**options, **{name: value for name, value in own.items() if value}}
    met["positions"] = options.get("positions", True) and properties.positions is True
    met["earlier"] = options.get("earlier", False) and properties.stateless is not True
    return _cases(**met)


_cases = lru_cache(maxsize=None)(cases)
"""One strategy per set of options, so that drawn cases are found again."""


def random_factors(
    generator: torch.Generator,
    d_out: int,
    d_in: int,
    r: int,
    scaling: float = 1.0,
    steps: int = STEPS,
) -> LoRAFactors:
    """Return random float64 factors whose entries are multiples of 1/4, at most `steps` of them."""

    def entries(rows: int, columns: int) -> Tensor:
        drawn = torch.randint(-steps, steps + 1, (rows, columns), generator=generator)
        return drawn.double() / UNIT

    return LoRAFactors(entries(r, d_in), entries(d_out, r), scaling)


def factors_with_gaps(
    generator: torch.Generator, d_out: int, d_in: int, r: int, scaling: float = 1.0
) -> LoRAFactors:
    """Return random float64 factors with equally spaced singular values, in a random gauge."""

    def directions(d: int, q: int) -> Tensor:
        return torch.linalg.qr(torch.randn(d, q, generator=generator, dtype=torch.float64))[0]

    values = torch.arange(r, 0, -1, dtype=torch.float64)
    stretch = 0.5 + 1.5 * torch.rand(r, generator=generator, dtype=torch.float64)
    turn = directions(r, r)
    lora_b = (directions(d_out, r) * values) @ (turn * stretch)
    lora_a = (turn / stretch).mT @ directions(d_in, r).mT
    return LoRAFactors(lora_a, lora_b, scaling)
