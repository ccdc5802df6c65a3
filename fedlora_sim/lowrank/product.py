"""`LowRankProduct`: a weighted sum of low-rank products that is not formed until somebody asks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora_sim.lazy import LazySequence
from fedlora_sim.lowrank.blocks import Blocks, dense_product, stack_left, stack_right
from fedlora_sim.lowrank.dense import SVD
from fedlora_sim.lowrank.dtypes import compute_dtype
from fedlora_sim.lowrank.in_range import at_full_scale, largest, solve_in_range
from fedlora_sim.lowrank.svd import blocks_singular_values, scaled_svd


@dataclass(frozen=True, eq=False)
class LowRankProduct:
    """`sum_k B_k diag(w_k) A_k`, kept as its blocks; its rank may exceed min(d_out, d_in).

    Args:
        blocks: pairs `B_k` (..., d_out, r_k), `A_k` (..., r_k, d_in); any sequence, also one that
            loads a pair when it is indexed.
        weights: weight of every column, (..., R) or (R,), R the sum of the r_k.
    """

    blocks: Blocks
    weights: Tensor

    @property
    def columns(self) -> int:
        """Columns R of all blocks together, which bound the rank."""
        return self.weights.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the product is computed in."""
        return compute_dtype(self.blocks[0][0].dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the product, (d_out, d_in)."""
        return self.blocks[0][0].shape[-2], self.blocks[0][1].shape[-1]

    @property
    def B(self) -> Tensor:
        """All weighted columns side by side, (..., d_out, R)."""
        return stack_left(self.blocks).to(self.dtype) * self.weights.to(self.dtype).unsqueeze(-2)

    @property
    def A(self) -> Tensor:
        """All rows one under the other, (..., R, d_in)."""
        return stack_right(self.blocks).to(self.dtype)

    def plus(self, B: Tensor, A: Tensor, weights: Tensor) -> LowRankProduct:
        """This product and `B diag(weights) A`.

        Args:
            B: (..., d_out, q).
            A: (..., q, d_in).
            weights: (..., q) or (q,).
        """
        batch = torch.broadcast_shapes(self.weights.shape[:-1], weights.shape[:-1])
        both = (w.to(self.weights.dtype).expand(*batch, -1) for w in (self.weights, weights))
        own, count = self.blocks, len(self.blocks)
        blocks = LazySequence(count + 1, lambda k: own[k] if k < count else (B, A))
        return LowRankProduct(blocks, torch.cat(list(both), dim=-1))

    @torch.no_grad()
    def dense(self) -> Tensor:
        """Return the product itself, (..., d_out, d_in), summed block by block.

        Raises:
            InputError: if its dtype does not hold an entry.
        """
        found, m = solve_in_range(
            self.blocks,
            self.weights,
            lambda blocks, weights: dense_product(blocks, weights, self.dtype),
            largest,
        )
        return at_full_scale(found, m, "largest entry of the product")

    def svd(self, r: int | None = None, method: str = "auto") -> SVD:
        """Return the leading `r` triplets (all of them when None), U, S and Vh; see `blocks_svd`.

        Raises:
            InputError: if its dtype does not hold a singular value; its factors it may hold, see
                `scaled_svd`.
        """
        u, s, vh, m = self.scaled_svd(r, method)
        return u, at_full_scale(s, m, "largest singular value of the product"), vh

    def scaled_svd(
        self, r: int | None = None, method: str = "auto"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the triplets and the power of two that S is to be multiplied with."""
        return scaled_svd(self.blocks, self.weights, self._wanted(r), method)

    def singular_values(self, r: int | None = None, method: str = "auto") -> Tensor:
        """Return the leading `r` singular values, (..., r), from the core: cheaper than `svd`.

        Raises:
            InputError: if its dtype does not hold one.
        """
        values, m = self._singular_values(r, method)
        return at_full_scale(values, m, "largest singular value of the product")

    def amplitudes(self, r: int | None = None) -> Tensor:
        """Return the leading `r` singular values in float64, which holds those of any float32."""
        values, m = self._singular_values(r, "auto")
        return at_full_scale(values.double(), m, "largest singular value of the product")

    @torch.no_grad()
    def _singular_values(self, r: int | None, method: str) -> tuple[Tensor, Tensor | None]:
        return solve_in_range(
            self.blocks,
            self.weights,
            lambda own, w: blocks_singular_values(own, w, self._wanted(r), method),
            lambda values: values.amax(-1),
        )

    def _wanted(self, r: int | None) -> int:
        return min(self.columns, *self.shape) if r is None else r
