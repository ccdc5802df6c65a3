"""Hypothesis strategies for cohorts: public, and to be composed with one's own.

Hypothesis is imported with this module, which nothing else imports before a check runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fedlora_sim.aggregation import Properties
from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.spectra import lie_apart
from fedlora_sim.factors import LoRAFactors

UNIT, STEPS = 4, 8
"""Entries of factors are whole multiples of 1/4 up to 2: short to paste, exact in every dtype."""
MOST_CLIENTS, LARGEST = 5, 7
MANY = 99
"""Hypothesis mixes larger numbers that it reads in the modules it finds loaded with those it draws:
below a hundred the same seed gives the same cases wherever it is run."""


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
) -> Case:
    """Rounds of one to five clients: unequal ranks, levels that nobody has, any scaling.

    Half of the layers are square, and in a quarter of the rounds nobody has the highest level.

    Args:
        draw: Hypothesis's own.
        full_rank: the highest level is min(d_in, d_out), so that no rule cuts anything off.
        min_clients: smallest cohort.
        min_levels: fewest rank levels.
        equal_ranks: all clients have the highest rank, the only level.
        common_a: clients share the rows of one A, that of the last adapter.
        gap: singular values of every update lie apart, see `tolerances.SPECTRAL_GAP`.
        tilted: A is up to four times as long or as short, and B as short or long; and the first
            client may outweigh the others.
    """
    whole = st.integers
    d_out, d_in = draw(whole(max(2, min_levels), LARGEST)), draw(whole(max(2, min_levels), LARGEST))
    d_in = d_out if draw(st.booleans()) else d_in  # where A and B cannot be told apart by shape
    limit = min(d_in, d_out)
    many = min(draw(whole(min_levels, max(3, min_levels))), limit)
    levels = draw(st.sets(whole(1, limit), min_size=many, max_size=many))
    if full_rank:
        levels = {*sorted(levels)[: -1 if len(levels) > 1 else None], limit}
    levels = tuple(sorted(levels))
    levels = levels[-1:] if equal_ranks else levels
    present = levels[:-1] if len(levels) > 1 and draw(whole(0, 3)) == 3 else levels
    ranks = draw(st.lists(st.sampled_from(present), min_size=min_clients, max_size=MOST_CLIENTS))
    weights = draw(st.lists(whole(0, 9), min_size=len(ranks), max_size=len(ranks)).filter(any))
    weights[0] *= 4 ** draw(whole(0, 5)) if tilted else 1
    alpha, law = 2.0 ** draw(whole(-1, 4)), draw(st.sampled_from(["one", "alpha/r", "rslora"]))
    steps = draw(whole(2 if gap else 1, STEPS))
    seed = draw(whole(0, MANY)) * (MANY + 1) + draw(whole(0, MANY))
    generator = torch.Generator().manual_seed(seed)

    def factors(r: int, scaling: float = 1.0, lora_A: Tensor | None = None) -> LoRAFactors:
        while True:
            own = random_factors(generator, d_out, d_in, r, scaling, steps)
            own = own if lora_A is None else LoRAFactors(lora_A, own.lora_B, scaling)
            if not gap or lie_apart(own):
                return own

    previous = factors(levels[-1])

    def update(r: int) -> LoRAFactors:
        scaling = {"one": 1.0, "alpha/r": alpha / r, "rslora": alpha / r**0.5}[law]
        own = factors(r, scaling, previous.lora_A[:r] if common_a else None)
        tilt = 2.0 ** draw(whole(-2, 2)) if tilted and not common_a else 1.0
        return LoRAFactors(own.lora_A * tilt, own.lora_B / tilt, scaling)

    return Case(
        updates=tuple(map(update, ranks)),
        weights=tuple(map(float, weights)),
        rank_levels=levels,
        previous=previous,
        empty_partition=draw(st.sampled_from(["carry", "zero"])),
        seed=draw(whole(0, MANY)),
    )


def suitable(properties: Properties, **options: Any) -> st.SearchStrategy[Case]:
    """Cases that a rule of these properties can meet.

    Args:
        properties: what the rule declares.
        **options: of `cases`.
    """
    own = {
        "equal_ranks": properties.equal_ranks_only,
        "common_a": properties.common_a,
        "gap": properties.gap_needed,
    }
    return _cases(**{**options, **{name: value for name, value in own.items() if value}})


_cases = lru_cache(maxsize=None)(cases)
"""One strategy for the same options, by which cases that were drawn are found again."""


def random_factors(
    generator: torch.Generator,
    d_out: int,
    d_in: int,
    r: int,
    scaling: float = 1.0,
    steps: int = STEPS,
) -> LoRAFactors:
    """Random factors, float64; entries are multiples of 1/4 up to `steps` of them."""

    def entries(rows: int, columns: int) -> Tensor:
        drawn = torch.randint(-steps, steps + 1, (rows, columns), generator=generator)
        return drawn.double() / UNIT

    return LoRAFactors(entries(r, d_in), entries(d_out, r), scaling)
