"""A low-rank product as blocks of columns, one block per client, and what is done block by block.

`sum_k B_k diag(w_k) A_k`: the clients' factors stay where they are; their column weights are
applied in the small core, so that no weighted copy of a factor is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Blocks = Sequence[tuple[Tensor, Tensor]]
"""Pairs `B_k` (..., d_out, r_k) and `A_k` (..., r_k, d_in) of one dtype and device."""


def ranks_of(blocks: Blocks) -> list[int]:
    """Columns of every block."""
    return [B.shape[-1] for B, _ in blocks]


def stack_left(blocks: Blocks) -> Tensor:
    """All columns side by side, (..., d_out, R)."""
    return blocks[0][0] if len(blocks) == 1 else torch.cat([B for B, _ in blocks], dim=-1)


def stack_right(blocks: Blocks) -> Tensor:
    """All rows one under the other, (..., R, d_in)."""
    return blocks[0][1] if len(blocks) == 1 else torch.cat([A for _, A in blocks], dim=-2)


def project_left(blocks: Blocks, coefficients: Tensor) -> Tensor:
    """`B C` for coefficients (..., R, r), in their dtype: (..., d_out, r)."""
    parts = coefficients.split(ranks_of(blocks), dim=-2)
    return _sum_of_products([(B.to(c.dtype), c) for (B, _), c in zip(blocks, parts, strict=True)])


def project_right(blocks: Blocks, coefficients: Tensor) -> Tensor:
    """`C^T A` for coefficients (..., R, r), in their dtype: (..., r, d_in)."""
    parts = coefficients.split(ranks_of(blocks), dim=-2)
    return _sum_of_products(
        [(c.mT, A.to(c.dtype)) for (_, A), c in zip(blocks, parts, strict=True)]
    )


def dense_product(blocks: Blocks, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """`sum_k B_k diag(w_k) A_k`, (..., d_out, d_in), one block in memory at a time."""
    total, start = None, 0
    for k in range(len(blocks)):  # by index: a loop variable would hold one block too many
        total, start = _add_block(total, blocks[k], weights, start, dtype)
    assert total is not None  # a product has at least one block
    return total


def _add_block(
    total: Tensor | None,
    block: tuple[Tensor, Tensor],
    weights: Tensor,
    start: int,
    dtype: torch.dtype,
) -> tuple[Tensor, int]:
    B, A = block
    end = start + B.shape[-1]
    w = weights[..., start:end].to(dtype)
    return _add_product(total, B.to(dtype) * w.unsqueeze(-2), A.to(dtype)), end


def _sum_of_products(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    total = pairs[0][0] @ pairs[0][1]
    for left, right in pairs[1:]:
        total = _add_product(total, left, right)
    return total


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """`total + left @ right`, in place where torch has it fused."""
    if total is None:
        return left @ right
    if total.ndim == 2:
        return total.addmm_(left, right)
    return total.add_(left @ right)
