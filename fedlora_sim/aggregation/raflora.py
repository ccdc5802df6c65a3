"""raFLoRA: rank-partitioned aggregation.

The rank axis is cut at the federation's distinct client ranks. Partition h, the rank indices
`(l_{h-1}, l_h]`, is averaged over the clients that carry it, `C_h = {k : r_k >= l_h}`:

    dW_h = sum_{k in S & C_h} (n_k / N_h) s_k B_k[:, h] A_k[h, :],    N_h = sum_{k in S & C_h} n_k.

The partitions are summed, decomposed by SVD and redistributed by truncation. A partition without
contributors in the cohort is lost (`zero`), kept from the last global update (`carry`) or refused
(`error`).

Source: Wu et al., arXiv 2602.13486, Sec. 5, Algorithm 1 and Eq. 8.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedlora_sim.aggregation.registry import register
from fedlora_sim.aggregation.rule import AggregationRule, Space


@register
class RaFLoRA(AggregationRule):
    """Average over contributors, partition by partition.

    Law: partition h equals that of product-space FedAvg divided by `W_h(S)`; with equal ranks the
    two rules are the same.
    """

    name = "raflora"
    source = "arXiv 2602.13486, Sec. 5, Algorithm 1, Eq. 8"
    space: ClassVar[Space] = "product"

    @property
    def has_empty_partition_policy(self) -> bool:
        """Yes: `empty_partition`."""
        return True

    def direction_weights(self, weights: Tensor, members: Tensor) -> Tensor:
        """`n_k / N_h` over the cohort's contributors to the direction's partition."""
        contributing = weights.unsqueeze(-1) * members
        total = contributing.sum(-2, keepdim=True)
        return contributing / torch.where(total > 0, total, 1.0)

    def multiplier(self, coverage: Tensor) -> Tensor:
        """1 wherever somebody contributes."""
        return (coverage > 0).to(coverage.dtype)
