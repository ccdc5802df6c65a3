"""FedAvg in product space with SVD redistribution: the rank-agnostic baseline, FlexLoRA.

`dW = sum_k p_k s_k B_k A_k`, `p_k = n_k / sum n`, then the best rank-r_max approximation, of which
each client receives the first r_k directions. Each direction is averaged over all clients,
including those whose rank is too low to carry it, so that every round multiplies its amplitude by
its coverage.

HLoRA splits the same approximation as `B = U`, `A = S V^T`, and ILoRA finds it by a QR of the
stacked factors: other factors, the same update.

Source: FlexLoRA (Bai et al. 2024, arXiv 2402.11505, Sec. 3); the rank-agnostic baseline of Wu et
al., arXiv 2602.13486, Sec. 4. HLoRA: arXiv 2503.00813. ILoRA: arXiv 2511.16069.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedlora_sim.rules.base import DataWeightedRule
from fedlora_sim.rules.properties import Properties, of_product_average
from fedlora_sim.rules.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register(aliases=("flexlora", "hlora", "ilora"))
@dataclass(frozen=True)
class FedAvg(DataWeightedRule):
    """Data-weighted average of the products.

    Law: linear in the updates, and exact before truncation.
    """

    name: ClassVar[str] = "fedavg"
    title: ClassVar[str] = "FedAvg"
    source: ClassVar[str] = "arXiv 2402.11505, Sec. 3; arXiv 2602.13486, Sec. 4"

    @property
    def properties(self) -> Properties:
        """Linear, exact before truncation, and independent of the factorization of an update."""
        return of_product_average(super().properties)

    def multiplier(self, coverage: Tensor) -> Tensor:
        """Return `W`."""
        return coverage
