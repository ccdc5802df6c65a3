"""FFA-LoRA: A is drawn once, shared and frozen; clients train B and the server averages it.

`B = sum_k p_k s_k [B_k, 0]`. All clients share A; a client of rank r_k holds its first r_k rows.
The average of factors therefore equals the average of products. Directions are rank positions, not
singular directions, and averaging dilutes each one by its coverage.

Source: Sun et al. 2024, arXiv 2403.12313, Sec. 4. The paper has equal ranks; zero padding of B for
unequal ranks is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fedlora_sim.errors import expected
from fedlora_sim.rules.base import NO_STATE, DataWeightedRule, Finish, Space, State
from fedlora_sim.rules.properties import Properties, of_product_average
from fedlora_sim.rules.registry import register
from fedlora_sim.tolerances import relative

if TYPE_CHECKING:
    from torch import Tensor

    from fedlora_sim.lora import LoRAFactors
    from fedlora_sim.lowrank import LowRankProduct
    from fedlora_sim.rules.cohort import Aggregated, Cohort


@register
@dataclass(frozen=True)
class FFA(DataWeightedRule):
    """Data-weighted average of B; A is unchanged.

    Law: linear in the updates and exact. Updates whose shared rows of A differ are refused.
    """

    name: ClassVar[str] = "ffa"
    title: ClassVar[str] = "FFA-LoRA"
    source: ClassVar[str] = "arXiv 2403.12313, Sec. 4"
    space: ClassVar[Space] = "factor"
    frozen_a: ClassVar[bool] = True

    @property
    def properties(self) -> Properties:
        """Linear and exact for clients that share one frozen A; a gauge change would alter A."""
        usual = super().properties
        return replace(of_product_average(usual), transpose=usual.transpose, gauge=usual.gauge)

    @property
    def has_spectral_form(self) -> bool:
        """True: with a frozen A, an average of B is an average of amplitudes."""
        return True

    def multiplier(self, coverage: Tensor) -> Tensor:
        """Return `W`."""
        return coverage

    def aggregate(
        self,
        cohort: Cohort,
        previous: LoRAFactors | None = None,
        empty_partition: str = "carry",
        finish: Finish = lambda adapter: adapter,
        state: State = NO_STATE,
    ) -> Aggregated:
        """Aggregate one round; rows of A that no client carries come from `previous`.

        Without `previous` these rows are zero, and the server must restore them from its own A.
        """

        def with_all_rows(adapter: LoRAFactors) -> LoRAFactors:
            if previous is None:
                return finish(adapter)
            empty, sent = self._empty(cohort).unsqueeze(-1), previous.lora_A.to(cohort.dtype)
            _check_same("previous.lora_A", sent.where(~empty, 0.0), adapter.lora_A)
            return finish(replace(adapter, lora_A=sent.where(empty, adapter.lora_A)))

        return super().aggregate(cohort, previous, empty_partition, with_all_rows, state)

    def adapter(
        self,
        cohort: Cohort,
        shares: Tensor,
        exact: LowRankProduct,
        kept: LoRAFactors | None,
        mask: Tensor,
    ) -> LoRAFactors:
        """Return the averaged B with the common A, row by row from the first client that has it."""
        from fedlora_sim.rules.averages import average_factors

        carried = cohort.members & (cohort.weights > 0).unsqueeze(-1)
        first = carried & (carried.cumsum(-2) == 1)
        result = average_factors(cohort, shares, first.to(cohort.dtype), scaling_on_b=True)
        self._check_common(cohort, result.lora_A, carried)
        return result

    def _check_common(self, cohort: Cohort, common: Tensor, carried: Tensor) -> None:
        from fedlora_sim.rules.cohort import StackedUpdates

        if isinstance(cohort.updates, StackedUpdates):
            rows = carried.unsqueeze(-1)
            own, wanted = cohort.updates.factors.lora_A, common.unsqueeze(-3)
            _check_same("updates[...].lora_A", own.where(rows, 0.0), wanted.where(rows, 0.0))
            return
        for k in range(cohort.num_clients):
            held = cohort.positions[k]
            rows = carried[..., k, held].unsqueeze(-1)
            wanted = common[..., held, :].where(rows, 0.0)
            own = cohort.updates[k].lora_A.to(common.dtype)
            _check_same(f"updates[{k}].lora_A", own.where(rows, 0.0), wanted)
            del own


def _check_same(argument: str, own: Tensor, wanted: Tensor) -> None:
    """Refuse rows of A that differ between clients, layer by layer."""
    import torch

    from fedlora_sim.lowrank import largest

    # Divide by the largest entry, so that no square overflows or underflows.
    scale = largest(wanted).clamp_min(torch.finfo(wanted.dtype).tiny)[..., None, None]
    gap, size = (torch.linalg.matrix_norm(x / scale) for x in (own - wanted, wanted))
    if bool((gap > relative("reduction", wanted.dtype) * size).any()):
        apart = float((gap / size.clamp_min(torch.finfo(size.dtype).tiny)).max())
        given = f"A that differs by {apart:.2g} of its norm from the first client's"
        raise expected(argument, given, "the same A for all clients: FFA-LoRA freezes it")
