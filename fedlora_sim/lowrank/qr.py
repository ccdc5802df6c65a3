"""The safe path: Householder QR of both stacks, then the SVD of their small core."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora_sim.lowrank.blocks import Blocks, stack_left, stack_right
from fedlora_sim.lowrank.dense import SVD


def qr_svd(blocks: Blocks, weights: Tensor, r: int, dtype: torch.dtype) -> SVD:
    """Leading `r` triplets: `B W = Q_B R_B`, `A^T = Q_A R_A`, SVD of the core `R_B R_A^T`.

    Backward stable whatever the conditioning, in O((d_out + d_in) R^2).
    """
    q_b, r_b = torch.linalg.qr(stack_left(blocks).to(dtype) * weights.to(dtype).unsqueeze(-2))
    q_a, r_a = torch.linalg.qr(stack_right(blocks).to(dtype).mT)
    u, s, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    return q_b @ u[..., :r], s[..., :r], vh[..., :r, :] @ q_a.mT
