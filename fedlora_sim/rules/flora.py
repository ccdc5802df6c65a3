"""FLoRA: the clients' factors are stacked, and the stack is merged into the base every round.

`dW = [p_1 s_1 B_1, ..., p_K s_K B_K] [A_1; ...; A_K] = sum_k p_k s_k B_k A_k`: exact, of rank up to
the sum of the r_k. Everybody receives the stack, merges it into the frozen weights and starts the
next round with a fresh adapter (A random, B zero). A direction's *increment* is diluted by its
coverage, but what was gained stays in the base undiluted: no geometric decay.

Source: Wang et al. 2024, arXiv 2409.05976, Sec. 3 (stacking-based noise-free aggregation).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fedlora_sim.rules.base import DataWeightedRule, Space
from fedlora_sim.rules.properties import Properties
from fedlora_sim.rules.registry import register


@register
@dataclass(frozen=True)
class FLoRA(DataWeightedRule):
    """Exact weighted sum of the products, all of it into the base.

    Law: linear in the updates, exact, and never truncated.
    """

    name: ClassVar[str] = "flora"
    source: ClassVar[str] = "arXiv 2409.05976, Sec. 3"
    space: ClassVar[Space] = "none"
    residual_in_base: ClassVar[bool] = True

    @property
    def properties(self) -> Properties:
        """Linear and exact, of whatever rank."""
        return replace(
            super().properties,
            transpose=True,
            linear=True,
            exact=True,
            best_approximation=False,
            rank_bound=False,
            energy_hull="whole",
            gauge="full",
            partition_identity=False,
            equal_ranks_fedavg=False,
            low_rank_client="dilutes",
            continuous=True,
        )

    def multiplier(self, coverage: Tensor) -> Tensor:
        """`W`, on the round's increment."""
        return coverage
