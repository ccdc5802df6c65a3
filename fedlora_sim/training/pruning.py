"""HetLoRA's rank self-pruning: a client gives up the rank components that it does not need.

The tail of a client of rank r is its components from `ceil(decay r)` on. Its size, the product
`||B_tail||_F ||A_tail||_F` summed over the adapted layers, is penalised in the local loss; where
local training leaves it smaller than it was, the client goes on with rank `ceil(decay r)`.

Source: Cho et al. 2024, arXiv 2401.06432, Sec. 3.2 (rank self-pruning). The paper speaks of one
layer; the sum over layers, which keeps one rank per client, is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedlora_sim.training.stacked import Adapters


def pruned_rank(rank: int, decay: float) -> int:
    """Rank that is left when the tail goes, at least 1."""
    return max(1, math.ceil(decay * rank))


@dataclass(frozen=True, eq=False)
class TailPenalty:
    """The tails of a cohort.

    Args:
        mask: which padded rank components are a client's tail, (K, r).
        factor: of the penalty.
    """

    mask: Tensor
    factor: float

    @classmethod
    def of(cls, ranks: Sequence[int], decay: float, factor: float, like: Tensor) -> TailPenalty:
        """Tails of clients of these ranks, in the dtype and on the device of `like`."""
        index = torch.arange(max(ranks), device=like.device)
        own = torch.tensor(ranks, device=like.device).unsqueeze(1)
        start = torch.tensor([pruned_rank(r, decay) for r in ranks], device=like.device)
        return cls(((index >= start.unsqueeze(1)) & (index < own)).to(like.dtype), factor)

    def take(self, order: np.ndarray) -> TailPenalty:
        """The tails of the clients `order`, in that order."""
        return replace(self, mask=self.mask[torch.as_tensor(order)])

    def size(self, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Size of every client's tail, (K',), given stacked A and B of the first K' clients."""
        mask = self.mask[: len(layers[0][0])]
        total = mask.new_zeros(len(mask))
        for lora_a, lora_b in layers:
            norm_a = torch.linalg.vector_norm(lora_a * mask.unsqueeze(2), dim=(1, 2))
            norm_b = torch.linalg.vector_norm(lora_b * mask.unsqueeze(1), dim=(1, 2))
            total = total + norm_a * norm_b
        return total

    def shrank(self, before: Adapters, after: Adapters) -> list[bool]:
        """Whether every client's tail is smaller after local training than before."""
        sizes = [self.size(list(adapters.values())) for adapters in (before, after)]
        return (sizes[1] < sizes[0]).tolist()
