"""RBLA: average A and B separately, each entry over the clients that hold it.

`A[i] = sum_{k: r_k > i} n_k A_k[i] / sum_{k: r_k > i} n_k`, and likewise the columns of B:
raFLoRA's idea in factor space. Nothing is diluted, but the product of averages is not the average
of products: it contains cross terms `B_k A_l` of different clients.

FediLoRA and PreLort average in the same way. Replication fills the missing rows and columns of a
client with the mean of those that have them, and then averages over all clients: the same mean.

Source: Chen et al. 2024, arXiv 2408.08699 (rank-based LoRA aggregation). FediLoRA: arXiv
2509.06984. PreLort: arXiv 2606.15963. Replication: arXiv 2406.17477.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fedlora_sim.rules.base import AggregationRule, Space, contributor_shares
from fedlora_sim.rules.properties import Properties, of_factor_average
from fedlora_sim.rules.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register(aliases=("fedilora", "prelort", "replicate"))
@dataclass(frozen=True)
class RBLA(AggregationRule):
    """Average of A and of B, each entry over the clients that hold it.

    Law: with equal ranks it is `ZeroPad`.
    """

    name: ClassVar[str] = "rbla"
    title: ClassVar[str] = "RBLA"
    source: ClassVar[str] = "arXiv 2408.08699"
    space: ClassVar[Space] = "factor"
    has_empty_partition_policy: ClassVar[bool] = True

    @property
    def properties(self) -> Properties:
        """An average of factors: neither linear nor exact, but without dilution."""
        return replace(
            of_factor_average(super().properties),
            low_rank_client="keeps",
            continuous=True,
        )

    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        """Return `n_k` divided by the sum over all clients that hold the entry."""
        return contributor_shares(weights, members)

    def multiplier(self, coverage: Tensor) -> Tensor:
        """Return 1 where there is a contributor."""
        return (coverage > 0).to(coverage.dtype)
