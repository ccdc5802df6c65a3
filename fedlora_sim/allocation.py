"""Rank allocation: which directions of the global update a client of rank r_k receives.

    svd         the r_k strongest, as the paper has it (Wu et al., arXiv 2602.13486, Sec. 3)
    random      a fresh uniform subset of r_k of the r_max directions, every client and round
    importance  the r_k along which the client's own gradient is longest; where nothing is trained,
                the r_k whose amplitude the client is about to change most

All three are "the r_k directions of highest score", with scores that fall with the index, that are
random, or that the client computes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def carried_directions(ranks: Tensor, scores: Tensor) -> Tensor:
    """Mark the `ranks` directions of highest score; of equal scores the lower index.

    Args:
        ranks: whole numbers, (...).
        scores: (..., r_max).

    Returns:
        Boolean (..., r_max), with `ranks` entries true along the last dimension.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(-1, order, _index_like(order))
    return place < ranks.unsqueeze(-1)


def leading_directions(ranks: Tensor, r_max: int) -> Tensor:
    """Mark the first `ranks` of r_max directions: SVD allocation. Boolean (..., r_max)."""
    return ranks.unsqueeze(-1) > torch.arange(r_max, device=ranks.device)


def _index_like(order: Tensor) -> Tensor:
    return torch.arange(order.shape[-1], device=order.device).expand_as(order)
