"""HetLoRA: average zero-padded factors with weights proportional to the norms of the updates.

`A = sum_k w_k [A_k; 0]`, `B = sum_k w_k [B_k, 0]`, `w_k = ||dW_k||_F / sum_l ||dW_l||_F`: the
"sparsity-weighted" average. Sample counts do not enter. While the directions of the high-rank
clients vanish, all norms approach those of the shared directions and the weights become uniform. A
client drawn twice in a round counts once. Norms are computed per layer.

HetLoRA's second part, rank pruning by the clients during training, is an option of local training
(`Scenario.pruning_decay`).

Source: Cho et al. 2024, arXiv 2401.06432, Sec. 3.2 and Fig. 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fedlora_sim.rules.base import AggregationRule, Space, data_shares
from fedlora_sim.rules.properties import Properties, counted_weights, of_factor_average
from fedlora_sim.rules.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class HetLoRA(AggregationRule):
    """Norm-weighted average of A and of B; not exact, as `zero_pad`.

    Args:
        data_weighted: multiply the norms by the sample counts. In the paper the sample counts only
            decide whether a client takes part.
    """

    data_weighted: bool = False

    name: ClassVar[str] = "hetlora"
    title: ClassVar[str] = "HetLoRA"
    source: ClassVar[str] = "arXiv 2401.06432, Sec. 3.2"
    space: ClassVar[Space] = "factor"
    weights_from_norms: ClassVar[bool] = True

    @property
    def properties(self) -> Properties:
        """As `ZeroPad`, but sample counts have no effect unless `data_weighted`."""
        return replace(
            of_factor_average(super().properties),
            weight_repetition=self.data_weighted,
            low_rank_client="dilutes",
            coverage="weights_and_norms" if self.data_weighted else "norms",
        )

    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        """Return each client's share of the cohort's norms `||dW_k||_F`; equal if all are zero."""
        assert norms is not None  # weights_from_norms
        return data_shares(counted_weights(self.properties.coverage, weights, norms), members)

    def multiplier(self, coverage: Tensor) -> Tensor:
        """Return `W~**2`, with W~ the norm share of the contributors."""
        return coverage.square()
