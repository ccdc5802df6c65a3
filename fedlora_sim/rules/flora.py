"""FLoRA: stack the clients' factors and merge the stack into the base every round.

`dW = [p_1 s_1 B_1, ..., p_K s_K B_K] [A_1; ...; A_K] = sum_k p_k s_k B_k A_k`: exact, of rank up to
the sum of the r_k. Every client merges the stack into the frozen weights and starts the next round
with a fresh adapter (A random, B zero). Coverage dilutes the *increment* of a direction, but what
is in the base is never diluted: there is no geometric decay.

Source: Wang et al. 2024, arXiv 2409.05976, Sec. 3 (stacking-based noise-free aggregation).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fedlora_sim.rules.base import DataWeightedRule, Space
from fedlora_sim.rules.properties import Properties, of_product_average
from fedlora_sim.rules.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class FLoRA(DataWeightedRule):
    """Exact weighted sum of the products, merged into the base.

    Law: linear in the updates, exact, and never truncated.
    """

    name: ClassVar[str] = "flora"
    title: ClassVar[str] = "FLoRA"
    source: ClassVar[str] = "arXiv 2409.05976, Sec. 3"
    space: ClassVar[Space] = "none"
    residual_in_base: ClassVar[bool] = True

    @property
    def properties(self) -> Properties:
        """Linear and exact, without a bound on the rank."""
        return replace(
            of_product_average(super().properties),
            best_approximation=False,
            rank_bound=False,
            equal_ranks_fedavg=False,
        )

    def multiplier(self, coverage: Tensor) -> Tensor:
        """Return `W`, the factor on the round's increment."""
        return coverage
