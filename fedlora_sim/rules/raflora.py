"""raFLoRA: rank-partitioned aggregation.

The distinct client ranks of the federation partition the rank axis. Partition h, the rank indices
`(l_{h-1}, l_h]`, is averaged over the clients that carry it, `C_h = {k : r_k >= l_h}`:

    dW_h = sum_{k in S & C_h} (n_k / N_h) s_k B_k[:, h] A_k[h, :],    N_h = sum_{k in S & C_h} n_k.

The partitions are summed, decomposed by SVD and redistributed by truncation. A partition without
contributors in the cohort is set to zero (`zero`), kept from the last global update (`carry`) or
refused (`error`).

RB-LoRA weighs every rank-one component among the clients that have it, a partition per rank: the
same weights, because the carriers of a partition carry all of its ranks.

Source: Wu et al., arXiv 2602.13486, Sec. 5, Algorithm 1 and Eq. 8. RB-LoRA: Findings of EACL
2026.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fedlora_sim.rules.base import AggregationRule, contributor_shares
from fedlora_sim.rules.properties import Properties
from fedlora_sim.rules.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from fedlora_sim.rules.cohort import Cohort


@register(aliases=("rb_lora",))
@dataclass(frozen=True)
class RaFLoRA(AggregationRule):
    """Average over contributors, partition by partition.

    Law: partition h equals that of product-space FedAvg divided by `W_h(S)`; with equal ranks the
    two rules are the same.

    Args:
        canonicalize: bring every client's update to its SVD gauge before it is partitioned. The
            same update can be written as `B G, G^{-1} A` with any invertible G, and G decides which
            part of the update is in which partition. By default the factors are used as trained;
            with this option the result does not depend on G. It requires SVD allocation, because
            rank index i must be the i-th strongest direction.
    """

    canonicalize: bool = False

    name: ClassVar[str] = "raflora"
    title: ClassVar[str] = "raFLoRA"
    source: ClassVar[str] = "arXiv 2602.13486, Sec. 5, Algorithm 1, Eq. 8"
    has_empty_partition_policy: ClassVar[bool] = True

    @property
    def display_name(self) -> str:
        """`raFLoRA`; the canonical form is named as such."""
        return f"{self.title}, canonical" if self.canonicalize else self.title

    @property
    def properties(self) -> Properties:
        """FedAvg's laws partition by partition; in any gauge with `canonicalize`."""
        plain = not self.canonicalize
        return replace(
            super().properties,
            transpose=True,
            linear=plain,
            exact=False,
            best_approximation=False,
            rank_bound=True,
            energy_hull="partition" if plain else None,
            gauge="partition" if plain else "full",
            partition_identity=plain or None,
            equal_ranks_fedavg=True,
            low_rank_client="keeps",
            continuous=True,
        )

    @property
    def has_spectral_form(self) -> bool:
        """False with `canonicalize`, which decides the partition of a direction."""
        return not self.canonicalize

    @property
    def needs_svd_allocation(self) -> bool:
        """True with `canonicalize`."""
        return self.canonicalize

    def prepare(self, cohort: Cohort) -> Cohort:
        """Return the cohort unchanged, or in its SVD gauge with `canonicalize`."""
        return cohort.canonical() if self.canonicalize else cohort

    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        """Return `n_k / N_h` over the cohort's contributors to the direction's partition."""
        return contributor_shares(weights, members)

    def multiplier(self, coverage: Tensor) -> Tensor:
        """Return 1 where there is a contributor."""
        return (coverage > 0).to(coverage.dtype)
