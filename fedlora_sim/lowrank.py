"""Linear algebra of low-rank products: the SVD of `B @ A` from a small core, never from `B @ A`."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half-precision inputs are computed in float32; float32 and float64 in themselves."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def low_rank_svd(B: Tensor, A: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading `r` singular triplets of `B @ A`.

    `B = Q_B R_B` and `A^T = Q_A R_A` (Householder QR) leave the R x R core `R_B R_A^T`, whose SVD
    lifts to that of the product: O((d_out + d_in) R^2) instead of O(d_out d_in min(d_out, d_in)).
    When R is not below min(d_out, d_in), the product itself is the smaller matrix and is formed.

    Args:
        B: (..., d_out, R).
        A: (..., R, d_in).
        r: triplets wanted; capped at min(R, d_out, d_in).

    Returns:
        U (..., d_out, r), S (..., r) in descending order and Vh (..., r, d_in), the sign of each
        pair fixed so that the same product gives the same vectors.
    """
    dtype, (B, A) = B.dtype, (B.to(compute_dtype(B.dtype)), A.to(compute_dtype(A.dtype)))
    if B.shape[-1] >= min(B.shape[-2], A.shape[-1]):
        u, s, vh = torch.linalg.svd(B @ A, full_matrices=False)
    else:
        q_b, r_b = torch.linalg.qr(B)
        q_a, r_a = torch.linalg.qr(A.mT)
        u, s, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
        u, vh = q_b @ u[..., :r], vh[..., :r, :] @ q_a.mT
    u, s, vh = fix_signs(u[..., :r], s[..., :r], vh[..., :r, :])
    return u.to(dtype), s.to(dtype), vh.to(dtype)


def sign_fixed_svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of a dense matrix with the signs of `low_rank_svd`."""
    u, s, vh = fix_signs(*torch.linalg.svd(W.to(compute_dtype(W.dtype)), full_matrices=False))
    return u.to(W.dtype), s.to(W.dtype), vh.to(W.dtype)


def fix_signs(u: Tensor, s: Tensor, vh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make the entry of largest magnitude of every left singular vector positive.

    An SVD fixes each pair (u, v) up to a common sign; optimisers and noise act on the factors, so
    a sign left to the library would make a run depend on the machine.
    """
    peak = u.abs().argmax(dim=-2, keepdim=True)
    sign = torch.where(u.gather(-2, peak) < 0, -1.0, 1.0).to(u.dtype)
    return u * sign, s, vh * sign.mT


def pad_last(x: Tensor, size: int) -> Tensor:
    """Append zeros to the last dimension up to `size`."""
    return torch.nn.functional.pad(x, (0, size - x.shape[-1]))
