"""HetLoRA: zero-padded factors, averaged with weights that grow with the norm of the update.

`A = sum_k w_k [A_k; 0]`, `B = sum_k w_k [B_k, 0]`, `w_k = ||dW_k||_F / sum_l ||dW_l||_F`: the
"sparsity-weighted" average. The clients' sample counts do not enter. As the directions of the
high-rank clients drain, all norms become those of the shared directions and the weights uniform.
A client drawn twice in a round counts once. The norms are those of one layer, as everything in
`aggregate` is.
Its other half, clients that prune their own rank while they train, is an option of local training
(`Scenario.pruning_decay`).

Source: Cho et al. 2024, arXiv 2401.06432, Sec. 3.2 and Fig. 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedlora_sim.rules.base import AggregationRule, Space, data_shares
from fedlora_sim.rules.properties import Properties, of_factor_average
from fedlora_sim.rules.registry import register


@register
@dataclass(frozen=True)
class HetLoRA(AggregationRule):
    """Norm-weighted average of A and of B; not exact, as `zero_pad`.

    Args:
        data_weighted: multiply the norms by the sample counts. The paper does not, so that a
            client's samples decide only whether it takes part.
    """

    data_weighted: bool = False

    name: ClassVar[str] = "hetlora"
    source: ClassVar[str] = "arXiv 2401.06432, Sec. 3.2"
    space: ClassVar[Space] = "factor"
    weights_from_norms: ClassVar[bool] = True

    @property
    def properties(self) -> Properties:
        """As `ZeroPad`, but that samples count for nothing unless `data_weighted`."""
        return replace(
            of_factor_average(super().properties),
            weight_repetition=self.data_weighted,
            low_rank_client="dilutes",
            coverage="weights_and_norms" if self.data_weighted else "norms",
        )

    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        """`||dW_k||_F` over that of the cohort; equal weights where every update is zero."""
        assert norms is not None  # weights_from_norms
        taking_part = weights if self.data_weighted else (weights > 0).to(weights.dtype)
        own = taking_part * norms
        none_moved = own.sum(-1, keepdim=True) == 0
        return data_shares(torch.where(none_moved, taking_part, own), members)

    def multiplier(self, coverage: Tensor) -> Tensor:
        """`W~**2`, with W~ the norm share of the contributors."""
        return coverage.square()
