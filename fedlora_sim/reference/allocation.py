"""Which directions a client receives, by sorting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlora_sim.scenario import Scenario


def held_reference(
    scenario: Scenario, rank: int, random: ArrayLike, importance: ArrayLike
) -> list[int]:
    """Rank indices of one client in one round, ascending.

    Args:
        scenario: its `allocation` decides which scores count.
        rank: how many the client receives.
        random: its uniform scores, (r_max,).
        importance: how much every direction matters to it, (r_max,).
    """
    if scenario.allocation == "svd":
        return list(range(rank))
    given = random if scenario.allocation == "random" else importance
    scores: Sequence[float] | NDArray[np.float64] = np.asarray(given, dtype=np.float64)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(order[:rank])
