"""What a round leaves behind: the adapter that clients get, and what the base absorbs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedlora_sim.errors import check_positive_int, expected
from fedlora_sim.lora import LoRAFactors, best_factors
from fedlora_sim.lowrank import LowRankProduct, pad_last


@dataclass(frozen=True, eq=False)
class Aggregated:
    """The server's result: `dW = adapter + base`.

    Args:
        adapter: the global adapter, rank r_max: what clients are allocated their factors from.
        base: an exact correction that the rule merges into the frozen weights, where every client
            has the whole of it from then on; None for rules that have none. It holds the clients'
            factors themselves, not copies: what changes them in place changes it.
        exact: the whole update, where the rule knows it as one product: without the columns of the
            adapter, which the base takes back.
        state: what the rule wants to be handed next round, by name; empty for most.

    A component of the adapter that is lost has both factors zero, where no gradient leads out: who
    sends the adapter to clients gives such components (`LoRAFactors.lost_columns`) a fresh A.
    """

    adapter: LoRAFactors
    base: LowRankProduct | None = None
    exact: LowRankProduct | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def product(self) -> LowRankProduct:
        """Adapter and base correction as one low-rank product, not formed."""
        if self.exact is not None:
            return self.exact
        if self.base is None:
            return self.adapter.product
        adapter = self.adapter.to(self.base.dtype)
        return self.base.plus(adapter.lora_B, adapter.lora_A, adapter.product.weights)

    def delta(self) -> Tensor:
        """The whole update, dense, (..., d_out, d_in)."""
        return self.adapter.delta() if self.base is None else self.product.dense()

    def total(self, r: int | None = None) -> LoRAFactors:
        """The whole update as one adapter.

        Args:
            r: rank; the best approximation of that rank is returned, padded with zeros where the
                update has fewer columns. When None the update is exact: the adapter as it is where
                there is no base correction, else of rank min(R, d_out, d_in) with R all columns,
                in SVD gauge and scaling 1.

        Returns:
            Factors in the adapter's dtype.

        Raises:
            ValueError: if r is not a whole number of at least 1 or exceeds min(d_out, d_in).
        """
        if r is None and self.base is None:
            return self.adapter
        limit = min(self.adapter.d_out, self.adapter.d_in)
        if r is not None and check_positive_int("r", r) > limit:
            raise expected("r", r, f"at most min(d_out, d_in) = {limit}")
        return best_factors(self.product, r).to(self.adapter.dtype)

    def singular_values(self) -> Tensor:
        """Leading r_max singular values of the whole update, (..., r_max), descending."""
        return pad_last(self.product.singular_values(self.adapter.rank), self.adapter.rank)
