"""The safe path: Householder QR of both stacks, then the SVD of their small core."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora_sim.lowrank.blocks import Blocks, stack_left, stack_right
from fedlora_sim.lowrank.dense import SVD, check_svd


def qr_core(blocks: Blocks, weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """`B W = Q_B R_B` and `A^T = Q_A R_A`: Q_B, the core `R_B R_A^T` and Q_A."""
    q_b, r_b = torch.linalg.qr(stack_left(blocks).to(dtype) * weights.to(dtype).unsqueeze(-2))
    q_a, r_a = torch.linalg.qr(stack_right(blocks).to(dtype).mT)
    return q_b, r_b @ r_a.mT, q_a


def qr_svd(blocks: Blocks, weights: Tensor, r: int, dtype: torch.dtype) -> SVD:
    """Leading `r` triplets of `B W A`, backward stable whatever the conditioning.

    O((d_out + d_in) R^2), twice to three times the work of the Gram path.
    """
    q_b, core, q_a = qr_core(blocks, weights, dtype)
    u, s, vh = torch.linalg.svd(check_svd(core), full_matrices=False)
    return q_b @ u[..., :r], s[..., :r], vh[..., :r, :] @ q_a.mT
