"""The SVD of a dense matrix, with the sign of every pair of singular vectors fixed."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora_sim.lowrank.dtypes import compute_dtype

SVD = tuple[Tensor, Tensor, Tensor]
"""U (..., d_out, r), S (..., r) in descending order and Vh (..., r, d_in)."""


def check_svd(W: Tensor) -> Tensor:
    """The matrix, if all of it is finite: LAPACK writes its own messages about others.

    Raises:
        LinAlgError: if it is not.
    """
    if not bool(torch.isfinite(torch.linalg.vector_norm(W, float("inf"), (-2, -1))).all()):
        raise torch.linalg.LinAlgError("a matrix with entries that are not finite has no SVD")
    return W


@torch.no_grad()
def sign_fixed_svd(W: Tensor) -> SVD:
    """Thin SVD of a dense matrix with the signs of `low_rank_svd`."""
    u, s, vh = fix_signs(*torch.linalg.svd(W.to(compute_dtype(W.dtype)), full_matrices=False))
    return u.to(W.dtype), s.to(W.dtype), vh.to(W.dtype)


def fix_signs(u: Tensor, s: Tensor, vh: Tensor) -> SVD:
    """Make the entry of largest magnitude of every left singular vector positive, in place.

    An SVD fixes each pair (u, v) up to a common sign; optimisers and noise act on the factors, so
    a sign left to the library would make a run depend on the machine.
    """
    # The larger of the two extremes, without the copy that abs() would make.
    negative = -u.amin(dim=-2, keepdim=True) > u.amax(dim=-2, keepdim=True)
    sign = torch.where(negative, -1.0, 1.0).to(u.dtype)
    return u.mul_(sign), s, vh.mul_(sign.mT)
