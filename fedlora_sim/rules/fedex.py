"""FedEx-LoRA: average the factors, and merge the residual of the exact average into the base.

The adapter is `A = sum_k p_k [A_k; 0]`, `B = sum_k p_k [B_k, 0]`, with the scaling shared between
them. The residual `sum_k p_k s_k B_k A_k - B A` is merged into the frozen weights, so that adapter
and base together are the exact average. The next round dilutes only the adapter's part of a
direction, `W**2`; the rest, `W - W**2`, stays in the base.

Source: Singhal et al. 2024, arXiv 2410.09432, Sec. 3 (exact aggregation through a residual in the
frozen weight; its best low-rank approximation to save communication). The paper has equal ranks;
zero padding for unequal ranks is ours, as in `ZeroPad`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fedlora_sim.errors import check_positive_int
from fedlora_sim.rules.base import DataWeightedRule, Space
from fedlora_sim.rules.properties import Properties
from fedlora_sim.rules.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from fedlora_sim.lowrank import LowRankProduct


@register
@dataclass(frozen=True)
class FedEx(DataWeightedRule):
    """Data-weighted average of A and of B, with the residual merged into the base.

    Law: adapter and base together are linear in the updates and exact, and the multiplier is as
    declared, unless `residual_rank` truncates the residual.

    Args:
        residual_rank: rank of the best approximation of the residual; None keeps all of it.
    """

    residual_rank: int | None = None

    name: ClassVar[str] = "fedex"
    title: ClassVar[str] = "FedEx-LoRA"
    source: ClassVar[str] = "arXiv 2410.09432, Sec. 3"
    space: ClassVar[Space] = "factor"
    residual_in_base: ClassVar[bool] = True

    @property
    def properties(self) -> Properties:
        """Adapter and base together are linear and exact, unless the residual is truncated."""
        whole = self.residual_rank is None
        return replace(
            super().properties,
            transpose=True,
            linear=whole,
            exact=whole,
            best_approximation=False,
            rank_bound=False,
            energy_hull="whole" if whole else None,
            gauge="full" if whole else "none",
            partition_identity=False,
            equal_ranks_fedavg=False,
            low_rank_client="dilutes" if whole else None,
            continuous=True,
            multiplier=self.multiplier if whole else None,
        )

    def __post_init__(self) -> None:
        if self.residual_rank is not None:
            rank = check_positive_int("residual_rank", self.residual_rank)
            object.__setattr__(self, "residual_rank", rank)

    def multiplier(self, coverage: Tensor) -> Tensor:
        """Return `W`: `W**2` in the adapter and `W - W**2` in the base."""
        return coverage

    def compress(self, base: LowRankProduct) -> LowRankProduct:
        """Return the residual, truncated to `residual_rank`."""
        if self.residual_rank is None or self.residual_rank >= min(base.columns, *base.shape):
            return base
        from fedlora_sim.lora import best_factors
        from fedlora_sim.lowrank import LowRankProduct

        cut = best_factors(base, self.residual_rank)
        ones = cut.lora_A.new_ones(cut.rank)
        return LowRankProduct([(cut.lora_B, cut.lora_A)], ones)
