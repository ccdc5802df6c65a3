"""FedAvg of zero-padded factors: average A and B separately, padding short clients with zeros.

`A = sum_k p_k [A_k; 0]`, `B = sum_k p_k [B_k, 0]`, `p_k = n_k / sum n`. Both factors of a direction
are diluted by its coverage, so its energy falls with the fourth power. The averaged factors are the
result, and clients receive their first r_k columns.

Source: FedIT (Zhang et al. 2023, arXiv 2305.05644) for the average of factors; HetLoRA (Cho et al.
2024, arXiv 2401.06432, Sec. 3.2) for zero padding and truncation, with data weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fedlora_sim.rules.base import DataWeightedRule, Space
from fedlora_sim.rules.properties import Properties, of_factor_average
from fedlora_sim.rules.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register(aliases=("fedit",))
@dataclass(frozen=True)
class ZeroPad(DataWeightedRule):
    """Data-weighted average of A and of B.

    Not exact: the product of averages has cross terms `B_k A_l` of different clients.
    """

    name: ClassVar[str] = "zero_pad"
    title: ClassVar[str] = "zero padding"
    source: ClassVar[str] = "arXiv 2305.05644; arXiv 2401.06432, Sec. 3.2"
    space: ClassVar[Space] = "factor"

    @property
    def properties(self) -> Properties:
        """An average of factors: neither linear nor exact, with dilution of both factors."""
        return replace(
            of_factor_average(super().properties),
            low_rank_client="dilutes",
            continuous=True,
        )

    def multiplier(self, coverage: Tensor) -> Tensor:
        """Return `W**2`: one factor for A and one for B."""
        return coverage.square()
